"""A node on the real network: `dstore.network.streams.Network` over libp2p.

Here libp2p's exceptions, tasks and quirks end: callers see the types of `errors.py` and
multiaddrs in text.  TCP, Noise and our own yamux, nothing else.  What a peer or a handler
does wrong ends its stream or its connection, never the node.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from types import TracebackType

import trio

from dstore.core.peerid import PeerId
from dstore.errors import (
    ConnectionLost,
    DeadlineExceeded,
    NetworkError,
    PeerError,
    ProtocolViolation,
)
from dstore.limits import (
    CLOSE_SECONDS,
    CONNECTIONS_MAX,
    DIAL_SECONDS,
    HANDSHAKE_SECONDS,
    NEGOTIATE_SECONDS,
    PEER_STREAMS_INBOUND_MAX,
    PINGS_PER_PEER_MAX,
    REQUEST_SECONDS,
)
from dstore.network.bootstrap import bootstrap_targets, stay_connected
from dstore.network.connection import Connection, HostStream
from dstore.network.identify import IDENTIFY, IDENTIFY_PUSH, Identified
from dstore.network.identity import key_pair_of, peer_id_of
from dstore.network.introductions import Introductions
from dstore.network.negotiate import accept, propose
from dstore.network.noise import NoiseTransport
from dstore.network.own_addresses import checked, written_out
from dstore.network.ping import PING, measure, serve_ping
from dstore.network.repair_stream import RepairStream
from dstore.network.shaping import Shaper
from dstore.network.streams import PeerAddresses, Stream, StreamHandler
from dstore.network.swarm import Swarm, SwarmLimits
from dstore.network.yamux import YAMUX_PROTOCOL
from dstore.runtime import Runtime

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class HostOptions:
    """`listen`: multiaddrs, port 0 for any free one.  `bootstrap`: multiaddrs that end in
    /p2p/<peer id>.  `announce`: told to peers instead of the addresses listened on."""

    listen: tuple[str, ...] = ("/ip4/127.0.0.1/tcp/0",)
    bootstrap: tuple[str, ...] = ()
    announce: tuple[str, ...] = ()
    agent: str = "dstore"
    connections_max: int = CONNECTIONS_MAX
    dial_seconds: float = DIAL_SECONDS
    handshake_seconds: float = HANDSHAKE_SECONDS
    limit_lan: bool = False  # whether bandwidth limits hold on the local network too
    peer_groups: Mapping[str, frozenset[PeerId]] = field(default_factory=dict)
    """Peers with bandwidth limits of their own, by a name."""
    label_groups: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """Labels of which peers may claim one to be in such a group, by its name too."""
    repair_protocols: frozenset[str] = frozenset()
    """Spoken for maintenance only: their streams come after all others (decision 0012)."""


@dataclass(frozen=True)
class ConnectionStatus:
    """A live connection, for people to look at."""

    peer: PeerId
    remote: str
    outbound: bool
    age_seconds: float
    agent: str | None


class Libp2pHost:
    """Made by `open_host`; implements `Network`."""

    def __init__(
        self, options: HostOptions, seed: bytes, runtime: Runtime, nursery: trio.Nursery
    ) -> None:
        self._options = options
        self.shaper = Shaper(options.peer_groups, options.label_groups, lan=options.limit_lan)
        self._runtime = runtime
        self._nursery = nursery
        self._peer_id = peer_id_of(seed)
        self._bootstrap = bootstrap_targets(options.bootstrap)
        self._announce = checked("network.announce", options.announce)
        self._served: Counter[PeerId] = Counter()
        self._pings: Counter[PeerId] = Counter()
        self._changed = trio.Event()
        self._on_identified: list[Callable[[PeerId], None]] = []
        self._handlers: dict[str, StreamHandler] = {
            PING: self._serve_ping,
        }
        self._introductions = Introductions(
            seed,
            agent=options.agent,
            sequence=int(runtime.clock.now()),
            protocols=self._handlers,
            addresses=self.addresses,
            heard_who=self._heard_who,
        )
        self._handlers[IDENTIFY] = self._introductions.serve
        self._handlers[IDENTIFY_PUSH] = self._introductions.take
        self._swarm = Swarm(
            self._peer_id,
            NoiseTransport(key_pair_of(seed), [YAMUX_PROTOCOL], self._introductions.in_handshake),
            SwarmLimits(options.connections_max, options.dial_seconds, options.handshake_seconds),
            nursery,
            self._serve,
            self._contain,
            self.shaper,
        )

    # --- Network --------------------------------------------------------------------

    @property
    def peer_id(self) -> PeerId:
        return self._peer_id

    def addresses(self) -> Sequence[str]:
        """Multiaddrs for others to reach this node by, without the /p2p part: the configured
        ones (`announce`), else those listened on."""
        return self._announce or self.listening()

    def listening(self) -> Sequence[str]:
        """Multiaddrs listened on, with true ports.  A wildcard is written out as loopback
        and the address of the default route."""
        return [str(e) for listening in self._swarm.listening for e in written_out(listening)]

    async def connect(self, target: PeerAddresses) -> None:
        """Have a connection to the peer.  Raises Unreachable or DeadlineExceeded."""
        self.remember(target)
        await self._swarm.dial(target)

    async def open_stream(self, peer: PeerId, protocols: Sequence[str]) -> Stream:
        """A stream speaking the first of `protocols` that the peer speaks.  Raises
        Unreachable, ConnectionLost, DeadlineExceeded; ProtocolViolation where it speaks none."""
        target = PeerAddresses(peer)
        connection = await self._swarm.dial(target)
        try:
            stream = await self._open_on(connection, protocols)
            return self._in_class(stream, protocols[0])
        except ConnectionLost:
            # A connection that was just ending, or gave way to one dialled from the other
            # side, is no reason to fail: nothing was asked of the peer yet.
            if self._swarm.connection(peer) is connection:
                raise
        stream = await self._open_on(await self._swarm.dial(target), protocols)
        return self._in_class(stream, protocols[0])

    def _in_class(self, stream: HostStream, wanted: str) -> Stream:
        """The stream as it is, or for repair where that is what `wanted` was wanted for,
        whatever the peer speaks in its place."""
        return RepairStream(stream) if wanted in self._options.repair_protocols else stream

    async def _open_on(self, connection: Connection, protocols: Sequence[str]) -> HostStream:
        stream: HostStream | None = None
        try:
            with trio.fail_after(NEGOTIATE_SECONDS):
                stream = await connection.open_stream()
                if connection.speaks(protocols[0]):
                    await stream.propose_ahead(protocols[0])
                else:
                    stream.protocol = await propose(stream, protocols)
                return stream
        except BaseException as error:
            if stream is not None:
                with trio.CancelScope(shield=True):
                    await stream.reset()
            if isinstance(error, trio.TooSlowError):
                raise DeadlineExceeded(f"{connection.peer} did not open a stream") from error
            raise

    def set_handler(self, protocol: str, handler: StreamHandler) -> None:
        """Serve `protocol`; peers connected already are told."""
        self._handlers[protocol] = handler
        self._changed.set()

    def connected(self) -> Sequence[PeerId]:
        return self._swarm.connected()

    def known_addresses(self, peer: PeerId) -> Sequence[str]:
        """Addresses by which the peer was reached or announced, best first."""
        return self._swarm.book.known(peer)

    def reached_at(self, peer: PeerId) -> str | None:
        connection = self._swarm.connection(peer)
        return None if connection is None else str(connection.remote)

    def remember(self, target: PeerAddresses) -> None:
        """Note addresses for later dialling; those that dstore cannot dial are dropped."""
        if target.peer != self._peer_id:
            self._swarm.book.remember(target.peer, target.addresses)

    def on_identified(self, call: Callable[[PeerId], None]) -> None:
        self._on_identified.append(call)

    def announced(self, peer: PeerId) -> Collection[str] | None:
        connection = self._swarm.connection(peer)
        if connection is None:
            return ()
        if connection.identity is None:
            return () if connection.identified.is_set() else None
        return connection.identity.protocols

    async def speaks(self, peer: PeerId, protocol: str) -> bool:
        """Whether the connected peer announced `protocol`; False where it told nothing
        within the request deadline."""
        connection = self._swarm.connection(peer)
        if connection is None:
            return False
        if connection.identity is None:
            with trio.move_on_after(REQUEST_SECONDS):
                await connection.identified.wait()
        return connection.speaks(protocol)

    async def disconnect(self, peer: PeerId) -> None:
        await self._swarm.disconnect(peer)

    # --- Beyond the contract ----------------------------------------------------------

    @property
    def counters(self) -> Mapping[str, int]:
        """Events since the start, by name, for the metrics."""
        return self._swarm.counters

    def identified(self, peer: PeerId) -> Identified | None:
        """What the connected peer said of itself, None as long as it said nothing."""
        connection = self._swarm.connection(peer)
        return None if connection is None else connection.identity

    def connections(self) -> list[ConnectionStatus]:
        """The connection in use with each connected peer."""
        found = map(self._swarm.connection, self._swarm.connected())
        return [
            ConnectionStatus(
                peer=one.peer,
                remote=str(one.remote),
                outbound=one.outbound,
                age_seconds=trio.current_time() - one.opened_at,
                agent=None if one.identity is None else one.identity.agent,
            )
            for one in found
            if one is not None
        ]

    async def ping(self, peer: PeerId) -> float:
        """Seconds of one round trip.  Raises what `open_stream` raises."""
        stream = await self.open_stream(peer, [PING])
        try:
            return await measure(stream, self._runtime.random)
        finally:
            with trio.CancelScope(shield=True):
                await stream.reset()

    # --- Life -------------------------------------------------------------------------

    async def start(self) -> None:
        """For `open_host`: listen, then look for the bootstrap peers."""
        await self._swarm.start(self._options.listen)
        self._nursery.start_soon(self._announce_changes)
        for target in self._bootstrap:
            self._nursery.start_soon(self.stay_connected, target)

    async def stay_connected(self, target: PeerAddresses) -> None:
        """Dial `target`, and again whenever it is lost, until cancelled: for bootstrap peers
        that are to be met only when everything is served."""
        self.remember(target)
        await stay_connected(self._swarm, target, self._runtime.random)

    async def stop(self) -> None:
        """For `open_host`: stop listening, then say good-bye."""
        await self._swarm.close()

    # --- Serving ----------------------------------------------------------------------

    async def _contain(
        self, what: str, whose: object, action: Callable[[], Awaitable[None]]
    ) -> bool:
        """Run what a peer or a handler may break; True where nothing broke.
        The boundary at which every error ends: libp2p's own node dies of these.  `whose` it is
        is written out only where something breaks."""
        try:
            await action()
        except BaseExceptionGroup as group:
            # While the host closes, errors come mixed with cancellation, which goes on.
            broken, rest = group.split(Exception)
            if broken is not None:
                self._report(f"{what} {whose}", broken)
            if rest is not None:
                raise rest from None
            return False
        except Exception as error:  # noqa: BLE001  # the boundary named in the docstring
            self._report(f"{what} {whose}", error)
            return False
        return True

    def _report(self, what: str, error: Exception) -> None:
        if _is_expected(error):
            self._swarm.counters["peer_errors"] += 1
            log.debug("%s ended: %s", what, error, extra={"reason": type(error).__name__})
        else:
            self._swarm.counters["handler_errors"] += 1
            log.error("%s failed", what, exc_info=error, extra={"reason": type(error).__name__})

    def _serve(self, connection: Connection, nursery: trio.Nursery) -> None:
        """Identify the peer, and serve the streams that it opens, by tasks of `nursery`."""
        if connection.identity is None:
            nursery.start_soon(self._identify, connection)
        else:
            self._heard_who(connection)
        if self._introductions.outdated(connection):
            nursery.start_soon(self._push, connection)

        def take(stream: HostStream) -> None:
            if self._served[stream.peer] >= PEER_STREAMS_INBOUND_MAX:
                self._swarm.counters["streams_refused"] += 1
                nursery.start_soon(stream.reset)
            else:
                self._served[stream.peer] += 1
                nursery.start_soon(self._serve_stream, stream)

        connection.on_stream(take)

    async def _serve_stream(self, stream: HostStream) -> None:
        self._swarm.counters["streams_accepted"] += 1
        try:
            await self._contain(
                "stream from", stream.peer, lambda: self._negotiate_and_serve(stream)
            )
        finally:
            _count_down(self._served, stream.peer)

    async def _negotiate_and_serve(self, stream: HostStream) -> None:
        try:
            try:
                with trio.fail_after(NEGOTIATE_SECONDS):
                    stream.protocol = await accept(stream, self._handlers.__contains__)
            except trio.TooSlowError as error:
                raise DeadlineExceeded("no protocol was proposed in time") from error
            await self._handlers[stream.protocol](self._in_class(stream, stream.protocol))
            with trio.move_on_after(CLOSE_SECONDS) as closing:
                await stream.close()
            if closing.cancelled_caught:
                await stream.reset()
        except BaseException:
            with trio.CancelScope(shield=True):
                await stream.reset()
            raise

    # --- Identify and ping --------------------------------------------------------------

    def _heard_who(self, connection: Connection) -> None:
        """The peer of a connection has said who it is, or will not."""
        if connection.identity is not None:
            self._swarm.book.announced(connection.peer, connection.identity.addresses)
        for call in self._on_identified:
            call(connection.peer)

    async def _identify(self, connection: Connection) -> None:
        """Ask the peer of a new connection who it is."""
        try:
            await self._contain(
                "identify of", connection.peer, lambda: self._introductions.ask(connection)
            )
        finally:
            if not connection.identified.is_set():
                connection.identified.set()
                self._heard_who(connection)

    async def _announce_changes(self) -> None:
        """Tell connected peers when a protocol was added after they asked."""
        while True:
            await self._changed.wait()
            self._changed = trio.Event()
            async with trio.open_nursery() as nursery:
                for peer in self._swarm.connected():
                    connection = self._swarm.connection(peer)
                    if connection is not None:
                        nursery.start_soon(self._push, connection)

    async def _push(self, connection: Connection) -> None:
        async def push() -> None:
            stream = await self._open_on(connection, [IDENTIFY_PUSH])
            try:
                with trio.move_on_after(REQUEST_SECONDS):
                    await self._introductions.serve(stream)
                    await stream.close()
            finally:
                with trio.CancelScope(shield=True):
                    await stream.reset()

        await self._contain("identify push to", connection.peer, push)

    async def _serve_ping(self, stream: Stream) -> None:
        if self._pings[stream.peer] >= PINGS_PER_PEER_MAX:
            raise ProtocolViolation(f"{stream.peer} pings on too many streams at once")
        self._pings[stream.peer] += 1
        try:
            await serve_ping(stream)
        finally:
            _count_down(self._pings, stream.peer)


class _OpenHost(AbstractAsyncContextManager[Libp2pHost]):
    """Holds the nursery of a host's tasks.  A class, so that errors of the caller's block
    leave as they are and not in a group of the nursery's."""

    def __init__(self, options: HostOptions, seed: bytes, runtime: Runtime) -> None:
        self._make = (options, seed, runtime)
        self._manager = trio.open_nursery()

    async def __aenter__(self) -> Libp2pHost:
        self._nursery = await self._manager.__aenter__()
        try:
            self._host = Libp2pHost(*self._make, self._nursery)
            await self._host.start()
        except BaseException:
            await self._leave()
            raise
        return self._host

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # Shielded: a cancelled node must not leave its port open behind it.
        with trio.CancelScope(shield=True), trio.move_on_after(CLOSE_SECONDS):
            await self._host.stop()
        await self._leave()

    async def _leave(self) -> None:
        self._nursery.cancel_scope.cancel()
        await self._manager.__aexit__(None, None, None)


def open_host(
    options: HostOptions, seed: bytes, runtime: Runtime
) -> AbstractAsyncContextManager[Libp2pHost]:
    """`async with open_host(options, seed, runtime) as host:` listens until the block ends.

    `seed` is the 32-byte Ed25519 identity.  Raises ConfigError (addresses), NodeError (an
    address in use); after that no peer's doing ends the block.
    """
    return _OpenHost(options, seed, runtime)


def _is_expected(error: BaseException) -> bool:
    """Whether the error only says that a peer misbehaved or left."""
    if isinstance(error, BaseExceptionGroup):
        return all(_is_expected(inner) for inner in error.exceptions)
    return isinstance(error, (NetworkError, PeerError))


def _count_down(counter: Counter[PeerId], peer: PeerId) -> None:
    counter[peer] -= 1
    if not counter[peer]:
        del counter[peer]
