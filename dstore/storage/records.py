"""Pins, pin records and leases as small durable files beside the catalog.

One file per record, replaced atomically, synced before `put` returns, checked by a digest when
read.  It knows how a row is packed, not what a signed envelope says inside.

A file is `dstore-record 1`, a newline, the SHA-256 of the rest, and the rest: a MessagePack
pair of key and record.  Rows are MessagePack arrays that start with their own version.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from dstore.core.cid import CID
from dstore.errors import CorruptStore, InvalidCid, NodeError, StoreTooNew
from dstore.limits import RECORD_FILE_BYTES_MAX
from dstore.storage.durable import DurableFiles, node_error, sync_directory
from dstore.storage.formatfile import check_format, write_format
from dstore.storage.rows import HeldSlot, PinMode, PinRecordRow, PinRow, SlotState

T = TypeVar("T")

_FORMAT_NAME: Final = "dstore records"
_FORMAT: Final = 2  # in 1 every shard stood there from the start
_MAGIC: Final = b"dstore-record 1\n"
_ROW_VERSION: Final = 1


class RecordKind(Enum):
    """What a record file holds; the value names its directory."""

    PIN = "pins"
    PIN_RECORD = "pin-records"
    LEASE = "leases"


class RecordFiles:
    """A directory of durable records, by kind and key.  Safe to call from several threads."""

    def __init__(self, directory: Path) -> None:
        """Open or create the directory; sweeps what a killed process left half written.
        Raises CorruptStore, StoreTooNew."""
        self._directory = directory
        self.damaged: set[Path] = set()  # found by `load_all`
        self._shards: set[str] = set()  # that are known to be there, and on disk
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        fresh = not check_format(directory, _FORMAT_NAME, _FORMAT)
        if fresh:
            for kind in RecordKind:
                (directory / kind.value).mkdir(mode=0o700, exist_ok=True)
        self._durable = DurableFiles(directory / "tmp")
        if fresh:
            write_format(directory, _FORMAT_NAME, _FORMAT)

    def _path(self, kind: RecordKind, key: bytes) -> str:
        name = hashlib.sha256(key).hexdigest()
        return f"{self._directory}/{kind.value}/{name[-2:]}/{name}"

    def put(self, kind: RecordKind, key: bytes, record: bytes) -> None:
        """Write or replace the record; durable on return.  Raises StorageFull, and NodeError
        where it is larger than RECORD_FILE_BYTES_MAX."""
        body = msgspec.msgpack.encode((key, record))
        content = b"".join((_MAGIC, hashlib.sha256(body).digest(), body))
        if len(content) > RECORD_FILE_BYTES_MAX:
            raise NodeError(
                f"a record of {len(content)} bytes; at most {RECORD_FILE_BYTES_MAX} are kept"
            )
        path = self._path(kind, key)
        self._make_shard(path.rpartition("/")[0])
        self._durable.write([(path, content)])

    def _make_shard(self, shard: str) -> None:
        """Make a shard's directory with the first record in it: most have none for long."""
        if shard in self._shards:
            return
        try:
            Path(shard).mkdir(mode=0o700, exist_ok=True)
            sync_directory(Path(shard).parent)
        except OSError as error:
            raise node_error(error, f"making {shard}") from error
        self._shards.add(shard)

    def delete(self, kind: RecordKind, key: bytes) -> None:
        """Remove the record where it exists; it does not come back after a power cut.  Raises
        NodeError."""
        path = Path(self._path(kind, key))
        try:
            path.unlink(missing_ok=True)
            sync_directory(path.parent)
        except FileNotFoundError:  # no record of this shard was ever kept
            return
        except OSError as error:
            raise node_error(error, f"removing {path}") from error

    def load_all(self, kind: RecordKind) -> Iterator[tuple[bytes, bytes]]:
        """(key, record) of every whole record, one file in memory at a time.  Damaged files
        are passed over and remembered in `damaged`."""
        shards = [e for e in os.scandir(self._directory / kind.value) if e.is_dir()]
        for shard in sorted(shards, key=_name):
            for entry in sorted(os.scandir(shard.path), key=_name):
                path = Path(entry.path)
                try:
                    yield self._load(path)
                except FileNotFoundError:  # deleted meanwhile
                    continue
                except (OSError, CorruptStore):
                    self.damaged.add(path)

    def _load(self, path: Path) -> tuple[bytes, bytes]:
        with path.open("rb") as file:
            content = file.read(RECORD_FILE_BYTES_MAX + 1)
        start = len(_MAGIC) + hashlib.sha256().digest_size
        digest, body = content[len(_MAGIC) : start], content[start:]
        if not content.startswith(_MAGIC) or hashlib.sha256(body).digest() != digest:
            raise CorruptStore(f"{path} is damaged")
        stored = _decode(body, _Stored)
        return stored.key, stored.record

    def close(self) -> None:
        """Release the directory; a second call does nothing."""
        self._durable.close()


