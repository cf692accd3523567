"""Planning, whatever the visits: each block once, no limit passed, large files alone."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from dstore.core.cid import CID, RAW
from dstore.core.manifest import Code
from dstore.core.stripes import Cuts, plan_segments, size_class
from dstore.core.unixfs.walk import Visit
from dstore.limits import BLOCK_BYTES_MAX

codes = st.builds(Code, st.integers(1, 6), st.integers(0, 4))
# The larger sizes make byte limits matter; BLOCK_BYTES_MAX is the least limit allowed.
block_sizes = st.integers(0, 300) | st.integers(BLOCK_BYTES_MAX // 8, BLOCK_BYTES_MAX)


@st.composite
def trees(draw: st.DrawFn) -> list[list[tuple[int, int, bool]]]:
    """(size, depth, file root?) by top-level entry: files of leaves, and lone nodes."""
    entries = []
    for _ in range(draw(st.integers(1, 8))):
        root = (draw(block_sizes), 1, draw(st.booleans()))
        leaves = draw(st.lists(block_sizes, max_size=12))
        entries.append([root, *((size, 2, False) for size in leaves)])
    return entries


def visits_of(tree: list[list[tuple[int, int, bool]]]) -> list[list[Visit]]:
    number = 0
    result = []
    for entry in tree:
        visits = []
        for size, depth, file_root in entry:
            visits.append(Visit(CID.of(RAW, number.to_bytes(4, "big")), size, depth, file_root))
            number += 1
        result.append(visits)
    return result


@given(trees(), codes, st.integers(10, 40), st.integers(1, 2000))
def test_plans_keep_every_rule(
    tree: list[list[tuple[int, int, bool]]], code: Code, fragments: int, aligned: int
) -> None:
    cuts = Cuts(BLOCK_BYTES_MAX, fragments, aligned)
    entries = visits_of(tree)
    visits = [visit for entry in entries for visit in entry]
    plans = list(plan_segments(visits, code, cuts))
    assert plans == list(plan_segments(visits, code, cuts))

    listed = [block for plan in plans for stripe in plan.stripes for block in stripe]
    assert sorted(listed) == sorted((visit.cid, visit.size) for visit in visits if visit.size)

    for plan in plans:
        assert plan.stripes
        assert plan.data_bytes <= cuts.segment_bytes
        assert code.fragments(plan.blocks) <= cuts.segment_fragments
        assert all(len(stripe) == code.k for stripe in plan.stripes[:-1])
        assert 1 <= len(plan.stripes[-1]) <= code.k
        classes = [size_class(size) for stripe in plan.stripes for _, size in stripe]
        assert classes == sorted(classes, reverse=True)

    # Blocks never move from one segment to an earlier one.
    order = {visit.cid: place for place, visit in enumerate(visits)}
    spans = [[order[cid] for stripe in plan.stripes for cid, _ in stripe] for plan in plans]
    assert all(max(one) < min(next_) for one, next_ in itertools.pairwise(spans))

    for entry in entries:
        if entry[0].file_root and sum(visit.size for visit in entry) >= aligned:
            alone = list(plan_segments(entry, code, cuts))
            at = plans.index(alone[0])
            assert plans[at : at + len(alone)] == alone
