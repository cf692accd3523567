"""Work done concurrently and delivered in order, within a budget of bytes.

One shape serves reading a file in chunks, encoding stripes and reading ahead: items are
weighed, started as long as the budget has room, and their results come out in the order of
the items.  A failure surfaces at its place in that order, after all results before it.
"""

from __future__ import annotations

from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
)
from contextlib import asynccontextmanager
from typing import Generic, TypeVar

import trio

from dstore.errors import DstoreError
from dstore.runtime import open_plain_nursery

T = TypeVar("T")
R = TypeVar("R")


class _Pending(Generic[R]):
    """A result that is on its way."""

    __slots__ = ("done", "error", "result", "weight")

    def __init__(self, weight: int) -> None:
        self.weight = weight
        self.done = trio.Event()
        self.result: R | None = None
        self.error: DstoreError | None = None


class ByteBudget:
    """Bytes under way; one item always fits, however heavy.

    A budget `within` another counts there too: together its members stay within that one,
    but for the one item that each may always have.
    """

    def __init__(self, limit: int, within: ByteBudget | None = None) -> None:
        self._limit = limit
        self._within = within
        self._waiting: trio.lowlevel.ParkingLot = (
            trio.lowlevel.ParkingLot() if within is None else within._waiting
        )
        self.used = 0

    async def take(self, weight: int) -> None:
        """Wait for room."""
        while self.used and not self._has_room(weight):
            await self._waiting.park()
        self._count(weight)

    def give(self, weight: int) -> None:
        """Give room back."""
        self._count(-weight)
        self._waiting.unpark_all()

    def _has_room(self, weight: int) -> bool:
        outer = self._within
        return self.used + weight <= self._limit and (
            outer is None or outer.used + weight <= outer._limit
        )

    def _count(self, weight: int) -> None:
        self.used += weight
        if self._within is not None:
            self._within.used += weight


class _Places:
    """Places for items under way.  Once all are taken, half of them must be free before the
    next is given: what begins together can travel together, in few exchanges."""

    def __init__(self, number: int) -> None:
        self._number = number
        self._taken = 0
        self._half_free = trio.Event()

    async def take(self) -> None:
        """Wait for a place."""
        if self._taken >= self._number:
            self._half_free = trio.Event()
            await self._half_free.wait()
        self._taken += 1

    def give(self) -> None:
        """Give a place back."""
        self._taken -= 1
        if self._taken <= self._number - self._number // 2:
            self._half_free.set()


@asynccontextmanager
async def closing(iterator: AsyncIterator[object]) -> AsyncIterator[None]:
    """Ends a generator that is left half-way, so that what it holds is let go of now; other
    iterators are left alone."""
    try:
        yield
    finally:
        if isinstance(iterator, AsyncGenerator):
            await iterator.aclose()


@asynccontextmanager
async def in_order(
    items: AsyncIterable[T],
    work: Callable[[T], Awaitable[R]],
    *,
    weigh: Callable[[T], int],
    budget: int,
    within: ByteBudget | None = None,
    tasks: int = 64,
) -> AsyncIterator[AsyncIterator[R]]:
    """An iterator over `work(item)` for all items, in their order.

    At most `tasks` items and `budget` bytes (by `weigh`) are under way or waiting to be
    taken, and together with others no more than `within` has room for.  Leaving the context
    cancels what is still under way; `items`, where it is a generator, is closed.
    """
    room = ByteBudget(budget, within)
    places = _Places(tasks)
    send, receive = trio.open_memory_channel[_Pending[R]](tasks + 1)  # and a failed source

    async def run(item: T, pending: _Pending[R]) -> None:
        try:
            pending.result = await work(item)
        except DstoreError as error:
            pending.error = error
        pending.done.set()

    async def produce(nursery: trio.Nursery) -> None:
        iterator = aiter(items)
        async with send, closing(iterator):
            while True:
                try:
                    item = await anext(iterator)
                except StopAsyncIteration:
                    return
                except DstoreError as error:
                    failed: _Pending[R] = _Pending(0)
                    failed.error = error
                    failed.done.set()
                    send.send_nowait(failed)
                    return
                pending: _Pending[R] = _Pending(weigh(item))
                await places.take()
                await room.take(pending.weight)
                send.send_nowait(pending)
                nursery.start_soon(run, item, pending)

    async def consume() -> AsyncIterator[R]:
        async for pending in receive:
            await pending.done.wait()
            if pending.error is not None:
                raise pending.error
            yield pending.result  # type: ignore[misc]  # set whenever there is no error
            pending.result = None
            room.give(pending.weight)
            places.give()

    try:
        async with open_plain_nursery() as nursery:
            nursery.start_soon(produce, nursery)
            results = consume()
            try:
                yield results
            finally:
                nursery.cancel_scope.cancel()
                await results.aclose()  # type: ignore[attr-defined]  # an async generator
    finally:
        room.give(room.used)  # of what was left on its way


async def from_iterable(items: Iterable[T]) -> AsyncIterator[T]:
    """The items of an ordinary iterable, for `in_order`."""
    for item in items:
        yield item
