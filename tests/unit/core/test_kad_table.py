"""The routing table of a DHT node, by itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from hypothesis import given
from hypothesis import strategies as st

from dstore.core.diversity import subnets_of
from dstore.core.kad_table import LookAround, RoutingTable
from dstore.core.kademlia import common_prefix, kad_id
from dstore.core.peerid import PeerId
from dstore.limits import KAD_BUCKET, KAD_BUCKET_SOUGHT, KAD_REFRESH_ANSWERS
from dstore.testing.deterministic import peer_number

PEERS = [peer_number(number) for number in range(400)]
OWN = peer_number(-1)


def by_distance(peers: Iterable[PeerId], target: int) -> list[PeerId]:
    return sorted(peers, key=lambda each: kad_id(each.binary) ^ target)


@given(st.lists(st.tuples(st.sampled_from(["heard", "failed", "remove"]), st.integers(0, 60))))
def test_table_keeps_its_bounds_and_its_seniors(steps: list[tuple[str, int]]) -> None:
    table = RoutingTable(OWN, bucket_size=3, failures_max=2)
    failures: dict[PeerId, int] = {}
    for now, (step, number) in enumerate(steps):
        each, before = PEERS[number], set(table)
        if step == "heard":
            inside = table.heard(each, now)
            assert inside == (each in table)
            assert before <= set(table), "a newcomer displaced somebody"
            failures.pop(each, None)
        elif step == "failed":
            failures[each] = failures.get(each, 0) + 1
            table.failed(each)
            if each in before:
                gone = before - set(table)
                assert gone <= {each}
                assert failures[each] >= 2 or not gone
        else:
            table.remove(each)
            assert each not in table
            assert len(table) >= len(before) - 1
        if each not in table:
            failures.pop(each, None)
        prefixes = [common_prefix(kad_id(OWN.binary), kad_id(p.binary)) for p in table]
        assert all(prefixes.count(prefix) <= 3 for prefix in prefixes)
        assert len(table) == len(list(table)) == len(set(table))
        assert OWN not in table


def test_a_full_bucket_lets_the_latest_waiting_in_when_one_fails() -> None:
    table = RoutingTable(OWN, bucket_size=2, failures_max=2)
    bucket = [p for p in PEERS if common_prefix(kad_id(OWN.binary), kad_id(p.binary)) == 0][:5]
    first, second, third, fourth, fifth = bucket
    assert table.heard(first, 0)
    assert table.heard(second, 1)
    assert not any(table.heard(each, 2) for each in (third, fourth, fifth))
    table.failed(first)
    assert first in table, "one failure costs nobody its place"
    table.failed(first)
    assert set(table) == {second, fifth}
    table.remove(fifth)
    assert set(table) == {second, fourth}, "the third was one more than may wait"
    table.remove(fourth)
    assert set(table) == {second}


def test_an_answer_clears_failures_and_own_id_is_never_in() -> None:
    table = RoutingTable(OWN, failures_max=2)
    table.heard(PEERS[0], 0)
    for now in range(5):
        table.failed(PEERS[0])
        table.heard(PEERS[0], now)
    assert PEERS[0] in table
    assert not table.heard(OWN, 0)


def test_closest_prefers_peers_that_answer() -> None:
    table = RoutingTable(OWN)
    for each in PEERS[:10]:
        table.heard(each, 0)
    target = kad_id(b"key")
    ordered = by_distance(PEERS[:10], target)
    assert table.closest(target, 4) == ordered[:4]
    table.failed(ordered[0])
    assert table.closest(target, 4) == ordered[1:5]
    assert table.closest(target, 20) == [*ordered[1:], ordered[0]]


def test_silent_peers_and_room_are_found_for_refresh() -> None:
    table = RoutingTable(OWN, bucket_size=2)
    for now, each in enumerate(PEERS[:30]):
        table.heard(each, now)
    assert all(each not in PEERS[5:30] for each in table.unheard_since(5, 10))
    inside = [each for each in PEERS[:5] if each in table]
    assert table.unheard_since(5, 2) == inside[:2]
    prefixes = [common_prefix(kad_id(OWN.binary), kad_id(p.binary)) for p in table]
    sparse = table.sparse_prefixes()
    assert all((prefixes.count(i) < 2) == (i in sparse) for i in range(max(prefixes) + 1))
    assert RoutingTable(OWN).sparse_prefixes() == []


def test_where_only_subnets_leave_room_newcomers_are_looked_for_last() -> None:
    table = RoutingTable(OWN, bucket_size=20)
    own = kad_id(OWN.binary)
    there = subnets_of(["/ip4/20.30.40.1/tcp/4001"])
    of_widest = [p for p in PEERS if common_prefix(own, kad_id(p.binary)) == 0]
    nearer = [p for p in PEERS if common_prefix(own, kad_id(p.binary)) == 2]
    for each in of_widest[:10]:
        table.heard(each, 0, there)
    table.heard(nearer[0], 0)
    assert sum(each in table for each in of_widest) < 10  # the others wait
    assert table.sparse_prefixes() == [1, 2, 0]


def test_the_nearest_are_met_and_of_those_farther_away_a_few() -> None:
    table = RoutingTable(OWN)
    own = kad_id(OWN.binary)
    assert table.to_meet([OWN, *PEERS[:KAD_BUCKET]]) == PEERS[:KAD_BUCKET], "all of 21"
    ordered = by_distance(PEERS, own)
    prefixes = Counter(common_prefix(own, kad_id(each.binary)) for each in PEERS)
    met = table.to_meet(ordered)
    for each in met:
        table.heard(each, 0)
    assert set(ordered[:KAD_BUCKET]) <= set(table)
    found = Counter(common_prefix(own, kad_id(each.binary)) for each in table)
    wanted = {
        index: max(KAD_BUCKET - sum(found[i] for i in found if i > index), KAD_BUCKET_SOUGHT)
        for index in range(max(found) + 1)
    }
    assert found == {index: min(prefixes[index], count) for index, count in wanted.items()}
    assert table.to_meet(ordered) == []
    assert not table.lacking(ordered)
    # Where there were not so many, others are looked for.
    assert table.sparse_prefixes() == [i for i, count in wanted.items() if found[i] < count]
    # Who comes by himself is taken.
    assert sum(table.heard(each, 0) for each in ordered) > len(met) + KAD_BUCKET


def test_looking_around_is_over_when_several_in_a_row_name_nobody_for_the_table() -> None:
    table = RoutingTable(OWN, bucket_size=2)
    for each in PEERS[:30]:
        table.heard(each, 0)
    inside = list(table)
    full = [each for each in PEERS[:30] if each not in inside]
    assert full
    assert not table.lacking([*inside, *full, OWN])
    newcomer = next(each for each in PEERS[30:] if table.lacking([each]))
    assert not any(each == newcomer for each in inside)

    around = LookAround(table)
    assert around.at_once() == KAD_REFRESH_ANSWERS
    assert not around.over(inside)
    assert around.at_once() == KAD_REFRESH_ANSWERS - 1, "so many more could end it"
    assert not around.over([*full, newcomer])  # begins anew
    assert around.at_once() == KAD_REFRESH_ANSWERS
    # Named before, in the table or not: nothing new.
    answers = [around.over([newcomer, OWN]) for _ in range(KAD_REFRESH_ANSWERS)]
    assert answers == [False] * (KAD_REFRESH_ANSWERS - 1) + [True]
    assert LookAround(RoutingTable(OWN)).over([PEERS[0]]) is False


def test_nobody_is_looked_for_where_the_answers_named_everybody() -> None:
    own = kad_id(OWN.binary)
    prefix = {each: common_prefix(own, kad_id(each.binary)) for each in PEERS}
    table = RoutingTable(OWN, bucket_size=4)
    for each in by_distance(PEERS, own)[:3]:
        table.heard(each, 0)
    sparse = table.sparse_prefixes()
    assert {0, 1, 2} < set(sparse)

    around = LookAround(table)
    assert around.left() == sparse, "nobody has answered"
    around.over(by_distance(PEERS, own)[:3])  # fewer than would be named of more
    assert around.left() == []
    narrow, wide = ([p for p in PEERS if prefix[p] >= least][:4] for least in (3, 1))
    for named, reached in ((narrow, 3), (wide, 1), (narrow[:2], 0)):
        assert len(named) == 4 or reached == 0
        around = LookAround(table)
        around.over(named)
        least = min(map(prefix.__getitem__, named))
        assert around.left() == [i for i in sparse if reached and i <= least]
        # Whoever reached less far may know others.
        around.over(narrow)
        assert around.left() == [i for i in sparse if i <= min(map(prefix.__getitem__, narrow))]
