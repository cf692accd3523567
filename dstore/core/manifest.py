"""How a root is protected: the code, the stripes, and the two blocks that record them.

A `Segment` lists stripes that are placed together, a `Manifest` lists the segments of a
root; both are strict DAG-CBOR blocks, the same for the same DAG and code.  Which blocks go
into which stripe is `core.stripes`; what the parity bytes are is `core.erasure`.
Format: docs/reference/formats.md, "Manifest and segment".
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final, TypeAlias

from dstore.core import dagcbor
from dstore.core.cid import CID, DAG_CBOR, RAW, SHA2_256
from dstore.errors import MalformedBlock
from dstore.limits import (
    BLOCK_BYTES_MAX,
    FRAGMENTS_PER_STRIPE_MAX,
    SEGMENT_BYTES_MAX,
    SEGMENT_FRAGMENTS_MAX,
    SEGMENTS_MAX,
)

VERSION: Final = 1
CODE_NAME: Final = "cauchy-0x11d"
_CODE_TEXT: Final = re.compile(r"([1-9][0-9]{0,2})\+(0|[1-9][0-9]{0,2})", re.ASCII)

SizedCID: TypeAlias = tuple[CID, int]
# Inside `Manifest` the name `bytes` is the field of the format.
_Block: TypeAlias = bytes


@dataclass(frozen=True, slots=True)
class Code:
    """An erasure code: k data fragments, m parity fragments.  Raises ValueError when made
    with numbers that no stripe can have."""

    k: int
    m: int

    def __post_init__(self) -> None:
        if self.k < 1 or self.m < 0 or self.k + self.m > FRAGMENTS_PER_STRIPE_MAX:
            raise ValueError(
                f"no such code: {self.k}+{self.m}; "
                f"k >= 1, m >= 0 and k + m <= {FRAGMENTS_PER_STRIPE_MAX}"
            )

    @classmethod
    def parse(cls, text: str) -> Code:
        """The code written as "4+2".  Raises ValueError."""
        match = _CODE_TEXT.fullmatch(text)
        if match is None:
            raise ValueError(f"not an erasure code: {text[:32]!r}; write k+m, for example 4+2")
        return cls(int(match[1]), int(match[2]))

    @property
    def n(self) -> int:
        """Fragments of a full stripe, and slots of a segment."""
        return self.k + self.m

    def fragments(self, blocks: int) -> int:
        """Fragments of a segment of that many data blocks, parity included."""
        return blocks + self.m * -(-blocks // self.k)

    def __str__(self) -> str:
        return f"{self.k}+{self.m}"


@dataclass(frozen=True, slots=True)
class Stripe:
    """Blocks coded together: 1 to k data blocks with their sizes, and m parity blocks."""

    data: tuple[SizedCID, ...]
    parity: tuple[CID, ...]

    @property
    def length(self) -> int:
        """Bytes of the largest data block, and of every parity block."""
        return max(size for _, size in self.data)

    @property
    def data_bytes(self) -> int:
        return sum(size for _, size in self.data)


@dataclass(frozen=True)
class Segment:
    """Stripes placed together.  Construction checks nothing; `decode` and `encode` do."""

    k: int
    m: int
    stripes: tuple[Stripe, ...]

    @property
    def code(self) -> Code:
        return Code(self.k, self.m)

    @property
    def n(self) -> int:
        return self.k + self.m

    @cached_property
    def blocks(self) -> int:
        """Data blocks in all stripes."""
        return sum(len(stripe.data) for stripe in self.stripes)

    @cached_property
    def data_bytes(self) -> int:
        """Bytes of all data blocks."""
        return sum(stripe.data_bytes for stripe in self.stripes)

    @cached_property
    def block(self) -> bytes:
        """The encoded segment.  Raises MalformedBlock where it breaks a rule of the format."""
        _check_segment(self)
        return dagcbor.encode(
            {
                "v": VERSION,
                "k": self.k,
                "m": self.m,
                "stripes": [{"d": stripe.data, "p": stripe.parity} for stripe in self.stripes],
            }
        )

    @cached_property
    def cid(self) -> CID:
        return CID.of(DAG_CBOR, self.block)

    @cached_property
    def ref(self) -> SegmentRef:
        """What a manifest says of this segment."""
        return SegmentRef(self.cid, self.blocks, self.data_bytes)

    def encode(self) -> bytes:
        """The same as `block`."""
        return self.block

    @classmethod
    def decode(cls, data: bytes) -> Segment:
        """The segment that the block holds.  Raises MalformedBlock."""
        fields = _fields(dagcbor.decode(data), "segment", ("v", "k", "m", "stripes"))
        _version(fields, "segment")
        k = _count(fields["k"], "k", FRAGMENTS_PER_STRIPE_MAX)
        m = _count(fields["m"], "m", FRAGMENTS_PER_STRIPE_MAX)
        stripes = _array(fields["stripes"], "stripes", SEGMENT_FRAGMENTS_MAX)
        segment = cls(k, m, tuple(_stripe(stripe, k, m) for stripe in stripes))
        _check_segment(segment)
        return segment

    def fragment(self, stripe: int, slot: int) -> CID | None:
        """The fragment of one stripe in that slot; None where a short stripe has none."""
        one = self.stripes[stripe]
        if not 0 <= slot < self.n:
            raise ValueError(f"no slot {slot} in a segment of {self.n}")
        if slot >= self.k:
            return one.parity[slot - self.k]
        return one.data[slot][0] if slot < len(one.data) else None

    def slot_blocks(self, slot: int) -> Iterator[tuple[int, CID, int]]:
        """(stripe index, CID, size in bytes) of every fragment in the slot, in stripe order.

        Nothing for a slot that exists in no stripe.
        """
        if not 0 <= slot < self.n:
            raise ValueError(f"no slot {slot} in a segment of {self.n}")
        for index, stripe in enumerate(self.stripes):
            if slot >= self.k:
                yield index, stripe.parity[slot - self.k], stripe.length
            elif slot < len(stripe.data):
                cid, size = stripe.data[slot]
                yield index, cid, size

    def slot_bytes(self, slot: int) -> int:
        """Bytes of all fragments in the slot."""
        return sum(size for _, _, size in self.slot_blocks(slot))

    @cached_property
    def locate(self) -> Mapping[bytes, tuple[int, int]]:
        """Multihash of each fragment, parity included → (stripe index, slot), first place."""
        places: dict[bytes, tuple[int, int]] = {}
        for index, stripe in enumerate(self.stripes):
            for slot, (cid, _) in enumerate(stripe.data):
                places.setdefault(cid.multihash, (index, slot))
            for row, cid in enumerate(stripe.parity):
                places.setdefault(cid.multihash, (index, self.k + row))
        return places


@dataclass(frozen=True, slots=True)
class SegmentRef:
    """A segment as its manifest names it; `blocks` and `bytes` count data blocks only."""

    cid: CID
    blocks: int
    bytes: int


@dataclass(frozen=True)
class Manifest:
    """How one root is protected under one code.  Construction checks nothing; `decode` and
    `encode` do.  `bytes` and `blocks` are the totals of the segments' data blocks."""

    root: CID
    code: Code
    bytes: int
    blocks: int
    segments: tuple[SegmentRef, ...]

    @classmethod
    def of(cls, root: CID, code: Code, segments: Sequence[SegmentRef]) -> Manifest:
        """The manifest with its totals added up."""
        return cls(
            root,
            code,
            sum(ref.bytes for ref in segments),
            sum(ref.blocks for ref in segments),
            tuple(segments),
        )

    @cached_property
    def block(self) -> _Block:
        """The encoded manifest.  Raises MalformedBlock where it breaks a rule of the format."""
        _check_manifest(self)
        return dagcbor.encode(
            {
                "v": VERSION,
                "root": self.root,
                "code": {"k": self.code.k, "m": self.code.m, "rs": CODE_NAME},
                "bytes": self.bytes,
                "blocks": self.blocks,
                "segments": [(ref.cid, ref.blocks, ref.bytes) for ref in self.segments],
            }
        )

    @cached_property
    def cid(self) -> CID:
        return CID.of(DAG_CBOR, self.block)

    def encode(self) -> _Block:
        """The same as `block`."""
        return self.block

    @classmethod
    def decode(cls, data: _Block) -> Manifest:
        """The manifest that the block holds.  Raises MalformedBlock."""
        names = ("v", "root", "code", "bytes", "blocks", "segments")
        fields = _fields(dagcbor.decode(data), "manifest", names)
        _version(fields, "manifest")
        code = _fields(fields["code"], "code", ("k", "m", "rs"))
        if code["rs"] != CODE_NAME:
            raise MalformedBlock(f"manifest: code {str(code['rs'])[:32]!r} is not {CODE_NAME}")
        try:
            km = Code(
                _count(code["k"], "k", FRAGMENTS_PER_STRIPE_MAX),
                _count(code["m"], "m", FRAGMENTS_PER_STRIPE_MAX),
            )
        except ValueError as error:
            raise MalformedBlock(f"manifest: {error}") from error
        segments = _array(fields["segments"], "segments", SEGMENTS_MAX)
        manifest = cls(
            _cid(fields["root"], "root"),
            km,
            _count(fields["bytes"], "bytes", SEGMENTS_MAX * SEGMENT_BYTES_MAX),
            _count(fields["blocks"], "blocks", SEGMENTS_MAX * SEGMENT_FRAGMENTS_MAX),
            tuple(_segment_ref(ref) for ref in segments),
        )
        _check_manifest(manifest)
        return manifest

    def check_segment(self, ref: SegmentRef, segment: Segment) -> None:
        """Raises MalformedBlock where the decoded segment is not what this manifest says."""
        if (segment.k, segment.m) != (self.code.k, self.code.m):
            raise MalformedBlock(
                f"segment {ref.cid} is coded {segment.k}+{segment.m}, its manifest {self.code}"
            )
        if (segment.blocks, segment.data_bytes) != (ref.blocks, ref.bytes):
            raise MalformedBlock(
                f"segment {ref.cid} has {segment.blocks} blocks of {segment.data_bytes} bytes, "
                f"its manifest says {ref.blocks} of {ref.bytes}"
            )


