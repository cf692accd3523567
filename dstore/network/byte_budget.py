"""A bound on the bytes held for peers: taken before they are read, given back after.

Each peer has a share, whose takers are served in the order of arrival.  Among peers, who holds
least goes first, and nobody may come to hold more than is left for all the others: peers that
give nothing back, as slow ones, never have the last of it among few of them.  It counts; it
holds nothing itself.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from itertools import count

import trio

from dstore.core.wire import Refusal
from dstore.errors import Refused


class ByteBudget:
    """At most `limit_bytes` taken at a time, by all shares together."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.taken_bytes = 0
        self.peak_bytes = 0
        self._waiting: dict[Share, deque[_Ask]] = {}  # the oldest first
        self._numbers = count()

    def share(self, limit_bytes: int) -> Share:
        """The share of one peer, of `limit_bytes` at most."""
        assert limit_bytes <= self.limit_bytes
        return Share(self, limit_bytes)

    def enter(self, share: Share, size: int) -> _Ask:
        """For a share: one more that waits."""
        ask = _Ask(share, size, next(self._numbers))
        self._waiting.setdefault(share, deque()).append(ask)
        self.settle()
        return ask

    def leave(self, ask: _Ask) -> None:
        """For a share: one that waits no longer."""
        asks = self._waiting[ask.share]
        asks.remove(ask)
        if not asks:
            del self._waiting[ask.share]

    def add(self, share: Share, size: int) -> None:
        """For a share: `size` more bytes are taken, or fewer where it is negative."""
        share.taken_bytes += size
        self.taken_bytes += size
        assert share.taken_bytes >= 0
        share.peak_bytes = max(share.peak_bytes, share.taken_bytes)
        self.peak_bytes = max(self.peak_bytes, self.taken_bytes)

    def settle(self) -> None:
        """Let those take who may now."""
        while self._waiting:
            heads = [asks[0] for asks in self._waiting.values()]
            able = [ask for ask in heads if ask.share.has_room(ask.size)]
            if not able:
                return
            first = min(able, key=lambda ask: (ask.share.taken_bytes, ask.number))
            # Those that hold more wait behind it, or many small takers would starve a large one.
            if not self.leaves_enough(first.share, first.size):
                return
            self.leave(first)
            self.add(first.share, first.size)
            first.taken.set()

    def leaves_enough(self, share: Share, size: int) -> bool:
        """Whether others may still take as much as the share would then hold, in all."""
        return share.taken_bytes + size <= self.limit_bytes - self.taken_bytes

    @property
    def crowded(self) -> bool:
        """Whether anybody waits."""
        return bool(self._waiting)


class Share:
    """What one peer may take."""

    def __init__(self, budget: ByteBudget, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.taken_bytes = 0
        self.peak_bytes = 0
        self._budget = budget

    async def take(self, size: int, patience_seconds: float = math.inf) -> None:
        """Wait until `size` more bytes, no more than the share's limit, may be taken, and take
        them.  Raises Refused (`busy`) where others have them when `patience_seconds` are over, or
        as often again; what the share holds itself is waited for without end."""
        assert size <= self.limit_bytes
        budget = self._budget
        if self.may_take(size):
            budget.add(self, size)  # as a rule
            return
        ask = budget.enter(self, size)
        done = False
        try:
            while not ask.taken.is_set():
                with trio.move_on_after(patience_seconds):
                    await ask.taken.wait()
                if not ask.taken.is_set() and self.has_room(size):
                    raise Refused("too many readers at once", Refusal.BUSY)
            done = True
        finally:
            if not done and ask.taken.is_set():
                self.give_back(size)
            elif not done:
                budget.leave(ask)
                budget.settle()

    def may_take(self, size: int) -> bool:
        """Whether `take` would not have to wait."""
        budget = self._budget
        return not budget.crowded and self.has_room(size) and budget.leaves_enough(self, size)

    def give_back(self, size: int) -> None:
        """What `take` took, or part of it."""
        if size:
            self._budget.add(self, -size)
            self._budget.settle()

    def has_room(self, size: int) -> bool:
        """Whether `size` more bytes are within the share's own limit."""
        return self.taken_bytes + size <= self.limit_bytes


@dataclass(eq=False, slots=True)
class _Ask:
    """Somebody who waits."""

    share: Share
    size: int
    number: int  # in the order of arrival
    taken: trio.Event = field(default_factory=trio.Event)
