"""Large blocks: one file each, named by multihash, sharded by the end of the digest.

It keeps bytes under names and counts them; it neither verifies nor decides what fits.  There
is no index: the file system is one.  Count and bytes are taken over from a clean shutdown,
and counted anew (100,000 files in about a second) after any other.
"""

from __future__ import annotations

import errno
import json
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from dstore.errors import CorruptStore
from dstore.limits import BLOCK_BYTES_MAX
from dstore.storage.blockstore import Usage
from dstore.storage.direct import read_direct
from dstore.storage.durable import DurableFiles, node_error, sync_directory

# By the end of the text: every CIDv1 starts alike, and the end of a digest is even.
_SHARD_HEX_DIGITS: Final = 2
_SHARDS: Final = 16**_SHARD_HEX_DIGITS
_USAGE_BYTES_MAX: Final = 256
# A hash function may be the identity, and its multihash longer than a file name: no such file.
_ABSENT: Final = {errno.ENOENT, errno.ENAMETOOLONG}
_UNREADABLE: Final = {errno.EIO, errno.EUCLEAN, errno.EBADMSG}  # what a damaged disk answers


class FileBlocks:
    """Blocks as files below one directory.  Safe to call from several threads."""

    def __init__(self, directory: Path, durable: DurableFiles) -> None:
        """Open or create `directory`.  `durable` writes on the same file system."""
        self._directory = directory
        self._prefix = str(directory)
        self._durable = durable
        self._lock = threading.Lock()
        self._in_flight: dict[bytes, threading.Event] = {}
        created = not directory.exists()
        directory.mkdir(mode=0o700, exist_ok=True)
        if created:
            sync_directory(directory.parent)
        self._spread = len(self._shards()) == _SHARDS
        usage = self._take_usage()
        self.was_clean = created or usage is not None
        if usage is None:
            usage = self._count()
        self._usage = usage  # changed under the lock

    def _path(self, multihash: bytes) -> str:
        name = multihash.hex()
        return f"{self._prefix}/{name[-_SHARD_HEX_DIGITS:]}/{name}"

    @property
    def _usage_file(self) -> Path:
        return self._directory / "usage"

    def _take_usage(self) -> Usage | None:
        """The counts that a clean shutdown left; gone once read, so that a crash has none."""
        try:
            with self._usage_file.open("rb") as file:
                counts = json.loads(file.read(_USAGE_BYTES_MAX))
            self._usage_file.unlink()
            sync_directory(self._directory)
            return Usage(blocks=int(counts["blocks"]), bytes=int(counts["bytes"]))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError, KeyError):  # damaged: count
            self._usage_file.unlink()
            return None

    def _count(self) -> Usage:
        blocks = total = 0
        for shard in self._shards():
            with os.scandir(shard) as entries:
                for entry in entries:
                    with suppress(FileNotFoundError):
                        total += entry.stat(follow_symlinks=False).st_size
                        blocks += 1
        return Usage(blocks, total)

    def _make_shards(self) -> None:
        """With the first block: many a node never keeps a large one.  Raises NodeError."""
        try:
            for shard in range(_SHARDS):
                path = f"{self._prefix}/{shard:0{_SHARD_HEX_DIGITS}x}"
                Path(path).mkdir(mode=0o700, exist_ok=True)
            sync_directory(self._prefix)
        except OSError as error:
            raise node_error(error, f"making {path}") from error
        self._spread = True

    def _shards(self) -> list[str]:
        """The shards that have been made, in order.  Raises NodeError."""
        try:
            with os.scandir(self._prefix) as entries:
                return sorted(e.path for e in entries if e.is_dir(follow_symlinks=False))
        except OSError as error:
            raise node_error(error, f"listing {self._prefix}") from error

    def put(self, blocks: Sequence[tuple[bytes, bytes]], *, direct: bool = False) -> None:
        """Write the (multihash, bytes) blocks that are not here; durable on return.  With
        `direct`, around the page cache where that can be.

        Raises StorageFull or NodeError.
        """
        remaining = list(blocks)
        while remaining:
            mine: list[tuple[bytes, bytes]] = []
            others: list[tuple[bytes, bytes]] = []
            waits: list[threading.Event] = []
            done = threading.Event()
            with self._lock:
                for block in remaining:
                    event = self._in_flight.get(block[0])
                    if event is not None and event is not done:
                        others.append(block)
                        waits.append(event)
                    elif event is None and not os.path.exists(self._path(block[0])):  # noqa: PTH110
                        self._in_flight[block[0]] = done
                        mine.append(block)
            try:
                if mine:
                    files = [(self._path(name), content) for name, content in mine]
                    if not self._spread:
                        self._make_shards()
                    self._durable.write(files, direct=direct)
                    with self._lock:
                        self._add(len(mine), sum(len(content) for _, content in mine))
            finally:
                self._settle(mine, done)
            # Another thread is writing these: durable when it is done, ours to write if it failed.
            for event in waits:
                event.wait()
            remaining = others

    def _settle(self, blocks: Sequence[tuple[bytes, bytes]], done: threading.Event) -> None:
        with self._lock:
            for name, _ in blocks:
                del self._in_flight[name]
        done.set()

    def get(self, multihash: bytes, *, direct: bool = False) -> bytes | None:
        """The file's bytes (unverified, at most one more than a block may have), or None.  With
        `direct`, around the page cache where that can be.

        Raises CorruptStore where the disk cannot read it, NodeError where this node cannot now.
        """
        path = self._path(multihash)
        if direct:
            content = read_direct(path)
            if content is not None:
                return content
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                size = min(os.fstat(descriptor).st_size, BLOCK_BYTES_MAX + 1)
                content = os.read(descriptor, size)
                while len(content) < size and (more := os.read(descriptor, size - len(content))):
                    content += more
                return content
            finally:
                os.close(descriptor)
        except OSError as error:
            if error.errno in _ABSENT:
                return None
            if error.errno in _UNREADABLE:
                raise CorruptStore(f"cannot read {path}: {error.strerror}") from error
            raise node_error(error, f"reading {path}") from error

    def size(self, multihash: bytes) -> int | None:
        """The length of the file, once it is durable, or None.  Raises NodeError."""
        length = self._length(self._path(multihash))
        # Asked only now: visible already, and perhaps gone again soon.
        return None if multihash in self._in_flight else length

    def _length(self, path: str) -> int | None:
        try:
            return os.stat(path).st_size  # noqa: PTH116
        except OSError as error:
            if error.errno in _ABSENT:
                return None
            raise node_error(error, f"looking at {path}") from error

    def delete(self, multihash: bytes) -> bool:
        """Remove the file; False where there is none.  Raises NodeError."""
        return self._take_out(multihash, os.unlink)

    def move(self, multihash: bytes, path: Path) -> bool:
        """Take the file out of the store, to `path` on the same file system; False where there
        is none.  Raises NodeError."""
        return self._take_out(multihash, lambda here: os.rename(here, path))  # noqa: PTH104

    def _take_out(self, multihash: bytes, take: Callable[[str], None]) -> bool:
        path = self._path(multihash)
        with self._lock:
            size = self._length(path)
            if size is None:
                return False
            try:
                take(path)
            except OSError as error:
                raise node_error(error, f"removing {path}") from error
            self._add(-1, -size)
        return True

    def _add(self, blocks: int, size: int) -> None:
        self._usage = Usage(self._usage.blocks + blocks, self._usage.bytes + size)

    def multihashes(self) -> Iterator[bytes]:
        """The multihashes of all files, shard by shard.  Raises NodeError."""
        for shard in self._shards():
            try:
                names = os.listdir(shard)  # noqa: PTH208
            except OSError as error:
                raise node_error(error, f"listing {shard}") from error
            for name in names:
                with suppress(ValueError):  # not one of ours
                    yield bytes.fromhex(name)

    def usage(self) -> Usage:
        """Count and bytes of the files; waits for nobody."""
        return self._usage

    def close(self) -> None:
        """Leave the counts for the next start.  Raises StorageFull where even that has no
        room; nothing is lost then but a second at the next start."""
        counts = {"blocks": self._usage.blocks, "bytes": self._usage.bytes}
        self._durable.write([(str(self._usage_file), json.dumps(counts).encode())])
