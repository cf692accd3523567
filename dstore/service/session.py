"""Blocks of one root, from wherever they can be had: here, a holder, or the rest of a stripe.

Every block that leaves has been checked against its CID.  A holder that is dead, slow or
lying costs one detour; it is remembered by the fetcher, and the next block goes round it.
"""

from __future__ import annotations

from collections.abc import (
    Awaitable,
    Callable,
    Collection,
    Hashable,
    Iterable,
    Mapping,
    Sequence,
)
from contextlib import AbstractContextManager, suppress
from functools import partial

import trio

from dstore.core.cid import CID, DAG_PB
from dstore.core.manifest import Manifest, Segment
from dstore.core.peerid import PeerId
from dstore.errors import (
    DataError,
    DeadlineExceeded,
    DstoreError,
    NetworkError,
    NotFoundError,
    PeerError,
    Unreachable,
    Unrecoverable,
)
from dstore.limits import (
    FETCH_BLOCK_SECONDS,
    HEDGE_SECONDS,
    ROOT_GUESS_BYTES,
    ROOT_GUESS_FIRST,
    ROOT_GUESS_FIRST_SECONDS,
    ROOT_GUESS_PEERS,
    ROOT_GUESS_SECONDS,
    SOURCES_TRIED_MAX,
)
from dstore.service.blockcache import BlockCache
from dstore.service.decoding import (
    Holders,
    StripeDecoder,
    existing_slots,
    fragment_cid,
    fragment_size,
)
from dstore.service.fetch import Race
from dstore.service.flights import Flight, Flights, Land
from dstore.service.race import first_success
from dstore.service.search import Listing, Search
from dstore.service.segments import RootSegments, SegmentMemory
from dstore.service.sources import Access, Discovery, RootSources

Way = Callable[[], Awaitable[bytes]]
_Key = tuple[str, bytes]  # of a block among the flights


