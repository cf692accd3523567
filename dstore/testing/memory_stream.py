"""The two ends of one in-memory stream: windows, ordered delivery, half-close, reset.

Delivery needs no task of its own: bytes carry the time at which they arrive, and the reader
waits for it on trio's clock.  Who may talk to whom is the link's business
(`memory_network.py`); this module knows its link as three questions only.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Protocol

import trio

from dstore.core.peerid import PeerId
from dstore.errors import ConnectionLost
from dstore.limits import STREAM_READ_BYTES_MAX


class Link(Protocol):
    """What a stream asks of the connection it runs over."""

    @property
    def lost(self) -> bool:
        """Whether the connection has ended."""
        ...

    @property
    def silent(self) -> bool:
        """Whether nothing passes at present, though neither side knows it."""
        ...

    def transit_seconds(self) -> float:
        """How long what is sent now takes."""
        ...

    def passing(self, sender: PeerId, data: bytes) -> bytes:
        """What arrives when `sender` sends `data`."""
        ...

    def read_bytes(self, available: int) -> int:
        """How many of the `available` bytes one read returns: 1 to `available`."""
        ...

    def name_of(self, peer: PeerId) -> str:
        """The peer's name in the log."""
        ...

    def record(self, event: str) -> None:
        """Note an event of this connection in the log."""
        ...

    def forget(self, wire: Wire) -> None:
        """Both ends of the stream are finished."""
        ...


class _Pipe:
    """One direction: what was sent and not yet read, in order of arrival."""

    __slots__ = ("arrived_last", "chunks", "closed", "discarding", "reset_at", "unread_bytes")

    def __init__(self) -> None:
        self.chunks: deque[tuple[float, memoryview]] = deque()  # an empty chunk is the end
        self.unread_bytes = 0
        self.arrived_last = -math.inf
        self.closed = False  # the writer has said that no more comes
        self.discarding = False  # the reader has closed: what arrives is dropped
        self.reset_at: float | None = None  # when the writer's reset arrives

    def put(self, arrives: float, data: bytes) -> None:
        self.arrived_last = max(self.arrived_last, arrives)
        self.chunks.append((self.arrived_last, memoryview(data)))
        self.unread_bytes += len(data)

    def empty(self) -> None:
        self.chunks.clear()
        self.unread_bytes = 0

    def next_arrival(self) -> float:
        return self.chunks[0][0] if self.chunks else math.inf


class Wire:
    """What the two ends of a stream share."""

    def __init__(self, link: Link, window_bytes: int, label: str) -> None:
        self.link = link
        self.window_bytes = window_bytes
        self.label = label
        self._changed = trio.Event()
        self._ends_open = 2

    def end_finished(self) -> None:
        """One end will neither read nor write again."""
        self._ends_open -= 1
        if not self._ends_open:
            self.link.forget(self)
        self.changed()

    def changed(self) -> None:
        """Wake whoever waits at either end."""
        self._changed.set()
        self._changed = trio.Event()

    async def wait_until(self, deadline: float) -> None:
        """Until something changes or the time has come."""
        event = self._changed
        with trio.move_on_at(deadline):
            await event.wait()


