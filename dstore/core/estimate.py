"""How soon a peer answers: what it did lately, as a delay and a time for each byte.

Pure arithmetic on what the caller saw; it knows no clock, no peer and no policy beyond the
one question that readers ask: when is an answer so late that somebody else is asked too?
"""

from __future__ import annotations

from dataclasses import dataclass

from dstore.limits import (
    ESTIMATE_WEIGHT,
    HEDGE_FACTOR,
    HEDGE_SECONDS_MAX,
    HEDGE_SECONDS_MIN,
    HEDGE_SECONDS_UNKNOWN,
)


@dataclass(slots=True)
class PeerEstimate:
    """Moving averages; None until something was seen."""

    delay_seconds: float | None = None  # from a question to the first byte of its answer
    seconds_per_byte: float | None = None  # of answers, once they flow

    def answered(self, seconds: float) -> None:
        """The first byte came this long after the question."""
        self.delay_seconds = _mix(self.delay_seconds, max(seconds, 0.0))

    def moved(self, size: int, seconds: float) -> None:
        """`size` bytes of an answer took `seconds` after its first byte."""
        if size > 0 and seconds > 0:
            self.seconds_per_byte = _mix(self.seconds_per_byte, seconds / size)

    def expected_seconds(self, size: int) -> float:
        """Seconds until `size` bytes asked for at once, and all asked for before, have come;
        0 for a peer of which nothing is known, so that it is tried."""
        return (self.delay_seconds or 0.0) + size * (self.seconds_per_byte or 0.0)

    def patience_seconds(self, size: int) -> float:
        """When to ask somebody else beside it, `size` as for `expected_seconds`."""
        if self.delay_seconds is None:
            return HEDGE_SECONDS_UNKNOWN
        wanted = HEDGE_FACTOR * self.expected_seconds(size)
        return min(max(wanted, HEDGE_SECONDS_MIN), HEDGE_SECONDS_MAX)


def _mix(old: float | None, new: float) -> float:
    return new if old is None else old + ESTIMATE_WEIGHT * (new - old)
