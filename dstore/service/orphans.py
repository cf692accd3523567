"""Blocks that nothing keeps, found in small steps and deleted once they are a day old.

What a killed add stored is not deleted at once: the same add, repeated within the day, finds
it and goes on from there.  The age of an orphan is how long this process has seen it as one,
by a clock that nobody sets; a sweep decides again under the catalog's lock, so that a block
which an add has just named (reference first, then put) is kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from dstore.core.manifest import Segment
from dstore.errors import CorruptStore, DataError, NotFoundError
from dstore.limits import ORPHAN_SECONDS, ORPHANS_REMEMBERED_MAX, ORPHANS_WALKED_PER_STEP
from dstore.service.stores import Stores
from dstore.storage.rows import HeldSlot


class Orphans:
    """Walks the block store round and round.  All methods are called in workers, one at a
    time."""

    def __init__(self, stores: Stores) -> None:
        self._stores = stores
        self._walk: Iterator[bytes] | None = None
        self._known: dict[bytes, float] = {}  # since when
        self._met: set[bytes] = set()  # of those, in this round

    @property
    def known(self) -> int:
        """Orphans that wait for their day to pass."""
        return len(self._known)

    def step(self, now: float) -> int:
        """Look at some blocks; returns how many were deleted.  `now` is trio's time."""
        if self._walk is None:
            self._walk = self._stores.blocks.multihashes()
        batch = list(islice(self._walk, ORPHANS_WALKED_PER_STEP))
        due: list[bytes] = []
        for multihash in self._stores.catalog.unreferenced(batch):
            since = self._known.get(multihash)
            if since is None and len(self._known) < ORPHANS_REMEMBERED_MAX:
                since = self._known[multihash] = now
            if since is None:
                continue
            self._met.add(multihash)
            if since <= now - ORPHAN_SECONDS:
                due.append(multihash)
        swept = self._stores.catalog.sweep(self._stores.blocks, due)
        if len(batch) < ORPHANS_WALKED_PER_STEP:
            # The end of a round: those not met again are gone, or kept by something.
            self._known = {key: since for key, since in self._known.items() if key in self._met}
            self._met = set()
            self._walk = None
        return swept

    def sweep_slot(self, row: HeldSlot) -> None:
        """Delete what a slot left behind that is not held any more, unless something else
        keeps it."""
        left = [row.manifest.multihash, row.segment.multihash]
        try:
            segment = Segment.decode(self._stores.blocks.get(row.segment))
            left += [cid.multihash for _, cid, _ in segment.slot_blocks(row.slot)]
        except (NotFoundError, CorruptStore, DataError):  # a round finds them
            pass
        self._stores.catalog.sweep(self._stores.blocks, left)
