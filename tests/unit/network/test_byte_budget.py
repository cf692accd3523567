"""The byte budget: a bound that holds, turns in order, and room for who has least."""

from __future__ import annotations

import random

import pytest
import trio
import trio.testing

from dstore.core.wire import Refusal
from dstore.errors import Refused
from dstore.network.byte_budget import ByteBudget, Share


async def take_and_give_back(share: Share, size: int, name: str, order: list[str]) -> None:
    await share.take(size)
    order.append(name)
    await trio.testing.wait_all_tasks_blocked()
    share.give_back(size)


async def test_takers_of_a_share_wait_for_their_turn() -> None:
    share = ByteBudget(20).share(9)
    await share.take(8)
    order: list[str] = []

    async def taker(name: str, size: int) -> None:
        await share.take(size)
        order.append(name)
        share.give_back(size)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(taker, "large", 9)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(taker, "small", 1)  # would fit, but is not first
        await trio.testing.wait_all_tasks_blocked()
        assert order == []
        share.give_back(8)
    assert order == ["large", "small"]
    assert (share.taken_bytes, share.peak_bytes) == (0, 9)


async def test_cancelled_taker_took_nothing() -> None:
    budget = ByteBudget(10)
    one, other = budget.share(10), budget.share(10)
    await one.take(5)
    with trio.move_on_after(0) as scope:
        await other.take(6)
    assert scope.cancelled_caught
    assert (other.taken_bytes, budget.taken_bytes) == (0, 5)
    one.give_back(5)
    await other.take(10)
    other.give_back(10)
    assert budget.taken_bytes == 0


async def test_taker_cancelled_as_its_turn_comes_gives_it_back() -> None:
    share = ByteBudget(10).share(10)
    await share.take(10)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(share.take, 4)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
        share.give_back(10)
    assert share.taken_bytes == 0


async def test_no_share_comes_to_hold_more_than_is_left_for_the_others() -> None:
    budget = ByteBudget(100)
    greedy = [budget.share(50) for _ in range(4)]
    for share in greedy:
        with trio.move_on_after(0):
            while True:
                await share.take(1)
                await trio.lowlevel.checkpoint()
    assert budget.limit_bytes - budget.taken_bytes >= 6  # of 50, 25, 13 and 6: as many as the last
    newcomer = budget.share(50)
    await newcomer.take(3)


async def test_who_holds_least_goes_first(autojump_clock: trio.testing.MockClock) -> None:
    budget = ByteBudget(12)
    shares = {name: budget.share(12) for name in ("most", "some", "none")}
    await shares["some"].take(1)
    await shares["most"].take(5)
    order: list[str] = []
    async with trio.open_nursery() as nursery:
        for name, size in (("most", 2), ("some", 6), ("none", 7)):
            nursery.start_soon(take_and_give_back, shares[name], size, name, order)
            await trio.sleep(1)
        assert order == []
        shares["most"].give_back(3)  # it could have the two now, but for those that hold less
    assert order == ["none", "some", "most"]


async def test_who_gives_back_all_it_held_is_before_those_who_came_later() -> None:
    """So a peer that brings a slot waits behind readers only until what it brought is stored."""
    budget = ByteBudget(12)
    slow, bringer = budget.share(12), budget.share(12)
    await slow.take(4)
    await bringer.take(4)
    order: list[str] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(take_and_give_back, bringer, 4, "bringer", order)
        for number in range(5):
            await trio.testing.wait_all_tasks_blocked()
            share = budget.share(12)
            nursery.start_soon(take_and_give_back, share, 5, f"reader {number}", order)
        await trio.testing.wait_all_tasks_blocked()
        assert order == []
        bringer.give_back(4)
    assert order == ["bringer", *(f"reader {number}" for number in range(5))]


async def test_who_waits_too_long_for_what_others_have_is_refused(
    autojump_clock: trio.testing.MockClock,
) -> None:
    budget = ByteBudget(10)
    slow, other = budget.share(5), budget.share(5)
    await slow.take(5)
    await other.take(2)
    begun = trio.current_time()
    with pytest.raises(Refused) as refused:
        await other.take(2, patience_seconds=5)
    assert refused.value.reason == Refusal.BUSY
    assert trio.current_time() - begun == 5
    # What the share holds itself is waited for.
    with trio.move_on_after(100) as scope:
        await slow.take(1, patience_seconds=5)
    assert scope.cancelled_caught
    assert not budget.crowded


async def test_bounds_hold_under_many_takers(autojump_clock: trio.testing.MockClock) -> None:
    budget = ByteBudget(50)
    shares = [budget.share(30) for _ in range(4)]
    draw = random.Random(5)

    async def taker(number: int) -> None:
        for _ in range(20):
            size = draw.randint(1, 30)
            with trio.move_on_after(draw.choice([1, 1000])) as scope:
                await shares[number].take(size)
            if scope.cancelled_caught:
                continue
            await trio.sleep(draw.random() * 3)
            shares[number].give_back(size)

    async with trio.open_nursery() as nursery:
        for number in range(24):
            nursery.start_soon(taker, number % 4)
    assert budget.taken_bytes == 0
    assert budget.peak_bytes <= 50
    assert all(share.taken_bytes == 0 and share.peak_bytes <= 30 for share in shares)
