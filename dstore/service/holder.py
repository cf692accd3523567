"""What this node keeps for others: accepting slots, serving blocks, promising leases.

It implements the `Holder` that the fragment protocol serves.  A lease is signed only when the
chain pin record → manifest → segment → slot has been checked and every block of the slot is
durable here; from then on the holder itself extends it while the pin record is valid.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, replace

import trio

from dstore import __version__
from dstore.core import wire
from dstore.core.cid import CID
from dstore.core.envelope import SigningKey
from dstore.core.manifest import Manifest, Segment
from dstore.core.peerid import PeerId
from dstore.core.pinrecord import PinRecord, open_pin_record
from dstore.errors import (
    CorruptStore,
    DataError,
    DstoreError,
    HashMismatch,
    NotFoundError,
    ProtocolViolation,
    Refused,
)
from dstore.limits import (
    BLOCK_BYTES_MAX,
    FIND_MANIFESTS_MAX,
    FIND_RECORDS_MAX,
    HOLDER_ADDRESSES_MAX,
    HOLDER_MAP_ENTRIES_MAX,
    LEASE_SECONDS,
    SEGMENT_BYTES_MAX,
    SERVE_AHEAD_BYTES,
    SERVE_BATCH_BLOCKS_MAX,
    SERVE_BATCH_BYTES,
)
from dstore.network.fragments_server import Batch, FetchBlocks
from dstore.network.streams import Network, PeerAddresses
from dstore.runtime import JointWork, Runtime, Workers
from dstore.service.leases import Leases
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
        self._runtime = runtime
        self._options = options
        self._on_held = on_held
        self.leases = Leases(
            stores, network.peer_id, key, runtime.clock, options.domains, options.lease_seconds
        )
        self._reserving = trio.Lock()
        self._reading = JointWork(runtime.workers, self._read_batches)

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
        """What may still be promised: within the capacity, and within what the disk has."""
        blocks = self._stores.blocks
        left, room = self._options.capacity_bytes - blocks.usage().bytes, blocks.room()
        promised = self._stores.catalog.reserved_bytes()
        return (left if room is None else min(left, room)) - promised

    async def find_manifests(self, peer: PeerId, root: CID) -> wire.Manifests:
        """Manifests under which this node has pinned the root or has slots of it, and the pin
        records behind them."""

        def work() -> wire.Manifests:
            manifests = self._stores.catalog.manifests_named(root, FIND_MANIFESTS_MAX)
            records = self._stores.catalog.pin_records_named(root, FIND_RECORDS_MAX)
            return wire.Manifests(tuple(manifests), tuple(row.envelope for row in records))

        return await self._runtime.workers.run(work)

    async def blocks(self, peer: PeerId, cids: Sequence[CID]) -> AsyncGenerator[Batch, None]:
        """The blocks in order, read a batch at a time, with those of others who ask at the same
        time; None for one that is not here."""
        position = 0
        while position < len(cids):
            found = await self._reading.run((cids, position))
            batch = deque(zip(cids[position : position + len(found)], found, strict=True))
            del found  # whoever takes the batch has all that there is of it
            position += len(batch)
            yield batch

    def _read_batches(self, asked: Sequence[tuple[Sequence[CID], int]]) -> list[list[bytes | None]]:
        """In a worker, for the first of those who ask: some of their blocks, at least one, from
        a position on, each within what one of them has been granted."""
        batches: list[list[bytes | None]] = []
        count = size = 0
        for cids, start in asked:
            batch: list[bytes | None] = []
            batches.append(batch)
            own = largest = 0
            for cid in cids[start : start + SERVE_BATCH_BLOCKS_MAX]:
                data = _found(self._stores.blocks.get, cid)
                length = len(data or b"")
                if own + length > BLOCK_BYTES_MAX:
                    break  # read again when its turn comes: as a rule blocks are alike
                batch.append(data)
                own, largest = own + length, max(largest, length)
                count, size = count + 1, size + length
                if size >= SERVE_BATCH_BYTES or count >= SERVE_BATCH_BLOCKS_MAX:
                    return batches
                if own + largest > SERVE_AHEAD_BYTES:
                    break
        return batches

    async def have(self, peer: PeerId, segments: Sequence[CID]) -> wire.Haves:
        """For each segment: the slots held here, and who is known to hold others."""
        return wire.Haves(tuple([await self._holding(segment) for segment in segments]))

    async def _holding(self, segment: CID) -> wire.Holding:
        def work() -> tuple[list[HeldSlot], list[Placement]]:
            catalog = self._stores.catalog
            return catalog.held_slots(segment), catalog.placements(segment)

        rows, placements = await self._runtime.workers.run(work)
        # Several owners may want a slot: it is here for as long as the last of them does.
        running = sorted((row for row in rows if row.state == "held"), key=lambda row: row.expires)
        held = {row.slot: row for row in running}
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
        self, peer: PeerId, offer: wire.PutSlot, fetch_blocks: FetchBlocks
    ) -> LocalReception:
        """Take the slot, with room reserved for it, or raise Refused."""
        if not self._options.capacity_bytes:
            raise Refused("this node keeps nothing for others", wire.Refusal.POLICY)
        record = self._check_record(offer)
        manifest, segment = await self._documents(offer, fetch_blocks)
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
        return LocalReception(self, row, manifest, fragments, wanted)

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
        self, offer: wire.PutSlot, fetch_blocks: FetchBlocks
    ) -> tuple[Manifest, Segment]:
        """The manifest and segment of the offer, each checked against the one before."""
        run = self._runtime.workers.run
        cids = [offer.manifest, offer.segment]
        found = await run(lambda: [_found(self._stores.blocks.get, cid) for cid in cids])
        documents = {cid: data for cid, data in zip(cids, found, strict=True) if data is not None}
        missing = [cid for cid in dict.fromkeys(cids) if cid not in documents]
        if missing:
            documents |= zip(missing, await fetch_blocks(missing), strict=True)

        def decode() -> tuple[Manifest, Segment]:
            manifest = Manifest.decode(documents[offer.manifest])
            ref = next((ref for ref in manifest.segments if ref.cid == offer.segment), None)
            if ref is None:
                raise Refused("the manifest does not list the segment", wire.Refusal.MALFORMED)
            segment = Segment.decode(documents[offer.segment])
            manifest.check_segment(ref, segment)
            return manifest, segment

        try:
            return await run(decode)  # of two megabytes takes a while
        except DataError as error:
            raise Refused(str(error), wire.Refusal.MALFORMED) from error

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
        cids = [cid for _, cid, _ in fragments]
        missing_bytes = sum(
            size
            for (_, _, size), here in zip(fragments, blocks.has_many(cids), strict=True)
            if not here
        )
        known = catalog.held_slot(row.segment, row.slot, row.owner)
        already_reserved = known.missing if known is not None else 0
        # What is here already fits, however full the node is.
        if missing_bytes > max(0, self._free_bytes() + already_reserved):
            raise Refused(f"no room for {missing_bytes} bytes", wire.Refusal.FULL)
        if not catalog.put_pin_record(
            record.owner, record.root, record.seq, float(record.expires), offer.pin_record
        ):
            raise Refused("a newer pin record is known here", wire.Refusal.EXPIRED)
        # The row first: whatever is kept for the slot from here on ends with it.  Then the
        # references, then the bytes: collection beside us never takes what we store.
        catalog.reserve_slot(replace(row, missing=missing_bytes))
        kept = {cid.multihash for cid in (*cids, offer.manifest, offer.segment)}
        catalog.reference(ReferenceKind.SLOT, slot_key(row.segment, row.slot), kept)
        blocks.put_many([(manifest.cid, manifest.block), (segment.cid, segment.block)])
        catalog.put_placements(self._hearsay(offer, segment))
        # Asked only now: what was here unreferenced a moment ago may have been collected.
        present = blocks.has_many(cids)
        return [stripe for (stripe, _, _), here in zip(fragments, present, strict=True) if not here]

    def _hearsay(self, offer: wire.PutSlot, segment: Segment) -> list[Placement]:
        """What the offer says of other holders, as far as this node takes it on trust: what it
        knows by a lease stays, no segment gets more entries than a holder map has room for,
        and no entry outlives a lease."""
        known = self._stores.catalog.placements(segment.cid)
        leased = {(one.slot, one.peer) for one in known if one.lease is not None}
        told = {(one.slot, one.peer) for one in known}
        latest = self._runtime.clock.now() + LEASE_SECONDS
        taken: list[Placement] = []
        for entry in offer.holders:
            key = entry.slot, entry.peer
            if entry.peer == self._network.peer_id or key in leased or entry.slot >= segment.n:
                continue
            if key not in told and len(told) >= HOLDER_MAP_ENTRIES_MAX:
                break
            told.add(key)
            expires = min(float(entry.expires), latest)
            taken.append(Placement(segment.cid, entry.slot, entry.peer, expires))
        return taken

    def store_fragments(
        self, row: HeldSlot, blocks: list[tuple[CID, bytes]], missing_bytes: int
    ) -> None:
        """In a worker: make fragments of a reserved slot durable; so much is missing then.
        Raises HashMismatch where one is not what it must be, and nothing is stored."""
        for cid, data in blocks:
            if not cid.verify(data):
                raise HashMismatch(f"other bytes than {cid}")
        self._stores.blocks.put_many(blocks, read_soon=False)
        now = self._runtime.clock.now()
        self._stores.catalog.touch_reservation(row.segment, row.slot, now, missing_bytes)

    def promise(self, row: HeldSlot, manifest: Manifest, cids: Sequence[CID]) -> bytes:
        """In a worker: sign the lease of a slot whose every block is durable here.

        Only now others are told of the manifest: one that nobody has brought a slot of costs
        whoever invented it nothing."""
        catalog = self._stores.catalog
        catalog.put_manifest(manifest_row(manifest))
        try:
            return self.leases.promise(row, cids)
        except DstoreError:  # the slot's row may be gone, and what would take the manifest along
            catalog.forget_manifests(row.root)
            raise

    def held(self, row: HeldSlot) -> None:
        """A slot came under lease."""
        self._on_held(row.root, row.segment)

    # --- Leases and challenges -----------------------------------------------------------

    async def renew(self, peer: PeerId, request: wire.Renew) -> Sequence[wire.SlotAnswer]:
        """A fresh lease for each slot that a valid pin record wants."""
        owners = await self._runtime.workers.run(self.leases.take_records, request.pin_records)
        return [
            await self._runtime.workers.run(self.leases.renew, ref.segment, ref.slot, owners)
            for ref in request.slots
        ]

    async def release(self, peer: PeerId, request: wire.Release) -> Sequence[wire.SlotAnswer]:
        """Slots whose owner's newest pin record ended or dropped them go to the trash."""
        await self._runtime.workers.run(self.leases.take_records, request.pin_records)
        return [
            await self._runtime.workers.run(self.leases.release, ref.segment, ref.slot)
            for ref in request.slots
        ]

    async def challenge(
        self, peer: PeerId, items: Sequence[wire.Challenged]
    ) -> AsyncGenerator[Batch, None]:
        """The fragments asked for, read from the disk now, one at a time."""
        get = self._stores.blocks.get
        decoded: dict[CID, Segment] = {}  # at most one: items come segment by segment

        def work(item: wire.Challenged) -> tuple[CID, bytes | None]:
            if self._stores.catalog.held_slot(item.segment, item.slot) is None:
                return item.segment, None
            segment = decoded.get(item.segment)
            if segment is None:
                encoded = _found(get, item.segment)
                if encoded is None:
                    return item.segment, None
                decoded.clear()
                segment = decoded[item.segment] = Segment.decode(encoded)
            if item.stripe >= len(segment.stripes) or item.slot >= segment.n:
                return item.segment, None
            cid = segment.fragment(item.stripe, item.slot)
            return (cid, _found(get, cid)) if cid is not None else (item.segment, None)

        for item in items:
            yield deque((await self._runtime.workers.run(work, item),))


