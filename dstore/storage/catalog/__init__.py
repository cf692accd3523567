"""The catalog: what this node knows beside the blocks, in one SQLite file.

Synchronous and safe to call from several threads; the services run it in `Workers`.  It holds
no bytes of content, and says that a block exists only after the block is durable.  It can be
lost: `rebuild` takes every promise (pins, pin records, held slots) from the record files.

Promises are on disk when their method returns.  What they rest on (references, operations,
reservations, manifests, leases of others) is mostly written without a sync of its own: the log
keeps the order, so that a later commit that is synced has all of it, and there is one before the
record file of a promise.  A power cut before that leaves blocks that nothing keeps: they are swept.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from dstore.errors import CorruptStore
from dstore.limits import MIB, PEERS_KNOWN_MAX
from dstore.storage.catalog.holder import SERIAL, HolderTables
from dstore.storage.catalog.migrations import CATALOG_STEPS
from dstore.storage.catalog.owner import OwnerTables
from dstore.storage.catalog.peers import PeerTables
from dstore.storage.catalog.references import UNVERIFIED
from dstore.storage.database import Database
from dstore.storage.records import (
    RecordFiles,
    RecordKind,
    unpack_held_slot,
    unpack_pin,
    unpack_pin_record,
)
from dstore.storage.rows import (
    Fault,
    HeldSlot,
    ManifestRow,
    Operation,
    PeerRow,
    PinRecordRow,
    PinRow,
    Placement,
    ReferenceKind,
    operation_key,
    pin_key,
    slot_key,
)

__all__ = [
    "Catalog",
    "Fault",
    "HeldSlot",
    "ManifestRow",
    "Operation",
    "PeerRow",
    "PinRecordRow",
    "PinRow",
    "Placement",
    "Rebuilt",
    "ReferenceKind",
    "open_catalog",
    "operation_key",
    "pin_key",
    "slot_key",
]

_REBUILT: Final = "rebuilt"
_VERIFIED_AT_OPEN_BYTES_MAX: Final = 64 * MIB  # about a tenth of a second


@dataclass(frozen=True)
class Rebuilt:
    """What the catalog has after a rebuild, and how many record files could not be read."""

    pins: int
    pin_records: int
    slots: int
    damaged: int


class Catalog(OwnerTables, HolderTables, PeerTables):
    """All tables over one database.  Every method raises StorageFull where the disk is full
    and CorruptStore where the file is damaged."""

    def __init__(
        self,
        database: Database,
        records: RecordFiles | None = None,
        *,
        peers_max: int = PEERS_KNOWN_MAX,
    ) -> None:
        self._db = database
        self._records = records
        self._promises = threading.Lock()
        self._peers_max = peers_max
        self.finish_releases()

    @property
    def created(self) -> bool:
        """Whether `rebuild` is due: the file was not there, or its rebuild never finished."""
        return self._counter(_REBUILT) == 0

    def verify(self) -> None:
        """Read and check the whole file.  Raises CorruptStore."""
        self._db.verify()

    def rebuild(
        self,
        records: RecordFiles,
        *,
        now: float,
        serial_of: Callable[[bytes], int] | None = None,
    ) -> Rebuilt:
        """Take pins, pin records and held slots from the record files; what the catalog
        already has stays unless the files have it newer.

        `serial_of` reads the serial of a lease envelope; serials go on above the highest, and
        above `now` in milliseconds, which no node reaches by counting.  Block references of
        pins and slots are to be made again by the caller, who can read DAGs and segments;
        `sweep` deletes nothing until it has said so with `references_restored`.  Records of a
        newer dstore raise StoreTooNew.
        """
        damaged = 0
        serial = int(now * 1000)
        pins = records.load_all(RecordKind.PIN)
        wishes = records.load_all(RecordKind.PIN_RECORD)
        leases = records.load_all(RecordKind.LEASE)
        for _, packed in pins:
            try:
                self._restore_pin(unpack_pin(packed))
            except CorruptStore:
                damaged += 1
        for _, packed in wishes:
            try:
                self._restore_pin_record(unpack_pin_record(packed))
            except CorruptStore:
                damaged += 1
        for _, packed in leases:
            try:
                slot = unpack_held_slot(packed)
            except CorruptStore:
                damaged += 1
                continue
            self._restore_slot(slot)
            if slot.lease is not None and serial_of is not None:
                serial = max(serial, serial_of(slot.lease))
        rebuilt = Rebuilt(
            pins=len(self.pins()),
            pin_records=len(self.pin_records()),
            slots=len(self.held_slots()),
            damaged=damaged + len(records.damaged),
        )
        self._raise_counter(SERIAL, serial)
        if rebuilt.pins or rebuilt.slots or rebuilt.damaged:
            self._raise_counter(UNVERIFIED, 1)
        self._raise_counter(_REBUILT, 1)
        return rebuilt

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        self._db.close()


def open_catalog(
    path: Path, records: RecordFiles | None = None, *, peers_max: int = PEERS_KNOWN_MAX
) -> Catalog:
    """Open or create the catalog.

    With `records`, pins, pin records and leases are written there as durable files before
    they become rows.  A file that is not too large is checked as a whole.
    Raises CorruptStore, StoreTooNew, StorageFull.
    """
    database = Database(path, CATALOG_STEPS, what="catalog")
    try:
        if path.stat().st_size <= _VERIFIED_AT_OPEN_BYTES_MAX:
            database.verify()
        return Catalog(database, records, peers_max=peers_max)
    except BaseException:
        database.close()
        raise
