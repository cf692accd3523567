"""The block store on disk: large blocks as files, small ones in SQLite, one quota over both.

`open_disk_store` is how the node gets its store.
"""

from __future__ import annotations

from pathlib import Path

from dstore.storage.blockstore import BlockStore


def open_disk_store(
    directory: Path, *, reserve_bytes: int = 0, capacity_bytes: int | None = None
) -> BlockStore:
    """Open or create the store in `directory`.

    Puts that would take the store above `capacity_bytes`, or the file system's free space
    below `reserve_bytes` (or its free inodes below a small reserve), raise StorageFull before
    anything is written.  Raises CorruptStore, StoreTooNew.
    """
    raise NotImplementedError
