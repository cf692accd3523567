"""Writing a tree of files that strangers named: nothing lands outside of its target.

Every directory is opened below the handle of its parent without following links, names are
single parts, and a file appears under its name when it is whole.  It knows nothing of where
the entries come from.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Final, TypeVar

from dstore.errors import DstoreError, InvalidPath, MalformedBlock
from dstore.limits import NAME_BYTES_MAX, SYMLINK_BYTES_MAX
from dstore.storage.durable import node_error

_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW_FILE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_PARTS_MAX: Final = 1000  # of one directory, left by killed processes

T = TypeVar("T")


class Extraction:
    """Entries in the order of a walk, parents before children, written at and below a target.

    The first entry is the target itself.  After the entry of a file come its bytes.  Raises
    InvalidPath for names that mean another place, NodeError and StorageFull where the disk
    refuses.  Leaving the block early removes the file that is not whole.
    """

    def __init__(self, target: Path) -> None:
        self._target = target
        # Open directories from the target's parent down to where the walk is.
        self._open: list[tuple[str, int]] = []
        self._file: _PartialFile | None = None
        self.files = 0

    def __enter__(self) -> Extraction:
        try:
            parent = os.open(self._target.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise node_error(error, f"opening {self._target.parent}") from error
        self._open.append(("", parent))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._file is not None:
            self._file.discard()
        while self._open:
            os.close(self._open.pop()[1])

    def enter(self, form: dict[str, Any]) -> None:
        """The next entry: `path` (names below the target), `kind`, `size`, `target`."""
        self.finish()
        names = [self._target.name, *form["path"]]
        for name in names[1:]:
            check_name(name)
        self._go_to(names[:-1])
        name, (_, parent) = names[-1], self._open[-1]
        try:
            if form["kind"] == "directory":
                self._open_directory(name, parent)
            elif form["kind"] == "symlink":
                _replace_link(parent, name, form["target"])
                self.files += 1
            else:
                self._file = _PartialFile(parent, name, int(form["size"]))
        except OSError as error:
            raise self._failed(names, error) from error

    def write(self, piece: bytes) -> None:
        """More bytes of the file entered last."""
        assert self._file is not None
        try:
            self._file.write(piece)
        except OSError as error:
            raise self._failed([self._target.name, self._file.name], error) from error

    def finish(self) -> None:
        """The file entered last is whole: give it its name.  Raises MalformedBlock where it
        has another length than was said."""
        if self._file is None:
            return
        file = self._file
        try:
            file.finish()
        except OSError as error:
            raise self._failed([self._target.name, file.name], error) from error
        self._file = None
        self.files += 1

    def _go_to(self, directories: list[str]) -> None:
        """Close what the walk has left; what it is in was opened when it was entered."""
        while len(self._open) > len(directories) + 1:
            os.close(self._open.pop()[1])
        if [name for name, _ in self._open[1:]] != directories:
            raise MalformedBlock(f"{'/'.join(directories)} was not announced as a directory")

    def _open_directory(self, name: str, parent: int) -> None:
        try:
            os.mkdir(name, dir_fd=parent)
        except FileExistsError:
            pass  # a link here is not followed by the next line
        self._open.append((name, os.open(name, _DIRECTORY, dir_fd=parent)))

    def _failed(self, names: list[str], error: OSError) -> DstoreError:
        where = self._target.parent.joinpath(*names)
        if isinstance(error, NotADirectoryError) or error.errno == errno.ELOOP:
            return InvalidPath(f"{where} is there already and no directory: remove it first")
        return node_error(error, f"writing {where}")


class _PartialFile:
    """A file that is being written beside its name."""

    def __init__(self, parent: int, name: str, size: int) -> None:
        self.name = name
        self._parent = parent
        self._size = size
        self._written = 0
        self._temporary, self._descriptor = _beside(
            lambda part: os.open(part, _NEW_FILE, 0o666, dir_fd=parent)
        )

    def write(self, piece: bytes) -> None:
        self._written += len(piece)
        view = memoryview(piece)
        while view:
            view = view[os.write(self._descriptor, view) :]

    def finish(self) -> None:
        if self._written != self._size:
            raise MalformedBlock(f"{self.name!r}: {self._written} bytes came, not {self._size}")
        _refuse_unlike(self._parent, self.name)
        os.rename(self._temporary, self.name, src_dir_fd=self._parent, dst_dir_fd=self._parent)
        os.close(self._descriptor)

    def discard(self) -> None:
        os.close(self._descriptor)
        os.unlink(self._temporary, dir_fd=self._parent)


def check_name(name: str) -> None:
    """Refuse a name that is not one plain part of a path.  Raises InvalidPath."""
    if name in ("", ".", "..") or "/" in name or "\0" in name:
        raise InvalidPath(f"refused: an entry is called {name!r}, which means another place")
    if len(os.fsencode(name)) > NAME_BYTES_MAX:
        raise InvalidPath(f"refused: a name of more than {NAME_BYTES_MAX} bytes: {name[:40]!r}…")


def _replace_link(parent: int, name: str, target: str) -> None:
    """A symbolic link at once under its name; what it points at is never opened."""
    if not target or "\0" in target or len(os.fsencode(target)) > SYMLINK_BYTES_MAX:
        raise InvalidPath(f"refused: the symbolic link {name!r} points at {target[:80]!r}")
    _refuse_unlike(parent, name)
    temporary, _ = _beside(lambda part: os.symlink(target, part, dir_fd=parent))
    try:
        os.rename(temporary, name, src_dir_fd=parent, dst_dir_fd=parent)
    except OSError:
        os.unlink(temporary, dir_fd=parent)
        raise


def _beside(make: Callable[[str], T]) -> tuple[str, T]:
    """What is made under the first temporary name that is free, and that name.  It is short
    whatever the file's own is, and what killed processes left is in nobody's way."""
    for number in range(_PARTS_MAX):
        part = f".dstore-{os.getpid()}-{number}.part"
        try:
            return part, make(part)
        except FileExistsError:
            continue
    raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), part)


def _refuse_unlike(parent: int, name: str) -> None:
    """Files and links are replaced; directories, devices and pipes, and links to devices and
    pipes (`/dev/stdout`), are not."""
    try:
        mode = os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode
        if stat.S_ISLNK(mode):
            mode = os.stat(name, dir_fd=parent).st_mode
            if stat.S_ISDIR(mode):
                return  # the link is replaced, not what is there
    except OSError:  # nothing is there, or a link to nothing
        return
    if stat.S_ISDIR(mode):
        raise InvalidPath(f"{name!r} is a directory on disk and no directory in the store")
    if not stat.S_ISREG(mode):
        raise InvalidPath(f"{name!r} is a device or a pipe: write to it with  dstore cat")
