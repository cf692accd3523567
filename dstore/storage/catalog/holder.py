"""What a holder keeps about the data of others: slots reserved, held and in the trash, and the
newest pin record of each owner and root.

A slot is keyed by (segment, slot, owner): two owners of equal data each get their lease, and
the blocks stay until both are done.  Where record files are given, a promise is a durable
file before it is a row.
"""

from __future__ import annotations

import hashlib
import sqlite3
import threading
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from operator import eq
from typing import Final

from dstore.core.cid import CID
from dstore.errors import MalformedBlock, NotFoundError
from dstore.storage.catalog.owner import forget_manifests_with, root_key
from dstore.storage.catalog.references import ReferenceTables, mark_released
from dstore.storage.database import Database
from dstore.storage.records import (
    RecordFiles,
    RecordKind,
    held_slot_key,
    pack_held_slot,
    pack_pin_record,
    pin_record_key,
)
from dstore.storage.rows import (
    HeldSlot,
    PinRecordRow,
    ReferenceKind,
    SlotState,
    SlotTotal,
    slot_key,
)

_SLOT_COLUMNS: Final = (
    "segment, slot, owner, root, manifest, bytes, state, lease, expires, updated, missing"
)
_SELECT_SLOTS: Final = f"SELECT {_SLOT_COLUMNS} FROM held_slots"  # noqa: S608 (a constant)
_STATES: Final[dict[str, SlotState]] = {"reserved": "reserved", "held": "held", "trash": "trash"}
SERIAL: Final = "serial"


