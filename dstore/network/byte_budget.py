"""A bound on the bytes held for somebody: taken before they are read, given back after.

First come, first served, so that large takers are not starved by small ones.  It counts; it
holds nothing itself.
"""

from __future__ import annotations

import trio


class ByteBudget:
    """At most `limit_bytes` taken at a time, and no more than `parent` has left."""

    def __init__(self, limit_bytes: int, parent: ByteBudget | None = None) -> None:
        self.limit_bytes = limit_bytes
        self.taken_bytes = 0
        self.peak_bytes = 0
        self._parent = parent
        self._turn = trio.Lock()  # hands itself over in the order of arrival
        self._freed = trio.Event()

    async def take(self, size: int) -> None:
        """Wait until `size` more bytes are within the limit, and take them.
        `size` must not be above the limit of the budget or its parents."""
        assert size <= self.limit_bytes
        if self._take_now(size):
            return
        async with self._turn:
            while self.taken_bytes + size > self.limit_bytes:
                self._freed = trio.Event()
                await self._freed.wait()
            if self._parent is not None:
                await self._parent.take(size)
            self.taken_bytes += size
            self.peak_bytes = max(self.peak_bytes, self.taken_bytes)

    def _take_now(self, size: int) -> bool:
        """Take without waiting where nobody waits and there is room: the common case, by the
        ten thousand for small blocks."""
        if self._turn.locked() or self.taken_bytes + size > self.limit_bytes:
            return False
        if self._parent is not None and not self._parent._take_now(size):
            return False
        self.taken_bytes += size
        self.peak_bytes = max(self.peak_bytes, self.taken_bytes)
        return True

    def give_back(self, size: int) -> None:
        """What `take` took."""
        self.taken_bytes -= size
        assert self.taken_bytes >= 0
        self._freed.set()
        if self._parent is not None:
            self._parent.give_back(size)
