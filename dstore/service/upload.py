"""One segment onto its holders: slots assigned, brought there concurrently, placed elsewhere
when a holder fails, until every slot that the assignment requires has a lease."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

import trio

from dstore.core import wire
from dstore.core.cid import CID
from dstore.core.manifest import Segment
from dstore.core.peerid import PeerId
from dstore.core.pinrecord import Lease, open_lease
from dstore.core.placement import Assignment, Candidate, assign, enough, needs_of
from dstore.errors import NetworkError, PeerError, ProtocolViolation
from dstore.limits import (
    SERVE_BATCH_BLOCKS_MAX,
    SERVE_BATCH_BYTES,
    UPLOAD_ATTEMPTS_MAX,
)
from dstore.network.fragments_client import FragmentsClient, PutProgress, SlotBlock
from dstore.network.streams import Network
from dstore.runtime import Runtime, open_plain_nursery
from dstore.service.holder import LocalHolder
from dstore.service.stores import Stores
from dstore.storage.rows import Placement

Stored = Callable[[int], None]


@dataclass(frozen=True)
class Offer:
    """What is offered with every slot of one root."""

    pin_record: bytes
    manifest: CID
    segment: Segment
    candidates: Sequence[Candidate]
    group: bytes


@dataclass
class Placed:
    """What came of it: who holds which slot, and whether that is what was required."""

    assignment: Assignment
    holders: dict[int, set[PeerId]] = field(default_factory=dict)
    failures: dict[PeerId, str] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        """Whether every required slot has a lease."""
        return enough(self.assignment, self.holders)


class Uploader:
    """Brings segments to holders."""

    def __init__(
        self,
        network: Network,
        client: FragmentsClient,
        holder: LocalHolder,
        stores: Stores,
        runtime: Runtime,
    ) -> None:
        self._network = network
        self._client = client
        self._holder = holder
        self._stores = stores
        self._runtime = runtime

    async def place(
        self, offer: Offer, held: Mapping[int, Collection[PeerId]], stored: Stored
    ) -> Placed:
        """Bring the slots that `held` does not cover to holders; `stored` is told of bytes as
        they become durable there.  Peers that fail are replaced while there are others;
        never raises for them."""
        segment = offer.segment
        needs = needs_of(segment)
        holders = {slot: set(peers) for slot, peers in held.items() if peers}
        failures: dict[PeerId, str] = {}

        def assignment() -> Assignment:
            return assign(
                segment.cid,
                needs,
                offer.candidates,
                segment.code,
                placed=holders,
                avoid=failures.keys(),
                group=offer.group,
            )

        current = assignment()
        for _ in range(UPLOAD_ATTEMPTS_MAX):
            if not current.new:
                break
            async with open_plain_nursery() as nursery:
                for slot, peers in current.new.items():
                    for peer in peers:
                        nursery.start_soon(
                            self._bring, offer, slot, peer, current, holders, failures, stored
                        )
            current = assignment()
        return Placed(current, holders, failures)

    async def _bring(
        self,
        offer: Offer,
        slot: int,
        peer: PeerId,
        assignment: Assignment,
        holders: dict[int, set[PeerId]],
        failures: dict[PeerId, str],
        stored: Stored,
    ) -> None:
        try:
            envelope = await self._put(offer, slot, peer, assignment, stored)
            lease = self._check_lease(envelope, offer.segment, slot, peer)
        except (NetworkError, PeerError) as error:
            failures[peer] = str(error)
            return
        await self._runtime.workers.run(
            self._stores.catalog.put_placement,
            Placement(
                offer.segment.cid,
                slot,
                peer,
                float(lease.expires),
                envelope,
                self._runtime.clock.now(),
            ),
        )
        holders.setdefault(slot, set()).add(peer)

    async def _put(
        self, offer: Offer, slot: int, peer: PeerId, assignment: Assignment, stored: Stored
    ) -> bytes:
        segment = offer.segment
        fragments = [SlotBlock(*fragment) for fragment in segment.slot_blocks(slot)]
        put = wire.PutSlot(
            offer.pin_record,
            offer.manifest,
            segment.cid,
            slot,
            self._holder_map(assignment),
        )
        if peer == self._network.peer_id:
            reception = await self._holder.offer_slot(peer, put, self._load)
            envelope = await reception.finish()
            stored(segment.slot_bytes(slot))
            return envelope
        reader = _SlotReader(self._stores, self._runtime, fragments)
        last = 0

        def progress(news: PutProgress) -> None:
            nonlocal last
            stored(news.stored - last)
            last = news.stored

        return await self._client.put_slot(peer, put, self._load, fragments, reader.read, progress)

    def _holder_map(self, assignment: Assignment) -> tuple[wire.HolderEntry, ...]:
        """Who holds, or is about to hold, the slots: holders keep it for when the DHT is
        silent."""
        now = int(self._runtime.clock.now())
        return tuple(
            wire.HolderEntry(peer, slot, now, self._holder.addresses_of(peer))
            for slot, peers in assignment.holders.items()
            for peer in peers
        )

    def _check_lease(self, envelope: bytes, segment: Segment, slot: int, peer: PeerId) -> Lease:
        lease = open_lease(envelope, self._runtime.clock.now()).lease
        if (lease.holder, lease.segment, lease.slot) != (peer, segment.cid, slot):
            raise ProtocolViolation(f"{peer} answered with a lease for something else")
        if lease.bytes != segment.slot_bytes(slot):
            raise ProtocolViolation(f"{peer} answered with a lease of {lease.bytes} bytes")
        return lease

    async def _load(self, cid: CID) -> bytes:
        return await self._runtime.workers.run(self._stores.blocks.get, cid)


class _SlotReader:
    """Reads the fragments of one slot in order, some megabytes a hand-over to a worker."""

    def __init__(self, stores: Stores, runtime: Runtime, fragments: Sequence[SlotBlock]) -> None:
        self._stores = stores
        self._runtime = runtime
        self._fragments = fragments
        self._place = {fragment.stripe: at for at, fragment in enumerate(fragments)}
        self._ahead: dict[int, bytes] = {}
        self._lock = trio.Lock()

    async def read(self, fragment: SlotBlock) -> bytes:
        """The bytes of the fragment; each is asked for once."""
        async with self._lock:
            if fragment.stripe not in self._ahead:
                # What a resumed upload skipped is read for nothing once, and dropped here.
                self._ahead = await self._runtime.workers.run(
                    self._read_from, self._place[fragment.stripe]
                )
            return self._ahead.pop(fragment.stripe)

    def _read_from(self, start: int) -> dict[int, bytes]:
        batch: dict[int, bytes] = {}
        size = 0
        for fragment in self._fragments[start : start + SERVE_BATCH_BLOCKS_MAX]:
            data = self._stores.blocks.get(fragment.cid)
            batch[fragment.stripe] = data
            size += len(data)
            if size >= SERVE_BATCH_BYTES:
                break
        return batch
