"""Who could hold slots: found by all ways, asked, bounded in time."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import trio

from dstore.core.peerid import PeerId
from dstore.core.placement import Candidate
from dstore.core.wire import Hello, Role
from dstore.limits import GIB, HELLO_KEPT_SECONDS, HELLO_SECONDS, KAD_LOOKUP_SECONDS
from dstore.network.fragments_client import FragmentsClient
from dstore.network.routing import Routing
from dstore.network.streams import PeerAddresses
from dstore.service import candidates
from dstore.service.candidates import label_domains, peer_domains
from dstore.service.node import NodeOptions
from dstore.service.progress import AddOptions
from dstore.testing.cluster import Cluster, open_cluster
from dstore.testing.deterministic import peer_number, run_deterministic

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
                await trio.sleep(HELLO_KEPT_SECONDS + 0.01)
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
            await trio.sleep(HELLO_KEPT_SECONDS + 0.01)
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


@pytest.mark.parametrize("who", ["the peer", "others"])
def test_addresses_that_are_only_claimed_merge_no_failure_domains(who: str) -> None:
    everywhere = tuple(f"/ip4/8.{number}.1.99/tcp/4001" for number in range(4))

    async def main() -> None:
        async with open_cluster(0) as cluster:
            for number in range(4):
                addresses = [f"/ip4/8.{number}.1.1/tcp/4001"]
                if number == 3 and who == "the peer":
                    addresses += everywhere
                cluster.hub.host(cluster.peer(number), addresses).dead = True
                await cluster.start(number, NodeOptions(capacity_bytes=GIB))
            if who == "others":
                cluster[0].network.remember(PeerAddresses(cluster.peer(3), everywhere))
            found = await find(cluster, 0)
            assert [found[cluster.peer(number)].domains for number in (1, 2, 3)] == [
                {f"net:8.{number}.1.0/24"} for number in (1, 2, 3)
            ]
            # So they are known when it is not connected, too.
            row = cluster[0].stores.catalog.peer(cluster.peer(3))
            assert row is not None
            assert row.domains == ("net:8.3.1.0/24",)
            result = await cluster[0].add_stream(one_block(), AddOptions(code=(1, 2)))
            status = await cluster[0].status(result.cid)
            for guarantee in (result.guarantee, status.guarantee):
                assert guarantee is not None
                assert guarantee.domains == 2

    run_deterministic(1, main)


async def one_block() -> AsyncIterator[bytes]:
    yield bytes(1000)


@pytest.mark.parametrize("role", [None, Role.GATEWAY])
def test_connections_of_any_number_do_not_crowd_out_storage_nodes(
    role: Role | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether they tell nothing of themselves or something else than that they store."""
    monkeypatch.setattr(candidates, "CANDIDATES_MAX", 9)

    async def main() -> None:
        async with open_cluster(1) as cluster:
            here = PeerAddresses(cluster.peer(0), tuple(cluster[0].network.addresses()))
            for number in range(4, 16):
                if role is None:
                    await cluster.hub.host(peer_number(number)).connect(here)
                else:
                    await cluster.start(number, NodeOptions(role=role))
            connected = cluster[0].network.connected()
            for some in (connected[:9], connected[9:]):
                await cluster[0]._publisher._candidates.introduce(some)
            for number in (1, 2, 3):
                await cluster.start(number)
            assert set(await find(cluster, 0)) == {cluster.peer(n) for n in (1, 2, 3)}

    run_deterministic(1, main)


def test_known_storage_nodes_are_found_behind_many_others_seen_since(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(candidates, "CANDIDATES_MAX", 9)

    async def nobody(routing: Routing, key: bytes) -> list[PeerAddresses]:
        return []

    async def main() -> None:
        async with open_cluster(4) as cluster:
            assert len(await find(cluster, 0)) == 3
            monkeypatch.setattr(Routing, "lately_closest_peers", nobody)
            for number in (1, 2, 3):
                await cluster[0].network.disconnect(cluster.peer(number))
            catalog = cluster[0].stores.catalog
            for number in range(100, 120):
                catalog.peer_terms(peer_number(number), "client", 0, [], 1e10)
            assert len(await find(cluster, 0)) == 3

    run_deterministic(1, main)


@pytest.mark.parametrize("known", [False, True])
def test_far_peers_are_waited_for_where_they_add_failure_domains(known: bool) -> None:
    """Three near ones in one rack, three far ones each a domain of its own: on the first look,
    and where only the catalog knows of the far ones."""

    async def main() -> None:
        async with open_cluster(1) as cluster:
            for number in (1, 2, 3):
                await cluster.start(number, NodeOptions(capacity_bytes=GIB, label="rack"))
            for number in (4, 5, 6):
                await cluster.start(number)
                cluster.hub.delay(cluster.peer(number), 0.3)
            if known:
                await find(cluster, 0)
                await trio.sleep(HELLO_KEPT_SECONDS + 0.01)
                for number in (4, 5, 6):
                    await cluster[0].network.disconnect(cluster.peer(number))
            assert set(await find(cluster, 0)) == {cluster.peer(n) for n in range(1, 7)}

    run_deterministic(1, main)


def test_a_silent_peer_is_waited_for_once() -> None:
    async def main() -> None:
        async with open_cluster(5) as cluster:
            assert len(await find(cluster, 0)) == 4
            await trio.sleep(HELLO_KEPT_SECONDS + 0.01)
            cluster.hub.pause(cluster.peer(3))
            finder = cluster[0]._publisher._candidates
            seconds: list[float] = []
            for _ in range(2):
                await cluster[0].routing.lately_closest_peers(KEY)  # the search is not measured
                begun = trio.current_time()
                assert len(await find(cluster, 0)) == 3
                seconds.append(trio.current_time() - begun)
                finder.forget([cluster.peer(1)])
            assert seconds[0] == pytest.approx(HELLO_SECONDS)
            assert seconds[1] < 1
            # One that answers again is waited for again.
            cluster.hub.resume(cluster.peer(3))
            await finder.introduce([cluster.peer(3)])
            cluster.hub.delay(cluster.peer(3), 0.3)
            await trio.sleep(HELLO_KEPT_SECONDS + 0.01)
            assert len(await find(cluster, 0)) == 4

    run_deterministic(1, main)
