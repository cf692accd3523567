"""The metric, the lookup and the provider store, each by itself."""

from __future__ import annotations

import math
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dstore.core.cid import CID
from dstore.core.kad_memory import Delays, Suspects
from dstore.core.kad_table import RoutingTable
from dstore.core.kademlia import (
    Lookup,
    ProviderStore,
    closest_of,
    common_prefix,
    distance,
    kad_id,
)
from dstore.core.peerid import PeerId
from dstore.limits import (
    KAD_DELAYS_KEPT,
    KAD_KEY_BYTES_MAX,
    KAD_QUERIES_MAX,
    KAD_SLOW_SECONDS_MAX,
    KAD_SLOW_SECONDS_MIN,
    KAD_SUSPECT_SECONDS,
    KAD_SUSPECT_SLOW_SECONDS_MIN,
    KAD_SUSPECTS_MAX,
    PROVIDER_SECONDS,
)
from dstore.testing.deterministic import peer_number

ids = st.integers(min_value=0, max_value=2**256 - 1)


PEERS = [peer_number(number) for number in range(400)]
OWN = peer_number(-1)


def by_distance(peers: Iterable[PeerId], target: int) -> list[PeerId]:
    return sorted(peers, key=lambda each: kad_id(each.binary) ^ target)


# --- Metric ----------------------------------------------------------------------------


def test_known_answers() -> None:
    # Computed by an independent implementation of the specification.
    peer_id = PeerId.parse("12D3KooWLU2znyJMtDiHArqAGbZn8CgUGp92kxDBtefftEEaHSZS")
    assert f"{kad_id(peer_id.binary):064x}" == (
        "e43d28f0996557c0d5571d75c62a57a59d7ac1d30a51ecedcdb9d5e4afa56100"
    )
    cid = CID.parse("bafybeihfg3d7rdltd43u3tfvncx7n5loqofbsobojcadtmokrljfthuc7y")
    assert f"{kad_id(cid.multihash):064x}" == (
        "d623250f3f660ab4c3a53d3c97b3f6a0194c548053488d093520206248253bcb"
    )


@given(ids, ids, ids)
def test_distance_is_a_metric_with_one_point_at_each_distance(a: int, b: int, c: int) -> None:
    assert distance(a, a) == 0
    assert distance(a, b) == distance(b, a)
    assert (distance(a, b) == 0) == (a == b)
    assert distance(a, c) <= distance(a, b) + distance(b, c)
    assert distance(a, b) ^ a == b


@given(ids, ids)
def test_common_prefix_is_what_the_bits_say(a: int, b: int) -> None:
    left, right = f"{a:0256b}", f"{b:0256b}"
    shared = next((i for i in range(256) if left[i] != right[i]), 256)
    assert common_prefix(a, b) == shared


@given(st.sets(st.sampled_from(PEERS)), ids, st.integers(0, 30))
def test_closest_of_sorts_by_distance(peers: set[PeerId], target: int, count: int) -> None:
    assert closest_of(peers, target, count) == by_distance(peers, target)[:count]


# --- Lookup ----------------------------------------------------------------------------


def simulate(
    neighbours: dict[PeerId, list[PeerId]],
    start: list[PeerId],
    target: int,
    silent: frozenset[PeerId] = frozenset(),
    count: int = 20,
) -> tuple[Lookup, float, int]:
    """A whole lookup: answers take 10 ms, silent peers none come from."""
    lookup = Lookup(target, OWN, count=count)
    lookup.learn(start)
    now, asked = 0.0, 0
    due: list[tuple[float, PeerId]] = []
    while not lookup.finished:
        chosen = lookup.ask(now)
        asked += len(chosen)
        due += [(now + 0.01, each) for each in chosen if each not in silent]
        if lookup.finished:
            break
        now = min([lookup.next_tick, *(when for when, _ in due)])
        assert now != float("inf"), "nothing left to wait for, and not finished"
        lookup.tick(now)
        for when, each in [entry for entry in due if entry[0] <= now]:
            due.remove((when, each))
            lookup.answered(each, closest_of(neighbours[each], target, 20), now)
    return lookup, now, asked


def mesh(seed: int, size: int = 200) -> dict[PeerId, list[PeerId]]:
    """Everybody knows what a routing table filled by all the others holds."""
    members = PEERS[:size]
    known: dict[PeerId, list[PeerId]] = {}
    for index, each in enumerate(members):
        table = RoutingTable(each, bucket_size=10)
        for other in members[(index + seed) % size :] + members:
            table.heard(other, 0)
        known[each] = list(table)
    return known


