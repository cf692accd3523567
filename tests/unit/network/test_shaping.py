"""Limits on real connections' bytes, with the clock in hand: exact times."""

from __future__ import annotations

import math

import pytest
import trio
from trio.testing import MockClock

from dstore.core.bandwidth import Limits
from dstore.limits import BANDWIDTH_BURST_BYTES, KIB
from dstore.network.host import HostOptions, open_host
from dstore.network.shaping import Shaper
from dstore.network.streams import PeerAddresses, Stream
from dstore.runtime import Runtime

RATE = 1000 * KIB


async def _send(shaper: Shaper, pieces: int, *, near: bool = False) -> float:
    begun = trio.current_time()
    for _ in range(pieces):
        await shaper.before_sending(64 * KIB, near=near)
    return trio.current_time() - begun


async def test_bytes_go_at_the_rate(autojump_clock: MockClock) -> None:
    shaper = Shaper()
    shaper.limit(Limits(up=RATE))
    seconds = await _send(shaper, 160)
    burst = max(RATE / 10, BANDWIDTH_BURST_BYTES)
    assert seconds == pytest.approx((160 * 64 * KIB - burst) / RATE, rel=0.01)
    assert shaper.sent_bytes == 160 * 64 * KIB


async def test_directions_are_apart_and_the_local_network_is_exempt(
    autojump_clock: MockClock,
) -> None:
    shaper = Shaper()
    shaper.limit(Limits(up=RATE))
    await shaper.after_receiving(1 << 30, near=False)
    assert await _send(shaper, 160, near=True) == 0
    shaper.lan = True
    assert await _send(shaper, 160, near=True) > 9


async def test_those_who_share_a_limit_fare_alike(autojump_clock: MockClock) -> None:
    shaper = Shaper()
    shaper.limit(Limits(up=RATE))
    sent = [0, 0, 0]

    async def go_on(number: int) -> None:
        while True:
            await shaper.before_sending(64 * KIB, near=False)
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
            await shaper.after_receiving(1000 * RATE, near=False)

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
        assert a.shaper.sent_bytes > len(data)
        assert a.shaper.received_bytes > len(data)
