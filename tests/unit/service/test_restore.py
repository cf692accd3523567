"""A lost catalog: rebuilt from the record files and the blocks, nothing collected before."""

from __future__ import annotations

from pathlib import Path

from dstore.core.cid import CID, RAW
from dstore.core.envelope import SigningKey
from dstore.core.manifest import Code, Manifest, Segment, Stripe
from dstore.core.pinrecord import Lease, PinRecord, open_lease
from dstore.core.unixfs import DEFAULT_PROFILE, FileBuilder, make_leaf
from dstore.service.restore import manifest_row, restore_references
from dstore.service.stores import Stores
from dstore.storage.catalog import open_catalog
from dstore.storage.memory import MemoryStore
from dstore.storage.records import RecordFiles
from dstore.storage.rows import HeldSlot, PinRow

NOW = 1_800_000_000
KEY = SigningKey.from_seed(bytes(32))


def fill(directory: Path) -> tuple[MemoryStore, CID, Segment, Manifest]:
    """A pinned file of two leaves and a held parity slot, with their record files."""
    blocks = MemoryStore()
    builder = FileBuilder(DEFAULT_PROFILE)
    leaves = [make_leaf(DEFAULT_PROFILE, bytes([n]) * 1000) for n in range(2)]
    for cid, block in leaves:
        builder.add_leaf(cid, len(block), len(block))
    root, inner = builder.finish()
    blocks.put_many([*leaves, *inner])
    parity = b"p" * 1000
    data = tuple((cid, len(block)) for cid, block in [*inner, *leaves])
    stripes = (Stripe(data, (CID.of(RAW, parity),)),)
    segment = Segment(3, 1, stripes)
    manifest = Manifest.of(root.cid, Code(3, 1), [segment.ref])
    blocks.put_many(
        [
            (CID.of(RAW, parity), parity),
            (segment.cid, segment.block),
            (manifest.cid, manifest.block),
        ]
    )
    catalog = open_catalog(directory / "catalog.sqlite3", RecordFiles(directory / "records"))
    catalog.put_pin(PinRow(root.cid, "protected", "x", NOW, None, 3, 1, manifest.cid))
    record = PinRecord(root.cid, (manifest.cid,), KEY.public, 1, NOW, NOW + 1000).sign(KEY)
    catalog.put_pin_record(KEY.public, root.cid, 1, NOW + 1000, record.envelope)
    lease = Lease(
        KEY.peer_id, KEY.public, segment.cid, 3, 1000, (), NOW, NOW + 500, serial=41
    ).sign(KEY)
    catalog.reserve_slot(
        HeldSlot(
            segment.cid, 3, KEY.public, root.cid, manifest.cid, 1000, "reserved", None, NOW, NOW
        )
    )
    catalog.hold_slot(segment.cid, 3, lease.envelope, NOW + 500, NOW)
    catalog.close()
    return blocks, root.cid, segment, manifest


def reopen_lost(directory: Path, blocks: MemoryStore) -> Stores:
    for path in directory.glob("catalog.sqlite3*"):
        path.unlink()
    records = RecordFiles(directory / "records")
    catalog = open_catalog(directory / "catalog.sqlite3", records)
    assert catalog.created
    catalog.rebuild(records, now=NOW, serial_of=lambda lease: open_lease(lease, NOW).lease.serial)
    return Stores(blocks, catalog)


def test_promises_references_and_manifests_come_back(tmp_path: Path) -> None:
    blocks, root, segment, manifest = fill(tmp_path)
    orphan = CID.of(RAW, b"nobody's")
    blocks.put_many([(orphan, b"nobody's")])
    stores = reopen_lost(tmp_path, blocks)
    assert stores.catalog.references_missing
    everything = list(blocks.multihashes())
    assert stores.catalog.sweep(blocks, everything) == 0
    assert restore_references(stores)
    assert not stores.catalog.references_missing
    assert [row.root for row in stores.catalog.pins()] == [root]
    held = stores.catalog.held_slot(segment.cid, 3)
    assert held is not None
    assert held.state == "held"
    assert stores.catalog.manifests_of(root) == [manifest_row(manifest)]
    assert stores.catalog.next_serial() > 41
    # Only what nobody keeps goes now.
    assert stores.catalog.sweep(blocks, everything) == 1
    assert blocks.has_many([orphan]) == [False]
    stores.catalog.close()


def test_with_blocks_missing_nothing_is_collected(tmp_path: Path) -> None:
    blocks, root, segment, _ = fill(tmp_path)
    blocks.delete_many([segment.cid])
    stores = reopen_lost(tmp_path, blocks)
    assert not restore_references(stores)
    assert stores.catalog.references_missing
    assert stores.catalog.sweep(blocks, list(blocks.multihashes())) == 0
    # What could be read is there again all the same.
    assert all(stores.catalog.referenced([root.multihash]))
    stores.catalog.close()


def test_a_slot_in_the_trash_that_cannot_be_read_holds_up_no_collection(tmp_path: Path) -> None:
    blocks, _, segment, _ = fill(tmp_path)
    records = RecordFiles(tmp_path / "records")
    catalog = open_catalog(tmp_path / "catalog.sqlite3", records)
    (held,) = catalog.held_slots()
    catalog.release_slot(held, NOW + 1)
    catalog.close()
    blocks.delete_many([segment.cid])
    stores = reopen_lost(tmp_path, blocks)
    assert restore_references(stores)
    assert not stores.catalog.references_missing
    stores.catalog.close()
