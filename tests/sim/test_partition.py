"""A partition of the network for hours, then healing: nobody takes silence for loss."""

from __future__ import annotations

import random
from collections import Counter

import pytest
import trio

from dstore.limits import GIB
from dstore.service.node import NodeOptions
from dstore.testing.cluster import open_cluster
from dstore.testing.deterministic import run_deterministic
from dstore.testing.memory_network import Latency, NetworkOptions
from tests.sim.schedule import add, get, promised, readable, stream

NODES = 9
HOURS = 3600
CALM_SECONDS = 600  # so long the network is watched, before and after


async def _parted(seed: int, cut: set[int]) -> Counter[str]:
    """A root, a partition that leaves `cut` alone for three hours, and what came of it."""
    dice = random.Random(seed)
    data, more = dice.randbytes(3_000_000), dice.randbytes(100_000)
    options = NodeOptions(capacity_bytes=GIB, memory_cache_bytes=0)
    network = NetworkOptions(latency=Latency(0.002, 0.04))
    seen: Counter[str] = Counter()
    async with open_cluster(NODES, seed, options=options, network=network) as cluster:
        hub = cluster.hub
        result = await add(cluster, data)
        assert result is not None
        assert result.protected
        assert result.manifest is not None
        await trio.sleep(CALM_SECONDS)
        before, started = promised(cluster, range(NODES)), hub.streams_opened
        await trio.sleep(CALM_SECONDS)
        usual = hub.streams_opened - started

        hub.partition([cluster.peer(number) for number in cut])
        await trio.sleep(3 * HOURS)
        for side in (sorted(cut), sorted(set(range(NODES)) - cut)):
            could = readable(cluster, side, result.manifest)
            for reader in {side[0], side[-1]}:
                assert await get(cluster, reader, result.cid, data) == could
                seen["read" if could else "could not"] += 1
        # An add within one side is an add like any other.
        later = await cluster[0].add_stream(stream(more))
        during = promised(cluster, range(NODES))
        assert before.items() <= during.items()

        started = hub.streams_opened
        hub.heal()
        await trio.sleep(CALM_SECONDS)
        after = hub.streams_opened - started
        # All look for each other again, and that is all.
        assert after <= usual + NODES * NODES, f"{after} streams where {usual} are usual"
        assert promised(cluster, range(NODES)) == during
        for reader in range(NODES):
            assert await get(cluster, reader, result.cid, data)
            assert await get(cluster, reader, later.cid, more)
    return seen


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cut", "read", "could_not"),
    [({5, 6, 7, 8}, 4, 0), ({1, 2, 3, 4, 5, 6, 7, 8}, 3, 0), ({8}, 2, 1)],
)
def test_both_sides_serve_what_they_can_decode_and_lose_nothing(
    cut: set[int], read: int, could_not: int
) -> None:
    seen = run_deterministic(1, _parted, 1, cut)
    assert (seen["read"], seen["could not"]) == (read, could_not)
