"""From visits to segments: where segments end, what order stripes have, whole DAGs."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from dstore.core import dagcbor, stripes
from dstore.core.cid import CID, DAG_CBOR, DAG_PB, RAW
from dstore.core.dagpb import PBLink, PBNode
from dstore.core.dagpb import encode as encode_pb
from dstore.core.manifest import Code
from dstore.core.stripes import (
    Cuts,
    SegmentPlan,
    SegmentPlanner,
    plan_dag,
    plan_segments,
    size_class,
)
from dstore.core.unixfs.node import DataType, UnixfsData, encode_data
from dstore.core.unixfs.walk import Visit
from dstore.errors import BudgetExceeded, MalformedBlock
from dstore.limits import BLOCK_BYTES_MAX, GIB, MIB, SEGMENT_BYTES_MAX, SEGMENT_FRAGMENTS_MAX

CODE = Code(4, 2)


def leaf(number: int, size: int, depth: int = 1, *, file_root: bool = False) -> Visit:
    """A visit of a made-up raw block."""
    return Visit(CID.of(RAW, number.to_bytes(4, "big")), size, depth, file_root)


def sizes(plans: Iterable[SegmentPlan]) -> list[list[list[int]]]:
    return [[[size for _, size in stripe] for stripe in plan.stripes] for plan in plans]


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (1, (1, 0)),
        (2, (2, 0)),
        (3, (2, 4)),
        (7, (3, 6)),
        (8, (4, 0)),
        (15, (4, 7)),
        (16, (5, 0)),
        (17, (5, 0)),
        (18, (5, 1)),
        (MIB, (21, 0)),
        (MIB + 131_072, (21, 1)),
        (BLOCK_BYTES_MAX, (22, 0)),
    ],
)
def test_size_class(size: int, expected: tuple[int, int]) -> None:
    assert size_class(size) == expected


def test_within_a_segment_the_largest_class_comes_first_and_equals_keep_their_order() -> None:
    visits = [leaf(0, 100), leaf(1, 5000), leaf(2, 5100), leaf(3, 101), leaf(4, 5001), leaf(5, 1)]
    [plan] = plan_segments(visits, Code(3, 1))
    numbers = {visit.cid: number for number, visit in enumerate(visits)}
    assert [[numbers[cid] for cid, _ in stripe] for stripe in plan.stripes] == [
        [1, 2, 4],
        [0, 3, 5],
    ]


def test_only_the_last_stripe_is_short() -> None:
    [plan] = plan_segments([leaf(i, 10) for i in range(9)], CODE)
    assert [len(stripe) for stripe in plan.stripes] == [4, 4, 1]
    assert (plan.blocks, plan.data_bytes) == (9, 90)


def test_empty_blocks_and_identity_cids_are_skipped() -> None:
    inline = CID.v1(RAW, b"\x00\x03abc")
    visits = [leaf(0, 0), Visit(inline, 3, 1, False), leaf(1, 5)]
    assert sizes(plan_segments(visits, CODE)) == [[[5]]]
    assert sizes(plan_segments(visits[:2], CODE)) == []


def test_segments_end_at_a_gibibyte() -> None:
    count = SEGMENT_BYTES_MAX // MIB
    plans = list(plan_segments([leaf(i, MIB) for i in range(count + 1)], CODE))
    assert [plan.data_bytes for plan in plans] == [GIB, MIB]
    short = [leaf(0, 1), *(leaf(i + 1, MIB) for i in range(count))]
    assert [plan.data_bytes for plan in plan_segments(short, CODE)] == [GIB - MIB + 1, MIB]


@pytest.mark.parametrize("code", [CODE, Code(1, 254), Code(10, 4), Code(255, 0)], ids=str)
def test_segments_end_at_16384_fragments(code: Code) -> None:
    plans = list(plan_segments([leaf(i, 10) for i in range(20_000)], code))
    for plan in plans[:-1]:
        assert code.fragments(plan.blocks) <= SEGMENT_FRAGMENTS_MAX
        assert code.fragments(plan.blocks + 1) > SEGMENT_FRAGMENTS_MAX
    assert sum(plan.blocks for plan in plans) == 20_000


SMALL = Cuts(segment_bytes=BLOCK_BYTES_MAX, segment_fragments=100, aligned_file_bytes=1000)


def file(start: int, leaves: int, size: int = 100, depth: int = 1) -> list[Visit]:
    """A file's root of 50 bytes and its leaves, one level deeper."""
    root = leaf(start, 50, depth, file_root=True)
    return [root, *(leaf(start + 1 + i, size, depth + 1) for i in range(leaves))]


def test_a_large_file_starts_and_ends_a_segment() -> None:
    large = file(100, 10)
    [alone] = plan_segments(large, CODE, SMALL)
    tree = [leaf(0, 60, 0), leaf(1, 5, file_root=True), *large, leaf(2, 5, file_root=True)]
    before, inside, after = plan_segments(tree, CODE, SMALL)
    assert inside == alone
    assert (before.blocks, after.blocks) == (2, 1)


def test_a_file_just_below_the_threshold_shares_its_segment() -> None:
    below = file(100, 9)  # 950 bytes
    assert len(list(plan_segments([leaf(0, 60, 0), *below, leaf(1, 5)], CODE, SMALL))) == 1
    at = [*below, leaf(999, 50, 2)]  # 1,000
    assert len(list(plan_segments([leaf(0, 60, 0), *at, leaf(1, 5)], CODE, SMALL))) == 3


