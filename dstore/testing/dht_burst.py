"""One simulated DHT node that provides many keys at once, as a real one does after a large add.

Which keys are told together, to whom, what is read back and what is tried again when is decided
by the core that the real node runs (`core/provide_queue.py`, `core/kad_provision.py`); here is
only the driver, in the simulated time of `testing/dht_simulation.py`, where the real one is
`network/kad_provide.py`.  The connections that a real node would have to open first take no time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from dstore.core.kad_messages import KadMessage, KadPeer, MessageType
from dstore.core.kad_provision import Exchange, Provided, SharedLookups, Telling, parts_of
from dstore.core.kademlia import closest_of, kad_id
from dstore.core.neighbourhood import Neighbourhood
from dstore.core.provide_queue import Batch, ProvideQueue
from dstore.limits import (
    KAD_BUCKET,
    KAD_PEERS_PER_REPLY_MAX,
    KAD_PROVIDE_EXCHANGES_MAX,
    KAD_REQUEST_SECONDS,
    REPROVIDE_SECONDS,
)
from dstore.testing.dht_simulation import SimNode, SimSearch, Simulation


@dataclass(slots=True)
class BurstReport:
    """What the burst cost: `messages` are requests sent, those of `lookups` among them;
    `seconds` until enough peers had confirmed the last key; `told_again` counts keys that had
    to wait for another turn; `left` are those given up when the next great round is due;
    `confirmed` tells how many peers showed each key's record when it was told last."""

    seconds: float = 0.0
    messages: int = 0
    lookups: int = 0
    lookup_messages: int = 0
    batches: int = 0
    told_again: int = 0
    left: int = 0
    confirmed: dict[bytes, int] = field(default_factory=dict)


class Burst:
    """`node` tells the network of `keys`, all asked for at the same moment."""

    def __init__(self, sim: Simulation, node: SimNode, keys: Sequence[bytes]) -> None:
        self.report = BurstReport()
        self.sim = sim
        self.node = node
        self.shared = SharedLookups()
        self._queue = ProvideQueue()
        self._queue.soon(keys)
        self._began = sim.now

    def run(self) -> BurstReport:
        """To the end, or until the next great round would be due."""
        self._step()
        self.sim.run()
        self.report.left = len(self._queue)
        return self.report

    def _step(self) -> None:
        """As `service.reprovide` does it."""
        batch = self._queue.batch(self.sim.now)
        self.report.batches += 1
        _ToldBatch(self, batch.keys, partial(self._noted, batch, self.sim.now)).start()

    def _noted(self, batch: Batch, began: float, told: dict[bytes, Provided]) -> None:
        now = self.sim.now
        self._queue.note(batch, told, now)
        self.report.told_again += sum(not provided.enough for provided in told.values())
        self.report.confirmed.update((key, each.confirmed) for key, each in told.items())
        self.report.seconds = now - self._began
        next_at = now + self._queue.pause(batch, began, now)
        if next_at - self._began < REPROVIDE_SECONDS:
            self.sim.at(next_at, self._step)


class _ToldBatch:
    """Keys being told together, as `network.kad_provide` does it: parts beside each other."""

    def __init__(
        self,
        burst: Burst,
        keys: Sequence[bytes],
        on_end: Callable[[dict[bytes, Provided]], None],
    ) -> None:
        self.burst = burst
        self.places = _Places(KAD_PROVIDE_EXCHANGES_MAX)
        self._parts = parts_of(keys)
        self._running = len(self._parts)
        self._on_end = on_end
        self._results: dict[bytes, Provided] = {}

    def start(self) -> None:
        for keys in self._parts:
            self._look_up(keys)

    def _look_up(self, keys: list[bytes]) -> None:
        burst = self.burst
        wanted = burst.shared.wanted(keys)

        def found(search: SimSearch) -> None:
            burst.report.lookups += 1
            burst.report.lookup_messages += search.outcome.messages
            burst.report.messages += search.outcome.messages
            peers = search.outcome.closest
            around = Neighbourhood(kad_id(keys[0]), peers, wanted, ended=search.finished)
            served = burst.shared.served(keys, around)
            suspects = burst.node.suspects
            telling = Telling(
                burst.node.peer, served, peers, lambda peer: suspects.has(peer, burst.sim.now)
            )
            _Rounds(self, telling, partial(self._told, telling, keys)).step()

        SimSearch(burst.sim, burst.node, keys[0], count=wanted, on_end=found).step()

    def _told(self, telling: Telling, keys: list[bytes]) -> None:
        for key in telling.keys:
            self._results[key] = telling.result(key)
        if rest := keys[len(telling.keys) :]:
            self._look_up(rest)
            return
        self._running -= 1
        if not self._running:
            self._on_end(self._results)


