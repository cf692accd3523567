"""Fuzz targets: manifests and segments, which say where everything is."""

from __future__ import annotations

from collections.abc import Iterator

from dstore.core.cid import CID, DAG_PB, RAW
from dstore.core.manifest import Code, Manifest, Segment, Stripe
from dstore.errors import MalformedBlock
from dstore.limits import FRAGMENTS_PER_STRIPE_MAX
from tests.fuzz.target import Target

_CIDS = tuple(CID.of(RAW, bytes((number,))) for number in range(8))
_OLD = CID.of(DAG_PB, b"x", version=0)
_SEGMENT = Segment(
    3,
    2,
    (
        Stripe(
            ((_CIDS[0], 9), (_CIDS[1], 1 << 20), (CID.of(DAG_PB, b"x", version=0), 3)), _CIDS[2:4]
        ),
        Stripe(((_CIDS[4], 1),), _CIDS[5:7]),
    ),
)
_MANIFEST = Manifest.of(_CIDS[7], Code(3, 2), [_SEGMENT.ref, _SEGMENT.ref])


def manifest(data: bytes) -> None:
    """A manifest that is taken has one encoding, totals that add up, and a legal code."""
    try:
        found = Manifest.decode(data)
    except MalformedBlock:
        return
    assert found.encode() == data
    assert found.code.n <= FRAGMENTS_PER_STRIPE_MAX
    assert sum(ref.bytes for ref in found.segments) == found.bytes
    for ref in found.segments:
        try:
            found.check_segment(ref, _SEGMENT)
        except MalformedBlock:
            continue
        assert (ref.blocks, ref.bytes) == (_SEGMENT.blocks, _SEGMENT.data_bytes)


def segment(data: bytes) -> None:
    """A segment that is taken has one encoding, and its slots together are its stripes."""
    try:
        found = Segment.decode(data)
    except MalformedBlock:
        return
    assert found.encode() == data
    slots = [list(found.slot_blocks(slot)) for slot in range(found.n)]
    named = sum(len(stripe.data) + len(stripe.parity) for stripe in found.stripes)
    assert sum(map(len, slots)) == named
    for slot, blocks in enumerate(slots):
        assert found.slot_bytes(slot) == sum(size for _, _, size in blocks)
        for stripe, cid, size in blocks:
            assert found.fragment(stripe, slot) == cid
            assert 1 <= size <= found.stripes[stripe].length
            assert cid.multihash in found.locate


def _blocks(*values: Manifest | Segment) -> Iterator[bytes]:
    for value in values:
        yield value.block


TARGETS = {
    "manifest": Target(manifest, lambda: _blocks(_MANIFEST, Manifest.of(_CIDS[0], Code(1, 0), []))),
    "segment": Target(segment, lambda: _blocks(_SEGMENT)),
}
