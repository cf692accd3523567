"""How many connections there may be, and who has to go when there are too many."""

from __future__ import annotations

import math

import pytest
import trio

from dstore.errors import Unreachable
from dstore.network import swarm
from dstore.network.host import HostOptions, Libp2pHost, open_host
from dstore.runtime import Runtime
from tests.unit.network.hosts import ECHO, SEEDS, echo, until, where


async def test_connections_are_capped_with_room_kept_for_our_own() -> None:
    options = HostOptions(connections_max=4)
    async with open_host(options, SEEDS[0], Runtime()) as a, trio.open_nursery() as nursery:
        held: list[Libp2pHost] = []
        refused: list[Libp2pHost] = []

        async def hold(seed: bytes) -> None:
            async with open_host(HostOptions(), seed, Runtime()) as node:
                try:
                    await node.connect(where(a))
                except Unreachable:
                    refused.append(node)
                held.append(node)
                await trio.sleep_forever()

        for number in range(1, 6):
            nursery.start_soon(hold, SEEDS[number])
            await until(lambda: len(held) >= number)  # noqa: B023  # awaited in this round
        assert len(a.connected()) == 3
        assert refused == held[3:]
        assert a.counters["connections_refused"] == 2
        await a.connect(where(held[4]))
        with pytest.raises(Unreachable, match="no more are made"):
            await a.connect(where(held[3]))
        nursery.cancel_scope.cancel()


async def test_at_the_cap_the_longest_idle_makes_room_and_the_busy_stay(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(swarm, "INBOUND_IDLE_SECONDS", 0)
    async with (
        open_host(HostOptions(connections_max=4), SEEDS[0], Runtime()) as a,
        open_host(HostOptions(), SEEDS[1], Runtime()) as busy,
        open_host(HostOptions(), SEEDS[2], Runtime()) as idle,
        open_host(HostOptions(), SEEDS[3], Runtime()) as late,
        open_host(HostOptions(), SEEDS[4], Runtime()) as newcomer,
    ):
        a.set_handler(ECHO, echo)
        await busy.connect(where(a))
        stream = await busy.open_stream(a.peer_id, [ECHO])
        for node in (idle, late):
            await node.connect(where(a))
            await until(lambda: node.peer_id in a.connected())  # noqa: B023
            await until(lambda: a._swarm._live[node.peer_id].idle_since < math.inf)  # noqa: B023
        await newcomer.connect(where(a))
        assert await newcomer.ping(a.peer_id) > 0
        await until(lambda: idle.peer_id not in a.connected())
        assert set(a.connected()) == {busy.peer_id, late.peer_id, newcomer.peer_id}
        assert a.counters["connections_displaced"] == 1
        assert a.counters["connections_refused"] == 0
        await stream.write(b"still here")
        assert await stream.read_some() == b"still here"
        await stream.close()