def _check_segment(segment: Segment) -> None:
    """Every rule of the format that does not follow from the types."""
    try:
        code = Code(segment.k, segment.m)
    except ValueError as error:
        raise MalformedBlock(f"segment: {error}") from error
    if not segment.stripes:
        raise MalformedBlock("segment: no stripes")
    fragments = 0
    for stripe in segment.stripes:
        if not 1 <= len(stripe.data) <= code.k:
            raise MalformedBlock(f"segment: a stripe of {len(stripe.data)} data blocks at {code}")
        if len(stripe.parity) != code.m:
            raise MalformedBlock(f"segment: {len(stripe.parity)} parity blocks at {code}")
        fragments += len(stripe.data) + code.m
        for cid, size in stripe.data:
            if not 1 <= size <= BLOCK_BYTES_MAX:
                raise MalformedBlock(f"segment: a block of {size} bytes")
            if cid.is_identity:
                raise MalformedBlock("segment: an identity CID is no fragment")
        for cid in stripe.parity:
            _check_own(cid, RAW, "parity")
    if fragments > SEGMENT_FRAGMENTS_MAX:
        raise MalformedBlock(f"segment: {fragments} fragments; at most {SEGMENT_FRAGMENTS_MAX}")
    if segment.data_bytes > SEGMENT_BYTES_MAX:
        raise MalformedBlock(
            f"segment: {segment.data_bytes} bytes of data; at most {SEGMENT_BYTES_MAX}"
        )


