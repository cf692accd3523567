"""Who could hold slots: peers found, asked what they offer, and remembered.

Candidates come from the DHT near the root, from the connections and from the catalog, never
only from what one other peer said.  Deciding among them is `core.placement`'s.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain, zip_longest

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
    HELLO_SILENT_SECONDS,
)
from dstore.network.fragments_client import FragmentsClient
from dstore.network.routing import Routing
from dstore.network.streams import Network, PeerAddresses
from dstore.runtime import Runtime, open_plain_nursery
from dstore.service.stores import Stores
from dstore.storage.rows import PeerRow

_LABEL = "label:"


def label_domains(label: str) -> tuple[str, ...]:
    """How a node announces the failure domain that its operator named."""
    return (_LABEL + label,) if label else ()


def labels_of(announced: Iterable[str]) -> list[str]:
    """The labels among the failure domains that a node announced."""
    return [one.removeprefix(_LABEL) for one in announced if one.startswith(_LABEL)]


def peer_domains(addresses: Iterable[str], announced: Sequence[str]) -> frozenset[str]:
    """The failure domains of a peer reached at `addresses` that announced these.  What a peer
    says of its addresses, or others say, is no address it was reached at: one that names
    everybody's networks would make everybody one domain."""
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
        # Who did not answer, and when last: asked again, but waited for no longer than the near.
        self._silent: OrderedDict[PeerId, float] = OrderedDict()
        self.on_hello: Callable[[PeerId, Sequence[str]], None] = lambda *_: None
        """Called with what each peer that answers announces of its failure domains."""

    async def find(self, key: bytes) -> list[Candidate]:
        """Storage peers that answered just now or within HELLO_KEPT_SECONDS, found near `key`
        (a multihash) and elsewhere; at most CANDIDATES_MAX, this node not among them.  Takes
        HELLO_SECONDS at most beyond the DHT look-up; never raises for peers that fail."""
        near = await self._routing.lately_closest_peers(key)
        here = [PeerAddresses(peer) for peer in self._network.connected()]
        rows = await self._runtime.workers.run(self._rows, [one.peer for one in (*near, *here)])
        chosen = [one for one in _in_turns(near, here, rows) if one.peer != self._network.peer_id]
        known = self._known(target.peer for target in chosen)
        found = {peer: candidate for peer, candidate in known.items() if candidate is not None}
        strangers = [target for target in chosen if target.peer not in known]
        await self._ask_all(strangers, found, self._expected(strangers, rows))
        return sorted(found.values(), key=lambda candidate: candidate.peer)

    def _rows(self, peers: Sequence[PeerId]) -> dict[PeerId, PeerRow]:
        """In a worker: what is known of the storage nodes seen last, and of `peers`."""
        catalog = self._stores.catalog
        rows = {row.peer: row for row in catalog.peers(CANDIDATES_MAX, "storage")}
        for peer in peers:
            row = catalog.peer(peer)
            if row is not None:
                rows[peer] = row
        return rows

    def _expected(
        self, targets: Iterable[PeerAddresses], rows: Mapping[PeerId, PeerRow]
    ) -> dict[PeerId, frozenset[str]]:
        """The failure domains in which peers lie, as far as is known before they answer; of
        those only that may store, and did not leave it at silence lately."""
        horizon = trio.current_time() - HELLO_SILENT_SECONDS
        expected: dict[PeerId, frozenset[str]] = {}
        for peer in (target.peer for target in targets):
            row, reached = rows.get(peer), self._network.reached_at(peer)
            if self._silent.get(peer, horizon) > horizon or not _may_store(row):
                continue
            if reached is not None:
                expected[peer] = peer_domains([reached], row.domains if row else ())
            elif row is not None:
                expected[peer] = frozenset(row.domains)
        return expected

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

    def _note_silent(self, peer: PeerId) -> None:
        self._silent[peer] = trio.current_time()
        self._silent.move_to_end(peer)
        if len(self._silent) > CANDIDATES_MAX:
            self._silent.popitem(last=False)

    async def _ask_all(
        self,
        targets: Sequence[PeerAddresses],
        found: dict[PeerId, Candidate],
        expected: Mapping[PeerId, frozenset[str]],
    ) -> None:
        """Add the storage nodes among those who answer to `found`.  While somebody may lie in a
        failure domain of which nobody was found, near ones that answer at once are no reason to
        stop."""
        begun = trio.current_time()
        news, ended = trio.open_memory_channel[PeerId](CANDIDATES_MAX)
        waiting = {target.peer for target in targets}
        domains = {domain for candidate in found.values() for domain in candidate.domains}

        async def ask(target: PeerAddresses) -> None:
            if await self._ask(target, found):
                self._note(target.peer, found.get(target.peer))
            else:
                self._note_silent(target.peer)
            news.send_nowait(target.peer)

        with trio.move_on_after(HELLO_SECONDS) as window:
            async with open_plain_nursery() as nursery:
                for target in targets:
                    nursery.start_soon(ask, target)
                patience_seconds = HELLO_QUIET_SECONDS
                while waiting:
                    far = (expected[peer] for peer in waiting if peer in expected)
                    elsewhere = not found or any(map(domains.isdisjoint, far))
                    with trio.move_on_after(math.inf if elsewhere else patience_seconds) as one:
                        peer = await ended.receive()
                    if one.cancelled_caught:
                        break  # the others are dead, or so slow that no slot should be theirs
                    waiting.discard(peer)
                    if peer in found:
                        domains |= found[peer].domains
                    patience_seconds = HELLO_QUIET_SECONDS + 4 * (trio.current_time() - begun)
                nursery.cancel_scope.cancel()
        if window.cancelled_caught:
            for peer in waiting:
                self._note_silent(peer)

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
        reached = self._network.reached_at(target.peer)
        if reached is None:
            return False  # it left with its answer
        self._silent.pop(target.peer, None)
        self.on_hello(target.peer, hello.domains)
        domains = peer_domains([reached], hello.domains)
        await self._remember(target.peer, hello, domains)
        if hello.role is wire.Role.STORAGE:  # a full one may have the slots already
            found[target.peer] = Candidate(
                target.peer,
                domains,
                hello.free_bytes,
                load=hello.load_percent / 100,
            )
        return True

    async def _remember(self, peer: PeerId, hello: wire.Hello, domains: frozenset[str]) -> None:
        addresses = self._network.known_addresses(peer)

        def work() -> None:
            now = self._runtime.clock.now()
            catalog = self._stores.catalog
            catalog.saw_peer(peer, addresses, now)
            role = hello.role.name.lower()
            catalog.peer_terms(peer, role, hello.free_bytes, sorted(domains), now)

        await self._runtime.workers.run(work)


def _may_store(row: PeerRow | None) -> bool:
    return row is None or row.role in (None, "storage")


def _in_turns(
    near: Sequence[PeerAddresses],
    connected: Sequence[PeerAddresses],
    rows: Mapping[PeerId, PeerRow],
) -> list[PeerAddresses]:
    """At most CANDIDATES_MAX peers to ask: of those near the root, those known to store and
    those connected in turns, so that no source crowds out another; then, where there is room,
    those that did something else when they were asked last."""
    stores = [PeerAddresses(row.peer, row.addresses) for row in rows.values()]
    turns = chain.from_iterable(zip_longest(near, stores, connected))
    targets: dict[PeerId, PeerAddresses] = {}
    for target in (one for one in turns if one is not None):
        known = targets.get(target.peer, PeerAddresses(target.peer)).addresses
        targets[target.peer] = PeerAddresses(target.peer, (*known, *target.addresses))
    hopeful = [one for peer, one in targets.items() if _may_store(rows.get(peer))]
    others = [one for peer, one in targets.items() if not _may_store(rows.get(peer))]
    return (hopeful + others)[:CANDIDATES_MAX]
