"""Limits on real connections' bytes, with the clock in hand: exact times."""

from __future__ import annotations

import math
from typing import Any

import pytest
import trio
from trio.testing import MockClock, memory_stream_pair

from dstore.core.bandwidth import Limits
from dstore.limits import BANDWIDTH_BURST_BYTES, BANDWIDTH_BYTES_PER_SECOND_MIN, KIB
from dstore.network.host import HostOptions, open_host
from dstore.network.shaping import Line, Shaper
from dstore.network.streams import PeerAddresses, Stream
from dstore.network.tcp import TcpConnection
from dstore.network.yamux import YamuxSession, YamuxStream
from dstore.runtime import Runtime

RATE = 1000 * KIB


async def _send(shaper: Shaper, pieces: int, *, near: bool = False) -> float:
    line = Line(shaper, near=near)
    begun = trio.current_time()
    for _ in range(pieces):
        await line.before_sending(64 * KIB)
    return trio.current_time() - begun


async def test_bytes_go_at_the_rate(autojump_clock: MockClock) -> None:
    shaper = Shaper()
    shaper.limit(Limits(up=RATE))
    seconds = await _send(shaper, 160)
    burst = max(RATE / 10, BANDWIDTH_BURST_BYTES)
    assert seconds == pytest.approx((160 * 64 * KIB - burst) / RATE, rel=0.01)
    assert shaper.total.up.carried_bytes == 160 * 64 * KIB


async def test_directions_are_apart_and_the_local_network_is_exempt(
    autojump_clock: MockClock,
) -> None:
    shaper = Shaper()
    shaper.limit(Limits(up=RATE))
    line = Line(shaper, near=False)
    line.received(1 << 30)
    await line.before_receiving()
    assert await _send(shaper, 160, near=True) == 0
    shaper.lan = True
    assert await _send(shaper, 160, near=True) > 9


async def test_those_who_share_a_limit_fare_alike(autojump_clock: MockClock) -> None:
    shaper = Shaper()
    shaper.limit(Limits(up=RATE))
    sent = [0, 0, 0]

    async def go_on(number: int) -> None:
        while True:
            await Line(shaper, near=False).before_sending(64 * KIB)
            sent[number] += 1

    with trio.move_on_after(30):
        async with trio.open_nursery() as nursery:
            for number in range(3):
                nursery.start_soon(go_on, number)
    assert max(sent) - min(sent) <= 1


async def test_a_changed_limit_wakes_those_who_wait(autojump_clock: MockClock) -> None:
    shaper = Shaper()
    shaper.limit(Limits(down=RATE))
    async with trio.open_nursery() as nursery:

        async def receive() -> None:
            line = Line(shaper, near=False)
            line.received(1000 * RATE)
            await line.before_receiving()

        nursery.start_soon(receive)
        await trio.sleep(10)
        shaper.limit(Limits(down=1000 * RATE))
    assert trio.current_time() == pytest.approx(11, abs=0.1)
    assert shaper.limits == Limits(math.inf, 1000 * RATE)


async def test_a_limited_host_still_talks() -> None:
    """Real sockets; how fast is the benchmark's affair."""
    async with (
        open_host(HostOptions(limit_lan=True), b"\1" * 32, Runtime()) as a,
        open_host(HostOptions(), b"\2" * 32, Runtime()) as b,
    ):

        async def echo(stream: Stream) -> None:
            while data := await stream.read_some():
                await stream.write(data)
            await stream.close()

        b.set_handler("/echo", echo)
        a.shaper.limit(Limits(4_000_000, 4_000_000))
        await a.connect(PeerAddresses(b.peer_id, tuple(b.addresses())))
        stream = await a.open_stream(b.peer_id, ["/echo"])
        data, got = bytes(300 * KIB), 0
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.write, data)
            while got < len(data):
                got += len(await stream.read_some())
        assert a.shaper.total.up.carried_bytes > len(data)
        assert a.shaper.total.down.carried_bytes > len(data)


class MemorySocket:
    """An end of a memory stream as a socket's: what was written is in the wires at once."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream
        self.socket = self
        self.carried = 0

    def getpeername(self) -> tuple[str, int]:
        return ("127.0.0.1", 4001)

    def getsockopt(self, *_: int) -> bytes:
        return b""

    async def receive_some(self, max_bytes: int) -> bytes:
        data = bytes(await self._stream.receive_some(max_bytes))
        self.carried += len(data)
        return data

    async def send_all(self, data: bytes) -> None:
        self.carried += len(data)
        await self._stream.send_all(data)

    async def aclose(self) -> None:
        await self._stream.aclose()


PEERS = 40


@pytest.mark.parametrize("direction", ["up", "down", "both"])
async def test_many_busy_peers_share_the_least_limit_and_all_stay(
    direction: str, autojump_clock: MockClock
) -> None:
    """Forty connections with bulk in both directions, two minutes long: none is taken for
    dead by either side, each gets its share, and the limit is kept within a twentieth."""
    shaper = Shaper(lan=True)
    rate = float(BANDWIDTH_BYTES_PER_SECOND_MIN)
    up, down = direction in ("up", "both"), direction in ("down", "both")
    shaper.limit(Limits(up=rate if up else math.inf, down=rate if down else math.inf))
    here, there = [], []
    sockets: list[MemorySocket] = []
    shares = [0] * PEERS

    async def give(stream: YamuxStream) -> None:
        while True:
            await stream.write(bytes(64 * KIB))

    async def take(stream: YamuxStream, number: int) -> None:
        while True:
            shares[number] += len(await stream.read_some())

    begun = trio.current_time()
    async with trio.open_nursery() as nursery:
        for number in range(PEERS):
            left, right = memory_stream_pair()
            sockets.append(MemorySocket(left))
            ours: Any = sockets[-1]  # what TcpConnection uses of a socket stream
            theirs: Any = MemorySocket(right)
            our_wire: Any = TcpConnection(ours, is_initiator=True, shaper=shaper)
            their_wire: Any = TcpConnection(theirs, is_initiator=False)
            our_wire.trust()
            their_wire.trust()
            a, b = YamuxSession(our_wire, "b"), YamuxSession(their_wire, "a")
            here.append(a)
            there.append(b)
            nursery.start_soon(a.start)
            nursery.start_soon(b.start)
            near = await a.open_stream()
            await near.write(b"x")
            far = await b.accept_stream()
            writer, reader = (near, far) if up else (far, near)
            nursery.start_soon(give, writer)
            nursery.start_soon(take, reader, number)
            if direction == "both":
                nursery.start_soon(give, far)
                nursery.start_soon(take, near, number)
        await trio.sleep(120)
        seconds = trio.current_time() - begun  # connecting has its turns too
        assert [one.ending for one in (*here, *there)] == [None] * 2 * PEERS
        nursery.cancel_scope.cancel()
    if direction != "both":
        carried = shaper.total.up.carried_bytes if up else shaper.total.down.carried_bytes
        assert carried == pytest.approx(rate * seconds, rel=0.05)
    assert min(shares) > 0.5 * rate * 120 / PEERS


async def test_who_gives_up_waiting_leaves_its_turn_to_the_others(
    autojump_clock: MockClock,
) -> None:
    shaper = Shaper()
    shaper.limit(Limits(up=RATE))
    await _send(shaper, 2)
    with trio.move_on_after(0.001) as given_up:
        await Line(shaper, near=False).before_sending(100 * RATE)
    assert given_up.cancelled_caught
    begun = trio.current_time()
    await Line(shaper, near=False).before_sending(64 * KIB)
    assert trio.current_time() - begun < 1
