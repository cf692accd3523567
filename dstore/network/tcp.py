"""TCP: listening, dialling, and one connection as libp2p's Noise handshake and our negotiation
read and write it.

Who is dialled, taken in and let go is decided in `swarm.py`.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, Protocol

import trio
from libp2p.abc import ConnectionType, IRawConnection
from libp2p.io.exceptions import ConnectionClosedError

from dstore.core.endpoint import Endpoint, endpoint_of_socket, parse_endpoint
from dstore.errors import ConfigError, ConnectionLost, NodeError, ProtocolViolation
from dstore.limits import (
    HANDSHAKE_BYTES_MAX,
    KIB,
    NEAR_MICROSECONDS,
    NEAR_SEND_BUFFER_BYTES,
    RAW_READ_BYTES,
)
from dstore.network.shaping import Line, Shaper

if TYPE_CHECKING:
    from multiaddr import Multiaddr

# Linux's `struct tcp_info`: the smoothed round-trip time, in microseconds.
_TCP_INFO: Final[int | None] = getattr(socket, "TCP_INFO", None)
_RTT: Final = struct.Struct("=I")
_RTT_AT: Final = 68
_RTT_END: Final = _RTT_AT + _RTT.size

# As trio sets up the sockets of its streams.
_STREAM_OPTIONS: Final = [(socket.TCP_NODELAY, 1)]
if hasattr(socket, "TCP_NOTSENT_LOWAT"):
    _STREAM_OPTIONS.append((socket.TCP_NOTSENT_LOWAT, 16 * KIB))

_SHORT_BYTES: Final = 16 * KIB


class ByteSocket(Protocol):
    """A connected socket: trio's own stream of one, or `DirectSocket`."""

    @property
    def socket(self) -> Any: ...

    async def send_all(self, data: memoryview) -> None: ...

    async def receive_some(self, max_bytes: int) -> bytes | bytearray: ...

    async def aclose(self) -> None: ...


class DirectSocket:
    """A connected, non-blocking socket without trio's stream, which lets all other tasks have
    their turns after every call, of which most here are short and done at once."""

    def __init__(self, connected: socket.socket) -> None:
        self.socket = connected

    async def send_all(self, data: memoryview) -> None:
        """All of `data`; a long one is followed by a turn of the other tasks.  Raises
        BrokenResourceError, ClosedResourceError."""
        left = data
        while left:
            try:
                left = left[self.socket.send(left) :]
            except BlockingIOError:
                await trio.lowlevel.wait_writable(self.socket.fileno())
            except OSError as error:
                raise trio.BrokenResourceError(str(error)) from error
        if len(data) > _SHORT_BYTES:
            await trio.lowlevel.checkpoint()

    async def receive_some(self, max_bytes: int) -> bytes:
        """At least one byte; b"" at the end.  Raises BrokenResourceError, ClosedResourceError."""
        await trio.lowlevel.checkpoint_if_cancelled()
        waited = False
        while True:
            try:
                data = self.socket.recv(max_bytes)
            except BlockingIOError:
                await trio.lowlevel.wait_readable(self.socket.fileno())
                waited = True
                continue
            except OSError as error:
                raise trio.BrokenResourceError(str(error)) from error
            if not waited:
                # Who sends without end takes no more than its turns.
                await trio.lowlevel.cancel_shielded_checkpoint()
            return data

    async def aclose(self) -> None:
        """Close it; whoever waits for it hears ClosedResourceError."""
        trio.lowlevel.notify_closing(self.socket.fileno())
        self.socket.close()


class TcpLost(ConnectionLost, ConnectionClosedError):  # type: ignore[misc]  # libp2p is untyped
    """The connection broke; for libp2p's callers and for ours."""


