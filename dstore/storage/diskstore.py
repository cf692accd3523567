"""The block store on disk: large blocks as files, small ones in SQLite, one quota over both.

It verifies what it reads, sets damaged blocks aside, and refuses what would not fit before
any byte is written.  How bytes become durable is the business of `files` and `smallblocks`.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, NamedTuple

from dstore.core.checksum import checksum
from dstore.core.cid import CID
from dstore.errors import (
    CorruptStore,
    MalformedBlock,
    NodeError,
    NotFoundError,
    StorageFull,
)
from dstore.limits import (
    BLOCK_BYTES_MAX,
    FRESH_BLOCKS_MAX,
    QUARANTINE_BLOCKS_MAX,
    RESERVE_INODES,
    SMALL_BLOCK_BYTES,
)
from dstore.storage.blockstore import Block, BlockStore, Usage
from dstore.storage.durable import DurableFiles
from dstore.storage.files import FileBlocks
from dstore.storage.formatfile import check_format, write_format
from dstore.storage.smallblocks import SmallBlocks

_FORMAT: Final = 1
_FORMAT_NAME: Final = "dstore block store"


class DiskStore:
    """The block store contract over one directory."""

    def __init__(
        self, directory: Path, *, reserve_bytes: int = 0, capacity_bytes: int | None = None
    ) -> None:
        """See `open_disk_store`."""
        self._directory = directory
        self._reserve_bytes = reserve_bytes
        self._capacity_bytes = capacity_bytes
        self._lock = threading.Lock()  # guards the next two
        self._pending_bytes = 0
        self._closed = False
        self._set_aside = threading.Lock()  # one thread at a time decides that a block is bad
        self._fresh = _FreshBlocks()
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        fresh = not check_format(directory, _FORMAT_NAME, _FORMAT)
        small = directory / "small.sqlite3"
        if not fresh and not (small.exists() and small.stat().st_size):
            raise CorruptStore(
                f"{small} is gone, and with it all blocks below {SMALL_BLOCK_BYTES} bytes: put it "
                f"back, or remove {directory / 'format'} to go on without them"
            )
        self._quarantine = directory / "quarantine"
        self._quarantine.mkdir(mode=0o700, exist_ok=True)
        self._durable = DurableFiles(directory / "tmp")
        try:
            self._small = SmallBlocks(small)
            try:
                self._files = FileBlocks(directory / "large", self._durable)
                if not self._files.was_clean:
                    # A killed process may have made blocks visible that it never synced; they
                    # must not be taken for durable when they are put again.
                    self._durable.sync_everything()
                if fresh:
                    write_format(directory, _FORMAT_NAME, _FORMAT)
            except BaseException:
                self._small.close()
                raise
        except BaseException:
            self._durable.close()
            raise

    # --- The contract ------------------------------------------------------------------

    def put_many(self, blocks: Sequence[Block], *, read_soon: bool = True) -> None:
        """See `BlockStore.put_many`.  Raises MalformedBlock above BLOCK_BYTES_MAX."""
        self._check_open()
        wanted = {cid.multihash: content for cid, content in blocks}
        for content in wanted.values():
            if len(content) > BLOCK_BYTES_MAX:
                raise MalformedBlock(
                    f"a block of {len(content)} bytes; at most {BLOCK_BYTES_MAX} are stored"
                )
        for name, size in zip(wanted, self._sizes(list(wanted)), strict=True):
            if size is not None and size != len(wanted[name]):
                self._quarantine_if_bad(name, wanted[name])
        sizes = self._sizes(list(wanted))
        missing = {
            name for (name, _), size in zip(wanted.items(), sizes, strict=True) if size is None
        }
        # A large block that is here may still await its sync in another thread: `files` knows.
        large = [block for block in wanted.items() if len(block[1]) >= SMALL_BLOCK_BYTES]
        small = [
            (name, content)
            for name, content in wanted.items()
            if len(content) < SMALL_BLOCK_BYTES and name in missing
        ]
        files_wanted = sum(1 for name, _ in large if name in missing)
        with self._claimed(sum(len(wanted[name]) for name in missing), files_wanted):
            if large:
                self._files.put(large, direct=not read_soon)
                written = [block for block in large if block[0] in missing]
                self._fresh.note(written, unread=not read_soon)
            if small:
                self._small.put(small)

    def get(self, cid: CID) -> bytes:
        """See `BlockStore.get`.  A damaged block is moved to `quarantine/`, so that it counts
        as absent and can be put again."""
        self._check_open()
        name = cid.multihash
        known = self._fresh.take(name)
        if known is not None:
            with suppress(CorruptStore):
                content = self._read(name, direct=known.unread)
                if content is not None and checksum(content) == known.checksum:
                    return content
        content = self._sound(cid)
        if content is None:
            with self._set_aside:
                content = self._sound(cid)
                if content is None:
                    self._move_to_quarantine(name)
                    raise CorruptStore(
                        f"block {cid} was damaged on disk; what was there is in {self._quarantine}"
                    )
        if len(content) >= SMALL_BLOCK_BYTES:
            self._fresh.note([(name, content)])
        return content

    def _sound(self, cid: CID) -> bytes | None:
        """The block's bytes, None where they are damaged.  Raises NotFoundError."""
        try:
            content = self._read(cid.multihash)
        except CorruptStore:
            return None
        if content is None:
            raise NotFoundError(f"block {cid} is not here")
        return content if cid.verify(content) else None

    def has_many(self, cids: Sequence[CID]) -> list[bool]:
        """See `BlockStore.has_many`."""
        self._check_open()
        return [size is not None for size in self._sizes([cid.multihash for cid in cids])]

    def size(self, cid: CID) -> int | None:
        """See `BlockStore.size`."""
        self._check_open()
        return self._sizes([cid.multihash])[0]

    def delete_many(self, cids: Sequence[CID]) -> None:
        """See `BlockStore.delete_many`."""
        self._check_open()
        names = [cid.multihash for cid in cids]
        small = [name for name in names if not self._files.delete(name)]
        if small:
            self._small.delete(small)

    def multihashes(self) -> Iterator[bytes]:
        """See `BlockStore.multihashes`."""
        self._check_open()
        yield from self._files.multihashes()
        yield from self._small.multihashes()

    def usage(self) -> Usage:
        """See `BlockStore.usage`."""
        large, small = self._files.usage(), self._small.usage()
        return Usage(large.blocks + small.blocks, large.bytes + small.bytes)

    def close(self) -> None:
        """See `BlockStore.close`; a second call does nothing."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        try:
            # On a full disk the next start counts instead.
            with suppress(StorageFull):
                self._files.close()
        finally:
            self._small.close()
            self._durable.close()

    # --- Beyond the contract -----------------------------------------------------------

    def quarantined(self) -> list[bytes]:
        """The multihashes of the damaged blocks set aside."""
        return [bytes.fromhex(path.name) for path in self._quarantine.iterdir()]

    # --- Inside ------------------------------------------------------------------------

    def _check_open(self) -> None:
        if self._closed:
            raise NodeError(f"the block store {self._directory} is closed")

    def _read(self, name: bytes, *, direct: bool = False) -> bytes | None:
        content = self._files.get(name, direct=direct)
        return self._small.get(name) if content is None else content

    def _sizes(self, names: list[bytes]) -> list[int | None]:
        sizes = [self._files.size(name) for name in names]
        unknown = [index for index, size in enumerate(sizes) if size is None]
        if unknown:
            found = self._small.sizes([names[index] for index in unknown])
            for index, size in zip(unknown, found, strict=True):
                sizes[index] = size
        return sizes

    def room(self) -> int:
        """See `BlockStore.room`."""
        disk = os.statvfs(self._directory)
        left = disk.f_bavail * disk.f_frsize - self._reserve_bytes
        if self._capacity_bytes is not None:
            left = min(left, self._capacity_bytes - self.usage().bytes)
        return max(0, left)

    @contextmanager
    def _claimed(self, size: int, files: int) -> Iterator[None]:
        """Claim room for a write while it runs.  Raises StorageFull where there is none."""
        if not size and not files:
            yield
            return
        disk = os.statvfs(self._directory)
        with self._lock:
            wanted = self._pending_bytes + size
            used = self.usage().bytes
            if self._capacity_bytes is not None and used + wanted > self._capacity_bytes:
                raise StorageFull(
                    f"the store holds {used} of {self._capacity_bytes} bytes allowed: {size} more "
                    "do not fit; raise storage.capacity or remove pins"
                )
            if disk.f_bavail * disk.f_frsize - wanted < self._reserve_bytes:
                raise StorageFull(
                    f"{size} bytes would leave less than the reserve of {self._reserve_bytes} "
                    f"bytes free on the disk of {self._directory}"
                )
            # Some file systems have no fixed number of inodes and say 0.
            reserve = min(RESERVE_INODES, disk.f_files // 100)
            if disk.f_files and disk.f_favail - files < reserve:
                raise StorageFull(
                    f"{disk.f_favail} inodes are free on the disk of {self._directory}: "
                    f"{reserve} are kept in reserve"
                )
            self._pending_bytes = wanted
        try:
            yield
        finally:
            with self._lock:
                self._pending_bytes -= size

    def _quarantine_if_bad(self, name: bytes, good: bytes) -> None:
        """A stored block whose length is wrong makes way for the good one."""
        with self._set_aside:
            try:
                good_here = self._read(name) in (None, good)
            except CorruptStore:
                good_here = False
            if not good_here:
                self._move_to_quarantine(name)

    def _move_to_quarantine(self, name: bytes) -> None:
        """Take the block out of the store; keep it as evidence, while there is room for it.
        A file system that lets nothing be changed keeps it where it is."""
        evidence = self._quarantine / name.hex()
        with suppress(NodeError, OSError):
            full = sum(1 for _ in self._quarantine.iterdir()) >= QUARANTINE_BLOCKS_MAX
            if self._files.delete(name) if full else self._files.move(name, evidence):
                return
            with suppress(NodeError, OSError):
                content = self._small.get(name)
                if content is not None and not full:
                    evidence.write_bytes(content)
            self._small.delete([name])


class _Known(NamedTuple):
    """What is known of a fresh block: a checksum, and whether it was to be written around the
    page cache and was not read since."""

    checksum: int
    unread: bool


class _FreshBlocks:
    """Large blocks that were written or checked lately, by a checksum each: what damages bytes
    at rest does not keep it, and it costs a twentieth of a hash.  Safe to call from several
    threads."""

    def __init__(self) -> None:
        # By the end of the multihash: a number takes half of the room.
        self._known: dict[int, _Known] = {}
        self._lock = threading.Lock()

    def note(self, blocks: Sequence[tuple[bytes, bytes]], *, unread: bool = False) -> None:
        """These (multihash, bytes) were written or checked just now; the oldest make way."""
        made = [(_short(name), _Known(checksum(content), unread)) for name, content in blocks]
        with self._lock:
            for key, known in made:
                self._known.pop(key, None)
                self._known[key] = known
            while len(self._known) > FRESH_BLOCKS_MAX:
                del self._known[next(iter(self._known))]

    def take(self, name: bytes) -> _Known | None:
        """What is known of the block, which is read now."""
        key = _short(name)
        with self._lock:
            known = self._known.get(key)
            if known is not None and known.unread:
                self._known[key] = _Known(known.checksum, unread=False)
            return known


def _short(name: bytes) -> int:
    return int.from_bytes(name[-8:])


def open_disk_store(
    directory: Path, *, reserve_bytes: int = 0, capacity_bytes: int | None = None
) -> BlockStore:
    """Open or create the store in `directory`.

    Puts that would take the store above `capacity_bytes`, or the file system's free space
    below `reserve_bytes` (or its free inodes below a small reserve), raise StorageFull before
    anything is written.  One process at a time: the home's lock sees to that.  Raises
    CorruptStore, StoreTooNew.
    """
    return DiskStore(directory, reserve_bytes=reserve_bytes, capacity_bytes=capacity_bytes)
