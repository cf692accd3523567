"""The yamux driver over pipes in memory: hostile peers, and how much there may be of anything.

D8 and D18 name the defects of libp2p's own muxer that this one must not have.
"""

import pytest
import trio
import trio.testing

from dstore.core.yamux import YamuxLimits
from dstore.core.yamux_frames import DATA, GO_AWAY, PING, RST, SYN, WINDOW_UPDATE
from dstore.errors import ConnectionLost, DeadlineExceeded
from dstore.limits import (
    KEEPALIVE_SECONDS,
    KEEPALIVE_TIMEOUT_SECONDS,
    MIB,
    NEGOTIATE_SECONDS,
    YAMUX_ACCEPT_BACKLOG,
    YAMUX_WINDOW_BYTES_INITIAL,
)
from dstore.network.yamux import YamuxStream
from tests.unit.network.yamux_pair import against_raw, echo, frame, serve, sessions, stream_pair


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
        limits = YamuxLimits(memory_bytes_max=8 * YAMUX_WINDOW_BYTES_INITIAL)
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
