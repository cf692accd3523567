"""An owner's notes of leases: who is asked when, and that silent holders cost little."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from functools import partial

import pytest
import trio

from dstore.core.stripes import Cuts, plan_dag
from dstore.limits import HELLO_SECONDS
from dstore.service import encoding, leasenotes
from dstore.service.progress import AddOptions
from dstore.testing.cluster import Cluster, open_cluster
from dstore.testing.deterministic import run_deterministic

DAY = 86_400


async def stream() -> AsyncIterator[bytes]:
    yield random.Random(1).randbytes(3_500_000)


def set_clocks(cluster: Cluster, days: float) -> None:
    for one in cluster.nodes.values():
        one.clock.ahead = days * DAY


async def step(cluster: Cluster, number: int, name: str) -> None:
    (worker,) = (one for one in cluster[number].workers if one.name == name)
    await worker.step()


def notes(cluster: Cluster) -> list[int]:
    """Days that the noted leases of each segment run from the start, in order."""
    catalog = cluster[0].stores.catalog
    (pin,) = catalog.pins()
    (row,) = catalog.manifests_of(pin.root)
    return [
        min(round((one.expires - pin.created) / DAY) for one in catalog.placements(segment))
        for segment in row.segments
    ]


def test_every_segment_has_its_turn_before_its_leases_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(encoding, "plan_dag", partial(plan_dag, cuts=Cuts(segment_fragments=4)))
    monkeypatch.setattr(leasenotes, "LEASE_NOTES_PER_STEP", 2)

    async def main() -> None:
        async with open_cluster(6) as cluster:
            await cluster[0].add_stream(stream(), AddOptions(code=(2, 2)))
            assert notes(cluster) == [30, 30, 30]
            set_clocks(cluster, 16)
            for number in range(1, 6):
                await step(cluster, number, "keeper")
            await step(cluster, 0, "lease notes")
            assert sorted(notes(cluster)) == [30, 46, 46]
            await step(cluster, 0, "lease notes")
            assert notes(cluster) == [46, 46, 46]

    run_deterministic(1, main)


def test_silent_holders_are_waited_for_once_and_what_is_let_go_is_not_asked_about(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(encoding, "plan_dag", partial(plan_dag, cuts=Cuts(segment_fragments=4)))

    async def main() -> None:
        async with open_cluster(6) as cluster:
            result = await cluster[0].add_stream(stream(), AddOptions(code=(1, 2)))
            set_clocks(cluster, 16)
            for number in range(1, 6):
                cluster.hub.pause(cluster.peer(number))
            begun = trio.current_time()
            await step(cluster, 0, "lease notes")
            assert trio.current_time() - begun == pytest.approx(HELLO_SECONDS)
            for number in range(1, 6):
                cluster.hub.resume(cluster.peer(number))
            await cluster[0].unpin(result.cid)
            begun = trio.current_time()
            await step(cluster, 0, "lease notes")
            assert trio.current_time() == begun

    run_deterministic(1, main)
