"""One secured, multiplexed connection to one peer, and the streams on it.

Making it (`upgrade`) ends in an authenticated peer id or an error of `errors.py`; keeping
several of them in order is `swarm.py`'s part.  Specification: libp2p connections.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, TypeVar

import trio
from google.protobuf.message import DecodeError
from libp2p.peer.id import ID
from libp2p.security.exceptions import HandshakeFailure
from libp2p.stream_muxer.exceptions import MuxedConnUnavailable, MuxedStreamError

from dstore.core.endpoint import Endpoint
from dstore.core.peerid import PeerId
from dstore.errors import ConnectionLost, DeadlineExceeded, InvalidCid, ProtocolViolation
from dstore.limits import STREAM_READ_BYTES_MAX
from dstore.network.identify import Identified, read
from dstore.network.negotiate import accept, expect, proposal, propose
from dstore.network.noise import NOISE_PROTOCOL, NoiseTransport
from dstore.network.shaping import Line
from dstore.network.tcp import TcpConnection
from dstore.network.yamux import YAMUX_PROTOCOL, YamuxSession, YamuxStream

T = TypeVar("T")


class HostStream:
    """A `Stream`: the muxer's, with the peer's name on it."""

    __slots__ = ("_connection", "_open", "_stream", "_unconfirmed", "protocol")

    def __init__(self, connection: Connection, stream: YamuxStream) -> None:
        self._connection = connection
        self._stream = stream
        self._open = True
        self.protocol = ""
        self._unconfirmed = b""  # what the peer has yet to write to agree on the protocol
        connection.stream_opened()

    @property
    def peer(self) -> PeerId:
        return self._connection.peer

    @property
    def connection(self) -> Connection:
        return self._connection

    # The muxer's coroutines are handed on as they are: no frame of ours per read or write.
    def read_some(self, max_bytes: int = STREAM_READ_BYTES_MAX) -> Coroutine[Any, Any, bytes]:
        if self._unconfirmed:
            return self._confirmed(self._stream.read_some, max_bytes)
        return self._stream.read_some(max_bytes)

    def read_pieces(self, max_bytes: int) -> Coroutine[Any, Any, list[bytes | memoryview]]:
        if self._unconfirmed:
            return self._confirmed(self._stream.read_pieces, max_bytes)
        return self._stream.read_pieces(max_bytes)

    def write(self, data: bytes | bytearray | memoryview) -> Coroutine[Any, Any, None]:
        return self._stream.write(data)

    def close_write(self) -> Coroutine[Any, Any, None]:
        return self._stream.close_write()

    def on_arrival(self, told: Callable[[int], None]) -> None:
        """Have `told` called with the size of what comes, when it comes."""
        self._stream.on_arrival = told

    async def close(self) -> None:
        await self._stream.close()
        self._ended()

    async def reset(self) -> None:
        # After a close it would take back what the peer has not read yet.
        if self._open:
            await self._stream.reset()
            self._ended()

    async def propose_ahead(self, protocol: str) -> None:
        """Speak a protocol that the peer has announced, its agreement read before its first
        bytes: a round trip less.  Reads raise ProtocolViolation where it does not agree."""
        self.protocol = protocol
        self._unconfirmed = proposal(protocol)
        await self._stream.write(self._unconfirmed)

    async def _confirmed(self, read: Callable[[int], Coroutine[Any, Any, T]], max_bytes: int) -> T:
        # What a cancelled read leaves half-way is only good for `reset`.
        unconfirmed, self._unconfirmed = self._unconfirmed, b""
        await expect(self._stream, unconfirmed)
        return await read(max_bytes)

    def _ended(self) -> None:
        if self._open:
            self._open = False
            self._connection.stream_closed()


class Connection:
    """An established connection.  `outbound` tells who dialled."""

    def __init__(
        self, peer: PeerId, raw: TcpConnection, session: YamuxSession, *, outbound: bool
    ) -> None:
        self.peer = peer
        self.remote: Endpoint = raw.remote
        self.line: Line = raw.line
        self.outbound = outbound
        self.opened_at = trio.current_time()
        self.identity: Identified | None = None
        self.identified = trio.Event()  # also when there is nothing to wait for any more
        self.ended = trio.Event()
        self._session = session
        self._streams = 0
        self._idle = trio.Event()
        self._idle.set()
        self._idle_since = self.opened_at

    @property
    def idle_since(self) -> float:
        """The instant at which the last stream ended, infinity while one is open."""
        return math.inf if self._streams else self._idle_since

    @property
    def muxer_named_early(self) -> bool:
        """Whether both sides named the muxer in the handshake, so that none was negotiated."""
        return self._session.secured_conn.muxer is not None

    @property
    def said(self) -> bytes:
        """The identify message that this side put into the handshake; b"" where there was none."""
        said: bytes = self._session.secured_conn.said
        return said

    def learn(self, identity: Identified) -> None:
        """The peer has said who it is."""
        self.identity = identity
        self.identified.set()

    @property
    def closed(self) -> bool:
        return self.ended.is_set() or self._session.ending is not None

    def speaks(self, protocol: str) -> bool:
        """Whether the peer has announced `protocol`."""
        return self.identity is not None and protocol in self.identity.protocols

    async def run(self) -> None:
        """Move bytes until the connection ends, by either side or by loss."""
        try:
            await self._session.start()
        finally:
            self.ended.set()

    async def open_stream(self) -> HostStream:
        """A new stream without a protocol yet.  Raises ConnectionLost."""
        try:
            stream = await self._session.open_stream()
        except (MuxedStreamError, MuxedConnUnavailable) as error:
            raise ConnectionLost(f"connection to {self.peer} is closed") from error
        return HostStream(self, stream)

    def on_stream(self, take: Callable[[HostStream], None]) -> None:
        """Have `take` called with every stream that the peer opens, before it is read."""
        self._session.on_stream = lambda stream: take(HostStream(self, stream))

    def look_after(self) -> None:
        """To be called every KEEPALIVE_LOOK_SECONDS: ends the connection of a peer that gives no
        sign of life."""
        self._session.look_after()

    def stream_opened(self) -> None:
        if not self._streams:
            self._idle = trio.Event()
        self._streams += 1

    def stream_closed(self) -> None:
        self._streams -= 1
        if not self._streams:
            self._idle.set()
            self._idle_since = trio.current_time()

    async def wait_idle(self) -> None:
        """Until no stream is open."""
        await self._idle.wait()

    async def close(self) -> None:
        """Say good-bye and end every stream."""
        self.ended.set()
        await self._session.close()


class _Secured:
    """The Noise session as negotiation reads it."""

    def __init__(self, session: Any) -> None:
        self._session = session

    async def read_some(self, max_bytes: int = STREAM_READ_BYTES_MAX) -> bytes:
        data: bytes = await self._session.read(max_bytes)
        return data

    async def write(self, data: bytes) -> None:
        await self._session.write(data)


async def upgrade(
    raw: TcpConnection, noise: NoiseTransport, seconds: float, expected: PeerId | None
) -> Connection:
    """Noise, then yamux, over `raw`, all within `seconds`.

    `expected` is the peer dialled, None on an accepted connection.  Closes `raw` on any
    failure.  Raises ProtocolViolation (wrong peer, nonsense), ConnectionLost,
    DeadlineExceeded.
    """
    raw.gather()
    try:
        with trio.fail_after(seconds):
            return await _upgrade(raw, noise, expected)
    except BaseException as error:
        # Also when cancelled: half a handshake leaves nothing behind.
        with trio.CancelScope(shield=True):
            await raw.close()
        if isinstance(error, trio.TooSlowError):
            raise DeadlineExceeded(f"handshake with {raw.remote} took too long") from error
        if isinstance(error, (HandshakeFailure, DecodeError)):
            raise ProtocolViolation(f"handshake with {raw.remote} failed: {error}") from error
        raise


async def _upgrade(
    raw: TcpConnection, noise: NoiseTransport, expected: PeerId | None
) -> Connection:
    if expected is not None:
        # Who does not speak Noise is no peer: its agreement is not waited for.
        await raw.write(proposal(NOISE_PROTOCOL))
        session = await noise.secure_outbound(
            raw, ID(expected.binary), lambda: expect(raw, proposal(NOISE_PROTOCOL))
        )
    else:
        await accept(raw, NOISE_PROTOCOL.__eq__)
        session = await noise.secure_inbound(raw)
    raw.trust()
    try:
        peer = PeerId(session.get_remote_peer().to_bytes())
    except InvalidCid as error:
        raise ProtocolViolation(f"{raw.remote} has no usable peer id") from error
    if expected is not None and peer != expected:
        raise ProtocolViolation(f"{raw.remote} is {peer}, not {expected}")
    raw.line.belongs_to(peer)
    secured = _Secured(session)
    if session.muxer is not None:
        pass  # agreed on in the handshake
    elif expected is not None:
        await propose(secured, [YAMUX_PROTOCOL])
    else:
        await accept(secured, YAMUX_PROTOCOL.__eq__)
    raw.gather(False)
    muxed = YamuxSession(session, session.get_remote_peer())
    connection = Connection(peer, raw, muxed, outbound=expected is not None)
    if session.told:
        # What is not understood may be somebody else's experiment: the peer is asked, then.
        with suppress(ProtocolViolation):
            connection.learn(read(session.told, peer, raw.remote))
    return connection