class _Rounds:
    """The keys that one lookup serves being told, round after round."""

    def __init__(self, batch: _ToldBatch, telling: Telling, on_end: Callable[[], None]) -> None:
        self._sim = batch.burst.sim
        self._node = batch.burst.node
        self._report = batch.burst.report
        self._places = batch.places
        self._telling = telling
        self._on_end = on_end
        self._running = 0

    def step(self) -> None:
        """The next round, or the end."""
        exchanges_of = self._telling.next_round()
        self._running = len(exchanges_of)
        if not exchanges_of:
            self._on_end()
        for peer, exchanges in exchanges_of.items():
            self._places.take(partial(self._next, self._sim.nodes[peer], deque(exchanges)))

    def _next(self, other: SimNode, exchanges: deque[Exchange]) -> None:
        """Send the first of `exchanges`, or once more, or go on to the next; or be done."""
        if exchanges and not exchanges[0].keys and not exchanges.popleft().answered:
            self._telling.failed(other.peer)
            self._node.table.failed(other.peer)
            self._node.suspects.add(other.peer, self._sim.now)
            exchanges.clear()
        if exchanges:
            self._send(other, exchanges)
            return
        self._places.free()
        self._running -= 1
        if not self._running:
            self.step()

    def _send(self, other: SimNode, exchanges: deque[Exchange]) -> None:
        sim, exchange = self._sim, exchanges[0]
        self._report.messages += len(exchange.requests(KadPeer(self._node.peer, ())))
        deadline = sim.now + KAD_REQUEST_SECONDS

        def lost() -> None:
            exchange.lost()
            self._next(other, exchanges)

        def serve() -> None:
            answers = [self._answer(other, key) for key in exchange.keys]
            back = sim.now + self._paced(other, 2 * len(answers)) + sim.delay(other, self._node)
            if back < deadline:
                sim.at(back, lambda: take(answers))
            else:
                sim.at(deadline, lost)

        def take(answers: list[KadMessage]) -> None:
            exchange.took(answers)
            self._next(other, exchanges)

        if other.alive:
            sim.at(sim.now + sim.delay(self._node, other), serve)
        else:
            sim.at(deadline, lost)

    def _paced(self, other: SimNode, requests: int) -> float:
        """Seconds until `other` answers the last of so many."""
        return max(other.pace.seconds(self._node.peer, self._sim.now) for _ in range(requests))

    def _answer(self, other: SimNode, key: bytes) -> KadMessage:
        """What `other` says when it is told of `key` and asked for its providers."""
        if other.friends is not None:
            closer, providers = closest_of(other.friends, kad_id(key), KAD_BUCKET), []
        else:
            self._sim.hear(other, self._node.peer)
            other.store.add(key, self._node.peer, (), self._sim.now)
            closer = other.table.closest(kad_id(key), KAD_PEERS_PER_REPLY_MAX + 1)
            providers = [record.peer for record in other.store.providers(key, self._sim.now)]
        return KadMessage(
            MessageType.GET_PROVIDERS,
            key,
            tuple(KadPeer(peer, ()) for peer in closer if peer != self._node.peer)[:KAD_BUCKET],
            tuple(KadPeer(peer, ()) for peer in providers),
        )


class _Places:
    """So many at once; the others wait in order."""

    def __init__(self, number: int) -> None:
        self._free = number
        self._waiting: deque[Callable[[], None]] = deque()

    def take(self, action: Callable[[], None]) -> None:
        if self._free:
            self._free -= 1
            action()
        else:
            self._waiting.append(action)

    def free(self) -> None:
        if self._waiting:
            self._waiting.popleft()()
        else:
            self._free += 1
