"""Pins, pin records and leases as small durable files beside the catalog.

One file per record, replaced atomically, synced before `put` returns, checked by a digest when
read.  It knows how a row is packed, not what a signed envelope says inside.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum
from pathlib import Path

from dstore.core.cid import CID
from dstore.storage.catalog.rows import HeldSlot, PinRecordRow, PinRow


class RecordKind(Enum):
    """What a record file holds; the value names its directory."""

    PIN = "pins"
    PIN_RECORD = "pin-records"
    LEASE = "leases"


class RecordFiles:
    """A directory of durable records, by kind and key."""

    def __init__(self, directory: Path) -> None:
        """Open or create the directory; sweeps what a killed process left half written."""

    def put(self, kind: RecordKind, key: bytes, record: bytes) -> None:
        """Write or replace the record; durable on return.  Raises StorageFull."""

    def delete(self, kind: RecordKind, key: bytes) -> None:
        """Remove the record where it exists."""

    def load_all(self, kind: RecordKind) -> Iterator[tuple[bytes, bytes]]:
        """(key, record) of every whole record; damaged files are passed over and counted in
        `damaged`."""
        raise NotImplementedError
