"""Record files: durable, replaced whole, damage found, and the rows' own encoding."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dstore.core.cid import CID, DAG_CBOR, DAG_PB
from dstore.errors import CorruptStore, NodeError, StoreTooNew
from dstore.limits import RECORD_BYTES_MAX, RECORD_FILE_BYTES_MAX
from dstore.storage import records
from dstore.storage.records import (
    RecordFiles,
    RecordKind,
    pack_held_slot,
    pack_pin,
    pack_pin_record,
    unpack_held_slot,
    unpack_pin,
    unpack_pin_record,
)
from dstore.storage.rows import HeldSlot, PinRecordRow, PinRow

cids = st.builds(
    lambda data, codec, version: CID.of(DAG_PB if version == 0 else codec, data, version=version),
    st.binary(max_size=8),
    st.sampled_from([DAG_PB, DAG_CBOR]),
    st.sampled_from([0, 1]),
)
times = st.floats(min_value=0, max_value=1e11)
pins = st.builds(
    PinRow,
    root=cids,
    mode=st.sampled_from(["local", "protected"]),
    name=st.none() | st.text(max_size=20),
    created=times,
    expires=st.none() | times,
    k=st.none() | st.integers(1, 255),
    m=st.none() | st.integers(1, 255),
    manifest=st.none() | cids,
)
pin_records = st.builds(
    PinRecordRow,
    owner=st.binary(min_size=32, max_size=36),
    root=cids,
    seq=st.integers(0, 2**63 - 1),
    expires=times,
    envelope=st.binary(max_size=100),
    keep_until=times,
)
held_slots = st.builds(
    HeldSlot,
    segment=cids,
    slot=st.integers(0, 254),
    owner=st.binary(min_size=32, max_size=36),
    root=cids,
    manifest=cids,
    bytes=st.integers(0, 2**40),
    state=st.sampled_from(["reserved", "held", "trash"]),
    lease=st.none() | st.binary(max_size=100),
    expires=times,
    updated=times,
)


def test_what_is_deleted_is_off_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = RecordFiles(tmp_path)
    files.put(RecordKind.PIN, b"a", b"record")
    (path,) = (tmp_path / "pins").glob("*/*")
    synced: list[tuple[Path, bool]] = []
    monkeypatch.setattr(
        records, "sync_directory", lambda directory: synced.append((directory, path.exists()))
    )
    files.delete(RecordKind.PIN, b"a")
    assert synced == [(path.parent, False)]
    files.close()


@given(pins, pin_records, held_slots)
def test_rows_come_back_as_they_were(pin: PinRow, wish: PinRecordRow, slot: HeldSlot) -> None:
    assert unpack_pin(pack_pin(pin)) == pin
    assert unpack_pin_record(pack_pin_record(wish)) == wish
    assert unpack_held_slot(pack_held_slot(slot)) == slot


@given(st.binary(max_size=200))
def test_rubbish_is_corrupt(packed: bytes) -> None:
    for unpack in (unpack_pin, unpack_pin_record, unpack_held_slot):
        with pytest.raises((CorruptStore, StoreTooNew)):
            unpack(packed)


def test_a_row_of_a_newer_dstore_is_refused() -> None:
    with pytest.raises(StoreTooNew):
        unpack_pin(msgspec.msgpack.encode((2, "of another shape")))


def test_records_are_kept_replaced_and_deleted(tmp_path: Path) -> None:
    files = RecordFiles(tmp_path)
    files.put(RecordKind.LEASE, b"a", b"first")
    files.put(RecordKind.LEASE, b"a", b"second")
    files.put(RecordKind.LEASE, b"b", bytes(RECORD_BYTES_MAX))
    files.put(RecordKind.PIN, b"a", b"a pin")
    files.delete(RecordKind.LEASE, b"never there")
    files.close()
    files = RecordFiles(tmp_path)
    assert dict(files.load_all(RecordKind.LEASE)) == {b"a": b"second", b"b": bytes(16384)}
    assert dict(files.load_all(RecordKind.PIN)) == {b"a": b"a pin"}
    assert dict(files.load_all(RecordKind.PIN_RECORD)) == {}
    files.delete(RecordKind.LEASE, b"a")
    assert dict(files.load_all(RecordKind.LEASE)) == {b"b": bytes(16384)}
    assert files.damaged == set()
    files.close()


def test_a_directory_is_made_with_the_first_record_in_it(tmp_path: Path) -> None:
    files = RecordFiles(tmp_path)
    assert [*tmp_path.glob("*/*/")] == []
    files.put(RecordKind.PIN, b"a", b"a pin")
    assert len([*tmp_path.glob("*/*/")]) == 1
    assert dict(files.load_all(RecordKind.PIN)) == {b"a": b"a pin"}
    files.close()


def test_damaged_files_are_passed_over_and_remembered(tmp_path: Path) -> None:
    files = RecordFiles(tmp_path)
    for number in range(6):
        files.put(RecordKind.LEASE, bytes([number]), b"lease %d" % number)
    paths = sorted(path for path in (tmp_path / "leases").rglob("*") if path.is_file())
    paths[0].write_bytes(b"")
    paths[1].write_bytes(paths[1].read_bytes()[:-1])
    paths[2].write_bytes(paths[2].read_bytes()[:-1] + b"?")
    paths[3].write_bytes(bytes(RECORD_FILE_BYTES_MAX * 2))
    assert len(list(files.load_all(RecordKind.LEASE))) == 2
    assert files.damaged == set(paths[:4])
    files.close()


def test_an_oversized_record_is_refused(tmp_path: Path) -> None:
    files = RecordFiles(tmp_path)
    with pytest.raises(NodeError, match="at most"):
        files.put(RecordKind.LEASE, b"a", bytes(RECORD_FILE_BYTES_MAX))
    files.close()


def test_a_newer_directory_is_refused(tmp_path: Path) -> None:
    RecordFiles(tmp_path).close()
    (tmp_path / "format").write_text("dstore records 3\n")
    with pytest.raises(StoreTooNew):
        RecordFiles(tmp_path)
