"""The connections of a node: listening, dialling, which of two to keep, how many at most.

One connection per peer is used; a second one, from a simultaneous dial or a peer that came
back, drains.  What runs on a connection is `host.py`'s part.  libp2p's own swarm is not
used: it keeps a slot and a task for every connection it ever accepted, waits 250 ms after a
successful dial, hangs on silent endpoints and leaves its port open when cancelled.
"""

from __future__ import annotations

import itertools
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

import trio

from dstore.core.endpoint import Endpoint, endpoint_of_socket, parse_endpoint
from dstore.core.peerid import PeerId
from dstore.errors import (
    ConnectionLost,
    DeadlineExceeded,
    DstoreError,
    ProtocolViolation,
    Unreachable,
)
from dstore.limits import (
    ADDRESSES_PER_PEER_MAX,
    CLOSE_SECONDS,
    CONNECTIONS_PER_IP_MAX,
    DIAL_STAGGER_SECONDS,
    DIALS_MAX,
    HANDSHAKES_PENDING_MAX,
    IDLE_STREAM_SECONDS,
    INBOUND_IDLE_SECONDS,
    KEEPALIVE_LOOK_SECONDS,
    NEGOTIATE_SECONDS,
)
from dstore.network.addresses import dialable
from dstore.network.connection import Connection, upgrade
from dstore.network.noise import NoiseTransport
from dstore.network.peers import AddressBook
from dstore.network.shaping import Shaper
from dstore.network.streams import PeerAddresses
from dstore.network.tcp import (
    DirectListener,
    DirectSocket,
    TcpConnection,
    dial_tcp,
    listen_tcp,
    take_over,
)

log = logging.getLogger(__name__)

Contain = Callable[[str, object, Callable[[], Awaitable[None]]], Awaitable[bool]]


