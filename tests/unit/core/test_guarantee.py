"""What may be lost of a placement, against brute force over every set of losses."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping

from hypothesis import given, settings
from hypothesis import strategies as st

from dstore.core.cid import CID, RAW
from dstore.core.guarantee import (
    Guarantee,
    StripeShape,
    describe,
    guarantee,
    shape,
    shapes_of,
    worst,
)
from dstore.core.manifest import Code, Segment, Stripe
from dstore.core.peerid import PeerId
from dstore.core.placement import Candidate, SlotNeed, assign, domain_components, needs_of
from dstore.limits import GIB
from dstore.testing.deterministic import peer_number

PEERS = [peer_number(number) for number in range(64)]
FOUR_TWO = Code(4, 2)


# --- The guarantee ---------------------------------------------------------------------


def _readable(
    shapes: Collection[StripeShape], holders: Mapping[int, Collection[PeerId]], lost: set[PeerId]
) -> bool:
    live = {slot for slot, held in holders.items() if set(held) - lost}
    return all(len(one.slots & live) >= one.data_count for one in shapes)


def _brute_force(
    shapes: Collection[StripeShape],
    holders: Mapping[int, Collection[PeerId]],
    groups: Collection[set[PeerId]],
) -> int:
    """The largest f such that any f of the groups may go."""
    if not _readable(shapes, holders, set()):
        return -1
    for count in range(1, len(groups) + 1):
        for gone in itertools.combinations(groups, count):
            if not _readable(shapes, holders, set().union(*gone)):
                return count - 1
    return len(groups)


holder_maps = st.dictionaries(
    st.integers(0, 7), st.frozensets(st.sampled_from(PEERS[:6]), max_size=4), max_size=8
)


@settings(max_examples=300)
@given(
    holder_maps,
    st.integers(1, 5),
    st.integers(0, 3),
    st.frozensets(st.integers(1, 5), max_size=3),
    st.lists(st.sampled_from("abcd"), min_size=6, max_size=6),
)
def test_guarantee_is_what_brute_force_finds(
    holders: dict[int, frozenset[PeerId]], k: int, m: int, counts: frozenset[int], names: list[str]
) -> None:
    code = Code(k, m)
    shapes = {shape(min(count, k), code) for count in counts}
    domain_of = dict(zip(PEERS[:6], names, strict=True))
    peers = {peer for held in holders.values() for peer in held}
    domains = {domain_of[peer] for peer in peers}
    found = guarantee(shapes, holders, domain_of)
    assert found.exact
    assert found.peers == _brute_force(shapes, holders, [{peer} for peer in peers])
    by_domain = [{peer for peer in peers if domain_of[peer] == name} for name in domains]
    assert found.domains == _brute_force(shapes, holders, by_domain)


def test_guarantee_of_a_full_spread_is_m() -> None:
    candidates = [Candidate(PEERS[n], frozenset({f"label:{n}"}), GIB) for n in range(8)]
    needs = [SlotNeed(slot, 1000) for slot in range(6)]
    result = assign(CID.of(RAW, b"a segment"), needs, candidates, FOUR_TWO)
    found = guarantee([shape(4, FOUR_TWO)], result.holders, domain_components(candidates))
    assert found == Guarantee(2, 2, exact=True)
    # A stripe of one block is as good as m + 1 copies.
    one = guarantee([shape(1, FOUR_TWO)], result.holders, domain_components(candidates))
    assert one == Guarantee(2, 2)


def test_unknown_holders_are_one_domain() -> None:
    holders = {slot: [PEERS[slot]] for slot in range(6)}
    assert guarantee([shape(4, FOUR_TWO)], holders, {}) == Guarantee(peers=2, domains=0)


def test_beyond_the_exact_search_the_guarantee_is_a_lower_bound() -> None:
    code = Code(20, 20)
    holders = {
        slot: {PEERS[(slot * a + b) % 40] for a, b in ((1, 0), (7, 3), (11, 5))}
        for slot in range(code.n)
    }
    found = guarantee([shape(20, code)], holders, {})
    assert not found.exact
    # Any f holders lose at most as many slots as their shares add up to, so f is at least:
    assert found.peers >= 20
    # A greedy attack shows that not much more holds.
    lost: set[PeerId] = set()
    while _readable([shape(20, code)], holders, lost):
        alive = sorted({peer for held in holders.values() for peer in held} - lost)
        lost.add(max(alive, key=lambda p: sum(not set(h) - lost - {p} for h in holders.values())))
    assert found.peers < len(lost)


def test_large_single_copy_guarantees_are_exact() -> None:
    code = Code(175, 80)
    holders = {slot: [PEERS[slot % 64]] for slot in range(code.n)}
    found = guarantee([shape(count, code) for count in (1, 60, 175)], holders, {})
    # 63 peers hold four slots and one holds three: 80 slots go with 20 peers.
    assert found == Guarantee(peers=20, domains=0, exact=True)


def test_nothing_depends_on_anybody_without_stripes() -> None:
    assert guarantee([], {0: [PEERS[0]]}, {}) == Guarantee(1, 1)
    assert guarantee([], {}, {}) == Guarantee(0, 0)


def test_worst_and_words() -> None:
    assert worst([]) is None
    assert worst([Guarantee(2, 1), Guarantee(1, 2, exact=False)]) == Guarantee(1, 1, exact=False)
    words = {
        Guarantee(2, 2): "survives the loss of any 2 peers (any 2 failure domains)",
        Guarantee(1, 1): "survives the loss of any 1 peer (any 1 failure domain)",
        Guarantee(2, 0): "survives the loss of any 2 peers, not of every failure domain",
        Guarantee(0, 0): "does not survive the loss of every single peer",
        Guarantee(-1, -1): "not readable at present",
    }
    assert {found: describe(found) for found in words} == words


def test_needs_and_shapes_of_a_segment() -> None:
    def block(number: int) -> CID:
        return CID.of(RAW, bytes([number]))

    segment = Segment(
        2,
        1,
        (
            Stripe(((block(0), 30), (block(1), 20)), (block(2),)),
            Stripe(((block(3), 10),), (block(4),)),
        ),
    )
    assert needs_of(segment) == (SlotNeed(0, 40), SlotNeed(1, 20), SlotNeed(2, 40))
    assert shapes_of(segment) == {
        StripeShape(2, frozenset({0, 1, 2})),
        StripeShape(1, frozenset({0, 2})),
    }
