"""The catalog, table by table: pins, slots, references, peers, their edges and restarts."""

from __future__ import annotations

import hashlib
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import pytest

from dstore.core.cid import CID, DAG_PB, RAW
from dstore.errors import (
    MalformedBlock,
    NotFoundError,
)
from dstore.storage.catalog import (
    Catalog,
    Fault,
    ManifestRow,
    PinRow,
    Placement,
    ReferenceKind,
    open_catalog,
    operation_key,
    pin_key,
    slot_key,
)
from dstore.storage.memory import MemoryStore
from dstore.storage.records import RecordFiles, RecordKind
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


def _digest(envelope: bytes) -> bytes:
    return hashlib.sha256(envelope).digest()


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[Catalog]:
    catalog = open_catalog(tmp_path / "catalog.sqlite3")
    yield catalog
    catalog.close()


class TestReferences:
    def test_a_block_stays_while_anything_keeps_it(self, catalog: Catalog) -> None:
        names = [bytes([number]) for number in range(3)]
        catalog.reference(ReferenceKind.LOCAL_PIN, b"one", names[:2])
        catalog.reference(ReferenceKind.LOCAL_PIN, b"two", names[1:2])
        catalog.reference(ReferenceKind.CACHE, b"one", names[1:2])
        assert catalog.referenced(names) == [True, True, False]
        assert catalog.unreferenced(names) == names[2:]
        catalog.release(ReferenceKind.LOCAL_PIN, b"one")
        assert catalog.referenced(names) == [False, True, False]
        assert catalog.references_of(names[1]) == [
            (ReferenceKind.LOCAL_PIN, b"two"),
            (ReferenceKind.CACHE, b"one"),
        ]
        catalog.release(ReferenceKind.LOCAL_PIN, b"two")
        catalog.release(ReferenceKind.CACHE, b"one")
        assert catalog.referenced(names) == [False] * 3

    def test_referencing_adds_and_repeats_harmlessly(self, catalog: Catalog) -> None:
        catalog.reference(ReferenceKind.SLOT, b"k", [b"a", b"b", b"a"])
        catalog.reference(ReferenceKind.SLOT, b"k", [b"b", b"c"])
        catalog.reference(ReferenceKind.SLOT, b"k", [])
        assert sorted(catalog.referenced_by(ReferenceKind.SLOT, b"k")) == [b"a", b"b", b"c"]
        catalog.release(ReferenceKind.SLOT, b"never")

    def test_more_than_one_step(self, catalog: Catalog) -> None:
        names = [number.to_bytes(4, "big") for number in range(20_001)]
        catalog.reference(ReferenceKind.LOCAL_PIN, b"big", iter(names))
        assert all(catalog.referenced([names[0], names[9_999], names[10_000], names[-1]]))
        catalog.release(ReferenceKind.LOCAL_PIN, b"big")
        assert not any(catalog.referenced(names))
        with catalog._db.reading() as connection:
            assert connection.execute("SELECT count(*) FROM block_references").fetchone() == (0,)

    def test_a_release_cut_short_is_finished_at_the_next_start(self, tmp_path: Path) -> None:
        catalog = open_catalog(tmp_path / "c")
        catalog.reference(ReferenceKind.SLOT, b"k", [b"a"])
        with catalog._db.transaction() as connection:
            connection.execute("UPDATE reference_sets SET released = 1")
        catalog.reference(ReferenceKind.SLOT, b"k", [b"b"])
        assert catalog.referenced([b"a", b"b"]) == [False, True]
        catalog.close()
        catalog = open_catalog(tmp_path / "c")
        with catalog._db.reading() as connection:
            rows = connection.execute("SELECT multihash FROM block_references").fetchall()
        assert rows == [(b"b",)]
        catalog.close()

    def test_stale_operations_are_released_and_their_orphans_swept(self, tmp_path: Path) -> None:
        store = MemoryStore()
        blocks = [block(number) for number in range(4)]
        names = [name.multihash for name, _ in blocks]
        catalog = open_catalog(tmp_path / "c")
        first = catalog.begin_operation("add", NOW)
        second = catalog.begin_operation("add", NOW + 1)
        assert first != second
        catalog.reference(ReferenceKind.OPERATION, operation_key(first), names[:2])
        catalog.reference(ReferenceKind.OPERATION, operation_key(second), names[2:])
        catalog.reference(ReferenceKind.LOCAL_PIN, pin_key(blocks[2][0]), names[2:3])
        store.put_many(blocks)
        catalog.end_operation(first)
        assert sorted(catalog.orphans(store)) == sorted(names[:2])
        catalog.close()

        catalog = open_catalog(tmp_path / "c")
        assert [(one.id, one.kind) for one in catalog.release_stale_operations()] == (
            [(second, "add")]
        )
        assert catalog.operations() == []
        orphans = sorted(catalog.orphans(store))
        assert orphans == sorted([*names[:2], names[3]])
        assert catalog.begin_operation("add", NOW) > second
        assert catalog.sweep(store, names) == 3
        assert list(store.multihashes()) == [names[2]]
        catalog.close()

    def test_a_sweep_asks_again_under_the_lock(self, catalog: Catalog) -> None:
        """A block referenced between the listing and the sweep is not deleted."""
        store = MemoryStore()
        store.put_many([block(1)])
        listed = list(catalog.orphans(store))
        catalog.reference(ReferenceKind.OPERATION, operation_key(1), listed)
        assert catalog.sweep(store, listed) == 0
        assert store.usage().blocks == 1

    def test_a_reference_waits_for_the_sweep_that_runs(self, catalog: Catalog) -> None:
        """So that a put after the reference sees that the block is gone, and writes it."""
        deleting, referenced = threading.Event(), threading.Event()

        def reference() -> None:
            deleting.wait(10)
            catalog.reference(ReferenceKind.OPERATION, operation_key(1), [block(1)[0].multihash])
            referenced.set()

        class SlowStore(MemoryStore):
            def delete_many(self, cids: object) -> None:
                deleting.set()
                assert not referenced.wait(0.05)
                super().delete_many([block(1)[0]])

        store = SlowStore()
        store.put_many([block(1)])
        thread = threading.Thread(target=reference)
        thread.start()
        catalog.sweep(store, [block(1)[0].multihash])
        thread.join()
        assert referenced.is_set()
        assert store.has_many([block(1)[0]]) == [False]


