"""One SQLite file as dstore uses it: WAL, synchronous, migrated forward, shared by threads.

It holds the connection, its lock and the translation of SQLite's errors; what the tables mean
is the business of the catalog and of the small blocks.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from dstore.errors import CorruptStore, NodeError, StorageFull, StoreTooNew
from dstore.limits import KIB, MIB

_CORRUPT: Final = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
_FULL: Final = {sqlite3.SQLITE_FULL}
_NO_ROOM_BYTES: Final = 64 * KIB  # less free than this, and a write may find no room
_BUSY_SECONDS: Final = 10.0
_READERS_KEPT_MAX: Final = 8
_LOG_BYTES_KEPT_MAX: Final = 64 * MIB  # a large transaction leaves no larger log behind


class Database:
    """A migrated SQLite file: one writing connection under a lock, a few reading ones."""

    def __init__(
        self,
        path: Path,
        steps: Sequence[Sequence[str]],
        *,
        what: str,
        cache_bytes: int = 2 * MIB,
        log_pages: int = 1000,
    ) -> None:
        """Open or create `path` (mode 0600) and apply the migration steps it lacks.

        `what` names the file in messages; `cache_bytes` are for the writer's pages,
        `log_pages` is how long the write-ahead log grows before it is copied back.  Raises
        CorruptStore, StoreTooNew, StorageFull.
        """
        self.path = path
        self.what = what
        # SQLite takes an empty file for a new database, so an emptied one is a lost one.
        self.created = not path.exists() or path.stat().st_size == 0
        self._lock = threading.RLock()
        self._closed = False
        self._readers: list[sqlite3.Connection] = []
        self._readers_lock = threading.Lock()
        if self.created:
            # SQLite would honour the umask; its WAL and shm files copy the mode of this one.
            os.close(os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
        self._writer = self._connect()
        try:
            with self._translated():
                self._writer.execute("PRAGMA journal_mode = WAL")
                self._writer.execute("PRAGMA synchronous = FULL")
                self._writer.execute("PRAGMA foreign_keys = ON")
                self._writer.execute(f"PRAGMA cache_size = {-(cache_bytes // KIB):d}")
                self._writer.execute(f"PRAGMA wal_autocheckpoint = {log_pages:d}")
                self._writer.execute(f"PRAGMA journal_size_limit = {_LOG_BYTES_KEPT_MAX:d}")
            self._migrate(steps)
        except BaseException:
            self._writer.close()
            raise

    def _connect(self) -> sqlite3.Connection:
        try:
            return sqlite3.connect(
                self.path,
                timeout=_BUSY_SECONDS,
                isolation_level=None,
                check_same_thread=False,
                cached_statements=256,
            )
        except sqlite3.OperationalError as error:
            raise NodeError(f"cannot open the {self.what} {self.path}: {error}") from error

    def _migrate(self, steps: Sequence[Sequence[str]]) -> None:
        with self._translated():
            version: int = self._writer.execute("PRAGMA user_version").fetchone()[0]
        if version > len(steps):
            raise StoreTooNew(
                f"the {self.what} {self.path} has format {version}; this dstore knows formats "
                f"up to {len(steps)}: install a newer dstore"
            )
        for number, step in enumerate(steps[version:], start=version + 1):
            with self.transaction() as connection:
                for statement in step:
                    connection.execute(statement)
                connection.execute(f"PRAGMA user_version = {number:d}")

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """SQLite's errors as dstore's; misuse of the interface stays what it is."""
        try:
            yield
        except (sqlite3.IntegrityError, sqlite3.ProgrammingError, sqlite3.InterfaceError):
            raise
        except sqlite3.DatabaseError as error:
            code = getattr(error, "sqlite_errorcode", 0) & 0xFF
            if code in _FULL or (code == sqlite3.SQLITE_IOERR and self._disk_is_full()):
                raise StorageFull(
                    f"no room for the {self.what} {self.path}: its disk is full"
                ) from error
            if code in _CORRUPT:
                raise CorruptStore(f"the {self.what} {self.path} is damaged: {error}") from error
            raise NodeError(f"the {self.what} {self.path} failed: {error}") from error

    def _disk_is_full(self) -> bool:
        """What SQLite cannot allocate for its log is an I/O error to it, not a full disk."""
        disk = os.statvfs(self.path.parent)
        return disk.f_bavail * disk.f_frsize < _NO_ROOM_BYTES

    @contextmanager
    def transaction(self, *, durable: bool = True) -> Iterator[sqlite3.Connection]:
        """A write transaction: committed (and synced, where `durable`) when the block ends,
        rolled back when it raises.  Raises StorageFull, CorruptStore, NodeError."""
        with self._lock, self._translated():
            self._check_open()
            if not durable:
                self._writer.execute("PRAGMA synchronous = NORMAL")
            try:
                self._writer.execute("BEGIN IMMEDIATE")
                yield self._writer
                self._writer.execute("COMMIT")
            finally:
                try:
                    if self._writer.in_transaction:
                        self._writer.execute("ROLLBACK")
                finally:
                    if not durable:
                        self._writer.execute("PRAGMA synchronous = FULL")

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """A connection for queries, which see what is committed and wait for no writer."""
        with self._translated():
            with self._readers_lock:
                self._check_open()
                reader = self._readers.pop() if self._readers else None
            if reader is None:
                reader = self._connect()
            try:
                yield reader
            finally:
                with self._readers_lock:
                    keep = not self._closed and len(self._readers) < _READERS_KEPT_MAX
                    if keep:
                        self._readers.append(reader)
                if not keep:
                    reader.close()

    def verify(self) -> None:
        """Read the whole file and check its structure.  Raises CorruptStore."""
        with self.reading() as connection:
            verdict = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
        if verdict != "ok":
            raise CorruptStore(f"the {self.what} {self.path} is damaged: {verdict}")

    def _check_open(self) -> None:
        if self._closed:
            raise NodeError(f"the {self.what} is closed")

    def close(self) -> None:
        """Close all connections; a second call does nothing."""
        with self._lock, self._readers_lock:
            if self._closed:
                return
            self._closed = True
            for reader in self._readers:
                reader.close()
            self._readers.clear()
            self._writer.close()
