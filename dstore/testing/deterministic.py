"""Runs of trio programs that depend on nothing but their seed.

The clock is a mock that jumps to the next deadline, and the order in which trio runs ready
tasks comes from the seed.  Only this package may touch trio's scheduler; production code
takes its clock and randomness from `dstore.runtime`.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Awaitable, Callable
from typing import TypeVar, TypeVarTuple

import trio
import trio.testing
from trio._core import _run as scheduler

from dstore.core.peerid import PeerId
from dstore.runtime import Clock, InlineWorkers, Runtime, TrioClock

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

_SWITCH = "_ALLOW_DETERMINISTIC_SCHEDULING"


def run_deterministic(seed: int, main: Callable[[*Ts], Awaitable[T]], *args: *Ts) -> T:
    """`trio.run(main, *args)` under an auto-jumping mock clock, the scheduler seeded.

    The same seed and arguments give the same order of events, as long as `main` uses no
    threads, no real sockets and no order of sets.  Trio's scheduler is left as it was found.
    """
    settings = vars(scheduler)  # the switch is declared Final; hypothesis sets it likewise
    switch_before, state_before = settings[_SWITCH], scheduler._r.getstate()
    settings[_SWITCH] = True
    scheduler._r.seed(seed)
    try:
        return trio.run(main, *args, clock=trio.testing.MockClock(autojump_threshold=0))
    finally:
        settings[_SWITCH] = switch_before
        scheduler._r.setstate(state_before)


class WrongClock(TrioClock):
    """Time of day as somebody set it: `ahead` seconds off; deadlines do not notice."""

    ahead: float = 0.0

    def now(self) -> float:
        return super().now() + self.ahead


def simulated_runtime(seed: int, clock: Clock | None = None) -> Runtime:
    """Clock, randomness and workers for one simulated node: trio's clock or the one given, a
    generator seeded with `seed`, and work done in place."""
    generator = random.Random(seed)  # noqa: S311 - the seed is the point
    return Runtime(clock=clock or TrioClock(), random=generator, workers=InlineWorkers())


def peer_number(number: int) -> PeerId:
    """A well-formed peer id for tests that sign nothing: equal numbers, equal ids."""
    return PeerId.of_ed25519(hashlib.sha256(f"test peer {number}".encode()).digest())
