"""Codes, segments, manifests: what they say, what is refused, and their pinned bytes."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dstore.core import dagcbor, erasure
from dstore.core.cid import CID, DAG_CBOR, DAG_PB, RAW
from dstore.core.manifest import Code, Manifest, Segment, SegmentRef, Stripe
from dstore.core.stripes import Cuts, plan_segments
from dstore.core.unixfs.walk import Visit
from dstore.errors import MalformedBlock
from dstore.limits import (
    BLOCK_BYTES_MAX,
    SEGMENT_BYTES_MAX,
    SEGMENT_FRAGMENTS_MAX,
    SEGMENTS_MAX,
)

VECTORS = Path(__file__).parents[2] / "vectors" / "manifest.json"


def raw(number: int) -> CID:
    return CID.of(RAW, number.to_bytes(4, "big"))


ROOT = CID.of(DAG_PB, b"root", version=0)
SEGMENT = Segment(
    3,
    2,
    (
        Stripe(((raw(0), 9), (raw(1), 10), (ROOT, 8)), (raw(2), raw(3))),
        Stripe(((raw(4), 7),), (raw(5), raw(6))),
    ),
)
MANIFEST = Manifest.of(ROOT, Code(3, 2), [SEGMENT.ref])


@pytest.mark.parametrize(("text", "k", "m"), [("4+2", 4, 2), ("1+0", 1, 0), ("128+127", 128, 127)])
def test_codes_as_text(text: str, k: int, m: int) -> None:
    code = Code.parse(text)
    assert (code.k, code.m, code.n, str(code)) == (k, m, k + m, text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "4",
        "4+",
        "+2",
        "0+2",
        "04+2",
        "4+02",
        "4 + 2",
        "4+2\n",
        "4+-2",
        "200+56",
        "1000+1",
        "٤+٢",
    ],
)
def test_what_is_no_code(text: str) -> None:
    with pytest.raises(ValueError):
        Code.parse(text)


def test_fragments_count_parity_per_started_stripe() -> None:
    code = Code(4, 2)
    assert [code.fragments(blocks) for blocks in (1, 4, 5, 8)] == [3, 6, 9, 12]


def test_a_segment_comes_back_from_its_block() -> None:
    assert Segment.decode(SEGMENT.encode()) == SEGMENT
    assert SEGMENT.cid == CID.of(DAG_CBOR, SEGMENT.block)
    assert (SEGMENT.blocks, SEGMENT.data_bytes, SEGMENT.n) == (4, 34, 5)
    assert SEGMENT.ref == SegmentRef(SEGMENT.cid, 4, 34)


def test_slots_of_a_segment() -> None:
    assert list(SEGMENT.slot_blocks(0)) == [(0, raw(0), 9), (1, raw(4), 7)]
    assert list(SEGMENT.slot_blocks(2)) == [(0, ROOT, 8)]
    assert list(SEGMENT.slot_blocks(4)) == [(0, raw(3), 10), (1, raw(6), 7)]
    assert [SEGMENT.slot_bytes(slot) for slot in range(5)] == [16, 10, 8, 17, 17]
    assert SEGMENT.fragment(0, 1) == raw(1)
    assert SEGMENT.fragment(1, 1) is None
    assert SEGMENT.fragment(1, 3) == raw(5)
    for slot in (-1, 5):
        with pytest.raises(ValueError, match="no slot"):
            SEGMENT.fragment(0, slot)
        with pytest.raises(ValueError, match="no slot"):
            list(SEGMENT.slot_blocks(slot))


def test_fragments_are_found_by_multihash_at_their_first_place() -> None:
    twice = Segment(1, 1, (Stripe(((raw(0), 4),), (raw(0),)), Stripe(((raw(1), 4),), (raw(0),))))
    assert dict(twice.locate) == {raw(0).multihash: (0, 0), raw(1).multihash: (1, 0)}
    assert Segment.decode(twice.block) == twice  # equal CIDs are legal
    assert SEGMENT.locate[CID.v1(RAW, ROOT.multihash).multihash] == (0, 2)
    assert SEGMENT.locate[raw(6).multihash] == (1, 4)


def test_a_manifest_comes_back_from_its_block() -> None:
    assert Manifest.decode(MANIFEST.encode()) == MANIFEST
    assert MANIFEST.cid == CID.of(DAG_CBOR, MANIFEST.block)
    assert (MANIFEST.bytes, MANIFEST.blocks) == (34, 4)
    MANIFEST.check_segment(MANIFEST.segments[0], SEGMENT)


def test_a_root_that_carries_itself_has_no_segments() -> None:
    inline = Manifest.of(CID.v1(RAW, b"\x00\x03abc"), Code(4, 2), [])
    assert Manifest.decode(inline.block) == inline


def test_full_blocks_fit() -> None:
    """The largest legal segment and manifest, with the longest digests, are legal blocks."""
    long = [
        CID.v1(RAW, b"\x13\x40" + hashlib.sha512(bytes((i & 255, i >> 8))).digest())
        for i in range(SEGMENT_FRAGMENTS_MAX)
    ]
    full = Segment(
        255,
        0,
        tuple(
            Stripe(tuple((cid, 65_536) for cid in long[at : at + 255]), ())
            for at in range(0, SEGMENT_FRAGMENTS_MAX, 255)
        ),
    )
    assert full.data_bytes == SEGMENT_BYTES_MAX
    assert len(full.block) <= BLOCK_BYTES_MAX
    assert Segment.decode(full.block).blocks == SEGMENT_FRAGMENTS_MAX
    ref = SegmentRef(full.cid, 600, SEGMENT_BYTES_MAX)
    many = Manifest.of(ROOT, Code(10, 4), [ref] * SEGMENTS_MAX)
    assert len(many.block) <= BLOCK_BYTES_MAX
    assert Manifest.decode(many.block) == many


@pytest.mark.parametrize(
    "segment",
    [
        replace(SEGMENT, k=0),
        replace(SEGMENT, m=-1),
        replace(SEGMENT, k=254),
        replace(SEGMENT, k=2),
        replace(SEGMENT, m=1),
        replace(SEGMENT, stripes=()),
        Segment(1, 0, (Stripe((), ()),)),
        Segment(1, 0, (Stripe(((raw(0), 0),), ()),)),
        Segment(1, 0, (Stripe(((raw(0), BLOCK_BYTES_MAX + 1),), ()),)),
        Segment(1, 0, (Stripe(((CID.v1(RAW, b"\x00\x01a"), 1),), ()),)),
        Segment(1, 1, (Stripe(((raw(0), 1),), (ROOT,)),)),
        Segment(1, 1, (Stripe(((raw(0), 1),), (CID.of(DAG_CBOR, b""),)),)),
        Segment(1, 0, (Stripe(((raw(0), BLOCK_BYTES_MAX),), ()),) * 513),
        Segment(1, 0, (Stripe(((raw(0), 1),), ()),) * (SEGMENT_FRAGMENTS_MAX + 1)),
        Segment(1, 254, (Stripe(((raw(0), 1),), (raw(1),) * 254),) * 65),
    ],
)
def test_segments_that_break_a_rule_are_neither_written_nor_read(segment: Segment) -> None:
    with pytest.raises(MalformedBlock):
        segment.encode()
    data = dagcbor.encode(
        {
            "v": 1,
            "k": segment.k,
            "m": segment.m,
            "stripes": [{"d": stripe.data, "p": stripe.parity} for stripe in segment.stripes],
        }
    )
    with pytest.raises(MalformedBlock):
        Segment.decode(data)


def fields(block: bytes) -> dict[str, Any]:
    value: Any = dagcbor.decode(block)
    return dict(value)


STRIPE = fields(SEGMENT.block)["stripes"][1]


@pytest.mark.parametrize(
    "change",
    [
        {"v": 2},
        {"v": True},
        {"v": 1.0},
        {"k": 3.0},
        {"k": True},
        {"m": None},
        {"extra": 0},
        {"stripes": {}},
        {"stripes": [[]]},
        {"stripes": [STRIPE | {"q": []}]},
        {"stripes": [{"d": STRIPE["d"]}]},
        {"stripes": [STRIPE | {"d": raw(0)}]},
        {"stripes": [STRIPE | {"d": [raw(0)]}]},
        {"stripes": [STRIPE | {"d": [[raw(0), 1, 1]]}]},
        {"stripes": [STRIPE | {"d": [[raw(0), 1.0]]}]},
        {"stripes": [STRIPE | {"d": [[raw(0), True]]}]},
        {"stripes": [STRIPE | {"d": [[raw(0).binary, 1]]}]},
        {"stripes": [STRIPE | {"p": [raw(0).binary, raw(1)]}]},
        {"stripes": [STRIPE | {"p": [str(raw(0)), raw(1)]}]},
    ],
)
def test_segment_blocks_of_another_shape_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(MalformedBlock):
        Segment.decode(dagcbor.encode(fields(SEGMENT.block) | change))


REF = [SEGMENT.cid, 4, 34]
CODE_FIELD = {"k": 3, "m": 2, "rs": "cauchy-0x11d"}


@pytest.mark.parametrize(
    "change",
    [
        {"v": 0},
        {"root": ROOT.binary},
        {"root": None},
        {"bytes": 35},
        {"blocks": 5},
        {"bytes": 34.0},
        {"code": {"k": 3, "m": 2}},
        {"code": CODE_FIELD | {"rs": "vandermonde"}},
        {"code": CODE_FIELD | {"rs": 1}},
        {"code": CODE_FIELD | {"k": 0}},
        {"code": CODE_FIELD | {"m": 253}},
        {"code": [3, 2]},
        {"name": "x"},
        {"segments": [[SEGMENT.cid, 4]]},
        {"segments": [REF, REF]},
        {"segments": [[raw(0), 4, 34]]},
        {"segments": [[SEGMENT.cid.binary, 4, 34]]},
        {"segments": [[SEGMENT.cid, 0, 0]], "blocks": 0, "bytes": 0},
        {"segments": [[SEGMENT.cid, 35, 34]], "blocks": 35},
        {
            "segments": [[SEGMENT.cid, 1, BLOCK_BYTES_MAX + 1]],
            "blocks": 1,
            "bytes": BLOCK_BYTES_MAX + 1,
        },
        {
            "segments": [[SEGMENT.cid, 600, SEGMENT_BYTES_MAX + 1]],
            "blocks": 600,
            "bytes": SEGMENT_BYTES_MAX + 1,
        },
        {"segments": [[SEGMENT.cid, 16_000, 16_000]], "blocks": 16_000, "bytes": 16_000},
        {"segments": [[SEGMENT.cid, -4, 34]]},
        {"segments": [REF] * (SEGMENTS_MAX + 1)},
    ],
)
def test_manifest_blocks_that_break_a_rule_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(MalformedBlock):
        Manifest.decode(dagcbor.encode(fields(MANIFEST.block) | change))


@pytest.mark.parametrize("data", [b"", b"\xa0", b"\x80", b"\xf6", b"\x01", SEGMENT.block])
def test_other_blocks_are_no_manifest(data: bytes) -> None:
    with pytest.raises(MalformedBlock):
        Manifest.decode(data)


def test_a_segment_that_its_manifest_does_not_describe() -> None:
    ref = MANIFEST.segments[0]
    for lie in (replace(ref, blocks=5), replace(ref, bytes=33)):
        with pytest.raises(MalformedBlock, match="its manifest says"):
            MANIFEST.check_segment(lie, SEGMENT)
    with pytest.raises(MalformedBlock, match="coded 3"):
        replace(MANIFEST, code=Code(4, 2)).check_segment(ref, SEGMENT)


def test_pinned_manifests() -> None:
    """tests/vectors/manifest.json: from the visits of a DAG to the CID of its manifest."""
    for vector in json.loads(VECTORS.read_text()):
        assert make(vector) == {key: vector[key] for key in ("segments", "manifest", "block")}


def make(vector: dict[str, Any]) -> dict[str, Any]:
    """Block number i is SHA-256 in counter mode over "block i", cut to its size."""
    code = Code.parse(vector["code"])
    blocks = []
    visits = []
    for number, (size, depth, file_root) in enumerate(vector["visits"]):
        data = b"".join(
            hashlib.sha256(f"block {number} {counter}".encode()).digest()
            for counter in range(-(-size // 32))
        )[:size]
        blocks.append(data)
        visits.append(Visit(CID.of(RAW, data), size, depth, file_root))
    content = {visit.cid: data for visit, data in zip(visits, blocks, strict=True)}
    segments = []
    for plan in plan_segments(visits, code, Cuts(**vector["cuts"])):
        parity = [
            erasure.encode(
                code.k, code.m, [content[cid] for cid, _ in stripe], max(s for _, s in stripe)
            )
            for stripe in plan.stripes
        ]
        segments.append(plan.segment([[CID.of(RAW, row) for row in rows] for rows in parity]))
    manifest = Manifest.of(visits[0].cid, code, [segment.ref for segment in segments])
    return {
        "segments": [str(segment.cid) for segment in segments],
        "manifest": str(manifest.cid),
        "block": manifest.block.hex(),
    }
