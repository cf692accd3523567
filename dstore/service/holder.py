"""What this node keeps for others: accepting slots, serving blocks, promising leases.

It implements the `Holder` that the fragment protocol serves.  A lease is signed only when the
chain pin record → manifest → segment → slot has been checked and every block of the slot is
durable here; from then on the holder itself extends it while the pin record is valid.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass

import trio

from dstore import __version__
from dstore.core import wire
from dstore.core.cid import CID
from dstore.core.envelope import SigningKey
from dstore.core.manifest import Manifest, Segment
from dstore.core.peerid import PeerId
from dstore.core.pinrecord import Lease, PinRecord, open_pin_record
from dstore.errors import CorruptStore, DataError, NotFoundError, ProtocolViolation, Refused
from dstore.limits import (
    FIND_MANIFESTS_MAX,
    FIND_RECORDS_MAX,
    HOLDER_ADDRESSES_MAX,
    HOLDER_MAP_ENTRIES_MAX,
    LEASE_SECONDS,
    SEGMENT_BYTES_MAX,
    SERVE_BATCH_BLOCKS_MAX,
    SERVE_BATCH_BYTES,
)
from dstore.network.fragments_server import FetchBlock
from dstore.network.streams import Network, PeerAddresses
from dstore.runtime import Runtime, Workers
from dstore.service.restore import manifest_row
from dstore.service.stores import Stores
from dstore.storage.rows import (
    HeldSlot,
    Placement,
    ReferenceKind,
    slot_key,
)


@dataclass(frozen=True)
class HolderOptions:
    """`capacity_bytes` of blocks at most (0: no slots are taken); `domains` as placement
    counts them; leases run `lease_seconds`."""

    role: wire.Role = wire.Role.STORAGE
    capacity_bytes: int = 0
    domains: tuple[str, ...] = ()
    lease_seconds: int = LEASE_SECONDS


class LocalHolder:
    """This node as a holder; also called directly when it takes a slot of its own files."""

    def __init__(
        self,
        stores: Stores,
        network: Network,
        key: SigningKey,
        runtime: Runtime,
        options: HolderOptions,
        on_held: Callable[[CID, CID], None],
    ) -> None:
        """`on_held(root, segment)` is told of each slot that came under lease."""
        self._stores = stores
        self._network = network
        self._key = key
        self._runtime = runtime
        self._options = options
        self._on_held = on_held
        self._reserving = trio.Lock()

    @property
    def workers(self) -> Workers:
        """Where its blocking work runs."""
        return self._runtime.workers

    # --- Reading -------------------------------------------------------------------------

    async def hello(self, peer: PeerId) -> wire.Hello:
        """What this node says of itself."""
        free = 0
        if self._options.capacity_bytes:
            free = await self._runtime.workers.run(self._free_bytes)
        return wire.Hello(
            version=__version__,
            role=self._options.role,
            free_bytes=max(0, free),
            slot_bytes_max=SEGMENT_BYTES_MAX if self._options.capacity_bytes else 0,
            lease_seconds_max=self._options.lease_seconds,
            domains=self._options.domains,
            clock=int(self._runtime.clock.now()),
        )

    def _free_bytes(self) -> int:
        used = self._stores.blocks.usage().bytes + self._stores.catalog.reserved_bytes()
        return self._options.capacity_bytes - used

    async def find_manifests(self, peer: PeerId, root: CID) -> wire.Manifests:
        """The manifests that this node knows for the root, and the pin records behind them."""

        def work() -> wire.Manifests:
            manifests = [row.manifest for row in self._stores.catalog.manifests_of(root)]
            records = [row.envelope for row in self._stores.catalog.pin_records(root)]
            return wire.Manifests(
                tuple(manifests[-FIND_MANIFESTS_MAX:]), tuple(records[:FIND_RECORDS_MAX])
            )

        return await self._runtime.workers.run(work)

    async def blocks(
        self, peer: PeerId, cids: Sequence[CID]
    ) -> AsyncGenerator[tuple[CID, bytes | None], None]:
        """The blocks in order, read a batch at a time; None for one that is not here."""
        position = 0
        while position < len(cids):
            batch = await self._runtime.workers.run(self._read_batch, cids, position)
            for data in batch:
                yield cids[position], data
                position += 1

    def _read_batch(self, cids: Sequence[CID], start: int) -> list[bytes | None]:
        """In a worker: some blocks from `start` on, at least one."""
        batch: list[bytes | None] = []
        size = 0
        for cid in cids[start : start + SERVE_BATCH_BLOCKS_MAX]:
            data = self._read(cid)
            batch.append(data)
            size += len(data or b"")
            if size >= SERVE_BATCH_BYTES:
                break
        return batch

    def _read(self, cid: CID) -> bytes | None:
        try:
            return self._stores.blocks.get(cid)
        except (NotFoundError, CorruptStore):  # the store quarantines and counts the latter
            return None

    async def have(self, peer: PeerId, segments: Sequence[CID]) -> wire.Haves:
        """For each segment: the slots held here, and who is known to hold others."""
        return wire.Haves(tuple([await self._holding(segment) for segment in segments]))

    async def _holding(self, segment: CID) -> wire.Holding:
        def work() -> tuple[list[HeldSlot], list[Placement]]:
            catalog = self._stores.catalog
            return catalog.held_slots(segment), catalog.placements(segment)

        rows, placements = await self._runtime.workers.run(work)
        held = {row.slot: row for row in rows if row.state == "held"}
        me = self._network.peer_id
        entries = [
            wire.HolderEntry(me, slot, int(row.expires), self.addresses_of(me))
            for slot, row in held.items()
        ]
        entries += [
            wire.HolderEntry(one.peer, one.slot, int(one.expires), self.addresses_of(one.peer))
            for one in placements
            if one.peer != me
        ]
        slots = tuple(
            wire.HeldSlot(slot, whole=True, lease_expires=int(row.expires))
            for slot, row in sorted(held.items())
        )
        return wire.Holding(segment, slots, tuple(entries[:HOLDER_MAP_ENTRIES_MAX]))

    def addresses_of(self, peer: PeerId) -> tuple[str, ...]:
        """Where a holder can be reached, as far as a holder map has room for it."""
        known = (
            self._network.addresses()
            if peer == self._network.peer_id
            else self._network.known_addresses(peer)
        )
        return tuple(known[:HOLDER_ADDRESSES_MAX])

    # --- Taking a slot -------------------------------------------------------------------

    async def offer_slot(
        self, peer: PeerId, offer: wire.PutSlot, fetch_block: FetchBlock
    ) -> LocalReception:
        """Take the slot, with room reserved for it, or raise Refused."""
        if not self._options.capacity_bytes:
            raise Refused("this node keeps nothing for others", wire.Refusal.POLICY)
        record = self._check_record(offer)
        manifest, segment = await self._documents(offer, fetch_block)
        fragments = list(segment.slot_blocks(offer.slot)) if offer.slot < segment.n else []
        if not fragments:
            raise Refused(
                f"segment {offer.segment} has nothing in slot {offer.slot}", wire.Refusal.MALFORMED
            )
        row = HeldSlot(
            segment=offer.segment,
            slot=offer.slot,
            owner=record.owner,
            root=record.root,
            manifest=offer.manifest,
            bytes=segment.slot_bytes(offer.slot),
            state="reserved",
            lease=None,
            expires=float(record.expires),
            updated=self._runtime.clock.now(),
        )
        async with self._reserving:
            wanted = await self._runtime.workers.run(
                self._reserve, row, record, offer, manifest, segment, fragments
            )
        for entry in offer.holders:
            if entry.addresses:
                self._network.remember(PeerAddresses(entry.peer, entry.addresses))
        return LocalReception(self, row, fragments, wanted)

    def _check_record(self, offer: wire.PutSlot) -> PinRecord:
        now = int(self._runtime.clock.now())
        try:
            record = open_pin_record(offer.pin_record, now).record
        except ProtocolViolation as error:
            raise Refused(f"pin record: {error}", wire.Refusal.BAD_SIGNATURE) from error
        if record.expires <= now:
            raise Refused("the pin record has expired", wire.Refusal.EXPIRED)
        if offer.manifest not in record.manifests:
            raise Refused("the pin record does not name the manifest", wire.Refusal.MALFORMED)
        return record

    async def _documents(
        self, offer: wire.PutSlot, fetch_block: FetchBlock
    ) -> tuple[Manifest, Segment]:
        """The manifest and segment of the offer, each checked against the one before."""
        try:
            manifest = Manifest.decode(await self._document(offer.manifest, fetch_block))
            ref = next((ref for ref in manifest.segments if ref.cid == offer.segment), None)
            if ref is None:
                raise Refused("the manifest does not list the segment", wire.Refusal.MALFORMED)
            segment = Segment.decode(await self._document(offer.segment, fetch_block))
            manifest.check_segment(ref, segment)
        except DataError as error:
            raise Refused(str(error), wire.Refusal.MALFORMED) from error
        return manifest, segment

    async def _document(self, cid: CID, fetch_block: FetchBlock) -> bytes:
        data = await self._runtime.workers.run(self._read, cid)
        return data if data is not None else await fetch_block(cid)

    def _reserve(
        self,
        row: HeldSlot,
        record: PinRecord,
        offer: wire.PutSlot,
        manifest: Manifest,
        segment: Segment,
        fragments: list[tuple[int, CID, int]],
    ) -> list[int]:
        """In a worker: note the slot and say which of its stripes are missing here."""
        catalog, blocks = self._stores.catalog, self._stores.blocks
        if manifest.root != record.root:
            raise Refused("the manifest is of another root", wire.Refusal.MALFORMED)
        present = blocks.has_many([cid for _, cid, _ in fragments])
        wanted = [
            stripe for (stripe, _, _), here in zip(fragments, present, strict=True) if not here
        ]
        missing_bytes = sum(
            size for (_, _, size), here in zip(fragments, present, strict=True) if not here
        )
        known = catalog.held_slot(row.segment, row.slot, row.owner)
        already_reserved = known.bytes if known is not None and known.state == "reserved" else 0
        if missing_bytes > self._free_bytes() + already_reserved:
            raise Refused(f"no room for {missing_bytes} bytes", wire.Refusal.FULL)
        if not catalog.put_pin_record(
            record.owner, record.root, record.seq, float(record.expires), offer.pin_record
        ):
            raise Refused("a newer pin record is known here", wire.Refusal.EXPIRED)
        # Reference first, then put: collection beside us then never takes what we store.
        documents = (offer.manifest, offer.segment)
        kept = {cid.multihash for _, cid, _ in fragments} | {cid.multihash for cid in documents}
        catalog.reference(ReferenceKind.SLOT, slot_key(row.segment, row.slot), kept)
        blocks.put_many([(manifest.cid, manifest.block), (segment.cid, segment.block)])
        catalog.put_manifest(manifest_row(manifest))
        catalog.put_placements(
            [
                Placement(row.segment, entry.slot, entry.peer, float(entry.expires))
                for entry in offer.holders
                if entry.peer != self._network.peer_id
            ]
        )
        catalog.reserve_slot(row)
        return wanted

    def store_fragments(self, row: HeldSlot, blocks: list[tuple[CID, bytes]]) -> None:
        """In a worker: make fragments of a reserved slot durable."""
        self._stores.blocks.put_many(blocks)
        self._stores.catalog.touch_reservation(row.segment, row.slot, self._runtime.clock.now())

    def promise(self, row: HeldSlot, cids: Sequence[CID]) -> bytes:
        """In a worker: sign the lease of a slot whose every block is durable here."""
        missing = self._stores.blocks.has_many(cids).count(False)
        if missing:
            raise Refused(f"{missing} fragments of the slot are missing", wire.Refusal.INTERNAL)
        now = self._runtime.clock.now()
        lease = Lease(
            holder=self._network.peer_id,
            owner=row.owner,
            segment=row.segment,
            slot=row.slot,
            bytes=row.bytes,
            domains=self._options.domains,
            issued=int(now),
            expires=int(now) + self._options.lease_seconds,
            serial=self._stores.catalog.next_serial(),
        )
        envelope = lease.sign(self._key).envelope
        self._stores.catalog.hold_slot(
            row.segment, row.slot, envelope, float(lease.expires), now, row.owner
        )
        return envelope

    def held(self, row: HeldSlot) -> None:
        """A slot came under lease."""
        self._on_held(row.root, row.segment)

    # --- Leases and challenges -----------------------------------------------------------

    async def renew(self, peer: PeerId, request: wire.Renew) -> Sequence[wire.SlotAnswer]:
        """A fresh lease for each slot whose pin record is valid."""
        await self._take_records(request.pin_records)
        return [
            await self._runtime.workers.run(self.renew_slot, ref.segment, ref.slot)
            for ref in request.slots
        ]

    def renew_slot(self, segment: CID, slot: int) -> wire.SlotAnswer:
        """In a worker: extend the lease of a slot held here while its pin record is valid."""
        row = self._stores.catalog.held_slot(segment, slot)
        if row is None or row.state != "held":
            return wire.SlotAnswer(segment, slot, refusal=wire.Refusal.NOT_FOUND)
        record = self._stores.catalog.pin_record(row.owner, row.root)
        if record is None or record.expires <= self._runtime.clock.now():
            return wire.SlotAnswer(segment, slot, refusal=wire.Refusal.EXPIRED)
        try:
            decoded = Segment.decode(self._stores.blocks.get(segment))
        except (NotFoundError, CorruptStore, DataError):
            return wire.SlotAnswer(segment, slot, refusal=wire.Refusal.INTERNAL)
        cids = [cid for _, cid, _ in decoded.slot_blocks(slot)]
        try:
            return wire.SlotAnswer(segment, slot, lease=self.promise(row, cids))
        except Refused:
            return wire.SlotAnswer(segment, slot, refusal=wire.Refusal.INTERNAL)

    async def release(self, peer: PeerId, request: wire.Release) -> Sequence[wire.SlotAnswer]:
        """Slots whose owner's newest pin record ended or dropped them go to the trash."""
        await self._take_records(request.pin_records)

        def work(ref: wire.SlotRef) -> wire.SlotAnswer:
            catalog = self._stores.catalog
            row = catalog.held_slot(ref.segment, ref.slot)
            if row is None:
                return wire.SlotAnswer(ref.segment, ref.slot)
            record = catalog.pin_record(row.owner, row.root)
            if record is not None and record.expires > self._runtime.clock.now():
                return wire.SlotAnswer(ref.segment, ref.slot, refusal=wire.Refusal.POLICY)
            catalog.release_slot(ref.segment, ref.slot, self._runtime.clock.now(), row.owner)
            return wire.SlotAnswer(ref.segment, ref.slot)

        return [await self._runtime.workers.run(work, ref) for ref in request.slots]

    async def _take_records(self, envelopes: Sequence[bytes]) -> None:
        """Keep the pin records of owners and roots that this node already holds slots for."""

        def work() -> None:
            now = int(self._runtime.clock.now())
            for envelope in envelopes:
                try:
                    record = open_pin_record(envelope, now).record
                except ProtocolViolation as error:
                    raise Refused(f"pin record: {error}", wire.Refusal.BAD_SIGNATURE) from error
                if self._stores.catalog.pin_record(record.owner, record.root) is not None:
                    self._stores.catalog.put_pin_record(
                        record.owner, record.root, record.seq, float(record.expires), envelope
                    )

        if envelopes:
            await self._runtime.workers.run(work)

    async def challenge(
        self, peer: PeerId, items: Sequence[wire.Challenged]
    ) -> AsyncGenerator[tuple[CID, bytes | None], None]:
        """The fragments asked for, read from the disk now."""

        def work(item: wire.Challenged) -> tuple[CID, bytes | None]:
            row = self._stores.catalog.held_slot(item.segment, item.slot)
            encoded = self._read(item.segment) if row is not None else None
            if encoded is None:
                return item.segment, None
            segment = Segment.decode(encoded)
            if item.stripe >= len(segment.stripes) or item.slot >= segment.n:
                return item.segment, None
            cid = segment.fragment(item.stripe, item.slot)
            return (cid, self._read(cid)) if cid is not None else (item.segment, None)

        for item in items:
            yield await self._runtime.workers.run(work, item)


