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
from typing import Final

from dstore.limits import BLOCK_BYTES_MAX

# Of memory, offsets and lengths; enough for every sector size in use.
_ALIGNMENT: Final = 4096
_O_DIRECT: Final[int | None] = getattr(os, "O_DIRECT", None)


class DirectFiles(threading.local):
    """Each thread has one aligned buffer, as long as the longest block it has moved: fresh
    memory would cost more than the copy."""

    def __init__(self) -> None:
        self._buffer: mmap.mmap | None = None

    @staticmethod
    def suits(size: int) -> bool:
        """Whether a file of so many bytes can be moved this way at all."""
        return _O_DIRECT is not None and size % _ALIGNMENT == 0 and 0 < size <= BLOCK_BYTES_MAX

    def create(self, path: str, content: bytes) -> int | None:
        """Write a new file, of a size that suits; its open descriptor, not synced.  None, and no
        file, where the file system cannot.  Raises OSError."""
        assert _O_DIRECT is not None
        flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC | _O_DIRECT
        try:
            descriptor = os.open(path, flags, 0o600)
        except OSError as error:
            if error.errno == errno.EINVAL:
                return None
            raise
        try:
            with self._aligned(len(content)) as buffer:
                buffer[:] = content
                if os.write(descriptor, buffer) == len(content):
                    return descriptor
        except OSError as error:
            if error.errno != errno.EINVAL:
                os.close(descriptor)
                os.unlink(path)  # noqa: PTH108
                raise
        os.close(descriptor)
        os.unlink(path)  # noqa: PTH108
        return None

    def read(self, path: str) -> bytes | None:
        """The file's bytes; None where it is not here, does not suit, or cannot be read so."""
        assert _O_DIRECT is not None
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | _O_DIRECT)
        except OSError:
            return None
        try:
            size = os.fstat(descriptor).st_size
            if not self.suits(size):
                return None
            with self._aligned(size) as buffer:
                return bytes(buffer) if os.readv(descriptor, [buffer]) == size else None
        except OSError:
            return None
        finally:
            os.close(descriptor)

    def _aligned(self, size: int) -> memoryview:
        if self._buffer is None or len(self._buffer) < size:
            self._buffer = mmap.mmap(-1, size)
        return memoryview(self._buffer)[:size]
