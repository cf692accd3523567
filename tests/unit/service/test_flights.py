"""Shared work: once for all who ask, ended when nobody waits any more."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection

import trio
from trio.testing import wait_all_tasks_blocked

from dstore.errors import NetworkError, NotFoundError
from dstore.service.flights import Flights, Land


class Work:
    """Ends when told to; counts how often it was begun and cancelled."""

    def __init__(self, result: str = "done") -> None:
        self.begun = 0
        self.cancelled = 0
        self.go = trio.Event()
        self.error: NotFoundError | None = None
        self.result = result

    async def __call__(self) -> str:
        self.begun += 1
        try:
            await self.go.wait()
        except trio.Cancelled:
            self.cancelled += 1
            raise
        if self.error is not None:
            raise self.error
        return self.result


async def ask(
    flights: Flights[str],
    work: Callable[[], Awaitable[str]],
    got: list[str],
    scope: trio.CancelScope,
) -> None:
    with scope:
        try:
            got.append(await flights.share("key", work))
        except (NotFoundError, NetworkError) as error:
            got.append(type(error).__name__)


async def begin(
    nursery: trio.Nursery, flights: Flights[str], work: Work, got: list[str], count: int
) -> list[trio.CancelScope]:
    scopes = [trio.CancelScope() for _ in range(count)]
    for scope in scopes:
        nursery.start_soon(ask, flights, work, got, scope)
    await wait_all_tasks_blocked()
    return scopes


async def test_many_askers_one_piece_of_work() -> None:
    work, got = Work(), list[str]()
    async with trio.open_nursery() as nursery:
        flights: Flights[str] = Flights(nursery)
        await begin(nursery, flights, work, got, 3)
        work.go.set()
    assert (work.begun, got) == (1, ["done"] * 3)


async def test_a_failure_reaches_all_and_is_not_remembered() -> None:
    work, got = Work(), list[str]()
    async with trio.open_nursery() as nursery:
        flights: Flights[str] = Flights(nursery)
        await begin(nursery, flights, work, got, 2)
        work.error = NotFoundError("no")
        work.go.set()
        await wait_all_tasks_blocked()
        work.error = None
        assert await flights.share("key", work) == "done"
    assert (work.begun, got) == (2, ["NotFoundError"] * 2)


async def test_one_that_gives_up_does_not_fail_the_others() -> None:
    work, got = Work(), list[str]()
    async with trio.open_nursery() as nursery:
        flights: Flights[str] = Flights(nursery)
        scopes = await begin(nursery, flights, work, got, 3)
        scopes[0].cancel()  # the one that began it, too
        scopes[1].cancel()
        await wait_all_tasks_blocked()
        assert work.cancelled == 0
        work.go.set()
    assert (work.begun, got) == (1, ["done"])


async def test_the_last_to_give_up_ends_the_work_and_the_next_begins_anew() -> None:
    work, got = Work(), list[str]()
    async with trio.open_nursery() as nursery:
        flights: Flights[str] = Flights(nursery)
        for scope in await begin(nursery, flights, work, got, 2):
            scope.cancel()
        await wait_all_tasks_blocked()
        assert (work.begun, work.cancelled) == (1, 1)
        work.go.set()
        assert await flights.share("key", work) == "done"
    assert work.begun == 2


async def test_who_joins_may_stop_waiting_and_wait_again() -> None:
    work = Work()
    async with trio.open_nursery() as nursery:
        flights: Flights[str] = Flights(nursery)
        with flights.join("key", work) as flight:
            with trio.CancelScope() as scope:
                scope.cancel()
                await flight.result()
            await wait_all_tasks_blocked()
            assert (work.begun, work.cancelled) == (1, 0)
            work.go.set()
            assert await flight.result() == "done"
    assert work.begun == 1


async def test_work_that_was_joined_ends_with_the_block() -> None:
    work = Work()
    async with trio.open_nursery() as nursery:
        flights: Flights[str] = Flights(nursery)
        with flights.join("key", work):
            await wait_all_tasks_blocked()
        await wait_all_tasks_blocked()
        assert (work.begun, work.cancelled) == (1, 1)


async def test_an_asker_that_comes_while_the_last_one_leaves_gets_its_own() -> None:
    """The work is cancelled but has not ended when somebody asks again."""
    ending = trio.Event()

    async def slow_to_end() -> str:
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await ending.wait()
        return "never"

    second = Work("second")
    second.go.set()
    got: list[str] = []
    async with trio.open_nursery() as nursery:
        flights: Flights[str] = Flights(nursery)
        scope = trio.CancelScope()
        nursery.start_soon(ask, flights, slow_to_end, got, scope)
        await wait_all_tasks_blocked()
        scope.cancel()
        await wait_all_tasks_blocked()
        assert await flights.share("key", second) == "second"
        ending.set()


async def test_cancelled_before_the_work_took_its_first_step() -> None:
    work = Work()
    async with trio.open_nursery() as nursery:
        flights: Flights[str] = Flights(nursery)
        with trio.CancelScope() as scope:
            scope.cancel()
            await flights.share("key", work)
        await wait_all_tasks_blocked()
        assert work.begun == work.cancelled
        work.go.set()
        assert await flights.share("key", work) == "done"


async def test_work_begun_ahead_is_shared_by_who_comes_later() -> None:
    work = Work()
    async with trio.open_nursery() as nursery:
        flights: Flights[str] = Flights(nursery)
        flights.start("key", work)
        flights.start("key", work)
        await wait_all_tasks_blocked()
        work.go.set()
        assert await flights.share("key", work) == "done"
    assert work.begun == 1


async def test_a_failure_of_work_begun_ahead_harms_nobody() -> None:
    work = Work()
    work.error = NotFoundError("no")
    work.go.set()
    async with trio.open_nursery() as nursery:
        flights: Flights[str] = Flights(nursery)
        flights.start("key", work)
        await wait_all_tasks_blocked()
        assert work.begun == 1


async def test_when_the_node_goes_askers_are_told() -> None:
    got: list[str] = []
    work = Work()
    async with trio.open_nursery() as askers, trio.open_nursery() as owner:
        flights: Flights[str] = Flights(owner)
        await begin(askers, flights, work, got, 2)
        owner.cancel_scope.cancel()
    assert got == ["NetworkError"] * 2


async def test_different_keys_are_different_work() -> None:
    async with trio.open_nursery() as nursery:
        flights: Flights[str] = Flights(nursery)
        for key in ("a", "b"):
            work = Work(key)
            work.go.set()
            assert await flights.share(key, work) == key


# --- Together ------------------------------------------------------------------------------


async def test_what_the_joint_work_brings_is_nobodys_own_work() -> None:
    works = {key: Work(key) for key in "abc"}
    may = trio.Event()
    got: list[str] = []

    async def joint(keys: Collection[str], land: Land[str, str]) -> None:
        assert set(keys) == {"a", "b"}  # the third is under way
        await may.wait()
        land("a", "A")

    async with trio.open_nursery() as nursery:
        flights: Flights[str] = Flights(nursery)
        flights.start("c", works["c"])
        flights.start_together(works, joint)
        for key in "abc":

            async def wait(key: str = key) -> None:
                got.append(await flights.share(key, works[key]))

            nursery.start_soon(wait)
        await wait_all_tasks_blocked()
        assert [work.begun for work in works.values()] == [0, 0, 1]
        may.set()
        await wait_all_tasks_blocked()
        assert got == ["A"]
        assert [work.begun for work in works.values()] == [0, 1, 1]  # left over: by itself
        for work in works.values():
            work.go.set()
    assert sorted(got) == ["A", "b", "c"]


async def test_joint_work_that_fails_leaves_all_over() -> None:
    works = {key: Work(key) for key in "ab"}

    async def joint(keys: Collection[str], land: Land[str, str]) -> None:
        land("a", "A")
        raise NotFoundError("no more")

    async with trio.open_nursery() as nursery:
        flights: Flights[str] = Flights(nursery)
        flights.start_together(works, joint)
        works["b"].go.set()
        assert await flights.share("b", works["b"]) == "b"
    assert [work.begun for work in works.values()] == [0, 1]


async def test_nobody_who_leaves_ends_the_joint_work_for_others() -> None:
    works = {key: Work(key) for key in "ab"}
    may, got = trio.Event(), list[str]()

    async def joint(keys: Collection[str], land: Land[str, str]) -> None:
        await may.wait()
        for key in keys:
            land(key, "joint")

    async with trio.open_nursery() as nursery:
        flights: Flights[str] = Flights(nursery)
        flights.start_together(works, joint)
        with trio.move_on_after(0):
            await flights.share("a", works["a"])

        async def wait() -> None:
            got.append(await flights.share("b", works["b"]))

        nursery.start_soon(wait)
        await wait_all_tasks_blocked()
        may.set()
    assert got == ["joint"]
    assert [work.begun for work in works.values()] == [0, 0]
