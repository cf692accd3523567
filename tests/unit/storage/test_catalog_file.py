"""The catalog as a file: migrations, damage, a full disk, and the rebuild from record files."""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from dstore.core.cid import DAG_PB
from dstore.errors import (
    CorruptStore,
    NodeError,
    StorageFull,
    StoreTooNew,
)
from dstore.storage.catalog import (
    Catalog,
    PinRow,
    ReferenceKind,
    open_catalog,
    pin_key,
    slot_key,
)
from dstore.storage.catalog.migrations import CATALOG_STEPS
from dstore.storage.catalog.owner import root_key
from dstore.storage.database import Database
from dstore.storage.memory import MemoryStore
from dstore.storage.records import RecordFiles, RecordKind, pack_pin
from dstore.testing.blockstore_suite import block
from tests.unit.storage.catalog_rows import (
    ALICE,
    BOB,
    MANIFEST,
    NOW,
    OTHER,
    PIN,
    ROOT,
    SEGMENT,
    SLOT,
    cid,
    peer,
)


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[Catalog]:
    catalog = open_catalog(tmp_path / "catalog.sqlite3")
    yield catalog
    catalog.close()


@pytest.mark.parametrize(("free_blocks", "kind"), [(0, StorageFull), (100, NodeError)])
def test_an_io_error_on_a_full_disk_is_a_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free_blocks: int, kind: type[NodeError]
) -> None:
    """SQLite calls it an I/O error when there is no room for its write-ahead log."""

    class Disk:
        f_bavail, f_frsize = free_blocks, 4096

    database = Database(tmp_path / "table", [["CREATE TABLE t(x)"]], what="table")
    monkeypatch.setattr(os, "statvfs", lambda _path: Disk)
    failure = sqlite3.OperationalError("disk I/O error")
    failure.sqlite_errorcode = sqlite3.SQLITE_IOERR
    with pytest.raises(NodeError) as caught, database.transaction():
        raise failure
    assert type(caught.value) is kind
    database.close()


class TestFile:
    def test_a_newer_catalog_is_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "c"
        open_catalog(path).close()
        newer = Database(path, CATALOG_STEPS, what="test")
        newer._writer.execute("PRAGMA user_version = 99")
        newer.close()
        with pytest.raises(StoreTooNew, match="format 99"):
            open_catalog(path)

    def test_migrations_run_forward_and_once(self, tmp_path: Path) -> None:
        first = ("CREATE TABLE t (x)", "INSERT INTO t VALUES (1)")
        Database(tmp_path / "d", (first,), what="test").close()
        second = ("ALTER TABLE t ADD COLUMN y DEFAULT 2",)
        database = Database(tmp_path / "d", (first, second), what="test")
        with database.reading() as connection:
            assert connection.execute("SELECT x, y FROM t").fetchall() == [(1, 2)]
        database.close()

    def test_a_reservation_of_the_first_format_counts_as_missing(self, tmp_path: Path) -> None:
        database = Database(tmp_path / "c", CATALOG_STEPS[:1], what="test")
        with database.transaction() as connection:
            for slot, state in enumerate(("reserved", "held", "trash")):
                connection.execute(
                    "INSERT INTO held_slots VALUES (?, ?, x'01', ?, ?, 1000, ?, NULL, 1, 1)",
                    (SEGMENT.binary, slot, ROOT.binary, MANIFEST.binary, state),
                )
        database.close()
        catalog = open_catalog(tmp_path / "c")
        assert [row.missing for row in catalog.held_slots()] == [1000, 0, 0]
        assert (catalog.reserved_bytes(), catalog.held_bytes()) == (1000, 1000)
        catalog.close()

    def test_a_failed_migration_leaves_the_old_format(self, tmp_path: Path) -> None:
        first = ("CREATE TABLE t (x)",)
        Database(tmp_path / "d", (first,), what="test").close()
        with pytest.raises(NodeError):
            Database(tmp_path / "d", (first, ("CREATE TABLE u (x)", "NONSENSE")), what="test")
        database = Database(tmp_path / "d", (first,), what="test")
        with database.reading() as connection:
            assert connection.execute("SELECT name FROM sqlite_schema").fetchall() == [("t",)]
        database.close()

    @pytest.mark.parametrize("start", [0, 16, 4096])
    def test_a_damaged_catalog_is_reported(self, tmp_path: Path, start: int) -> None:
        path = tmp_path / "c"
        catalog = open_catalog(path)
        for number in range(200):
            catalog.put_pin(replace(PIN, root=cid(str(number), DAG_PB)))
        catalog.close()
        with path.open("r+b") as file:
            file.seek(start)
            file.write(b"\xa5" * (path.stat().st_size - start))
        with pytest.raises(CorruptStore, match="damaged"):
            open_catalog(path)

    def test_an_emptied_catalog_counts_as_lost(self, tmp_path: Path) -> None:
        path, records = tmp_path / "c", RecordFiles(tmp_path / "records")
        for emptied in (False, True):
            if emptied:
                path.write_bytes(b"")
            catalog = open_catalog(path)
            assert catalog.created
            catalog.close()
            catalog = open_catalog(path)
            assert catalog.created  # the rebuild that was due never finished
            catalog.rebuild(records, now=NOW)
            assert not catalog.created
            catalog.close()
            catalog = open_catalog(path)
            assert not catalog.created
            catalog.close()
        records.close()

    def test_a_full_disk_is_reported_and_rolled_back(self, catalog: Catalog) -> None:
        pages = catalog._db._writer.execute("PRAGMA page_count").fetchone()[0]
        catalog._db._writer.execute(f"PRAGMA max_page_count = {pages + 5}")
        names = [number.to_bytes(32, "big") for number in range(5000)]
        with pytest.raises(StorageFull):
            catalog.reference(ReferenceKind.LOCAL_PIN, b"big", names)
        assert not any(catalog.referenced(names))
        catalog.put_pin(PIN)
        assert catalog.get_pin(ROOT) == PIN

    def test_threads_share_a_catalog(self, catalog: Catalog) -> None:
        serials: list[int] = []

        def work(number: int) -> None:
            for _ in range(20):
                serials.append(catalog.next_serial())
                catalog.saw_peer(peer(number), [], NOW)
                catalog.peers(10)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(serials) == list(range(1, 121))

    def test_a_closed_catalog_says_so(self, catalog: Catalog) -> None:
        catalog.close()
        catalog.close()
        for use in (catalog.pins, catalog.next_serial):
            with pytest.raises(NodeError, match="closed"):
                use()


