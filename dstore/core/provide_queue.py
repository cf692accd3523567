"""Which keys want telling to the DHT, and when: new ones at once, the others in their turn.

A key that too few peers have confirmed is told again, ever less often; the rest of a round does
not wait for it.  Time comes in as `now`, in seconds of a monotonic clock.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from dstore.core.kad_provision import Provided
from dstore.core.kademlia import kad_id
from dstore.limits import PROVIDE_BATCH_KEYS, PROVIDE_RETRY_SECONDS, PROVIDE_RETRY_SECONDS_MAX

_AT_ONCE: Final = -math.inf  # and before the great round


@dataclass(slots=True)
class _Due:
    """One key that wants telling, at `time`."""

    time: float
    tries: int = 0
    confirmed: bool = False  # by one peer at least


@dataclass(frozen=True, slots=True)
class Batch:
    """`keys` to tell together, neighbours; `fresh` where they were asked for just now; `due`
    are all that could have been among them."""

    keys: Sequence[bytes]
    due: Sequence[bytes]
    fresh: bool


class ProvideQueue:
    """The keys that enough peers have yet to confirm."""

    def __init__(self) -> None:
        self._due: dict[bytes, _Due] = {}

    def __len__(self) -> int:
        return len(self._due)

    def soon(self, keys: Iterable[bytes]) -> None:
        """These are to be told at once, also where that was done before."""
        for key in keys:
            self._due[key] = _Due(_AT_ONCE)

    def round(self, keys: Iterable[bytes], now: float) -> None:
        """These are to be told again in the course of time."""
        for key in keys:
            self._due.setdefault(key, _Due(now))

    def unconfirmed(self, key: bytes) -> bool:
        """Whether `key` wants telling and no peer has confirmed it yet."""
        due = self._due.get(key)
        return due is not None and not due.confirmed

    def confirmed(self, key: bytes) -> None:
        """A peer has confirmed `key`, which is still being told to others."""
        if key in self._due:
            self._due[key].confirmed = True

    def batch(self, now: float) -> Batch:
        """What to tell now: what was asked for just now comes before the great round."""
        due = [key for key, due in self._due.items() if due.time <= now]
        fresh = [key for key in due if self._due[key].time == _AT_ONCE]
        keys = sorted(fresh or due, key=kad_id)[:PROVIDE_BATCH_KEYS]
        return Batch(keys, due, bool(fresh))

    def note(self, batch: Batch, told: Mapping[bytes, Provided], now: float) -> bool:
        """How far the keys of `batch` were told.  Those told to enough peers are done, the
        others wait; returns False where nobody could be told anything."""
        retry = now + PROVIDE_RETRY_SECONDS
        if not any(provided.told for provided in told.values()):
            for key in batch.due:  # this node is alone: the rest would fare no better
                self._due[key].time = retry
            return False
        for key, provided in told.items():
            waiting = self._due[key]
            waiting.confirmed |= provided.confirmed > 0
            if provided.enough:
                del self._due[key]
            else:
                later = PROVIDE_RETRY_SECONDS * (2**waiting.tries - 1)
                waiting.time = min(retry + later, retry + PROVIDE_RETRY_SECONDS_MAX)
                waiting.tries = min(waiting.tries + 1, 16)
        return True

    def pause(self, batch: Batch, began: float, ended: float) -> float:
        """Seconds from `ended` until the next batch, after `batch` was told from `began`;
        infinity where nothing is left."""
        if not self._due:
            return math.inf
        pause = max(0.0, min(due.time for due in self._due.values()) - ended)
        # The great round leaves half of the time to others.
        return pause if batch.fresh else max(pause, ended - began)
