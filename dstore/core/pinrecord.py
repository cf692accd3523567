"""Pin records and leases: the owner's wish, the holder's promise, and which record counts.

Both are DAG-CBOR payloads in signed envelopes, kept and passed on verbatim.  Opening one
checks everything that the bytes alone and the time of day can tell; whether its manifests
exist, or its bytes were delivered, is the services' business.
Format: docs/reference/formats.md, "Pin record" and "Lease".
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, TypeVar

from dstore.core import dagcbor
from dstore.core.cid import CID, DAG_CBOR, SHA2_256
from dstore.core.envelope import KEY_BYTES, Envelope, Kind, SigningKey, seal, unseal
from dstore.core.peerid import PeerId
from dstore.errors import InvalidCid, MalformedBlock, ProtocolViolation
from dstore.limits import (
    CLOCK_SKEW_SECONDS_MAX,
    COPIES_MAX,
    DOMAIN_BYTES_MAX,
    DOMAINS_PER_PEER_MAX,
    FRAGMENTS_PER_STRIPE_MAX,
    RECORD_BYTES_MAX,
    RECORD_MANIFESTS_MAX,
    SEGMENT_BYTES_MAX,
)

T = TypeVar("T")

VERSION: Final = 1
PIN_RECORD: Final = Kind(b"dstore-pin-record", b"/dstore/pin-record")
LEASE: Final = Kind(b"dstore-lease", b"/dstore/lease")
_NUMBER_MAX: Final = (1 << 63) - 1  # what SQLite and every other language hold
_PIN_RECORD_FIELDS: Final = frozenset(
    ("v", "root", "manifests", "owner", "seq", "created", "expires", "copies")
)
_LEASE_FIELDS: Final = frozenset(
    ("v", "holder", "owner", "segment", "slot", "bytes", "domains", "issued", "expires", "serial")
)
# Inside `Lease` the name `bytes` is the field of the format.
_Bytes = bytes


@dataclass(frozen=True)
class PinRecord:
    """What an owner wants kept.  `owner` is a raw 32-byte Ed25519 key; times are unix
    seconds; `expires` in the past releases the root."""

    root: CID
    manifests: tuple[CID, ...]
    owner: bytes
    seq: int
    created: int
    expires: int
    copies: int = 1

    def sign(self, key: SigningKey) -> SignedPinRecord:
        """The record in its envelope.  Raises ValueError where `key` is not the owner's or
        a field is out of its range."""
        if key.public != self.owner:
            raise ValueError("a pin record is signed with its owner's key")
        payload = dagcbor.encode(
            {
                "v": VERSION,
                "root": self.root,
                "manifests": self.manifests,
                "owner": self.owner,
                "seq": self.seq,
                "created": self.created,
                "expires": self.expires,
                "copies": self.copies,
            }
        )
        envelope = _seal(key, PIN_RECORD, payload)
        return SignedPinRecord(_own(_pin_record, payload), envelope)


@dataclass(frozen=True)
class SignedPinRecord:
    """A pin record and the envelope that proves it."""

    record: PinRecord
    envelope: bytes = field(repr=False)

    @property
    def order(self) -> tuple[int, bytes]:
        """Records of one owner and root are ordered by this; the highest counts."""
        return self.record.seq, hashlib.sha256(self.envelope).digest()


def newer(one: SignedPinRecord, other: SignedPinRecord) -> bool:
    """Whether `one` supersedes `other`.  False for the same envelope.  Raises ValueError
    where they are about different owners or roots."""
    if (one.record.owner, one.record.root) != (other.record.owner, other.record.root):
        raise ValueError("records of different owners or roots have no order")
    return one.order > other.order


def open_pin_record(envelope: bytes, now: float) -> SignedPinRecord:
    """The pin record in the envelope, signed by the owner it names.

    `now` is unix seconds.  An expired record is legal: it is a release.  Raises
    ProtocolViolation for everything else that is wrong, a `created` more than
    CLOCK_SKEW_SECONDS_MAX ahead included.
    """
    opened = unseal(envelope, PIN_RECORD)
    record = _theirs(_pin_record, opened)
    if record.owner != opened.public_key:
        raise ProtocolViolation("a pin record that its owner did not sign")
    _check_not_ahead(record.created, now, "pin record")
    return SignedPinRecord(record, envelope)


@dataclass(frozen=True)
class Lease:
    """What a holder promises: to keep a slot of a segment until `expires`.  `bytes` is the
    slot's size, `domains` the holder's failure domain labels; times are unix seconds."""

    holder: PeerId
    owner: _Bytes
    segment: CID
    slot: int
    bytes: int
    domains: tuple[str, ...]
    issued: int
    expires: int
    serial: int

    def sign(self, key: SigningKey) -> SignedLease:
        """The lease in its envelope.  Raises ValueError where `key` is not the holder's or
        a field is out of its range."""
        if key.peer_id != self.holder:
            raise ValueError("a lease is signed with its holder's key")
        payload = dagcbor.encode(
            {
                "v": VERSION,
                "holder": self.holder.binary,
                "owner": self.owner,
                "segment": self.segment,
                "slot": self.slot,
                "bytes": self.bytes,
                "domains": self.domains,
                "issued": self.issued,
                "expires": self.expires,
                "serial": self.serial,
            }
        )
        envelope = _seal(key, LEASE, payload)
        return SignedLease(_own(_lease, payload), envelope)


@dataclass(frozen=True)
class SignedLease:
    """A lease and the envelope that proves it."""

    lease: Lease
    envelope: bytes = field(repr=False)


def open_lease(envelope: bytes, now: float) -> SignedLease:
    """The lease in the envelope, signed by the holder it names.

    `now` is unix seconds.  An expired lease is legal; the caller looks at `expires`, and
    whether the lease is for itself.  Raises ProtocolViolation for everything else that is
    wrong, an `issued` more than CLOCK_SKEW_SECONDS_MAX ahead included.
    """
    opened = unseal(envelope, LEASE)
    lease = _theirs(_lease, opened)
    if lease.holder.ed25519 != opened.public_key:
        raise ProtocolViolation("a lease that its holder did not sign")
    _check_not_ahead(lease.issued, now, "lease")
    return SignedLease(lease, envelope)


class _Fault(Exception):
    """A field that breaks the format; whose fault that is, the caller knows."""


def _theirs(read: Callable[[dict[str, object]], T], opened: Envelope) -> T:
    """Read a payload that came from outside."""
    try:
        return _read(read, opened.payload)
    except _Fault as fault:
        raise ProtocolViolation(str(fault)) from fault


def _own(read: Callable[[dict[str, object]], T], payload: bytes) -> T:
    """Read back a payload of our own making: what we sign, others accept."""
    try:
        return _read(read, payload)
    except _Fault as fault:
        raise ValueError(str(fault)) from fault


def _read(read: Callable[[dict[str, object]], T], payload: bytes) -> T:
    try:
        value = dagcbor.decode(payload, bytes_max=RECORD_BYTES_MAX)
    except MalformedBlock as error:
        raise _Fault(str(error)) from error
    if not isinstance(value, dict):
        raise _Fault("a record is a map")
    return read(value)


def _seal(key: SigningKey, kind: Kind, payload: bytes) -> bytes:
    envelope = seal(key, kind, payload)
    if len(envelope) > RECORD_BYTES_MAX:
        raise ValueError(f"a record of {len(envelope)} bytes; at most {RECORD_BYTES_MAX}")
    return envelope


def _pin_record(fields: dict[str, object]) -> PinRecord:
    _check_fields(fields, _PIN_RECORD_FIELDS, "pin record")
    manifests = fields["manifests"]
    if not isinstance(manifests, list) or not 1 <= len(manifests) <= RECORD_MANIFESTS_MAX:
        raise _Fault(f"pin record: 1 to {RECORD_MANIFESTS_MAX} manifests are expected")
    cids = tuple(_block_cid(manifest, "manifests") for manifest in manifests)
    if len(set(cids)) != len(cids):
        raise _Fault("pin record: a manifest is named twice")
    return PinRecord(
        root=_cid(fields["root"], "root"),
        manifests=cids,
        owner=_key(fields["owner"]),
        seq=_number(fields["seq"], "seq"),
        created=_number(fields["created"], "created"),
        expires=_number(fields["expires"], "expires"),
        copies=_number(fields["copies"], "copies", 1, COPIES_MAX),
    )


def _lease(fields: dict[str, object]) -> Lease:
    _check_fields(fields, _LEASE_FIELDS, "lease")
    domains = fields["domains"]
    if not isinstance(domains, list) or len(domains) > DOMAINS_PER_PEER_MAX:
        raise _Fault(f"lease: at most {DOMAINS_PER_PEER_MAX} domains are expected")
    holder = fields["holder"]
    if not isinstance(holder, bytes):
        raise _Fault("holder: not a peer id")
    try:
        peer_id = PeerId(holder)
    except InvalidCid as error:
        raise _Fault(f"holder: {error}") from error
    issued = _number(fields["issued"], "issued")
    return Lease(
        holder=peer_id,
        owner=_key(fields["owner"]),
        segment=_block_cid(fields["segment"], "segment"),
        slot=_number(fields["slot"], "slot", 0, FRAGMENTS_PER_STRIPE_MAX - 1),
        bytes=_number(fields["bytes"], "bytes", 1, SEGMENT_BYTES_MAX),
        domains=tuple(_domain(domain) for domain in domains),
        issued=issued,
        expires=_number(fields["expires"], "expires", issued),
        serial=_number(fields["serial"], "serial"),
    )


def _check_fields(fields: dict[str, object], names: frozenset[str], what: str) -> None:
    version = fields.get("v")
    if type(version) is not int or version != VERSION:
        raise _Fault(f"{what}: format version {str(version)[:32]} is not known")
    if fields.keys() != names:
        raise _Fault(f"{what}: the fields {', '.join(sorted(names))} are expected")


def _check_not_ahead(made: int, now: float, what: str) -> None:
    if made > now + CLOCK_SKEW_SECONDS_MAX:
        raise ProtocolViolation(
            f"a {what} from {made - int(now)} s in the future; clocks may differ by "
            f"{CLOCK_SKEW_SECONDS_MAX} s"
        )


def _number(value: object, what: str, least: int = 0, most: int = _NUMBER_MAX) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise _Fault(f"{what}: not a number from {least} to {most}")
    return value


def _key(value: object) -> bytes:
    if not isinstance(value, bytes) or len(value) != KEY_BYTES:
        raise _Fault(f"owner: not a key of {KEY_BYTES} bytes")
    return value


def _cid(value: object, what: str) -> CID:
    if not isinstance(value, CID):
        raise _Fault(f"{what}: not a link")
    return value


def _block_cid(value: object, what: str) -> CID:
    """A manifest or segment: blocks that dstore makes itself."""
    cid = _cid(value, what)
    if cid.version != 1 or cid.codec != DAG_CBOR or cid.hash_code != SHA2_256:
        raise _Fault(f"{what}: {cid} does not name a dag-cbor block by sha2-256")
    return cid


def _domain(value: object) -> str:
    if not isinstance(value, str) or not 1 <= len(value.encode()) <= DOMAIN_BYTES_MAX:
        raise _Fault(f"domains: not a text of 1 to {DOMAIN_BYTES_MAX} bytes")
    if not value.isprintable():
        raise _Fault("domains: a label with control characters")
    return value
