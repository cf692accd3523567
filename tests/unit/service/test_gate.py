"""Operations end by themselves, or are ended, and none begins, when a node stops."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from dstore.errors import NodeError
from dstore.service.gate import Gate


async def test_what_is_under_way_may_end(autojump_clock: MockClock) -> None:
    gate = Gate()
    ended: list[float] = []

    async def operation(seconds: float) -> None:
        with gate.enter():
            await trio.sleep(seconds)
        ended.append(seconds)

    async with trio.open_nursery() as nursery:
        for seconds in (1.0, 3.0):
            nursery.start_soon(operation, seconds)
        await wait_all_tasks_blocked()
        assert gate.inside == 2
        await gate.drain(5)
        assert gate.inside == 0
        assert trio.current_time() == pytest.approx(3)
    assert ended == [1.0, 3.0]


async def test_nobody_is_let_in_any_more() -> None:
    gate = Gate()
    gate.check()
    await gate.drain(5)
    with pytest.raises(NodeError, match="shutting down"):
        gate.check()
    with pytest.raises(NodeError, match="shutting down"), gate.enter():
        raise AssertionError("entered")


async def test_what_takes_too_long_is_ended_and_told_so(autojump_clock: MockClock) -> None:
    gate = Gate()
    told: list[str] = []
    cleaned = False

    async def operation() -> None:
        nonlocal cleaned
        try:
            with gate.enter():
                try:
                    await trio.sleep_forever()
                finally:
                    with trio.CancelScope(shield=True):
                        await trio.sleep(0.5)
                    cleaned = True
        except NodeError as error:
            told.append(str(error))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(operation)
        await wait_all_tasks_blocked()
        await gate.drain(5)
        # Not before the operation has put its things in order.
        assert cleaned
        assert trio.current_time() == pytest.approx(5.5)
    assert told == ["the node was shut down before this was done"]


async def test_failures_and_outer_cancellation_pass_through() -> None:
    gate = Gate()
    with pytest.raises(KeyError), gate.enter():
        raise KeyError
    with trio.CancelScope() as scope, gate.enter():
        scope.cancel()
        await trio.sleep_forever()
    assert scope.cancelled_caught
    assert gate.inside == 0
