"""Direct I/O (O_DIRECT): files written and read without a copy in the kernel's page cache.

What a holder stores for others is seldom read soon.  Kept out of the page cache it leaves that
to files that are in use, and the kernel need not find memory for it.  All of this is a wish:
where the system or the file system cannot, the caller takes the usual way.
"""

from __future__ import annotations

import errno
import mmap
import os
import threading
from contextlib import suppress
from typing import Final

from dstore.limits import BLOCK_BYTES_MAX

# Of memory, offsets and lengths; enough for every sector size in use.
_ALIGNMENT: Final = 4096
_O_DIRECT: Final[int | None] = getattr(os, "O_DIRECT", None)


class _Own(threading.local):
    """Of each thread: one aligned buffer, as long as the longest block it has moved.  Fresh memory
    would cost more than the copy."""

    buffer: mmap.mmap | None = None


_own = _Own()


def suits_direct(size: int) -> bool:
    """Whether a file of so many bytes can be moved this way at all."""
    return _O_DIRECT is not None and size % _ALIGNMENT == 0 and 0 < size <= BLOCK_BYTES_MAX


def create_direct(path: str, content: bytes) -> int | None:
    """Write a new file, of a size that suits; its open descriptor, not synced.  None, and no
    file, where the file system cannot.  Raises OSError."""
    assert _O_DIRECT is not None
    descriptor = -1
    try:
        flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC | _O_DIRECT
        descriptor = os.open(path, flags, 0o600)
        with _aligned(len(content)) as buffer:
            buffer[:] = content
            if os.write(descriptor, buffer) == len(content):
                return descriptor
    except OSError as error:
        if error.errno != errno.EINVAL:
            _remove(descriptor, path)
            raise
    _remove(descriptor, path)  # where the open was refused, too: the file is there
    return None


def read_direct(path: str) -> bytes | None:
    """The file's bytes; None where it is not here, does not suit, or cannot be read so."""
    if _O_DIRECT is None:
        return None
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | _O_DIRECT)
    except OSError:
        return None
    try:
        size = os.fstat(descriptor).st_size
        if not suits_direct(size):
            return None
        with _aligned(size) as buffer:
            return bytes(buffer) if os.readv(descriptor, [buffer]) == size else None
    except OSError:
        return None
    finally:
        os.close(descriptor)


def _remove(descriptor: int, path: str) -> None:
    if descriptor >= 0:
        os.close(descriptor)
    with suppress(FileNotFoundError):
        os.unlink(path)  # noqa: PTH108


def _aligned(size: int) -> memoryview:
    if _own.buffer is None or len(_own.buffer) < size:
        _own.buffer = mmap.mmap(-1, size)
    return memoryview(_own.buffer)[:size]