def _check_manifest(manifest: Manifest) -> None:
    if len(manifest.segments) > SEGMENTS_MAX:
        raise MalformedBlock(f"manifest: {len(manifest.segments)} segments")
    for ref in manifest.segments:
        _check_own(ref.cid, DAG_CBOR, "segment")
        # Each block has a byte at least and BLOCK_BYTES_MAX at most.
        if not 1 <= ref.blocks <= ref.bytes <= SEGMENT_BYTES_MAX:
            raise MalformedBlock(f"manifest: {ref.blocks} blocks of {ref.bytes} bytes")
        if ref.bytes > ref.blocks * BLOCK_BYTES_MAX:
            raise MalformedBlock(f"manifest: {ref.blocks} blocks cannot have {ref.bytes} bytes")
        if manifest.code.fragments(ref.blocks) > SEGMENT_FRAGMENTS_MAX:
            raise MalformedBlock(f"manifest: a segment of {ref.blocks} blocks at {manifest.code}")
    totals = (
        sum(ref.bytes for ref in manifest.segments),
        sum(ref.blocks for ref in manifest.segments),
    )
    if totals != (manifest.bytes, manifest.blocks):
        raise MalformedBlock("manifest: the totals are not the sums of the segments")


def _check_own(cid: CID, codec: int, what: str) -> None:
    """Blocks that dstore itself makes are named in one way only."""
    if cid.version != 1 or cid.codec != codec or cid.hash_code != SHA2_256:
        raise MalformedBlock(f"{what}: {cid} is not a CIDv1 of codec 0x{codec:x} over sha2-256")


def _stripe(value: object, k: int, m: int) -> Stripe:
    fields = _fields(value, "stripe", ("d", "p"))
    data = _array(fields["d"], "d", k)
    parity = _array(fields["p"], "p", m)
    return Stripe(
        tuple(_sized(entry) for entry in data), tuple(_cid(entry, "p") for entry in parity)
    )


def _sized(value: object) -> SizedCID:
    if not (isinstance(value, list) and len(value) == 2):
        raise MalformedBlock("d: an entry is a pair of CID and size")
    return _cid(value[0], "d"), _count(value[1], "size", BLOCK_BYTES_MAX)


def _segment_ref(value: object) -> SegmentRef:
    if not (isinstance(value, list) and len(value) == 3):
        raise MalformedBlock("segments: an entry is CID, blocks, bytes")
    return SegmentRef(
        _cid(value[0], "segments"),
        _count(value[1], "blocks", SEGMENT_FRAGMENTS_MAX),
        _count(value[2], "bytes", SEGMENT_BYTES_MAX),
    )


def _fields(value: object, what: str, names: tuple[str, ...]) -> dict[str, object]:
    """The map with exactly these keys."""
    if not isinstance(value, dict) or value.keys() != set(names):
        raise MalformedBlock(f"{what}: a map of {', '.join(names)} is expected")
    return value


def _version(fields: dict[str, object], what: str) -> None:
    version = fields["v"]
    if type(version) is not int or version != VERSION:
        raise MalformedBlock(f"{what}: format version {str(version)[:32]} is not known")


def _count(value: object, what: str, most: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= most:
        raise MalformedBlock(f"{what}: not a number of at most {most}")
    return value


def _cid(value: object, what: str) -> CID:
    if not isinstance(value, CID):
        raise MalformedBlock(f"{what}: not a link")
    return value


def _array(value: object, what: str, most: int) -> list[object]:
    if not isinstance(value, list) or len(value) > most:
        raise MalformedBlock(f"{what}: not an array of at most {most}")
    return value
