"""The clocks of all nodes jump by two days: nothing that was promised or kept ends for it."""

from __future__ import annotations

import random

import pytest
import trio

from dstore.core.cid import CID, RAW
from dstore.limits import GIB, KEEPER_SECONDS
from dstore.service.node import NodeOptions
from dstore.testing.cluster import open_cluster
from dstore.testing.deterministic import run_deterministic
from dstore.testing.memory_network import Latency, NetworkOptions
from tests.sim.schedule import CLOCK_JUMP_SECONDS, add, get, promised

NODES = 7


async def _jumped(seconds: float) -> None:
    data = random.Random(1).randbytes(2_000_000)
    options = NodeOptions(capacity_bytes=GIB, memory_cache_bytes=0)
    network = NetworkOptions(latency=Latency(0.002, 0.04))
    async with open_cluster(NODES, 1, options=options, network=network) as cluster:
        result = await add(cluster, data)
        assert result is not None
        assert result.protected
        # As a killed add leaves it; found as an orphan before the jump.
        stray = b"of a killed add"
        cid = CID.of(RAW, stray)
        cluster.stores[3].put_many([(cid, stray)])
        await trio.sleep(2 * KEEPER_SECONDS)
        before = promised(cluster, range(NODES))

        for number in range(NODES):
            cluster.nodes[number].clock.ahead = seconds
        await trio.sleep(3 * KEEPER_SECONDS)
        assert promised(cluster, range(NODES)) == before
        assert cluster.stores[3].has_many([cid]) == [True]
        for reader in range(NODES):
            assert await get(cluster, reader, result.cid, data)
        # The DHT's records are as they were: a node that knows nobody's slots finds them.
        await cluster.start(NODES)
        assert await get(cluster, NODES, result.cid, data)
        later = await add(cluster, data[::-1])
        assert later is not None
        assert later.protected
        assert before.items() <= promised(cluster, range(NODES)).items()


@pytest.mark.parametrize("seconds", [CLOCK_JUMP_SECONDS, -CLOCK_JUMP_SECONDS])
def test_nothing_ends_because_somebody_set_the_clock(seconds: float) -> None:
    run_deterministic(1, _jumped, seconds)