class LocalReception:
    """A slot being received here."""

    def __init__(
        self,
        holder: LocalHolder,
        row: HeldSlot,
        fragments: list[tuple[int, CID, int]],
        wanted: list[int],
    ) -> None:
        self._holder = holder
        self._row = row
        self._fragments = {stripe: (cid, size) for stripe, cid, size in fragments}
        self._wanted = wanted

    @property
    def wanted(self) -> Sequence[int]:
        """Stripes whose fragment is not durable here yet."""
        return self._wanted

    def expected(self, stripe: int) -> tuple[CID, int]:
        """CID and size of this slot's fragment of the stripe."""
        return self._fragments[stripe]

    async def store(self, blocks: Sequence[tuple[int, bytes]]) -> None:
        """Make verified fragments durable."""
        named = [(self._fragments[stripe][0], data) for stripe, data in blocks]
        await self._holder.workers.run(self._holder.store_fragments, self._row, named)

    async def finish(self) -> bytes:
        """Sign the lease; the slot is held from here on."""
        cids = [cid for cid, _ in self._fragments.values()]
        envelope = await self._holder.workers.run(self._holder.promise, self._row, cids)
        self._holder.held(self._row)
        return envelope

    async def abandon(self) -> None:
        """What is stored stays reserved until the reservation's idle time ends."""
