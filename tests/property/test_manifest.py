"""Segments and manifests: round trips, and no crash on changed bytes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dstore.core.cid import CID, DAG_PB, RAW
from dstore.core.manifest import Code, Manifest, Segment, SegmentRef, Stripe
from dstore.errors import MalformedBlock
from dstore.limits import BLOCK_BYTES_MAX

cids = st.builds(CID.of, st.sampled_from((RAW, DAG_PB)), st.binary(max_size=3))
raws = st.builds(CID.of, st.just(RAW), st.binary(max_size=3))


@st.composite
def segments(draw: st.DrawFn) -> Segment:
    k, m = draw(st.integers(1, 6)), draw(st.integers(0, 4))
    sized = st.tuples(cids, st.integers(1, BLOCK_BYTES_MAX))
    stripe = st.builds(
        Stripe,
        st.lists(sized, min_size=1, max_size=k).map(tuple),
        st.lists(raws, min_size=m, max_size=m).map(tuple),
    )
    return Segment(k, m, tuple(draw(st.lists(stripe, min_size=1, max_size=5))))


@given(segments())
def test_segment_round_trip(segment: Segment) -> None:
    assert Segment.decode(segment.block) == segment
    slots = [list(segment.slot_blocks(slot)) for slot in range(segment.n)]
    assert sum(len(slot) for slot in slots) == segment.blocks + segment.m * len(segment.stripes)
    for number, slot in enumerate(slots):
        for stripe, cid, size in slot:
            assert segment.fragment(stripe, number) == cid
            assert 1 <= size <= segment.stripes[stripe].length
            assert segment.locate[cid.multihash] <= (stripe, number)


@given(segments(), st.data())
def test_a_changed_segment_is_refused_or_another_segment(
    segment: Segment, data: st.DataObject
) -> None:
    block = bytearray(segment.block)
    position = data.draw(st.integers(0, len(block) - 1))
    block[position] ^= data.draw(st.integers(1, 255))
    try:
        changed = Segment.decode(bytes(block))
    except MalformedBlock:
        return
    assert changed != segment
    assert changed.block == bytes(block)


@given(cids, st.lists(segments(), max_size=4), st.data())
def test_manifest_round_trip(root: CID, parts: list[Segment], data: st.DataObject) -> None:
    code = Code(data.draw(st.integers(1, 10)), data.draw(st.integers(0, 4)))
    refs: list[SegmentRef] = [part.ref for part in parts]
    manifest = Manifest.of(root, code, refs)
    assert Manifest.decode(manifest.block) == manifest
    for part, ref in zip(parts, refs, strict=True):
        Manifest.of(root, part.code, [ref]).check_segment(ref, part)
