"""Simulated DHT nodes that come and go for hours, and the refreshes that keep tables usable.

Sessions have random lengths, exponential ones; whoever leaves is silent for ever and a newcomer
joins through somebody alive.  Tables start whole, and are refreshed as `network.routing` does it
by the hour.  One search runs at a time, from its own instant on: those of different nodes do not
see each other's messages under way.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count

from dstore.core.kad_table import LookAround
from dstore.core.kademlia import common_prefix, kad_id
from dstore.limits import (
    KAD_CONCURRENCY,
    KAD_REFRESH_LOOKUPS_MAX,
    KAD_REFRESH_SECONDS,
)
from dstore.testing.dht_simulation import Outcome, SimNode, Simulation


@dataclass
class ChurnReport:
    """What lookups met once the tables had aged; `found` tells for each record whether one of
    its providers was found long after; `upkeep_messages` are those of joins and refreshes."""

    lookups: list[Outcome] = field(default_factory=list)
    recalls: list[float] = field(default_factory=list)
    found: list[bool] = field(default_factory=list)
    upkeep_messages: int = 0
    left: int = 0
    dead_in_tables: float = 0.0


class Churn:
    """A network under churn."""

    def __init__(self, sim: Simulation, size: int, median_seconds: float) -> None:
        """`median_seconds`: half of all sessions are shorter."""
        self.report = ChurnReport()
        self._sim = sim
        self._mean_seconds = median_seconds / math.log(2)
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._serial = count()
        nodes = sim.grow(size)
        sim.fill_tables(nodes)
        self._living = {node.peer: node for node in nodes}
        for node in nodes:
            self._begin_session(node, 0.0, sim.random.uniform(0, KAD_REFRESH_SECONDS))

    def run(self, warm_seconds: float, seconds: float, *, every: float, find_after: float) -> None:
        """Let `warm_seconds` pass; then for `seconds`, every so often look a random key up, and
        provide one which another node searches `find_after` seconds later."""
        for turn in range(int(seconds / every)):
            self._at(warm_seconds + turn * every, self._look_up)
            self._at(warm_seconds + turn * every, lambda: self._provide(find_after))
        end = warm_seconds + seconds + find_after
        while self._events and self._events[0][0] <= end:
            instant, _, action = heapq.heappop(self._events)
            self._sim.now = instant
            action()
        self._sim.now = end
        named = [peer for node in self._living.values() for peer in node.table]
        dead = sum(not self._sim.nodes[peer].alive for peer in named)
        self.report.dead_in_tables = dead / len(named)

    def _at(self, instant: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._events, (instant, next(self._serial), action))

    def _begin_session(self, node: SimNode, now: float, refresh_in: float) -> None:
        self._at(
            now + self._sim.random.expovariate(1 / self._mean_seconds), lambda: self._end(node)
        )
        self._at(now + refresh_in, lambda: self._refresh(node))

    def _end(self, node: SimNode) -> None:
        node.alive = False
        del self._living[node.peer]
        self.report.left += 1
        now = self._sim.now
        (newcomer,) = self._sim.grow(1)
        self._sim.hear(newcomer, self._somebody().peer)
        self._living[newcomer.peer] = newcomer
        self._begin_session(newcomer, now, 0.0)

    def _somebody(self) -> SimNode:
        return self._sim.random.choice(list(self._living.values()))

    def _refresh(self, node: SimNode) -> None:
        """As `Routing.refresh`; again after KAD_REFRESH_SECONDS."""
        if not node.alive:
            return
        sim, started = self._sim, self._sim.now
        stale = bool(node.table.unheard_since(started - KAD_REFRESH_SECONDS, 1))
        own = node.peer.binary
        around = LookAround(node.table)
        done = sim.search(node, own) if stale else sim.look_around(node, own, around)
        self.report.upkeep_messages += done.messages
        for prefix in around.left()[:KAD_REFRESH_LOOKUPS_MAX]:
            before = len(node.table)
            key = self._key_beside(node, prefix)
            fresh = LookAround(node.table)
            done = sim.search(node, key) if stale else sim.look_around(node, key, fresh)
            self.report.upkeep_messages += done.messages
            if len(node.table) == before:
                break
        for peer in node.table.unheard_since(started - KAD_REFRESH_SECONDS, KAD_CONCURRENCY):
            self.report.upkeep_messages += 1
            if sim.nodes[peer].alive:
                sim.hear(node, peer)
            else:
                node.table.failed(peer)
        self._at(started + KAD_REFRESH_SECONDS, lambda: self._refresh(node))

    def _key_beside(self, node: SimNode, prefix: int) -> bytes:
        """A key that shares `prefix` bits with the node's id."""
        own = kad_id(node.peer.binary)
        while True:
            key = self._sim.peer_id().binary
            if common_prefix(kad_id(key), own) == prefix:
                return key

    def _look_up(self) -> None:
        node, key = self._somebody(), self._sim.peer_id().binary
        true = self._sim.true_closest(key, node)
        outcome = self._sim.search(node, key)
        self.report.lookups.append(outcome)
        self.report.recalls.append(len(set(true) & set(outcome.closest)) / len(true))

    def _provide(self, find_after: float) -> None:
        key, now = self._sim.peer_id().binary, self._sim.now
        self._sim.provide(self._somebody(), key)

        def find() -> None:
            outcome = self._sim.search(self._somebody(), key, providers=1)
            self.report.found.append(bool(outcome.providers))

        self._at(now + find_after, find)
