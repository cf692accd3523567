"""A yamux session over a secured connection: a thin driver around `core/yamux.py`.

One task reads, one writes what is queued, one keeps alive; no lock and no task per frame
stand between them.  The rules of the protocol are in the state machine, not here.
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

# In which the first streams are opened, and answered where the peer's are here already.
_FIRST_TURNS: Final = 4

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
    raises for what the peer or the network does.  `on_close`, where set, is awaited then."""

    def __init__(self, conn: ISecureConn, peer_id: ID, limits: YamuxLimits | None = None) -> None:
        self.peer_id = peer_id
        self.secured_conn = conn
        self.event_started = trio.Event()
        self.event_closed = trio.Event()
        self.on_close: Callable[[], Awaitable[Any]] | None = None
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
        stream_id = next(iter(self._arrived))
        stream = self._arrived.pop(stream_id)
        self.core.accept(stream_id)
        self.operated()
        return stream

    async def start(self) -> None:
        """Run the connection until it has ended and is closed."""
        self.event_started.set()
        if self.ending is not None:
            return
        try:
            async with trio.open_nursery() as nursery:
                self._scope = nursery.cancel_scope
                nursery.start_soon(self._run, self._read_loop)
                nursery.start_soon(self._run, self._write_loop)
                nursery.start_soon(self._run, self._keep_alive)
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

    # --- The three tasks ----------------------------------------------------------------

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
        # What the first streams say goes with the end of the handshake.
        for _ in range(_FIRST_TURNS):
            await trio.lowlevel.checkpoint()
        if fast is not None and not self.core.pending_bytes:
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

    async def _keep_alive(self) -> None:
        # Where bytes go both ways each side knows that the other lives, and one ping makes them:
        # who dialled asks, the other only a little later.
        patience = KEEPALIVE_SECONDS * (1 if self._initiator else 1.25)
        value, pinged_at = 0, -math.inf
        look_at = trio.current_time() + KEEPALIVE_SECONDS
        wake_at, resumed_at = look_at, -math.inf
        while True:
            # Bytes of any kind show life: on a slow line the answer queues behind them.
            conn = self.secured_conn
            heard_at = conn.heard_at if isinstance(conn, NoiseSession) else None
            heard_at = self._heard_at if heard_at is None else heard_at
            now = trio.current_time()
            if now > wake_at + KEEPALIVE_SECONDS:
                resumed_at = now  # this process was stopped: what came meanwhile is not read yet
            lost_at = max(heard_at, resumed_at) + KEEPALIVE_TIMEOUT_SECONDS
            if now >= lost_at:
                raise ConnectionLost(f"no sign of life in {KEEPALIVE_TIMEOUT_SECONDS} s")
            if now >= look_at:
                look_at = now + KEEPALIVE_SECONDS
                self.core.expire_lingering()
                if self.core.is_over:
                    raise ConnectionLost("the peer closed the connection")
            busy_at = max(min(heard_at, self._sent_at), pinged_at)
            if now >= busy_at + patience:
                value, pinged_at, busy_at = (value + 1) % 2**32, now, now
                self.core.ping(value)
            self.operated()
            wake_at = min(look_at, busy_at + patience, lost_at)
            await trio.sleep_until(wake_at)

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