@pytest.mark.parametrize("key", [b"a", b"b", b"c", b"d", b"e"])
def test_lookup_finds_the_closest(key: bytes) -> None:
    neighbours = mesh(7)
    target = kad_id(key)
    lookup, seconds, asked = simulate(neighbours, PEERS[:3], target)
    assert lookup.closest() == by_distance(neighbours, target)[:20]
    assert seconds < 0.1
    assert asked < 60
    assert lookup.late() == []


@pytest.mark.parametrize("key", [b"a", b"b", b"c", b"d", b"e"])
def test_lookup_passes_silent_peers_by(key: bytes) -> None:
    neighbours = mesh(3)
    silent = frozenset(PEERS[1:200:3])
    target = kad_id(key)
    lookup, seconds, _ = simulate(neighbours, PEERS[:3], target, silent, count=8)
    found = lookup.closest()
    alive = by_distance([each for each in neighbours if each not in silent], target)
    assert found == alive[:8]
    assert seconds < 2
    assert silent.issuperset(lookup.late())


def test_lookup_asks_no_more_at_once_than_it_may() -> None:
    lookup = Lookup(0, OWN, concurrency=lambda: 3)
    lookup.learn(PEERS[:50])
    first = lookup.ask(0)
    assert first == by_distance(PEERS[:50], 0)[:3]
    assert lookup.ask(0) == []
    lookup.failed(first[0])
    assert len(lookup.ask(0)) == 1
    lookup.tick(KAD_SLOW_SECONDS_MAX)
    assert len(lookup.ask(1)) == 3, "late ones make room"
    lookup.answered(first[1], [], 1.1)
    assert first[1] in lookup.closest(), "a late answer is still an answer"


def test_a_lookup_that_is_ended_early_tells_who_was_not_heard() -> None:
    lookup = Lookup(0, OWN, count=5, concurrency=lambda: 2)
    nearest = by_distance(PEERS[:50], 0)
    lookup.learn(PEERS[:50])
    one, two = lookup.ask(0)
    assert lookup.unheard() == nearest[:5]
    lookup.answered(one, [], 0.01)
    lookup.failed(two)
    assert lookup.unheard() == nearest[2:6]


def test_lookup_waits_for_the_slow_while_nobody_answered() -> None:
    lookup = Lookup(0, OWN)
    lookup.learn(PEERS[:2])
    one, two = lookup.ask(0)
    lookup.tick(1)
    assert not lookup.finished
    lookup.failed(one)
    assert not lookup.finished
    lookup.answered(two, [], 1.5)
    assert lookup.finished
    assert lookup.closest() == [two]


def test_lookup_of_nobody_is_finished_and_own_id_is_never_asked() -> None:
    lookup = Lookup(0, OWN)
    lookup.learn([OWN])
    assert lookup.ask(0) == []
    assert lookup.finished
    assert lookup.closest() == []


def test_suspects_are_waited_for_less() -> None:
    suspects = set(by_distance(PEERS[:8], 0)[:3])
    lookup = Lookup(0, OWN, suspect=suspects.__contains__)
    lookup.learn(PEERS[:8])
    assert set(lookup.ask(0)) == set(PEERS[:8])
    for each in set(PEERS[:8]) - suspects:
        lookup.answered(each, [], 0.01)
    assert not lookup.finished
    assert lookup.next_tick == KAD_SUSPECT_SLOW_SECONDS_MIN
    early = suspects.pop()
    lookup.answered(early, [], 0.02)
    assert lookup.next_tick == KAD_SUSPECT_SLOW_SECONDS_MIN
    slower = suspects.pop()
    lookup.answered(slower, [], 0.08)
    assert lookup.next_tick == pytest.approx(0.08), "it follows the answers, of suspects too"
    lookup.tick(0.081)
    assert lookup.finished
    assert set(lookup.late()) == suspects
    assert len(lookup.closest()) == 7


def test_patience_follows_the_answers() -> None:
    lookup = Lookup(0, OWN)
    lookup.learn(PEERS[:3])
    one, two, three = lookup.ask(0)
    assert lookup.patience(three) == KAD_SLOW_SECONDS_MIN
    lookup.answered(one, [], 0.2)
    assert lookup.patience(three) == pytest.approx(0.4), "twice what most answers take"
    assert lookup.next_tick == pytest.approx(0.2), "later than that is overdue"
    lookup.tick(0.2)
    assert lookup.next_tick == pytest.approx(0.4)
    lookup.answered(two, [], 0.39)
    assert lookup.patience(three) == pytest.approx(0.78)
    lookup.timed(three, 2.0)
    assert lookup.patience(three) == KAD_SLOW_SECONDS_MAX


