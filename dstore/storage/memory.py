"""The block store contract over a dictionary: for gateways without a disk, and for tests.

"Durable" means here: until the process ends.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence

from dstore.core.cid import CID
from dstore.errors import CorruptStore, MalformedBlock, NodeError, NotFoundError, StorageFull
from dstore.limits import BLOCK_BYTES_MAX
from dstore.storage.blockstore import Block, Usage


class MemoryStore:
    """Blocks in memory.  Safe to call from several threads."""

    def __init__(self, *, capacity_bytes: int | None = None) -> None:
        """`capacity_bytes` bounds the blocks' bytes; None does not."""
        self._capacity_bytes = capacity_bytes
        self._blocks: dict[bytes, bytes] = {}
        self._bytes = 0
        self._lock = threading.Lock()
        self._closed = False

    def put_many(self, blocks: Sequence[Block], *, read_soon: bool = True) -> None:
        """See `BlockStore.put_many`; all blocks or none."""
        with self._lock:
            self._check_open()
            new = {
                cid.multihash: bytes(content)
                for cid, content in blocks
                if cid.multihash not in self._blocks
            }
            for content in new.values():
                if len(content) > BLOCK_BYTES_MAX:
                    raise MalformedBlock(
                        f"a block of {len(content)} bytes; at most {BLOCK_BYTES_MAX} are stored"
                    )
            size = sum(map(len, new.values()))
            if self._capacity_bytes is not None and self._bytes + size > self._capacity_bytes:
                raise StorageFull(
                    f"the store holds {self._bytes} of {self._capacity_bytes} bytes allowed: "
                    f"{size} more do not fit"
                )
            self._blocks.update(new)
            self._bytes += size

    def get(self, cid: CID) -> bytes:
        """See `BlockStore.get`."""
        self._check_open()
        content = self._blocks.get(cid.multihash)
        if content is None:
            raise NotFoundError(f"block {cid} is not here")
        if not cid.verify(content):
            raise CorruptStore(f"block {cid} is not what was stored")
        return content

    def has_many(self, cids: Sequence[CID]) -> list[bool]:
        """See `BlockStore.has_many`."""
        self._check_open()
        return [cid.multihash in self._blocks for cid in cids]

    def size(self, cid: CID) -> int | None:
        """See `BlockStore.size`."""
        self._check_open()
        content = self._blocks.get(cid.multihash)
        return None if content is None else len(content)

    def delete_many(self, cids: Sequence[CID]) -> None:
        """See `BlockStore.delete_many`."""
        with self._lock:
            self._check_open()
            for cid in cids:
                content = self._blocks.pop(cid.multihash, None)
                if content is not None:
                    self._bytes -= len(content)

    def multihashes(self) -> Iterator[bytes]:
        """See `BlockStore.multihashes`."""
        with self._lock:
            self._check_open()
            names = list(self._blocks)
        yield from names

    def usage(self) -> Usage:
        """See `BlockStore.usage`."""
        with self._lock:
            return Usage(len(self._blocks), self._bytes)

    def room(self) -> int | None:
        """See `BlockStore.room`."""
        if self._capacity_bytes is None:
            return None
        with self._lock:
            return max(0, self._capacity_bytes - self._bytes)

    def close(self) -> None:
        """See `BlockStore.close`; a second call does nothing."""
        self._closed = True

    def _check_open(self) -> None:
        if self._closed:
            raise NodeError("the block store is closed")
