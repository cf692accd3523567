"""Limits of bandwidth: how long bytes must wait, and which limits hold at which hour.

Pure: instants and sizes in, seconds out.  Who waits, and for which connections, is the
network's part (`network/shaping.py`).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from dstore.limits import (
    BANDWIDTH_BURST_BYTES,
    BANDWIDTH_BURST_SECONDS,
    BANDWIDTH_RATE_SECONDS,
)

DAY_MINUTES = 24 * 60


class Traffic(StrEnum):
    """What bytes are for: readers and adders who wait, or maintenance, which comes after them."""

    FOREGROUND = "foreground"
    REPAIR = "repair"


@dataclass(frozen=True, slots=True)
class Limits:
    """Bytes a second to send and to receive, and of each of these for repair; infinity is no
    limit."""

    up: float = math.inf
    down: float = math.inf
    repair: float = math.inf


class Bucket:
    """Bytes that may pass at a rate.  Who takes gets a ticket, and goes when it is due: in the
    order of taking, so that nobody starves.  A new rate holds for those who wait, too."""

    def __init__(self, rate: float = math.inf) -> None:
        """`rate` in bytes a second, above 0; infinity is no limit."""
        self.rate = rate
        self._taken = 0
        self._allowed = 0.0
        self._at = 0.0

    def set_rate(self, rate: float, now: float) -> None:
        """From `now` on."""
        self._advance(now)
        self.rate = rate

    def take(self, size: int, now: float) -> int:
        """A ticket for `size` bytes."""
        self._advance(now)
        self._taken += size
        return self._taken

    def give_back(self, size: int) -> None:
        """Of a ticket that will not be used: those that wait may go the sooner."""
        self._allowed += size

    def seconds_until(self, ticket: int, now: float) -> float:
        """How long the ticket still waits, 0 for one that is due."""
        if self.rate == math.inf:
            return 0.0
        self._advance(now)
        return max(0.0, (ticket - self._allowed) / self.rate)

    def seconds_until_spare(self, size: int, now: float) -> float:
        """How long until `size` bytes could pass at once, if nobody takes any until then: 0
        where nobody waits and the rate is not used up."""
        if self.rate == math.inf:
            return 0.0
        self._advance(now)
        missing = min(float(size), self._burst()) - (self._allowed - self._taken)
        # Less than a byte is a matter of rounding, and shorter than any clock can wait.
        return missing / self.rate if missing > 1 else 0.0

    def _burst(self) -> float:
        return max(self.rate * BANDWIDTH_BURST_SECONDS, BANDWIDTH_BURST_BYTES)

    def _advance(self, now: float) -> None:
        """What was not used is kept for a short burst, and lost beyond it."""
        if self.rate == math.inf:
            self._allowed = float(self._taken)
        else:
            passed = max(0.0, now - self._at)
            self._allowed = min(self._allowed + passed * self.rate, self._taken + self._burst())
        self._at = now


@dataclass(frozen=True, slots=True)
class Period:
    """Hours of some days of the week (0 is Monday), in minutes of local time; one that ends
    before it begins lasts past midnight and belongs to the day on which it began."""

    days: frozenset[int]
    start: int
    end: int
    limits: Limits

    def holds(self, day: int, minute: int) -> bool:
        """Whether it does at that minute of that day of the week."""
        if self.start <= self.end:
            return day in self.days and self.start <= minute < self.end
        before = (day - 1) % 7
        return (day in self.days and minute >= self.start) or (
            before in self.days and minute < self.end
        )


def limits_at(base: Limits, schedule: Sequence[Period], day: int, minute: int) -> Limits:
    """The limits of the first period that holds, else the usual ones."""
    return next((one.limits for one in schedule if one.holds(day, minute)), base)


class Meter:
    """How fast counters grew in the last seconds, from looks at them now and then."""

    def __init__(self) -> None:
        self._looks: deque[tuple[float, tuple[int, ...]]] = deque()

    def look(self, now: float, counters: tuple[int, ...]) -> None:
        """Note what they say now."""
        self._looks.append((now, counters))
        while len(self._looks) > 1 and self._looks[1][0] <= now - BANDWIDTH_RATE_SECONDS:
            self._looks.popleft()

    def rates(self, now: float, counters: tuple[int, ...]) -> tuple[float, ...]:
        """Units a second over BANDWIDTH_RATE_SECONDS, or since the first look where that is
        less; `counters` is what they say now."""
        before, then = now, counters
        for at, noted in self._looks:
            if before < now and at > now - BANDWIDTH_RATE_SECONDS:
                break
            before, then = at, noted
        passed = now - before
        if passed <= 0:
            return (0.0,) * len(counters)
        return tuple((count - old) / passed for count, old in zip(counters, then, strict=True))
