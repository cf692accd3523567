"""Repair behind the foreground, and limits of named peers, with the clock in hand."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import cast

import pytest
import trio
from trio.testing import MockClock

from dstore.core.bandwidth import Limits
from dstore.core.peerid import PeerId
from dstore.errors import DeadlineExceeded
from dstore.limits import BANDWIDTH_REPAIR_SHARE, KIB, PROGRESS_SECONDS
from dstore.network.connection import HostStream
from dstore.network.fragment_stream import FragmentStream
from dstore.network.host import HostOptions, Libp2pHost, open_host
from dstore.network.repair_stream import RepairStream
from dstore.network.shaping import Line, Shaper
from dstore.network.streams import PeerAddresses, Stream
from dstore.runtime import Runtime

RATE = 1e6
SECONDS = 10  # of the mock clock
PEER = PeerId.of_ed25519(b"\1" * 32)


class Traffic:
    """What goes through lines for ten seconds, sent or received."""

    def __init__(self, shaper: Shaper, direction: str) -> None:
        self.shaper = shaper
        self._sends = direction == "up"

    async def read(self, line: Line | None = None, piece: int = 8 * KIB) -> None:
        line = line or Line(self.shaper, near=False)
        while True:
            if self._sends:
                await line.before_sending(piece)
            else:
                await line.before_receiving()
                line.received(piece)

    async def repair(self, line: Line | None = None) -> None:
        line = line or Line(self.shaper, near=False)
        while True:
            if self._sends:
                size = line.repair_turn_up()
                await line.before_repair_sends(size)
                await line.before_sending(size)
            else:
                size = line.repair_turn_down()
                line.received(size)
                line.repair_arrived(size)
                await line.before_receiving()
                await line.after_repair_took(size)

    def counts(self) -> tuple[int, int]:
        """Bytes of all and, of these, of repair."""
        at = 0 if self._sends else 1
        return self.shaper.total.counted[at], self.shaper.repair.counted[at]

    async def ten_seconds(self) -> tuple[float, float]:
        """Bytes a second of the foreground and of repair."""
        total, repair = self.counts()
        await trio.sleep(SECONDS)
        after, after_repair = self.counts()
        return (after - total - after_repair + repair) / 10, (after_repair - repair) / 10


@pytest.fixture(params=["up", "down"])
def traffic(request: pytest.FixtureRequest) -> Traffic:
    return Traffic(Shaper(), request.param)


@asynccontextmanager
async def running(*tasks: object) -> AsyncIterator[None]:
    async with trio.open_nursery() as nursery:
        for task in tasks:
            nursery.start_soon(task)  # type: ignore[arg-type]  # coroutine functions
        await trio.sleep(SECONDS / 10)  # past the first burst
        yield
        nursery.cancel_scope.cancel()


async def test_repair_keeps_its_own_limit(traffic: Traffic, autojump_clock: MockClock) -> None:
    traffic.shaper.limit(Limits(repair=RATE))
    async with running(traffic.repair, traffic.repair, traffic.repair):
        assert (await traffic.ten_seconds())[1] == pytest.approx(RATE, rel=0.05)
        traffic.shaper.limit(Limits(repair=3 * RATE))
        assert (await traffic.ten_seconds())[1] == pytest.approx(3 * RATE, rel=0.05)


async def test_repair_alone_has_the_whole_limit(
    traffic: Traffic, autojump_clock: MockClock
) -> None:
    traffic.shaper.limit(Limits(RATE, RATE))
    async with running(traffic.repair, traffic.repair):
        assert (await traffic.ten_seconds())[1] == pytest.approx(RATE, rel=0.05)


async def test_the_foreground_goes_first_and_repair_is_not_starved(
    traffic: Traffic, autojump_clock: MockClock
) -> None:
    traffic.shaper.limit(Limits(RATE, RATE))
    async with running(traffic.read, traffic.repair, traffic.repair, traffic.repair):
        foreground, repair = await traffic.ten_seconds()
        assert foreground + repair == pytest.approx(RATE, rel=0.05)
        assert foreground > 0.9 * RATE
        assert repair == pytest.approx(RATE * BANDWIDTH_REPAIR_SHARE, rel=0.1)


async def test_repair_fills_what_the_foreground_leaves(
    traffic: Traffic, autojump_clock: MockClock
) -> None:
    traffic.shaper.limit(Limits(RATE, RATE))

    async def read_now_and_then() -> None:
        line = Line(traffic.shaper, near=False)
        while True:
            line.received(8 * KIB)
            await line.before_receiving()
            await line.before_sending(8 * KIB)
            await trio.sleep(0.04)

    async with running(read_now_and_then, traffic.repair):
        foreground, repair = await traffic.ten_seconds()
        assert foreground + repair == pytest.approx(RATE, rel=0.05)
        assert foreground > 0.1 * RATE


async def test_the_local_network_is_exempt_from_the_limit_of_repair(
    traffic: Traffic, autojump_clock: MockClock
) -> None:
    traffic.shaper.limit(Limits(RATE, RATE, RATE))
    begun = trio.current_time()
    line = Line(traffic.shaper, near=True)
    await line.before_repair_sends(1 << 30)
    await line.after_repair_took(1 << 30)
    assert trio.current_time() == begun


async def test_named_peers_have_a_limit_of_their_own_beside_that_of_all(
    autojump_clock: MockClock,
) -> None:
    shaper = Shaper({"office": {PEER}})
    traffic = Traffic(shaper, "up")
    named = Line(shaper, near=True)  # the local network is exempt, named peers are not
    named.belongs_to(PEER)
    office = shaper.groups["office"]
    office.limit(RATE, math.inf)
    async with running(lambda: traffic.read(named)):
        before = office.up.carried_bytes
        await trio.sleep(SECONDS)
        assert office.up.carried_bytes - before == pytest.approx(10 * RATE, rel=0.05)
        shaper.limit(Limits(up=RATE / 2))
        shaper.lan = True
        await trio.sleep(SECONDS / 10)
        before = office.up.carried_bytes
        await trio.sleep(SECONDS)
        assert office.up.carried_bytes - before == pytest.approx(5 * RATE, rel=0.05)
    assert Line(shaper, near=True).turn_up() < 256 * KIB


async def test_of_named_peers_the_foreground_goes_first(autojump_clock: MockClock) -> None:
    shaper = Shaper({"office": {PEER}})
    traffic = Traffic(shaper, "up")
    line = Line(shaper, near=False)
    line.belongs_to(PEER)
    shaper.groups["office"].limit(RATE, math.inf)
    async with running(lambda: traffic.read(line), lambda: traffic.repair(line)):
        foreground, repair = await traffic.ten_seconds()
        assert foreground > 0.9 * RATE
        assert repair == pytest.approx(RATE * BANDWIDTH_REPAIR_SHARE, rel=0.1)


@pytest.mark.parametrize("speaks", ["/repair", "/usual"])
async def test_streams_of_a_repair_protocol_wait_on_real_connections(speaks: str) -> None:
    """The foreground of one peer beside its repair, over one connection; a peer that knows
    no difference is repaired from behind the foreground all the same."""
    options = HostOptions(limit_lan=True, repair_protocols=frozenset({"/repair"}))

    async def give(stream: Stream) -> None:
        while True:
            await stream.write(bytes(64 * KIB))

    async with (
        open_host(options, b"\1" * 32, Runtime()) as a,
        open_host(options, b"\2" * 32, Runtime()) as b,
    ):
        b.set_handler("/usual", give)
        b.set_handler(speaks, give)
        await a.connect(PeerAddresses(b.peer_id, tuple(b.addresses())))
        a.shaper.limit(Limits(down=4 * RATE))
        if speaks == "/repair":
            b.shaper.limit(Limits(up=4 * RATE))
        foreground, repair = await _received_beside(a, b.peer_id)
    assert foreground > 8 * repair
    assert repair > 0


async def _received_beside(host: Libp2pHost, peer: PeerId) -> tuple[int, int]:
    """Bytes of some seconds, once the streams' first windows have come."""
    counts = [0, 0]
    flowing, enough = trio.Event(), trio.Event()

    async def take(number: int, protocols: list[str]) -> None:
        stream = await host.open_stream(peer, protocols)
        while True:
            counts[number] += len(await stream.read_some())
            if counts[0] > RATE * 4:
                flowing.set()
            if counts[0] > RATE * 14:
                enough.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(take, 0, ["/usual"])
        nursery.start_soon(take, 1, ["/repair", "/usual"])
        await flowing.wait()
        before, begun = tuple(counts), trio.current_time()
        await enough.wait()
        assert trio.current_time() - begun > 2  # the limit holds
        nursery.cancel_scope.cancel()
    return counts[0] - before[0], counts[1] - before[1]


