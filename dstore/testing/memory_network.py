"""A network in memory: any number of nodes, their connections, and the faults between them.

`MemoryHost` is what a node sees (`dstore.network.streams.Network`); `MemoryNetwork` is the
hub, through which a test kills, pauses, parts, slows and corrupts.  Under
`run_deterministic` the event log is a function of the seeds alone.  It models no bandwidth
and no addresses beyond equality.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import trio

from dstore.core.peerid import PeerId
from dstore.errors import (
    ConnectionLost,
    DeadlineExceeded,
    DstoreError,
    ProtocolViolation,
    Unreachable,
)
from dstore.limits import (
    DIAL_SECONDS,
    KEEPALIVE_TIMEOUT_SECONDS,
    NEGOTIATE_SECONDS,
    YAMUX_WINDOW_BYTES_INITIAL,
)
from dstore.network.streams import PeerAddresses, StreamHandler
from dstore.testing.memory_stream import MemoryStream, Wire, stream_pair

CorruptHook = Callable[[PeerId, bytes], bytes]
"""(receiver, bytes sent) → bytes that arrive."""


@dataclass(frozen=True)
class Latency:
    """One-way delay of every message: uniform between the two bounds, in seconds."""

    seconds_min: float = 0.000_5
    seconds_max: float = 0.002


@dataclass(frozen=True)
class NetworkOptions:
    """How a network in memory behaves where nothing is broken.

    `ragged` cuts reads at random points, as TCP may; `silence_seconds` is after how long a
    connection over which nothing passes is lost (the keep-alive of the real host).
    """

    latency: Latency = Latency()
    window_bytes: int = YAMUX_WINDOW_BYTES_INITIAL
    ragged: bool = False
    silence_seconds: float = KEEPALIVE_TIMEOUT_SECONDS


class _Connection:
    """One connection between two hosts; the `Link` of its streams."""

    def __init__(self, hub: MemoryNetwork, dialler: MemoryHost, listener: MemoryHost) -> None:
        self.hub = hub
        self.hosts = (dialler, listener)
        self.lost = False
        self.silent = False
        self.silences = 0  # counts changes, so that a keep-alive knows its own silence
        self._wires: dict[Wire, None] = {}
        self.changed = trio.Event()

    def other(self, host: MemoryHost) -> MemoryHost:
        return self.hosts[1] if self.hosts[0] is host else self.hosts[0]

    def transit_seconds(self) -> float:
        return self.hub.transit_seconds(self.hosts[0].peer_id, self.hosts[1].peer_id)

    def passing(self, sender: PeerId, data: bytes) -> bytes:
        hook = self.hub.corrupt_hooks.get(sender)
        if hook is None:
            return data
        first, second = self.hosts
        return hook(second.peer_id if first.peer_id == sender else first.peer_id, data)

    def read_bytes(self, available: int) -> int:
        if self.hub.options.ragged and available > 1:
            return self.hub.random.randint(1, available)
        return available

    def name_of(self, peer: PeerId) -> str:
        return self.hub.name_of(peer)

    def record(self, event: str) -> None:
        self.hub.record(event)

    def forget(self, wire: Wire) -> None:
        self._wires.pop(wire, None)

    @property
    def streams(self) -> int:
        """Streams of which an end is open."""
        return len(self._wires)

    def add(self, wire: Wire) -> None:
        self._wires[wire] = None

    def wake(self) -> None:
        self.changed.set()
        self.changed = trio.Event()
        for wire in list(self._wires):
            wire.changed()

    async def round_trip(self, what: str) -> None:
        """Wait for a message there and its answer.  Raises ConnectionLost."""
        for _ in range(2):
            due = trio.current_time() + self.transit_seconds()
            while self.silent or trio.current_time() < due or self.lost:
                if self.lost:
                    raise ConnectionLost(f"{what}: connection lost")
                event = self.changed
                with trio.move_on_at(math.inf if self.silent else due):
                    await event.wait()

    def lose(self, why: str) -> None:
        """End the connection at both sides, now."""
        if self.lost:
            return
        self.lost = True
        first, second = self.hosts
        first.drop_connection(second.peer_id, self)
        second.drop_connection(first.peer_id, self)
        names = f"{self.name_of(first.peer_id)}-{self.name_of(second.peer_id)}"
        self.record(f"connection {names} lost: {why}")
        self.wake()


class MemoryHost:
    """One node's view; implements `dstore.network.streams.Network`."""

    def __init__(self, hub: MemoryNetwork, peer_id: PeerId, addresses: tuple[str, ...]) -> None:
        """For `MemoryNetwork.host`."""
        self._hub = hub
        self._peer_id = peer_id
        self._addresses = addresses
        self._handlers: dict[str, StreamHandler] = {}
        self._on_identified: list[Callable[[PeerId], None]] = []
        self._connections: dict[PeerId, _Connection] = {}
        self._known: dict[PeerId, dict[str, None]] = {}
        self._scopes: dict[trio.CancelScope, None] = {}  # of handlers being served
        self.dead = False
        self.handler_errors = 0

    @property
    def peer_id(self) -> PeerId:
        return self._peer_id

    def addresses(self) -> Sequence[str]:
        return self._addresses

    async def connect(self, target: PeerAddresses) -> None:
        await trio.lowlevel.checkpoint()
        self.remember(target)
        await self._connection(target.peer)

    async def open_stream(self, peer: PeerId, protocols: Sequence[str]) -> MemoryStream:
        await trio.lowlevel.checkpoint()
        connection = await self._connection(peer)
        hub = self._hub
        with trio.move_on_after(NEGOTIATE_SECONDS):
            await connection.round_trip(f"opening a stream to {peer}")
            listener = connection.other(self)
            spoken = [protocol for protocol in protocols if listener.handler_of(protocol)]
            if not spoken:
                raise ProtocolViolation(f"{peer} speaks none of {', '.join(protocols)}")
            hub.streams_opened += 1
            label = f"#{hub.streams_opened}"
            window = hub.options.window_bytes
            wire, near, far = stream_pair(connection, window, label, self._peer_id, peer)
            connection.add(wire)
            names = f"{hub.name_of(self._peer_id)}>{hub.name_of(peer)}"
            hub.record(f"{label} {names} opens {spoken[0]}")
            hub.serve(listener, spoken[0], far)
            return near
        raise DeadlineExceeded(f"{peer} did not negotiate within {NEGOTIATE_SECONDS} s")

    def set_handler(self, protocol: str, handler: StreamHandler) -> None:
        self._handlers[protocol] = handler
        for connection in self.live_connections():
            for call in connection.other(self)._on_identified:
                call(self._peer_id)

    def handler_of(self, protocol: str) -> StreamHandler | None:
        """What serves `protocol` here."""
        return self._handlers.get(protocol)

    def connected(self) -> Sequence[PeerId]:
        return tuple(self._connections)

    def known_addresses(self, peer: PeerId) -> Sequence[str]:
        return tuple(self._known.get(peer, ()))

    def reached_at(self, peer: PeerId) -> str | None:
        connection = self._connections.get(peer)
        return None if connection is None else connection.other(self).addresses()[0]

    def remember(self, target: PeerAddresses) -> None:
        self._known.setdefault(target.peer, {}).update(dict.fromkeys(target.addresses))

    def on_identified(self, call: Callable[[PeerId], None]) -> None:
        self._on_identified.append(call)

    def announced(self, peer: PeerId) -> Collection[str]:
        """As the contract says; identify is part of connecting here."""
        connection = self._connections.get(peer)
        return () if connection is None else tuple(connection.other(self)._handlers)

    async def speaks(self, peer: PeerId, protocol: str) -> bool:
        await trio.lowlevel.checkpoint()
        return protocol in self.announced(peer)

    async def disconnect(self, peer: PeerId) -> None:
        await trio.lowlevel.checkpoint()
        connection = self._connections.get(peer)
        if connection is not None:
            connection.lose(f"closed by {self._hub.name_of(self._peer_id)}")

    async def _connection(self, peer: PeerId) -> _Connection:
        """The live connection to `peer`, dialled where there is none."""
        if self.dead:
            raise Unreachable(f"this node ({self._peer_id}) is dead")
        if peer in self._connections:
            return self._connections[peer]
        if peer == self._peer_id:
            raise Unreachable("a node does not dial itself")
        known = self._known.get(peer)
        if not known:
            raise Unreachable(f"no address of {peer} is known")
        return await self._hub.dial(self, peer, tuple(known))

    def join(self, connection: _Connection) -> None:
        """A new connection, with what identify tells each side."""
        other = connection.other(self)
        self._connections[other.peer_id] = connection
        self.remember(PeerAddresses(other.peer_id, tuple(other.addresses())))
        for call in self._on_identified:
            call(other.peer_id)

    def live_connection(self, peer: PeerId) -> _Connection | None:
        return self._connections.get(peer)

    def live_connections(self) -> list[_Connection]:
        return list(self._connections.values())

    def drop_connection(self, peer: PeerId, connection: _Connection) -> None:
        if self._connections.get(peer) is connection:
            del self._connections[peer]

    def accept(self, nursery: trio.Nursery, protocol: str, stream: MemoryStream) -> None:
        """Start the handler of `protocol` on the stream."""
        # The scope is known before the task runs: a kill in between must reach it.
        scope = trio.CancelScope()
        self._scopes[scope] = None
        nursery.start_soon(self._serve, self._handlers[protocol], stream, scope)

    async def _serve(
        self, handler: StreamHandler, stream: MemoryStream, scope: trio.CancelScope
    ) -> None:
        """Run one handler, as the contract's `set_handler` says."""
        with scope:
            try:
                await handler(stream)
                await stream.close()
            # Errors of the tree end the stream, bare or out of a handler's own nursery.
            # Anything else is a fault of the code under test: it goes up and fails the test.
            except* DstoreError as errors:
                self.handler_errors += 1
                kinds = ", ".join(sorted({type(e).__name__ for e in _leaves(errors)}))
                name = self._hub.name_of(self._peer_id)
                self._hub.record(f"{stream.label} {name} handler failed: {kinds}")
            finally:
                del self._scopes[scope]
                stream.end_serving()

    def die(self) -> None:
        """Be gone at once, with every task that served somebody."""
        self.dead = True
        for connection in self.live_connections():
            connection.lose(f"{self._hub.name_of(self._peer_id)} died")
        for scope in list(self._scopes):
            scope.cancel()