def test_two_large_files_side_by_side_share_nothing() -> None:
    one, other = file(100, 12), file(200, 12)
    plans = list(plan_segments([leaf(0, 60, 0), *one, *other], CODE, SMALL))
    assert [plan.blocks for plan in plans] == [1, 13, 13]
    assert plans[1:] == [*plan_segments(one, CODE, SMALL), *plan_segments(other, CODE, SMALL)]


def test_the_nodes_inside_a_large_file_cut_nothing() -> None:
    inner = [leaf(300, 50, 2), *(leaf(301 + i, 100, 3) for i in range(20))]
    [plan] = plan_segments([*file(100, 5), *inner], CODE, SMALL)
    assert plan.blocks == 27


def test_a_large_file_is_cut_inside_by_the_same_limits() -> None:
    cuts = Cuts(BLOCK_BYTES_MAX, segment_fragments=18, aligned_file_bytes=1000)
    large = file(100, 30)
    tree = [leaf(0, 60, 0), *large]
    assert list(plan_segments(tree, CODE, cuts))[1:] == list(plan_segments(large, CODE, cuts))


def test_a_block_too_large_is_refused() -> None:
    planner = SegmentPlanner(CODE)
    assert planner.feed(leaf(0, BLOCK_BYTES_MAX)) == []
    with pytest.raises(MalformedBlock, match="at most"):
        planner.feed(leaf(1, BLOCK_BYTES_MAX + 1))


def test_more_segments_than_a_manifest_holds_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stripes, "SEGMENTS_MAX", 2)
    cuts = Cuts(segment_bytes=BLOCK_BYTES_MAX, segment_fragments=6)
    visits = [leaf(i, 10) for i in range(9)]
    assert len(list(plan_segments(visits[:8], CODE, cuts))) == 2
    with pytest.raises(BudgetExceeded, match="2 segments"):
        list(plan_segments(visits, CODE, cuts))


def test_cuts_that_hold_no_stripe_are_refused() -> None:
    with pytest.raises(ValueError, match="one stripe"):
        SegmentPlanner(CODE, Cuts(segment_fragments=5))


class Dag:
    """Blocks by CID, and which of them were loaded."""

    def __init__(self) -> None:
        self.blocks: dict[CID, bytes] = {}
        self.loaded: list[CID] = []

    def raw(self, data: bytes) -> CID:
        return self._put(RAW, data)

    def cbor(self, value: dagcbor.Value) -> CID:
        return self._put(DAG_CBOR, dagcbor.encode(value))

    def unixfs(self, kind: DataType, children: list[CID]) -> CID:
        links = tuple(PBLink(cid, "", 0) for cid in children)
        return self._put(DAG_PB, encode_pb(PBNode(links, encode_data(UnixfsData(type=kind)))))

    def _put(self, codec: int, data: bytes) -> CID:
        cid = CID.of(codec, data)
        self.blocks[cid] = data
        return cid

    def load(self, cid: CID) -> bytes:
        self.loaded.append(cid)
        return self.blocks[cid]

    def plan(self, root: CID, cuts: Cuts = SMALL) -> list[SegmentPlan]:
        return list(plan_dag(root, self.load, lambda cid: len(self.blocks[cid]), CODE, cuts=cuts))


def listed(plans: Iterable[SegmentPlan]) -> list[CID]:
    return [cid for plan in plans for stripe in plan.stripes for cid, _ in stripe]


def test_a_dag_lists_every_block_once_and_loads_no_raw_one() -> None:
    dag = Dag()
    shared = dag.raw(b"s" * 300)
    one = dag.unixfs(DataType.FILE, [shared, dag.raw(b"1" * 300), shared])
    other = dag.unixfs(DataType.FILE, [dag.raw(b"2" * 300), shared])
    root = dag.cbor({"files": [one, other, one], "empty": dag.raw(b"")})
    plans = dag.plan(root)
    places = listed(plans)
    assert sorted(places) == sorted(cid for cid, data in dag.blocks.items() if data)
    assert all(cid.codec != RAW for cid in dag.loaded)


def test_a_large_file_has_the_same_segments_alone_and_in_any_tree() -> None:
    dag = Dag()
    large = dag.unixfs(DataType.FILE, [dag.raw(bytes((i,)) * 200) for i in range(8)])
    small = [dag.unixfs(DataType.FILE, [dag.raw(bytes((100 + i,)) * 40)]) for i in range(6)]
    alone = dag.plan(large)
    for position in range(len(small) + 1):
        tree = dag.unixfs(DataType.DIRECTORY, [*small[:position], large, *small[position:]])
        plans = dag.plan(tree)
        assert all(plan in plans for plan in alone)
        assert len(listed(plans)) == 1 + 9 + 12


def test_what_is_below_a_block_listed_under_another_codec_is_not_forgotten() -> None:
    dag = Dag()
    child = dag.raw(b"child")
    node = dag.unixfs(DataType.FILE, [child])
    as_raw = CID.v1(RAW, node.multihash)
    dag.blocks[as_raw] = dag.blocks[node]
    plans = dag.plan(dag.cbor([as_raw, node]))
    assert {cid.multihash for cid in listed(plans)} >= {child.multihash, node.multihash}
    assert len(listed(plans)) == 3
