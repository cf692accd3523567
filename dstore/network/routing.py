"""Finding peers and providers: the driver of `core.kademlia` on a `Network`.

It asks peers, serves them in server mode, and keeps the routing table filled; the decisions
are the core's.  It knows no content: providing again, and what a provider is good for, is
the service's business.  Specification: libp2p kad-dht.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Literal

import trio

from dstore.core.kad_messages import KadMessage, MessageType
from dstore.core.kad_provision import Provided
from dstore.core.kad_table import LookAround
from dstore.core.kademlia import (
    ProviderStore,
    common_prefix,
    distance,
    kad_id,
)
from dstore.core.peerid import PeerId
from dstore.errors import NetworkError, PeerError
from dstore.limits import (
    DIAL_SECONDS,
    KAD_BUCKET,
    KAD_CONCURRENCY,
    KAD_KEY_BYTES_MAX,
    KAD_KEYS_MAX,
    KAD_KEYS_PER_PEER_MAX,
    KAD_LOOKUP_SECONDS,
    KAD_POLL_SECONDS,
    KAD_PROVIDERS_PER_KEY_MAX,
    KAD_REFRESH_LOOKUPS_MAX,
    KAD_REFRESH_SECONDS,
    KAD_REQUEST_SECONDS,
    KAD_SLOW_SECONDS_MIN,
    PROVIDER_SECONDS,
)
from dstore.network.kad_peers import KnownPeers
from dstore.network.kad_provide import Provision
from dstore.network.kad_requests import RequestStreams
from dstore.network.kad_search import ProviderSearch, RecentSearches, Search
from dstore.network.kad_server import Answers, ServedStreams
from dstore.network.streams import Network, PeerAddresses, Stream
from dstore.runtime import Runtime, open_plain_nursery


@dataclass(frozen=True)
class RoutingOptions:
    """What a node's routing is set to.  A client searches and provides; it serves nothing
    and is in nobody's table."""

    protocol: str = "/dstore/kad/1.0.0"
    mode: Literal["server", "client"] = "server"
    keys_max: int = KAD_KEYS_MAX
    keys_per_peer_max: int = KAD_KEYS_PER_PEER_MAX
    providers_per_key_max: int = KAD_PROVIDERS_PER_KEY_MAX
    provider_seconds: float = PROVIDER_SECONDS


@dataclass(frozen=True)
class ProviderEntry:
    """One provider record as it is saved: `seconds_left` until it expires."""

    key: bytes
    provider: PeerAddresses
    seconds_left: float