async def test_what_a_repair_stream_never_took_is_waited_for(autojump_clock: MockClock) -> None:
    """Else a peer gets round the limit with streams that it fills and resets."""
    shaper = Shaper()
    shaper.limit(Limits(down=RATE))
    line = Line(shaper, near=False)
    begun = trio.current_time()
    for _ in range(SECONDS):
        line.received(int(RATE))
        line.repair_arrived(int(RATE))
        await line.before_receiving()
        line.repair_dropped(int(RATE))
    await line.before_receiving()
    assert trio.current_time() - begun > 0.9 * SECONDS


class Arriving:
    """A host's stream on which the test says what comes, with a line of its own."""

    def __init__(self, line: Line) -> None:
        self.connection = self
        self.peer = PEER
        self.line = line
        self.kept = 0
        self.ends: list[str] = []

    def on_arrival(self, told: Callable[[int], None]) -> None:
        self._told = told

    async def come(self, size: int) -> None:
        """As the connection does it: the bytes counted and handed over, then waited for."""
        self.line.received(size)
        self._told(size)
        self.kept += size
        await self.line.before_receiving()

    async def read_some(self, max_bytes: int) -> bytes:
        size = min(max_bytes, self.kept)
        self.kept -= size
        return bytes(size)

    async def read_pieces(self, max_bytes: int) -> list[bytes]:
        return [await self.read_some(max_bytes)]

    async def write(self, data: bytes) -> None:
        await trio.sleep_forever()

    async def close(self) -> None:
        self.ends.append("close")

    async def reset(self) -> None:
        self.ends.append("reset")


