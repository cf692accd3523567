"""Providing many keys over the network: lookups driven, exchanges sent, few at once.

What is told to whom is the core's decision (`core/kad_provision.py`); when a key is due, and
what becomes of one that few confirmed, is the service's business.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence

import trio

from dstore.core.kad_messages import KadPeer
from dstore.core.kad_provision import Exchange, Provided, SharedLookups, Telling, parts_of
from dstore.core.kademlia import kad_id
from dstore.core.peerid import PeerId
from dstore.errors import NetworkError, PeerError
from dstore.limits import KAD_BUCKET, KAD_PROVIDE_EXCHANGES_MAX
from dstore.network.kad_peers import KnownPeers
from dstore.network.kad_requests import RequestStreams
from dstore.network.kad_search import RecentSearches, Search

Find = Callable[[bytes, int], Awaitable[Search]]
"""Search for the given number of peers closest to a key, and return the search, done."""


class Provision:
    """Tells the peers closest to each key that this node provides it."""

    def __init__(
        self, peers: KnownPeers, requests: RequestStreams, find: Find, recent: RecentSearches
    ) -> None:
        self._peers = peers
        self._requests = requests
        self._find = find
        self._recent = recent
        self._lookups = SharedLookups()

    async def provide(
        self,
        keys: Iterable[bytes],
        addresses: tuple[str, ...],
        on_closest: Callable[[bytes, Sequence[PeerId]], None],
        on_confirmed: Callable[[bytes], None],
    ) -> dict[bytes, Provided]:
        """Tell the peers closest to each key, read each record back, and once more where
        that fails.  `on_closest` is told who they are, `on_confirmed` of each key that one of
        them has."""
        results: dict[bytes, Provided] = {}
        me = KadPeer(self._peers.own, addresses)
        limiter = trio.CapacityLimiter(KAD_PROVIDE_EXCHANGES_MAX)

        async def told(keys: Sequence[bytes], search: Search) -> None:
            telling = Telling(self._peers.own, keys, search.around().peers, self._peers.is_suspect)
            await self._tell(telling, search, me, limiter, on_confirmed)
            for key in keys:
                on_closest(key, telling.closest(key))
                results[key] = telling.result(key)

        async def part(keys: list[bytes]) -> None:
            while keys:
                search = await self._find(keys[0], self._lookups.wanted(keys))
                served = self._lookups.served(keys, search.around())
                await told(served, search)
                keys = keys[len(served) :]

        known, others = self._known(keys)
        async with trio.open_nursery() as nursery:
            for search, keys_of_search in known.items():
                nursery.start_soon(told, keys_of_search, search)
            for keys_of_part in parts_of(others):
                nursery.start_soon(part, keys_of_part)
        return results

    def _known(self, keys: Iterable[bytes]) -> tuple[dict[Search, list[bytes]], list[bytes]]:
        """The keys that searches of a moment ago answer, by search, and the others."""
        known: dict[Search, list[bytes]] = {}
        others: list[bytes] = []
        for key in sorted(set(keys), key=kad_id):
            search = self._recent.answering(key, KAD_BUCKET)
            if search is None:
                others.append(key)
            else:
                known.setdefault(search, []).append(key)
        return known, others

    async def _tell(
        self,
        telling: Telling,
        search: Search,
        me: KadPeer,
        limiter: trio.CapacityLimiter,
        on_confirmed: Callable[[bytes], None],
    ) -> None:
        """The keys told, from the peers that the search found, in as many rounds as it takes."""

        async def tell(peer: PeerId, exchanges: list[Exchange]) -> None:
            async with limiter:
                for exchange in exchanges:
                    keys = list(exchange.keys)
                    await self._exchange(peer, exchange, search, me)
                    if not exchange.answered:
                        telling.failed(peer)
                        self._peers.unanswered(peer)
                        return
                    for key in keys:
                        if telling.result(key).confirmed:
                            on_confirmed(key)

        while exchanges_of := telling.next_round():
            async with trio.open_nursery() as nursery:
                for peer, exchanges in exchanges_of.items():
                    nursery.start_soon(tell, peer, exchanges)

    async def _exchange(
        self, peer: PeerId, exchange: Exchange, search: Search, me: KadPeer
    ) -> None:
        while exchange.keys:
            try:
                answers = await self._requests.exchange_all(
                    search.where(peer), exchange.requests(me)
                )
            except (NetworkError, PeerError):
                exchange.lost()
                continue
            for answer in answers:
                for each in answer.closer:
                    search.hint(each.peer, each.addresses)
            exchange.took(answers)