class TestOwner:
    def test_pins(self, catalog: Catalog) -> None:
        local = PinRow(cid("x", RAW), "local", None, NOW - 1, None)
        catalog.put_pin(PIN)
        catalog.put_pin(local)
        assert catalog.get_pin(ROOT) == PIN
        assert catalog.pins() == [local, PIN]
        renamed = replace(PIN, name="h", expires=None)
        catalog.put_pin(renamed)
        assert catalog.get_pin(ROOT) == renamed
        assert catalog.delete_pin(ROOT)
        assert not catalog.delete_pin(ROOT)
        assert catalog.get_pin(ROOT) is None
        assert catalog.pins() == [local]

    def test_a_pin_goes_with_what_it_keeps(self, catalog: Catalog) -> None:
        raw = cid("root", RAW)  # the same bytes, pinned as a file of their own
        assert pin_key(raw) == pin_key(ROOT)
        for pin in (PIN, replace(PIN, root=raw)):
            catalog.put_pin(pin)
        catalog.reference(ReferenceKind.LOCAL_PIN, pin_key(ROOT), [ROOT.multihash])
        catalog.delete_pin(raw)
        assert catalog.referenced([ROOT.multihash]) == [True]
        catalog.delete_pin(ROOT)
        assert catalog.referenced([ROOT.multihash]) == [False]

    def test_what_is_kept_for_no_pin_is_released_at_the_start(self, catalog: Catalog) -> None:
        catalog.put_pin(PIN)
        for root in (ROOT, OTHER):
            catalog.reference(ReferenceKind.LOCAL_PIN, pin_key(root), [root.multihash])
        catalog.reference(ReferenceKind.SLOT, b"slot", [SEGMENT.multihash])
        assert catalog.release_stale_pins() == 1
        kept = catalog.referenced([ROOT.multihash, OTHER.multihash, SEGMENT.multihash])
        assert kept == [True, False, True]

    def test_a_pin_is_changed_in_one_step(self, catalog: Catalog) -> None:
        catalog.change_pin(ROOT, lambda known: PIN if known is None else known)
        catalog.change_pin(ROOT, lambda known: replace(known or PIN, name="new"))
        assert catalog.get_pin(ROOT) == replace(PIN, name="new")

    def test_either_spelling_finds_a_root_and_codecs_differ(self, catalog: Catalog) -> None:
        old = CID.of(DAG_PB, b"root", version=0)
        catalog.put_pin(replace(PIN, root=old))
        found = catalog.get_pin(ROOT)
        assert found is not None
        assert found.root == old
        assert catalog.get_pin(CID.of(RAW, b"root")) is None

    def test_who_holds_what_is_forgotten_with_the_last_manifest(self, catalog: Catalog) -> None:
        for root, segments in ((ROOT, (SEGMENT, OTHER)), (OTHER, (OTHER,))):
            catalog.put_manifest(ManifestRow(root, cid(f"of {root}"), 4, 2, 10, 1, segments))
        for segment in (SEGMENT, OTHER):
            catalog.put_placements([Placement(segment, 0, peer(1), NOW)])
        catalog.forget_manifests(ROOT)
        assert catalog.placements(SEGMENT) == []
        assert len(catalog.placements(OTHER)) == 1
        catalog.forget_manifests(OTHER)
        assert catalog.placements(OTHER) == []

    def test_manifests(self, catalog: Catalog) -> None:
        row = ManifestRow(ROOT, MANIFEST, 4, 2, 10**12, 10**6, (SEGMENT, OTHER, SEGMENT))
        again = ManifestRow(ROOT, cid("manifest 2"), 10, 4, 10**12, 10**6, (OTHER,))
        elsewhere = replace(row, root=OTHER)
        for one in (row, again, elsewhere, row):
            catalog.put_manifest(one)
        assert catalog.manifests_of(ROOT) == [row, again]
        assert catalog.manifests_of(cid("unknown")) == []
        assert set(catalog.roots_with_segment(SEGMENT)) == {ROOT, OTHER}
        assert set(catalog.roots_with_segment(OTHER)) == {ROOT, OTHER}
        catalog.forget_manifests(OTHER)
        assert catalog.roots_with_segment(SEGMENT) == [ROOT]

    def test_placements(self, catalog: Catalog) -> None:
        one = Placement(SEGMENT, 0, peer(1), NOW, b"lease", NOW - 5)
        two = Placement(SEGMENT, 0, peer(2), NOW)
        three = Placement(SEGMENT, 1, peer(1), NOW)
        catalog.put_placements([three, one])
        catalog.put_placements([two])
        assert catalog.placements(SEGMENT) == [one, two, three]
        catalog.put_placements([replace(one, expires=NOW + 9, lease=None, last_answered=None)])
        assert catalog.placements(SEGMENT) == [replace(one, expires=NOW + 9), two, three]
        assert catalog.placements(OTHER) == []

    def test_who_promised_slots_of_a_first_segment(self, catalog: Catalog) -> None:
        for number, segment in enumerate((SEGMENT, OTHER, cid("too late"), cid("second"))):
            row = ManifestRow(ROOT, cid(f"{number}"), 4, 2, 10, 1, (segment, cid("second")))
            catalog.put_manifest(row)
            catalog.put_placements([Placement(segment, 0, peer(number), NOW, b"lease")])
        catalog.put_placements([Placement(SEGMENT, 1, peer(9), NOW)])
        assert catalog.peers_promising(ROOT, 2) == {peer(0), peer(1)}


