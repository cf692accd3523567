"""The fragments of a segment as its slots are brought to their holders: data from the store,
parity computed on the way.

Parity is a function of the data beside it: computing it twice, once for its CIDs and once to
send it, costs a tenth of storing it durably, reading it back and deleting it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import trio

from dstore.core import erasure
from dstore.core.manifest import Segment
from dstore.limits import PARITY_BATCH_BYTES, SERVE_BATCH_BLOCKS_MAX, SERVE_BATCH_BYTES
from dstore.network.fragments_client import SlotBlock
from dstore.runtime import Workers
from dstore.storage.blockstore import BlockStore


class DataReader:
    """Reads the blocks of one data slot in order, some megabytes a hand-over to a worker."""

    def __init__(
        self, blocks: BlockStore, workers: Workers, fragments: Sequence[SlotBlock]
    ) -> None:
        self._blocks = blocks
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
            data = self._blocks.get(fragment.cid)
            batch[fragment.stripe] = data
            size += len(data)
            if size >= SERVE_BATCH_BYTES:
                break
        return batch


class ParityReader:
    """Computes the parity of a segment for all its slots together: what one slot asks for is
    kept for the others, as long as none of them is more than two batches behind."""

    def __init__(self, blocks: BlockStore, workers: Workers, segment: Segment) -> None:
        self._blocks = blocks
        self._workers = workers
        self._segment = segment
        self._batches: OrderedDict[int, dict[int, list[bytes]]] = OrderedDict()
        self._lock = trio.Lock()

    async def read(self, stripe: int, slot: int) -> bytes:
        """The fragment of the stripe in that slot, one of parity."""
        row = slot - self._segment.k
        async with self._lock:
            for batch in self._batches.values():
                if stripe in batch:
                    return batch[stripe][row]
            made = await self._workers.run(self._make_from, stripe)
            self._batches[stripe] = made
            if len(self._batches) > 2:
                self._batches.popitem(last=False)
            return made[stripe][row]

    def _make_from(self, start: int) -> dict[int, list[bytes]]:
        """In a worker: the parity of some stripes from `start` on, at least one."""
        segment, batch, size = self._segment, dict[int, list[bytes]](), 0
        for index in range(start, len(segment.stripes)):
            stripe = segment.stripes[index]
            data = [self._blocks.get(cid) for cid, _ in stripe.data]
            batch[index] = erasure.encode(segment.k, segment.m, data, stripe.length)
            size += segment.m * stripe.length
            if size >= PARITY_BATCH_BYTES or len(batch) >= SERVE_BATCH_BLOCKS_MAX:
                break
        return batch
