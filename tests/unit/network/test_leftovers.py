"""Connections and streams that came and went leave no task, descriptor or memory behind."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
import trio
import trio.testing

from dstore.limits import MIB
from dstore.network.connection import upgrade
from dstore.network.host import HostOptions, Libp2pHost, open_host
from dstore.network.identity import key_pair_of
from dstore.network.negotiate import propose
from dstore.network.noise import NoiseTransport
from dstore.network.streams import PeerAddresses, Stream
from dstore.runtime import Runtime
from tests.unit.network.hosts import descriptors, raw_to

_SEEDS = [bytes([number]) * 32 for number in (1, 2)]
_ECHO = "/echo/1.0.0"
_AT_ONCE = 50
_GROWTH_BYTES_MAX = 8 * MIB  # arenas of the allocator, and interned values


async def _echo(stream: Stream) -> None:
    while data := await stream.read_some():
        await stream.write(data)
    await stream.close()


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


async def _settled(a: Libp2pHost, b: Libp2pHost) -> tuple[int, int]:
    """Tasks and descriptors, once nothing goes on any more."""
    with trio.fail_after(60):
        while a._swarm._inbound or b._swarm._inbound or a.connected() or b.connected():
            await trio.lowlevel.checkpoint()
    await trio.testing.wait_all_tasks_blocked()
    gc.collect()
    return trio.lowlevel.current_statistics().tasks_living, descriptors()


async def _streams(a: Libp2pHost, b: Libp2pHost, count: int) -> None:
    """`count` streams opened, used and closed, some at once."""

    async def one_by_one() -> None:
        for _ in range(count // _AT_ONCE):
            stream = await a.open_stream(b.peer_id, [_ECHO])
            await stream.write(b"x")
            assert await stream.read_some() == b"x"
            await stream.close()

    async with trio.open_nursery() as nursery:
        for _ in range(_AT_ONCE):
            nursery.start_soon(one_by_one)


async def _come_and_go(connections: int, streams: int) -> None:
    async with (
        open_host(HostOptions(), _SEEDS[0], Runtime()) as a,
        open_host(HostOptions(), _SEEDS[1], Runtime()) as b,
    ):
        b.set_handler(_ECHO, _echo)
        where = PeerAddresses(b.peer_id, tuple(b.addresses()))

        async def visit(count: int) -> None:
            await a.connect(where)
            await _streams(a, b, count)
            await a.disconnect(b.peer_id)

        for _ in range(5):
            await visit(10 * _AT_ONCE)
        before = await _settled(a, b)
        resident = _resident_bytes()
        for _ in range(connections - 1):
            await a.connect(where)
            await a.disconnect(b.peer_id)
        await visit(streams)
        assert await _settled(a, b) == before
        assert _resident_bytes() - resident < _GROWTH_BYTES_MAX
        assert [*a._swarm._live, *b._swarm._live, *a._swarm._spare, *b._swarm._spare] == []


async def _vanish(victim: Libp2pHost, seed: bytes) -> None:
    """A peer that connects, leaves streams half-way and goes without a word."""
    raw = await raw_to(victim)
    connection = await upgrade(raw, NoiseTransport(key_pair_of(seed)), 20, victim.peer_id)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(connection.run)
        silent = await connection.open_stream()  # no protocol is ever proposed
        await silent.write(b"\x13/multi")
        asked = await connection.open_stream()
        await propose(asked, [_ECHO])
        await asked.write(b"x")
        assert await asked.read_some() == b"x"
        await raw.close()
        nursery.cancel_scope.cancel()


async def _vanish_often(count: int) -> None:
    async with open_host(HostOptions(), _SEEDS[0], Runtime()) as victim:
        victim.set_handler(_ECHO, _echo)

        async def settled() -> tuple[int, int]:
            with trio.fail_after(60):
                while victim._swarm._inbound or victim.connected():  # no event
                    await trio.lowlevel.checkpoint()
            await trio.testing.wait_all_tasks_blocked()
            gc.collect()
            return trio.lowlevel.current_statistics().tasks_living, descriptors()

        for _ in range(100):
            await _vanish(victim, _SEEDS[1])
        before, resident = await settled(), _resident_bytes()
        for _ in range(count):
            await _vanish(victim, _SEEDS[1])
        assert await settled() == before
        assert _resident_bytes() - resident < _GROWTH_BYTES_MAX
        assert not victim._served
        assert not victim._pings
        assert not victim._swarm._per_source
        assert not victim._swarm._handshakes
        assert victim.counters["handler_errors"] == 0


@pytest.mark.slow
async def test_two_hundred_reconnects_without_a_word() -> None:
    await _vanish_often(200)


@pytest.mark.soak
async def test_ten_thousand_reconnects_without_a_word() -> None:
    await _vanish_often(10_000)


@pytest.mark.slow
async def test_a_hundred_connections_and_two_thousand_streams() -> None:
    await _come_and_go(100, 2_000)


@pytest.mark.soak
async def test_two_thousand_connections_and_a_hundred_thousand_streams() -> None:
    await _come_and_go(2_000, 100_000)
