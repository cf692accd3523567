"""Verified blocks kept in memory for those who ask next; where they came from is not its
business."""

from __future__ import annotations

from collections import OrderedDict

from dstore.core.cid import CID


class BlockCache:
    """Verified blocks in memory, the least recently used dropped first."""

    def __init__(self, bytes_max: int) -> None:
        self.bytes_max = bytes_max
        self._blocks: OrderedDict[bytes, bytes] = OrderedDict()
        self.bytes = 0

    def get(self, cid: CID) -> bytes | None:
        """The block, if it is here."""
        data = self._blocks.get(cid.multihash)
        if data is not None:
            self._blocks.move_to_end(cid.multihash)
        return data

    def put(self, cid: CID, data: bytes) -> None:
        """Keep the block for a while."""
        if cid.multihash in self._blocks or len(data) > self.bytes_max:
            return
        self._blocks[cid.multihash] = data
        self.bytes += len(data)
        while self.bytes > self.bytes_max:
            self.bytes -= len(self._blocks.popitem(last=False)[1])