def _name(entry: os.DirEntry[str]) -> str:
    return entry.name


def _decode(packed: bytes, shape: type[T]) -> T:
    try:
        return msgspec.msgpack.decode(packed, type=shape)
    except msgspec.MsgspecError as error:
        raise CorruptStore(f"a record does not decode: {error}") from error


def _cid(binary: bytes) -> CID:
    try:
        return CID.from_bytes(binary)
    except InvalidCid as error:
        raise CorruptStore(f"a record names no CID: {error}") from error


# --- Rows ------------------------------------------------------------------------------


class _Stored(msgspec.Struct, array_like=True, frozen=True):
    """A file's (key, record)."""

    key: bytes
    record: bytes


class _Versioned(msgspec.Struct, array_like=True, frozen=True):
    """The start of every row: fields beyond it are the business of its version."""

    version: int


class _Pin(msgspec.Struct, array_like=True, frozen=True):
    version: int
    root: bytes
    mode: PinMode
    name: str | None
    created: float
    expires: float | None
    k: int | None
    m: int | None
    manifest: bytes | None


class _PinRecord(msgspec.Struct, array_like=True, frozen=True):
    version: int
    owner: bytes
    root: bytes
    seq: int
    expires: float
    envelope: bytes
    keep_until: float


class _HeldSlot(msgspec.Struct, array_like=True, frozen=True):
    version: int
    segment: bytes
    slot: int
    owner: bytes
    root: bytes
    manifest: bytes
    size: int
    state: SlotState
    lease: bytes | None
    expires: float
    updated: float


def _decode_row(packed: bytes, shape: type[T]) -> T:
    if _decode(packed, _Versioned).version > _ROW_VERSION:
        raise StoreTooNew("a record was written by a newer dstore: install it")
    return _decode(packed, shape)


def pack_pin(pin: PinRow) -> bytes:
    """The pin as it stands in its file."""
    return msgspec.msgpack.encode(
        _Pin(
            version=_ROW_VERSION,
            root=pin.root.binary,
            mode=pin.mode,
            name=pin.name,
            created=pin.created,
            expires=pin.expires,
            k=pin.k,
            m=pin.m,
            manifest=pin.manifest.binary if pin.manifest else None,
        )
    )


def unpack_pin(packed: bytes) -> PinRow:
    """The reverse of `pack_pin`.  Raises CorruptStore, StoreTooNew."""
    row = _decode_row(packed, _Pin)
    return PinRow(
        root=_cid(row.root),
        mode=row.mode,
        name=row.name,
        created=row.created,
        expires=row.expires,
        k=row.k,
        m=row.m,
        manifest=None if row.manifest is None else _cid(row.manifest),
    )


def pin_record_key(owner: bytes, root_key: bytes) -> bytes:
    """The record key of (owner, CIDv1 form of the root)."""
    return msgspec.msgpack.encode((owner, root_key))


def pack_pin_record(row: PinRecordRow) -> bytes:
    """The pin record as it stands in its file, its envelope verbatim."""
    return msgspec.msgpack.encode(
        _PinRecord(
            version=_ROW_VERSION,
            owner=row.owner,
            root=row.root.binary,
            seq=row.seq,
            expires=row.expires,
            envelope=row.envelope,
            keep_until=row.keep_until,
        )
    )


def unpack_pin_record(packed: bytes) -> PinRecordRow:
    """The reverse of `pack_pin_record`.  Raises CorruptStore, StoreTooNew."""
    row = _decode_row(packed, _PinRecord)
    return PinRecordRow(
        owner=row.owner,
        root=_cid(row.root),
        seq=row.seq,
        expires=row.expires,
        envelope=row.envelope,
        keep_until=row.keep_until,
    )


def held_slot_key(segment: CID, slot: int, owner: bytes) -> bytes:
    """The record key of (segment, slot, owner)."""
    return msgspec.msgpack.encode((segment.binary, slot, owner))


def pack_held_slot(row: HeldSlot) -> bytes:
    """The slot as it stands in its file, its lease verbatim."""
    return msgspec.msgpack.encode(
        _HeldSlot(
            version=_ROW_VERSION,
            segment=row.segment.binary,
            slot=row.slot,
            owner=row.owner,
            root=row.root.binary,
            manifest=row.manifest.binary,
            size=row.bytes,
            state=row.state,
            lease=row.lease,
            expires=row.expires,
            updated=row.updated,
        )
    )


def unpack_held_slot(packed: bytes) -> HeldSlot:
    """The reverse of `pack_held_slot`.  Raises CorruptStore, StoreTooNew."""
    row = _decode_row(packed, _HeldSlot)
    return HeldSlot(
        segment=_cid(row.segment),
        slot=row.slot,
        owner=row.owner,
        root=_cid(row.root),
        manifest=_cid(row.manifest),
        bytes=row.size,
        state=row.state,
        lease=row.lease,
        expires=row.expires,
        updated=row.updated,
    )