class TestRebuild:
    """A lost SQLite file loses no promise."""

    def fill(self, catalog: Catalog) -> None:
        catalog.put_pin(PIN)
        catalog.put_pin(PinRow(OTHER, "local", None, NOW, None))
        catalog.put_pin(PinRow(cid("gone"), "local", None, NOW, None))
        catalog.delete_pin(cid("gone"))
        catalog.put_pin_record(ALICE, ROOT, 1, NOW + 1000, b"first")
        catalog.put_pin_record(ALICE, ROOT, 2, NOW + 500, b"second")
        catalog.put_pin_record(BOB, ROOT, 7, NOW - 500, b"expired")
        catalog.forget_pin_records(NOW)
        for slot in range(5):
            catalog.reserve_slot(replace(SLOT, slot=slot))
        for slot in range(4):
            serial = catalog.next_serial()
            catalog.hold_slot(SEGMENT, slot, b"serial %d" % serial, NOW + 99, NOW + 1)
        catalog.hold_slot(SEGMENT, 0, b"serial 4000000000000", NOW + 999, NOW + 2)
        released = catalog.held_slot(SEGMENT, 1)
        assert released is not None
        catalog.release_slot(released, NOW + 3)
        catalog.delete_slot(SEGMENT, 2)

    def promises(self, catalog: Catalog) -> object:
        slots = [row for row in catalog.held_slots() if row.state != "reserved"]
        return catalog.pins(), catalog.pin_records(), slots

    @pytest.mark.parametrize("before_now", [NOW, NOW * 1000])
    def test_every_promise_comes_back(self, tmp_path: Path, before_now: float) -> None:
        records = RecordFiles(tmp_path / "records")
        catalog = open_catalog(tmp_path / "c", records)
        self.fill(catalog)
        expected = self.promises(catalog)
        last_serial = catalog.next_serial()
        catalog.close()
        for path in tmp_path.glob("c*"):
            path.unlink()

        catalog = open_catalog(tmp_path / "c", records)
        assert catalog.created
        rebuilt = catalog.rebuild(
            records, now=before_now, serial_of=lambda lease: int(lease.split()[1])
        )
        assert self.promises(catalog) == expected
        assert (rebuilt.pins, rebuilt.pin_records, rebuilt.slots, rebuilt.damaged) == (2, 1, 3, 0)
        serial = catalog.next_serial()
        assert serial > max(last_serial, 4_000_000_000_000, int(before_now * 1000))
        catalog.rebuild(records, now=NOW)
        assert self.promises(catalog) == expected
        assert catalog.next_serial() > serial
        catalog.close()
        records.close()

    def test_a_pin_that_cannot_be_written_leaves_no_file(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(*_: object, **__: object) -> None:
            raise StorageFull("no room for a row")

        records = RecordFiles(tmp_path / "records")
        with closing(open_catalog(tmp_path / "c", records)) as catalog:
            with monkeypatch.context() as patch:
                patch.setattr(type(catalog), "_insert_pin", full)
                with pytest.raises(StorageFull):
                    catalog.put_pin(PIN)
            assert list(records.load_all(RecordKind.PIN)) == []
        records.close()

    def test_a_pin_whose_file_was_written_and_whose_row_was_not_is_there_at_the_next_start(
        self, tmp_path: Path
    ) -> None:
        records = RecordFiles(tmp_path / "records")
        with closing(open_catalog(tmp_path / "c", records)) as catalog:
            catalog.reference(ReferenceKind.LOCAL_PIN, pin_key(ROOT), [b"block"])
            records.put(RecordKind.PIN, root_key(ROOT), pack_pin(PIN))
            assert catalog.release_stale_pins() == 0
            assert catalog.get_pin(ROOT) == PIN
            assert catalog.referenced([b"block"]) == [True]
        records.close()

    def test_no_record_file_outlives_its_row(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A deletion that fails half way leaves the row, and can be done again."""
        records = RecordFiles(tmp_path / "records")
        catalog = open_catalog(tmp_path / "c", records)
        self.fill(catalog)
        expected = self.promises(catalog)

        def fail(kind: RecordKind, key: bytes) -> None:
            raise NodeError("the disk is gone")

        with monkeypatch.context() as patched:
            patched.setattr(records, "delete", fail)
            for forget in (
                lambda: catalog.delete_pin(ROOT),
                lambda: catalog.empty_trash(NOW + 4),
                lambda: catalog.forget_pin_records(NOW * 2),
            ):
                with pytest.raises(NodeError, match="gone"):
                    forget()
        assert self.promises(catalog) == expected
        assert catalog.delete_pin(ROOT)
        assert [row.slot for row in catalog.empty_trash(NOW + 4)] == [1]
        assert catalog.forget_pin_records(NOW * 2) == 1
        catalog.close()
        records.close()

    def test_what_the_catalog_has_newer_stays(self, tmp_path: Path) -> None:
        records = RecordFiles(tmp_path / "records")
        catalog = open_catalog(tmp_path / "old", records)
        self.fill(catalog)
        catalog.close()
        catalog = open_catalog(tmp_path / "new")
        catalog.put_pin(replace(PIN, name="newer"))
        catalog.put_pin_record(ALICE, ROOT, 3, NOW, b"third")
        catalog.reserve_slot(replace(SLOT, slot=0))
        catalog.hold_slot(SEGMENT, 0, b"newer", NOW, NOW + 50)
        catalog.rebuild(records, now=NOW)
        pin, record = catalog.get_pin(ROOT), catalog.pin_record(ALICE, ROOT)
        slot, other = catalog.held_slot(SEGMENT, 0), catalog.held_slot(SEGMENT, 3)
        assert pin is not None
        assert record is not None
        assert slot is not None
        assert other is not None
        assert (pin.name, record.envelope, slot.lease) == ("newer", b"third", b"newer")
        assert record.keep_until == NOW + 1000
        assert other.lease == b"serial 4"
        catalog.close()
        records.close()

    def test_nothing_is_swept_until_the_references_are_back(self, tmp_path: Path) -> None:
        records = RecordFiles(tmp_path / "records")
        catalog = open_catalog(tmp_path / "old", records)
        self.fill(catalog)
        catalog.close()
        store = MemoryStore()
        store.put_many([block(1), block(2)])
        names = [name.multihash for name, _ in (block(1), block(2))]
        for _ in range(2):
            catalog = open_catalog(tmp_path / "new", records)
            if catalog.created:
                catalog.rebuild(records, now=NOW)
            assert catalog.sweep(store, names) == 0
            catalog.close()
        catalog = open_catalog(tmp_path / "new", records)
        catalog.reference(ReferenceKind.SLOT, slot_key(SEGMENT, 0), names[:1])
        catalog.references_restored()
        assert catalog.sweep(store, names) == 1
        assert list(store.multihashes()) == names[:1]
        catalog.close()
        records.close()

    def test_damaged_records_cost_only_themselves(self, tmp_path: Path) -> None:
        records = RecordFiles(tmp_path / "records")
        catalog = open_catalog(tmp_path / "old", records)
        self.fill(catalog)
        catalog.close()
        damaged = next(path for path in (tmp_path / "records/leases").rglob("*") if path.is_file())
        damaged.write_bytes(b"rubbish")
        catalog = open_catalog(tmp_path / "new", records)
        rebuilt = catalog.rebuild(records, now=NOW)
        assert (rebuilt.slots, rebuilt.damaged) == (2, 1)
        catalog.close()
        records.close()
