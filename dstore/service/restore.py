"""After a lost catalog: what the blocks themselves say, entered again.

The record files bring back pins, pin records and leases; which blocks those keep, and which
manifests exist, is read from the blocks.  Until that has succeeded nothing is collected.
"""

from __future__ import annotations

import logging

from dstore.core.cid import CID
from dstore.core.manifest import Manifest, Segment
from dstore.core.unixfs import iter_dag
from dstore.errors import BudgetExceeded, CorruptStore, MalformedBlock, NotFoundError
from dstore.service.stores import Stores
from dstore.storage.rows import (
    HeldSlot,
    ManifestRow,
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
    for slot in stores.catalog.held_slots():
        try:
            _restore_slot(stores, slot)
        except _Unreadable as error:
            log.warning("slot %d of %s could not be restored: %s", slot.slot, slot.segment, error)
            whole = False
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