class TestHolder:
    def test_a_slot_is_reserved_held_trashed_and_deleted(self, catalog: Catalog) -> None:
        key = slot_key(SEGMENT, 3)
        catalog.reserve_slot(SLOT)
        catalog.reference(ReferenceKind.SLOT, key, [b"block"])
        assert catalog.held_slot(SEGMENT, 3) == SLOT
        assert catalog.held_slot(SEGMENT, 2) is None
        assert (catalog.reserved_bytes(), catalog.held_bytes()) == (1000, 0)
        assert catalog.held_segments() == []

        catalog.hold_slot(SEGMENT, 3, b"lease", NOW + 99, NOW + 1)
        promised = replace(SLOT, state="held", lease=b"lease", missing=0)
        held = replace(promised, expires=NOW + 99, updated=NOW + 1)
        assert catalog.held_slots() == catalog.held_slots(SEGMENT) == [held]
        assert (catalog.reserved_bytes(), catalog.held_bytes()) == (0, 1000)
        assert catalog.held_roots() == [ROOT]
        assert catalog.held_segments() == [SEGMENT]

        assert catalog.release_slot(held, NOW + 2)
        assert catalog.held_slot(SEGMENT, 3) == replace(held, state="trash", updated=NOW + 2)
        assert catalog.held_roots() == []
        assert catalog.empty_trash(NOW + 2) == []
        assert catalog.referenced([b"block"]) == [True]
        assert [row.slot for row in catalog.empty_trash(NOW + 3)] == [3]
        assert catalog.referenced([b"block"]) == [False]
        assert catalog.held_slots() == []

    def test_a_slot_in_the_trash_may_be_reserved_again(self, catalog: Catalog) -> None:
        catalog.reserve_slot(SLOT)
        catalog.release_slot(SLOT, NOW)
        catalog.reserve_slot(replace(SLOT, updated=NOW + 5))
        assert catalog.held_slot(SEGMENT, 3) == replace(SLOT, updated=NOW + 5)

    def test_a_held_slot_is_not_reserved_away(self, catalog: Catalog) -> None:
        catalog.reserve_slot(SLOT)
        catalog.hold_slot(SEGMENT, 3, b"lease", NOW, NOW)
        catalog.reserve_slot(replace(SLOT, updated=NOW + 5))
        row = catalog.held_slot(SEGMENT, 3)
        assert row is not None
        assert row.state == "held"
        assert row.lease == b"lease"

    def test_holding_what_was_never_reserved(self, catalog: Catalog) -> None:
        with pytest.raises(NotFoundError):
            catalog.hold_slot(SEGMENT, 3, b"lease", NOW, NOW)
        assert not catalog.release_slot(SLOT, NOW)
        catalog.delete_slot(SEGMENT, 3)

    def test_idle_reservations_expire_with_their_references(self, catalog: Catalog) -> None:
        for slot in range(3):
            catalog.reserve_slot(replace(SLOT, slot=slot))
            catalog.reference(ReferenceKind.SLOT, slot_key(SEGMENT, slot), [bytes([slot])])
        catalog.touch_reservation(SEGMENT, 1, NOW + 50, 400)
        catalog.hold_slot(SEGMENT, 2, b"lease", NOW, NOW)
        assert [row.slot for row in catalog.expire_reservations(NOW + 10)] == [0]
        assert catalog.referenced([b"\0", b"\1", b"\2"]) == [False, True, True]
        assert catalog.reserved_bytes() == 400
        # Another who brings the same slot, and has more of it still to bring, changes nothing.
        catalog.touch_reservation(SEGMENT, 1, NOW + 50, 600)
        assert catalog.reserved_bytes() == 400

    def test_a_reservation_touched_at_the_last_moment_stays(
        self, catalog: Catalog, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        catalog.reserve_slot(SLOT)
        begin = catalog._db.transaction
        late = [NOW + 50]

        def touch_first(*, durable: bool = True) -> AbstractContextManager[sqlite3.Connection]:
            if durable and late:  # the deletion begins
                catalog.touch_reservation(SEGMENT, 3, late.pop(), 1000)
            return begin(durable=durable)

        monkeypatch.setattr(catalog._db, "transaction", touch_first)
        assert catalog.expire_reservations(NOW + 10) == []
        assert catalog.held_slot(SEGMENT, 3) == replace(SLOT, updated=NOW + 50)

    def test_a_slot_reserved_anew_while_it_is_released_is_reserved(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        records = RecordFiles(tmp_path / "records")
        catalog = open_catalog(tmp_path / "catalog.sqlite3", records)
        catalog.reserve_slot(SLOT)
        fresh = replace(SLOT, updated=NOW + 5)
        resume = threading.Thread(target=catalog.reserve_slot, args=(fresh,))
        put, lock, waits = records.put, catalog._promises, threading.Event()

        class Watched:
            def __enter__(self) -> None:
                if threading.current_thread() is resume:
                    waits.set()
                lock.acquire()

            def __exit__(self, *_: object) -> None:
                lock.release()

        def resume_first(kind: RecordKind, key: bytes, record: bytes) -> None:
            resume.start()
            assert waits.wait(10)  # it may go on only when the release is done
            put(kind, key, record)

        monkeypatch.setattr(catalog, "_promises", Watched())
        monkeypatch.setattr(records, "put", resume_first)  # between check and act
        assert catalog.release_slot(SLOT, NOW + 1)
        resume.join()
        assert catalog.held_slot(SEGMENT, 3) == fresh
        catalog.close()
        records.close()

    def test_two_owners_of_one_slot(self, catalog: Catalog) -> None:
        """Each has a lease; the blocks stay until both are done."""
        key = slot_key(SEGMENT, 3)
        catalog.reserve_slot(SLOT)
        catalog.reserve_slot(replace(SLOT, owner=BOB))
        catalog.reference(ReferenceKind.SLOT, key, [b"block"])
        catalog.hold_slot(SEGMENT, 3, b"for alice", NOW, NOW + 1, owner=ALICE)
        catalog.hold_slot(SEGMENT, 3, b"for bob", NOW, NOW + 2, owner=BOB)
        assert {row.lease for row in catalog.held_slots(SEGMENT)} == {b"for alice", b"for bob"}
        bob = catalog.held_slot(SEGMENT, 3, BOB)
        assert bob is not None
        assert catalog.release_slot(bob, NOW + 3)
        catalog.delete_slot(SEGMENT, 3, owner=BOB)
        alice = catalog.held_slot(SEGMENT, 3)
        assert alice is not None
        assert (alice.owner, alice.state) == (ALICE, "held")
        assert catalog.referenced([b"block"]) == [True]
        catalog.delete_slot(SEGMENT, 3)
        assert catalog.referenced([b"block"]) == [False]

    def test_the_newest_pin_record_wins(self, catalog: Catalog) -> None:
        low, high = sorted([b"one", b"two"], key=_digest)
        assert catalog.put_pin_record(ALICE, ROOT, 5, NOW, low)
        assert catalog.put_pin_record(ALICE, ROOT, 5, NOW, low)
        assert catalog.put_pin_record(ALICE, ROOT, 5, NOW + 1, high)
        assert not catalog.put_pin_record(ALICE, ROOT, 5, NOW, low)
        assert not catalog.put_pin_record(ALICE, ROOT, 4, NOW, b"old")
        record = catalog.pin_record(ALICE, ROOT)
        assert record is not None
        assert (record.seq, record.envelope, record.expires) == (5, high, NOW + 1)
        assert catalog.put_pin_record(BOB, ROOT, 1, NOW, b"bob's")
        assert catalog.put_pin_record(BOB, OTHER, 1, NOW, b"bob's")
        assert {row.owner for row in catalog.pin_records_named(ROOT, 9)} == {ALICE, BOB}
        (first,) = catalog.pin_records_named(ROOT, 1)
        assert first.owner == ALICE
        catalog.reserve_slot(replace(SLOT, owner=BOB))
        catalog.hold_slot(SEGMENT, SLOT.slot, b"lease", NOW + 99, NOW, owner=BOB)
        (first,) = catalog.pin_records_named(ROOT, 1)
        assert first.owner == BOB  # of whom a slot is held
        assert len(catalog.pin_records()) == 3
        assert catalog.pin_record(ALICE, OTHER) is None

    def test_a_tombstone_stays_until_the_latest_expiry_seen(self, catalog: Catalog) -> None:
        """A release (short expiry) must outlive the long record that it ended."""
        catalog.put_pin_record(ALICE, ROOT, 1, NOW + 1000, b"long")
        catalog.put_pin_record(ALICE, ROOT, 2, NOW, b"release")
        assert catalog.forget_pin_records(NOW + 1000) == 0
        assert not catalog.put_pin_record(ALICE, ROOT, 1, NOW + 1000, b"long")
        catalog.put_pin_record(ALICE, ROOT, 0, NOW + 2000, b"even longer")
        record = catalog.pin_record(ALICE, ROOT)
        assert record is not None
        assert (record.envelope, record.keep_until) == (b"release", NOW + 2000)
        assert catalog.forget_pin_records(NOW + 2001) == 1
        assert catalog.pin_records() == []

    @pytest.mark.parametrize("seq", [-1, 2**63, 2**64])
    def test_absurd_sequence_numbers_are_refused(self, catalog: Catalog, seq: int) -> None:
        with pytest.raises(MalformedBlock):
            catalog.put_pin_record(ALICE, ROOT, seq, NOW, b"x")

    def test_serials_never_repeat(self, tmp_path: Path) -> None:
        seen: list[int] = []
        for _ in range(3):
            catalog = open_catalog(tmp_path / "c")
            seen.extend(catalog.next_serial() for _ in range(5))
            catalog.close()
        assert seen == sorted(set(seen))


class TestPeers:
    def test_history(self, catalog: Catalog) -> None:
        catalog.peer_failed(peer(1), NOW)
        assert catalog.peer(peer(1)) is None
        catalog.saw_peer(peer(1), ["/ip4/127.0.0.1/tcp/1"], NOW)
        catalog.peer_failed(peer(1), NOW + 1)
        catalog.peer_failed(peer(1), NOW + 2)
        row = catalog.peer(peer(1))
        assert row is not None
        assert (row.failures, row.last_failed, row.role) == (2, NOW + 2, None)
        catalog.peer_terms(peer(1), "storage", 2**64, ["rack:1"], NOW + 3)
        catalog.saw_peer(peer(1), [], NOW + 2)
        row = catalog.peer(peer(1))
        assert row is not None
        assert row.addresses == ("/ip4/127.0.0.1/tcp/1",)
        assert (row.role, row.free_bytes, row.domains) == ("storage", 2**63 - 1, ("rack:1",))
        assert (row.first_seen, row.last_seen, row.failures) == (NOW, NOW + 3, 0)

    def test_newest_first(self, catalog: Catalog) -> None:
        for number in range(5):
            catalog.saw_peer(peer(number), [], NOW + number)
        assert [row.peer for row in catalog.peers(2)] == [peer(4), peer(3)]

    def test_what_peers_say_is_bounded(self, catalog: Catalog) -> None:
        catalog.peer_terms(peer(1), "r" * 9999, 0, ["d" * 9999, *map(str, range(999))], NOW)
        catalog.saw_peer(peer(1), ["/a" * 9999, *map(str, range(999))], NOW)
        row = catalog.peer(peer(1))
        assert row is not None
        assert row.role is not None
        assert len(row.role) <= 512
        assert len(row.domains) == len(row.addresses) == 16
        assert max(map(len, row.domains + row.addresses)) < 10

    def test_the_longest_unseen_that_held_nothing_go_first(self, tmp_path: Path) -> None:
        catalog = open_catalog(tmp_path / "c", peers_max=20)
        catalog.put_placements([Placement(SEGMENT, 0, peer(0), NOW)])
        for number in range(20):
            catalog.saw_peer(peer(number), [], NOW + number)
        catalog.put_placements([Placement(SEGMENT, 1, peer(1), NOW)])
        catalog.saw_peer(peer(2), [], NOW + 100)
        catalog.saw_peer(peer(100), [], NOW + 101)
        kept = {row.peer for row in catalog.peers(1000)}
        assert kept == {peer(number) for number in (0, 1, 2, 100, *range(6, 20))}
        catalog.close()

    def test_faults(self, catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("dstore.storage.catalog.peers.FAULTS_KEPT_MAX", 3)
        catalog.saw_peer(peer(1), [], NOW)
        for number in range(4):
            catalog.record_fault(peer(number % 2), "hash", "x" * 9999, NOW + number)
        kept = catalog.faults()
        assert [(one.peer, one.time) for one in kept] == [
            (peer(1), NOW + 1),
            (peer(0), NOW + 2),
            (peer(1), NOW + 3),
        ]
        assert catalog.faults(peer(0)) == [Fault(peer(0), "hash", "x" * 1024, NOW + 2)]
        row = catalog.peer(peer(1))
        assert row is not None
        assert row.faults == 2