class MemoryStream:
    """One end; implements `dstore.network.streams.Stream`."""

    def __init__(self, wire: Wire, own: PeerId, peer: PeerId, incoming: _Pipe, outgoing: _Pipe):
        self._wire = wire
        self._own = own
        self._peer = peer
        self._in = incoming
        self._out = outgoing
        self._finished = False

    @property
    def peer(self) -> PeerId:
        return self._peer

    @property
    def label(self) -> str:
        """The stream's name in the event log."""
        return self._wire.label

    def _check(self) -> None:
        """Raise ConnectionLost where this end is over."""
        if self._wire.link.lost:
            raise ConnectionLost(f"{self.label}: connection to {self._peer} lost")
        if self._finished:
            raise ConnectionLost(f"{self.label}: stream closed or reset at this end")
        if self._reset_arrived():
            raise ConnectionLost(f"{self.label}: stream reset by {self._peer}")

    def _reset_arrived(self) -> bool:
        at = self._in.reset_at
        return at is not None and at <= trio.current_time() and not self._wire.link.silent

    def _reset_due(self) -> float:
        """When to look again for a reset: never while nothing passes."""
        at = self._in.reset_at
        return math.inf if at is None or self._wire.link.silent else at

    async def read_some(self, max_bytes: int = STREAM_READ_BYTES_MAX) -> bytes:
        await trio.lowlevel.checkpoint()
        while True:
            self._check()
            silent = self._wire.link.silent
            if not silent and self._in.next_arrival() <= trio.current_time():
                return self._take(max_bytes)
            arrival = math.inf if silent else self._in.next_arrival()
            await self._wire.wait_until(min(arrival, self._reset_due()))

    async def read_pieces(self, max_bytes: int) -> list[bytes]:
        piece = await self.read_some(min(max_bytes, STREAM_READ_BYTES_MAX))
        return [piece] if piece else []

    def _take(self, max_bytes: int) -> bytes:
        pipe = self._in
        chunk = pipe.chunks[0][1]
        if not chunk:  # the end stays where it is, for every later read
            return b""
        size = self._wire.link.read_bytes(min(max_bytes, len(chunk)))
        pipe.unread_bytes -= size
        if size == len(chunk):
            pipe.chunks.popleft()
        else:
            pipe.chunks[0] = (pipe.chunks[0][0], chunk[size:])
        self._record(f"reads {size}")
        self._wire.changed()
        whole = chunk.obj
        # A chunk read whole is handed over without a copy.
        return whole if isinstance(whole, bytes) and size == len(whole) else bytes(chunk[:size])

    async def write(self, data: bytes | bytearray | memoryview) -> None:
        await trio.lowlevel.checkpoint()
        view = memoryview(data).cast("B")
        link, pipe = self._wire.link, self._out
        while True:
            self._check()
            if pipe.closed:
                raise ConnectionLost(f"{self.label}: stream closed for writing at this end")
            if not view:
                return
            if pipe.discarding and not link.silent:
                pipe.empty()
                return
            room = self._wire.window_bytes - pipe.unread_bytes
            if room <= 0:
                await self._wire.wait_until(self._reset_due())
                continue
            piece = link.passing(self._own, bytes(view[:room]))
            view = view[room:]
            if piece:
                pipe.put(trio.current_time() + link.transit_seconds(), piece)
                self._wire.changed()

    async def close_write(self) -> None:
        await trio.lowlevel.checkpoint()
        self._end_writing()

    def _end_writing(self) -> None:
        if self._out.closed or self._finished or self._wire.link.lost:
            return
        self._out.closed = True
        self._out.put(trio.current_time() + self._wire.link.transit_seconds(), b"")
        self._record("closes for writing")
        self._wire.changed()

    def _finish(self) -> None:
        if not self._finished:
            self._finished = True
            self._wire.end_finished()

    def _record(self, event: str) -> None:
        self._wire.link.record(f"{self.label} {self._wire.link.name_of(self._own)} {event}")

    async def close(self) -> None:
        await trio.lowlevel.checkpoint()
        self._end_writing()
        self._in.discarding = True
        self._in.empty()
        self._finish()

    async def reset(self) -> None:
        self.reset_now()
        await trio.lowlevel.cancel_shielded_checkpoint()

    def reset_now(self) -> None:
        """`reset` without the checkpoint."""
        if not self._wire.link.lost and self._out.reset_at is None:
            arrives = trio.current_time() + self._wire.link.transit_seconds()
            self._out.reset_at = max(arrives, self._out.arrived_last)
            self._record("resets")
            self._wire.changed()
        self._out.closed = True
        self._in.empty()
        self._finish()

    def end_serving(self) -> None:
        """Reset what a handler left open; nothing where it closed the stream."""
        if not self._finished:
            self.reset_now()


def stream_pair(
    link: Link, window_bytes: int, label: str, opener: PeerId, acceptor: PeerId
) -> tuple[Wire, MemoryStream, MemoryStream]:
    """A new stream over `link`: what the ends share, the opener's end, the acceptor's end."""
    wire, there, back = Wire(link, window_bytes, label), _Pipe(), _Pipe()
    return (
        wire,
        MemoryStream(wire, opener, acceptor, back, there),
        MemoryStream(wire, acceptor, opener, there, back),
    )
