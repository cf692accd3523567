"""A node's home directory: where everything is, who may read it, and that one process runs.

It creates and guards files; what stands in them is the business of those who ask for the
paths.  Keys are opaque bytes here.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from dstore.errors import AlreadyRunning, NodeError, NotFoundError
from dstore.storage.durable import node_error, sync_directory
from dstore.storage.formatfile import check_format, has_format, write_durably, write_format
from dstore.storage.private import api_file, read_private, refuse_others

_FORMAT_NAME: Final = "dstore home"
_FORMAT: Final = 1
_KEY_BYTES: Final = 32


@dataclass(frozen=True)
class Home:
    """The layout of one node's directory ($DSTORE_HOME)."""

    directory: Path

    @property
    def config(self) -> Path:
        """node.toml"""
        return self.directory / "node.toml"

    @property
    def identity_key(self) -> Path:
        """The node's own private key."""
        return self.directory / "identity.key"

    @property
    def owner_key(self) -> Path:
        """The private key that pin records are signed with."""
        return self.directory / "owner.key"

    @property
    def blocks(self) -> Path:
        """The block store's directory (`open_disk_store`)."""
        return self.directory / "blocks"

    @property
    def records(self) -> Path:
        """The record files' directory (`RecordFiles`)."""
        return self.directory / "records"

    @property
    def catalog(self) -> Path:
        """The catalog's SQLite file (`open_catalog`)."""
        return self.directory / "catalog.sqlite3"

    @property
    def providers(self) -> Path:
        """The DHT's provider records (`ProviderFile`); may be lost."""
        return self.directory / "providers.sqlite3"

    @property
    def api(self) -> Path:
        """URL and token of the running daemon: api.json."""
        return api_file(self.directory)

    @property
    def exists(self) -> bool:
        """Whether `create` has been here."""
        return (self.directory / "format").exists()

    def create(self) -> None:
        """Make the directory (0700 whatever the umask) and its format file; an existing home
        is left as it is.  Raises StorageFull, StoreTooNew, NodeError."""
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            if check_format(self.directory, _FORMAT_NAME, _FORMAT):
                return
            self.directory.chmod(0o700)
            sync_directory(self.directory.parent)
        except OSError as error:
            raise node_error(error, f"creating {self.directory}") from error
        write_format(self.directory, _FORMAT_NAME, _FORMAT)

    def check(self) -> None:
        """Refuse a home that this process must not use: missing (NotFoundError), written by a
        newer dstore (StoreTooNew), or directory or private files open to others (NodeError,
        with the chmod command)."""
        if not check_format(self.directory, _FORMAT_NAME, _FORMAT):
            raise NotFoundError(
                f"{self.directory} is not a dstore home; make one: "
                f"dstore init --home {self.directory}"
            )
        refuse_others(self.directory, "700")
        for private in (self.identity_key, self.owner_key, self.api):
            if private.exists():
                refuse_others(private, "600")

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the home while the block runs; the kernel lets go when the process ends, however
        it ends.  Raises AlreadyRunning where another process (or this one) holds it."""
        path = self.directory / "lock"
        try:
            descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise node_error(error, f"opening {path}") from error
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                holder = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip()
                raise AlreadyRunning(
                    f"another process{f' (pid {holder})' if holder else ''} is using "
                    f"{self.directory}: stop it, or choose another home"
                ) from error
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
            yield
        finally:
            os.close(descriptor)

    def write_private(self, path: Path, content: bytes) -> None:
        """Write or replace the file with mode 0600 whatever the umask; whole and on disk when
        this returns.  Raises StorageFull, NodeError."""
        write_durably(path, content)

    def read_private(self, path: Path) -> bytes:
        """As `storage.private.read_private`."""
        return read_private(path)

    def read_key(self, path: Path) -> bytes:
        """The 32 bytes of `identity_key` or `owner_key`.  Raises NodeError where the file is
        missing or damaged, or as `read_private`."""
        try:
            content = self.read_private(path)
        except NotFoundError as error:
            raise NodeError(
                f"{path} is missing: put your copy of it back, or make a new home"
            ) from error
        if len(content) != _KEY_BYTES:
            raise NodeError(
                f"{path} is damaged ({len(content)} bytes, a key has {_KEY_BYTES}): "
                f"put your copy of it back, or make a new home"
            )
        return content


def is_home(directory: Path) -> bool:
    """Whether the directory is the home of some node, its keys and all."""
    return has_format(directory, _FORMAT_NAME)


def home_around(path: Path) -> Path | None:
    """The home of some node that the file or directory is or lies in, links followed."""
    real = Path(os.path.realpath(path))
    return next((one for one in (real, *real.parents) if is_home(one)), None)
