"""Who could hold slots: peers found, asked what they offer, and remembered.

Candidates come from the DHT near the root, from the connections and from the catalog, never
only from what one other peer said.  Deciding among them is `core.placement`'s.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence

import trio

from dstore.core import wire
from dstore.core.peerid import PeerId
from dstore.core.placement import Candidate, domains_of
from dstore.errors import NetworkError, PeerError
from dstore.limits import (
    CANDIDATES_MAX,
    HELLO_KEPT_SECONDS,
    HELLO_QUIET_SECONDS,
    HELLO_SECONDS,
)
from dstore.network.fragments_client import FragmentsClient
from dstore.network.routing import Routing
from dstore.network.streams import Network, PeerAddresses
from dstore.runtime import Runtime, open_plain_nursery
from dstore.service.stores import Stores

_LABEL = "label:"


def label_domains(label: str) -> tuple[str, ...]:
    """How a node announces the failure domain that its operator named."""
    return (_LABEL + label,) if label else ()


def labels_of(announced: Iterable[str]) -> list[str]:
    """The labels among the failure domains that a node announced."""
    return [one.removeprefix(_LABEL) for one in announced if one.startswith(_LABEL)]


def peer_domains(addresses: Iterable[str], announced: Sequence[str]) -> frozenset[str]:
    """The failure domains of a peer at `addresses` that announced these."""
    return domains_of(addresses, next(iter(labels_of(announced)), None))


class CandidateFinder:
    """Finds peers that take slots."""

    def __init__(
        self,
        network: Network,
        routing: Routing,
        client: FragmentsClient,
        stores: Stores,
        runtime: Runtime,
    ) -> None:
        self._network = network
        self._routing = routing
        self._client = client
        self._stores = stores
        self._runtime = runtime
        # Who said what lately; None for a peer that is no storage node.
        self._told: OrderedDict[PeerId, tuple[float, Candidate | None]] = OrderedDict()
        self.on_hello: Callable[[PeerId, Sequence[str]], None] = lambda *_: None
        """Called with what each peer that answers announces of its failure domains."""

    async def find(self, key: bytes) -> list[Candidate]:
        """Storage peers that answered just now or within HELLO_KEPT_SECONDS, found near `key`
        (a multihash) and elsewhere; at most CANDIDATES_MAX, this node not among them.  Takes
        HELLO_SECONDS at most beyond the DHT look-up; never raises for peers that fail."""
        targets: dict[PeerId, PeerAddresses] = {}
        for peer in self._network.connected():
            targets[peer] = PeerAddresses(peer)
        for target in await self._routing.lately_closest_peers(key):
            targets.setdefault(target.peer, target)
        for row in await self._runtime.workers.run(self._stores.catalog.peers, CANDIDATES_MAX):
            if row.role == "storage":
                targets.setdefault(row.peer, PeerAddresses(row.peer, row.addresses))
        targets.pop(self._network.peer_id, None)
        chosen = list(targets.values())[:CANDIDATES_MAX]
        known = self._known(target.peer for target in chosen)
        found = {peer: candidate for peer, candidate in known.items() if candidate is not None}
        await self._ask_all([target for target in chosen if target.peer not in known], found)
        return sorted(found.values(), key=lambda candidate: candidate.peer)

    def forget(self, peers: Iterable[PeerId]) -> None:
        """What these said is not to be relied on: they are asked again."""
        for peer in peers:
            self._told.pop(peer, None)

    def _known(self, peers: Iterable[PeerId]) -> dict[PeerId, Candidate | None]:
        """Those of the peers that need not be asked, and what they offer."""
        horizon = trio.current_time() - HELLO_KEPT_SECONDS
        return {
            peer: self._told[peer][1]
            for peer in peers
            if peer in self._told
            and self._told[peer][0] > horizon
            and self._network.reached_at(peer) is not None
        }

    def _note(self, peer: PeerId, candidate: Candidate | None) -> None:
        self._told[peer] = trio.current_time(), candidate
        self._told.move_to_end(peer)
        if len(self._told) > CANDIDATES_MAX:
            self._told.popitem(last=False)

    async def _ask_all(
        self, targets: Sequence[PeerAddresses], found: dict[PeerId, Candidate]
    ) -> None:
        """Add the storage nodes among those who answer to `found`."""
        begun = trio.current_time()
        news, ended = trio.open_memory_channel[float](CANDIDATES_MAX)

        async def ask(target: PeerAddresses) -> None:
            if await self._ask(target, found):
                self._note(target.peer, found.get(target.peer))
            news.send_nowait(trio.current_time() - begun)

        with trio.move_on_after(HELLO_SECONDS):
            async with open_plain_nursery() as nursery:
                for target in targets:
                    nursery.start_soon(ask, target)
                patience_seconds: float = HELLO_QUIET_SECONDS if found else HELLO_SECONDS
                for _ in targets:
                    with trio.move_on_after(patience_seconds) as waiting:
                        slowest = await ended.receive()
                    if waiting.cancelled_caught:
                        break  # the others are dead, or so slow that no slot should be theirs
                    if found:
                        patience_seconds = HELLO_QUIET_SECONDS + 4 * slowest
                nursery.cancel_scope.cancel()

    async def introduce(self, peers: Iterable[PeerId]) -> None:
        """Ask peers what they offer, so that the catalog knows their roles and domains.
        Takes HELLO_SECONDS at most; never raises for peers that fail."""
        with trio.move_on_after(HELLO_SECONDS):
            async with open_plain_nursery() as nursery:
                for peer in list(peers)[:CANDIDATES_MAX]:
                    nursery.start_soon(self._ask, PeerAddresses(peer), {})

    async def _ask(self, target: PeerAddresses, found: dict[PeerId, Candidate]) -> bool:
        """Whether the peer answered; added to `found` where it is a storage node."""
        if target.addresses:
            self._network.remember(target)
        try:
            hello = await self._client.hello(target.peer)
        except (NetworkError, PeerError):
            return False
        self.on_hello(target.peer, hello.domains)
        addresses = tuple(self._network.known_addresses(target.peer))
        await self._remember(target.peer, addresses, hello)
        if hello.role is wire.Role.STORAGE:  # a full one may have the slots already
            found[target.peer] = Candidate(
                target.peer,
                peer_domains(addresses, hello.domains),
                hello.free_bytes,
                load=hello.load_percent / 100,
            )
        return True

    async def _remember(self, peer: PeerId, addresses: Sequence[str], hello: wire.Hello) -> None:
        def work() -> None:
            now = self._runtime.clock.now()
            catalog = self._stores.catalog
            catalog.saw_peer(peer, addresses, now)
            role = hello.role.name.lower()
            catalog.peer_terms(peer, role, hello.free_bytes, hello.domains, now)

        await self._runtime.workers.run(work)
