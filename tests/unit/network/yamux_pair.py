"""Yamux sessions over pipes in memory: two of them, or one against bare bytes."""

import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import trio
import trio.testing

from dstore.core.yamux import YamuxLimits
from dstore.core.yamux_frames import HEADER
from dstore.errors import ConnectionLost
from dstore.limits import KEEPALIVE_LOOK_SECONDS
from dstore.network.yamux import YamuxSession, YamuxStream


class Channel:
    """One direction of a wire that holds `capacity` bytes; writers wait for room."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.data = bytearray()
        self.closed = False
        self.stopped = False  # nothing is read any more, as by a stopped process
        self.changed = trio.Event()

    def change(self) -> None:
        self.changed.set()
        self.changed = trio.Event()

    async def send(self, data: bytes) -> None:
        await trio.lowlevel.checkpoint()
        view = memoryview(bytes(data))
        while view:
            if self.closed:
                raise trio.BrokenResourceError
            room = self.capacity - len(self.data)
            if room <= 0:
                await self.changed.wait()
                continue
            self.data += view[:room]
            view = view[room:]
            self.change()

    async def receive(self) -> bytes:
        await trio.lowlevel.checkpoint()
        while self.stopped or not self.data:
            if self.closed and not self.stopped:
                return b""
            await self.changed.wait()
        data = bytes(self.data[:65536])
        del self.data[:65536]
        self.change()
        return data


class Wire:
    """A secured connection in memory, as the session takes it."""

    def __init__(self, inward: Channel, outward: Channel, *, is_initiator: bool) -> None:
        self.inward, self.outward = inward, outward
        self.is_initiator = is_initiator

    async def read(self, n: int | None = None) -> bytes:
        return await self.inward.receive()

    async def write(self, data: bytes) -> None:
        await self.outward.send(data)

    async def close(self) -> None:
        for channel in (self.inward, self.outward):
            channel.closed = True
            channel.change()

    def get_remote_address(self) -> tuple[str, int] | None:
        return None

    def get_transport_addresses(self) -> list[Any]:
        return []


def wires(capacity: int = 256 * 1024) -> tuple[Wire, Wire]:
    one, other = Channel(capacity), Channel(capacity)
    return Wire(one, other, is_initiator=True), Wire(other, one, is_initiator=False)


async def look_after(*sessions: YamuxSession) -> None:
    """As whoever keeps sessions does."""
    while True:
        await trio.sleep(KEEPALIVE_LOOK_SECONDS)
        for session in sessions:
            session.look_after()


@asynccontextmanager
async def sessions(
    capacity: int = 256 * 1024, limits: YamuxLimits | None = None
) -> AsyncIterator[tuple[YamuxSession, YamuxSession, trio.Nursery]]:
    """Two running sessions; closed at the end."""
    a_wire, b_wire = wires(capacity)
    a, b = YamuxSession(a_wire, "b", limits), YamuxSession(b_wire, "a", limits)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(a.start)
        nursery.start_soon(b.start)
        nursery.start_soon(look_after, a, b)
        await a.event_started.wait()
        await b.event_started.wait()
        yield a, b, nursery
        await a.close()
        await b.close()
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def against_raw(*, stopped: bool = False) -> AsyncIterator[tuple[YamuxSession, Wire]]:
    """A running session (the accepting side), and the bare wire of its peer."""
    raw, wire = wires()
    wire.outward.stopped = stopped
    session = YamuxSession(wire, "raw")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(session.start)
        nursery.start_soon(look_after, session)
        await session.event_started.wait()
        yield session, raw
        nursery.cancel_scope.cancel()


async def stream_pair(a: YamuxSession, b: YamuxSession) -> tuple[YamuxStream, YamuxStream]:
    near = await a.open_stream()
    return near, await b.accept_stream()


async def read_all(stream: YamuxStream) -> bytes:
    data = bytearray()
    while chunk := await stream.read_some():
        data += chunk
    return bytes(data)


async def serve(session: YamuxSession, handler: Callable[[YamuxStream], Awaitable[Any]]) -> None:
    """Every stream that comes goes to `handler`, until the session ends."""
    async with trio.open_nursery() as nursery:
        while True:
            try:
                stream = await session.accept_stream()
            except ConnectionLost:
                return
            nursery.start_soon(handler, stream)


async def echo(stream: YamuxStream) -> None:
    try:
        while data := await stream.read_some():
            await stream.write(data)
        await stream.close()
    except ConnectionLost:
        await stream.reset()


def frame(kind: int, flags: int, stream_id: int, length: int) -> bytes:
    return bytes(HEADER.pack(0, kind, flags, stream_id, length))


def pattern(size: int, seed: int = 0) -> bytes:
    return hashlib.shake_128(seed.to_bytes(4, "big")).digest(size)
