"""First success wins, failures start the next way at once, silence after a while."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Awaitable, Callable

import pytest
import trio
from trio.testing import MockClock

from dstore.errors import NotFoundError, Unreachable
from dstore.service.race import first_success, gather_enough


def after(seconds: float, value: str) -> Callable[[], Awaitable[str]]:
    async def way() -> str:
        await trio.sleep(seconds)
        return value

    return way


def fails(seconds: float) -> Callable[[], Awaitable[str]]:
    async def way() -> str:
        await trio.sleep(seconds)
        raise Unreachable("gone")

    return way


async def silent() -> str:
    await trio.sleep_forever()
    raise AssertionError("unreachable")


async def test_the_first_way_is_enough_when_it_answers(autojump_clock: MockClock) -> None:
    assert await first_success([after(0.1, "a"), after(0, "b")], stagger_seconds=0.5) == "a"
    assert trio.current_time() == pytest.approx(0.1)


async def test_a_failure_starts_the_next_way_at_once(autojump_clock: MockClock) -> None:
    assert await first_success([fails(0), fails(0), after(0, "c")], stagger_seconds=9) == "c"
    assert trio.current_time() == 0


async def test_silence_starts_the_next_way(autojump_clock: MockClock) -> None:
    ways = [silent, after(0.2, "b")]
    assert await first_success(ways, stagger_seconds=0.5) == "b"
    assert trio.current_time() == pytest.approx(0.7)


async def test_ways_that_start_together(autojump_clock: MockClock) -> None:
    ways = [silent, fails(0.1), after(0.2, "c"), after(0, "late")]
    assert await first_success(ways, stagger_seconds=0.5, at_once=3) == "c"
    assert trio.current_time() == pytest.approx(0.2)


async def test_the_slow_first_way_may_still_win(autojump_clock: MockClock) -> None:
    assert await first_success([after(0.6, "a"), silent], stagger_seconds=0.5) == "a"


async def test_a_way_that_failed_does_not_keep_the_result(autojump_clock: MockClock) -> None:
    """A reader beside a liar would hold many blocks until the collector comes."""

    class Block:
        pass

    made: list[weakref.ref[Block]] = []

    async def way() -> Block:
        await trio.sleep(1)
        block = Block()
        made.append(weakref.ref(block))
        return block

    async def gone() -> Block:
        raise Unreachable("gone")

    gc.collect()
    gc.disable()
    try:
        assert isinstance(await first_success([gone, way], stagger_seconds=0.5), Block)
        await trio.lowlevel.checkpoint()
        assert made[0]() is None
    finally:
        gc.enable()


async def test_all_failures_raise_the_last_and_none_is_not_found() -> None:
    with pytest.raises(Unreachable):
        await first_success([fails(0), fails(0)], stagger_seconds=1)
    with pytest.raises(NotFoundError):
        await first_success([], stagger_seconds=1)


async def test_enough_starts_only_what_is_needed(autojump_clock: MockClock) -> None:
    started: list[str] = []

    def way(name: str) -> Callable[[], Awaitable[str]]:
        async def run() -> str:
            started.append(name)
            await trio.sleep(0.1)
            return name

        return run

    assert sorted(await gather_enough([way("a"), way("b"), way("c")], 2, stagger_seconds=1)) == [
        "a",
        "b",
    ]
    assert sorted(started) == ["a", "b"]


async def test_enough_replaces_the_failed_and_the_silent(autojump_clock: MockClock) -> None:
    ways = [fails(0), silent, after(0.1, "c"), after(0.1, "d")]
    got = await gather_enough(ways, 2, stagger_seconds=0.5)
    assert sorted(got) == ["c", "d"]
    assert trio.current_time() < 1


async def test_enough_returns_short_when_no_way_is_left(autojump_clock: MockClock) -> None:
    assert await gather_enough([fails(0), after(0.1, "b")], 2, stagger_seconds=0.5) == ["b"]
    assert await gather_enough([], 0, stagger_seconds=0.5) == []