class TcpConnection(IRawConnection):  # type: ignore[misc]  # libp2p is untyped
    """Reads ahead in large pieces and gives them out in pieces of any size; until `trust` is
    called, HANDSHAKE_BYTES_MAX in all.  What is written while it gathers goes out together,
    when a read has to wait for the peer."""

    def __init__(
        self, stream: ByteSocket, *, is_initiator: bool, shaper: Shaper | None = None
    ) -> None:
        """Raises OSError where the peer has left already."""
        self.is_initiator = is_initiator
        self.remote: Endpoint = endpoint_of_socket(*stream.socket.getpeername()[:2])
        self.line = Line(shaper or Shaper(), near=not self.remote.is_public)
        self._stream = stream
        self._ahead = b""
        self._gathering = False
        self._unsent = b""
        self.heard_at = trio.current_time()  # when bytes last came
        self._allowed: int | None = HANDSHAKE_BYTES_MAX

    def trust(self) -> None:
        """The peer is authenticated: it may send as much as it likes."""
        self._allowed = None
        self._fit_send_buffer()

    def _fit_send_buffer(self) -> None:
        """Where an answer takes no time, a long queue in the kernel makes nothing faster: its
        bytes are out of the processor's caches by the time that the peer reads them."""
        if _TCP_INFO is None:
            return
        with suppress(OSError):  # the connection is gone, which the next read tells
            info = self._stream.socket.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, _RTT_END)
            if len(info) == _RTT_END and _RTT.unpack_from(info, _RTT_AT)[0] < NEAR_MICROSECONDS:
                near = NEAR_SEND_BUFFER_BYTES
                self._stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, near)

    def gather(self, on: bool = True) -> None:
        """Keep back what is written until a read has to wait, so that what is said in a row is
        one segment; what is left at the end goes with the next write, or `flush`.  Meanwhile
        one task both reads and writes."""
        self._gathering = on

    async def flush(self) -> None:
        """Send what was kept back.  Raises ConnectionLost."""
        if self._unsent:
            unsent, self._unsent = self._unsent, b""
            await self._send(unsent)

    async def read_some(self, max_bytes: int = RAW_READ_BYTES) -> bytes:
        """At least one byte; b"" at the end.  Raises ConnectionLost; ProtocolViolation on a
        handshake that goes on and on."""
        if self._allowed is not None:
            if self._allowed == 0:
                raise ProtocolViolation(f"{self.remote} sends a handshake without end")
            max_bytes = min(max_bytes, self._allowed)
        data = await self._read(max_bytes)
        if self._allowed is not None:
            self._allowed -= len(data)
        return data

    async def _read(self, max_bytes: int) -> bytes:
        if not self._ahead:
            if self._gathering:
                await self.flush()
            await self.line.before_receiving()
            try:
                data = await self._stream.receive_some(self.line.turn_down())
                self.heard_at = trio.current_time()
            except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
                raise TcpLost(f"connection to {self.remote}: {error}") from error
            self.line.received(len(data))
            if len(data) <= max_bytes:
                return bytes(data)
            self._ahead = bytes(data)
        data, self._ahead = self._ahead[:max_bytes], self._ahead[max_bytes:]
        return data

    async def read(self, n: int | None = None) -> bytes:
        """libp2p's name for `read_some`."""
        return await self.read_some(RAW_READ_BYTES if n is None else n)

    async def write(self, data: bytes) -> None:
        """All of `data`.  Raises ConnectionLost."""
        if self._gathering:
            self._unsent += data
            return
        if self._unsent:
            data, self._unsent = b"".join((self._unsent, data)), b""
        await self._send(data)

    async def _send(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            piece = view[: self.line.turn_up()]
            await self.line.before_sending(len(piece))
            try:
                await self._stream.send_all(piece)
            except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
                raise TcpLost(f"connection to {self.remote}: {error}") from error
            view = view[len(piece) :]

    async def close(self) -> None:
        await self._stream.aclose()

    def get_remote_address(self) -> tuple[str, int]:
        return self.remote.host, self.remote.port

    def get_transport_addresses(self) -> list[Multiaddr]:
        """Of use to libp2p's relays only."""
        return []

    def get_connection_type(self) -> Any:
        return ConnectionType.DIRECT


async def take_over(
    connected: socket.socket, *, is_initiator: bool, shaper: Shaper
) -> TcpConnection:
    """The connection over a socket, which is closed where that fails.  Raises OSError where the
    peer has left already."""
    direct = DirectSocket(connected)
    try:
        return TcpConnection(direct, is_initiator=is_initiator, shaper=shaper)
    except BaseException:
        await direct.aclose()
        raise


def out_of(stream: trio.SocketStream) -> socket.socket:
    """The socket of a stream, which has none any more."""
    taken = socket.socket(fileno=stream.socket.detach())
    taken.setblocking(False)
    return taken


async def dial_tcp(endpoint: Endpoint) -> socket.socket:
    """A TCP connection.  A name is looked up, its addresses tried side by side; a number is
    dialled without such preparations.  Raises OSError."""
    ip = endpoint.ip
    if ip is None:
        return out_of(await trio.open_tcp_stream(endpoint.host, endpoint.port))
    family = socket.AF_INET if ip.version == 4 else socket.AF_INET6
    dialled = socket.socket(family, socket.SOCK_STREAM)
    try:
        dialled.setblocking(False)
        for option, value in _STREAM_OPTIONS:
            dialled.setsockopt(socket.IPPROTO_TCP, option, value)
        refused = dialled.connect_ex((endpoint.host, endpoint.port))
        if refused == errno.EINPROGRESS:
            await trio.lowlevel.wait_writable(dialled)
            refused = dialled.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if refused:
            raise OSError(refused, os.strerror(refused))
    except BaseException:
        dialled.close()
        raise
    return dialled


async def listen_tcp(address: str) -> Sequence[trio.SocketListener]:
    """Sockets that listen on `address`, a multiaddr in text.  Raises ConfigError (not an
    address), NodeError (in use, not ours)."""
    try:
        endpoint = parse_endpoint(address)
    except ValueError as error:
        raise ConfigError([f"network.listen: {error}"]) from error
    try:
        return await trio.open_tcp_listeners(endpoint.port, host=endpoint.host)
    except OSError as error:
        raise NodeError(
            f"cannot listen on {address}: {error}; is another node running there?"
        ) from error
