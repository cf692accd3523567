"""The segments of one root: those in memory, who holds their slots, and where blocks that no
stripe lists come from.

Who may have what is asked of the peers that know the root; what they say is hints, and every
block is checked.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from functools import partial
from itertools import count
from weakref import WeakSet

import trio

from dstore.core import wire
from dstore.core.cid import CID
from dstore.core.manifest import Manifest, Segment, SegmentRef
from dstore.core.peerid import PeerId
from dstore.errors import (
    CorruptStore,
    NetworkError,
    NotFoundError,
    PeerError,
)
from dstore.limits import (
    BLOCK_BYTES_MAX,
    FETCH_BLOCK_SECONDS,
    HEDGE_SECONDS,
    HEDGE_SECONDS_MIN,
    HOLDER_MAP_PEERS_ASKED,
    HOLDER_MAP_SECONDS,
    HOLDERS_ASKED_MAX,
    HOLDERS_PER_SLOT_MAX,
    SEGMENT_FRAGMENT_BYTES,
    SEGMENT_USED_SECONDS,
    SEGMENTS_BYTES_MAX,
    SOURCES_TRIED_MAX,
)
from dstore.network.streams import PeerAddresses
from dstore.runtime import open_plain_nursery
from dstore.service.decoding import Holders
from dstore.service.flights import Flights
from dstore.service.race import gather_enough
from dstore.service.sources import Access, Discovery, RootSources


class SegmentMemory:
    """How much the decoded segments of all sessions take: beyond `bytes_max`, that used longest
    ago goes, but a session that reads keeps the one it used last."""

    def __init__(self, bytes_max: int = SEGMENTS_BYTES_MAX) -> None:
        self.numbers = count()  # of uses, of all sessions
        self._bytes_max = bytes_max
        self._sessions: WeakSet[RootSegments] = WeakSet()

    @property
    def taken_bytes(self) -> int:
        """About what they take."""
        return sum(session.taken_bytes for session in self._sessions)

    def join(self, session: RootSegments) -> None:
        """Count what the session keeps, as long as there is one."""
        self._sessions.add(session)

    def trim(self) -> None:
        """Drop what is too much."""
        excess = self.taken_bytes - self._bytes_max
        while excess > 0:
            spare = [session for session in self._sessions if session.spares]
            if not spare:
                return
            excess -= min(spare, key=lambda session: session.oldest_use).drop_oldest()


class RootSegments:
    """Loads segments and holder maps; made and kept by a `RootSession`."""

    def __init__(
        self, sources: RootSources, access: Access, discovery: Discovery, memory: SegmentMemory
    ) -> None:
        self._sources = sources
        self._discovery = discovery
        self._fetcher = access.fetcher
        self._client = access.client
        self._network = access.network
        self._stores = access.stores
        self._runtime = access.runtime
        self._loaded: OrderedDict[CID, tuple[Segment, Holders]] = OrderedDict()
        self._uses: dict[CID, int] = {}  # of each loaded one the last, by number
        self._weights: dict[CID, int] = {}
        self._used_at = trio.current_time()
        self._loads: Flights[tuple[Segment, Holders]] = Flights(access.nursery)
        self.failed: Counter[CID] = Counter()  # manifests and segments, since they last helped
        self.proved: set[CID] = set()  # segments in memory that led to a block
        self._tried: set[CID] = set()  # manifests of which a segment was had
        self._found_by: dict[CID, CID] = {}  # the manifest of a segment in memory
        self._memory = memory
        self.taken_bytes = 0
        memory.join(self)

    def __len__(self) -> int:
        """How many are in memory."""
        return len(self._loaded)

    def listing(self, cid: CID) -> list[tuple[CID, Segment, Holders]]:
        """Those in memory that list the block and did not fail lately, each with the manifest
        that it was found by, and who holds its slots."""
        return [
            (self._found_by[segment.cid], segment, holders)
            for segment, holders in self._loaded.values()
            if cid.multihash in segment.locate and not self.failed[segment.cid]
        ]

    def is_new(self, manifest: CID) -> bool:
        """Whether no segment of the manifest was had yet, nor one waited for in vain."""
        return manifest not in self._tried and not self.failed[manifest]

    def helped(self, segment: CID, manifest: CID) -> None:
        """Note that the segment, found by the manifest, led to a block."""
        self.failed.pop(manifest, None)
        self.failed.pop(segment, None)
        if segment in self._loaded:
            self._use(segment)
            self.proved.add(segment)

    @property
    def spares(self) -> bool:
        """Whether it can do without the one it used longest ago."""
        idle = trio.current_time() > self._used_at + SEGMENT_USED_SECONDS
        return len(self._loaded) > (0 if idle else 1)

    @property
    def oldest_use(self) -> int:
        """The number of the last use of the one that was used longest ago; there must be one."""
        return self._uses[next(iter(self._loaded))]

    def drop_oldest(self) -> int:
        """Forget the one used longest ago: how many bytes it took."""
        cid, _ = self._loaded.popitem(last=False)
        del self._uses[cid]
        self._found_by.pop(cid, None)
        self.proved.discard(cid)
        self.failed.pop(cid, None)
        weight = self._weights.pop(cid)
        self.taken_bytes -= weight
        return weight

    def _keep(self, cid: CID, loaded: tuple[Segment, Holders]) -> None:
        """In place of what is known of the segment so far."""
        if self._loaded.get(cid) is loaded:  # by somebody else who waited for it
            return
        weight = _weight(*loaded)
        self.taken_bytes += weight - self._weights.get(cid, 0)
        self._weights[cid] = weight
        self._loaded[cid] = loaded
        self._use(cid)
        self._memory.trim()

    def _use(self, cid: CID) -> None:
        self._loaded.move_to_end(cid)
        self._uses[cid] = next(self._memory.numbers)
        self._used_at = trio.current_time()

    async def load(self, manifest: Manifest, ref: SegmentRef) -> tuple[Segment, Holders]:
        """The segment and who holds its slots.  Raises NotFoundError, MalformedBlock,
        NetworkError."""
        known = self._loaded.get(ref.cid)
        if known is not None:
            self._use(ref.cid)
            self._tried.add(manifest.cid)
            return known
        # Under another manifest it may count where it does not under this one.
        key = manifest.code, ref
        loaded = await self._loads.share(key, partial(self._load, manifest, ref))
        self._tried.add(manifest.cid)
        self._found_by.setdefault(ref.cid, manifest.cid)
        self._keep(ref.cid, loaded)
        return loaded

    async def _load(self, manifest: Manifest, ref: SegmentRef) -> tuple[Segment, Holders]:
        holders: list[Holders] = []

        async def ask() -> None:
            holders.append(await self._holders(ref.cid))

        async with open_plain_nursery() as nursery:
            nursery.start_soon(ask)
            data = await self.local(ref.cid)
            if data is None:
                data = await self.from_sources(ref.cid)
            segment = await self._runtime.workers.run(Segment.decode, data)
            manifest.check_segment(ref, segment)
        return segment, holders[0]

    async def refresh(self, segment: Segment) -> Holders:
        """A new holder map, from everybody who may know of a holder."""

        async def load() -> tuple[Segment, Holders]:
            known = self._loaded.get(segment.cid, (segment, {}))[1]
            mapped = {peer for peers in known.values() for peer in peers}
            asked = {*self._sources.peers, *mapped}
            return segment, await self._holders(segment.cid, asked, HOLDERS_ASKED_MAX)

        loaded = await self._loads.share(("again", segment.cid), load)
        if segment.cid in self._loaded:
            self._keep(segment.cid, loaded)
        return loaded[1]

    async def _holders(
        self, segment: CID, peers: Collection[PeerId] = (), enough: int = HOLDER_MAP_PEERS_ASKED
    ) -> Holders:
        """Who holds what of the segment, by this node's catalog and by what `enough` peers
        who know of any say: those given, the known sources, and holders that the catalog knows."""
        placements = await self._runtime.workers.run(self._stores.catalog.placements, segment)
        own = self._network.peer_id
        candidates = {*self._sources.peers, *peers, *(row.peer for row in placements)} - {own}
        ways = [
            partial(self._ask_holders, peer, segment)
            for peer in self.near_first(candidates)[:HOLDERS_ASKED_MAX]
        ]
        answers = await gather_enough(
            ways, enough, stagger_seconds=HEDGE_SECONDS_MIN, within_seconds=HOLDER_MAP_SECONDS
        )
        holders: Holders = {}
        for placement in placements:
            holders.setdefault(placement.slot, {})[placement.peer] = None
        for answer in answers:
            named: Counter[int] = Counter()
            for holding in answer.holdings:
                for entry in holding.holders:
                    named[entry.slot] += 1
                    if named[entry.slot] > HOLDERS_PER_SLOT_MAX:
                        continue
                    if entry.addresses:
                        self._network.remember(PeerAddresses(entry.peer, entry.addresses))
                    holders.setdefault(entry.slot, {})[entry.peer] = None
        for slot_holders in holders.values():
            slot_holders.pop(own, None)
        return holders

    async def _ask_holders(self, peer: PeerId, segment: CID) -> wire.Haves:
        """As the peer answers.  Raises NotFoundError where it knows of none: such an answer is
        no map, and somebody else is asked."""
        answer = await self._client.have(peer, [segment])
        if not any(holding.holders for holding in answer.holdings):
            raise NotFoundError(f"{peer} knows no holder of {segment}")
        return answer

    def likely_first(self, manifest: Manifest, cid: CID, position: float) -> Iterator[SegmentRef]:
        """The segments that are here already and list the block, then the others, that around
        `position` (0 to 1) of the root's bytes first."""
        passed: set[CID] = set()
        for ref in manifest.segments:
            known = self._loaded.get(ref.cid)
            if known is not None:
                passed.add(ref.cid)
                if cid.multihash in known[0].locate:
                    yield ref
        yield from (ref for ref in _nearest_first(manifest, position) if ref.cid not in passed)

    def load_only(self) -> None:
        """Begin to load the one segment of the root, as most have one: where all its blocks are."""
        self._loads.start(("ahead", self._sources.root), self._only)

    async def _only(self) -> tuple[Segment, Holders]:
        with trio.move_on_after(FETCH_BLOCK_SECONDS):
            for manifest in await self._discovery.manifests(self._sources):
                if len(manifest.segments) == 1:
                    return await self.load(manifest, manifest.segments[0])
        raise NotFoundError(f"{self._sources.root} has no manifest of one segment")

    # --- Blocks beside stripes -----------------------------------------------------------

    async def local(self, cid: CID) -> bytes | None:
        """The block from this node's own store; None where it is not there, or damaged."""
        if not self._stores.blocks.usage().blocks:
            return None  # a gateway and no more: nothing is stored, and no thread asked

        def work() -> bytes | None:
            try:
                return self._stores.blocks.get(cid)
            except (NotFoundError, CorruptStore):
                return None

        return await self._runtime.workers.run(work)

    async def from_sources(self, cid: CID) -> bytes:
        """From any peer that may have it: manifests, segments, and roots that nobody
        protects.  Those that know the root come before those that were silent about it, and
        who is found meanwhile is asked too."""
        asked: set[PeerId] = set()
        with self._fetcher.race(cid, BLOCK_BYTES_MAX) as race:
            while len(asked) < HOLDERS_ASKED_MAX:
                knowing = self.near_first(self._sources.peers.keys() - asked)
                maybe = self._sources.maybe.keys() - self._sources.peers.keys()
                peers = [*knowing, *self.near_first(maybe - asked)][: 4 * SOURCES_TRIED_MAX]
                if peers:
                    asked.update(peers)
                    # Those that are late go on beside the next ones.
                    data = await race.first(peers)
                    if data is not None:
                        return data
                    continue
                if not self._sources.discovering:
                    break
                self._sources.more_wanted.set()
                if race.running:
                    with (
                        trio.move_on_after(HEDGE_SECONDS),
                        suppress(NotFoundError, NetworkError, PeerError),
                    ):
                        return await race.rest()
                else:
                    await self._sources.changed.wait()
            return await race.rest()

    def near_first(self, peers: Iterable[PeerId]) -> list[PeerId]:
        """The best first of those that are connected, then of those to be dialled."""
        best = self._fetcher.best_first(peers)
        return sorted(best, key=lambda peer: self._network.reached_at(peer) is None)


def _weight(segment: Segment, holders: Holders) -> int:
    """About how many bytes they take."""
    fragments = sum(len(stripe.data) + len(stripe.parity) for stripe in segment.stripes)
    return SEGMENT_FRAGMENT_BYTES * (fragments + sum(map(len, holders.values())) + 1)


def _nearest_first(manifest: Manifest, position: float) -> list[SegmentRef]:
    """The segments, that around `position` (0 to 1) of the root's bytes first."""
    target = position * manifest.bytes
    distances: list[tuple[float, int]] = []
    start = 0
    for index, ref in enumerate(manifest.segments):
        stop = start + ref.bytes
        distances.append((max(start - target, target - stop, 0.0), index))
        start = stop
    return [manifest.segments[index] for _, index in sorted(distances)]
