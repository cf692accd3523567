"""Work that several callers want at once is done once.

A flight runs in the owner's nursery, not in that of a caller, so that one caller's
cancellation does not fail the others; when the last one gives up, the flight is cancelled.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import trio

from dstore.errors import DstoreError, NetworkError

T = TypeVar("T")


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
