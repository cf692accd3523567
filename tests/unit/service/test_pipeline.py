"""Concurrent work delivered in order, within its budget."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from dstore.errors import NotFoundError
from dstore.service.pipeline import ByteBudget, from_iterable, in_order


async def test_results_keep_the_order_of_the_items(autojump_clock: MockClock) -> None:
    async def work(item: int) -> int:
        await trio.sleep(1 / (item + 1))  # later items end earlier
        return item * 10

    async with in_order(from_iterable(range(8)), work, weigh=lambda _: 1, budget=8) as results:
        assert [value async for value in results] == [item * 10 for item in range(8)]


async def test_the_budget_bounds_what_is_under_way(autojump_clock: MockClock) -> None:
    running = peak = 0

    async def work(item: int) -> int:
        nonlocal running, peak
        running += item
        peak = max(peak, running)
        await trio.sleep(0.01)
        running -= item
        return item

    sizes = [3, 3, 3, 20, 3, 3, 3]
    async with in_order(from_iterable(sizes), work, weigh=lambda size: size, budget=7) as results:
        assert [value async for value in results] == sizes
    assert peak == 20  # one item always goes, alone
    assert running == 0


async def test_a_failure_comes_at_its_place_and_as_itself() -> None:
    async def work(item: int) -> int:
        if item == 2:
            raise NotFoundError("two")
        return item

    seen = []
    with pytest.raises(NotFoundError, match="two"):
        async with in_order(from_iterable(range(5)), work, weigh=lambda _: 1, budget=5) as results:
            async for value in results:
                seen.append(value)
    assert seen == [0, 1]


async def test_leaving_early_cancels_what_is_under_way() -> None:
    cancelled = 0

    async def work(item: int) -> int:
        nonlocal cancelled
        if item == 0:
            return 0
        try:
            await trio.sleep_forever()
        finally:
            cancelled += 1
        return item

    async with in_order(from_iterable(range(4)), work, weigh=lambda _: 1, budget=4) as results:
        async for value in results:
            assert value == 0
            await trio.testing.wait_all_tasks_blocked()
            break
    assert cancelled == 3


async def test_readers_share_a_budget_and_each_may_have_one_item(autojump_clock: MockClock) -> None:
    """One reader fills the shared budget and stops taking; the other still gets on, one item
    at a time; when the first leaves, its share is free again."""
    shared = ByteBudget(4)
    ahead: list[int] = []

    async def work(item: int) -> int:
        ahead.append(item)
        return item

    async with in_order(
        from_iterable(range(9)), work, weigh=lambda _: 1, budget=4, within=shared
    ) as slow:
        assert await anext(aiter(slow)) == 0
        await trio.testing.wait_all_tasks_blocked()
        assert shared.used == 4
        peak = 0
        async with in_order(
            from_iterable(range(5)), work, weigh=lambda _: 1, budget=4, within=shared
        ) as other:
            async for _ in other:
                peak = max(peak, shared.used)
        assert peak == 5
        assert shared.used == 4
    assert shared.used == 0


async def test_full_places_are_given_again_by_halves(autojump_clock: MockClock) -> None:
    """What begins in one moment can travel in one exchange: with eight places, the ninth item
    waits until four are free."""
    begun: dict[float, list[int]] = {}

    async def work(item: int) -> int:
        begun.setdefault(trio.current_time(), []).append(item)
        return item

    async with in_order(
        from_iterable(range(16)), work, weigh=lambda _: 1, budget=100, tasks=8
    ) as results:
        async for _ in results:
            await trio.sleep(1)
    assert sorted(map(len, begun.values())) == [4, 4, 8]
