"""The values that `/dstore/fragments/1.0.0` exchanges, and what makes each of them legal.

Every value checks its own counts and sizes when it is made, so that neither a peer nor this
node can put an oversized one on the wire.  How they become bytes is `core/wirecodec.py`; in
what order they may come is `network/fragments_client.py` and `fragments_server.py`.  The
protocol is described in docs/reference/wire.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from typing import Final

from dstore.core.cid import CID
from dstore.core.peerid import PeerId
from dstore.limits import (
    ADDRESS_CHARS_MAX,
    AWAY_PERIODS_MAX,
    BLOCK_BYTES_MAX,
    CHALLENGES_MAX,
    DOMAIN_BYTES_MAX,
    DOMAINS_PER_PEER_MAX,
    FIND_MANIFESTS_MAX,
    FIND_RECORDS_MAX,
    FRAGMENTS_PER_STRIPE_MAX,
    GET_BLOCKS_MAX,
    HAVE_SEGMENTS_MAX,
    HOLDER_ADDRESSES_MAX,
    HOLDER_MAP_ENTRIES_MAX,
    NONCE_BYTES_MAX,
    RECORD_BYTES_MAX,
    REFUSAL_CHARS_MAX,
    SEGMENT_FRAGMENTS_MAX,
    SLOT_REFS_MAX,
    VERSION_CHARS_MAX,
)

PROTOCOL: Final = "/dstore/fragments/1.0.0"
REPAIR_PROTOCOL: Final = "/dstore/fragments/repair/1.0.0"  # the same, behind the foreground
DIGEST_BYTES: Final = 16  # of what `Have` answers, to ask for changes only
_TIME_MAX: Final = 1 << 53  # beyond it JSON and JavaScript round


class Refusal(StrEnum):
    """Why a peer says no: the `reason` of `errors.Refused`."""

    OTHER = "other"
    UNSUPPORTED = "unsupported"
    BUSY = "busy"
    QUOTA = "quota"
    FULL = "full"
    POLICY = "policy"
    BAD_SIGNATURE = "bad signature"
    TOO_MANY_SLOTS = "too many slots"
    NOT_FOUND = "not found"
    EXPIRED = "expired"
    MALFORMED = "malformed"
    NO_SHORTAGE = "no shortage"
    CLOCK = "clock"
    INTERNAL = "internal"


class Role(IntEnum):
    """What a node does for others."""

    UNKNOWN = 0
    STORAGE = 1
    GATEWAY = 2
    CLIENT = 3


def _at_most(what: str, count: int, limit: int) -> None:
    if count > limit:
        raise ValueError(f"{what}: {count}; at most {limit}")


def _within(what: str, value: int, limit: int) -> None:
    if not 0 <= value <= limit:
        raise ValueError(f"{what} is {value}; 0 to {limit} are legal")


def _text(what: str, value: str, chars_max: int) -> None:
    _at_most(f"characters of {what}", len(value), chars_max)
    if not value.isprintable():
        raise ValueError(f"{what} holds control characters")


def _slot(slot: int) -> None:
    _within("slot", slot, FRAGMENTS_PER_STRIPE_MAX - 1)


def _records(records: Sequence[bytes]) -> None:
    _at_most("pin records", len(records), FIND_RECORDS_MAX)
    for record in records:
        _at_most("bytes of a pin record", len(record), RECORD_BYTES_MAX)


def bitmap_of(stripes: Iterable[int]) -> bytes:
    """The bitmap of the stripe indices: stripe i in bit i % 8 of byte i // 8, no zero byte
    at the end.  Raises ValueError for an index no segment has."""
    bits = bytearray()
    for stripe in stripes:
        _within("stripe", stripe, SEGMENT_FRAGMENTS_MAX - 1)
        byte = stripe >> 3
        if byte >= len(bits):
            bits.extend(bytes(byte + 1 - len(bits)))
        bits[byte] |= 1 << (stripe & 7)
    return bytes(bits)


def stripes_of(bitmap: bytes) -> tuple[int, ...]:
    """The stripe indices of a bitmap, ascending.  Raises ValueError where it is too long."""
    _bitmap(bitmap)
    return tuple(
        position * 8 + bit
        for position, byte in enumerate(bitmap)
        if byte
        for bit in range(8)
        if byte >> bit & 1
    )


def has_stripe(bitmap: bytes, stripe: int) -> bool:
    """Whether the bitmap has the stripe."""
    return stripe >> 3 < len(bitmap) and bool(bitmap[stripe >> 3] >> (stripe & 7) & 1)


def _bitmap(bitmap: bytes) -> None:
    _at_most("bytes of a stripe bitmap", len(bitmap), SEGMENT_FRAGMENTS_MAX // 8)


# --- Parts of messages -----------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class HolderEntry:
    """One line of a segment's holder map: who is known to hold a slot, until when (unix
    seconds).  `addresses` are multiaddrs in text without the /p2p part."""

    peer: PeerId
    slot: int
    expires: int
    addresses: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _slot(self.slot)
        _within("expiry", self.expires, _TIME_MAX)
        _at_most("addresses of a holder", len(self.addresses), HOLDER_ADDRESSES_MAX)
        for address in self.addresses:
            _text("an address", address, ADDRESS_CHARS_MAX)


@dataclass(frozen=True, slots=True)
class SlotRef:
    """One slot of one segment."""

    segment: CID
    slot: int

    def __post_init__(self) -> None:
        _slot(self.slot)


@dataclass(frozen=True, slots=True)
class HeldSlot:
    """A slot that the answering peer holds: whole, or the stripes of the bitmap (see
    `stripes_of`).  `lease_expires` in unix seconds, 0 where no lease was given."""

    slot: int
    whole: bool
    lease_expires: int = 0
    stripes: bytes = b""

    def __post_init__(self) -> None:
        _slot(self.slot)
        _within("lease expiry", self.lease_expires, _TIME_MAX)
        _bitmap(self.stripes)


@dataclass(frozen=True, slots=True)
class Away:
    """A time, in unix seconds, at which a node plans to be unreachable."""

    start: int
    end: int

    def __post_init__(self) -> None:
        _within("end of an absence", self.end, _TIME_MAX)
        _within("start of an absence", self.start, self.end)


@dataclass(frozen=True, slots=True)
class Challenged:
    """One fragment that a holder shall show: answered with its bytes.  `nonce` makes the
    question, and so its record, unlike any before."""

    segment: CID
    slot: int
    stripe: int
    nonce: bytes = b""

    def __post_init__(self) -> None:
        _slot(self.slot)
        _within("stripe", self.stripe, SEGMENT_FRAGMENTS_MAX - 1)
        _at_most("bytes of a nonce", len(self.nonce), NONCE_BYTES_MAX)


# --- Requests --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class HelloRequest:
    """Asks for `Hello`."""


@dataclass(frozen=True, slots=True)
class FindManifests:
    """Asks for `Manifests` of a root."""

    root: CID


@dataclass(frozen=True, slots=True)
class GetBlocks:
    """Asks for blocks; answered in this order."""

    cids: tuple[CID, ...]

    def __post_init__(self) -> None:
        _at_most("blocks asked for", len(self.cids), GET_BLOCKS_MAX)


@dataclass(frozen=True, slots=True)
class HaveQuery:
    """One segment asked about; `known` is the digest of an earlier answer, or empty."""

    segment: CID
    known: bytes = b""

    def __post_init__(self) -> None:
        if len(self.known) not in (0, DIGEST_BYTES):
            raise ValueError(f"digest of {len(self.known)} bytes; {DIGEST_BYTES} expected")


@dataclass(frozen=True, slots=True)
class Have:
    """Asks for a `Holding` of each segment; answered in this order."""

    queries: tuple[HaveQuery, ...]

    def __post_init__(self) -> None:
        _at_most("segments asked about", len(self.queries), HAVE_SEGMENTS_MAX)


@dataclass(frozen=True, slots=True)
class PutSlot:
    """Offers a slot: the signed envelope of the pin record, the manifest and the segment that
    it belongs to, and who else holds slots of the segment."""

    pin_record: bytes
    manifest: CID
    segment: CID
    slot: int
    holders: tuple[HolderEntry, ...] = ()

    def __post_init__(self) -> None:
        _at_most("bytes of a pin record", len(self.pin_record), RECORD_BYTES_MAX)
        _slot(self.slot)
        _at_most("entries of a holder map", len(self.holders), HOLDER_MAP_ENTRIES_MAX)


@dataclass(frozen=True, slots=True)
class Renew:
    """Asks for fresh leases; carries pin record envelopes that the holder may not know."""

    slots: tuple[SlotRef, ...]
    pin_records: tuple[bytes, ...] = ()

    def __post_init__(self) -> None:
        _at_most("slots to renew", len(self.slots), SLOT_REFS_MAX)
        _records(self.pin_records)


@dataclass(frozen=True, slots=True)
class Release:
    """Says that slots are no longer wanted; carries the pin records that end their pins."""

    slots: tuple[SlotRef, ...]
    pin_records: tuple[bytes, ...] = ()

    def __post_init__(self) -> None:
        _at_most("slots to release", len(self.slots), SLOT_REFS_MAX)
        _records(self.pin_records)


@dataclass(frozen=True, slots=True)
class Challenge:
    """Asks to see fragments; answered in this order."""

    items: tuple[Challenged, ...]

    def __post_init__(self) -> None:
        _at_most("fragments challenged", len(self.items), CHALLENGES_MAX)


Request = HelloRequest | FindManifests | GetBlocks | Have | PutSlot | Renew | Release | Challenge


@dataclass(frozen=True, slots=True)
class Document:
    """A manifest or segment on its way to the holder that wanted it: `size` raw bytes
    follow; None: the client has no such block."""

    cid: CID
    size: int | None

    def __post_init__(self) -> None:
        _within("block size", self.size or 0, BLOCK_BYTES_MAX)


@dataclass(frozen=True, slots=True)
class Fragment:
    """A fragment on its way to its holder: `size` raw bytes follow."""

    stripe: int
    size: int

    def __post_init__(self) -> None:
        _within("stripe", self.stripe, SEGMENT_FRAGMENTS_MAX - 1)
        _within("block size", self.size, BLOCK_BYTES_MAX)


Upload = Document | Fragment


# --- Answers ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Hello:
    """What a node says of itself.  `clock` is its unix time; `load_percent` how busy it is;
    `away` when it plans to be unreachable."""

    version: str
    role: Role
    free_bytes: int
    slot_bytes_max: int
    lease_seconds_max: int
    domains: tuple[str, ...] = ()
    load_percent: int = 0
    clock: int = 0
    away: tuple[Away, ...] = ()

    def __post_init__(self) -> None:
        _text("the version", self.version, VERSION_CHARS_MAX)
        _within("free bytes", self.free_bytes, (1 << 63) - 1)
        _within("largest slot", self.slot_bytes_max, (1 << 63) - 1)
        _within("longest lease", self.lease_seconds_max, _TIME_MAX)
        _within("load", self.load_percent, 100)
        _within("clock", self.clock, _TIME_MAX)
        _at_most("failure domains", len(self.domains), DOMAINS_PER_PEER_MAX)
        for domain in self.domains:
            _text("a failure domain", domain, DOMAIN_BYTES_MAX)
            _at_most("bytes of a failure domain", len(domain.encode()), DOMAIN_BYTES_MAX)
        _at_most("absences", len(self.away), AWAY_PERIODS_MAX)


@dataclass(frozen=True, slots=True)
class Manifests:
    """Manifests known for a root, and the newest pin record envelopes that name them."""

    manifests: tuple[CID, ...] = ()
    pin_records: tuple[bytes, ...] = ()

    def __post_init__(self) -> None:
        _at_most("manifests", len(self.manifests), FIND_MANIFESTS_MAX)
        _records(self.pin_records)


@dataclass(frozen=True, slots=True)
class BlockHeader:
    """A block of an answer: `size` raw bytes follow; None: the peer has it not."""

    cid: CID
    size: int | None

    def __post_init__(self) -> None:
        _within("block size", self.size or 0, BLOCK_BYTES_MAX)


@dataclass(frozen=True, slots=True)
class Holding:
    """What a peer holds of a segment, and who else is known to hold some of it."""

    segment: CID
    slots: tuple[HeldSlot, ...] = ()
    holders: tuple[HolderEntry, ...] = ()

    def __post_init__(self) -> None:
        _at_most("slots held", len(self.slots), FRAGMENTS_PER_STRIPE_MAX)
        _at_most("entries of a holder map", len(self.holders), HOLDER_MAP_ENTRIES_MAX)


@dataclass(frozen=True, slots=True)
class Unchanged:
    """The holding of the segment is still the one whose digest the query named."""

    segment: CID


@dataclass(frozen=True, slots=True)
class Haves:
    """The holdings of the segments asked about, in that order (never on the wire as one)."""

    holdings: tuple[Holding, ...] = ()


@dataclass(frozen=True, slots=True)
class Wanted:
    """The holder asks for the manifest or the segment of the slot offered."""

    cid: CID


@dataclass(frozen=True, slots=True)
class Accepted:
    """The slot is taken; fragments of these stripes are still to be sent, in ascending order."""

    stripes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Stored:
    """So many fragments of this exchange are durable by now."""

    fragments: int

    def __post_init__(self) -> None:
        _within("fragments stored", self.fragments, SEGMENT_FRAGMENTS_MAX)


@dataclass(frozen=True, slots=True)
class SlotAnswer:
    """The answer for one slot: the envelope of its lease, a refusal, or neither: it is gone."""

    segment: CID
    slot: int
    lease: bytes | None = None
    refusal: Refusal | None = None

    def __post_init__(self) -> None:
        _slot(self.slot)
        _at_most("bytes of a lease", len(self.lease or b""), RECORD_BYTES_MAX)
        if self.lease is not None and self.refusal is not None:
            raise ValueError("a slot answered with a lease and a refusal")


@dataclass(frozen=True, slots=True)
class Stopped:
    """The answer ends here, its size limit being reached: ask again for the rest."""


@dataclass(frozen=True, slots=True)
class Working:
    """The peer is alive and not yet done."""


@dataclass(frozen=True, slots=True)
class Refusing:
    """The peer says no; `text` is for people."""

    reason: Refusal
    text: str = ""

    def __post_init__(self) -> None:
        _at_most("characters of a refusal", len(self.text), REFUSAL_CHARS_MAX)


Answer = (
    Hello
    | Manifests
    | BlockHeader
    | Holding
    | Unchanged
    | Wanted
    | Accepted
    | Stored
    | SlotAnswer
    | Stopped
    | Working
    | Refusing
)