class HolderTables(ReferenceTables):
    """The part of the catalog that the holder's side uses."""

    _db: Database
    _records: RecordFiles | None
    # Held from reading a row to writing the record file and the row that follow from it.
    _promises: threading.Lock

    # --- Slots -------------------------------------------------------------------------

    def reserve_slot(self, row: HeldSlot) -> None:
        """Remember a slot, normally in state `reserved`, before its bytes move.  One that is
        already there for the same owner is replaced, unless it is held: then it stays."""
        with self._promises, self._db.transaction(durable=False) as connection:
            _put_slot(connection, row, unless_held=True)

    def touch_reservation(self, segment: CID, slot: int, now: float, missing: int) -> None:
        """Bytes are coming, at most `missing` are still to come: the reservation's idle time
        starts again."""
        with self._db.transaction(durable=False) as connection:
            connection.execute(
                "UPDATE held_slots SET updated = ?, missing = min(missing, ?)"
                " WHERE segment = ? AND slot = ? AND state = 'reserved'",
                (now, missing, segment.binary, slot),
            )

    def hold_slot(
        self,
        segment: CID,
        slot: int,
        lease: bytes,
        expires: float,
        now: float,
        owner: bytes | None = None,
    ) -> None:
        """The slot is complete and durable, and `lease` promises it until `expires`; also used
        to renew.  `owner` None means the owner whose row changed last.

        Raises NotFoundError where the slot was not reserved.
        """
        with self._promises:
            known = self.held_slot(segment, slot, owner)
            if known is None:
                raise NotFoundError(f"slot {slot} of {segment} was never reserved here")
            held = replace(known, state="held", lease=lease, expires=expires, updated=now)
            self._promise(replace(held, missing=0))

    def held_slot(self, segment: CID, slot: int, owner: bytes | None = None) -> HeldSlot | None:
        """The slot's row, in whatever state; `owner` None means the row that changed last."""
        with self._db.reading() as connection:
            row = connection.execute(
                f"{_SELECT_SLOTS} WHERE segment = ? AND slot = ? AND (? IS NULL OR owner = ?)"
                " ORDER BY updated DESC LIMIT 1",
                (segment.binary, slot, owner, owner),
            ).fetchone()
        return _slot(row) if row else None

    def held_slots(self, segment: CID | None = None) -> list[HeldSlot]:
        """All rows in whatever state, of one segment or of all."""
        with self._db.reading() as connection:
            if segment is None:
                rows = connection.execute(f"{_SELECT_SLOTS} ORDER BY segment, slot").fetchall()
            else:
                rows = connection.execute(
                    f"{_SELECT_SLOTS} WHERE segment = ? ORDER BY slot", (segment.binary,)
                ).fetchall()
        return [_slot(row) for row in rows]

    def release_slot(self, row: HeldSlot, now: float) -> bool:
        """Into the trash (a reservation too), where its blocks stay until `delete_slot`; False
        where the row has changed since it was read: what was decided of it may be wrong."""
        with self._promises:
            if self.held_slot(row.segment, row.slot, row.owner) != row:
                return False
            self._promise(replace(row, state="trash", updated=now, missing=0))
            return True

    def _promise(self, row: HeldSlot) -> None:
        """The row as a durable file, then in the table."""
        if self._records is not None:
            key = held_slot_key(row.segment, row.slot, row.owner)
            self._records.put(RecordKind.LEASE, key, pack_held_slot(row))
        with self._db.transaction() as connection:
            _put_slot(connection, row, unless_held=False)

    def _restore_slot(self, row: HeldSlot) -> None:
        """From its file, where the table has none or an older one; synced by whoever is next."""
        known = self.held_slot(row.segment, row.slot, row.owner)
        if known is None or known.updated < row.updated:
            with self._db.transaction(durable=False) as connection:
                _put_slot(connection, row, unless_held=False)

    def delete_slot(self, segment: CID, slot: int, owner: bytes | None = None) -> None:
        """Forget the slot for the owner (None: all); with the last owner its block references
        are released."""
        self._delete(segment, slot, lambda row: owner in (None, row.owner))

    def _delete(self, segment: CID, slot: int, which: Callable[[HeldSlot], bool]) -> bool:
        """Forget the rows of the slot that `which` picks; whether there were any."""
        with self._promises, self._db.transaction() as connection:
            # Read in the transaction: a fragment that came a moment ago keeps its reservation.
            rows = connection.execute(
                f"{_SELECT_SLOTS} WHERE segment = ? AND slot = ?", (segment.binary, slot)
            ).fetchall()
            doomed = [row.owner for row in map(_slot, rows) if which(row)]
            connection.executemany(
                "DELETE FROM held_slots WHERE segment = ? AND slot = ? AND owner = ?",
                [(segment.binary, slot, one) for one in doomed],
            )
            if len(doomed) == len(rows):
                mark_released(connection, ReferenceKind.SLOT, slot_key(segment, slot))
            forget_manifests_with(connection, segment)
            if self._records is not None:  # before the commit: none outlives its row
                for one in doomed:
                    self._records.delete(RecordKind.LEASE, held_slot_key(segment, slot, one))
        self.finish_releases()
        return bool(doomed)

    def reserved_bytes(self) -> int:
        """Bytes promised to slots that are not complete yet, and still to come."""
        return self._total("SELECT sum(missing) FROM held_slots WHERE state = 'reserved'")

    def held_bytes(self) -> int:
        """Bytes of the slots under lease."""
        return self._total("SELECT sum(bytes) FROM held_slots WHERE state = 'held'")

    def slot_totals(self) -> list[SlotTotal]:
        """How many slots there are in each state, and their bytes; states without are left
        out."""
        with self._db.reading() as connection:
            rows = connection.execute(
                "SELECT state, count(*), sum(bytes) FROM held_slots GROUP BY state ORDER BY state"
            ).fetchall()
        return [SlotTotal(*row) for row in rows]

    def _total(self, query: str) -> int:
        with self._db.reading() as connection:
            total: int | None = connection.execute(query).fetchone()[0]
        return total or 0  # NULL where there are no rows

    def expire_reservations(self, before: float) -> list[HeldSlot]:
        """Delete the reservations untouched since `before`, with their block references;
        returns them."""
        return self._delete_all("reserved", before)

    def empty_trash(self, before: float) -> list[HeldSlot]:
        """Delete the slots in the trash since before `before`, with their block references;
        returns them."""
        return self._delete_all("trash", before)

    def _delete_all(self, state: SlotState, before: float) -> list[HeldSlot]:
        with self._db.reading() as connection:
            rows = connection.execute(
                f"{_SELECT_SLOTS} WHERE state = ? AND updated < ?", (state, before)
            ).fetchall()
        slots = [_slot(row) for row in rows]
        # One that has changed meanwhile (was finished, say) stays.
        return [row for row in slots if self._delete(row.segment, row.slot, partial(eq, row))]

    def held_roots(self) -> list[CID]:
        """The roots of which a slot is held: what to provide in the DHT."""
        return self._distinct_held("SELECT DISTINCT root FROM held_slots WHERE state = 'held'")

    def held_segments(self) -> list[CID]:
        """The segments of which a slot is held: what to provide in the DHT."""
        return self._distinct_held("SELECT DISTINCT segment FROM held_slots WHERE state = 'held'")

    def _distinct_held(self, query: str) -> list[CID]:
        with self._db.reading() as connection:
            return [CID.from_bytes(binary) for (binary,) in connection.execute(query)]

    # --- Pin records -------------------------------------------------------------------

    def put_pin_record(
        self, owner: bytes, root: CID, seq: int, expires: float, envelope: bytes
    ) -> bool:
        """Keep the record where it is the newest of (owner, root) by (seq, sha256(envelope)).

        True where it is kept (or is the one already kept), False where a newer one is known.
        An older one still extends `keep_until`.  Raises MalformedBlock for a `seq` outside
        0 to 2**63 - 1.
        """
        if not 0 <= seq < 1 << 63:
            raise MalformedBlock(f"a pin record with seq {seq}: at most 2**63 - 1")
        with self._promises:
            known = self.pin_record(owner, root)
            row = PinRecordRow(owner, root, seq, expires, envelope, keep_until=expires)
            newer = True
            if known is not None:
                newer = _order(seq, envelope) >= _order(known.seq, known.envelope)
                keep_until = max(expires, known.keep_until)
                row = replace(row if newer else known, keep_until=keep_until)
            if row != known:
                self._keep_record(row)
            return newer

    def _keep_record(self, row: PinRecordRow) -> None:
        """The row as a durable file, then in the table."""
        if self._records is not None:
            record_key = pin_record_key(row.owner, root_key(row.root))
            self._records.put(RecordKind.PIN_RECORD, record_key, pack_pin_record(row))
        self._insert_pin_record(row)

    def _restore_pin_record(self, row: PinRecordRow) -> None:
        """From its file, where the table has none or an older one; synced by whoever is next."""
        known = self.pin_record(row.owner, row.root)
        if known is not None:
            keep_until = max(known.keep_until, row.keep_until)
            newer = _order(known.seq, known.envelope) < _order(row.seq, row.envelope)
            row = replace(row if newer else known, keep_until=keep_until)
        self._insert_pin_record(row, durable=False)

    def _insert_pin_record(self, row: PinRecordRow, *, durable: bool = True) -> None:
        with self._db.transaction(durable=durable) as connection:
            connection.execute(
                "INSERT OR REPLACE INTO pin_records"
                " (owner, root_key, root, seq, expires, envelope, keep_until)"
                " VALUES (?, ?, ?, ?, ?, ?, ?)",
                (
                    row.owner,
                    root_key(row.root),
                    row.root.binary,
                    row.seq,
                    row.expires,
                    row.envelope,
                    row.keep_until,
                ),
            )

    def pin_record(self, owner: bytes, root: CID) -> PinRecordRow | None:
        """The newest record of (owner, root), perhaps a tombstone, or None."""
        with self._db.reading() as connection:
            row = connection.execute(
                "SELECT owner, root, seq, expires, envelope, keep_until FROM pin_records"
                " WHERE owner = ? AND root_key = ?",
                (owner, root_key(root)),
            ).fetchone()
        return _pin_record(row) if row else None

    def pin_records(self) -> list[PinRecordRow]:
        """The newest records of all owners and roots."""
        with self._db.reading() as connection:
            rows = connection.execute(
                "SELECT owner, root, seq, expires, envelope, keep_until FROM pin_records"
            ).fetchall()
        return [_pin_record(row) for row in rows]

    def pin_records_named(self, root: CID, count: int) -> list[PinRecordRow]:
        """The newest records of at most `count` owners of a root, first of those of whom a slot
        of it is held here: a record alone costs whoever invents owners nothing."""
        with self._db.reading() as connection:
            rows = connection.execute(
                "SELECT owner, root, seq, expires, envelope, keep_until FROM pin_records"
                " WHERE root_key = ? ORDER BY EXISTS (SELECT 1 FROM held_slots WHERE"
                " held_slots.owner = pin_records.owner AND held_slots.root = pin_records.root"
                " AND state = 'held') DESC, owner LIMIT ?",
                (root_key(root), count),
            ).fetchall()
        return [_pin_record(row) for row in rows]

    def forget_pin_records(self, before: float) -> int:
        """Drop the tombstones that no older record can outlive: `keep_until` < `before` (now
        less the allowed clock skew).  Returns how many."""
        with self._promises:
            doomed = [row for row in self.pin_records() if row.keep_until < before]
            if self._records is not None:
                for row in doomed:
                    key = pin_record_key(row.owner, root_key(row.root))
                    self._records.delete(RecordKind.PIN_RECORD, key)
            with self._db.transaction() as connection:
                connection.executemany(
                    "DELETE FROM pin_records WHERE owner = ? AND root_key = ?",
                    [(row.owner, root_key(row.root)) for row in doomed],
                )
        return len(doomed)

    # --- Serials -----------------------------------------------------------------------

    def next_serial(self) -> int:
        """A lease serial that was never given out before, restarts included.

        The commit puts on disk what the lease will rest on, before its file is there."""
        with self._db.transaction() as connection:
            serial: int = connection.execute(
                "INSERT INTO counters (name, value) VALUES (?, 1) ON CONFLICT (name)"
                " DO UPDATE SET value = value + 1 RETURNING value",
                (SERIAL,),
            ).fetchone()[0]
        return serial


