"""Room of the candidates: over the segments of one add, and for the code that it is given."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial

import pytest
import trio

from dstore.core.manifest import Code
from dstore.core.peerid import PeerId
from dstore.core.stripes import Cuts, SegmentPlan, plan_dag
from dstore.core.wire import Role
from dstore.errors import InsufficientPeers
from dstore.limits import HELLO_KEPT_SECONDS, MIB
from dstore.service import encoding
from dstore.service.node import NodeOptions
from dstore.service.progress import AddOptions
from dstore.testing.cluster import Cluster, open_cluster
from dstore.testing.deterministic import run_deterministic

CLIENT = NodeOptions(role=Role.CLIENT, memory_cache_bytes=0)


async def stream(size: int) -> AsyncIterator[bytes]:
    yield random.Random(size).randbytes(size)


async def start(cluster: Cluster, numbers: range, capacity_bytes: int) -> None:
    for number in numbers:
        label = f"machine-{number}"
        options = NodeOptions(capacity_bytes=capacity_bytes, memory_cache_bytes=0, label=label)
        await cluster.start(number, options)


def slots_held(cluster: Cluster) -> int:
    return sum(len(list(cluster[n].stores.catalog.held_slots())) for n in cluster.alive)


@pytest.fixture
def four_segments(monkeypatch: pytest.MonkeyPatch) -> int:
    """The size of a file that is cut into four segments, of two data blocks each."""
    cuts = Cuts(segment_bytes=2 * MIB, aligned_file_bytes=2 * MIB)
    plan: Callable[..., Iterator[SegmentPlan]] = partial(plan_dag, cuts=cuts)
    monkeypatch.setattr(encoding, "plan_dag", plan)
    return 8 * MIB


@pytest.mark.parametrize("strict", [True, False])
def test_segments_of_one_add_share_the_room_that_candidates_said(
    strict: bool, four_segments: int
) -> None:
    """Five peers with room for two slots of some 1 MiB each; four segments of 2+1."""

    async def main() -> None:
        async with open_cluster(0) as cluster:
            await cluster.start(0, CLIENT)
            await start(cluster, range(1, 6), int(2.5 * MIB))
            options = AddOptions(code=(2, 1), require_guarantee=int(strict))
            with pytest.raises(InsufficientPeers) as caught:
                await cluster[0].add_stream(stream(four_segments), options)
            # With a guarantee out of reach nothing is placed; else what there is room for, and
            # nobody is offered what he has no room for, and blamed for it.
            assert (slots_held(cluster) == 0) == strict
            assert "passed over" not in str(caught.value)

    run_deterministic(1, main)


def test_where_there_is_just_enough_room_it_is_used(four_segments: int) -> None:
    async def main() -> None:
        async with open_cluster(0) as cluster:
            await cluster.start(0, CLIENT)
            await start(cluster, range(1, 8), int(2.5 * MIB))
            result = await cluster[0].add_stream(
                stream(four_segments), AddOptions(code=(2, 1), require_guarantee=1)
            )
            assert result.protected
            assert result.warnings == ()

    run_deterministic(1, main)


def test_auto_counts_the_domains_that_have_room_or_hold_slots_already() -> None:
    async def main() -> None:
        async with open_cluster(0) as cluster:
            await cluster.start(0, CLIENT)
            await start(cluster, range(1, 5), int(1.5 * MIB))
            await start(cluster, range(5, 9), 100_000)
            result = await cluster[0].add_stream(stream(2 * MIB))
            assert (result.code, result.protected) == ((2, 2), True)
            # Holders need no room for what they hold: adding again gives the same code.
            publisher = cluster[0]._publisher
            holding = cluster[0].stores.catalog.peers_promising(result.cid, 1)
            assert holding == {cluster.peer(number) for number in (1, 2, 3, 4)}
            await trio.sleep(HELLO_KEPT_SECONDS + 0.01)
            now = await publisher._candidates.find(result.cid.multihash)
            codes = [
                publisher._choose(now, result.size, holders, AddOptions())
                for holders in (set[PeerId](), holding)
            ]
            assert codes == [Code(1, 1), Code(2, 2)]

    run_deterministic(1, main)
