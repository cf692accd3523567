"""The catalog: what this node knows beside the blocks, in one SQLite file.

Synchronous and safe to call from several threads; the services run it in `Workers`.  It holds
no bytes of content, and says that a block exists only after the block is durable.  It can be
lost: `rebuild` takes every promise (pins, pin records, held slots) from the record files.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from dstore.limits import PEERS_KNOWN_MAX
from dstore.storage.catalog.holder import HolderTables
from dstore.storage.catalog.migrations import CATALOG_STEPS
from dstore.storage.catalog.owner import OwnerTables
from dstore.storage.catalog.peers import PeerTables
from dstore.storage.catalog.references import ReferenceTables
from dstore.storage.catalog.rows import (
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
from dstore.storage.database import Database
from dstore.storage.records import RecordFiles

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
    "ReferenceKind",
    "open_catalog",
    "operation_key",
    "pin_key",
    "slot_key",
]


class Catalog(ReferenceTables, OwnerTables, HolderTables, PeerTables):
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
        self._peers_max = peers_max

    @property
    def created(self) -> bool:
        """Whether the file did not exist when it was opened: `rebuild` may be due."""
        return self._db.created

    def verify(self) -> None:
        """Read and check the whole file.  Raises CorruptStore."""
        self._db.verify()

    def rebuild(
        self,
        records: RecordFiles,
        *,
        now: float,
        serial_of: Callable[[bytes], int] | None = None,
    ) -> None:
        """Take pins, pin records and held slots from the record files; what the catalog
        already has stays unless the files have it newer.

        `serial_of` reads the serial of a lease envelope; serials go on above the highest, and
        above `now` in milliseconds, which no node reaches by counting.  Block references of
        the slots are to be made again by the caller, who can read segments.
        """
        raise NotImplementedError

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        self._db.close()


def open_catalog(
    path: Path, records: RecordFiles | None = None, *, peers_max: int = PEERS_KNOWN_MAX
) -> Catalog:
    """Open or create the catalog.

    With `records`, pins, pin records and leases are written there as durable files before
    they become rows.  Raises CorruptStore, StoreTooNew, StorageFull.
    """
    return Catalog(Database(path, CATALOG_STEPS, what="catalog"), records, peers_max=peers_max)
