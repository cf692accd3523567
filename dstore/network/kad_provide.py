"""Providing many keys: few lookups, few streams, every record read back.

Keys are taken in the order of their places in the key space, so that neighbours share the
lookup and the peers; each peer is told several keys in one exchange.  A lookup finds the 20
peers closest to its own key for certain, and most of those beyond; whom it missed of another
key's closest, the answers to that key name, and they are told then.  When a key is due, and
what becomes of one that few confirmed, is the service's business.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import takewhile

import trio

from dstore.core.kad_messages import KadMessage, KadPeer, MessageType
from dstore.core.kademlia import closest_of, common_prefix, kad_id
from dstore.core.neighbourhood import Neighbourhood
from dstore.core.peerid import PeerId
from dstore.errors import NetworkError, PeerError
from dstore.limits import (
    KAD_BUCKET,
    KAD_PROVIDE_ATTEMPTS,
    KAD_PROVIDE_EXCHANGES_MAX,
    KAD_PROVIDE_KEYS_PER_EXCHANGE,
    KAD_PROVIDE_LOOKUP_PEERS,
    KAD_PROVIDE_LOOKUPS_MAX,
    KAD_PROVIDE_ROUNDS_MAX,
    KAD_REPLICAS_WANTED,
)
from dstore.network.kad_peers import KnownPeers
from dstore.network.kad_requests import RequestStreams
from dstore.network.kad_search import Search

Find = Callable[[bytes, int], Awaitable[Search]]
"""Search for the given number of peers closest to a key, and return the search, done."""


@dataclass(frozen=True, slots=True)
class Provided:
    """How far a key was told: `told` peers were, and `confirmed` of them have its record."""

    told: int
    confirmed: int

    @property
    def enough(self) -> bool:
        """Whether as many have it as are wanted, or all of a smaller network."""
        return 0 < min(KAD_REPLICAS_WANTED, self.told) <= self.confirmed


class Provision:
    """Tells the peers closest to each key that this node provides it."""

    def __init__(self, peers: KnownPeers, requests: RequestStreams, find: Find) -> None:
        self._peers = peers
        self._requests = requests
        self._find = find
        # How deep the region was that the last wide lookup knew: keys that share so many
        # bits are worth one.
        self._depth = 0

    async def provide(
        self,
        keys: Iterable[bytes],
        addresses: tuple[str, ...],
        on_closest: Callable[[bytes, Sequence[PeerId]], None],
    ) -> dict[bytes, Provided]:
        """Tell the peers closest to each key, read each record back, and once more where
        that fails.  `on_closest` is told who they are."""
        ordered = sorted(set(keys), key=kad_id)
        results: dict[bytes, Provided] = {}
        me = (KadPeer(self._peers.own, addresses),)
        limiter = trio.CapacityLimiter(KAD_PROVIDE_EXCHANGES_MAX)

        async def part(keys: list[bytes]) -> None:
            while keys:
                telling = await self._neighbours(keys, me, limiter)
                for key in telling.keys:
                    on_closest(key, telling.closest(key))
                    results[key] = Provided(len(telling.told[key]), telling.confirmed[key])
                keys = keys[len(telling.keys) :]

        size = -(-len(ordered) // KAD_PROVIDE_LOOKUPS_MAX)
        async with trio.open_nursery() as nursery:
            for start in range(0, len(ordered), max(size, 1)):
                nursery.start_soon(part, ordered[start : start + size])
        return results

    async def _neighbours(
        self, keys: Sequence[bytes], me: tuple[KadPeer, ...], limiter: trio.CapacityLimiter
    ) -> Telling:
        """One lookup towards the first of `keys`; that one, and those after it that the
        lookup answers too, told."""
        centre = kad_id(keys[0])
        shared = len(keys) > 1 and common_prefix(centre, kad_id(keys[1])) >= self._depth
        wanted = KAD_PROVIDE_LOOKUP_PEERS if shared else KAD_BUCKET
        search = await self._find(keys[0], wanted)
        found = search.lookup.closest()
        around = Neighbourhood(centre, found, wanted, ended=search.lookup.finished)
        if shared and search.lookup.finished:
            self._depth = around.depth
        served = takewhile(lambda key: around.closest(kad_id(key), KAD_BUCKET) is not None, keys)
        telling = Telling(self._peers, self._requests, search, me, limiter)
        await telling.tell(list(served), found)
        return telling


class Telling:
    """Keys near each other being told, from the peers that one lookup found."""

    def __init__(
        self,
        peers: KnownPeers,
        requests: RequestStreams,
        search: Search,
        me: tuple[KadPeer, ...],
        limiter: trio.CapacityLimiter,
    ) -> None:
        self._peers = peers
        self._requests = requests
        self._search = search
        self._me = me
        self._limiter = limiter
        self._found: list[PeerId] = []
        self._failed: set[PeerId] = set()
        self._named: dict[bytes, Counter[PeerId]] = {}  # by how many, for each key
        self.keys: list[bytes] = []
        self.told: dict[bytes, set[PeerId]] = {}
        self.confirmed: dict[bytes, int] = {}

    def closest(self, key: bytes) -> list[PeerId]:
        """The closest peers to `key` that are known and did not fail.  One peer's word is
        not enough: a liar could have any number of peers asked that do not exist.  Nor is
        anybody's where the peer was silent just now: the others have yet to notice."""
        named = (
            peer
            for peer, count in self._named[key].items()
            if count >= 2 and not self._peers.is_suspect(peer)
        )
        known = {*self._found, *named} - self._failed - {self._peers.own}
        return closest_of(known, kad_id(key), KAD_BUCKET)

    async def tell(self, keys: list[bytes], found: list[PeerId]) -> None:
        """Tell each key's closest of `found`, then whom those name that are closer."""
        self._found, self.keys = found, keys
        for key in keys:
            self._named[key], self.told[key], self.confirmed[key] = Counter(), set(), 0
        for _ in range(KAD_PROVIDE_ROUNDS_MAX):
            keys_of: dict[PeerId, list[bytes]] = {}
            for key in keys:
                for peer in self.closest(key):
                    if peer not in self.told[key]:
                        self.told[key].add(peer)
                        keys_of.setdefault(peer, []).append(key)
            if not keys_of:
                return
            async with trio.open_nursery() as nursery:
                for peer, its in keys_of.items():
                    nursery.start_soon(self._tell_peer, peer, its)

    async def _tell_peer(self, peer: PeerId, keys: list[bytes]) -> None:
        async with self._limiter:
            for start in range(0, len(keys), KAD_PROVIDE_KEYS_PER_EXCHANGE):
                some = keys[start : start + KAD_PROVIDE_KEYS_PER_EXCHANGE]
                if not await self._exchange(peer, some):
                    self._failed.add(peer)
                    self._peers.unanswered(peer)
                    return

    async def _exchange(self, peer: PeerId, keys: list[bytes]) -> bool:
        """Tell and read back, once more where that fails; False where `peer` does not
        answer.  One that refuses is none the worse for it."""
        left = keys
        answered = False
        for _ in range(KAD_PROVIDE_ATTEMPTS):
            requests = [
                request
                for key in left
                for request in (
                    KadMessage(MessageType.ADD_PROVIDER, key, providers=self._me),
                    KadMessage(MessageType.GET_PROVIDERS, key),
                )
            ]
            try:
                answers = await self._requests.exchange_all(self._search.where(peer), requests)
            except (NetworkError, PeerError):
                answered = False
                continue
            missing = []
            for key, answer in zip(left, answers, strict=True):
                if any(each.peer == self._peers.own for each in answer.providers):
                    self.confirmed[key] += 1
                else:
                    missing.append(key)
                if not answered:
                    self._named[key].update(each.peer for each in answer.closer)
                for each in answer.closer:
                    self._search.hint(each.peer, each.addresses)
            answered = True
            left = missing
            if not left:
                break
        return answered
