"""The format file of a directory: which layout its files have, and whether this dstore knows it.

One line, "<what> <number>".  A directory without one is new, or was never finished.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from dstore.errors import CorruptStore, StoreTooNew
from dstore.storage.durable import node_error, sync_data, sync_directory, write_all

_NAME: Final = "format"
_BYTES_MAX: Final = 128


def check_format(directory: Path, what: str, newest: int) -> bool:
    """Whether the directory has a format file of a known number.

    Raises StoreTooNew above `newest`, CorruptStore where the file says something else.
    """
    path = directory / _NAME
    try:
        with path.open("rb") as file:
            line = file.read(_BYTES_MAX).decode("ascii", errors="replace").strip()
    except FileNotFoundError:
        return False
    name, _, number = line.rpartition(" ")
    if name != what or not number.isdecimal():
        raise CorruptStore(f"{path} does not say '{what} <number>': is this the right directory?")
    if int(number) > newest:
        raise StoreTooNew(
            f"{directory} is a {what} of format {number}; this dstore knows formats up to "
            f"{newest}: install a newer dstore"
        )
    return True


def has_format(directory: Path, what: str) -> bool:
    """Whether the directory says that it is a `what`, of any number.  Never raises, and never
    waits for a pipe of that name: the directory may be anybody's."""
    try:
        descriptor = os.open(directory / _NAME, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        return os.read(descriptor, _BYTES_MAX).startswith(f"{what} ".encode())
    except OSError:
        return False
    finally:
        os.close(descriptor)


def write_format(directory: Path, what: str, number: int) -> None:
    """Write the format file, atomically and durably.  Raises StorageFull, NodeError."""
    write_durably(directory / _NAME, f"{what} {number}\n".encode())


def write_durably(path: Path, content: bytes) -> None:
    """Write or replace one file with mode 0600 whatever the umask; whole and on disk when
    this returns.  Raises StorageFull, NodeError."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        flags = os.O_CREAT | os.O_TRUNC | os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW
        descriptor = os.open(temporary, flags, 0o600)
        try:
            os.fchmod(descriptor, 0o600)
            write_all(descriptor, content)
            sync_data(descriptor)
        finally:
            os.close(descriptor)
        temporary.replace(path)
        sync_directory(path.parent)
    except OSError as error:
        raise node_error(error, f"writing {path}") from error
