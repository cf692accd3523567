"""The byte budget: a bound that holds, and turns in the order of arrival."""

from __future__ import annotations

import random

import trio
import trio.testing

from dstore.network.byte_budget import ByteBudget


async def test_takers_wait_for_their_turn() -> None:
    budget = ByteBudget(10)
    await budget.take(8)
    order: list[str] = []

    async def taker(name: str, size: int) -> None:
        await budget.take(size)
        order.append(name)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(taker, "large", 9)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(taker, "small", 1)  # would fit, but is not first
        await trio.testing.wait_all_tasks_blocked()
        assert order == []
        budget.give_back(8)
    assert order == ["large", "small"]
    assert budget.taken_bytes == budget.peak_bytes == 10


async def test_cancelled_taker_took_nothing() -> None:
    parent = ByteBudget(10)
    one, other = ByteBudget(10, parent), ByteBudget(10, parent)
    await one.take(6)
    with trio.move_on_after(0) as scope:
        await other.take(6)
    assert scope.cancelled_caught
    assert (other.taken_bytes, parent.taken_bytes) == (0, 6)
    one.give_back(6)
    await other.take(10)
    other.give_back(10)
    assert parent.taken_bytes == 0


async def test_bounds_hold_under_many_takers(autojump_clock: trio.testing.MockClock) -> None:
    parent = ByteBudget(50)
    budgets = [ByteBudget(30, parent) for _ in range(4)]
    draw = random.Random(5)

    async def taker(budget: ByteBudget) -> None:
        for _ in range(20):
            size = draw.randint(1, 30)
            with trio.move_on_after(draw.choice([1, 1000])) as scope:
                await budget.take(size)
            if scope.cancelled_caught:
                continue
            await trio.sleep(draw.random() * 3)
            budget.give_back(size)

    async with trio.open_nursery() as nursery:
        for number in range(24):
            nursery.start_soon(taker, budgets[number % 4])
    assert parent.taken_bytes == 0
    assert parent.peak_bytes <= 50
    assert all(budget.taken_bytes == 0 and budget.peak_bytes <= 30 for budget in budgets)