@dataclass(frozen=True)
class SwarmLimits:
    """How many connections, and how long each phase of making one may take."""

    connections_max: int
    dial_seconds: float
    handshake_seconds: float

    @property
    def inbound_max(self) -> int:
        """A quarter is kept for connections that this node wants."""
        return max(1, self.connections_max * 3 // 4)


@dataclass(eq=False)
class _Dial:
    """A dial under way, for all who wait for it."""

    addresses: list[str]
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    done: trio.Event = field(default_factory=trio.Event)
    errors: list[DstoreError] = field(default_factory=list)
    made: Connection | None = None
    connection: Connection | None = None  # to use: the one made, or one that the peer dialled


class Swarm:
    """All connections of one node."""

    def __init__(
        self,
        own: PeerId,
        noise: NoiseTransport,
        limits: SwarmLimits,
        nursery: trio.Nursery,
        serve: Callable[[Connection, trio.Nursery], None],
        contain: Contain,
        shaper: Shaper,
    ) -> None:
        """`serve` is called with each connection and the nursery for what runs beside it;
        `contain` runs what must not end the node."""
        self.own = own
        self.book = AddressBook(keep=self.is_connected)
        self.counters: Counter[str] = Counter()
        self.listening: list[Endpoint] = []
        self._noise = noise
        self._shaper = shaper
        self._limits = limits
        self._nursery = nursery
        self._serve = serve
        self._contain = contain
        self._live: dict[PeerId, Connection] = {}
        self._spare: dict[PeerId, Connection] = {}
        self._dials: dict[PeerId, _Dial] = {}
        self._dialling = trio.CapacityLimiter(DIALS_MAX)
        self._inbound = 0
        self._per_source: Counter[str] = Counter()
        self._handshakes: dict[int, trio.CancelScope] = {}
        self._numbers = itertools.count()
        self._accepting = trio.CancelScope()
        self._closing = False

    # --- What there is --------------------------------------------------------------

    def connected(self) -> list[PeerId]:
        return [peer for peer, connection in self._live.items() if not connection.closed]

    def connection(self, peer: PeerId) -> Connection | None:
        """The connection in use with the peer, if any."""
        connection = self._live.get(peer)
        return None if connection is None or connection.closed else connection

    def is_connected(self, peer: PeerId) -> bool:
        return peer in self._live

    # --- Listening ------------------------------------------------------------------

    async def start(self, addresses: Sequence[str]) -> None:
        """Look after connections, and accept them on every one of `addresses`; all or none.
        Raises ConfigError (not an address), NodeError (in use, not ours)."""
        listeners: list[DirectListener] = []
        try:
            for address in addresses:
                listeners += await listen_tcp(address)
        except BaseException:
            for listener in listeners:
                listener.socket.close()
            raise
        self.listening = [
            endpoint_of_socket(*listener.socket.getsockname()[:2]) for listener in listeners
        ]
        if listeners:
            self._nursery.start_soon(self._accept_all, listeners)
        self._nursery.start_soon(self._look_after_all)

    async def _accept_all(self, listeners: list[DirectListener]) -> None:
        with self._accepting:
            # Closes the listeners however it ends.
            await trio.serve_listeners(self._accepted, listeners, handler_nursery=self._nursery)

    async def _accepted(self, accepted: DirectSocket) -> None:
        self.counters["connections_accepted"] += 1
        try:
            raw = take_over(accepted, is_initiator=False, shaper=self._shaper)
        except (OSError, ValueError):
            return
        source = _source(raw.remote)
        if not self._has_room(raw.remote) and not self._make_room(raw.remote):
            self.counters["connections_refused"] += 1
            log.info("connection refused: too many", extra={"remote": str(raw.remote)})
            await raw.close()
            return
        self._inbound += 1
        self._per_source[source] += 1
        try:
            await self._contain("connection from", raw.remote, lambda: self._inbound_one(raw))
        finally:
            self._inbound -= 1
            self._per_source[source] -= 1
            if not self._per_source[source]:
                del self._per_source[source]

    def _has_room(self, remote: Endpoint) -> bool:
        return self._welcome(remote) and self._inbound < self._limits.inbound_max

    def _welcome(self, remote: Endpoint) -> bool:
        """Whether it is only the number of all that could speak against it."""
        ip = remote.ip
        local = ip is not None and ip.is_loopback
        few = local or self._per_source[_source(remote)] < CONNECTIONS_PER_IP_MAX
        return few and not self._closing

    def _make_room(self, remote: Endpoint) -> bool:
        """Let go of the inbound connection on which nothing was done for longest, if for long
        enough.  Its peer dials again when it wants something."""
        idle = [one for one in self._live.values() if not one.outbound and not one.closed]
        oldest = min(idle, key=lambda one: one.idle_since, default=None)
        if oldest is None or not self._welcome(remote):
            return False
        if oldest.idle_since > trio.current_time() - INBOUND_IDLE_SECONDS:
            return False
        self.counters["connections_displaced"] += 1
        oldest.ended.set()  # not chosen again
        self._nursery.start_soon(self._contain, "closing", oldest.peer, oldest.close)
        return True

    async def _inbound_one(self, raw: TcpConnection) -> None:
        number = next(self._numbers)
        scope = trio.CancelScope()
        if len(self._handshakes) >= HANDSHAKES_PENDING_MAX:
            # Slow senders make room; an honest handshake is over before it is the oldest.
            self._handshakes.pop(next(iter(self._handshakes))).cancel()
            self.counters["handshakes_displaced"] += 1
        self._handshakes[number] = scope
        connection = None
        try:
            with scope:
                connection = await upgrade(
                    raw, self._noise, self._limits.handshake_seconds, expected=None
                )
        finally:
            self._handshakes.pop(number, None)
            if connection is None:
                self.counters["handshakes_failed"] += 1
        if connection is None:
            return
        if self._closing or connection.peer == self.own:
            self.counters["connections_refused"] += 1
            await connection.close()
            return
        self._admit(connection)
        await self._keep(connection)

    # --- Keeping --------------------------------------------------------------------

    async def _look_after_all(self) -> None:
        while True:
            await trio.sleep(KEEPALIVE_LOOK_SECONDS)
            for connection in (*self._live.values(), *self._spare.values()):
                connection.look_after()

    async def _keep(self, connection: Connection) -> None:
        """Run an admitted connection until it ends, and forget it then."""
        try:
            async with trio.open_nursery() as nursery:
                self._serve(connection, nursery)
                try:
                    await connection.run()
                finally:
                    # At once: `connected()` tells the truth, streams open elsewhere.
                    self._dismiss(connection)
                # Handlers learn of the loss from their streams; those that do not look
                # get this long.
                nursery.cancel_scope.deadline = trio.current_time() + CLOSE_SECONDS
        finally:
            self._dismiss(connection)
            with trio.CancelScope(shield=True), trio.move_on_after(CLOSE_SECONDS):
                await connection.close()

    def _admit(self, connection: Connection) -> None:
        peer = connection.peer
        self.counters["connections_opened"] += 1
        old = self.connection(peer)
        if old is None:
            self._live[peer] = connection
        else:
            kept = self._preferred(old, connection)
            self._live[peer] = kept
            spare = connection if kept is old else old
            surplus = self._spare.pop(peer, None)
            self._spare[peer] = spare
            self._nursery.start_soon(self._contain, "draining", peer, lambda: self._drain(spare))
            if surplus is not None:
                self._nursery.start_soon(self._contain, "closing", peer, surplus.close)
        dial = self._dials.get(peer)
        if dial is not None:
            dial.connection = self._live[peer]
            dial.done.set()
            if not connection.outbound and peer < self.own:
                # Both dialled, and both ends would keep the peer's: ours is not made at all.
                dial.scope.cancel()
        if log.isEnabledFor(logging.DEBUG):
            told = {"peer": str(peer), "remote": str(connection.remote)}
            log.debug("connected", extra={**told, "second": old is not None})

    def _preferred(self, old: Connection, new: Connection) -> Connection:
        """Which of two connections to one peer to use.  Both ends decide alike where both
        dialled at the same time; otherwise the newer one, as the peer has its reasons."""
        together = self._limits.dial_seconds + self._limits.handshake_seconds
        if old.outbound != new.outbound and new.opened_at - old.opened_at < together:
            by_own = old if old.outbound else new
            by_peer = new if old.outbound else old
            return by_own if self.own < old.peer else by_peer
        return new

    async def _drain(self, connection: Connection) -> None:
        """Close a connection not preferred, once its streams are done."""
        # The other end may be opening a stream on it before it knows of the other one.
        await trio.sleep(NEGOTIATE_SECONDS)
        with trio.move_on_after(IDLE_STREAM_SECONDS):
            await connection.wait_idle()
        if self._spare.get(connection.peer) is connection:
            del self._spare[connection.peer]
            await connection.close()

    def _dismiss(self, connection: Connection) -> None:
        peer = connection.peer
        if self._spare.get(peer) is connection:
            del self._spare[peer]
        if self._live.get(peer) is connection:
            del self._live[peer]
            spare = self._spare.pop(peer, None)
            if spare is not None and not spare.closed:
                self._live[peer] = spare

    async def disconnect(self, peer: PeerId) -> None:
        for table in (self._live, self._spare):
            connection = table.pop(peer, None)
            if connection is not None:
                await connection.close()

    async def close(self) -> None:
        """Stop listening, then say good-bye on every connection."""
        self._closing = True
        self._accepting.cancel()
        for scope in self._handshakes.values():
            scope.cancel()
        async with trio.open_nursery() as nursery:
            for connection in (*self._live.values(), *self._spare.values()):
                nursery.start_soon(connection.close)

    # --- Dialling -------------------------------------------------------------------

    async def dial(self, target: PeerAddresses) -> Connection:
        """The connection to the peer, made where there is none.
        Raises Unreachable or DeadlineExceeded."""
        peer = target.peer
        if peer == self.own:
            raise Unreachable("this node does not connect to itself")
        tried: set[str] = set()
        while True:
            connection = self.connection(peer)
            if connection is not None:
                return connection
            dial = self._dials.get(peer)
            if dial is None:
                dial = self._start_dial(target, tried)
            await dial.done.wait()
            connection = self.connection(peer) or dial.connection
            if connection is not None and not connection.closed:
                return connection
            if dial.connection is not None:
                raise Unreachable(f"{peer} was connected and left at once")
            tried.update(dial.addresses)
            # A dial started by somebody else may not have known our addresses.
            if not set(dialable(target.addresses, peer)) - tried:
                raise _failure(peer, dial.errors)

    def _start_dial(self, target: PeerAddresses, tried: set[str]) -> _Dial:
        known = (*target.addresses, *self.book.known(target.peer))
        addresses = [a for a in dialable(known, target.peer) if a not in tried]
        if not addresses:
            raise Unreachable(f"no address of {target.peer} is known")
        if self._closing:
            raise Unreachable("the node is shutting down")
        if len(self._live) >= self._limits.connections_max:
            raise Unreachable(f"{len(self._live)} connections are open; no more are made")
        dial = _Dial(addresses[:ADDRESSES_PER_PEER_MAX])
        self._dials[target.peer] = dial
        self._nursery.start_soon(self._dial, target.peer, dial)
        return dial

    async def _dial(self, peer: PeerId, dial: _Dial) -> None:
        """Dial, and run the connection that this makes."""
        self.counters["dials"] += 1
        try:
            with dial.scope:
                await self._contain("dial of", peer, lambda: self._dial_all(peer, dial))
        finally:
            del self._dials[peer]
            dial.done.set()
            # Also when cancelled: it is closed in order then.
            if (made := dial.made) is not None:
                await self._contain("connection to", made.remote, lambda: self._keep(made))

    async def _dial_all(self, peer: PeerId, dial: _Dial) -> None:
        """Try the addresses, each a little after the one before or when that failed."""
        if not await self._may_dial(dial):
            dial.errors.append(DeadlineExceeded(f"{DIALS_MAX} dials are under way already"))
            return
        try:
            if self.connection(peer) is not None:
                return  # it dialled this node while this one waited for its turn
            if len(dial.addresses) == 1:
                await self._attempt(peer, dial.addresses[0], dial)
                return
            async with trio.open_nursery() as attempts:

                async def attempt(address: str, failed: trio.Event) -> None:
                    if await self._attempt(peer, address, dial):
                        attempts.cancel_scope.cancel()
                    failed.set()

                for address in dial.addresses:
                    failed = trio.Event()
                    attempts.start_soon(attempt, address, failed)
                    with trio.move_on_after(DIAL_STAGGER_SECONDS):
                        await failed.wait()
        finally:
            self._dialling.release_on_behalf_of(dial)

    async def _may_dial(self, dial: _Dial) -> bool:
        """Wait until so few are dialled that one more may be; False where that takes too long."""
        try:
            self._dialling.acquire_on_behalf_of_nowait(dial)
        except trio.WouldBlock:
            with trio.move_on_after(self._limits.dial_seconds) as waiting:
                await self._dialling.acquire_on_behalf_of(dial)
            return not waiting.cancelled_caught
        return True

    async def _attempt(self, peer: PeerId, address: str, dial: _Dial) -> bool:
        """Whether this made the connection."""
        try:
            connection = await self._connect(peer, address)
        except (Unreachable, DeadlineExceeded, ConnectionLost, ProtocolViolation) as error:
            dial.errors.append(error)
            self.book.failed(peer, address)
            self.counters["dial_attempts_failed"] += 1
            return False
        # No checkpoint from here on: no other attempt can win as well.
        self.book.reached(peer, address)
        dial.made = connection
        self._admit(connection)
        return True

    async def _connect(self, peer: PeerId, address: str) -> Connection:
        try:
            with trio.fail_after(self._limits.dial_seconds):
                dialled = await dial_tcp(parse_endpoint(address))
                raw = take_over(dialled, is_initiator=True, shaper=self._shaper)
        except trio.TooSlowError as error:
            raise DeadlineExceeded(f"{address} did not answer") from error
        except OSError as error:
            raise Unreachable(f"{address}: {error}") from error
        return await upgrade(raw, self._noise, self._limits.handshake_seconds, expected=peer)


def _source(remote: Endpoint) -> str:
    """Whom connections are counted against: an IPv4 address, or an IPv6 network of the size
    that one customer gets."""
    ip = remote.ip
    if ip is None or ip.version == 4:
        return remote.host
    return ":".join(ip.exploded.split(":")[:4])


def _failure(peer: PeerId, errors: Sequence[DstoreError]) -> DstoreError:
    """One error for a dial whose every address failed."""
    reasons = "; ".join(str(error) for error in errors) or "no address could be tried"
    message = f"{peer} cannot be reached: {reasons}"
    if errors and all(isinstance(error, DeadlineExceeded) for error in errors):
        return DeadlineExceeded(message)
    return Unreachable(message)
