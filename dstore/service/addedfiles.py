"""The files of an add as a second place where its blocks are, while it lasts.

What is added was read a moment ago, so that the kernel has it in memory, and protecting it
reads all of it three times more.  With this the store's own copies need not be in memory, too
(decision 0019): they are written around the page cache.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

from dstore.core.checksum import checksum
from dstore.core.cid import CID
from dstore.limits import ADDED_BLOCKS_MAX, SMALL_BLOCK_BYTES
from dstore.storage.blockstore import Block, BlockStore

# Linux: what is in memory, and nothing that would wait for a disk.
_NO_WAIT: Final[int | None] = getattr(os, "RWF_NOWAIT", None)


class _Place(NamedTuple):
    path: Path
    offset: int
    size: int
    checksum: int


class AddedFiles:
    """Large blocks of one add by where they were read, ADDED_BLOCKS_MAX at most.  Safe to call
    from several threads."""

    def __init__(self, blocks: BlockStore) -> None:
        self._blocks = blocks
        self._places: dict[bytes, _Place] = {}
        self.usable = _NO_WAIT is not None  # the system can tell what it has in memory

    def note(self, path: Path, offset: int, blocks: Sequence[Block]) -> None:
        """These blocks are the bytes of the file from `offset` on."""
        for cid, content in blocks:
            # All are read in turn, several times: new ones in place of old ones would help none.
            room = self.usable and len(self._places) < ADDED_BLOCKS_MAX
            if room and len(content) >= SMALL_BLOCK_BYTES:
                place = _Place(path, offset, len(content), checksum(content))
                self._places[cid.multihash] = place
            offset += len(content)

    def get(self, cid: CID) -> bytes:
        """The block's bytes: the file's, where the kernel has them in memory and they are what
        they were, else the store's.  Raises as `BlockStore.get`."""
        place = self._places.get(cid.multihash)
        content = None if place is None else _read(place)
        return self._blocks.get(cid) if content is None else content


def _read(place: _Place) -> bytes | None:
    try:
        # Something else may be there by now, which nobody should wait for.
        descriptor = os.open(place.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError:
        return None
    try:
        if not _in_memory(descriptor, place):
            return None
        content = os.pread(descriptor, place.size, place.offset)
    except OSError:
        return None
    finally:
        os.close(descriptor)
    right = len(content) == place.size and checksum(content) == place.checksum
    return content if right else None


def _in_memory(descriptor: int, place: _Place) -> bool:
    """By its first byte and its last: files come and go from the front.  A disk is not asked."""
    assert _NO_WAIT is not None
    one = bytearray(1)
    ends = (place.offset, place.offset + place.size - 1)
    return all(os.preadv(descriptor, [one], end, _NO_WAIT) == 1 for end in ends)
