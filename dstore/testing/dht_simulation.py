"""Thousands of DHT nodes in one process: `core`'s table, lookup and provider store, driven by
a plain heap of events in simulated time.

No sockets, tasks or messages: a request arrives, is answered and the answer arrives, after
delays from a model.  A node's place in a plane and a log-normal factor make the delays; a dead
node never answers.  Tables start as joins would leave them after long, from knowledge of all
nodes.  Everything comes from the seed.
"""

from __future__ import annotations

import heapq
import math
import random
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Final

from dstore.core.diversity import NOWHERE, Subnets, subnets_of
from dstore.core.kad_memory import Delays, Pace, Suspects
from dstore.core.kad_table import LookAround, RoutingTable
from dstore.core.kademlia import ID_BITS, Lookup, ProviderStore, closest_of, kad_id
from dstore.core.peerid import PeerId
from dstore.limits import (
    KAD_BUCKET,
    KAD_CONCURRENCY,
    KAD_LOOKUP_SECONDS,
    KAD_REQUEST_SECONDS,
)

PLANE_SECONDS: Final = 0.08  # one way, from side to side
BASE_SECONDS: Final = 0.005
JITTER_SIGMA: Final = 0.35


@dataclass(slots=True)
class SimNode:
    """One node; `liar` answers with its `friends` only and forgets what it is told."""

    peer: PeerId
    place: tuple[float, float]
    subnets: Subnets
    table: RoutingTable
    store: ProviderStore
    alive: bool = True
    friends: list[PeerId] | None = None
    delays: Delays = field(default_factory=Delays)
    suspects: Suspects = field(default_factory=Suspects)
    pace: Pace = field(default_factory=Pace)


@dataclass(slots=True)
class Outcome:
    """What one search cost and found: times in seconds, `messages` requests sent, `hops` the
    longest chain of answers that led to one of the closest."""

    closest: list[PeerId] = field(default_factory=list)
    providers: set[PeerId] = field(default_factory=set)
    seconds: float = 0.0
    first_provider: float | None = None
    messages: int = 0
    hops: int = 0
    confirmed: int = 0


