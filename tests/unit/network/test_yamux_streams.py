"""The yamux driver over pipes in memory: reads, writes, waiting for a slow peer, cancelling.

D5-D8, D13 and D14 name the defects of libp2p's own muxer that this one must not have; where
time matters, trio's mock clock passes it.
"""

import hashlib

import pytest
import trio
import trio.testing
from libp2p.stream_muxer.exceptions import (
    MuxedStreamClosed,
    MuxedStreamEOF,
    MuxedStreamReset,
)

from dstore.errors import ConnectionLost
from dstore.limits import (
    MIB,
    YAMUX_OUT_BYTES_HIGH,
    YAMUX_WINDOW_BYTES_INITIAL,
)
from dstore.network.yamux import StreamShut, YamuxSession, YamuxStream
from tests.unit.network.yamux_pair import (
    Wire,
    echo,
    pattern,
    read_all,
    serve,
    sessions,
    stream_pair,
)


def count_writes(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What is written to wires from here on."""
    written: list[bytes] = []
    write = Wire.write

    async def counted(wire: Wire, data: bytes) -> None:
        written.append(data)
        await write(wire, data)

    monkeypatch.setattr(Wire, "write", counted)
    return written


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

    async def test_what_is_written_within_a_turn_goes_out_as_one_message(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A stream taken, the protocol agreed on and the answer, by tasks that wake each other."""
        async with sessions() as (a, b, _):
            near, far = await stream_pair(a, b)
            await trio.testing.wait_all_tasks_blocked()
            written = count_writes(monkeypatch)
            for _ in range(20):
                await far.write(b"agreed")
                await trio.lowlevel.checkpoint()
                await far.write(b"answer")
                await trio.testing.wait_all_tasks_blocked()
                assert await near.read_some() == b"agreedanswer"
            # Before the first time nobody wrote beside another, and so nobody was waited for.
            assert 20 <= len(written) <= 21

    async def test_who_writes_alone_is_not_kept_waiting_for_company(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async with sessions() as (a, b, _):
            near, far = await stream_pair(a, b)
            await near.write(b"first")
            await trio.testing.wait_all_tasks_blocked()
            written = count_writes(monkeypatch)
            for number in range(20):
                await near.write(b"alone")
                for _ in range(2):  # one turn of the writer's, and perhaps another
                    await trio.lowlevel.checkpoint()
                assert len(written) == number + 1
                await trio.testing.wait_all_tasks_blocked()
            assert await far.read_some() == b"first" + 20 * b"alone"

    async def test_pieces_come_as_they_came_and_no_more_than_is_asked(self) -> None:
        async with sessions() as (a, b, _):
            near, far = await stream_pair(a, b)
            data = pattern(20_000)
            for start in range(0, len(data), 5000):
                await near.write(data[start : start + 5000])
            await trio.testing.wait_all_tasks_blocked()
            assert await far.read_pieces(12_000) == [
                data[:5000],
                data[5000:10_000],
                data[10_000:12_000],
            ]
            assert b"".join(await far.read_pieces(1 << 20)) == data[12_000:]
            await near.close_write()
            assert await far.read_pieces(1) == []
            assert b.core.unread_bytes == 0

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
