"""Finding out who has a root: providers from the DHT, connected peers, and their manifests.

Discovery fills a `RootSources` and goes on while readers already use what is there.  Silence
of the DHT proves nothing: connected peers and the catalog are asked beside it.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import trio

from dstore.core.cid import CID
from dstore.core.manifest import Manifest
from dstore.core.peerid import PeerId
from dstore.core.placement import likely_first
from dstore.errors import (
    CorruptStore,
    DataError,
    DstoreError,
    NetworkError,
    NotFoundError,
    PeerError,
)
from dstore.limits import (
    ASKED_PEERS_MAX,
    BLOCK_BYTES_MAX,
    DHT_AFTER_SECONDS,
    DHT_BESIDE_SECONDS,
    DISCOVERY_AGAIN_SECONDS,
    HEDGE_SECONDS_UNKNOWN,
    KAD_KEY_BYTES_MAX,
    MANIFESTS_ASKED_FIRST,
    MANIFESTS_PER_PEER_MAX,
    MANIFESTS_TRIED_MAX,
    REQUEST_SECONDS,
)
from dstore.network.fragments_client import FragmentsClient
from dstore.network.routing import Routing
from dstore.network.streams import Network
from dstore.runtime import Runtime, open_plain_nursery
from dstore.service.fetch import BlockFetcher
from dstore.service.stores import Stores

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Access:
    """What the blocks of all roots are found and fetched with; what goes on behind a reader's
    back runs in `nursery`."""

    network: Network
    routing: Routing
    client: FragmentsClient
    fetcher: BlockFetcher
    stores: Stores
    runtime: Runtime
    nursery: trio.Nursery


@dataclass
class RootSources:
    """What is known about where a root's blocks are.

    `peers` said that they have some of it; `maybe` are connected and were silent about it;
    `silent` were asked and did not answer; `more_wanted` is set where those known do not do.
    `manifests` are decoded and are of this root, `named` is who named which (this node by its
    own id), `brought` whose word each was fetched on; `changed` is set whenever anything is added.
    """

    root: CID
    peers: dict[PeerId, None] = field(default_factory=dict)
    maybe: dict[PeerId, None] = field(default_factory=dict)
    manifests: dict[CID, Manifest] = field(default_factory=dict)
    named: dict[CID, set[PeerId]] = field(default_factory=dict)
    brought: dict[CID, PeerId] = field(default_factory=dict)
    changed: trio.Event = field(default_factory=trio.Event)
    more_wanted: trio.Event = field(default_factory=trio.Event)
    silent: set[PeerId] = field(default_factory=set)
    coming: set[CID] = field(default_factory=set)  # manifests that are being fetched
    discovering: bool = False
    discovered_at: float | None = None

    def by_agreement(self) -> list[Manifest]:
        """The manifests, those that most peers named first: an invented one comes last."""
        return sorted(self.manifests.values(), key=lambda one: -len(self.named.get(one.cid, ())))

    def has_room(self, peer: PeerId) -> bool:
        """Whether one more may be fetched on the peer's word: while there are too many, those
        of the peers that brought most make room, down to an equal share for each."""
        shares = Counter(self.brought.values())
        return len(self.manifests) < MANIFESTS_TRIED_MAX or max(shares.values()) > shares[peer] + 1

    def add(self, peer: PeerId, manifest: Manifest) -> bool:
        """Keep a manifest of this root that the peer named; whether it is kept."""
        if manifest.cid not in self.manifests:
            if not self.has_room(peer):
                return False
            if len(self.manifests) >= MANIFESTS_TRIED_MAX:
                self._make_room()
            self.manifests[manifest.cid] = manifest
            self.brought[manifest.cid] = peer
        self.named.setdefault(manifest.cid, set()).add(peer)
        return True

    def _make_room(self) -> None:
        """Of a peer that brought most: what fewest named, of that what came last."""
        shares = Counter(self.brought.values())
        crowd = [cid for cid, by in self.brought.items() if shares[by] == max(shares.values())]
        worst = min(reversed(crowd), key=lambda cid: len(self.named[cid]))
        del self.manifests[worst], self.brought[worst], self.named[worst]

    def notify(self) -> None:
        """Wake everybody who waits for news."""
        self.changed.set()
        self.changed = trio.Event()


class Discovery:
    """Fills `RootSources`."""

    def __init__(self, access: Access) -> None:
        self._network = access.network
        self._routing = access.routing
        self._client = access.client
        self._fetcher = access.fetcher
        self._stores = access.stores
        self._runtime = access.runtime
        self._nursery = access.nursery

    async def manifests(self, sources: RootSources) -> list[Manifest]:
        """The manifests known by now, waiting for the first one while discovery goes on;
        empty where it ended without any."""
        return await self._until(sources, lambda: bool(sources.manifests))

    async def everything(self, sources: RootSources) -> list[Manifest]:
        """As `manifests`, after discovery has ended."""
        sources.more_wanted.set()
        return await self._until(sources, lambda: False)

    async def _until(self, sources: RootSources, enough: Callable[[], bool]) -> list[Manifest]:
        self.begin(sources)
        while not enough() and sources.discovering:
            await sources.changed.wait()
        return sources.by_agreement()

    def begin(self, sources: RootSources) -> None:
        """Start discovery, unless it runs or ended a moment ago."""
        now = trio.current_time()
        recent = (
            sources.discovered_at is not None
            and now < sources.discovered_at + DISCOVERY_AGAIN_SECONDS
        )
        if not sources.discovering and not recent:
            sources.discovering = True
            self._nursery.start_soon(self._discover, sources)

    async def _discover(self, sources: RootSources) -> None:
        try:
            await self._from_catalog(sources)
            asked: set[PeerId] = {self._network.peer_id}
            async with open_plain_nursery() as nursery:
                near = self.likely_first(sources.root)[:ASKED_PEERS_MAX]
                for group in (near[:MANIFESTS_ASKED_FIRST], near[MANIFESTS_ASKED_FIRST:]):
                    asked.update(group)
                    sources.silent.update(group)
                    for peer in group:
                        nursery.start_soon(self._ask, sources, peer, False)
                    if not sources.manifests:
                        await self._let_answer(sources, group)
                if len(sources.root.multihash) > KAD_KEY_BYTES_MAX:  # the DHT knows no such keys
                    return
                async for target in self._routing.find_providers(sources.root.multihash):
                    self._network.remember(target)
                    if target.peer != self._network.peer_id:
                        sources.peers[target.peer] = None
                        sources.notify()
                    if target.peer not in asked and len(asked) < 2 * ASKED_PEERS_MAX:
                        asked.add(target.peer)
                        nursery.start_soon(self._ask, sources, target.peer, True)
        except DstoreError as error:
            # Readers go on with what was found; a broken catalog must not end the node.
            log.warning("the search for %s ended early: %s", sources.root, error)
        finally:
            sources.discovering = False
            sources.discovered_at = trio.current_time()
            sources.notify()

    def likely_first(self, root: CID) -> list[PeerId]:
        """The connected peers, those first that placement puts the root's blocks on if all is
        well; those that failed lately last, those that lied left out."""
        fetcher = self._fetcher
        ready: list[PeerId] = []
        cooling: list[PeerId] = []
        for peer in self._network.connected():
            if fetcher.is_cooling(peer):
                cooling.append(peer)
            elif not fetcher.has_lied(peer):
                ready.append(peer)
        return [*likely_first(root, ready), *fetcher.best_first(cooling)]

    async def _let_answer(self, sources: RootSources, group: Sequence[PeerId]) -> None:
        """What these say comes sooner alone.  Where they know the root, reading begins with
        that, and has the wires for a while, as long as it is enough."""
        with trio.move_on_after(DHT_AFTER_SECONDS):
            while not sources.manifests:
                if sources.silent.isdisjoint(group) and not sources.coming:
                    return
                await sources.changed.wait()
        if sources.manifests:
            with trio.move_on_after(DHT_BESIDE_SECONDS):
                await sources.more_wanted.wait()

    async def _from_catalog(self, sources: RootSources) -> None:
        """What this node knows itself, as owner or as holder."""

        own = self._network.peer_id

        def work() -> list[Manifest]:
            found = []
            named = self._stores.catalog.manifests_named(sources.root, MANIFESTS_PER_PEER_MAX)
            for cid in named:
                try:
                    found.append(Manifest.decode(self._stores.blocks.get(cid)))
                except (NotFoundError, CorruptStore, DataError):
                    continue
            return found

        for manifest in await self._runtime.workers.run(work):
            sources.add(own, manifest)
        sources.notify()

    async def _ask(self, sources: RootSources, peer: PeerId, provider: bool) -> None:
        """One peer: does it know manifests of the root, and which?"""
        sources.silent.add(peer)
        with trio.move_on_after(REQUEST_SECONDS):
            try:
                answer = await self._client.find_manifests(peer, sources.root)
            except NetworkError:
                return
            except PeerError:
                sources.silent.discard(peer)
                sources.notify()
                return
            sources.silent.discard(peer)
            sources.notify()
            if not answer.manifests and not provider:
                sources.maybe[peer] = None
                return
            sources.peers[peer] = None
            await self._take(sources, peer, answer.manifests)

    async def _take(self, sources: RootSources, peer: PeerId, cids: Sequence[CID]) -> None:
        """Fetch what the peer named first; it cannot crowd out what others name."""
        for cid in cids[:MANIFESTS_PER_PEER_MAX]:
            if cid not in sources.manifests and not sources.has_room(peer):
                continue
            manifest = sources.manifests.get(cid) or await self._take_one(sources, peer, cid)
            if manifest is not None and sources.add(peer, manifest):
                sources.notify()

    async def _take_one(self, sources: RootSources, peer: PeerId, cid: CID) -> Manifest | None:
        """One manifest from a peer that named it, unless it comes from another just now; None
        where the peer does not send it, or it is of another root."""
        with trio.move_on_after(HEDGE_SECONDS_UNKNOWN):
            while cid in sources.coming:
                await sources.changed.wait()
        if cid in sources.manifests:
            return sources.manifests[cid]
        sources.coming.add(cid)
        try:
            data = await self._fetcher.fetch([peer], cid, BLOCK_BYTES_MAX // 8)
            manifest = await self._runtime.workers.run(Manifest.decode, data)
        except (NetworkError, PeerError, NotFoundError, DataError):
            return None
        finally:
            sources.coming.discard(cid)
            sources.notify()
        return manifest if manifest.root.multihash == sources.root.multihash else None