class Simulation:
    """A network of nodes and one clock."""

    def __init__(self, seed: int, *, diverse: bool = True) -> None:
        """`diverse` False switches the limits for each subnet off, to show what they do."""
        self.random = random.Random(seed)  # noqa: S311 - a simulation keeps no secrets
        self.now = 0.0
        self.nodes: dict[PeerId, SimNode] = {}
        self._diverse = diverse
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._serial = count()

    # --- The network --------------------------------------------------------------------

    def peer_id(self) -> PeerId:
        """A fresh id."""
        return PeerId(b"\x12\x20" + self.random.randbytes(32))

    def add(self, peer: PeerId, address: str) -> SimNode:
        """A node that knows nobody."""
        place = (self.random.random(), self.random.random())
        subnets = subnets_of([address]) if self._diverse else NOWHERE
        node = SimNode(peer, place, subnets, RoutingTable(peer), ProviderStore())
        self.nodes[peer] = node
        return node

    def grow(self, size: int) -> list[SimNode]:
        """`size` honest nodes, each at a public address of its own, anywhere."""
        return [self.add(self.peer_id(), self.address()) for _ in range(size)]

    def address(self) -> str:
        """A public address anywhere."""
        draw = self.random.randrange
        return f"/ip4/{draw(20, 99)}.{draw(256)}.{draw(256)}.{draw(1, 255)}/tcp/4001"

    def fill_tables(self, nodes: Iterable[SimNode]) -> None:
        """Give each of `nodes` the table that long membership gives: in each bucket, k of all
        nodes that belong there, in random order."""
        ordered = sorted((kad_id(peer.binary), peer) for peer in self.nodes)
        ids = [place for place, _ in ordered]
        for node in nodes:
            own = kad_id(node.peer.binary)
            for prefix in range(ID_BITS):
                width = ID_BITS - prefix
                low = (own >> width) << width
                if bisect_left(ids, low + (1 << width)) - bisect_left(ids, low) <= 1:
                    break  # nobody else shares so much
                half = 1 << (width - 1)
                other = ((own ^ half) >> (width - 1)) << (width - 1)
                first, last = bisect_left(ids, other), bisect_left(ids, other + half)
                some = self.random.sample(range(first, last), min(KAD_BUCKET, last - first))
                for index in some:
                    self.hear(node, ordered[index][1])

    def hear(self, node: SimNode, peer: PeerId) -> None:
        """`node` meets `peer`."""
        node.suspects.discard(peer)
        node.table.heard(peer, self.now, self.nodes[peer].subnets)

    def delay(self, a: SimNode, b: SimNode) -> float:
        """One way from `a` to `b`, in seconds."""
        apart = math.dist(a.place, b.place)
        return (BASE_SECONDS + PLANE_SECONDS * apart) * self.random.lognormvariate(0, JITTER_SIGMA)

    def true_closest(self, key: bytes, without: SimNode | None = None) -> list[PeerId]:
        """The k closest of the honest and living."""
        able = (
            n.peer
            for n in self.nodes.values()
            if n.alive and n.friends is None and n is not without
        )
        return closest_of(able, kad_id(key), KAD_BUCKET)

    # --- Time ---------------------------------------------------------------------------

    def at(self, instant: float, action: Callable[[], None]) -> None:
        """Do `action` at `instant`."""
        heapq.heappush(self._events, (instant, next(self._serial), action))

    def run(self) -> None:
        """Until nothing is left to happen."""
        while self._events:
            self.now, _, action = heapq.heappop(self._events)
            action()

    # --- What nodes do ------------------------------------------------------------------

    def search(self, node: SimNode, key: bytes, *, providers: int = 0) -> Outcome:
        """One lookup of `node`, run alone to its end: the closest peers, or, where `providers`
        is not 0, so many providers of `key`."""
        return self._run_alone(SimSearch(self, node, key, providers))

    def look_around(self, node: SimNode, key: bytes, around: LookAround) -> Outcome:
        """One lookup of `node` that is only to find peers for its table; those that it told
        of, and nobody asked, are met."""
        search = SimSearch(self, node, key, concurrency=around.at_once, enough=around.over)
        outcome = self._run_alone(search)
        able = (peer for peer in search.unheard() if not node.suspects.has(peer, self.now))
        for peer in node.table.to_meet(able):
            outcome.messages += 1
            if self.nodes[peer].alive:
                self.hear(node, peer)
                self.hear(self.nodes[peer], node.peer)
            else:
                node.suspects.add(peer, self.now)
        return outcome

    def _run_alone(self, search: SimSearch) -> Outcome:
        search.step()
        self.run()
        return search.outcome

    def provide(self, node: SimNode, key: bytes) -> Outcome:
        """Look up the closest peers, tell each, and read the record back."""
        outcome = self.search(node, key)
        slowest = 0.0
        for peer in outcome.closest:
            other = self.nodes[peer]
            outcome.messages += 2
            if not other.alive:
                continue
            slowest = max(slowest, self.delay(node, other) + self.delay(other, node))
            if other.friends is None and other.store.add(key, node.peer, (), self.now):
                outcome.confirmed += 1
        outcome.seconds += slowest
        return outcome

    def join(self, node: SimNode, first: SimNode) -> None:
        """`node` enters through `first`: looks up itself, and meets those who answer."""
        self.hear(node, first.peer)
        self.look_around(node, node.peer.binary, LookAround(node.table))


