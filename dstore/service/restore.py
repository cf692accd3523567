"""After a lost catalog: what the blocks themselves say, entered again.

The record files bring back pins, pin records and leases; which blocks those keep, and which
manifests exist, is read from the blocks.  Until that has succeeded nothing is collected.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence

from dstore.core.cid import CID
from dstore.core.manifest import Manifest, Segment
from dstore.core.pinrecord import open_pin_record
from dstore.core.unixfs import iter_dag
from dstore.errors import (
    BudgetExceeded,
    CorruptStore,
    MalformedBlock,
    NotFoundError,
    ProtocolViolation,
)
from dstore.service.stores import Stores
from dstore.storage.rows import (
    HeldSlot,
    ManifestRow,
    PinRecordRow,
    PinRow,
    ReferenceKind,
    pin_key,
    slot_key,
)

log = logging.getLogger(__name__)

_Unreadable = (NotFoundError, CorruptStore, MalformedBlock, BudgetExceeded)


def restore_references(stores: Stores) -> bool:
    """In a worker: enter the references and manifests of all pins and slots again.

    Returns whether all could be read; if not, nothing is collected until a later start
    succeeds.
    """
    whole = True
    for pin in stores.catalog.pins():
        try:
            _restore_pin(stores, pin)
        except _Unreadable as error:
            log.warning("pin %s could not be restored: %s", pin.root, error)
            whole = False
    held: dict[tuple[bytes, CID], list[HeldSlot]] = {}
    for slot in stores.catalog.held_slots():
        held.setdefault((slot.owner, slot.segment), []).append(slot)
        try:
            _restore_slot(stores, slot)
        except _Unreadable as error:
            log.warning("slot %d of %s could not be restored: %s", slot.slot, slot.segment, error)
            # What is in the trash was given up: nobody waits for its blocks.
            whole = whole and slot.state == "trash"
    for wish in stores.catalog.pin_records():
        _restore_wish(stores, wish, held)
    if whole:
        stores.catalog.references_restored()
    return whole


def _restore_pin(stores: Stores, pin: PinRow) -> None:
    blocks, catalog = stores.blocks, stores.catalog

    def size_of(cid: CID) -> int:
        size = blocks.size(cid)
        if size is None:
            raise NotFoundError(f"block {cid} of {pin.root} is not in the store")
        return size

    dag = [visit.cid.multihash for visit in iter_dag(pin.root, blocks.get, size_of)]
    if pin.manifest is not None:
        manifest = _restore_manifest(stores, pin.manifest)
        dag += [manifest.cid.multihash, *(ref.cid.multihash for ref in manifest.segments)]
    catalog.reference(ReferenceKind.LOCAL_PIN, pin_key(pin.root), dag)


def _restore_slot(stores: Stores, slot: HeldSlot) -> None:
    manifest = _restore_manifest(stores, slot.manifest)
    segment = Segment.decode(stores.blocks.get(slot.segment))
    kept = [cid.multihash for _, cid, _ in segment.slot_blocks(slot.slot)]
    kept += [manifest.cid.multihash, slot.segment.multihash]
    stores.catalog.reference(ReferenceKind.SLOT, slot_key(slot.segment, slot.slot), kept)


def _restore_wish(
    stores: Stores, wish: PinRecordRow, held: Mapping[tuple[bytes, CID], Sequence[HeldSlot]]
) -> None:
    """The manifests under which slots were offered that were held already, under another one:
    their rows name the first.  `held` has the slots by owner and segment."""
    try:
        named = open_pin_record(wish.envelope, math.inf).record.manifests
    except ProtocolViolation:  # it was checked once; as it is, nothing is wanted by it
        return
    for cid in named:
        try:
            manifest = Manifest.decode(stores.blocks.get(cid))
        except _Unreadable:  # no slot was offered under it, or it is lost
            continue
        slots = [slot for ref in manifest.segments for slot in held.get((wish.owner, ref.cid), ())]
        if slots:
            stores.catalog.put_manifest(manifest_row(manifest))
        for slot in slots:
            key = slot_key(slot.segment, slot.slot)
            stores.catalog.reference(ReferenceKind.SLOT, key, [cid.multihash])


def _restore_manifest(stores: Stores, cid: CID) -> Manifest:
    manifest = Manifest.decode(stores.blocks.get(cid))
    stores.catalog.put_manifest(manifest_row(manifest))
    return manifest


def manifest_row(manifest: Manifest) -> ManifestRow:
    """What the catalog keeps of a manifest."""
    return ManifestRow(
        root=manifest.root,
        manifest=manifest.cid,
        k=manifest.code.k,
        m=manifest.code.m,
        bytes=manifest.bytes,
        blocks=manifest.blocks,
        segments=tuple(ref.cid for ref in manifest.segments),
    )
