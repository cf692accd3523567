"""Small blocks: rows of one SQLite file, written in groups, one sync for all that wait.

A file each would cost a 4 KiB page and an inode for 200 bytes.  Like `files`, it keeps bytes
under names and counts them; it neither verifies nor decides what fits.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from dstore.limits import MIB
from dstore.storage.blockstore import Usage
from dstore.storage.database import Database
from dstore.storage.durable import GroupCommit

_STEPS: Final = (
    (
        # The id makes walking in pages possible while rows come and go.
        """CREATE TABLE blocks (
            id INTEGER PRIMARY KEY, multihash BLOB NOT NULL UNIQUE, data BLOB NOT NULL)""",
        "CREATE TABLE totals (blocks INTEGER NOT NULL, bytes INTEGER NOT NULL)",
        "INSERT INTO totals VALUES (0, 0)",
    ),
)
_PAGE_ROWS: Final = 1024


class SmallBlocks:
    """Blocks in SQLite.  Safe to call from several threads."""

    def __init__(self, path: Path) -> None:
        """Open or create the file.  Raises CorruptStore, StoreTooNew, StorageFull."""
        # Names are random, so every put touches index pages all over the file: more of them in
        # memory and a longer log are worth a third of the speed at 250,000 blocks.
        self._db = Database(
            path, _STEPS, what="store of small blocks", cache_bytes=8 * MIB, log_pages=4000
        )
        self._group: GroupCommit[tuple[bytes, bytes]] = GroupCommit(self._insert)
        self._lock = threading.Lock()
        with self._db.reading() as connection:
            row = connection.execute("SELECT blocks, bytes FROM totals").fetchone()
        self._usage = Usage(*row)

    def put(self, blocks: Sequence[tuple[bytes, bytes]]) -> None:
        """Write the (multihash, bytes) blocks that are not here; durable on return.

        Raises StorageFull or NodeError.
        """
        self._group.run(blocks)

    def _insert(self, blocks: list[tuple[bytes, bytes]]) -> None:
        added = size = 0
        with self._db.transaction() as connection:
            for block in blocks:
                cursor = connection.execute(
                    "INSERT OR IGNORE INTO blocks (multihash, data) VALUES (?, ?)", block
                )
                if cursor.rowcount > 0:
                    added += 1
                    size += len(block[1])
            connection.execute(
                "UPDATE totals SET blocks = blocks + ?, bytes = bytes + ?", (added, size)
            )
        self._add(added, size)

    def _add(self, blocks: int, size: int) -> None:
        with self._lock:
            self._usage = Usage(self._usage.blocks + blocks, self._usage.bytes + size)

    def get(self, multihash: bytes) -> bytes | None:
        """The block's bytes (unverified), or None."""
        with self._db.reading() as connection:
            row = connection.execute(
                "SELECT data FROM blocks WHERE multihash = ?", (multihash,)
            ).fetchone()
        return row[0] if row else None

    def sizes(self, multihashes: Sequence[bytes]) -> list[int | None]:
        """The length of each block, None where it is not here."""
        with self._db.reading() as connection:
            rows = [
                connection.execute(
                    "SELECT length(data) FROM blocks WHERE multihash = ?", (multihash,)
                ).fetchone()
                for multihash in multihashes
            ]
        return [row[0] if row else None for row in rows]

    def delete(self, multihashes: Sequence[bytes]) -> None:
        """Forget the blocks; those not here are passed over."""
        removed = size = 0
        with self._db.transaction() as connection:
            for multihash in multihashes:
                row = connection.execute(
                    "DELETE FROM blocks WHERE multihash = ? RETURNING length(data)", (multihash,)
                ).fetchone()
                if row is not None:
                    removed += 1
                    size += row[0]
            if not removed:
                return
            connection.execute(
                "UPDATE totals SET blocks = blocks - ?, bytes = bytes - ?", (removed, size)
            )
        self._add(-removed, -size)

    def multihashes(self) -> Iterator[bytes]:
        """The multihashes of all blocks, page by page, so that no writer's log grows."""
        last = 0
        while True:
            with self._db.reading() as connection:
                page = connection.execute(
                    "SELECT id, multihash FROM blocks WHERE id > ? ORDER BY id LIMIT ?",
                    (last, _PAGE_ROWS),
                ).fetchall()
            if not page:
                return
            yield from (multihash for _, multihash in page)
            last = page[-1][0]

    def usage(self) -> Usage:
        """Count and bytes of the blocks."""
        return self._usage

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        self._db.close()