def _leaves(group: BaseExceptionGroup[DstoreError]) -> Iterable[BaseException]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error


class MemoryNetwork:
    """The hub: makes hosts, carries their streams, and breaks what a test wants broken.

    Every fault acts at once and is undone by its counterpart.  All of them are recorded in
    `events`, as (trio time since the start, what happened), nodes named n0, n1, … in the
    order of their creation.
    """

    def __init__(self, nursery: trio.Nursery, seed: int, options: NetworkOptions) -> None:
        """For `memory_network`."""
        self.options = options
        self.random = random.Random(seed)  # noqa: S311 - the seed is the point
        self.events: list[tuple[float, str]] = []
        self.streams_opened = 0
        self.corrupt_hooks: dict[PeerId, CorruptHook] = {}
        self._nursery = nursery
        self._start = trio.current_time()
        self._hosts: dict[PeerId, MemoryHost] = {}
        self._names: dict[PeerId, str] = {}
        self._paused: set[PeerId] = set()
        self._blocked: set[tuple[PeerId, PeerId]] = set()
        self._groups: dict[PeerId, int] = {}
        self._delays: dict[PeerId, float] = {}
        self._silence_event = trio.Event()

    # --- Nodes -------------------------------------------------------------------------

    def host(self, peer_id: PeerId, addresses: Sequence[str] = ()) -> MemoryHost:
        """A new node, or after `kill` the same one started again, without its handlers.

        Its address is loopback with a port of its own unless others are given.
        """
        previous = self._hosts.get(peer_id)
        if previous is not None and not previous.dead:
            raise ValueError(f"{peer_id} is running already")
        number = len(self._names) if previous is None else list(self._names).index(peer_id)
        self._names[peer_id] = f"n{number}"
        given = tuple(addresses) or (previous.addresses() if previous else ())
        host = MemoryHost(self, peer_id, tuple(given) or (f"/ip4/127.0.0.1/tcp/{10_000 + number}",))
        self._hosts[peer_id] = host
        self.record(f"{self._names[peer_id]} starts")
        return host

    def name_of(self, peer: PeerId) -> str:
        """n0, n1, …"""
        return self._names.get(peer, "n?")

    # --- The log -----------------------------------------------------------------------

    def record(self, event: str) -> None:
        """Add an event; tests may add their own."""
        self.events.append((round(trio.current_time() - self._start, 9), event))

    def digest(self) -> str:
        """A hash of the whole log, for comparing long runs."""
        return hashlib.sha256(repr(self.events).encode()).hexdigest()

    # --- Faults ------------------------------------------------------------------------

    def kill(self, peer: PeerId) -> None:
        """As SIGKILL: its connections are lost at once, its handlers cancelled."""
        self.record(f"kill {self.name_of(peer)}")
        self._hosts[peer].die()

    def alive(self, peer: PeerId) -> bool:
        """Whether the node exists and was not killed."""
        return peer in self._hosts and not self._hosts[peer].dead

    def pause(self, peer: PeerId) -> None:
        """As SIGSTOP, seen from outside: silence until `resume`.  The node's own tasks run
        on, but nothing they send leaves and nothing reaches them."""
        self.record(f"pause {self.name_of(peer)}")
        self._paused.add(peer)
        self._silence_changed()

    def resume(self, peer: PeerId) -> None:
        """End `pause`; what was under way arrives, unless the connection was given up."""
        self.record(f"resume {self.name_of(peer)}")
        self._paused.discard(peer)
        self._silence_changed()

    def partition(self, *groups: Collection[PeerId]) -> None:
        """Silence between the groups; who is in none of them forms one more."""
        named = [sorted(self.name_of(peer) for peer in group) for group in groups]
        self.record(f"partition {named}")
        self._groups = {peer: n for n, group in enumerate(groups) for peer in group}
        self._silence_changed()

    def heal(self) -> None:
        """End every partition and `drop`."""
        self.record("heal")
        self._groups.clear()
        self._blocked.clear()
        self._silence_changed()

    def drop(self, first: PeerId, second: PeerId) -> None:
        """Silence between two nodes until `heal`."""
        self.record(f"drop {self.name_of(first)}-{self.name_of(second)}")
        self._blocked |= {(first, second), (second, first)}
        self._silence_changed()

    def sever(self, first: PeerId, second: PeerId) -> None:
        """Lose the connection between two nodes, if any; they may connect again."""
        connection = self._hosts[first].live_connection(second)
        if connection is not None:
            connection.lose("severed")

    def delay(self, peer: PeerId, seconds: float) -> None:
        """Add to the latency of all that the node sends and receives; 0 ends it."""
        self.record(f"delay {self.name_of(peer)} {seconds}")
        self._delays[peer] = seconds

    def corrupt(self, peer: PeerId, hook: CorruptHook | None) -> None:
        """Pass all that the node writes through `hook`; None ends it."""
        self.record(f"corrupt {self.name_of(peer)} {'off' if hook is None else 'on'}")
        if hook is None:
            self.corrupt_hooks.pop(peer, None)
        else:
            self.corrupt_hooks[peer] = hook

    def silent_between(self, first: PeerId, second: PeerId) -> bool:
        """Whether nothing passes between the two at present."""
        return (
            first in self._paused
            or second in self._paused
            or (first, second) in self._blocked
            or self._groups.get(first) != self._groups.get(second)
        )

    # --- For hosts and connections -----------------------------------------------------

    def transit_seconds(self, first: PeerId, second: PeerId) -> float:
        """A draw of the one-way latency."""
        latency = self.options.latency
        drawn = self.random.uniform(latency.seconds_min, latency.seconds_max)
        return drawn + self._delays.get(first, 0.0) + self._delays.get(second, 0.0)

    def serve(self, host: MemoryHost, protocol: str, stream: MemoryStream) -> None:
        """Start the handler of an accepted stream."""
        host.accept(self._nursery, protocol, stream)

    async def dial(self, dialler: MemoryHost, peer: PeerId, known: tuple[str, ...]) -> _Connection:
        """A new connection, or the one that came about meanwhile."""
        with trio.move_on_after(DIAL_SECONDS):
            await trio.sleep(2 * self.transit_seconds(dialler.peer_id, peer))
            while self.silent_between(dialler.peer_id, peer):
                await self._silence_event.wait()
        live = dialler.live_connection(peer)
        if live is not None:
            return live
        if self.silent_between(dialler.peer_id, peer):
            raise DeadlineExceeded(f"{peer} did not answer within {DIAL_SECONDS} s")
        listener = self._hosts.get(peer)
        if dialler.dead:
            raise Unreachable(f"this node ({dialler.peer_id}) is dead")
        if listener is None or listener.dead or not set(known) & set(listener.addresses()):
            raise Unreachable(f"{peer} does not listen at {', '.join(known)}")
        connection = _Connection(self, dialler, listener)
        dialler.join(connection)
        listener.join(connection)
        names = f"{self.name_of(dialler.peer_id)}>{self.name_of(peer)}"
        self.record(f"connection {names} made")
        return connection

    def _silence_changed(self) -> None:
        self._silence_event.set()
        self._silence_event = trio.Event()
        for host in self._hosts.values():
            for connection in host.live_connections():
                if connection.hosts[0] is not host:
                    continue  # each connection once
                silent = self.silent_between(*(end.peer_id for end in connection.hosts))
                if silent != connection.silent:
                    connection.silent = silent
                    connection.silences += 1
                    connection.wake()
                    if silent:
                        self._nursery.start_soon(self._keep_alive, connection)

    async def _keep_alive(self, connection: _Connection) -> None:
        """Give the connection up where it stays silent."""
        silence = connection.silences
        with trio.move_on_after(self.options.silence_seconds):
            while connection.silences == silence and not connection.lost:
                await connection.changed.wait()
        if connection.silences == silence:
            connection.lose("silent for too long")


@asynccontextmanager
async def memory_network(
    seed: int = 0, options: NetworkOptions | None = None
) -> AsyncIterator[MemoryNetwork]:
    """A network whose handler tasks end with the block."""
    async with trio.open_nursery() as nursery:
        yield MemoryNetwork(nursery, seed, options or NetworkOptions())
        nursery.cancel_scope.cancel()
