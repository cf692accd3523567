"""The yamux driver over pipes in memory: lost connections and closed ones.

D14, D15 and D19 name the defects of libp2p's own muxer that this one must not have; trio's
mock clock passes the time.
"""

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
import trio.testing
from libp2p.io.exceptions import IOException
from libp2p.stream_muxer.exceptions import (
    MuxedConnUnavailable,
    MuxedStreamReset,
)

from dstore.core.yamux import YamuxConnection, YamuxLimits
from dstore.core.yamux_frames import GO_AWAY, PING, SYN, WINDOW_UPDATE
from dstore.errors import ConnectionLost
from dstore.limits import (
    CLOSE_SECONDS,
    KEEPALIVE_LOOK_SECONDS,
    KEEPALIVE_SECONDS,
    KEEPALIVE_TIMEOUT_SECONDS,
    MIB,
)
from dstore.network.yamux import YamuxSession
from tests.unit.network.yamux_pair import against_raw, frame, read_all, sessions, stream_pair, wires


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
            noticed_after = trio.current_time() - start
            assert 0 <= noticed_after - KEEPALIVE_TIMEOUT_SECONDS < KEEPALIVE_LOOK_SECONDS
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

    async def test_on_an_idle_connection_one_side_asks(
        self, autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked: list[YamuxConnection] = []
        ping = YamuxConnection.ping

        def counted(core: YamuxConnection, value: int) -> None:
            asked.append(core)
            ping(core, value)

        monkeypatch.setattr(YamuxConnection, "ping", counted)
        async with sessions() as (a, _, _):
            await trio.sleep(20.5 * KEEPALIVE_SECONDS)
            assert asked == [a.core] * 20

    async def test_who_hears_much_and_says_nothing_asks(
        self, autojump_clock: trio.testing.MockClock
    ) -> None:
        """Its silence would be taken for its death."""
        async with against_raw() as (session, raw):
            heard = bytearray()

            async def hear() -> None:
                while data := await raw.read():
                    heard.extend(data)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(hear)
                await raw.write(frame(WINDOW_UPDATE, SYN, 1, 0))
                await session.accept_stream()
                for _ in range(5 * KEEPALIVE_SECONDS):
                    await raw.write(frame(WINDOW_UPDATE, 0, 1, 1))
                    await trio.sleep(1)
                nursery.cancel_scope.cancel()
            assert heard.count(frame(PING, SYN, 0, 3)[:4]) >= 3

    async def test_idle_sessions_stay(self, autojump_clock: trio.testing.MockClock) -> None:
        async with sessions() as (a, b, _):
            await trio.sleep(10_000)
            near, far = await stream_pair(a, b)
            await near.write(b"still here")
            assert await far.read_some() == b"still here"


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