class SimSearch:
    """One lookup in simulated time, as `network.kad_search` drives it in real time."""

    def __init__(
        self,
        sim: Simulation,
        node: SimNode,
        key: bytes,
        providers: int = 0,
        *,
        count: int = KAD_BUCKET,
        concurrency: Callable[[], int] = lambda: KAD_CONCURRENCY,
        enough: Callable[[Sequence[PeerId]], bool] = lambda _: False,
        on_end: Callable[[SimSearch], None] = lambda _: None,
    ) -> None:
        """For `count` closest peers, or for `providers` where that is not 0; over before where
        `enough` says so of the peers that an answer names.  `on_end` is called at the end with
        this search."""
        self._sim = sim
        self._node = node
        self._key = key
        self._providers = providers
        self._start = sim.now
        self._ended = False
        self._depth: dict[PeerId, int] = {}
        self._ticking = math.inf
        self._enough = enough
        self._on_end = on_end
        self.outcome = Outcome()
        self._lookup = Lookup(
            kad_id(key),
            node.peer,
            count=count,
            concurrency=concurrency,
            widen=not providers,
            delays=node.delays,
            suspect=lambda peer: node.suspects.has(peer, sim.now),
            subnets=lambda peer: sim.nodes[peer].subnets,
        )
        self._lookup.learn(node.table.closest(self._lookup.target, 3 * KAD_BUCKET))

    @property
    def finished(self) -> bool:
        """Whether the search came to its own end, and not to that of its time."""
        return self._lookup.finished

    def unheard(self) -> list[PeerId]:
        """See `Lookup.unheard`."""
        return self._lookup.unheard()

    def step(self) -> None:
        """Ask whom the core names; end where it has ended or time is up."""
        sim, lookup = self._sim, self._lookup
        if self._ended:
            return
        lookup.tick(sim.now)
        if sim.now - self._start >= KAD_LOOKUP_SECONDS:
            self._end()
            return
        for peer in lookup.ask(sim.now):
            self._ask(sim.nodes[peer])
        for peer in lookup.ask_around(sim.now):
            self._ask_around(sim.nodes[peer])
        due = lookup.next_tick
        if lookup.finished:
            self._end()
        elif due < math.inf and due != self._ticking:
            self._ticking = due
            sim.at(max(due, sim.now), self.step)

    def _ask(self, other: SimNode) -> None:
        sim, node = self._sim, self._node
        self.outcome.messages += 1
        arrives = sim.now + sim.delay(node, other)
        if other.alive:
            sim.at(arrives, lambda: self._serve(other))
        else:
            sim.at(sim.now + KAD_REQUEST_SECONDS, lambda: self._fail(other.peer))

    def _serve(self, other: SimNode) -> None:
        sim, node = self._sim, self._node
        if other.friends is not None:
            closer = closest_of(other.friends, self._lookup.target, KAD_BUCKET)
            providers: list[PeerId] = []
        else:
            closer = other.table.closest(self._lookup.target, KAD_BUCKET)
            providers = [r.peer for r in other.store.providers(self._key, sim.now)]
            sim.hear(other, node.peer)
        back = sim.now + sim.delay(other, node)
        sim.at(back, lambda: self._take(other.peer, closer, providers))

    def _take(self, peer: PeerId, closer: list[PeerId], providers: list[PeerId]) -> None:
        self._sim.hear(self._node, peer)
        if self._ended:
            self._lookup.timed(peer, self._sim.now)
            return
        depth = self._depth.get(peer, 1)
        for each in closer:
            self._depth.setdefault(each, depth + 1)
        if self._providers and providers:
            self.outcome.providers.update(providers)
            if self.outcome.first_provider is None:
                self.outcome.first_provider = self._sim.now - self._start
        self._lookup.answered(peer, closer, self._sim.now)
        found = self._providers and len(self.outcome.providers) >= self._providers
        if found or self._enough(closer):
            self._end()
        else:
            self.step()

    def _ask_around(self, other: SimNode) -> None:
        """It answered a moment ago, so it lives."""
        sim, node = self._sim, self._node
        self.outcome.messages += 1

        def take() -> None:
            if not self._ended:
                names = other.table if other.friends is None else other.friends
                closer = closest_of(names, kad_id(other.peer.binary), KAD_BUCKET)
                self._lookup.answered_around(other.peer, closer)
                self.step()

        sim.at(sim.now + sim.delay(node, other) + sim.delay(other, node), take)

    def _fail(self, peer: PeerId) -> None:
        self._node.table.failed(peer)
        self._node.suspects.add(peer, self._sim.now)
        if not self._ended:
            self._lookup.failed(peer)
            self.step()

    def _end(self) -> None:
        self._ended = True
        for peer in self._lookup.late():
            self._node.suspects.add(peer, self._sim.now)
        self.outcome.closest = self._lookup.closest()
        self.outcome.seconds = self._sim.now - self._start
        self.outcome.hops = max((self._depth.get(p, 1) for p in self.outcome.closest), default=0)
        self._on_end(self)


# --- Attackers -------------------------------------------------------------------------


def add_sybils(sim: Simulation, key: bytes, number: int, addresses: list[str]) -> list[SimNode]:
    """`number` liars with ids ground closer to `key` than everybody, at `addresses` in turn;
    they know each other, and every honest node has met them all."""
    target = kad_id(key)
    honest = list(sim.nodes.values())
    # As if ground: of many draws those that are nearer than the nearest honest node.
    bound = min(kad_id(node.peer.binary) ^ target for node in honest)
    ids: list[PeerId] = []
    while len(ids) < number:
        peer = sim.peer_id()
        if kad_id(peer.binary) ^ target < bound:
            ids.append(peer)
    sybils = [sim.add(peer, addresses[i % len(addresses)]) for i, peer in enumerate(ids)]
    for sybil in sybils:
        sybil.friends = [peer for peer in ids if peer != sybil.peer]
        for node in honest:
            sim.hear(node, sybil.peer)
    return sybils