class LocalReception:
    """A slot being received here."""

    def __init__(
        self,
        holder: LocalHolder,
        row: HeldSlot,
        manifest: Manifest,
        fragments: list[tuple[int, CID, int]],
        wanted: list[int],
    ) -> None:
        self._holder = holder
        self._row = row
        self._manifest = manifest
        self._fragments = {stripe: (cid, size) for stripe, cid, size in fragments}
        self._wanted = wanted
        self._missing = set(wanted)
        self._missing_bytes = sum(self._fragments[stripe][1] for stripe in wanted)

    @property
    def wanted(self) -> Sequence[int]:
        """Stripes whose fragment is not durable here yet."""
        return self._wanted

    def expected(self, stripe: int) -> tuple[CID, int]:
        """CID and size of this slot's fragment of the stripe."""
        return self._fragments[stripe]

    async def store(self, blocks: Sequence[tuple[int, bytes]]) -> None:
        """Verify fragments and make them durable."""
        named = [(self._fragments[stripe][0], data) for stripe, data in blocks]
        came = self._missing.intersection(stripe for stripe, _ in blocks)
        missing_bytes = self._missing_bytes - sum(self._fragments[stripe][1] for stripe in came)
        await self._holder.workers.run(
            self._holder.store_fragments, self._row, named, missing_bytes
        )
        self._missing -= came
        self._missing_bytes = missing_bytes

    async def finish(self) -> bytes:
        """Sign the lease; the slot is held from here on."""
        cids = [cid for cid, _ in self._fragments.values()]
        envelope = await self._holder.workers.run(
            self._holder.promise, self._row, self._manifest, cids
        )
        self._holder.held(self._row)
        return envelope

    async def abandon(self) -> None:
        """What is stored stays reserved until the reservation's idle time ends."""


def _found(get: Callable[[CID], bytes], cid: CID) -> bytes | None:
    try:
        return get(cid)
    except (NotFoundError, CorruptStore):  # the store quarantines and counts the latter
        return None