class RootSession:
    """Reads blocks of one root; made and kept by `retrieve`."""

    def __init__(
        self,
        root: CID,
        access: Access,
        discovery: Discovery,
        cache: BlockCache,
        memory: SegmentMemory,
    ) -> None:
        self.sources = RootSources(root)
        self.segments = RootSegments(self.sources, access, discovery, memory)
        self._discovery = discovery
        self._fetcher = access.fetcher
        self._network = access.network
        self._stores = access.stores
        self._cache = cache
        self._runtime = access.runtime
        self._decoder = StripeDecoder(
            access.fetcher, access.stores.blocks, cache, access.runtime.workers, self._is_near
        )
        self._looked_near = False  # for the root's own block, by whoever wanted it first
        self._is_far = False  # no neighbour has it
        self._blocks: Flights[bytes] = Flights(access.nursery)
        self._looks: Flights[list[bool]] = Flights(access.nursery)
        self._stripes: Flights[dict[int, bytes]] = Flights(access.nursery)

    async def held(self, cids: Sequence[CID]) -> list[bool]:
        """For each block whether this node has it: one look for many blocks."""
        if not cids:
            return []
        return await self._runtime.workers.run(self._stores.blocks.has_many, cids)

    async def held_once(self, key: Hashable, cids: Sequence[CID]) -> list[bool]:
        """As `held`; those who look for the same (by `key`) at the same time share one look."""
        return await self._looks.share(key, partial(self.held, cids))

    async def block(self, cid: CID, position: float = 0.0, *, held: bool = True) -> bytes:
        """The block, verified.  `position` from 0 to 1 is about where in the root's bytes it
        lies: a hint which segment to look into first.  Where `held` is False, this node had it
        not a moment ago, and is not searched again.

        Raises NotFoundError where nobody has it, Unrecoverable where too few fragments are
        left, DeadlineExceeded after FETCH_BLOCK_SECONDS.
        """
        if cid.is_identity:
            return cid.digest
        cached = self._cache.get(cid)
        if cached is not None:
            return cached
        if cid == self.sources.root and not self._looked_near:
            # As a rule nobody else wants it, and it is all there is of a small file: whoever
            # comes first goes without a flight, and the fetcher joins what is asked of a peer.
            self._looked_near = True
            data = await self._near(cid, held=held)
            if data is not None:
                self._cache.put(cid, data)
                return data
            held = False
        with trio.move_on_after(FETCH_BLOCK_SECONDS):
            return await self._blocks.share(
                ("block", cid.multihash), partial(self._get, cid, position, held=held)
            )
        raise DeadlineExceeded(f"block {cid} did not come within {FETCH_BLOCK_SECONDS} s")

    def can_keep(self, size: int) -> bool:
        """Whether so many bytes may be fetched before somebody wants them."""
        return size <= self._cache.bytes_max

    def prefetch(self, cid: CID, position: float = 0.0, *, held: bool = True) -> None:
        """Begin to fetch a block that will be asked for soon; see `block`."""
        if not cid.is_identity and self._cache.get(cid) is None:
            work = partial(self._get_soon, cid, position, held=held)
            self._blocks.start(("block", cid.multihash), work)

    def prefetch_many(self, cids: Iterable[CID]) -> None:
        """As `prefetch` for many small blocks that are not here, as a rule of one segment: one
        task asks a holder of each for all that it has."""
        wanted = {
            ("block", cid.multihash): cid
            for cid in cids
            if not cid.is_identity and self._cache.get(cid) is None
        }
        works = {key: partial(self._get_soon, cid, held=False) for key, cid in wanted.items()}
        self._blocks.start_together(works, partial(self._gather, wanted))

    async def _gather(
        self, wanted: Mapping[_Key, CID], keys: Collection[_Key], land: Land[_Key, bytes]
    ) -> None:
        """Those of the blocks that their holders, if they are near, send in time."""
        cids = [wanted[key] for key in keys]

        def take(cid: CID, data: bytes) -> None:
            self._cache.put(cid, data)
            land(("block", cid.multihash), data)

        with trio.move_on_after(FETCH_BLOCK_SECONDS), self._fetcher.gather(take) as gathering:
            await self._discovery.manifests(self.sources)
            found = await Search(self.sources, self.segments, cids[0], 0.0, _as_it_is).find()
            segment = found.segment
            best = {
                slot: next(iter(self.segments.near_first(filter(self._is_near, peers))), None)
                for slot, peers in found.holders.items()
            }
            for cid in cids:
                stripe, slot = segment.locate.get(cid.multihash, (0, segment.n))
                if (peer := best.get(slot)) is not None:
                    gathering.ask(peer, cid, fragment_size(segment, stripe, slot))
            await gathering.all()

    async def _get_soon(self, cid: CID, position: float = 0.0, *, held: bool) -> bytes:
        """As `_get`, in bounded time: perhaps nobody waits who would give up."""
        with trio.move_on_after(FETCH_BLOCK_SECONDS):
            return await self._get(cid, position, held=held)
        raise DeadlineExceeded(f"block {cid} did not come within {FETCH_BLOCK_SECONDS} s")

    async def _get(self, cid: CID, position: float, *, held: bool = True) -> bytes:
        data = await self._near(cid, held=held)
        if data is None:
            data = await self._remote(cid, position)
        self._cache.put(cid, data)
        return data

    async def _near(self, cid: CID, *, held: bool) -> bytes | None:
        """The block where it takes no search: from here, or the root's from a neighbour."""
        data = await self.segments.local(cid) if held else None
        if data is not None:
            self._fetcher.counters.local_blocks += 1
        elif cid.verify(b""):
            # Nobody stores the empty block, and everybody has it: no stripe lists it.
            data = b""
        elif cid == self.sources.root and not self._is_far and self.sources.discovered_at is None:
            data = await self._guess()
            self._is_far = data is None
        return data

    async def _remote(self, cid: CID, position: float) -> bytes:
        attempt = partial(self._by_listing, cid)
        direct = partial(self.segments.from_sources, cid)
        failure: DstoreError | None = None
        useless: set[CID] = set()
        for wait in (self._discovery.manifests, self._discovery.everything):
            # First with the manifests that are known already, then with all there are.
            await wait(self.sources)
            try:
                return await Search(
                    self.sources, self.segments, cid, position, attempt, direct, useless
                ).find()
            except (NotFoundError, NetworkError, PeerError, DataError) as error:
                if failure is None or not isinstance(error, NotFoundError):
                    failure = error
        if failure is not None and not isinstance(failure, NotFoundError):
            raise failure
        sources = self.sources
        if sources.silent and not sources.peers and not sources.maybe:
            # Silence is no evidence that the root does not exist.
            raise Unreachable(f"none of {len(sources.silent)} peers asked about {cid} answered")
        raise NotFoundError(f"no peer that answers has {cid}") from failure

    async def _guess(self) -> bytes | None:
        """The root's own block from a connected peer, before any search: a file of one block
        is here with that, first asked for where placement puts it if all is well."""
        likely = self._discovery.likely_first(self.sources.root)
        inner = self.sources.root.codec == DAG_PB  # as a rule: blocks below it are wanted next
        first = 0 if inner else ROOT_GUESS_FIRST
        with self._fetcher.race(self.sources.root, ROOT_GUESS_BYTES) as race:
            data = await race.first(likely[:first], ROOT_GUESS_FIRST_SECONDS)
            if data is not None:
                return data
            self._discovery.begin(self.sources)
            if inner:
                self.segments.load_only()
            return await race.any(likely[first:ROOT_GUESS_PEERS], ROOT_GUESS_SECONDS)

    # --- By segment ------------------------------------------------------------------------

    async def _by_listing(self, cid: CID, listing: Listing) -> bytes:
        """The block by a segment that lists it."""
        segment, stripe, slot = listing.segment, listing.stripe, listing.slot
        try:
            data = await self._by_stripe(segment, listing.holders, stripe, slot, cid)
        except (NetworkError, PeerError, NotFoundError, DataError):
            # Holders may have changed since the map was made, or those asked for it did not
            # know all: once more with what everybody knows.
            holders = await self.segments.refresh(segment)
            try:
                data = await self._by_stripe(segment, holders, stripe, slot, cid)
            except NotFoundError as error:  # listed, and nobody has it
                raise Unrecoverable(str(error)) from error
        self.segments.helped(segment.cid, listing.manifest)
        return data

    async def _by_stripe(
        self, segment: Segment, holders: Holders, stripe: int, slot: int, cid: CID
    ) -> bytes:
        """From a holder of the slot, else decoded, else from holders that failed lately."""
        fetcher = self._fetcher
        own = [peer for peer in holders.get(slot, {}) if not fetcher.has_lied(peer)]
        known = {peer for peers in holders.values() for peer in peers}
        # Peers that have the root and no slot of this segment: the adder, who has it all.
        others = [peer for peer in self.sources.peers if peer not in known]
        ready = [peer for peer in own if not fetcher.is_cooling(peer)]
        extra = [peer for peer in others if not fetcher.is_cooling(peer)]
        late = [peer for peer in (*own, *others) if fetcher.is_cooling(peer)]
        best = self.segments.near_first
        far = [*ready, *extra]
        if any(map(self._is_near, far)) or not self._decodes_nearby(segment, holders, stripe, slot):
            far = []
        else:
            # Whether a connection can be had, and how soon, is not waited for.
            ready, extra = [], []
        with fetcher.race(cid, fragment_size(segment, stripe, slot)) as race:
            data = await race.first([*best(ready), *best(extra)[:SOURCES_TRIED_MAX]])
            if data is not None:
                return data
            ways: list[Way] = [race.rest] if race.running else []
            if far:
                ways.append(partial(self._one_of, race, far))
            # Those that are late go on beside the decoding, which begins at once.
            with self._decoding(segment, holders, stripe, slot) as decoding:
                decoded = partial(self._decoded, decoding, segment, holders, stripe, slot)
                together = len(ways) + 1
                if late and not ways:
                    # As a rule it is done before anybody else is asked.
                    with trio.move_on_after(HEDGE_SECONDS), suppress(DstoreError):
                        return await decoded()
                    together += 1
                ways.append(decoded)
                if late:
                    ways.append(partial(self._one_of, race, late))
                return await first_success(ways, stagger_seconds=HEDGE_SECONDS, at_once=together)

    def _is_near(self, peer: PeerId) -> bool:
        """Whether the peer is connected and has done nothing wrong lately."""
        fetcher = self._fetcher
        return (
            self._network.reached_at(peer) is not None
            and not fetcher.is_cooling(peer)
            and not fetcher.has_lied(peer)
        )

    def _decodes_nearby(self, segment: Segment, holders: Holders, stripe: int, slot: int) -> bool:
        """Whether the rest of the stripe is enough to decode, and on peers that are near."""
        near = [
            other
            for other in existing_slots(segment, stripe)
            if other != slot and any(map(self._is_near, holders.get(other, {})))
        ]
        return len(near) >= len(segment.stripes[stripe].data)

    async def _one_of(self, race: Race, peers: Sequence[PeerId]) -> bytes:
        """From one of the peers, however long that takes."""
        data = await race.first(self._fetcher.best_first(peers))
        return await race.rest() if data is None else data

    def _decoding(
        self, segment: Segment, holders: Holders, stripe: int, slot: int
    ) -> AbstractContextManager[Flight[dict[int, bytes]]]:
        """The fragment computed from others of the stripe; those who want several of its blocks
        share the work."""
        work = partial(self._decoder.make, segment, holders, stripe, slot)
        return self._stripes.join((segment.cid, stripe, slot >= segment.k), work)

    async def _decoded(
        self,
        decoding: Flight[dict[int, bytes]],
        segment: Segment,
        holders: Holders,
        stripe: int,
        slot: int,
    ) -> bytes:
        made = await decoding.result()
        cid = fragment_cid(segment, stripe, slot)
        data = made.get(slot) or self._cache.get(cid)
        if data is None:  # it was one of the fragments that the others were made of
            size = fragment_size(segment, stripe, slot)
            data = await self._fetcher.fetch(holders.get(slot, {}), cid, size)
        return data

    async def manifests(self) -> list[Manifest]:
        """The manifests of the root, the search for them begun and waited for."""
        return await self._discovery.manifests(self.sources)


async def _as_it_is(listing: Listing) -> Listing:
    return listing