@pytest.fixture
async def arriving() -> Arriving:
    shaper = Shaper()
    shaper.limit(Limits(down=RATE))
    return Arriving(Line(shaper, near=False))


def repair_over(stream: Arriving) -> RepairStream:
    return RepairStream(cast("HostStream", stream))


async def seconds_to_receive(line: Line) -> float:
    begun = trio.current_time()
    await line.before_receiving()
    return trio.current_time() - begun


@pytest.mark.parametrize("end", ["close", "reset"])
async def test_a_repair_stream_has_its_connection_wait_for_what_it_never_took(
    end: str, arriving: Arriving, autojump_clock: MockClock
) -> None:
    """What it took it has waited for itself, and nothing is waited for twice."""
    stream = repair_over(arriving)
    begun = trio.current_time()
    await arriving.come(10 * int(RATE))
    assert trio.current_time() == begun, "the stream is to wait for them"
    while arriving.kept > 6 * RATE:
        await stream.read_some()
    assert trio.current_time() - begun == pytest.approx(4, rel=0.1)
    assert await seconds_to_receive(arriving.line) == 0
    await getattr(stream, end)()
    assert await seconds_to_receive(arriving.line) == pytest.approx(6, rel=0.1)
    assert arriving.ends == [end]


async def test_a_repair_stream_that_ended_is_accounted_for_once(
    arriving: Arriving, autojump_clock: MockClock
) -> None:
    stream = repair_over(arriving)
    await arriving.come(5 * int(RATE))
    await stream.close()
    await stream.read_some()  # whoever was reading when it was closed
    await stream.reset()
    assert await seconds_to_receive(arriving.line) == pytest.approx(5, rel=0.1)
    assert await seconds_to_receive(arriving.line) == 0


async def test_what_comes_for_a_repair_stream_after_its_end_is_waited_for_at_once(
    arriving: Arriving, autojump_clock: MockClock
) -> None:
    stream = repair_over(arriving)
    await stream.reset()
    begun = trio.current_time()
    await arriving.come(5 * int(RATE))
    assert trio.current_time() - begun == pytest.approx(5, rel=0.1)


async def test_what_a_repair_stream_waits_for_here_is_not_the_peers_silence(
    autojump_clock: MockClock,
) -> None:
    shaper = Shaper()
    shaper.limit(Limits(repair=KIB / 4))  # far less than can be set: a piece takes half a minute
    arriving = Arriving(Line(shaper, near=False))
    link = FragmentStream(repair_over(arriving))
    await arriving.come(200 * KIB)
    begun = trio.current_time()
    for _ in range(4):
        await link.read_bytes(50 * KIB)
    assert trio.current_time() - begun > 2 * PROGRESS_SECONDS
    # A peer that takes nothing is given up all the same, once it is its turn.
    begun = trio.current_time()
    with pytest.raises(DeadlineExceeded):
        await link.queue(b"", bytes(200 * KIB))
    assert PROGRESS_SECONDS <= trio.current_time() - begun < 2 * PROGRESS_SECONDS
