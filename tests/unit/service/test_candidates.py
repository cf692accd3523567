"""Who could hold slots: found by all ways, asked, bounded in time."""

from __future__ import annotations

import pytest
import trio

from dstore.core.peerid import PeerId
from dstore.core.placement import Candidate
from dstore.core.wire import Hello, Role
from dstore.limits import GIB, HELLO_KEPT_SECONDS, HELLO_SECONDS, KAD_LOOKUP_SECONDS
from dstore.network.fragments_client import FragmentsClient
from dstore.service.candidates import label_domains, peer_domains
from dstore.service.node import NodeOptions
from dstore.testing.cluster import Cluster, open_cluster
from dstore.testing.deterministic import run_deterministic

KEY = b"\x12\x20" + bytes(32)


async def find(cluster: Cluster, number: int) -> dict[PeerId, Candidate]:
    finder = cluster[number]._publisher._candidates
    return {candidate.peer: candidate for candidate in await finder.find(KEY)}


def test_storage_nodes_with_room_are_found_with_their_domains() -> None:
    async def main() -> None:
        async with open_cluster(4) as cluster:
            await cluster.start(4, NodeOptions(role=Role.GATEWAY))
            await cluster.start(5, NodeOptions(capacity_bytes=1))
            cluster.stores[5].inner.put_many([])
            found = await find(cluster, 0)
            assert set(found) == {cluster.peer(n) for n in (1, 2, 3, 5)}
            assert found[cluster.peer(1)].domains == {"label:machine-1"}
            assert 0 < found[cluster.peer(1)].free_bytes <= GIB
            catalog = cluster[0].stores.catalog
            row = catalog.peer(cluster.peer(2))
            assert row is not None
            assert (row.role, row.domains) == ("storage", ("label:machine-2",))
            gateway = catalog.peer(cluster.peer(4))
            assert gateway is not None
            assert gateway.role == "gateway"

    run_deterministic(1, main)


def test_peers_of_the_catalog_are_asked_when_nobody_is_connected() -> None:
    async def main() -> None:
        async with open_cluster(4) as cluster:
            assert len(await find(cluster, 0)) == 3
            for number in (1, 2, 3):
                await cluster[0].network.disconnect(cluster.peer(number))
            assert cluster[0].network.connected() == ()
            assert len(await find(cluster, 0)) == 3

    run_deterministic(1, main)


@pytest.mark.parametrize("kind", ["kill", "pause"])
def test_silent_peers_cost_a_bounded_time(kind: str) -> None:
    async def main() -> None:
        async with open_cluster(5) as cluster:
            await find(cluster, 0)
            if kind == "kill":
                await cluster.kill(3)
            else:
                cluster.hub.pause(cluster.peer(3))
                # What it said a moment ago is taken for true until then, or until it fails.
                assert len(await find(cluster, 0)) == 4
                await trio.sleep(HELLO_KEPT_SECONDS)
            begin = trio.current_time()
            found = await find(cluster, 0)
            assert set(found) == {cluster.peer(n) for n in (1, 2, 4)}
            assert trio.current_time() - begin <= HELLO_SECONDS + KAD_LOOKUP_SECONDS

    run_deterministic(1, main)


def test_what_a_peer_said_is_remembered_while_it_is_connected_and_does_not_fail(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[PeerId] = []
    hello = FragmentsClient.hello

    async def counted(client: FragmentsClient, peer: PeerId) -> Hello:
        asked.append(peer)
        return await hello(client, peer)

    async def main() -> None:
        async with open_cluster(4) as cluster:
            monkeypatch.setattr(FragmentsClient, "hello", counted)
            finder = cluster[0]._publisher._candidates
            first = await find(cluster, 0)
            assert sorted(asked) == sorted(cluster.peer(n) for n in (1, 2, 3))
            asked.clear()
            assert await find(cluster, 0) == first
            assert asked == []
            finder.forget([cluster.peer(2)])
            assert await find(cluster, 0) == first
            assert asked == [cluster.peer(2)]
            await cluster.kill(3)
            asked.clear()
            assert cluster.peer(3) not in await find(cluster, 0)
            assert asked == [cluster.peer(3)]
            await trio.sleep(HELLO_KEPT_SECONDS)
            asked.clear()
            await find(cluster, 0)
            assert {cluster.peer(1), cluster.peer(2)} <= set(asked)

    run_deterministic(1, main)


def test_a_label_counts_as_announced_and_addresses_as_seen() -> None:
    assert label_domains("") == ()
    assert label_domains("rack") == ("label:rack",)
    loopback = "/ip4/127.0.0.1/tcp/1"
    assert peer_domains([loopback], label_domains("rack")) == {"label:rack"}
    assert peer_domains([loopback], ()) == {"addr:loopback"}
    # Only labels are taken from what a peer says of itself.
    assert peer_domains([loopback], ("net:203.0.113.0/24",)) == {"addr:loopback"}
