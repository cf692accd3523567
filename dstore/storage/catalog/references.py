"""Which blocks are kept and why: references by pins, slots, running operations and the cache.

Marks live here, blocks in the block store.  The rule that makes collection safe beside
running work: **reference first, then put**; `sweep` decides and deletes under the lock that
`reference` needs, so a block is either kept or visibly absent when `put_many` looks.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Final

from dstore.core.cid import CID, RAW
from dstore.storage.blockstore import BlockStore
from dstore.storage.database import Database
from dstore.storage.rows import Operation, ReferenceKind, operation_key

_ROWS_PER_TRANSACTION: Final = 10_000
_SWEEP_BLOCKS: Final = 64  # deleted under the lock at a time: a few milliseconds

UNVERIFIED: Final = "unverified"  # a counter: 1 from a rebuild until references are restored


class ReferenceTables:
    """The part of the catalog that says which blocks are kept."""

    _db: Database

    # --- Operations --------------------------------------------------------------------

    def begin_operation(self, kind: str, now: float) -> int:
        """A new running operation; its blocks are referenced with
        `reference(ReferenceKind.OPERATION, operation_key(id), …)`."""
        with self._db.transaction(durable=False) as connection:
            cursor = connection.execute(
                "INSERT INTO operations (kind, started) VALUES (?, ?)", (kind, now)
            )
            assert cursor.lastrowid is not None
            return cursor.lastrowid

    def end_operation(self, operation: int) -> None:
        """Release the operation's references and forget it.  What should stay has been
        referenced by a pin or a slot before."""
        with self._db.transaction(durable=False) as connection:
            mark_released(connection, ReferenceKind.OPERATION, operation_key(operation))
            connection.execute("DELETE FROM operations WHERE id = ?", (operation,))
            finished = _delete_released(connection)
        if not finished:
            self.finish_releases()

    def operations(self) -> list[Operation]:
        """The running operations; at start-up, those that a dead process left."""
        with self._db.reading() as connection:
            rows = connection.execute("SELECT id, kind, started FROM operations ORDER BY id")
            return [Operation(*row) for row in rows]

    def release_stale_operations(self) -> list[Operation]:
        """At start-up, before any operation begins: end all that a dead process left.  Their
        blocks become orphans unless something else keeps them."""
        stale = self.operations()
        for operation in stale:
            self.end_operation(operation.id)
        return stale

    # --- References --------------------------------------------------------------------

    def reference(
        self,
        kind: ReferenceKind,
        key: bytes,
        multihashes: Iterable[bytes],
        *,
        durable: bool = False,
    ) -> None:
        """Keep the blocks for (kind, key), besides those it keeps already; on disk on return
        where `durable`, else with the next promise."""
        remaining = iter(multihashes)
        first = True
        while batch := list(islice(remaining, _ROWS_PER_TRANSACTION)) or first:
            first = False
            with self._db.transaction(durable=durable) as connection:
                connection.execute(
                    "INSERT OR IGNORE INTO reference_sets (kind, key) VALUES (?, ?)",
                    (int(kind), key),
                )
                (set_id,) = connection.execute(
                    "SELECT id FROM reference_sets WHERE kind = ? AND key = ? AND released = 0",
                    (int(kind), key),
                ).fetchone()
                if batch is not True:
                    connection.executemany(
                        "INSERT OR IGNORE INTO block_references (multihash, set_id) VALUES (?, ?)",
                        ((multihash, set_id) for multihash in batch),
                    )

    def release(self, kind: ReferenceKind, key: bytes) -> None:
        """Keep nothing for (kind, key) any more; what nobody else keeps becomes an orphan."""
        with self._db.transaction() as connection:
            mark_released(connection, kind, key)
        self.finish_releases()

    def finish_releases(self) -> None:
        """Delete the rows of released sets, in steps that let others in between.  Also due
        at start-up: a dead process may have left some."""
        finished = False
        while not finished:
            with self._db.transaction(durable=False) as connection:
                finished = _delete_released(connection)

    def referenced(self, multihashes: Sequence[bytes]) -> list[bool]:
        """For each multihash whether anything keeps it."""
        with self._db.reading() as connection:
            return [
                connection.execute(
                    "SELECT 1 FROM block_references JOIN reference_sets ON id = set_id"
                    " WHERE multihash = ? AND released = 0 LIMIT 1",
                    (multihash,),
                ).fetchone()
                is not None
                for multihash in multihashes
            ]

    def unreferenced(self, multihashes: Sequence[bytes]) -> list[bytes]:
        """Those of the multihashes that nothing keeps."""
        kept = self.referenced(multihashes)
        return [multihash for multihash, keep in zip(multihashes, kept, strict=True) if not keep]

    def references_of(self, multihash: bytes) -> list[tuple[ReferenceKind, bytes]]:
        """What keeps the block: (kind, key) of each reference."""
        with self._db.reading() as connection:
            rows = connection.execute(
                "SELECT kind, key FROM block_references JOIN reference_sets ON id = set_id"
                " WHERE multihash = ? AND released = 0",
                (multihash,),
            )
            return [(ReferenceKind(kind), key) for kind, key in rows]

    def referenced_by(self, kind: ReferenceKind, key: bytes) -> list[bytes]:
        """The multihashes that (kind, key) keeps."""
        with self._db.reading() as connection:
            rows = connection.execute(
                "SELECT multihash FROM block_references JOIN reference_sets ON id = set_id"
                " WHERE kind = ? AND key = ? AND released = 0",
                (int(kind), key),
            )
            return [multihash for (multihash,) in rows]

    # --- Orphans -----------------------------------------------------------------------

    def orphans(self, store: BlockStore) -> Iterator[bytes]:
        """The multihashes in the store that nothing keeps, as found while walking it."""
        stored = store.multihashes()
        while batch := list(islice(stored, 1024)):
            yield from self.unreferenced(batch)

    def sweep(self, store: BlockStore, multihashes: Sequence[bytes]) -> int:
        """Delete those of the blocks that nothing keeps (asked again, under the lock); returns
        how many were deleted or already gone.  Deletes nothing between a rebuild and
        `references_restored`."""
        swept = 0
        if self._counter(UNVERIFIED):
            return swept
        for start in range(0, len(multihashes), _SWEEP_BLOCKS):
            batch = multihashes[start : start + _SWEEP_BLOCKS]
            with self._db.transaction(durable=False):
                orphans = self.unreferenced(batch)
                store.delete_many([CID.v1(RAW, multihash) for multihash in orphans])
            swept += len(orphans)
        return swept

    @property
    def references_missing(self) -> bool:
        """After a rebuild, until `references_restored`: the references are not all there."""
        return bool(self._counter(UNVERIFIED))

    def references_restored(self) -> None:
        """After a rebuild: the references of all pins and slots are there again."""
        with self._db.transaction() as connection:
            connection.execute("DELETE FROM counters WHERE name = ?", (UNVERIFIED,))

    # --- Counters ----------------------------------------------------------------------

    def _counter(self, name: str) -> int:
        with self._db.reading() as connection:
            row = connection.execute(
                "SELECT value FROM counters WHERE name = ?", (name,)
            ).fetchone()
        return row[0] if row else 0

    def _raise_counter(self, name: str, floor: int) -> None:
        with self._db.transaction() as connection:
            connection.execute(
                "INSERT INTO counters (name, value) VALUES (?, ?) ON CONFLICT (name)"
                " DO UPDATE SET value = max(value, excluded.value)",
                (name, floor),
            )


def mark_released(connection: sqlite3.Connection, kind: ReferenceKind, key: bytes) -> None:
    """Within a transaction: (kind, key) keeps nothing from its commit on."""
    connection.execute(
        "UPDATE reference_sets SET released = 1 WHERE kind = ? AND key = ? AND released = 0",
        (int(kind), key),
    )


def kept_for(connection: sqlite3.Connection, kind: ReferenceKind) -> list[bytes]:
    """Within a transaction: the keys of the kind that keep something."""
    rows = connection.execute(
        "SELECT key FROM reference_sets WHERE kind = ? AND released = 0", (int(kind),)
    )
    return [key for (key,) in rows]


def _delete_released(connection: sqlite3.Connection) -> bool:
    """Within a transaction: delete rows of released sets, so many at most; whether none are
    left."""
    left = _ROWS_PER_TRANSACTION
    while left > 0:
        row = connection.execute(
            "SELECT id FROM reference_sets WHERE released = 1 LIMIT 1"
        ).fetchone()
        if row is None:
            return True
        deleted = connection.execute(
            "DELETE FROM block_references WHERE (multihash, set_id) IN"
            " (SELECT multihash, set_id FROM block_references WHERE set_id = ? LIMIT ?)",
            (row[0], left),
        ).rowcount
        if deleted < left:
            connection.execute("DELETE FROM reference_sets WHERE id = ?", row)
        left -= deleted + 1
    return False
