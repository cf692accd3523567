"""Holders that are slow because they are far, beside near ones in one failure domain: they keep
their slots, and where they do not, the add says what it lost."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Collection, Mapping, Sequence

import pytest
import trio

from dstore.core.wire import Role
from dstore.limits import GIB, SLOT_LAST_SECONDS, SLOT_STALL_SECONDS
from dstore.service.holder import LocalReception
from dstore.service.node import NodeOptions
from dstore.service.progress import AddOptions, AddResult
from dstore.testing.cluster import Cluster, open_cluster
from dstore.testing.deterministic import run_deterministic

BETWEEN_SECONDS = (SLOT_STALL_SECONDS + SLOT_LAST_SECONDS) / 2


async def stream() -> AsyncIterator[bytes]:
    yield random.Random(3).randbytes(2_000_000)


async def start(cluster: Cluster, racks: Sequence[str]) -> None:
    """A client, and a holder from number 1 on for each of the labels."""
    await cluster.start(0, NodeOptions(role=Role.CLIENT, memory_cache_bytes=0))
    for number, rack in enumerate(racks, 1):
        options = NodeOptions(capacity_bytes=GIB, memory_cache_bytes=0, label=rack)
        await cluster.start(number, options)


async def add(cluster: Cluster, code: tuple[int, int]) -> tuple[AddResult, int, float]:
    """The result, how many failure domains may be lost, and the seconds it took."""
    begun = trio.current_time()
    result = await cluster[0].add_stream(stream(), AddOptions(code=code))
    assert result.protected
    assert result.guarantee is not None
    return result, result.guarantee.domains, trio.current_time() - begun


def slow_stores(
    monkeypatch: pytest.MonkeyPatch, cluster: Cluster, seconds: Mapping[int, float]
) -> None:
    """These nodes take so long for each batch."""
    store = LocalReception.store

    async def slow(reception: LocalReception, blocks: Sequence[tuple[int, bytes]]) -> None:
        await trio.sleep(seconds.get(cluster.number_of(reception._holder._network.peer_id), 0))
        await store(reception, blocks)

    monkeypatch.setattr(LocalReception, "store", slow)


@pytest.mark.parametrize(
    ("racks", "code", "slow"),
    [
        # Nobody else is outside the rack.
        (["rack", "rack", "rack", "a", "b"], (2, 1), [4]),
        # One domain is free, for one of the two.
        (["rack", "rack", "rack", "a", "b", "c", "d"], (2, 2), [4, 6]),
        (["rack", "rack", "rack", "a", "b", "c", "d"], (2, 2), [6, 7]),
    ],
)
def test_a_slow_holder_keeps_its_slot_where_the_others_are_together(
    racks: list[str], code: tuple[int, int], slow: Collection[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        async with open_cluster(0) as cluster:
            await start(cluster, racks)
            slow_stores(monkeypatch, cluster, dict.fromkeys(slow, BETWEEN_SECONDS))
            result, domains, _ = await add(cluster, code)
            assert domains == code[1]
            assert not any("can do more" in warning for warning in result.warnings)

    run_deterministic(1, main)


def test_one_that_is_stuck_loses_it_in_time_and_the_loss_of_spread_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def main() -> None:
        async with open_cluster(0) as cluster:
            await start(cluster, ["rack", "rack", "rack", "a", "b"])
            slow_stores(monkeypatch, cluster, {4: 1000})
            result, domains, seconds = await add(cluster, (2, 1))
            assert domains == 0
            assert SLOT_LAST_SECONDS < seconds < 5
            told = "not of every failure domain; code 2+1 can do more: add again when more storage "
            assert any(told in warning for warning in result.warnings)
            assert any("in failure domains of their own" in one for one in result.warnings)

    run_deterministic(1, main)


def test_holders_far_away_are_no_dead_ones() -> None:
    async def main() -> None:
        async with open_cluster(0) as cluster:
            await start(cluster, ["rack", "rack", "rack", "a", "b", "c", "d", "e", "f"])
            for number in range(4, 10):
                cluster.hub.delay(cluster.peer(number), 0.3)
            result, domains, _ = await add(cluster, (4, 2))
            assert domains == 2
            assert result.warnings == ()

    run_deterministic(1, main)
