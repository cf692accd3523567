"""Routing on networks in memory: lookups, providers, the table, with and without faults."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Sequence

import pytest
import trio
from trio.testing import MockClock

from dstore.core.kad_messages import KadMessage
from dstore.core.kademlia import closest_of, kad_id
from dstore.core.peerid import PeerId
from dstore.limits import (
    DIAL_SECONDS,
    KAD_BUCKET,
    KAD_FAILURES_MAX,
    KAD_FOUND_SECONDS,
    KAD_LOOKUP_SECONDS,
    KAD_POLL_SECONDS,
    KAD_POOLED_IDLE_SECONDS,
    KAD_POOLED_PER_PEER_MAX,
    KAD_REFRESH_ANSWERS,
    KAD_SLOW_SECONDS_MAX,
    KAD_SUSPECT_SECONDS,
)
from dstore.network import routing as routing_module
from dstore.network.kad_requests import RequestStreams
from dstore.network.kad_search import Search
from dstore.network.routing import ProviderEntry, Routing, RoutingOptions, open_routing
from dstore.network.streams import PeerAddresses
from dstore.testing.deterministic import peer_number, simulated_runtime
from dstore.testing.routing_cluster import routing_cluster
from tests.unit.network.hosts import ECHO, echo

PROTOCOL = RoutingOptions().protocol


def key_of(number: int) -> bytes:
    """A multihash."""
    return b"\x12\x20" + hashlib.sha256(f"key {number}".encode()).digest()


def recall(found: Iterable[PeerAddresses], key: bytes, alive: Iterable[PeerId]) -> float:
    """How much of the 20 truly closest was found."""
    wanted = set(closest_of(alive, kad_id(key), 20))
    return len(wanted & {each.peer for each in found}) / len(wanted)


def noted(monkeypatch: pytest.MonkeyPatch, of: Routing | None = None) -> list[PeerId]:
    """Whom anybody, or `of`, asks something from now on, as they are asked."""
    asked: list[PeerId] = []
    exchange_all = RequestStreams.exchange_all

    async def counted(
        streams: RequestStreams, target: PeerAddresses, requests: Sequence[KadMessage]
    ) -> list[KadMessage]:
        if of is None or streams is of._requests:
            asked.append(target.peer)
        return await exchange_all(streams, target, requests)

    monkeypatch.setattr(RequestStreams, "exchange_all", counted)
    return asked


async def test_a_refresh_among_peers_that_are_all_known_asks_few_of_them(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A few near this node, and in each part of the key space: nobody names anybody new.  Where
    somebody was not heard from for long, more are asked, to find out who is silent."""
    async with routing_cluster(40) as cluster:
        for routing in cluster.routings:
            await routing.refresh()
        routing, others = cluster.routings[7], [h.peer_id for h in cluster.hosts]
        others.remove(cluster.id(7))
        assert not routing._table.lacking(others)  # the table has all that it wants
        asked = noted(monkeypatch)
        await routing.refresh()
        assert KAD_REFRESH_ANSWERS <= len(asked) <= 2 * KAD_REFRESH_ANSWERS
        few = len(asked)
        found = await routing.closest_peers(key_of(1))
        assert recall(found, key_of(1), others) == 1
        monkeypatch.setattr(routing_module, "KAD_REFRESH_SECONDS", -1)  # all that was is long ago
        asked.clear()
        await routing.refresh()
        assert len(asked) >= few + KAD_BUCKET


