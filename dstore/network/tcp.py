"""TCP: listening, dialling, and one connection as the Noise handshake and the negotiation read and
write it.

Who is dialled, taken in and let go is decided in `swarm.py`.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

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

# What `accept` tells of a connection that ended before it was accepted (Linux's accept(2), and
# what trio passes over).
_ENDED_EARLY: Final = frozenset(
    getattr(errno, name)
    for name in (
        *("ECONNABORTED", "ECONNRESET", "EPERM", "EPROTO", "ETIMEDOUT", "ENOPROTOOPT", "ENOSR"),
        *("ENETDOWN", "EHOSTDOWN", "ENONET", "EHOSTUNREACH", "ENETUNREACH", "EOPNOTSUPP"),
        *("ESOCKTNOSUPPORT", "EPROTONOSUPPORT"),
    )
    if hasattr(errno, name)
)

_SHORT_BYTES: Final = 16 * KIB


class DirectSocket(trio.abc.AsyncResource):
    """A connected socket without trio's stream, which lets all other tasks have their turns after
    every call, of which most here are short and done at once."""

    def __init__(self, connected: socket.socket) -> None:
        """`connected` does not block."""
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
        _close(self.socket)


class DirectListener(trio.abc.Listener[DirectSocket]):
    """A listening socket that accepts without trio's sockets and streams in between."""

    def __init__(self, listening: socket.socket) -> None:
        """`listening` does not block."""
        self.socket = listening

    async def accept(self) -> DirectSocket:
        """The next connection.  Raises ClosedResourceError, and OSError where this side has no
        room for one."""
        while True:
            if self.socket.fileno() < 0:
                raise trio.ClosedResourceError("the listener is closed")
            await trio.lowlevel.wait_readable(self.socket.fileno())
            try:
                accepted, _ = self.socket.accept()
            except BlockingIOError:
                continue  # it is gone again
            except OSError as error:
                if self.socket.fileno() >= 0 and error.errno not in _ENDED_EARLY:
                    raise
                continue
            return DirectSocket(_prepared(accepted))

    async def aclose(self) -> None:
        """Close it; who waits for a connection hears ClosedResourceError."""
        _close(self.socket)


def _close(one: socket.socket) -> None:
    if one.fileno() >= 0:
        trio.lowlevel.notify_closing(one.fileno())
        one.close()


def _prepared(stream: socket.socket) -> socket.socket:
    stream.setblocking(False)
    for option, value in _STREAM_OPTIONS:
        with suppress(OSError):  # a system that does not know it, or a peer that has left
            stream.setsockopt(socket.IPPROTO_TCP, option, value)
    return stream


def _out_of(holder: trio.SocketStream | trio.SocketListener) -> socket.socket:
    """The socket, which the holder has no more."""
    taken = socket.socket(fileno=holder.socket.detach())
    taken.setblocking(False)
    return taken


class TcpLost(ConnectionLost, ConnectionClosedError):  # type: ignore[misc]  # libp2p is untyped
    """The connection broke; for libp2p's callers and for ours."""


class TcpConnection(IRawConnection):  # type: ignore[misc]  # libp2p is untyped
    """Reads ahead in large pieces and gives them out in pieces of any size; until `trust` is
    called, HANDSHAKE_BYTES_MAX in all.  What is written while it gathers goes out together,
    when a read has to wait for the peer."""

    def __init__(
        self, stream: DirectSocket, *, is_initiator: bool, shaper: Shaper | None = None
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

    async def read_some(self, max_bytes: int | None = None) -> bytes:
        """At least one byte; b"" at the end.  Raises ConnectionLost; ProtocolViolation on a
        handshake that goes on and on."""
        size = RAW_READ_BYTES if max_bytes is None else max_bytes
        if self._allowed is not None:
            if self._allowed == 0:
                raise ProtocolViolation(f"{self.remote} sends a handshake without end")
            size = min(size, self._allowed)
        data = self._ahead or await self._receive()
        if len(data) > size:
            data, self._ahead = data[:size], data[size:]
        else:
            self._ahead = b""
        if self._allowed is not None:
            self._allowed -= len(data)
        return data

    read = read_some
    """libp2p's name for it."""

    async def _receive(self) -> bytes:
        if self._gathering:
            await self.flush()
        await self.line.before_receiving()
        try:
            data = await self._stream.receive_some(self.line.turn_down())
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise TcpLost(f"connection to {self.remote}: {error}") from error
        self.heard_at = trio.current_time()
        self.line.received(len(data))
        return data

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


def take_over(connected: DirectSocket, *, is_initiator: bool, shaper: Shaper) -> TcpConnection:
    """The connection over a socket, which is closed where that fails.  Raises OSError where the
    peer has left already."""
    try:
        return TcpConnection(connected, is_initiator=is_initiator, shaper=shaper)
    except BaseException:
        _close(connected.socket)
        raise


async def dial_tcp(endpoint: Endpoint) -> DirectSocket:
    """A TCP connection.  A name is looked up, its addresses tried side by side; a number is
    dialled without such preparations.  Raises OSError."""
    ip = endpoint.ip
    if ip is None:
        return DirectSocket(_out_of(await trio.open_tcp_stream(endpoint.host, endpoint.port)))
    family = socket.AF_INET if ip.version == 4 else socket.AF_INET6
    dialled = socket.socket(family, socket.SOCK_STREAM)
    try:
        refused = _prepared(dialled).connect_ex((endpoint.host, endpoint.port))
        if refused == errno.EINPROGRESS:
            await trio.lowlevel.wait_writable(dialled.fileno())
            refused = dialled.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if refused:
            raise OSError(refused, os.strerror(refused))
    except BaseException:
        dialled.close()
        raise
    return DirectSocket(dialled)


async def listen_tcp(address: str) -> Sequence[DirectListener]:
    """Sockets that listen on `address`, a multiaddr in text.  Raises ConfigError (not an
    address), NodeError (in use, not ours)."""
    try:
        endpoint = parse_endpoint(address)
    except ValueError as error:
        raise ConfigError([f"network.listen: {error}"]) from error
    try:
        listeners = await trio.open_tcp_listeners(endpoint.port, host=endpoint.host)
    except OSError as error:
        raise NodeError(
            f"cannot listen on {address}: {error}; is another node running there?"
        ) from error
    return [DirectListener(_out_of(listener)) for listener in listeners]
