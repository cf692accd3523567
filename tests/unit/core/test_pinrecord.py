"""Envelopes, pin records, leases: what is accepted, what is refused, which record counts."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dstore.core import dagcbor
from dstore.core.cid import CID, DAG_CBOR, DAG_PB, RAW
from dstore.core.envelope import Kind, SigningKey, seal, unseal
from dstore.core.peerid import PeerId
from dstore.core.pinrecord import (
    LEASE,
    PIN_RECORD,
    Lease,
    PinRecord,
    newer,
    open_lease,
    open_pin_record,
)
from dstore.errors import ProtocolViolation
from dstore.limits import (
    CLOCK_SKEW_SECONDS_MAX,
    COPIES_MAX,
    DOMAIN_BYTES_MAX,
    DOMAINS_PER_PEER_MAX,
    RECORD_BYTES_MAX,
    RECORD_MANIFESTS_MAX,
    SEGMENT_BYTES_MAX,
)

VECTORS = Path(__file__).parents[2] / "vectors" / "records.json"
NOW = 1_800_000_000
OWNER = SigningKey.from_seed(b"\x01" * 32)
HOLDER = SigningKey.from_seed(b"\x02" * 32)
MALLORY = SigningKey.from_seed(b"\x03" * 32)
MANIFEST = CID.of(DAG_CBOR, b"manifest")
RECORD = PinRecord(
    root=CID.of(DAG_PB, b"root"),
    manifests=(MANIFEST,),
    owner=OWNER.public,
    seq=7,
    created=NOW,
    expires=NOW + 365 * 86_400,
    copies=1,
)
LEASED = Lease(
    holder=HOLDER.peer_id,
    owner=OWNER.public,
    segment=CID.of(DAG_CBOR, b"segment"),
    slot=3,
    bytes=1_048_576,
    domains=("rack-1", "Zürich"),
    issued=NOW,
    expires=NOW + 30 * 86_400,
    serial=42,
)
KIND = Kind(b"a-domain", b"/a/type")


def fields(envelope: bytes, kind: Kind) -> dict[str, Any]:
    value: Any = dagcbor.decode(unseal(envelope, kind).payload)
    return dict(value)


# --- Envelopes -------------------------------------------------------------------------


def test_an_envelope_gives_back_its_payload_and_signer() -> None:
    opened = unseal(seal(OWNER, KIND, b"payload"), KIND)
    assert (opened.payload, opened.public_key) == (b"payload", OWNER.public)


def test_every_changed_byte_breaks_the_envelope() -> None:
    envelope = seal(OWNER, KIND, b"payload")
    for position in range(len(envelope)):
        changed = bytearray(envelope)
        changed[position] ^= 1
        with pytest.raises(ProtocolViolation):
            unseal(bytes(changed), KIND)


def test_every_cut_and_every_addition_breaks_the_envelope() -> None:
    envelope = seal(OWNER, KIND, b"payload")
    for length in range(len(envelope)):
        with pytest.raises(ProtocolViolation):
            unseal(envelope[:length], KIND)
    for more in (b"\x00", b"\x32\x00", envelope):
        with pytest.raises(ProtocolViolation, match="after the envelope"):
            unseal(envelope + more, KIND)


def test_a_signature_counts_for_one_kind_only() -> None:
    envelope = seal(OWNER, KIND, b"payload")
    for other in (Kind(b"b-domain", b"/a/type"), Kind(b"a-domain", b"/b/type")):
        with pytest.raises(ProtocolViolation):
            unseal(envelope, other)
    # The same bytes split differently between domain and type sign differently.
    with pytest.raises(ProtocolViolation, match="signature"):
        unseal(seal(OWNER, Kind(b"a", b"/a/type"), b"payload"), KIND)


def test_the_key_and_the_signature_have_their_one_length() -> None:
    envelope = seal(OWNER, KIND, b"payload")
    secp256k1 = envelope.replace(b"\x08\x01\x12\x20", b"\x08\x02\x12\x20", 1)
    with pytest.raises(ProtocolViolation, match="Ed25519"):
        unseal(secp256k1, KIND)
    short = envelope[:-66] + b"\x2a\x3f" + envelope[-64:-1]
    with pytest.raises(ProtocolViolation, match="63 bytes"):
        unseal(short, KIND)


def test_varints_have_one_form_and_envelopes_a_largest_size() -> None:
    envelope = seal(OWNER, KIND, b"payload")
    assert envelope[1] == 36
    with pytest.raises(ProtocolViolation, match="minimal"):
        unseal(envelope[:1] + b"\xa4\x00" + envelope[2:], KIND)
    with pytest.raises(ProtocolViolation, match="cut off"):
        unseal(b"\x0a" + b"\xff" * 9, KIND)
    with pytest.raises(ProtocolViolation, match="at most"):
        unseal(seal(OWNER, KIND, bytes(RECORD_BYTES_MAX)), KIND)


def test_a_signing_key_comes_from_its_seed_and_hides_it() -> None:
    assert SigningKey.from_seed(OWNER.seed).public == OWNER.public
    assert OWNER.peer_id == PeerId.of_ed25519(OWNER.public)
    assert OWNER.seed.hex() not in repr(OWNER)
    assert repr(OWNER) == f"SigningKey({OWNER.peer_id})"
    with pytest.raises(ValueError):
        SigningKey.from_seed(b"short")


# --- Pin records -----------------------------------------------------------------------


def test_a_pin_record_comes_back_from_its_envelope() -> None:
    signed = RECORD.sign(OWNER)
    assert open_pin_record(signed.envelope, NOW) == signed
    assert signed.record == RECORD


def test_an_owner_key_shaped_like_a_cid_is_still_a_key() -> None:
    """Four chosen bytes make a key look like an inlined CID; whoever grinds one gets nothing."""
    shaped = b"\x01\x55\x00\x1c" + bytes(28)
    assert CID.from_bytes(shaped).is_identity
    payload = dagcbor.encode(fields(RECORD.sign(OWNER).envelope, PIN_RECORD) | {"owner": shaped})
    with pytest.raises(ProtocolViolation, match="did not sign"):
        open_pin_record(seal(OWNER, PIN_RECORD, payload), NOW)


def test_a_record_signed_by_somebody_else_is_refused() -> None:
    payload = unseal(RECORD.sign(OWNER).envelope, PIN_RECORD).payload
    with pytest.raises(ProtocolViolation, match="owner did not sign"):
        open_pin_record(seal(MALLORY, PIN_RECORD, payload), NOW)
    with pytest.raises(ValueError, match="owner's key"):
        RECORD.sign(MALLORY)


def test_records_from_the_future_are_refused_beyond_the_skew() -> None:
    signed = RECORD.sign(OWNER)
    assert open_pin_record(signed.envelope, NOW - CLOCK_SKEW_SECONDS_MAX) == signed
    with pytest.raises(ProtocolViolation, match="in the future"):
        open_pin_record(signed.envelope, NOW - CLOCK_SKEW_SECONDS_MAX - 1)


def test_an_expired_record_is_a_release_not_a_fault() -> None:
    release = replace(RECORD, seq=8, expires=0).sign(OWNER)
    assert open_pin_record(release.envelope, NOW).record.expires == 0


def test_a_replayed_older_record_does_not_win() -> None:
    old, release = RECORD.sign(OWNER), replace(RECORD, seq=8, expires=0).sign(OWNER)
    back_dated = replace(RECORD, created=1, expires=2**40).sign(OWNER)
    assert newer(release, old)
    assert not newer(old, release)
    assert not newer(back_dated, release)
    assert not newer(old, old)


def test_two_records_of_one_number_are_ordered_by_their_envelopes() -> None:
    one, other = RECORD.sign(OWNER), replace(RECORD, copies=2).sign(OWNER)
    assert newer(one, other) != newer(other, one)
    assert newer(one, other) == (one.order > other.order)


def test_records_of_different_roots_or_owners_have_no_order() -> None:
    one = RECORD.sign(OWNER)
    for other in (
        replace(RECORD, root=MANIFEST).sign(OWNER),
        replace(RECORD, owner=MALLORY.public).sign(MALLORY),
    ):
        with pytest.raises(ValueError, match="no order"):
            newer(one, other)


MANY = [CID.of(DAG_CBOR, bytes((i,))) for i in range(RECORD_MANIFESTS_MAX + 1)]


@pytest.mark.parametrize(
    "change",
    [
        {"v": 2},
        {"v": True},
        {"root": b"x"},
        {"root": str(MANIFEST)},
        {"manifests": []},
        {"manifests": {}},
        {"manifests": [MANIFEST, MANIFEST]},
        {"manifests": [[]]},
        {"manifests": [MANIFEST.binary]},
        {"manifests": [CID.of(RAW, b"")]},
        {"manifests": MANY},
        {"owner": OWNER.public[:31]},
        {"owner": OWNER.public.hex()},
        {"owner": None},
        {"seq": -1},
        {"seq": 2**63},
        {"seq": 1.0},
        {"seq": True},
        {"created": -1},
        {"expires": None},
        {"copies": 0},
        {"copies": COPIES_MAX + 1},
        {"note": "x"},
    ],
)
def test_pin_records_that_break_a_rule_are_refused(change: dict[str, Any]) -> None:
    payload = dagcbor.encode(fields(RECORD.sign(OWNER).envelope, PIN_RECORD) | change)
    with pytest.raises(ProtocolViolation):
        open_pin_record(seal(OWNER, PIN_RECORD, payload), NOW)


@pytest.mark.parametrize("payload", [b"", b"\x80", b"\xa0", b"\xa1", b"\x81" * 1000])
def test_other_payloads_are_no_record(payload: bytes) -> None:
    with pytest.raises(ProtocolViolation):
        open_pin_record(seal(OWNER, PIN_RECORD, payload), NOW)
    with pytest.raises(ProtocolViolation):
        open_lease(seal(HOLDER, LEASE, payload), NOW)


def test_what_others_would_refuse_is_not_signed() -> None:
    for record in (
        replace(RECORD, manifests=()),
        replace(RECORD, seq=-1),
        replace(RECORD, copies=0),
        replace(RECORD, expires=2**63),
        replace(RECORD, manifests=tuple(MANY)),
    ):
        with pytest.raises(ValueError):
            record.sign(OWNER)
    for lease in (replace(LEASED, slot=255), replace(LEASED, expires=NOW - 1)):
        with pytest.raises(ValueError):
            lease.sign(HOLDER)


def test_the_largest_records_fit() -> None:
    record = replace(RECORD, manifests=tuple(MANY[:-1]), seq=2**63 - 1).sign(OWNER)
    assert open_pin_record(record.envelope, NOW) == record
    domains = tuple(f"{i:02}" + "d" * (DOMAIN_BYTES_MAX - 2) for i in range(DOMAINS_PER_PEER_MAX))
    lease = replace(LEASED, domains=domains).sign(HOLDER)
    assert open_lease(lease.envelope, NOW) == lease


# --- Leases ----------------------------------------------------------------------------


def test_a_lease_comes_back_from_its_envelope() -> None:
    signed = LEASED.sign(HOLDER)
    assert open_lease(signed.envelope, NOW) == signed
    assert open_lease(signed.envelope, LEASED.expires + 1) == signed  # the caller looks


def test_a_lease_for_another_peer_is_refused() -> None:
    payload = unseal(LEASED.sign(HOLDER).envelope, LEASE).payload
    with pytest.raises(ProtocolViolation, match="holder did not sign"):
        open_lease(seal(MALLORY, LEASE, payload), NOW)
    with pytest.raises(ValueError, match="holder's key"):
        LEASED.sign(MALLORY)


def test_a_lease_is_no_pin_record_and_the_other_way_round() -> None:
    with pytest.raises(ProtocolViolation, match="type"):
        open_pin_record(LEASED.sign(HOLDER).envelope, NOW)
    with pytest.raises(ProtocolViolation, match="type"):
        open_lease(RECORD.sign(OWNER).envelope, NOW)


def test_leases_from_the_future_are_refused_beyond_the_skew() -> None:
    signed = LEASED.sign(HOLDER)
    assert open_lease(signed.envelope, NOW - CLOCK_SKEW_SECONDS_MAX + 0.5) == signed
    with pytest.raises(ProtocolViolation, match="in the future"):
        open_lease(signed.envelope, NOW - CLOCK_SKEW_SECONDS_MAX - 0.5)


@pytest.mark.parametrize(
    "change",
    [
        {"v": 0},
        {"holder": str(HOLDER.peer_id)},
        {"holder": b"\x00\x01"},
        {"holder": b"\x12\x20" + bytes(32)},  # an id that carries no key
        {"owner": b""},
        {"segment": RECORD.root},
        {"segment": LEASED.segment.binary},
        {"slot": 255},
        {"slot": -1},
        {"bytes": 0},
        {"bytes": SEGMENT_BYTES_MAX + 1},
        {"domains": "rack-1"},
        {"domains": ["x"] * (DOMAINS_PER_PEER_MAX + 1)},
        {"domains": ["x" * (DOMAIN_BYTES_MAX + 1)]},
        {"domains": [""]},
        {"domains": ["a\nb"]},
        {"domains": ["\x1b[31m"]},
        {"domains": [1]},
        {"issued": 1.5},
        {"expires": NOW - 1},
        {"serial": -1},
        {"serial": 2**63},
        {"price": 1},
    ],
)
def test_leases_that_break_a_rule_are_refused(change: dict[str, Any]) -> None:
    payload = dagcbor.encode(fields(LEASED.sign(HOLDER).envelope, LEASE) | change)
    with pytest.raises(ProtocolViolation):
        open_lease(seal(HOLDER, LEASE, payload), NOW)


# --- Pinned bytes ----------------------------------------------------------------------


def test_pinned_records() -> None:
    """tests/vectors/records.json: Ed25519 is deterministic, so envelopes are too."""
    pinned = json.loads(VECTORS.read_text())
    assert RECORD.sign(OWNER).envelope.hex() == pinned["pin_record"]["envelope"]
    assert LEASED.sign(HOLDER).envelope.hex() == pinned["lease"]["envelope"]
