"""What a component takes instead of reaching for it: the clock, randomness, worker threads.

Production passes `SystemClock`, `random.SystemRandom` and `ThreadWorkers`; simulations pass
a clock that follows trio's mock clock, a seeded `random.Random` and `InlineWorkers`.  Nothing
else in dstore reads the time of day, draws a random number or starts a thread.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Generic, Protocol, TypeVar, TypeVarTuple

import trio

from dstore.errors import DstoreError

T = TypeVar("T")
R = TypeVar("R")
Ts = TypeVarTuple("Ts")


class Clock(Protocol):
    """Time of day, for what outlives the process.  Deadlines use `trio.current_time()`."""

    def now(self) -> float:
        """Unix time in seconds."""
        ...


class SystemClock:
    """The machine's own time of day."""

    def now(self) -> float:
        return time.time()


class TrioClock:
    """Time of day that advances with trio's clock from a fixed start: for simulations."""

    def __init__(self, start: float = 1_800_000_000.0) -> None:
        self._start = start

    def now(self) -> float:
        return self._start + trio.current_time()


class Workers(Protocol):
    """Where blocking work (hashing, coding, disk, SQLite) runs."""

    async def run(self, work: Callable[[*Ts], T], *args: *Ts) -> T:
        """Run `work(*args)` and return what it returns.  A cancelled caller waits for the
        work to end, so that what it writes is never half known."""
        ...


class ThreadWorkers:
    """A bounded number of threads.  Hand over about 1 MiB of work or more at a time: a
    hand-over costs some 100 µs under load.

    It is trio's `to_thread.run_sync` without what nobody here wants of it: names for threads,
    context variables and a way back into trio for the work, and a turn of the loop before it
    begins; a third of what that costs.
    """

    def __init__(self, threads: int | None = None) -> None:
        # Two more than the cores: some of the work waits for a disk.
        self._free = trio.Semaphore(threads or (os.cpu_count() or 2) + 2)

    async def run(self, work: Callable[[*Ts], T], *args: *Ts) -> T:
        await trio.lowlevel.checkpoint_if_cancelled()
        try:
            self._free.acquire_nowait()  # as a rule
        except trio.WouldBlock:
            await self._free.acquire()
        task, token = trio.lowlevel.current_task(), trio.lowlevel.current_trio_token()

        def deliver(result: Any) -> None:
            token.run_sync_soon(trio.lowlevel.reschedule, task, result)

        try:
            trio.lowlevel.start_thread_soon(partial(work, *args), deliver)
            result: T = await trio.lowlevel.wait_task_rescheduled(_not_before_its_end)
            return result
        finally:
            self._free.release()


def _not_before_its_end(_: object) -> trio.lowlevel.Abort:
    """A cancelled caller waits for its thread."""
    return trio.lowlevel.Abort.FAILED


class InlineWorkers:
    """Runs the work in place.  Under an auto-jumping mock clock a timeout fires while a
    thread works, so simulations must not use threads."""

    async def run(self, work: Callable[[*Ts], T], *args: *Ts) -> T:
        await trio.lowlevel.checkpoint()
        return work(*args)


@dataclass(eq=False, slots=True)
class _Asked(Generic[T, R]):
    """An item, its result once there is one, and whether somebody still waits for that."""

    item: T
    result: list[R] = field(default_factory=list)
    news: trio.Event = field(default_factory=trio.Event)
    wanted: bool = True


class JointWork(Generic[T, R]):
    """Work on items that many tasks bring, handed over together: what comes while `hands`
    hand-overs are under way goes with the next one.  Alone, an item does not wait."""

    def __init__(
        self, workers: Workers, work: Callable[[Sequence[T]], Sequence[R]], hands: int = 2
    ) -> None:
        """`work`, in a worker, returns the results of the first of the items, at least one, in
        their order.  It must do no harm where whoever asked has left."""
        self._workers = workers
        self._work = work
        self._free_hands = hands
        self._waiting: dict[_Asked[T, R], None] = {}  # in no hand, the oldest first

    async def run(self, item: T) -> R:
        """The result for the item.  Raises what the work raises for it, alone."""
        mine: _Asked[T, R] = _Asked(item)
        self._waiting[mine] = None
        try:
            while not mine.result:
                if self._free_hands and mine in self._waiting:
                    batch = list(self._waiting)
                    try:
                        await self._hand_over(batch)
                    except (DstoreError, OSError):
                        if len(batch) == 1:
                            raise
                        await self._hand_over([mine])  # its own failure, if it has one
                    del batch  # what others got is theirs alone, however long this one waits
                else:
                    mine.news = trio.Event()
                    await mine.news.wait()
        finally:
            mine.wanted = False
            self._waiting.pop(mine, None)
            if self._free_hands and self._waiting:
                next(iter(self._waiting)).news.set()  # whose turn it is
        return mine.result[0]

    async def _hand_over(self, batch: Sequence[_Asked[T, R]]) -> None:
        """Some of those that wait.  What is not done then waits again."""
        for one in batch:
            del self._waiting[one]
        results: Sequence[R] = ()
        self._free_hands -= 1
        try:
            results = await self._workers.run(self._work, [one.item for one in batch])
        finally:
            self._free_hands += 1
            for one, result in zip(batch, results, strict=False):
                one.result.append(result)
                one.news.set()
            undone = [one for one in batch[len(results) :] if one.wanted]
            self._waiting = dict.fromkeys(undone) | self._waiting


@dataclass(frozen=True)
class Runtime:
    """The three of them together, as components take them."""

    clock: Clock = field(default_factory=SystemClock)
    random: random.Random = field(default_factory=random.SystemRandom)
    workers: Workers = field(default_factory=ThreadWorkers)


@asynccontextmanager
async def open_plain_nursery() -> AsyncIterator[trio.Nursery]:
    """A nursery whose failure comes out as itself, not wrapped in a group.

    Where several tasks failed, the first DstoreError is raised (or the first error at all)
    and the others are its notes: callers decide by type, and one answer is what they can use.
    """
    try:
        async with trio.open_nursery() as nursery:
            yield nursery
    except BaseExceptionGroup as group:
        failures = [error for error in _leaves(group) if not isinstance(error, trio.Cancelled)]
        if not failures:
            raise
        first = next((error for error in failures if isinstance(error, DstoreError)), failures[0])
        for other in failures:
            if other is not first:
                first.add_note(f"also failed: {other!r}")
        raise first from first.__cause__


def _leaves(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error
