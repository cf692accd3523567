"""The yamux driver over pipes in memory: waiting, cancelling, losing, closing.

D5-D8, D13-D15, D18 and D19 name the defects of libp2p's own muxer that this one must not
have; where time matters, trio's mock clock passes it.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing
from libp2p.io.exceptions import IOException
from libp2p.stream_muxer.exceptions import (
    MuxedConnUnavailable,
    MuxedStreamClosed,
    MuxedStreamEOF,
    MuxedStreamReset,
)

from dstore.core.yamux import YamuxLimits
from dstore.core.yamux_frames import DATA, GO_AWAY, HEADER, PING, RST, SYN, WINDOW_UPDATE
from dstore.errors import ConnectionLost, DeadlineExceeded
from dstore.limits import (
    CLOSE_SECONDS,
    KEEPALIVE_SECONDS,
    KEEPALIVE_TIMEOUT_SECONDS,
    MIB,
    NEGOTIATE_SECONDS,
    YAMUX_ACCEPT_BACKLOG,
    YAMUX_OUT_BYTES_HIGH,
    YAMUX_WINDOW_BYTES,
    YAMUX_WINDOW_BYTES_INITIAL,
)
from dstore.network.yamux import StreamShut, YamuxSession, YamuxStream


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


class TestStreams:
    async def test_both_ways_with_half_closed_streams(self) -> None:
        async with sessions() as (a, b, _):
            near, far = await stream_pair(a, b)
            await near.write(b"question")
            await near.close_write()
            assert await read_all(far) == b"question"
            await far.write(memoryview(bytearray(b"answer")))
            await far.close()
            assert await read_all(near) == b"answer"
            assert await near.read_some() == b""
            await near.close()
            await trio.testing.wait_all_tasks_blocked()
            assert a.core.stream_count == b.core.stream_count == 0

    async def test_reads_give_at_most_what_is_asked_and_lose_nothing(self) -> None:
        async with sessions() as (a, b, _):
            near, far = await stream_pair(a, b)
            data = pattern(100_000)
            for start in range(0, len(data), 1000):
                await near.write(data[start : start + 1000])
            await near.close_write()
            got = b""
            while piece := await far.read_some(777):
                assert 1 <= len(piece) <= 777
                got += piece
            assert got == data

    async def test_many_small_frames_are_kept_joined(self) -> None:
        async with sessions() as (a, b, _):
            near, far = await stream_pair(a, b)
            for _ in range(5000):
                await near.write(b"x")
            await trio.testing.wait_all_tasks_blocked()
            assert len(far._chunks) <= 2
            assert len(await far.read_some()) == 5000

    async def test_libp2p_reads_and_errors(self) -> None:
        async with sessions() as (a, b, _):
            near, far = await stream_pair(a, b)
            await near.write(b"abc")
            assert await far.read(2) == b"ab"
            assert await far.read() == b"c"
            await near.close()
            with pytest.raises(MuxedStreamEOF):
                await far.read(1)
            with pytest.raises(MuxedStreamClosed):
                await near.write(b"x")
            with pytest.raises(StreamShut):
                await near.read_some()

            near, far = await stream_pair(a, b)
            await far.reset()
            with pytest.raises(MuxedStreamReset):
                await near.read(1)
            with pytest.raises(ConnectionLost):
                await near.write(b"x")
            await near.reset()
            await near.close()

    async def test_a_reset_discards_what_was_not_read_and_wakes_both_sides(self) -> None:
        async with sessions() as (a, b, _):
            near, far = await stream_pair(a, b)
            await far.write(b"unread")
            await trio.testing.wait_all_tasks_blocked()
            lost: list[str] = []

            async def write_on() -> None:
                with pytest.raises(ConnectionLost):
                    await near.write(bytes(4 * MIB))
                lost.append("writer")

            async def read_on() -> None:
                with pytest.raises(ConnectionLost):
                    await far.read_some()
                    while True:
                        await far.read_some()
                lost.append("reader")

            async with trio.open_nursery() as nursery:
                nursery.start_soon(write_on)
                await trio.testing.wait_all_tasks_blocked()
                await far.reset()
                nursery.start_soon(read_on)
            assert sorted(lost) == ["reader", "writer"]
            with pytest.raises(ConnectionLost):
                await near.read_some()

    async def test_closing_while_the_peer_sends_gives_it_the_answer(self) -> None:
        """A refusal in mid-upload arrives, although nobody reads the rest of the upload."""
        async with sessions() as (a, b, _):
            near, far = await stream_pair(a, b)

            async def refuse() -> None:
                await far.read_some()
                await far.write(b"refused")
                await far.close()

            async with trio.open_nursery() as nursery:
                nursery.start_soon(refuse)
                await near.write(bytes(YAMUX_WINDOW_BYTES_INITIAL + 100_000))
                await near.close_write()
                assert await read_all(near) == b"refused"


class TestBackPressure:
    async def test_d8_a_reader_that_stops_costs_its_window_and_no_more(self) -> None:
        async with sessions() as (a, b, nursery):
            near, far = await stream_pair(a, b)
            sent = trio.Event()

            async def write() -> None:
                await near.write(pattern(8 * MIB))
                await near.close_write()
                sent.set()

            nursery.start_soon(write)
            await trio.testing.wait_all_tasks_blocked()
            assert b.core.unread_bytes == YAMUX_WINDOW_BYTES_INITIAL
            assert a.core.pending_bytes <= YAMUX_OUT_BYTES_HIGH
            # Other streams do not notice.
            other, other_far = await stream_pair(a, b)
            await other.write(b"hello")
            assert await other_far.read_some() == b"hello"
            assert hashlib.sha256(await read_all(far)).digest() == (
                hashlib.sha256(pattern(8 * MIB)).digest()
            )
            await sent.wait()

    async def test_d7_a_reader_may_pause_for_an_hour(
        self, autojump_clock: trio.testing.MockClock
    ) -> None:
        async with sessions() as (a, b, nursery):
            near, far = await stream_pair(a, b)

            async def write() -> None:
                await near.write(bytes(3 * MIB))
                await near.close_write()

            nursery.start_soon(write)
            await trio.sleep(3600)
            assert b.core.unread_bytes == YAMUX_WINDOW_BYTES_INITIAL
            assert len(await read_all(far)) == 3 * MIB

    async def test_d13_exact_reads_of_any_size(self) -> None:
        async with sessions() as (a, b, nursery):
            near, far = await stream_pair(a, b)
            data = pattern(20 * MIB)
            nursery.start_soon(near.write, data)
            got = bytearray()
            while len(got) < len(data):
                got += await far.read_some(min(50_000, len(data) - len(got)))
            assert got == data

    @pytest.mark.parametrize("steps", [*range(24), 40, 80])
    async def test_d6_a_write_cancelled_anywhere_harms_its_own_stream_only(
        self, steps: int
    ) -> None:
        async with sessions(capacity=3000) as (a, b, _nursery):
            near, far = await stream_pair(a, b)
            other, other_far = await stream_pair(a, b)
            data, other_data = pattern(4 * MIB, 1), pattern(MIB, 2)
            got: dict[str, bytes] = {}

            async def collect(name: str, stream: YamuxStream) -> None:
                try:
                    got[name] = b""
                    while piece := await stream.read_some():
                        got[name] += piece
                except ConnectionLost:
                    pass

            async def write_other() -> None:
                await other.write(other_data)
                await other.close_write()

            async with trio.open_nursery() as readers:
                readers.start_soon(collect, "cut", far)
                readers.start_soon(collect, "other", other_far)
                readers.start_soon(write_other)
                with trio.CancelScope() as scope:
                    async with trio.open_nursery() as writer:
                        writer.start_soon(near.write, data)
                        for _ in range(steps):
                            await trio.lowlevel.checkpoint()
                        scope.cancel()
                await near.close_write()
            assert scope.cancelled_caught
            assert data.startswith(got["cut"])
            assert got["other"] == other_data
            assert a.ending is None
            assert b.ending is None

    @pytest.mark.parametrize("steps", range(6))
    async def test_a_read_cancelled_anywhere_loses_nothing(self, steps: int) -> None:
        async with sessions(capacity=1000) as (a, b, nursery):
            near, far = await stream_pair(a, b)
            data = pattern(30_000)
            nursery.start_soon(near.write, data)
            got = b""
            while len(got) < len(data):
                with trio.CancelScope() as scope:

                    async def cancel_later(scope: trio.CancelScope = scope) -> None:
                        for _ in range(steps):
                            await trio.lowlevel.checkpoint()
                        scope.cancel()

                    nursery.start_soon(cancel_later)
                    got += await far.read_some(1000)
                await trio.lowlevel.checkpoint()
            assert got == data

    @pytest.mark.parametrize("steps", range(8))
    async def test_opening_accepting_and_closing_may_be_cancelled(self, steps: int) -> None:
        async with sessions(capacity=50) as (a, b, _):

            async def churn() -> None:
                while True:
                    near, far = await stream_pair(a, b)
                    await near.write(b"x" * 200)
                    await far.read_some()
                    await near.close()
                    await far.close()

            for _ in range(10):
                with trio.CancelScope() as scope:
                    async with trio.open_nursery() as churning:
                        churning.start_soon(churn)
                        for _ in range(steps):
                            await trio.lowlevel.checkpoint()
                        scope.cancel()
            # Those that were cut off are on their way still.
            await trio.testing.wait_all_tasks_blocked()
            while b._arrived:
                await (await b.accept_stream()).reset()
            near, far = await stream_pair(a, b)
            await near.write(b"fine")
            assert await far.read_some() == b"fine"


async def bulk_both_ways(seconds: float) -> tuple[int, int]:
    """Bulk on four streams each way while both sides open streams: (bytes, streams)."""
    moved = opened = 0

    async with sessions() as (a, b, nursery):
        for session in (a, b):
            nursery.start_soon(serve, session, echo)
        deadline = trio.current_time() + seconds

        async def bulk(session: YamuxSession, seed: int) -> None:
            nonlocal moved
            data = pattern(300_000, seed)
            stream = await session.open_stream()
            while trio.current_time() < deadline:
                async with trio.open_nursery() as both:
                    both.start_soon(stream.write, data)
                    got = bytearray()
                    while len(got) < len(data):
                        got += await stream.read_some(len(data) - len(got))
                assert got == data
                moved += 2 * len(data)
            await stream.close()

        async def new_streams(session: YamuxSession) -> None:
            nonlocal opened
            while trio.current_time() < deadline:
                stream = await session.open_stream()
                await stream.write(b"ping")
                assert await stream.read_some() == b"ping"
                await stream.close()
                opened += 1

        with trio.fail_after(seconds + 20):
            async with trio.open_nursery() as load:
                for session in (a, b):
                    for seed in range(4):
                        load.start_soon(bulk, session, seed)
                    load.start_soon(new_streams, session)
        await trio.testing.wait_all_tasks_blocked()
        assert a.core.stream_count == b.core.stream_count == 0
    return moved, opened


async def test_d5_bulk_both_ways_with_new_streams_never_locks_up() -> None:
    moved, opened = await bulk_both_ways(2)
    assert moved > 4 * MIB
    assert opened > 20


@pytest.mark.soak
async def test_d5_a_minute_of_bulk_both_ways() -> None:
    moved, opened = await bulk_both_ways(60)
    assert moved > 400 * MIB
    assert opened > 1000


class TestLoss:
    async def test_d14_a_lost_connection_is_an_error_and_not_an_end(self) -> None:
        async with sessions() as (a, b, _):
            near, far = await stream_pair(a, b)
            done, done_far = await stream_pair(a, b)
            await near.write(b"some")
            await done.write(b"all")
            await done.close_write()
            await trio.testing.wait_all_tasks_blocked()
            await a.secured_conn.close()
            await b.event_closed.wait()
            assert await far.read_some() == b"some"
            for _ in range(2):
                with pytest.raises(ConnectionLost):
                    await far.read_some()
            with pytest.raises(MuxedStreamReset):
                await far.read(1)
            with pytest.raises(ConnectionLost):
                await far.write(b"x")
            # What had ended in order before has ended in order.
            assert await read_all(done_far) == b"all"
            with pytest.raises(MuxedConnUnavailable):
                await b.open_stream()
            with pytest.raises(MuxedConnUnavailable):
                await b.accept_stream()

    async def test_a_loss_wakes_whoever_waits(self) -> None:
        async with sessions(limits=YamuxLimits(streams_max=1)) as (a, b, _):
            near, _far = await stream_pair(a, b)
            lost: list[str] = []

            async def expect(name: str, call: Callable[[], Awaitable[Any]]) -> None:
                with pytest.raises(ConnectionLost):
                    await call()
                lost.append(name)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(expect, "read", near.read_some)
                nursery.start_soon(expect, "write", lambda: near.write(bytes(4 * MIB)))
                nursery.start_soon(expect, "accept", a.accept_stream)
                nursery.start_soon(expect, "open", a.open_stream)
                await trio.testing.wait_all_tasks_blocked()
                await b.secured_conn.close()
            assert sorted(lost) == ["accept", "open", "read", "write"]

    async def test_d15_a_stopped_peer_is_noticed(
        self, autojump_clock: trio.testing.MockClock
    ) -> None:
        async with against_raw(stopped=True) as (session, raw):
            await raw.write(frame(WINDOW_UPDATE, SYN, 1, 0))
            stream = await session.accept_stream()
            start = trio.current_time()
            with pytest.raises(ConnectionLost, match="no sign of life"):
                await stream.write(bytes(10 * MIB))
            took = trio.current_time() - start
            assert took <= KEEPALIVE_SECONDS + KEEPALIVE_TIMEOUT_SECONDS
            await session.event_closed.wait()

    async def test_a_peer_that_is_only_slow_to_answer_stays(
        self, autojump_clock: trio.testing.MockClock
    ) -> None:
        """Bytes of any kind are a sign of life: on a slow line the pong queues behind them."""
        async with against_raw() as (session, raw):
            for _ in range(30):
                await raw.write(frame(PING, SYN, 0, 1))
                await trio.sleep(KEEPALIVE_TIMEOUT_SECONDS / 2)
            assert session.ending is None

    async def test_idle_sessions_stay(self, autojump_clock: trio.testing.MockClock) -> None:
        async with sessions() as (a, b, _):
            await trio.sleep(10_000)
            near, far = await stream_pair(a, b)
            await near.write(b"still here")
            assert await far.read_some() == b"still here"


class TestHostilePeers:
    """threats.md 1 and 3, for the muxer."""

    @pytest.mark.parametrize(
        "offence",
        [
            frame(DATA, 0, 1, 2**32 - 1),
            frame(DATA, 0, 1, YAMUX_WINDOW_BYTES_INITIAL + 1),
            frame(WINDOW_UPDATE, 0, 1, 2**32 - 1),
            frame(WINDOW_UPDATE, SYN, 2, 0),
            b"\xff" * 12,
        ],
        ids=["4 GiB", "over the window", "window overflow", "wrong parity", "noise"],
    )
    async def test_an_offence_ends_the_connection_with_a_word(self, offence: bytes) -> None:
        async with against_raw() as (session, raw):
            await raw.write(frame(WINDOW_UPDATE, SYN, 1, 0))
            stream = await session.accept_stream()
            await raw.write(offence)
            with pytest.raises(ConnectionLost):
                await stream.read_some()
            await session.event_closed.wait()
            answer = b""
            while piece := await raw.read():
                answer += piece
            assert answer.endswith(frame(GO_AWAY, 0, 0, 1))

    async def test_d8_20000_streams_at_once(self) -> None:
        async with against_raw() as (session, raw):
            with pytest.raises((trio.BrokenResourceError, ConnectionLost)):
                for stream_id in range(1, 40_001, 2):
                    await raw.write(frame(WINDOW_UPDATE, SYN, stream_id, 0))
                    assert len(session._streams) <= YAMUX_ACCEPT_BACKLOG
                raise ConnectionLost("the flood was refused stream by stream")
            assert session.core.stream_count <= YAMUX_ACCEPT_BACKLOG

    async def test_streams_opened_and_reset_at_once_leave_nothing(self) -> None:
        async with against_raw() as (session, raw):
            for start in range(1, 20_001, 1000):
                await raw.write(
                    b"".join(
                        frame(WINDOW_UPDATE, SYN | RST, stream_id, 0)
                        for stream_id in range(start, start + 1000, 2)
                    )
                )
            await trio.testing.wait_all_tasks_blocked()
            assert session.ending is None
            assert not session._streams
            assert not session._arrived

    async def test_a_peer_that_never_reads_its_pongs_is_dropped(self) -> None:
        async with against_raw(stopped=True) as (session, raw):
            with pytest.raises(trio.BrokenResourceError):
                while True:
                    await raw.write(frame(PING, SYN, 0, 1) * 100)
            assert session.ending is not None
            assert "no answers" in session.ending


class TestLimits:
    async def test_d18_more_than_256_streams(self) -> None:
        async with sessions() as (a, b, nursery):
            nursery.start_soon(serve, b, echo)
            streams = [await a.open_stream() for _ in range(600)]
            await streams[-1].write(b"hello")
            assert await streams[-1].read_some() == b"hello"
            for stream in streams:
                await stream.close()
            await trio.testing.wait_all_tasks_blocked()
            assert a.core.stream_count == b.core.stream_count == 0

    async def test_d18_a_stream_that_the_peer_does_not_take_fails_in_time(
        self, autojump_clock: trio.testing.MockClock
    ) -> None:
        async with sessions() as (a, b, _):
            for _ in range(YAMUX_ACCEPT_BACKLOG):
                await a.open_stream()
            start = trio.current_time()
            with pytest.raises(DeadlineExceeded):
                await a.open_stream()
            assert trio.current_time() - start == NEGOTIATE_SECONDS
            async with trio.open_nursery() as nursery:
                nursery.start_soon(a.open_stream)
                await trio.testing.wait_all_tasks_blocked()
                await b.accept_stream()

    async def test_streams_that_the_peer_never_closes_are_given_up(
        self, autojump_clock: trio.testing.MockClock
    ) -> None:
        async with sessions() as (a, b, _):
            near, far = await stream_pair(a, b)
            await near.close()
            assert a.core.stream_count == 1
            await trio.sleep(2 * KEEPALIVE_SECONDS + KEEPALIVE_TIMEOUT_SECONDS)
            assert a.core.stream_count == 0
            with pytest.raises(ConnectionLost):
                await far.write(b"x")

    async def test_memory_of_many_unread_streams_is_bounded(self) -> None:
        limits = YamuxLimits(memory_bytes_max=2 * YAMUX_WINDOW_BYTES)
        async with sessions(limits=limits) as (a, b, _nursery):
            lost = 0

            async def fill(stream: YamuxStream) -> None:
                nonlocal lost
                try:
                    await stream.write(bytes(MIB))
                except ConnectionLost:
                    lost += 1

            async with trio.open_nursery() as writers:
                for _ in range(20):
                    near, _far = await stream_pair(a, b)
                    writers.start_soon(fill, near)
                await trio.testing.wait_all_tasks_blocked()
                assert b.core.unread_bytes <= limits.memory_bytes_max
                writers.cancel_scope.cancel()
            assert lost == 20 - 8  # eight small windows are all that there is memory for


class TestClosing:
    async def test_d19_closing_takes_no_time(self, autojump_clock: trio.testing.MockClock) -> None:
        async with sessions() as (a, b, _):
            near, far = await stream_pair(a, b)
            start = trio.current_time()
            await near.write(b"last words")
            await a.close()
            await b.event_closed.wait()
            assert trio.current_time() == start
            assert await far.read_some() == b"last words"
            with pytest.raises(ConnectionLost):
                await far.read_some()

    async def test_closing_gives_up_on_a_peer_that_does_not_read(
        self, autojump_clock: trio.testing.MockClock
    ) -> None:
        async with against_raw(stopped=True) as (session, raw):
            await raw.write(frame(WINDOW_UPDATE, SYN, 1, 0))
            stream = await session.accept_stream()
            with trio.move_on_after(1):
                await stream.write(bytes(MIB))
            start = trio.current_time()
            await session.close()
            assert trio.current_time() - start <= CLOSE_SECONDS
            assert session.is_closed

    async def test_the_hook_is_called_once_and_may_close_again(self) -> None:
        calls: list[str] = []
        async with sessions() as (a, b, _):

            async def on_close() -> None:
                calls.append("closed")
                await b.close()

            b.on_close = on_close
            await a.close()
            await b.event_closed.wait()
            await b.close()
            await trio.testing.wait_all_tasks_blocked()
        assert calls == ["closed"]

    async def test_closing_before_the_start(self) -> None:
        wire, other = wires()
        session = YamuxSession(wire, "peer")
        await session.close()
        await session.start()
        assert session.is_closed
        assert not session.is_established
        assert await other.read() == b""

    async def test_a_cancelled_session_closes_its_connection(self) -> None:
        wire, other = wires()
        session = YamuxSession(wire, "peer")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(session.start)
            await session.event_started.wait()
            stream = await session.open_stream()
            nursery.cancel_scope.cancel()
        assert session.is_closed
        with pytest.raises(ConnectionLost):
            await stream.read_some()
        with pytest.raises(trio.BrokenResourceError):
            await other.write(b"x")

    async def test_a_peer_that_says_good_bye_is_let_go(self) -> None:
        async with against_raw() as (session, raw):
            await raw.write(frame(GO_AWAY, 0, 0, 0))
            await session.event_closed.wait()

    async def test_a_broken_connection_under_the_session_raises_nothing(self) -> None:
        wire, _ = wires()

        async def broken(n: int | None = None) -> bytes:
            raise IOException("gone")

        wire.read = broken  # type: ignore[method-assign] # the fault under test
        session = YamuxSession(wire, "peer")
        await session.start()
        assert session.is_closed
        assert session.ending == "gone"
