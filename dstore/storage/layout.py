"""A node's home directory: where everything is, who may read it, and that one process runs.

It creates and guards files; what stands in them is the business of those who ask for the
paths.  Keys are opaque bytes here.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


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
    def api(self) -> Path:
        """URL and token of the running daemon: api.json."""
        return self.directory / "api.json"

    @property
    def exists(self) -> bool:
        """Whether `create` has been here."""
        return (self.directory / "format").exists()

    def create(self) -> None:
        """Make the directory (0700) and its format file; does nothing where they exist."""

    def check(self) -> None:
        """Refuse a home that this process must not use: missing (NotFoundError), written by a
        newer dstore (StoreTooNew), or directory or keys open to others (NodeError, with the
        chmod command)."""

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the home; raises AlreadyRunning where another process does."""
        yield

    def write_private(self, path: Path, content: bytes) -> None:
        """Write the file atomically and durably with mode 0600 whatever the umask."""

    def read_private(self, path: Path) -> bytes:
        """The file's bytes.  Raises NotFoundError, or NodeError (with the chmod command)
        where others may read it."""
        raise NotImplementedError
