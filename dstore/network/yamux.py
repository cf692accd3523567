"""A yamux session over a secured connection: a thin driver around `core/yamux.py`.

One task reads, one writes what is queued; no lock and no task per frame stand between them.
Whether the peer still lives is asked by whoever keeps the sessions (`look_after`), for all at
once: a timer for each would wake the process for each.  The rules of the protocol are in the
state machine, not here.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

import trio
from libp2p.abc import IMuxedConn, ISecureConn
from libp2p.connection_types import ConnectionType
from libp2p.exceptions import BaseLibp2pError
from libp2p.peer.id import ID
from libp2p.stream_muxer.exceptions import MuxedConnError, MuxedConnUnavailable
from multiaddr import Multiaddr

from dstore.core.yamux import YamuxConnection, YamuxLimits
from dstore.core.yamux_frames import (
    DataReceived,
    Event,
    GoAwayReceived,
    PingAnswered,
    StreamEnded,
    StreamOpened,
    StreamReset,
    WindowGrown,
)
from dstore.errors import ConnectionLost, DeadlineExceeded, DstoreError, ProtocolViolation
from dstore.limits import (
    CLOSE_SECONDS,
    KEEPALIVE_LOOK_SECONDS,
    KEEPALIVE_SECONDS,
    KEEPALIVE_TIMEOUT_SECONDS,
    NEGOTIATE_SECONDS,
    YAMUX_BATCH_BYTES,
    YAMUX_OUT_BYTES_HIGH,
)
from dstore.network.noise import NoiseSession
from dstore.network.yamux_stream import StreamLost, StreamShut, YamuxStream

__all__ = [
    "YAMUX_PROTOCOL",
    "SessionEnded",
    "StreamLost",
    "StreamShut",
    "StreamsExhausted",
    "YamuxSession",
    "YamuxStream",
]

YAMUX_PROTOCOL: Final = "/yamux/1.0.0"

# In which who waited for the connection opens the first streams.
_FIRST_TURNS: Final = 2

# What may end a connection; anything else is a fault of ours and must be seen.
_ENDINGS = (
    DstoreError,
    BaseLibp2pError,
    OSError,
    trio.BrokenResourceError,
    trio.ClosedResourceError,
)


class SessionEnded(ConnectionLost, MuxedConnUnavailable):  # type: ignore[misc] # same
    """The connection is closed or lost: no more streams."""


class StreamsExhausted(DeadlineExceeded, MuxedConnError):  # type: ignore[misc] # same
    """As many streams are open as may be, and none ended in time."""


class YamuxSession(IMuxedConn):  # type: ignore[misc] # libp2p is untyped
    """One connection.  `start` runs it until it ends, by either side or by loss; it never
    raises for what the peer or the network does.  `on_close`, where set, is awaited then.
    `on_stream`, where set, is given what the peer opens, in place of `accept_stream`."""

    def __init__(self, conn: ISecureConn, peer_id: ID, limits: YamuxLimits | None = None) -> None:
        self.peer_id = peer_id
        self.secured_conn = conn
        self.event_started = trio.Event()
        self.event_closed = trio.Event()
        self.on_close: Callable[[], Awaitable[Any]] | None = None
        self.on_stream: Callable[[YamuxStream], None] | None = None
        self.core = YamuxConnection(initiator=conn.is_initiator, limits=limits)
        self.ending: str | None = None  # why the connection ends
        self._initiator: bool = conn.is_initiator
        self._streams: dict[int, YamuxStream] = {}
        self._arrived: dict[int, YamuxStream] = {}  # opened by the peer, not accepted yet
        self._arrival = trio.Event()
        self._out = trio.Event()  # there is something to write
        self._joined = False  # and not only of the first who had something
        self._room = trio.lowlevel.ParkingLot()  # writers that wait, first come, first served
        self._slots = trio.Event()  # another stream may be opened
        self._drained = trio.Event()  # all is written that will be
        self._heard_at = trio.current_time()  # when messages last came
        self._sent_at = self._heard_at  # when messages last had all gone out
        self._looked_at = self._tidied_at = self._heard_at
        self._resumed_at = self._pinged_at = -math.inf
        self._ping_value = 0
        self._scope: trio.CancelScope | None = None
        self._finishing = False

    @property
    def is_initiator(self) -> bool:
        return self._initiator

    @property
    def is_established(self) -> bool:
        return self.event_started.is_set() and self.ending is None

    @property
    def is_closed(self) -> bool:
        return self.event_closed.is_set()

    def get_remote_address(self) -> tuple[str, int] | None:
        address: tuple[str, int] | None = self.secured_conn.get_remote_address()
        return address

    def get_transport_addresses(self) -> list[Multiaddr]:
        addresses: list[Multiaddr] = self.secured_conn.get_transport_addresses()
        return addresses

    def get_connection_type(self) -> ConnectionType:
        return self.secured_conn.get_connection_type()

    async def open_stream(self) -> YamuxStream:
        """A new stream, without waiting for the peer.  Where too many are open or not yet
        taken by the peer, waits up to NEGOTIATE_SECONDS for one to end.
        Raises SessionEnded (a ConnectionLost) or StreamsExhausted (a DeadlineExceeded)."""
        await trio.lowlevel.checkpoint_if_cancelled()
        with trio.move_on_after(NEGOTIATE_SECONDS):
            while self.ending is None and not self.core.may_open():
                if self._slots.is_set():
                    self._slots = trio.Event()
                await self._slots.wait()
        if self.ending is not None:
            raise SessionEnded(self.ending)
        if not self.core.may_open():
            raise StreamsExhausted(f"no room for another stream to {self.peer_id}")
        try:
            stream_id = self.core.open_stream()
        except ConnectionLost as error:
            raise SessionEnded(str(error)) from error
        stream = YamuxStream(self, stream_id, is_initiator=True)
        self._streams[stream_id] = stream
        self.operated()
        return stream

    async def accept_stream(self) -> YamuxStream:
        """The next stream that the peer opened.  Raises SessionEnded at the end."""
        await trio.lowlevel.checkpoint()
        while self.ending is None and not self._arrived:
            if self._arrival.is_set():
                self._arrival = trio.Event()
            await self._arrival.wait()
        if self.ending is not None:
            raise SessionEnded(self.ending)
        stream = self._accept_next()
        self.operated()
        return stream

    def _accept_next(self) -> YamuxStream:
        stream_id = next(iter(self._arrived))
        self.core.accept(stream_id)
        return self._arrived.pop(stream_id)

    async def start(self) -> None:
        """Run the connection until it has ended and is closed."""
        self.event_started.set()
        if self.ending is not None:
            return
        try:
            async with trio.open_nursery() as nursery:
                self._scope = nursery.cancel_scope
                nursery.start_soon(self._run, self._write_loop)
                await self._run(self._read_loop)
        finally:
            with trio.CancelScope(shield=True):
                await self._finish()

    async def close(self) -> None:
        """Send what is queued and a Go Away, within CLOSE_SECONDS, and close.
        Open streams are lost."""
        if self.event_closed.is_set():
            return
        self._end("the connection was closed by this side")
        self.core.go_away()
        self.operated()
        if self._scope is None:
            with trio.CancelScope(shield=True):
                await self._finish()
            return
        try:
            with trio.move_on_after(CLOSE_SECONDS):
                await self._drained.wait()
        finally:
            self._scope.cancel()
        await self.event_closed.wait()

    def look_after(self) -> None:
        """Ask whether the peer lives, where it is time; end the connection where it does not.  To
        be called every KEEPALIVE_LOOK_SECONDS while the session runs."""
        if self._scope is None or self.ending is not None:
            return
        conn = self.secured_conn
        # Bytes of any kind show life: on a slow line the answer queues behind them.
        heard_at = conn.heard_at if isinstance(conn, NoiseSession) else None
        heard_at = self._heard_at if heard_at is None else heard_at
        now = trio.current_time()
        if now > self._looked_at + KEEPALIVE_LOOK_SECONDS + KEEPALIVE_SECONDS:
            self._resumed_at = now  # this process was stopped: what came meanwhile is not read yet
        self._looked_at = now
        if now >= max(heard_at, self._resumed_at) + KEEPALIVE_TIMEOUT_SECONDS:
            self._give_up(f"no sign of life in {KEEPALIVE_TIMEOUT_SECONDS} s")
            return
        if now >= self._tidied_at + KEEPALIVE_SECONDS:
            self._tidied_at = now
            self.core.expire_lingering()
            if self.core.is_over:
                self._give_up("the peer closed the connection")
                return
        # Where bytes go both ways each side knows that the other lives, and one ping makes them:
        # who dialled asks, the other only a little later.
        patience = KEEPALIVE_SECONDS * (1 if self._initiator else 1.25)
        if now >= max(min(heard_at, self._sent_at), self._pinged_at) + patience:
            self._ping_value, self._pinged_at = (self._ping_value + 1) % 2**32, now
            self.core.ping(self._ping_value)
        self.operated()

    def _give_up(self, reason: str) -> None:
        assert self._scope is not None
        self._end(reason)
        self._scope.cancel()

    # --- Called by the streams ----------------------------------------------------------

    def operated(self) -> None:
        """The state machine was used: wake whom that concerns."""
        if self.core.pending_bytes:
            self._joined = self._joined or self._out.is_set()
            self._out.set()
        if not self._slots.is_set() and self.core.may_open():
            self._slots.set()

    async def wait_room(self) -> None:
        """Until the writer has taken what is queued, or the connection ends."""
        if self.ending is None:
            await self._room.park()

    @property
    def crowded(self) -> bool:
        """Whether writers wait for room."""
        return bool(self._room)

    def forget(self, stream_id: int) -> None:
        self._streams.pop(stream_id, None)
        self._arrived.pop(stream_id, None)

    # --- The two tasks ------------------------------------------------------------------

    async def _run(self, loop: Callable[[], Awaitable[None]]) -> None:
        """Whichever task ends first ends the connection."""
        assert self._scope is not None
        try:
            await loop()
        except _ENDINGS as error:
            self._end(str(error) or repr(error))
            if isinstance(error, ProtocolViolation):
                # Say so, if the peer still reads.
                with trio.move_on_after(CLOSE_SECONDS):
                    await self._drained.wait()
        self._scope.cancel()

    async def _read_loop(self) -> None:
        core = self.core
        while True:
            messages = await self._receive()
            self._heard_at = trio.current_time()
            for message in messages:
                for event in core.receive_data(message):
                    self._on_event(event)
            if core.is_over:
                raise ConnectionLost("the peer closed the connection")
            while self._arrived and self.on_stream is not None:
                self.on_stream(self._accept_next())
            self.operated()

    async def _receive(self) -> Sequence[bytes]:
        conn = self.secured_conn
        if isinstance(conn, NoiseSession):
            return await conn.read_messages()
        data: bytes = await conn.read()
        if not data:
            raise ConnectionLost("the peer closed the connection")
        return [data]

    async def _write_loop(self) -> None:
        conn = self.secured_conn
        fast = conn if isinstance(conn, NoiseSession) else None
        if fast is not None and self._initiator:
            # What the first streams say goes with the end of the handshake.
            for _ in range(_FIRST_TURNS):
                if not self.core.pending_bytes:
                    await trio.lowlevel.checkpoint()
            if not self.core.pending_bytes:
                await fast.flush()
        # Whether nobody else wrote the last time, and whether this message waited for nobody.
        alone = hurried = False
        while True:
            frames = self.core.data_to_send(YAMUX_BATCH_BYTES)
            if frames:
                # As many writers as fill the queue again, each with its turn.
                room_bytes = YAMUX_OUT_BYTES_HIGH - self.core.pending_bytes
                self._room.unpark(count=max(1, room_bytes // YAMUX_BATCH_BYTES))
                if fast is not None:
                    await fast.write_frames(frames)
                else:
                    await conn.write(b"".join(frames))
                self._sent_at = trio.current_time()
                if hurried:
                    alone, hurried = not self.core.pending_bytes, False
            elif self.ending is not None:
                self._drained.set()
                return
            else:
                if fast is not None:
                    fast.rest()
                self._room.unpark_all()
                self._out, self._joined = trio.Event(), False
                await self._out.wait()
                hurried = alone
                if not hurried:
                    # Perhaps the first of several: those whose turn it is add theirs to the
                    # message.  Where nobody did, nobody is waited for the next time.
                    await trio.lowlevel.checkpoint()
                    alone = not self._joined

    def _on_event(self, event: Event) -> None:
        if isinstance(event, StreamOpened):
            opened = YamuxStream(self, event.stream_id, is_initiator=False)
            self._streams[event.stream_id] = opened
            self._arrived[event.stream_id] = opened
            self._arrival.set()
        elif not isinstance(event, GoAwayReceived | PingAnswered):
            stream = self._streams.get(event.stream_id)
            if stream is None:
                return
            if isinstance(event, DataReceived):
                stream.received(event.data)
            elif isinstance(event, WindowGrown):
                stream.window_grew()
            elif isinstance(event, StreamEnded):
                stream.peer_ended()
            elif isinstance(event, StreamReset):
                self.forget(event.stream_id)
                stream.was_reset(event.reason)

    # --- The end ------------------------------------------------------------------------

    def _end(self, reason: str) -> None:
        """Every stream is lost from here on; only the first reason counts."""
        if self.ending is not None:
            return
        self.ending = reason
        for stream in self._streams.values():
            stream.was_lost(reason)
        self._streams.clear()
        self._arrived.clear()
        for event in (self._arrival, self._out, self._slots):
            event.set()
        self._room.unpark_all()

    async def _finish(self) -> None:
        if self._finishing:
            return
        self._finishing = True
        self._end("the connection was cancelled by this side")
        self._drained.set()
        with trio.move_on_after(CLOSE_SECONDS):
            await self.secured_conn.close()
        # Before `on_close`, which may come back with a `close` of its own.
        self.event_closed.set()
        if self.on_close is not None:
            with trio.move_on_after(CLOSE_SECONDS):
                await self.on_close()
