"""One segment onto its holders: slots assigned, brought there concurrently, placed elsewhere
when a holder fails, until every slot that the assignment requires has a lease."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

import trio

from dstore.core import wire
from dstore.core.cid import CID
from dstore.core.peerid import PeerId
from dstore.core.pinrecord import Lease, open_lease
from dstore.core.placement import (
    Assignment,
    enough,
)
from dstore.errors import (
    CorruptStore,
    DeadlineExceeded,
    HashMismatch,
    NetworkError,
    PeerError,
    ProtocolViolation,
    Refused,
)
from dstore.limits import (
    CLOCK_SKEW_SECONDS_MAX,
    LEASE_SECONDS_MIN,
    SERVE_BATCH_BYTES,
    SLOT_ACCEPT_SECONDS,
    SLOT_LAST_SECONDS,
    SLOT_STALL_AGAIN_SECONDS,
    SLOT_STALL_SECONDS,
    SLOT_WATCH_SECONDS,
    UPLOAD_ATTEMPTS_MAX,
    UPLOADS_MAX,
)
from dstore.network.fragments_client import FragmentsClient, PutProgress, SlotBlock
from dstore.network.slot_upload import ReadFragment
from dstore.network.streams import Network
from dstore.runtime import JointWork, Runtime, open_plain_nursery
from dstore.service.holder import LocalHolder, LocalReception
from dstore.service.offer import Offer
from dstore.service.slotreader import DataReader, ParityReader
from dstore.service.stores import Stores
from dstore.storage.blockstore import GetBlock
from dstore.storage.rows import Placement

Stored = Callable[[int], None]


@dataclass
class Placed:
    """What came of it: who holds which slot, and whether that is what was required."""

    assignment: Assignment
    holders: dict[int, set[PeerId]] = field(default_factory=dict)
    failures: dict[PeerId, str] = field(default_factory=dict)
    brought: Mapping[int, Collection[PeerId]] = field(default_factory=dict)
    """Of the holders, those that did not hold the slot before."""

    @property
    def complete(self) -> bool:
        """Whether every required slot has a lease."""
        return enough(self.assignment, self.holders)


@dataclass(eq=False)
class _Way:
    """One slot on its way to one peer, and when it last got on."""

    slot: int
    peer: PeerId
    last_resort: bool = False  # to one that was given up before
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    began_at: float = math.inf  # until it has its turn
    news_at: float = math.inf
    longest_seconds: float = 0.0  # without news, so far
    first_seconds: float | None = None  # until the first news, which comes with its acceptance
    got_on_at: float = -math.inf  # the last news after that
    ended: bool = False

    def news(self) -> None:
        """The peer has taken or stored something."""
        now = trio.current_time()
        if self.first_seconds is None:
            self.first_seconds = now - self.news_at
        else:
            self.got_on_at = now
        self.longest_seconds = self.quiet_seconds(now)
        self.news_at = now

    def quiet_seconds(self, now: float) -> float:
        """The longest time without news."""
        return self.longest_seconds if self.ended else max(self.longest_seconds, now - self.news_at)


@dataclass
class _Bringing:
    """One segment on its way."""

    offer: Offer
    read: GetBlock
    stored: Stored
    parity: ParityReader
    avoid: Collection[PeerId]
    held: Mapping[int, Collection[PeerId]]  # before
    holders: dict[int, set[PeerId]] = field(default_factory=dict)
    ways: list[_Way] = field(default_factory=list)
    failures: dict[PeerId, str] = field(default_factory=dict)
    slow: set[PeerId] = field(default_factory=set)  # of those that failed: had no news for long
    changed: trio.Event = field(default_factory=trio.Event)

    @property
    def under_way(self) -> list[_Way]:
        return [way for way in self.ways if not way.ended]

    def planned(self) -> dict[int, set[PeerId]]:
        """Who holds the slots, or is about to."""
        planned = {slot: set(peers) for slot, peers in self.holders.items()}
        for way in self.under_way:
            planned.setdefault(way.slot, set()).add(way.peer)
        return planned

    def brought(self) -> dict[int, set[PeerId]]:
        """Who holds the slots, or is about to, and did not before."""
        return {
            slot: peers - set(self.held.get(slot, ())) for slot, peers in self.planned().items()
        }

    def assignment(self, placed: Mapping[int, Collection[PeerId]]) -> Assignment:
        """Who is to hold what, given who holds some of it, without the peers that failed;
        those of `avoid`, and slow ones, where it takes them to place every slot."""
        brought = self.brought()
        found = self.offer.assign(placed, {*self.avoid, *self.failures}, brought)
        if (self.avoid or self.slow) and found.unplaced:
            found = self.offer.assign(placed, self.failures.keys() - self.slow, brought)
        return found

    def lacking(self) -> dict[int, tuple[PeerId, ...]]:
        """Slots that nobody holds nor is about to, and where to bring them."""
        tried = Counter(way.slot for way in self.ways)
        new = self.assignment(self.planned()).new
        return {
            slot: to
            for slot, to in new.items()
            if tried[slot] < UPLOAD_ATTEMPTS_MAX
            and not (self.slow.issuperset(to) and self._overdue(slot, to))
        }

    def stalled(self) -> list[_Way]:
        """Ways without news for longer than the others' pace explains, whose slot somebody
        else could take and be as well apart from the others, or has waited for as long as an
        add may stand still: who is merely far is worth that."""
        now = trio.current_time()
        found: list[_Way] = []
        planned, avoid = self.planned(), {*self.avoid, *self.failures}
        for way in self.under_way:
            if now - way.news_at > self._patience_seconds(way, now):
                slot, peer = way.slot, way.peer
                planned[slot].discard(peer)
                to = self.offer.assign(planned, {*avoid, peer}, self.brought()).new.get(slot, ())
                well = to and not self.offer.crowds(planned, peer, to)
                if well or self._overdue(slot, [peer]):
                    found.append(way)
                    avoid.add(peer)
                    planned[slot].update(to)  # two do not go to the one free domain
                else:
                    planned[slot].add(peer)
        return found

    def _overdue(self, slot: int, peers: Collection[PeerId]) -> bool:
        """Whether the slot has got on with nobody, nor any slot with `peers`, for as long as an
        add may stand still.  Who is stuck may accept a slot all the same, and take again what
        it took before: neither counts."""
        began = min((way.began_at for way in self.ways if way.slot == slot), default=math.inf)
        some = (
            way.got_on_at
            for way in self.ways
            if not way.last_resort and (way.slot == slot or way.peer in peers)
        )
        return trio.current_time() - max([began, *some]) > SLOT_LAST_SECONDS

    def _patience_seconds(self, way: _Way, now: float) -> float:
        """How long this one may be without news."""
        others = [other for other in self.ways if other.peer != way.peer]
        accepted = [other.first_seconds for other in others if other.first_seconds is not None]
        if way.first_seconds is None and accepted:
            # Not even accepted: dead, or stopped while it still looked alive.
            return max(SLOT_ACCEPT_SECONDS, 4 * statistics.median_low(accepted))
        quiet = [other.quiet_seconds(now) for other in others]
        usual = statistics.median_low(quiet) if quiet else 0
        # The slot has waited for a slow one before: two of them must not add up.
        before = (other.peer for other in others if other.slot == way.slot)
        again = way.last_resort or not self.slow.isdisjoint(before)
        return max(SLOT_STALL_AGAIN_SECONDS if again else SLOT_STALL_SECONDS, 2 * usual)


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
        self._noting_leases = JointWork(runtime.workers, self._note_leases, hands=1)

    async def place(
        self,
        offer: Offer,
        read: GetBlock,
        held: Mapping[int, Collection[PeerId]],
        stored: Stored,
        *,
        confirm: bool = True,
        avoid: Collection[PeerId] = (),
    ) -> Placed:
        """Bring the slots to holders; `read` reads blocks of their data (in a worker), `stored`
        is told of bytes as they become durable there.

        Peers of `held` come first: with `confirm` they are offered their slots again, so that
        they learn of this pin record (nothing moves that they have), else their word stands.
        Peers that fail are replaced while there are others, those of `avoid` being the last
        resort; never raises for them.
        """
        parity = ParityReader(read, self._runtime.workers, offer.segment)
        bringing = _Bringing(offer, read, stored, parity, frozenset(avoid), held)
        limiter = trio.CapacityLimiter(UPLOADS_MAX)
        async with open_plain_nursery() as nursery:
            if confirm:
                await self._start(bringing, held, nursery, limiter)
            else:
                bringing.holders = {slot: set(peers) for slot, peers in held.items() if peers}
            while True:
                await self._start(bringing, bringing.lacking(), nursery, limiter)
                if not bringing.under_way:
                    break
                with trio.move_on_after(SLOT_WATCH_SECONDS):
                    await bringing.changed.wait()
                for way in bringing.stalled():
                    way.scope.cancel()
        result = bringing.assignment(bringing.holders)
        return Placed(result, bringing.holders, bringing.failures, bringing.brought())

    async def _start(
        self,
        bringing: _Bringing,
        slots: Mapping[int, Collection[PeerId]],
        nursery: trio.Nursery,
        limiter: trio.CapacityLimiter,
    ) -> None:
        slow = bringing.slow
        ways = [_Way(slot, one, one in slow) for slot, peers in slots.items() for one in peers]
        bringing.ways += ways
        bringing.changed = trio.Event()
        if ways:
            await self._runtime.workers.run(self._note_plan, bringing.offer.segment.cid, slots)
        for way in ways:
            nursery.start_soon(self._bring, bringing, way, limiter)

    def _note_plan(self, segment: CID, slots: Mapping[int, Collection[PeerId]]) -> None:
        """In a worker: who may hold what from now on, should this process end before it hears
        of the leases; they are told when the root is let go of."""
        catalog, now = self._stores.catalog, self._runtime.clock.now()
        known = {(one.slot, one.peer) for one in catalog.placements(segment)}
        planned = {(slot, peer) for slot, peers in slots.items() for peer in peers} - known
        if planned:
            catalog.put_placements(
                [Placement(segment, slot, peer, now) for slot, peer in sorted(planned)],
                durable=True,
            )

    async def _bring(self, bringing: _Bringing, way: _Way, limiter: trio.CapacityLimiter) -> None:
        offer, slot, peer = bringing.offer, way.slot, way.peer
        envelope: bytes | None = None
        try:
            async with limiter:
                way.began_at = way.news_at = trio.current_time()
                with way.scope:
                    envelope, until = await self._put(bringing, way)
            if envelope is None:
                bringing.slow.add(peer)
                quiet = trio.current_time() - way.news_at
                raise DeadlineExceeded(f"{peer} is busy or hung: it took nothing for {quiet:.1f} s")
            lease = self._check_lease(envelope, offer, slot, peer, until)
        except (NetworkError, PeerError) as error:
            bringing.failures[peer] = str(error)
        else:
            placement = Placement(
                offer.segment.cid,
                slot,
                peer,
                float(lease.expires),
                envelope,
                self._runtime.clock.now(),
            )
            await self._noting_leases.run(placement)
            bringing.holders.setdefault(slot, set()).add(peer)
        way.ended = True
        bringing.parity.ended(slot)
        bringing.changed.set()

    async def _put(self, bringing: _Bringing, way: _Way) -> tuple[bytes, float]:
        """The lease, and when the pin record ends that it was given for.  Who knows a newer record
        than the one offered is offered one above it, once."""
        wish = bringing.offer.wish
        record, until = wish.offered
        try:
            return await self._put_under(record, bringing, way), until
        except Refused as refusal:
            if refusal.reason != wire.Refusal.EXPIRED or not await wish.outdated(way.peer, record):
                raise
        record, until = wish.offered
        return await self._put_under(record, bringing, way), until

    async def _put_under(self, record: bytes, bringing: _Bringing, way: _Way) -> bytes:
        slot, peer = way.slot, way.peer
        offer, segment = bringing.offer, bringing.offer.segment
        fragments = [SlotBlock(*fragment) for fragment in segment.slot_blocks(slot)]
        put = wire.PutSlot(record, offer.manifest, segment.cid, slot, self._holder_map(bringing))
        if slot < segment.k:
            read = DataReader(bringing.read, self._runtime.workers, fragments).read
        else:

            async def read(fragment: SlotBlock) -> bytes:
                return await bringing.parity.read(fragment.stripe, slot)

        if peer == self._network.peer_id:
            reception = await self._holder.offer_slot(peer, put, offer.load_all)
            await self._keep(way, reception, fragments, read)
            envelope = await reception.finish()
            bringing.stored(segment.slot_bytes(slot))
            return envelope
        last = 0

        def progress(news: PutProgress) -> None:
            nonlocal last
            way.news()
            bringing.stored(news.stored - last)
            last = news.stored

        return await self._client.put_slot(peer, put, offer.load, fragments, read, progress)

    async def _keep(
        self,
        way: _Way,
        reception: LocalReception,
        fragments: Sequence[SlotBlock],
        read: ReadFragment,
    ) -> None:
        """Store what a slot of this node lacks: parity, for the data is here.  Checked, as any
        holder checks what is brought to it.  Raises CorruptStore."""
        missing = set(reception.wanted)
        batch: list[tuple[SlotBlock, bytes]] = []

        async def store() -> None:
            try:
                await reception.store([(fragment.stripe, data) for fragment, data in batch])
            except HashMismatch as error:
                raise CorruptStore(f"computed from blocks of this node: {error}") from error
            batch.clear()

        for fragment in (one for one in fragments if one.stripe in missing):
            batch.append((fragment, await read(fragment)))
            way.news()
            if sum(len(data) for _, data in batch) >= SERVE_BATCH_BYTES:
                await store()
        await store()

    def _holder_map(self, bringing: _Bringing) -> tuple[wire.HolderEntry, ...]:
        """Who holds, or is about to hold, the slots: holders keep it for when the DHT is
        silent.  No expiry beyond now is claimed: a lease speaks for itself."""
        now = int(self._runtime.clock.now())
        return tuple(
            wire.HolderEntry(peer, slot, now, self._holder.addresses_of(peer))
            for slot, peers in sorted(bringing.planned().items())
            for peer in sorted(peers)
        )

    def _check_lease(
        self, envelope: bytes, offer: Offer, slot: int, peer: PeerId, until: float
    ) -> Lease:
        segment, now = offer.segment, self._runtime.clock.now()
        lease = open_lease(envelope, now).lease
        if (lease.holder, lease.owner, lease.segment, lease.slot) != (
            peer,
            offer.wish.owner,
            segment.cid,
            slot,
        ):
            raise ProtocolViolation(f"{peer} answered with a lease for something else")
        if lease.bytes != segment.slot_bytes(slot):
            raise ProtocolViolation(f"{peer} answered with a lease of {lease.bytes} bytes")
        # By the holder's clock, that it runs for a day; the owner may want less.
        if lease.expires < min(until, now + LEASE_SECONDS_MIN - CLOCK_SKEW_SECONDS_MAX):
            left = lease.expires - now
            raise ProtocolViolation(f"{peer} answered with a lease of {left:.0f} seconds")
        return lease

    def _note_leases(self, placements: Sequence[Placement]) -> list[bool]:
        """In a worker."""
        self._stores.catalog.put_placements(list(placements))
        return [True] * len(placements)