class Routing:
    """A node's part in the DHT.  Made by `open_routing`."""

    def __init__(
        self, network: Network, options: RoutingOptions, runtime: Runtime, nursery: trio.Nursery
    ) -> None:
        self._own = network.peer_id
        self._requests = RequestStreams(network, options.protocol)
        self._network = network
        self._options = options
        self._random = runtime.random
        self._nursery = nursery
        self._peers = KnownPeers(network)
        self._recent = RecentSearches(self._peers)
        self._provision = Provision(self._peers, self._requests, self._search_closest, self._recent)
        self._table = self._peers.table
        self._store = ProviderStore(
            keys_max=options.keys_max,
            keys_per_peer_max=options.keys_per_peer_max,
            providers_per_key_max=options.providers_per_key_max,
            seconds=options.provider_seconds,
        )
        self._bootstrap: dict[PeerId, PeerAddresses] = {}
        self._news = trio.Event()  # set, and replaced, whenever a peer says who it is
        answers = Answers(network, self._table, self._store, runtime.random)
        self._served = ServedStreams(answers.answer)
        self._size_at_refresh = 0
        self._joins = self._joins_refreshed = 0  # calls of `bootstrap`
        self._refreshing = trio.Lock()
        self._closed = False
        if options.mode == "server":
            network.set_handler(options.protocol, self._serve)
        network.on_identified(self._identified)
        for peer in network.connected():
            self._take_back(peer)

    # --- What is known ------------------------------------------------------------------

    @property
    def table_size(self) -> int:
        """The number of server peers in the routing table."""
        return len(self._table)

    @property
    def records(self) -> int:
        """The number of provider records held for others."""
        return len(self._store)

    @property
    def streams_kept(self) -> int:
        """The number of idle outbound streams."""
        return self._requests.idle

    def add_peer(self, target: PeerAddresses) -> None:
        """Note a peer known from elsewhere (the catalog, say).  Lookups start from it too;
        the table takes it once it has answered."""
        self._peers.add_extra(target)

    # --- Searching ----------------------------------------------------------------------

    async def _search(
        self,
        request: KadMessage,
        deadline: float,
        count: int = KAD_BUCKET,
        on_answer: Callable[[KadMessage], bool] = lambda _: False,
        *,
        concurrency: Callable[[], int] = lambda: KAD_CONCURRENCY,
    ) -> Search:
        """The search for the peers closest to the request's key, done."""
        search = Search(
            self._peers, self._requests, request, count, on_answer, concurrency=concurrency
        )
        if self._closed:
            return search
        if len(self._table) < KAD_BUCKET:
            # Among so few every peer counts, also one whose connection is a moment old.
            with trio.move_on_after(KAD_SLOW_SECONDS_MIN):
                while self._expects_news():
                    await self._news.wait()
            with trio.move_on_after(KAD_REQUEST_SECONDS):
                while not len(self._table) and self._expects_news():
                    await self._news.wait()
        if not self._closed:
            await search.run(deadline, self._nursery)
        return search

    async def closest_peers(self, key: bytes, count: int = KAD_BUCKET) -> list[PeerAddresses]:
        """The `count` responsive server peers closest to `key` (the DHT hashes it itself),
        nearest first, without this node.  Takes at most KAD_LOOKUP_SECONDS; never raises for
        what peers do."""
        count = max(count, 1)
        return self._closest_of(await self._search_closest(key, count), key, count)

    async def lately_closest_peers(self, key: bytes) -> list[PeerAddresses]:
        """As `closest_peers`, and at once where a search of the last KAD_FOUND_SECONDS has the
        answer: who fell silent since may be among them."""
        recent = self._recent.answering(key, KAD_BUCKET)
        search = recent or await self._search_closest(key)
        return self._closest_of(search, key, KAD_BUCKET)

    @staticmethod
    def _closest_of(search: Search, key: bytes, count: int) -> list[PeerAddresses]:
        return [search.where(peer) for peer in search.around().closest(kad_id(key), count) or ()]

    async def _search_closest(self, key: bytes, count: int = KAD_BUCKET) -> Search:
        deadline = trio.current_time() + KAD_LOOKUP_SECONDS
        search = await self._search(KadMessage(MessageType.FIND_NODE, key), deadline, count)
        self._recent.note(search)
        return search

    async def find_peer(self, peer: PeerId) -> PeerAddresses | None:
        """Where `peer` can be reached; None where nobody says so within
        KAD_LOOKUP_SECONDS."""
        if peer == self._own:
            return PeerAddresses(peer, tuple(self._network.addresses()))
        if peer in self._network.connected() and (here := self._peers.where(peer)).addresses:
            return here
        deadline = trio.current_time() + KAD_LOOKUP_SECONDS

        def named(answer: KadMessage) -> bool:
            return any(each.peer == peer and each.addresses for each in answer.closer)

        request = KadMessage(MessageType.FIND_NODE, peer.binary)
        search = await self._search(request, deadline, on_answer=named)
        found = search.where(peer)
        return found if found.addresses else None

    def find_providers(
        self, key: bytes, *, count: int = KAD_BUCKET, deadline: float | None = None
    ) -> ProviderSearch:
        """Other peers that provide `key` (a multihash), each once, as they are found: those
        that told this node, and those that the peers closest to the key know of.  Ends with
        `count` found, with everybody asked, or at `deadline`, an instant of
        `trio.current_time()` (KAD_LOOKUP_SECONDS from now where it is None)."""
        if deadline is None:
            deadline = trio.current_time() + KAD_LOOKUP_SECONDS
        search = ProviderSearch(count)
        self._nursery.start_soon(self._search_providers, key, deadline, search)
        return search

    async def _search_providers(self, key: bytes, deadline: float, found: ProviderSearch) -> None:
        without_address: list[PeerId] = []

        def offer(peer: PeerId, addresses: Sequence[str]) -> None:
            if peer == self._own:
                return
            provider = self._peers.where(peer, addresses)
            if provider.addresses:
                found.offer(provider)
            else:
                without_address.append(peer)

        def on_answer(answer: KadMessage) -> bool:
            for each in answer.providers:
                offer(each.peer, each.addresses)
            return found.enough

        try:
            with found.scope:
                for record in self._store.providers(key, trio.current_time()):
                    offer(record.peer, record.addresses)
                if not found.enough:
                    request = KadMessage(MessageType.GET_PROVIDERS, key)
                    search = await self._search(request, deadline, on_answer=on_answer)
                    for peer in without_address:
                        found.offer(search.where(peer))
        finally:
            found.end()

    # --- Providing ----------------------------------------------------------------------

    async def provide(self, key: bytes) -> int:
        """Tell the peers closest to `key` (a multihash) that this node provides it, read the
        record back from each, and once more where that fails.  Returns the number of peers
        that confirmed.  Raises ValueError for a key above KAD_KEY_BYTES_MAX."""
        return (await self.provide_many([key]))[key].confirmed

    async def provide_many(
        self, keys: Sequence[bytes], on_confirmed: Callable[[bytes], None] = lambda _: None
    ) -> dict[bytes, Provided]:
        """`provide` for many keys at once, those near each other together: how far each was
        told.  `on_confirmed` hears of a key with each answer that confirms it, while others
        are still waited for.  Raises ValueError for a key above KAD_KEY_BYTES_MAX."""
        for key in keys:
            if not 0 < len(key) <= KAD_KEY_BYTES_MAX:
                raise ValueError(f"DHT key of {len(key)} bytes; 1 to {KAD_KEY_BYTES_MAX}")
        addresses = tuple(self._network.addresses())

        def keep_own(key: bytes, peers: Sequence[PeerId]) -> None:
            if self._options.mode == "server" and self._is_close(key, peers):
                self._store.add(key, self._own, addresses, trio.current_time())

        return await self._provision.provide(keys, addresses, keep_own, on_confirmed)

    def _is_close(self, key: bytes, peers: Sequence[PeerId]) -> bool:
        """Whether this node itself is one of the k closest to `key`, given the others."""
        if len(peers) < KAD_BUCKET:
            return True
        place = kad_id(key)
        farthest = distance(kad_id(peers[-1].binary), place)
        return distance(kad_id(self._own.binary), place) < farthest

    def export_providers(self, *, since: float | None = None) -> list[ProviderEntry]:
        """Every provider record held, or those said at the instant `since` or later, for
        saving."""
        now = trio.current_time()
        records = self._store.records(now) if since is None else self._store.said_since(since, now)
        return [
            ProviderEntry(key, PeerAddresses(r.peer, r.addresses), r.expires - now)
            for key, r in records
        ]

    def import_providers(self, entries: Iterable[ProviderEntry]) -> int:
        """Take back saved records, within the bounds and where nothing newer is known.
        Returns how many were taken."""
        now = trio.current_time()
        ordered = sorted(entries, key=lambda entry: -entry.seconds_left)
        return sum(
            self._store.add(e.key, e.provider.peer, e.provider.addresses, now, e.seconds_left)
            for e in ordered
        )

    # --- Keeping the table --------------------------------------------------------------

    async def bootstrap(self, peers: Sequence[PeerAddresses]) -> int:
        """Connect to `peers`, look up this node's own id, and go on trying `peers` while
        the table is empty.  Returns how many of them are servers that answered; never
        raises for those that did not."""
        for target in peers:
            if target.peer != self._own:
                self._bootstrap[target.peer] = target
        async with trio.open_nursery() as nursery:
            for target in peers:
                nursery.start_soon(self._join, target)
        if not self._size_at_refresh or await self._told_of_others(peers):
            # Of many who join at the same time, two refreshes find all that one for each would.
            self._joins += 1
            mine = self._joins
            async with self._refreshing:
                if self._joins_refreshed < mine:
                    joins = self._joins
                    await self.refresh()
                    self._joins_refreshed = joins
        return sum(target.peer in self._table for target in peers)

    async def _join(self, target: PeerAddresses) -> None:
        if target.peer == self._own:
            return
        try:
            with trio.fail_after(DIAL_SECONDS):
                await self._network.connect(target)
                if await self._network.speaks(target.peer, self._options.protocol):
                    self._peers.heard(target.peer)
        except (NetworkError, PeerError, trio.TooSlowError):
            self._peers.unanswered(target.peer)

    async def _told_of_others(self, peers: Sequence[PeerAddresses]) -> bool:
        """Whether one of `peers` names somebody near this node whom the table lacks: one who is
        of the same network does not."""
        named: list[PeerId] = []

        async def ask(peer: PeerId) -> None:
            named.extend(await self._probe(peer))

        async with trio.open_nursery() as nursery:
            for target in peers:
                if target.peer in self._table:
                    nursery.start_soon(ask, target.peer)
        return bool(self._table.lacking(named))

    async def refresh(self) -> None:
        """Look up this node's own id, and a random one in each part of the key space where the
        table lacks some and that look-up does not reach, the widest first, until that finds
        nobody new; ask those not heard from for long.  Where there are such the look-ups go to
        their ends, and find out who is silent; else only as long as they tell of peers for the
        table."""
        horizon = trio.current_time() - KAD_REFRESH_SECONDS
        stale = bool(self._table.unheard_since(horizon, 1))
        own = self._own.binary
        if stale:
            await self._search_closest(own)
            left = self._table.sparse_prefixes()
        else:
            left = (await self._look_around(own)).left()
        for prefix in left[:KAD_REFRESH_LOOKUPS_MAX]:
            before = len(self._table)
            key = self._random_key(prefix)
            await (self._search_closest(key) if stale else self._look_around(key))
            if len(self._table) == before:
                break  # everybody is known already
        self._size_at_refresh = len(self._table)
        async with trio.open_nursery() as nursery:
            for peer in self._table.unheard_since(horizon, KAD_CONCURRENCY):
                nursery.start_soon(self._probe, peer)

    async def _look_around(self, key: bytes) -> LookAround:
        """Look up `key`, as long as that tells of peers for the table, and meet those of whom
        it told: what they know is known already."""
        around = LookAround(self._table)
        search = await self._search(
            KadMessage(MessageType.FIND_NODE, key),
            trio.current_time() + KAD_LOOKUP_SECONDS,
            on_answer=lambda answer: around.over(each.peer for each in answer.closer),
            concurrency=around.at_once,
        )
        async with trio.open_nursery() as nursery:
            able = (p for p in search.lookup.unheard() if not self._peers.is_suspect(p))
            for peer in self._table.to_meet(able):
                nursery.start_soon(self._join, search.where(peer))
        return around

    def _random_key(self, prefix: int) -> bytes:
        """A key, in the form of a peer id, that shares `prefix` bits with this node's id."""
        own = kad_id(self._own.binary)
        while True:
            key = b"\x12\x20" + self._random.randbytes(32)
            if common_prefix(kad_id(key), own) == prefix:
                return key

    async def _probe(self, peer: PeerId) -> list[PeerId]:
        """Whom `peer` names near this node; nobody where it does not answer."""
        request = KadMessage(MessageType.FIND_NODE, self._own.binary)
        try:
            answer = await self._requests.exchange(self._peers.where(peer), request)
        except (NetworkError, PeerError):
            self._peers.unanswered(peer)
            return []
        self._peers.heard(peer)
        return [each.peer for each in answer.closer]

    def _identified(self, peer: PeerId) -> None:
        """A connected peer has said what it speaks, or will not.  A server is told to others from
        now on; who says that it is none is not."""
        if self._closed:
            return
        if self._is_server(peer):
            self._peers.heard(peer)
        elif self._network.announced(peer):
            self._table.remove(peer)
        self._news.set()
        self._news = trio.Event()

    def _is_server(self, peer: PeerId) -> bool:
        """Whether the connected peer says so."""
        return self._options.protocol in (self._network.announced(peer) or ())

    def _take_back(self, peer: PeerId) -> None:
        """Have a server in the table that is connected, though it was given up once: it may have
        been busy.  Not as long as it is suspect."""
        if peer not in self._table and self._is_server(peer) and not self._peers.is_suspect(peer):
            self._peers.heard(peer)

    def _expects_news(self) -> bool:
        """Whether a connected peer may still say what it speaks."""
        return any(self._network.announced(peer) is None for peer in self._network.connected())

    async def maintain(self) -> None:
        """Keep the table and the stores in order until cancelled."""
        refresh_at = trio.current_time() + KAD_REFRESH_SECONDS
        while True:
            await trio.sleep(KAD_POLL_SECONDS)
            now = trio.current_time()
            for peer in self._network.connected():
                self._take_back(peer)
            self._store.expire(now)
            await self._requests.sweep()
            if not len(self._table):
                async with trio.open_nursery() as nursery:
                    for target in self._bootstrap.values():
                        nursery.start_soon(self._join, target)
            # A table that has doubled has neighbours in it that know more of them.
            grown = len(self._table) >= 2 * max(self._size_at_refresh, 1)
            if (now >= refresh_at or grown) and not self._refreshing.locked():
                async with self._refreshing:
                    await self.refresh()
                refresh_at = trio.current_time() + KAD_REFRESH_SECONDS

    async def close(self) -> None:
        """End every stream, and serve no more."""
        self._closed = True
        self._served.close()
        await self._requests.close()

    async def _serve(self, stream: Stream) -> None:
        if not self._closed:
            self._take_back(stream.peer)
        await self._served.serve(stream)


@asynccontextmanager
async def open_routing(
    network: Network, options: RoutingOptions, runtime: Runtime
) -> AsyncIterator[Routing]:
    """A `Routing` that serves (in server mode), searches and keeps its table until the block
    ends.  Start it before the first connections: peers ask once what this node speaks."""
    async with open_plain_nursery() as nursery:
        routing = Routing(network, options, runtime, nursery)
        nursery.start_soon(routing.maintain)
        try:
            yield routing
        finally:
            nursery.cancel_scope.cancel()
            with trio.CancelScope(shield=True):
                await routing.close()