def test_beside_an_overdue_peer_another_is_asked_and_its_late_answer_counts() -> None:
    delays = Delays()
    for _ in range(20):
        delays.note(0.1)
    near = by_distance(PEERS[:4], 0)
    lookup = Lookup(0, OWN, count=2, concurrency=lambda: 2, delays=delays)
    lookup.learn(near)
    assert lookup.ask(0) == near[:2]
    assert lookup.ask(0) == []
    assert lookup.next_tick == pytest.approx(0.1)
    lookup.tick(0.1)
    assert lookup.ask(0.1) == near[2:], "both are overdue"
    lookup.answered(near[2], [], 0.15)
    lookup.answered(near[3], [], 0.15)
    assert not lookup.finished, "the nearest may answer yet"
    assert lookup.next_tick == pytest.approx(KAD_SLOW_SECONDS_MIN)
    lookup.answered(near[0], [], 0.2)
    lookup.tick(lookup.next_tick)
    assert lookup.finished
    assert lookup.closest() == [near[0], near[2]]
    assert lookup.late() == [near[1]]


def test_an_answer_after_the_end_is_timed_and_not_waited_for() -> None:
    # Two answers can come at once: the first may end the search before its loop ticks again.
    delays = Delays()
    lookup = Lookup(0, OWN, delays=delays)
    lookup.learn(PEERS[:2])
    first, second = lookup.ask(0)
    lookup.answered(first, [], 0.2)
    lookup.timed(second, 0.3)
    lookup.tick(60)
    assert lookup.next_tick == math.inf
    assert lookup.late() == []
    assert delays.high == pytest.approx(0.3)


def test_where_silent_peers_left_gaps_the_farthest_found_are_asked_around() -> None:
    near = by_distance(PEERS[:30], 0)
    lookup = Lookup(0, OWN, count=4, widen=True)
    lookup.learn(near[:6])
    lookup.ask(0)
    assert lookup.ask_around(0) == []
    for each in near[1:5]:
        lookup.answered(each, [], 0.1)
    assert lookup.ask_around(0.1) == [], "the nearest may answer yet"
    lookup.failed(near[0])
    assert lookup.ask_around(0.1) == [near[4], near[3]]
    assert not lookup.finished
    lookup.answered_around(near[4], [near[7]])
    lookup.tick(0.1 + lookup.patience(near[3]))
    assert lookup.finished, "who does not answer holds up nobody, and nobody nearer was named"
    assert lookup.ask_around(1) == []


def test_without_gaps_nobody_is_asked_around() -> None:
    lookup = Lookup(0, OWN, count=4, widen=True)
    lookup.learn(PEERS[:4])
    for each in lookup.ask(0):
        lookup.answered(each, [], 0.1)
    assert lookup.ask_around(0.1) == []
    assert lookup.finished


def test_the_memory_of_delays_and_suspects_is_bounded() -> None:
    delays, suspects = Delays(), Suspects()
    assert delays.high == 0
    for number in range(1, 101):
        delays.note(number / 100)
    assert delays.high == 0.96
    for _ in range(KAD_DELAYS_KEPT):
        delays.note(0.5)
    assert delays.high == 0.5, "only the latest count"
    for number in range(KAD_SUSPECTS_MAX + 1):
        suspects.add(PeerId(b"\x12\x20" + number.to_bytes(32, "big")), 0)
    assert len(suspects) == KAD_SUSPECTS_MAX
    suspects.add(PEERS[0], 1)
    assert suspects.has(PEERS[0], KAD_SUSPECT_SECONDS)
    assert not suspects.has(PEERS[0], 1 + KAD_SUSPECT_SECONDS)
    suspects.discard(PEERS[0])
    assert not suspects.has(PEERS[0], 1)


def test_endless_answers_end() -> None:
    # Each answer names twenty closer peers that nobody heard of: a liar's maze.
    lookup = Lookup(0, OWN)
    lookup.learn(PEERS[:20])
    made, asked, now = 0, 0, 0.0
    while not lookup.finished:
        for each in lookup.ask(now):
            asked += 1
            fresh = [peer_number(10_000 + made + i) for i in range(20)]
            made += 20
            lookup.answered(each, fresh, now)
    assert asked <= KAD_QUERIES_MAX


# --- Provider store --------------------------------------------------------------------


