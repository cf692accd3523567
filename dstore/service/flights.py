"""Work that several callers want at once is done once.

A flight runs in the owner's nursery, not in that of a caller, so that one caller's
cancellation does not fail the others; when the last one gives up, the flight is cancelled.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Hashable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Generic, TypeAlias, TypeVar

import trio

from dstore.errors import DstoreError, NetworkError

T = TypeVar("T")
K = TypeVar("K", bound=Hashable)

Land: TypeAlias = Callable[[K, T], None]


@dataclass(eq=False, slots=True)
class Flight(Generic[T]):
    """One piece of work under way, and for how many."""

    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    done: trio.Event = field(default_factory=trio.Event)
    waiters: int = 0
    results: list[T] = field(default_factory=list)
    error: DstoreError | None = None

    async def result(self) -> T:
        """What the work came to.  Raises what it raised."""
        await self.done.wait()
        if self.error is not None:
            raise self.error
        if not self.results:
            raise NetworkError("the work was ended before it was done")
        return self.results[0]


class Flights(Generic[T]):
    """Shared work by key."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self._flights: dict[Hashable, Flight[T]] = {}

    async def share(self, key: Hashable, work: Callable[[], Awaitable[T]]) -> T:
        """The result of `work()`, begun by whoever asks for `key` first.  Raises what the
        work raises (a DstoreError)."""
        with self.join(key, work) as flight:
            return await flight.result()

    @contextmanager
    def join(self, key: Hashable, work: Callable[[], Awaitable[T]]) -> Iterator[Flight[T]]:
        """As `share`, for who waits for other things beside the result: the flight goes on
        until the end of the block at least."""
        self.start(key, work)
        flight = self._flights[key]
        flight.waiters += 1
        try:
            yield flight
        finally:
            flight.waiters -= 1
            if not flight.waiters and not flight.done.is_set():
                self._forget(key, flight)
                flight.scope.cancel()

    def start(self, key: Hashable, work: Callable[[], Awaitable[T]]) -> None:
        """Begin `work()` unless it is under way; whoever asks later shares it."""
        if key not in self._flights:
            flight = self._flights[key] = Flight()
            self._nursery.start_soon(self._fly, key, flight, work)

    def start_together(
        self,
        works: Mapping[K, Callable[[], Awaitable[T]]],
        joint: Callable[[Collection[K], Land[K, T]], Awaitable[None]],
    ) -> None:
        """As `start` for each of `works`, but `joint`, one task for all of those that are not
        under way, goes first: it hands the results it has to `land`, and only what it leaves
        over is worked on by itself."""
        flights: dict[K, Flight[T]] = {}
        for key in works:
            if key not in self._flights:
                flights[key] = self._flights[key] = Flight()
        if flights:
            self._nursery.start_soon(self._fly_together, flights, works, joint)

    async def _fly_together(
        self,
        flights: dict[K, Flight[T]],
        works: Mapping[K, Callable[[], Awaitable[T]]],
        joint: Callable[[Collection[K], Land[K, T]], Awaitable[None]],
    ) -> None:
        def land(key: K, result: T) -> None:
            flight = flights.pop(key)
            flight.results.append(result)
            self._forget(key, flight)
            flight.done.set()

        try:
            with suppress(DstoreError):
                await joint(list(flights), land)
        finally:
            for key, flight in flights.items():
                self._nursery.start_soon(self._fly, key, flight, works[key])

    def _forget(self, key: Hashable, flight: Flight[T]) -> None:
        if self._flights.get(key) is flight:
            del self._flights[key]

    async def _fly(
        self, key: Hashable, flight: Flight[T], work: Callable[[], Awaitable[T]]
    ) -> None:
        try:
            with flight.scope:
                flight.results.append(await work())
        except DstoreError as error:
            flight.error = error
        finally:
            self._forget(key, flight)
            flight.done.set()
