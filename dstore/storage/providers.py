"""Provider records of the DHT on disk, so that a restart need not lose them.

A SQLite file of its own, beside the catalog: what stands in it was said by strangers and can
be lost without harm, so a damaged file is replaced by an empty one.  Synchronous; the service
runs it in `Workers`.

Times are the file's own: they go on with the monotonic clock while the node runs, and across
restarts with the time of day, by DOWNTIME_SECONDS_MAX at most.  A clock that jumps therefore
ends few records early, and none late.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from dstore.core.peerid import PeerId
from dstore.errors import CorruptStore, StoreTooNew
from dstore.limits import KAD_RECORDS_MAX, PROVIDER_DOWNTIME_SECONDS_MAX
from dstore.storage.database import Database

_V1: Final = (
    """CREATE TABLE records (
        key BLOB NOT NULL, peer BLOB NOT NULL, addresses TEXT NOT NULL, expires REAL NOT NULL,
        PRIMARY KEY (key, peer)) WITHOUT ROWID""",
    "CREATE INDEX records_expires ON records (expires)",
    # One row: the file's time when it was last written, and the time of day then.
    """CREATE TABLE clock (
        one INTEGER PRIMARY KEY CHECK (one = 1), file REAL NOT NULL, day REAL NOT NULL)""",
    "INSERT INTO clock VALUES (1, 0.0, 0.0)",
)


@dataclass(frozen=True, slots=True)
class SavedProvider:
    """One record: `seconds_left` from the moment of loading or saving."""

    key: bytes
    peer: PeerId
    addresses: tuple[str, ...]
    seconds_left: float


class ProviderFile:
    """The records of one node.  Every method raises StorageFull, CorruptStore, NodeError."""

    def __init__(self, path: Path, *, day: float, now: float) -> None:
        """Open or create the file; one that is damaged or of a newer dstore is replaced.
        `day` is the time of day, `now` the monotonic clock."""
        try:
            self._db = self._opened(path)
        except (CorruptStore, StoreTooNew):
            for suffix in ("", "-wal", "-shm"):
                path.with_name(path.name + suffix).unlink(missing_ok=True)
            self._db = self._opened(path)
        with self._db.reading() as connection:
            file, then = connection.execute("SELECT file, day FROM clock").fetchone()
        away = min(max(day - then, 0.0), PROVIDER_DOWNTIME_SECONDS_MAX) if then else 0.0
        self._offset = file + away - now

    @staticmethod
    def _opened(path: Path) -> Database:
        database = Database(path, (_V1,), what="file of provider records")
        try:
            database.verify()
        except BaseException:
            database.close()
            raise
        return database

    def load(self, now: float) -> list[SavedProvider]:
        """The live records, the last to expire first; at most KAD_RECORDS_MAX."""
        instant = now + self._offset
        with self._db.reading() as connection:
            rows = connection.execute(
                "SELECT key, peer, addresses, expires FROM records WHERE expires > ?"
                " ORDER BY expires DESC LIMIT ?",
                (instant, KAD_RECORDS_MAX),
            ).fetchall()
        return [
            SavedProvider(key, PeerId(peer), tuple(json.loads(addresses)), expires - instant)
            for key, peer, addresses, expires in rows
        ]

    def save(self, records: Iterable[SavedProvider], *, day: float, now: float) -> None:
        """Write or replace these, and drop those that have expired.  Not synced: losing the
        last seconds of them costs nothing."""
        instant = now + self._offset
        with self._db.transaction(durable=False) as connection:
            connection.executemany(
                "INSERT OR REPLACE INTO records VALUES (?, ?, ?, ?)",
                (
                    (r.key, r.peer.binary, json.dumps(r.addresses), instant + r.seconds_left)
                    for r in records
                ),
            )
            connection.execute("DELETE FROM records WHERE expires <= ?", (instant,))
            connection.execute("UPDATE clock SET file = ?, day = ?", (instant, day))

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        self._db.close()
