"""Failure domains, assignment, and the guarantee, against brute force where it can be."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dstore.core.cid import CID, RAW
from dstore.core.guarantee import Guarantee, guarantee, shape
from dstore.core.manifest import Code
from dstore.core.peerid import PeerId
from dstore.core.placement import (
    UNVERIFIED,
    Assignment,
    Candidate,
    SlotNeed,
    assign,
    choose_code,
    components,
    domain_components,
    domains_of,
    enough,
    group_key,
    lacking,
    likely_first,
)
from dstore.limits import GIB, MIB, PLACEMENT_GROUP_BYTES
from dstore.testing.deterministic import peer_number

SEGMENT = CID.of(RAW, b"a segment")
PEERS = [peer_number(number) for number in range(64)]
FOUR_TWO = Code(4, 2)


def _candidates(count: int, *, domains: int | None = None) -> list[Candidate]:
    """`count` peers, each its own domain or dealt out over `domains` labels."""
    return [
        Candidate(PEERS[n], frozenset({f"label:{n % (domains or count)}"}), GIB)
        for n in range(count)
    ]


def _needs(code: Code, size: int = 1000) -> list[SlotNeed]:
    return [SlotNeed(slot, size) for slot in range(code.n)]


def _per(assignment: Assignment, name: Mapping[PeerId, str] | None = None) -> Counter[object]:
    return Counter(
        peer if name is None else name[peer]
        for held in assignment.holders.values()
        for peer in held
    )


# --- Failure domains -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("addresses", "label", "expected"),
    [
        (["/ip4/127.0.0.1/tcp/4001"], "rack 1", {"label:rack 1"}),
        (["/ip4/127.0.0.1/tcp/4001"], None, {"addr:loopback"}),
        (["/ip6/::1/tcp/4001", "/ip4/127.9.9.9/tcp/1"], None, {"addr:loopback"}),
        (["/ip4/8.8.8.8/tcp/4001"], None, {"net:8.8.8.0/24"}),
        (["/ip4/8.8.8.8/tcp/4001"], "x", {"net:8.8.8.0/24", "label:x"}),
        (["/ip6/2001:4860:4860:1::8888/tcp/1"], None, {"net:2001:4860:4860::/48"}),
        (["/ip6/::ffff:8.8.4.4/tcp/1"], None, {"net:8.8.4.0/24"}),
        (["/ip4/192.168.1.7/tcp/4001"], None, {"addr:192.168.1.7"}),
        (["/ip4/192.168.1.7/tcp/1", "/ip4/127.0.0.1/tcp/1"], None, {"addr:192.168.1.7"}),
        (["/ip4/172.17.0.1/tcp/1", "/ip4/9.9.9.9/tcp/1"], None, {"net:9.9.9.0/24"}),
        (["/dns4/Node.Example.org./tcp/1"], None, {"addr:node.example.org"}),
        (["/ip4/8.8.8.8/tcp/1/p2p/QmRelay/p2p-circuit"], None, set()),
        (["/ip4/0.0.0.0/tcp/1", "/ip4/224.0.0.1/tcp/1"], None, set()),
        (["", "nonsense", "/ip4", "/ip4/300.1.1.1/tcp/1", "/unix/tmp"], None, set()),
        ([], None, set()),
        ([], "x", {"label:x"}),
    ],
)
def test_domains_of(addresses: list[str], label: str | None, expected: set[str]) -> None:
    assert domains_of(addresses, label) == expected


def test_components_join_whatever_they_share() -> None:
    domains: dict[PeerId, Collection[str]] = {
        PEERS[0]: ["label:a", "net:8.8.8.0/24"],
        PEERS[1]: ["net:8.8.8.0/24"],
        PEERS[2]: ["label:a"],
        PEERS[3]: ["label:b"],
        PEERS[4]: [],
        PEERS[5]: [],
    }
    found = components(domains)
    assert found[PEERS[0]] == found[PEERS[1]] == found[PEERS[2]] == "label:a"
    assert found[PEERS[3]] == "label:b"
    assert found[PEERS[4]] == found[PEERS[5]] == UNVERIFIED


@given(
    st.lists(st.frozensets(st.sampled_from("abcdefgh"), max_size=3), min_size=1, max_size=10),
    st.randoms(use_true_random=False),
)
def test_components_are_the_reachable_peers(labels: list[frozenset[str]], order: object) -> None:
    domains = dict(zip(PEERS, labels, strict=False))
    found = components(domains)
    # Brute force: spread along shared strings until nothing changes.
    for start in domains:
        reached = {start}
        while True:
            names = {name for peer in reached for name in domains[peer]}
            more = {peer for peer, have in domains.items() if have & names}
            if start in reached and not domains[start]:
                more = {peer for peer, have in domains.items() if not have}
            if more <= reached:
                break
            reached |= more
        assert {peer for peer in domains if found[peer] == found[start]} == reached
    shuffled = list(domains.items())
    order.shuffle(shuffled)  # type: ignore[attr-defined]
    assert components(dict(shuffled)) == found


def apart(count: int, free_bytes: int = 1 << 40) -> list[Candidate]:
    """Candidates, each a failure domain of its own."""
    return [Candidate(peer_number(n), frozenset({f"label:{n}"}), free_bytes) for n in range(count)]


def test_choose_code() -> None:
    table = {0: "1+1", 1: "1+1", 2: "1+1", 3: "2+1", 4: "2+2", 5: "2+2", 6: "3+2", 7: "4+2"}
    table |= {8: "4+2", 9: "4+2", 10: "6+3", 11: "6+3", 12: "7+4", 23: "7+4", 24: "14+8"}
    table |= {1000: "14+8"}
    assert {count: str(choose_code(apart(count), 10**12)) for count in table} == table
    for count in range(5, 100):
        code = choose_code(apart(count), 10**12)
        assert code.m >= 2
        assert code.n <= count - 1  # a repair has somewhere to go


def test_only_domains_with_room_for_a_slot_count() -> None:
    roomy, full = apart(5), apart(30, 900_000)[5:]
    assert choose_code([*roomy, *full], 20 * MIB) == choose_code(roomy, 20 * MIB) == Code(2, 2)
    # Somebody else in the domain may have it, or the peer that holds its slot already.
    beside = [replace(one, peer=peer_number(100 + n), free_bytes=GIB) for n, one in enumerate(full)]
    assert choose_code([*roomy, *full, *beside], 20 * MIB) == Code(14, 8)
    holding = {one.peer for one in full}
    assert choose_code([*roomy, *full], 20 * MIB, holding) == Code(14, 8)
    # A large enough k makes slots that fit; a small file has one block in each of its slots.
    some = apart(12, 15 * MIB)
    assert choose_code(some, 100 * MIB) == Code(7, 4)
    assert choose_code(some, 110 * MIB) == Code(1, 1)
    assert choose_code(apart(7, 500_000), 500_000) == Code(4, 2)
    assert choose_code(apart(7, 400_000), 500_000) == Code(1, 1)
    # No segment is larger than a gibibyte.
    assert choose_code(apart(24, GIB // 14), 10**13) == Code(14, 8)


# --- Assignment ------------------------------------------------------------------------


def test_one_slot_per_peer_and_domain_where_there_are_enough() -> None:
    candidates = _candidates(16, domains=8)
    result = assign(SEGMENT, _needs(FOUR_TWO), candidates, FOUR_TWO)
    assert sorted(result.holders) == list(range(6))
    assert result.new == result.holders
    assert set(_per(result).values()) == {1}
    assert set(_per(result, domain_components(candidates)).values()) == {1}
    assert not result.unplaced


@pytest.mark.parametrize("count", range(1, 8))
def test_fewer_peers_than_slots_share_evenly(count: int) -> None:
    result = assign(SEGMENT, _needs(FOUR_TWO), _candidates(count), FOUR_TWO)
    per_peer = _per(result)
    assert sum(per_peer.values()) == 6
    assert max(per_peer.values()) == -(-6 // count)
    assert max(per_peer.values()) - min(per_peer.values()) <= 1


def test_no_domain_gets_more_than_m_where_avoidable() -> None:
    # One peer in a, one in b, many in c: even so each gets two.
    domains = ["a", "b", *["c"] * 10]
    candidates = [Candidate(PEERS[n], frozenset({d}), GIB) for n, d in enumerate(domains)]
    result = assign(SEGMENT, _needs(FOUR_TWO), candidates, FOUR_TWO)
    assert set(_per(result, domain_components(candidates)).values()) == {2}


def test_peers_come_first_where_no_domain_can_be_lost_anyway() -> None:
    domains = ["a", *["b"] * 5]
    candidates = [Candidate(PEERS[n], frozenset({d}), GIB) for n, d in enumerate(domains)]
    result = assign(SEGMENT, _needs(FOUR_TWO), candidates, FOUR_TWO)
    assert set(_per(result).values()) == {1}
    found = guarantee([shape(4, FOUR_TWO)], result.holders, domain_components(candidates))
    assert found == Guarantee(peers=2, domains=0)


def test_empty_slots_need_nobody() -> None:
    needs = [SlotNeed(0, 10), SlotNeed(1, 0), SlotNeed(2, 0), SlotNeed(3, 0), *_needs(FOUR_TWO)[4:]]
    result = assign(SEGMENT, needs, _candidates(8), FOUR_TWO)
    assert sorted(result.holders) == [0, 4, 5]


def test_who_gets_nothing() -> None:
    domain = frozenset({"label:x"})
    candidates = [
        *_candidates(3),
        Candidate(PEERS[10], domain, free_bytes=999),
        Candidate(PEERS[11], domain, GIB, score=0.95),
        Candidate(PEERS[12], domain, GIB),
        Candidate(PEERS[13], domain, GIB, load=1.0),
    ]
    result = assign(SEGMENT, _needs(FOUR_TWO), candidates, FOUR_TWO, avoid={PEERS[12]})
    assert set(_per(result)) == {*PEERS[:3], PEERS[13]}
    # The loaded peer is passed over as soon as another is as well spread.
    spare = [*candidates, Candidate(PEERS[14], domain, GIB)]
    result = assign(SEGMENT, _needs(FOUR_TWO)[:4], spare, FOUR_TWO, avoid={PEERS[12]})
    assert set(_per(result)) == {*PEERS[:3], PEERS[14]}


@pytest.mark.parametrize("code", [Code(2, 1), Code(3, 2), FOUR_TWO])
def test_who_adds_and_must_hold_a_slot_holds_one_of_data(code: Code) -> None:
    """Its blocks are there already; parity would have to be stored."""
    others = _candidates(code.n - 1)
    own = Candidate(PEERS[63], frozenset({"label:own"}), GIB, load=1.0)
    for number in range(20):
        segment = CID.of(RAW, bytes([number]))
        slots = assign(segment, _needs(code), [*others, own], code).holders
        assert [slot for slot, peers in slots.items() if own.peer in peers] == [code.k - 1]


def test_space_is_counted_down() -> None:
    candidates = [Candidate(peer, frozenset({str(peer)}), 2500) for peer in PEERS[:2]]
    result = assign(SEGMENT, _needs(FOUR_TWO), candidates, FOUR_TWO)
    assert sum(map(len, result.holders.values())) == 4
    assert max(_per(result).values()) == 2
    assert len(result.unplaced) == 2
    assert not enough(result, result.holders)
    assert lacking(result, result.holders) == result.unplaced


def test_who_has_the_slot_needs_no_space_and_comes_first() -> None:
    candidates = _candidates(12)
    full = [Candidate(one.peer, one.domains, 0) for one in candidates[:5]]
    stored = {slot: [one.peer] for slot, one in enumerate(full)}
    found = assign(SEGMENT, _needs(FOUR_TWO), [*full, *candidates[5:]], FOUR_TWO, stored=stored)
    assert {slot: found.holders[slot] for slot in stored} == {
        slot: tuple(peers) for slot, peers in stored.items()
    }
    assert found.holders[5][0] in PEERS[5:]
    # It has that slot, and room for no other.
    alone = assign(SEGMENT, _needs(FOUR_TWO), full[:1], FOUR_TWO, stored=stored)
    assert alone.new == {0: (full[0].peer,)}


def test_nobody_there() -> None:
    result = assign(SEGMENT, _needs(FOUR_TWO), [], FOUR_TWO)
    assert result.unplaced == tuple(range(6))
    assert result.new == {}


def test_what_is_placed_stays_and_is_counted() -> None:
    candidates = _candidates(8)
    placed = {0: [PEERS[3]], 4: [PEERS[3]], 5: [PEERS[60]]}  # the last is no candidate
    result = assign(SEGMENT, _needs(FOUR_TWO), candidates, FOUR_TWO, placed)
    assert result.holders[0] == result.holders[4] == (PEERS[3],)
    assert result.holders[5] == (PEERS[60],)
    assert sorted(result.new) == [1, 2, 3]
    new = {peer for held in result.new.values() for peer in held}
    assert len(new) == 3
    assert PEERS[3] not in new


def test_a_repair_leaves_the_rest_alone() -> None:
    candidates = _candidates(8)
    first = assign(SEGMENT, _needs(FOUR_TWO), candidates, FOUR_TWO)
    lost = first.holders[2][0]
    kept = {slot: held for slot, held in first.holders.items() if slot != 2}
    second = assign(SEGMENT, _needs(FOUR_TWO), candidates, FOUR_TWO, kept, avoid=[lost])
    assert sorted(second.new) == [2]
    assert set(_per(second).values()) == {1}
    assert lost not in second.holders[2]


def test_copies_go_to_different_domains() -> None:
    candidates = _candidates(16, domains=8)
    name = domain_components(candidates)
    result = assign(SEGMENT, _needs(FOUR_TWO), candidates, FOUR_TWO, copies=2)
    for held in result.holders.values():
        assert len(held) == 2
        assert len({name[peer] for peer in held}) == 2
    assert max(_per(result).values()) == 1
    # With fewer peers than copies, those there are.
    few = assign(SEGMENT, _needs(FOUR_TWO), _candidates(2), FOUR_TWO, copies=3)
    assert all(len(held) == 2 for held in few.holders.values())
    assert len(few.unplaced) == 6
    assert enough(few, few.holders)  # content with what could be had


def test_leases_of_substitutes_count() -> None:
    result = assign(SEGMENT, _needs(FOUR_TWO), _candidates(8), FOUR_TWO)
    leased: dict[int, Collection[PeerId]] = dict(result.holders)
    assert enough(result, leased)
    leased[3] = [PEERS[50]]
    assert enough(result, leased)
    leased[3] = []
    assert lacking(result, leased) == (3,)


def test_segments_of_a_group_share_their_holders() -> None:
    root = CID.of(RAW, b"root")
    keys = [group_key(root, offset) for offset in (0, GIB, PLACEMENT_GROUP_BYTES - 1)]
    assert len(set(keys)) == 1
    assert group_key(root, PLACEMENT_GROUP_BYTES) != keys[0]
    assert group_key(CID.of(RAW, b"other"), 0) != keys[0]
    candidates = _candidates(40)
    sets = [
        assign(
            CID.of(RAW, bytes([number])), _needs(FOUR_TWO), candidates, FOUR_TWO, group=keys[0]
        ).holders
        for number in range(4)
    ]
    assert all(one == sets[0] for one in sets)
    alone = [
        assign(CID.of(RAW, bytes([number])), _needs(FOUR_TWO), candidates, FOUR_TWO).holders
        for number in range(4)
    ]
    assert any(one != alone[0] for one in alone)


def test_a_reader_guesses_who_holds_the_first_block() -> None:
    candidates = _candidates(40)
    for number in range(20):
        root = CID.of(RAW, bytes([number]))
        holders = assign(
            SEGMENT, _needs(FOUR_TWO), candidates, FOUR_TWO, group=group_key(root, 0)
        ).holders
        peers = [candidate.peer for candidate in candidates]
        assert holders[0] == (likely_first(root, peers)[0],)


def test_load_is_even_over_many_segments() -> None:
    candidates = _candidates(20)
    load: Counter[object] = Counter()
    for number in range(400):
        segment = CID.of(RAW, number.to_bytes(2, "big"))
        load += _per(assign(segment, _needs(FOUR_TWO), candidates, FOUR_TWO))
    mean = 400 * 6 / 20
    assert min(load.values()) > mean * 0.7
    assert max(load.values()) < mean * 1.3


clusters = st.lists(
    st.tuples(st.integers(0, 9), st.sampled_from([500, 2_000, GIB]), st.sampled_from([0, 1])),
    min_size=1,
    max_size=14,
)


def _cluster(drawn: list[tuple[int, int, int]]) -> list[Candidate]:
    return [
        Candidate(PEERS[n], frozenset({f"label:{domain}"}), free, load=load)
        for n, (domain, free, load) in enumerate(drawn)
    ]


@given(clusters, st.integers(1, 5), st.integers(0, 4), st.integers(1, 2), st.randoms())
def test_assignment_invariants(
    drawn: list[tuple[int, int, int]], k: int, m: int, copies: int, order: object
) -> None:
    code, candidates = Code(k, m), _cluster(drawn)
    result = assign(SEGMENT, _needs(code), candidates, code, copies=copies)
    free = {candidate.peer: candidate.free_bytes for candidate in candidates}
    for peer, count in _per(result).items():
        assert count * 1000 <= free[peer]  # type: ignore[index]
    for slot, held in result.holders.items():
        assert len(set(held)) == len(held) <= copies
        if len(held) < copies:  # only where nobody else had room
            used = _per(result)
            assert all(
                free[c.peer] - used[c.peer] * 1000 < 1000 or c.peer in held for c in candidates
            ), slot
    order.shuffle(candidates)  # type: ignore[attr-defined]
    assert assign(SEGMENT, _needs(code), candidates, code, copies=copies) == result


@given(st.lists(st.integers(0, 9), min_size=1, max_size=14), st.integers(1, 5), st.integers(1, 4))
def test_domains_are_as_even_as_can_be(domains: list[int], k: int, m: int) -> None:
    code = Code(k, m)
    candidates = _cluster([(domain, GIB, 0) for domain in domains])
    result = assign(SEGMENT, _needs(code), candidates, code)
    count = len(set(domains))
    if count * m >= code.n:
        most = max(_per(result, domain_components(candidates)).values())
        assert most == -(-code.n // count) <= m
        found = guarantee([shape(k, code)], result.holders, domain_components(candidates))
        assert found.domains >= 1
    else:
        most = max(_per(result).values())
        assert most == -(-code.n // len(domains))


@given(clusters, st.integers(1, 5), st.integers(1, 4))
def test_an_unused_peer_that_goes_changes_nothing(
    drawn: list[tuple[int, int, int]], k: int, m: int
) -> None:
    code, candidates = Code(k, m), _cluster([(d, GIB, load) for d, _, load in drawn])
    result = assign(SEGMENT, _needs(code), candidates, code)
    used = _per(result)
    for gone in candidates:
        if gone.peer not in used:
            rest = [candidate for candidate in candidates if candidate is not gone]
            assert assign(SEGMENT, _needs(code), rest, code) == result


def test_a_new_peer_moves_few_slots() -> None:
    moved = 0
    code = Code(10, 4)
    for number in range(100):
        segment = CID.of(RAW, number.to_bytes(2, "big"))
        before = assign(segment, _needs(code), _candidates(39), code).holders
        more = [*_candidates(39), Candidate(PEERS[63], frozenset({"label:new"}), GIB)]
        after = assign(segment, _needs(code), more, code).holders
        changed = [slot for slot in before if before[slot] != after[slot]]
        assert not changed or PEERS[63] in {after[slot][0] for slot in changed}
        moved += len(changed)
    # Its fair share is 14 of 40 slots a segment on average; what it displaces moves on.
    assert moved / 100 < 1.5