def test_providers_expire_and_are_renewed() -> None:
    store = ProviderStore(seconds=100)
    assert store.add(b"k", PEERS[0], ("/ip4/1.2.3.4/tcp/1",), 0)
    assert store.add(b"k", PEERS[1], (), 50)
    assert store.add(b"k", PEERS[0], ("/ip4/1.2.3.4/tcp/2",), 60)
    assert [r.peer for r in store.providers(b"k", 149)] == [PEERS[0], PEERS[1]]
    assert store.providers(b"k", 0)[0].addresses == ("/ip4/1.2.3.4/tcp/2",)
    assert [r.peer for r in store.providers(b"k", 150)] == [PEERS[0]]
    assert store.expire(155) == 1
    assert len(store) == 1
    assert store.expire(1000) == 1
    assert (len(store), store.keys) == (0, 0)


def test_bounds_refuse_newcomers_and_keep_seniors() -> None:
    store = ProviderStore(keys_max=3, keys_per_peer_max=2, providers_per_key_max=2, seconds=100)
    assert store.add(b"a", PEERS[0], (), 0)
    assert store.add(b"b", PEERS[0], (), 0)
    assert not store.add(b"c", PEERS[0], (), 1), "one peer's share"
    assert store.add(b"a", PEERS[0], (), 1), "renewing is not one more"
    assert store.add(b"a", PEERS[1], (), 1)
    assert not store.add(b"a", PEERS[2], (), 1), "one key's share"
    assert store.add(b"c", PEERS[1], (), 1)
    assert not store.add(b"d", PEERS[3], (), 1), "all keys"
    assert [r.peer for r in store.providers(b"a", 1)] == PEERS[:2]
    store.discard(b"b", PEERS[0])
    store.discard(b"b", PEERS[0])
    assert store.add(b"d", PEERS[3], (), 1)
    assert store.add(b"e", PEERS[4], (), 101.5), "what expired makes room"


@pytest.mark.parametrize("key", [b"", bytes(KAD_KEY_BYTES_MAX + 1)])
def test_absurd_keys_are_refused(key: bytes) -> None:
    assert not ProviderStore().add(key, PEERS[0], (), 0)


def test_saved_records_keep_what_is_left_of_their_life() -> None:
    store = ProviderStore(seconds=100)
    assert store.add(b"k", PEERS[1], (), 1000, seconds=5000), "never more than a fresh one"
    assert store.add(b"k", PEERS[0], (), 1000, seconds=30)
    assert not store.add(b"k", PEERS[2], (), 1000, seconds=0)
    assert [(key, r.expires) for key, r in store.records(1000)] == [(b"k", 1030), (b"k", 1100)]
    assert [r.peer for _, r in store.records(1050)] == [PEERS[1]]


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5), st.integers(0, 30), st.booleans())))
def test_store_agrees_with_a_plain_model(steps: list[tuple[int, int, int, bool]]) -> None:
    store = ProviderStore(keys_max=4, keys_per_peer_max=3, providers_per_key_max=3, seconds=50)
    model: dict[tuple[bytes, PeerId], float] = {}
    now = 0.0
    for key_number, number, pause, discard in steps:
        now += pause
        key, each = bytes([key_number + 1]), PEERS[number]
        model = {entry: until for entry, until in model.items() if until > now}
        if discard:
            store.discard(key, each)
            model.pop((key, each), None)
        else:
            room = (
                len({k for k, _ in model} | {key}) <= 4
                and sum(p == each for _, p in model) < 3
                and sum(k == key for k, _ in model) < 3
            )
            taken = store.add(key, each, (), now)
            assert taken == (room or (key, each) in model)
            if taken:
                model[key, each] = now + 50
        store.expire(now)
        assert {(k, r.peer): r.expires for k, r in store.records(now)} == model
        assert len(store) == len(model)
        assert store.keys == len({k for k, _ in model})


def test_records_are_bounded_in_all_and_those_of_one_peer_share_what_is_the_same() -> None:
    store = ProviderStore(records_max=3)
    addresses = ("/ip4/192.0.2.1/tcp/4001",)
    for number in range(3):
        again = PeerId(bytes(bytearray(PEERS[1].binary)))  # as read from another message
        assert store.add(b"key %d" % number, again, ("".join(list(addresses[0])),), 0.0)
    assert not store.add(b"key 9", PEERS[2], addresses, 0.0)
    assert store.add(b"key 0", PEERS[1], addresses, 1.0), "said again, it is no new one"
    found = [record for _, record in store.records(1.0)]
    assert len({id(record.peer) for record in found}) == 1
    assert len({id(record.addresses) for record in found}) == 1
    moved = ("/ip4/192.0.2.2/tcp/4001",)
    assert store.add(b"key 1", PEERS[1], moved, 2.0)
    assert store.providers(b"key 1", 2.0)[0].addresses == moved
    assert store.providers(b"key 2", 2.0)[0].addresses == addresses
    store.expire(float(PROVIDER_SECONDS) + 3)
    assert not store._said