async def test_who_joins_meets_those_it_is_told_of_and_asks_few_of_them(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with routing_cluster(18) as cluster:
        dead = cluster.id(9)
        cluster.hub.pause(dead)
        newcomer = await cluster.start()
        asked = noted(monkeypatch, newcomer)
        before = trio.current_time()
        await newcomer.bootstrap([cluster.where(0)])
        # One that says nothing is waited for as long as any dial.
        assert trio.current_time() - before <= DIAL_SECONDS + KAD_SLOW_SECONDS_MAX
        assert newcomer.table_size == 17
        assert dead not in newcomer._table
        # The first names everybody, and some in a row nobody else; the silent one may be asked.
        assert len(asked) in (1 + KAD_REFRESH_ANSWERS, 2 + KAD_REFRESH_ANSWERS)
        before = trio.current_time()
        await newcomer.refresh()  # it is remembered
        assert trio.current_time() - before < DIAL_SECONDS / 2


async def test_who_meets_a_peer_of_its_own_network_asks_no_more_than_that_peer(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One who tells of others is a reason to look for them; one who knows the same is none."""
    async with routing_cluster(12) as cluster:
        routing = cluster.routings[4]
        await routing.refresh()
        asked = noted(monkeypatch)
        assert await routing.bootstrap([cluster.where(7)]) == 1
        assert asked == [cluster.id(7)]
        stranger = cluster.id(9)
        routing._table.remove(stranger)
        await routing.bootstrap([cluster.where(7)])
        assert stranger in routing._table


@pytest.mark.slow
async def test_fifty_nodes_a_third_of_them_silent(autojump_clock: MockClock) -> None:
    chance = random.Random(5)
    async with routing_cluster(50) as cluster:
        everybody = [host.peer_id for host in cluster.hosts]
        for number in range(8):
            others = [each for each in everybody if each != cluster.id(number)]
            before = trio.current_time()
            found = await cluster.routings[number].closest_peers(key_of(number))
            assert trio.current_time() - before < 0.2
            assert recall(found, key_of(number), others) == 1
            assert found == sorted(
                found, key=lambda each: kad_id(each.peer.binary) ^ kad_id(key_of(number))
            )
            assert all(each.addresses for each in found)
        assert await cluster.routings[1].provide(key_of(1)) == 20

        silent = set(chance.sample(range(2, 50), 15))
        for number in silent:
            cluster.hub.pause(cluster.id(number))
        alive = [number for number in range(50) if number not in silent]
        recalls = []
        for number in alive[:12]:
            others = [cluster.id(n) for n in alive if n != number]
            key = key_of(100 + number)
            before = trio.current_time()
            found = await cluster.routings[number].closest_peers(key)
            assert trio.current_time() - before < 2
            recalls.append(recall(found, key, others))

            before = trio.current_time()
            providers = [p async for p in cluster.routings[number].find_providers(key_of(1))]
            assert trio.current_time() - before < 2
            expected = [] if number == 1 else [cluster.id(1)]
            assert [p.peer for p in providers] == expected
        assert sum(recalls) / len(recalls) > 0.9
        assert min(recalls) > 0.6

        before = trio.current_time()
        assert await cluster.routings[alive[3]].provide(key_of(2)) >= 18
        assert trio.current_time() - before < 4


async def test_providers_are_found_once_each_wherever_they_are_known(
    autojump_clock: MockClock,
) -> None:
    async with routing_cluster(12) as cluster:
        key = key_of(0)
        for number in range(1, 6):
            assert await cluster.routings[number].provide(key) == 11
        # Its own records, and everybody else's: five providers, though all know all of them.
        found = [p async for p in cluster.routings[7].find_providers(key)]
        assert {p.peer: p for p in found} == {cluster.id(n): cluster.where(n) for n in range(1, 6)}
        assert len(found) == 5
        # A provider does not find itself.
        found = [p async for p in cluster.routings[3].find_providers(key)]
        assert cluster.id(3) not in [p.peer for p in found]
        assert len(found) == 4
        found = [p async for p in cluster.routings[8].find_providers(key, count=2)]
        assert len(found) == 2
        assert [p async for p in cluster.routings[8].find_providers(key_of(1))] == []


async def test_local_records_come_first_and_the_network_is_asked_all_the_same(
    autojump_clock: MockClock,
) -> None:
    async with routing_cluster(6) as cluster:
        key = key_of(0)
        await cluster.routings[1].provide(key)
        own = PeerAddresses(peer_number(77), ("/ip4/10.0.0.1/tcp/1",))
        assert cluster.routings[5].import_providers([ProviderEntry(key, own, 60)]) == 1
        search = cluster.routings[5].find_providers(key)
        assert (await anext(search)).peer in (own.peer, cluster.id(1))
        assert len([p async for p in search]) == 1
        # Another node's search meets the record that only node 5 holds.
        found = [p.peer async for p in cluster.routings[2].find_providers(key)]
        assert sorted(found) == sorted([own.peer, cluster.id(1)])


async def test_a_search_streams_ends_at_its_deadline_and_may_be_left(
    autojump_clock: MockClock,
) -> None:
    async with routing_cluster(8) as cluster:
        key = key_of(0)
        await cluster.routings[1].provide(key)
        for number in range(2, 8):
            cluster.hub.pause(cluster.id(number))
        routing = cluster.routings[0]
        before = trio.current_time()
        async for provider in routing.find_providers(key):
            assert provider.peer == cluster.id(1)
            break
        assert trio.current_time() - before < 0.1, "it did not wait for the silent"

        cluster.hub.pause(cluster.id(1))
        before = trio.current_time()
        search = routing.find_providers(key_of(1), deadline=before + 0.75)
        assert [p async for p in search] == []
        assert trio.current_time() - before == pytest.approx(0.75, abs=0.01)

        search = routing.find_providers(key_of(2))
        search.close()
        before = trio.current_time()
        assert [p async for p in search] == []
        assert trio.current_time() == before


async def test_nobody_answers_within_the_deadline(autojump_clock: MockClock) -> None:
    async with routing_cluster(8) as cluster:
        for number in range(1, 8):
            cluster.hub.pause(cluster.id(number))
        routing = cluster.routings[0]
        for attempt in range(4):
            before = trio.current_time()
            assert await routing.closest_peers(key_of(attempt)) == []
            assert await routing.provide(key_of(attempt)) == 0
            assert await routing.find_peer(peer_number(99)) is None
            assert trio.current_time() - before < 3 * KAD_LOOKUP_SECONDS
        assert routing.table_size == 0, "who never answers loses its place"
        for number in range(1, 8):
            cluster.hub.resume(cluster.id(number))
        await trio.sleep(60)
        assert routing.table_size > 0
        assert len(await routing.closest_peers(key_of(0))) == 7


async def test_clients_search_and_provide_and_are_in_no_table(autojump_clock: MockClock) -> None:
    async with routing_cluster(6) as cluster:
        client = await cluster.start(RoutingOptions(mode="client"))
        assert await client.bootstrap([cluster.where(0)]) == 1
        assert client.table_size == 6
        assert await client.provide(key_of(0)) == 6
        await trio.sleep(3 * KAD_POLL_SECONDS)
        assert [routing.table_size for routing in cluster.routings[:6]] == [5] * 6
        assert not await cluster.hosts[0].speaks(cluster.id(6), PROTOCOL)
        found = [p async for p in cluster.routings[2].find_providers(key_of(0))]
        assert found == [cluster.where(6)]
        assert client.records == 0
        # And it is found by its id: those connected to it say so.
        cluster.hub.sever(cluster.id(3), cluster.id(6))
        assert await cluster.routings[3].find_peer(cluster.id(6)) == cluster.where(6)


async def test_find_peer(autojump_clock: MockClock) -> None:
    async with routing_cluster(30) as cluster:
        stranger = await cluster.start()
        assert await stranger.find_peer(cluster.id(7)) is None, "nobody to ask"
        # One acquaintance is enough.
        stranger.add_peer(cluster.where(4))
        assert await stranger.find_peer(cluster.id(7)) == cluster.where(7)
        assert await stranger.find_peer(cluster.id(30)) == cluster.where(30)
        assert await stranger.find_peer(peer_number(99)) is None
        # Connected: no question asked.
        opened = cluster.hub.streams_opened
        assert await cluster.routings[7].find_peer(cluster.id(0)) == cluster.where(0)
        assert cluster.hub.streams_opened == opened


async def test_newcomers_get_into_the_tables_of_those_they_meet(autojump_clock: MockClock) -> None:
    async with routing_cluster(5) as cluster:
        for _ in range(5):
            routing = await cluster.start()
            await cluster.hosts[-1].connect(cluster.where(0))
            assert len(await routing.closest_peers(key_of(0))) >= 5
        await trio.sleep(2 * KAD_POLL_SECONDS)
        assert [routing.table_size for routing in cluster.routings] == [9] * 10


async def test_who_has_only_connected_is_named_to_others_at_once(
    autojump_clock: MockClock,
) -> None:
    async with routing_cluster(1) as cluster:
        await cluster.start()
        await cluster.hosts[1].connect(cluster.where(0))
        seeker = await cluster.start()
        seeker.add_peer(cluster.where(0))
        found = await seeker.closest_peers(key_of(0))
        assert {each.peer for each in found} == {cluster.id(0), cluster.id(1)}


async def test_a_client_that_comes_back_as_a_server_is_one_at_once(
    autojump_clock: MockClock,
) -> None:
    async with routing_cluster(2) as cluster:
        peer = cluster.hub.host(peer_number(9))
        await peer.connect(cluster.where(0))
        await trio.sleep(KAD_POLL_SECONDS / 2)
        assert cluster.routings[0].table_size == 1
        cluster.hub.kill(peer.peer_id)
        peer = cluster.hub.host(peer.peer_id)
        async with open_routing(peer, RoutingOptions(), simulated_runtime(9)):
            await peer.connect(cluster.where(0))
            await trio.testing.wait_all_tasks_blocked()
            assert cluster.routings[0].table_size == 2


async def test_who_says_that_it_serves_no_more_leaves_the_table(autojump_clock: MockClock) -> None:
    async with routing_cluster(3) as cluster:
        leaver = cluster.hosts[1]
        assert leaver.peer_id in cluster.routings[0]._table
        del leaver._handlers[PROTOCOL]
        leaver.set_handler(ECHO, echo)  # connected peers are told
        assert leaver.peer_id not in cluster.routings[0]._table
        assert leaver.peer_id not in cluster.routings[2]._table
        cluster.hub.sever(cluster.id(0), cluster.id(2))
        assert cluster.id(2) in cluster.routings[0]._table, "who leaves without a word may be back"


async def test_who_was_given_up_while_it_was_busy_is_taken_back(autojump_clock: MockClock) -> None:
    async with routing_cluster(2) as cluster:
        for _ in range(KAD_FAILURES_MAX):
            cluster.routings[0]._peers.unanswered(cluster.id(1))
        await trio.sleep(KAD_POLL_SECONDS)
        assert cluster.routings[0].table_size == 0
        await trio.sleep(KAD_SUSPECT_SECONDS)
        assert cluster.routings[0].table_size == 1


async def test_bootstrap_counts_who_answered_and_tries_again(autojump_clock: MockClock) -> None:
    async with routing_cluster(2) as cluster:
        late = PeerAddresses(peer_number(3), ("/ip4/127.0.0.1/tcp/10003",))
        absent = PeerAddresses(peer_number(9), ("/ip4/127.0.0.1/tcp/9",))
        routing = await cluster.start()
        assert await routing.bootstrap([late, absent, cluster.where(2)]) == 0
        assert routing.table_size == 0
        await cluster.start()  # node 3
        await trio.sleep(2 * KAD_POLL_SECONDS)
        assert routing.table_size == 1
        assert await routing.bootstrap([late, absent, cluster.where(0)]) == 2
        assert routing.table_size == 3


async def test_many_introductions_at_once_are_one_or_two_refreshes(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with routing_cluster(12) as cluster:
        routing = await cluster.start()
        refreshed = 0
        refresh = Routing.refresh

        async def counted(one: Routing) -> None:
            nonlocal refreshed
            refreshed += one is routing
            await refresh(one)

        monkeypatch.setattr(Routing, "refresh", counted)
        async with trio.open_nursery() as nursery:
            for number in range(12):
                nursery.start_soon(routing.bootstrap, [cluster.where(number)])
        assert 1 <= refreshed <= 2
        assert routing.table_size == 12


async def test_records_expire_and_survive_a_restart_by_export(autojump_clock: MockClock) -> None:
    options = RoutingOptions(provider_seconds=600)
    async with routing_cluster(4, options=options) as cluster:
        key = key_of(0)
        assert await cluster.routings[1].provide(key) == 3
        await trio.sleep(300)
        entries = cluster.routings[2].export_providers()
        assert [(e.key, e.provider) for e in entries] == [(key, cluster.where(1))]
        assert entries[0].seconds_left == pytest.approx(300, abs=1)

        newcomer = await cluster.start()
        assert newcomer.import_providers(entries) == 1
        assert newcomer.records == 1
        await trio.sleep(300 + 10)
        assert [routing.records for routing in cluster.routings] == [0] * 5
        await cluster.join([4])
        assert [p async for p in newcomer.find_providers(key)] == []


async def test_outbound_streams_are_used_again(autojump_clock: MockClock) -> None:
    async with routing_cluster(8) as cluster:
        await trio.sleep(2 * KAD_POLL_SECONDS)
        routing = cluster.routings[3]
        await routing.closest_peers(key_of(0))
        opened = cluster.hub.streams_opened
        for number in range(10):
            assert await routing.provide(key_of(number)) == 7
        assert cluster.hub.streams_opened == opened
        assert routing.streams_kept <= 7 * KAD_POOLED_PER_PEER_MAX
        # Lost under us: a new one is opened, and nobody is blamed.
        for number in (1, 2, 4):
            cluster.hub.sever(cluster.id(3), cluster.id(number))
        assert await routing.provide(key_of(0)) == 7
        await trio.sleep(KAD_POOLED_IDLE_SECONDS + 2 * KAD_POLL_SECONDS)
        assert routing.streams_kept == 0


async def test_many_keys_share_lookups_and_reach_the_truly_closest(
    autojump_clock: MockClock,
) -> None:
    keys = [key_of(number) for number in range(100)]
    async with routing_cluster(40) as cluster:
        everybody = [host.peer_id for host in cluster.hosts]
        told = await cluster.routings[1].provide_many(keys)
        assert all(20 <= each.told == each.confirmed < 30 for each in told.values())
        for number, routing in enumerate(cluster.routings):
            kept = {entry.key for entry in routing.export_providers()}
            true = {k for k in keys if cluster.id(number) in closest_of(everybody, kad_id(k), 20)}
            assert kept >= true
        for number in range(3, 15):  # silent from here on: told in vain, and told again
            cluster.hub.pause(cluster.id(number))
        more = await cluster.routings[1].provide_many(
            [key_of(number) for number in range(100, 150)]
        )
        assert all(each.enough for each in more.values())
        assert await cluster.routings[1].provide_many([]) == {}


async def test_a_search_of_a_moment_ago_is_an_answer_until_something_changes(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    searched: list[bytes] = []
    run = Search.run

    async def counted(search: Search, deadline: float, nursery: trio.Nursery) -> None:
        searched.append(search._request.key)
        await run(search, deadline, nursery)

    async with routing_cluster(8) as cluster:
        await trio.sleep(2 * KAD_POLL_SECONDS)
        monkeypatch.setattr(Search, "run", counted)
        routing = cluster.routings[3]
        assert len(await routing.closest_peers(key_of(0))) == 7
        for number in range(1, 5):
            assert await routing.provide(key_of(number)) == 7
            found = await routing.lately_closest_peers(key_of(number))
            assert recall(found, key_of(number), [cluster.id(n) for n in range(8) if n != 3]) == 1
        assert searched == [key_of(0)]
        # Somebody has come.
        await cluster.start()
        await cluster.join([8])
        await cluster.routings[8].closest_peers(cluster.id(3).binary)
        searched.clear()
        assert await routing.provide(key_of(5)) == 8
        assert searched == [key_of(5)]
        # Somebody has fallen silent: once that was noticed it is not relied on any more.
        cluster.hub.pause(cluster.id(1))
        assert await routing.provide(key_of(6)) == 7
        assert searched == [key_of(5)]
        assert await routing.provide(key_of(7)) == 7
        assert searched == [key_of(5), key_of(7)]
        cluster.hub.resume(cluster.id(1))
        await trio.sleep(KAD_FOUND_SECONDS)
        assert len(await routing.lately_closest_peers(key_of(8))) == 8
        assert searched[2:] == [key_of(8)]


async def test_bad_keys_are_the_callers_fault(autojump_clock: MockClock) -> None:
    async with routing_cluster(2) as cluster:
        for key in (b"", bytes(129)):
            with pytest.raises(ValueError, match="DHT key"):
                await cluster.routings[0].provide(key)


async def test_closed_routing_answers_nobody(autojump_clock: MockClock) -> None:
    async with routing_cluster(3) as cluster:
        await cluster.stack.aclose()
        routing = await cluster.start()
        await routing.bootstrap([cluster.where(0)])
        assert await routing.closest_peers(key_of(0)) == []
        assert await routing.find_peer(cluster.id(1)) is None