def _order(seq: int, envelope: bytes) -> tuple[int, bytes]:
    return seq, hashlib.sha256(envelope).digest()


def _put_slot(connection: sqlite3.Connection, row: HeldSlot, *, unless_held: bool) -> None:
    connection.execute(
        f"INSERT INTO held_slots ({_SLOT_COLUMNS})"  # noqa: S608 (a constant)
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
        " ON CONFLICT (segment, slot, owner) DO UPDATE SET root = excluded.root,"
        " manifest = excluded.manifest, bytes = excluded.bytes, state = excluded.state,"
        " lease = excluded.lease, expires = excluded.expires, updated = excluded.updated,"
        " missing = excluded.missing WHERE state != 'held' OR NOT ?",
        (
            row.segment.binary,
            row.slot,
            row.owner,
            row.root.binary,
            row.manifest.binary,
            row.bytes,
            row.state,
            row.lease,
            row.expires,
            row.updated,
            row.missing,
            unless_held,
        ),
    )


def _slot(
    row: tuple[bytes, int, bytes, bytes, bytes, int, str, bytes | None, float, float, int],
) -> HeldSlot:
    segment, slot, owner, root, manifest, size, state, lease, expires, updated, missing = row
    return HeldSlot(
        segment=CID.from_bytes(segment),
        slot=slot,
        owner=owner,
        root=CID.from_bytes(root),
        manifest=CID.from_bytes(manifest),
        bytes=size,
        state=_STATES[state],
        lease=lease,
        expires=expires,
        updated=updated,
        missing=missing,
    )


def _pin_record(row: tuple[bytes, bytes, int, float, bytes, float]) -> PinRecordRow:
    owner, root, seq, expires, envelope, keep_until = row
    return PinRecordRow(owner, CID.from_bytes(root), seq, expires, envelope, keep_until)
