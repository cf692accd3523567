"""The fragments of a segment as its slots are brought to their holders: data as it is stored,
parity computed on the way.

Parity is a function of the data beside it: computing it twice, once for its CIDs and once to
send it, costs a tenth of storing it durably, reading it back and deleting it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import trio

from dstore.core import erasure
from dstore.core.manifest import Segment
from dstore.limits import (
    PARITY_BATCH_BYTES,
    PARITY_KEPT_BYTES,
    SERVE_BATCH_BLOCKS_MAX,
    SERVE_BATCH_BYTES,
)
from dstore.network.fragments_client import SlotBlock
from dstore.runtime import Workers
from dstore.storage.blockstore import GetBlock


class DataReader:
    """Reads the blocks of one data slot in order, some megabytes a hand-over to a worker."""

    def __init__(self, read: GetBlock, workers: Workers, fragments: Sequence[SlotBlock]) -> None:
        self._read_block = read
        self._workers = workers
        self._fragments = fragments
        self._place = {fragment.stripe: at for at, fragment in enumerate(fragments)}
        self._ahead: dict[int, bytes] = {}
        self._lock = trio.Lock()

    async def read(self, fragment: SlotBlock) -> bytes:
        """The bytes of the fragment; each is asked for once."""
        async with self._lock:
            if fragment.stripe not in self._ahead:
                # What a resumed upload skipped is read for nothing once, and dropped here.
                self._ahead = await self._workers.run(self._read_from, self._place[fragment.stripe])
            return self._ahead.pop(fragment.stripe)

    def _read_from(self, start: int) -> dict[int, bytes]:
        batch: dict[int, bytes] = {}
        size = 0
        for fragment in self._fragments[start : start + SERVE_BATCH_BLOCKS_MAX]:
            data = self._read_block(fragment.cid)
            batch[fragment.stripe] = data
            size += len(data)
            if size >= SERVE_BATCH_BYTES:
                break
        return batch


@dataclass(eq=False)
class _Batch:
    """The parity of some stripes, by stripe and row."""

    rows: Mapping[int, Sequence[bytes]]
    size: int

    @property
    def last(self) -> int:
        """The last stripe of it."""
        return max(self.rows)


class ParityReader:
    """Computes the parity of a segment for all its slots together: what one slot asks for is
    kept for the others, as far as PARITY_KEPT_BYTES go."""

    def __init__(self, read: GetBlock, workers: Workers, segment: Segment) -> None:
        self._read_block = read
        self._workers = workers
        self._segment = segment
        self._batches: list[_Batch] = []
        self._at: dict[int, int] = {}  # the stripe that each slot asked for last
        self._lock = trio.Lock()

    async def read(self, stripe: int, slot: int) -> bytes:
        """The fragment of the stripe in that slot, one of parity."""
        self._at[slot] = stripe
        async with self._lock:
            found = next((one for one in self._batches if stripe in one.rows), None)
            if found is None:
                found = await self._workers.run(self._make_from, stripe)
                self._make_room(found.size)
                self._batches.append(found)
            return found.rows[stripe][slot - self._segment.k]

    def ended(self, slot: int) -> None:
        """Nobody asks for the slot any more: nothing is kept for it."""
        self._at.pop(slot, None)

    def _make_room(self, size: int) -> None:
        """Let go of what all slots have passed, then of what the slots behind it come to last."""

        def ahead(batch: _Batch) -> float:
            return min(
                (batch.last - at for at in self._at.values() if at < batch.last), default=math.inf
            )

        kept = sum(one.size for one in self._batches)
        while self._batches and kept + size > PARITY_KEPT_BYTES:
            one = max(self._batches, key=ahead)
            self._batches.remove(one)
            kept -= one.size

    def _make_from(self, start: int) -> _Batch:
        """In a worker: the parity of some stripes from `start` on, at least one."""
        segment, batch, size = self._segment, dict[int, list[bytes]](), 0
        for index in range(start, len(segment.stripes)):
            stripe = segment.stripes[index]
            data = [self._read_block(cid) for cid, _ in stripe.data]
            batch[index] = erasure.encode(segment.k, segment.m, data, stripe.length)
            size += segment.m * stripe.length
            if size >= PARITY_BATCH_BYTES or len(batch) >= SERVE_BATCH_BLOCKS_MAX:
                break
        return _Batch(batch, size)
