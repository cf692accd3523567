"""What components are given instead of reaching for it."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Sequence
from typing import TypeVar, TypeVarTuple

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from dstore.errors import Unreachable
from dstore.runtime import (
    InlineWorkers,
    JointWork,
    Runtime,
    SystemClock,
    ThreadWorkers,
    TrioClock,
    open_plain_nursery,
)
from dstore.testing.deterministic import run_deterministic, simulated_runtime

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


def test_system_clock_is_unix_time() -> None:
    assert abs(SystemClock().now() - time.time()) < 5


async def test_trio_clock_follows_the_mock_clock(mock_clock: MockClock) -> None:
    clock = TrioClock(start=1000.0)
    before = clock.now()
    mock_clock.jump(12.5)
    assert clock.now() - before == 12.5
    assert TrioClock(start=2000.0).now() - clock.now() == 1000.0


async def test_threads_run_elsewhere_and_pass_on_errors() -> None:
    workers = ThreadWorkers(threads=1)
    assert await workers.run(threading.get_ident) != threading.get_ident()
    assert await workers.run(divmod, 7, 2) == (3, 1)
    with pytest.raises(ZeroDivisionError):
        await workers.run(divmod, 7, 0)


async def test_a_thread_begins_before_whoever_asks_gives_way() -> None:
    workers = ThreadWorkers(threads=1)
    for _ in range(10):
        begun = threading.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(workers.run, begun.set)
            await trio.lowlevel.checkpoint()
            await trio.lowlevel.checkpoint()  # it has had one turn, and perhaps another
            assert begun.wait(5)


async def test_threads_are_bounded() -> None:
    workers = ThreadWorkers(threads=2)
    lock, running, most = threading.Lock(), 0, 0
    gate = threading.Barrier(2, timeout=30)

    def work() -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        gate.wait()
        with lock:
            running -= 1

    async with trio.open_nursery() as nursery:
        for _ in range(6):
            nursery.start_soon(workers.run, work)
    assert most == 2


async def test_a_cancelled_caller_waits_for_its_work() -> None:
    workers = ThreadWorkers(threads=1)
    started, finish, done = threading.Event(), threading.Event(), threading.Event()

    def work() -> None:
        started.set()
        finish.wait(30)
        done.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(workers.run, work)
        await trio.to_thread.run_sync(started.wait, 30)
        nursery.cancel_scope.cancel()
        assert not done.is_set()
        finish.set()
    assert done.is_set()


async def test_inline_workers_stay_here_and_can_be_cancelled_before() -> None:
    workers = InlineWorkers()
    assert await workers.run(threading.get_ident) == threading.get_ident()
    ran: list[int] = []
    with trio.CancelScope() as scope:
        scope.cancel()
        await workers.run(ran.append, 1)
    assert scope.cancelled_caught
    assert not ran


def test_production_defaults() -> None:
    runtime = Runtime()
    assert isinstance(runtime.clock, SystemClock)
    assert isinstance(runtime.random, random.SystemRandom)
    assert isinstance(runtime.workers, ThreadWorkers)


def test_simulated_runtime_depends_on_its_seed_only() -> None:
    async def draws(seed: int) -> tuple[float, float]:
        runtime = simulated_runtime(seed)
        assert isinstance(runtime.workers, InlineWorkers)
        await trio.sleep(100)
        return runtime.clock.now(), runtime.random.random()

    assert run_deterministic(1, draws, 5) == run_deterministic(1, draws, 5)
    assert run_deterministic(1, draws, 5)[1] != run_deterministic(1, draws, 6)[1]


async def test_a_plain_nursery_raises_what_failed() -> None:
    async def fail(error: Exception) -> None:
        raise error  # without a checkpoint: both fail before either is cancelled

    with pytest.raises(Unreachable, match="nobody") as caught:
        async with open_plain_nursery() as nursery:
            nursery.start_soon(fail, ValueError("first"))
            nursery.start_soon(fail, Unreachable("nobody"))
    # The error of the tree is the one to act on; the other is not lost.
    assert any("ValueError" in note for note in caught.value.__notes__)
    with pytest.raises(KeyError):
        async with open_plain_nursery() as nursery, trio.open_nursery() as inner:
            inner.start_soon(fail, KeyError("deep"))


async def test_a_plain_nursery_can_be_cancelled() -> None:
    with trio.CancelScope() as scope:
        async with open_plain_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            scope.cancel()
    assert scope.cancelled_caught


# --- Joint work --------------------------------------------------------------------------


class Gated:
    """Workers that begin when they may, as threads do that are all taken."""

    def __init__(self) -> None:
        self.may = trio.Event()

    async def run(self, work: Callable[[*Ts], T], *args: *Ts) -> T:
        await self.may.wait()
        return work(*args)


class Squares:
    """Joint work that notes what was handed over together; `most` at a time are done."""

    def __init__(self, hands: int, most: int = 100) -> None:
        self.workers = Gated()
        self.joint = JointWork(self.workers, self._work, hands)
        self.most = most
        self.batches: list[list[int]] = []
        self.got: dict[int, int] = {}
        self.failed: list[int] = []

    def _work(self, numbers: Sequence[int]) -> list[int]:
        self.batches.append(list(numbers))
        if min(numbers) < 0:
            raise Unreachable("a bad one")
        return [number * number for number in numbers[: self.most]]

    async def ask(self, number: int, scope: trio.CancelScope | None = None) -> None:
        with scope or trio.CancelScope():
            try:
                self.got[number] = await self.joint.run(number)
            except Unreachable:
                self.failed.append(number)


async def test_joint_work_hands_over_together_what_comes_while_hands_are_full() -> None:
    squares = Squares(hands=2)
    async with trio.open_nursery() as nursery:
        for number in range(8):
            nursery.start_soon(squares.ask, number)
            await wait_all_tasks_blocked()
        squares.workers.may.set()
    assert sorted(squares.batches) == [[0], [1], [2, 3, 4, 5, 6, 7]]
    assert squares.got == {number: number * number for number in range(8)}


async def test_joint_work_goes_on_with_what_was_not_done() -> None:
    squares = Squares(hands=1, most=2)
    async with trio.open_nursery() as nursery:
        for number in range(6):
            nursery.start_soon(squares.ask, number)
            await wait_all_tasks_blocked()
        squares.workers.may.set()
    assert squares.batches == [[0], [1, 2, 3, 4, 5], [3, 4, 5], [5]]
    assert squares.got == {number: number * number for number in range(6)}


@pytest.mark.parametrize("order", [(0, -1, 2, 3), (0, 2, -1, 3), (0, 2, 3, -1)])
async def test_joint_work_that_fails_fails_for_one_and_is_done_for_the_others(
    order: Sequence[int],
) -> None:
    squares = Squares(hands=1)
    async with trio.open_nursery() as nursery:
        for number in order:
            nursery.start_soon(squares.ask, number)
            await wait_all_tasks_blocked()
        squares.workers.may.set()
    assert squares.failed == [-1]
    assert squares.got == {0: 0, 2: 4, 3: 9}


@pytest.mark.parametrize("leaver", [0, 1, 2])
async def test_joint_work_is_done_for_those_who_stay(leaver: int) -> None:
    squares = Squares(hands=1)
    scope = trio.CancelScope()
    async with trio.open_nursery() as nursery:
        for number in range(4):
            nursery.start_soon(squares.ask, number, scope if number == leaver else None)
            await wait_all_tasks_blocked()
        scope.cancel()
        await wait_all_tasks_blocked()
        squares.workers.may.set()
    assert squares.got == {number: number**2 for number in range(4) if number != leaver}
