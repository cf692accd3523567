"""Fuzz target: signed pin records and leases, the envelope mangled or what is in it."""

from __future__ import annotations

from collections.abc import Iterator

from dstore.core.cid import CID, DAG_CBOR, DAG_PB
from dstore.core.envelope import SigningKey, seal, unseal
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
from tests.fuzz.target import Target

_NOW = 1_800_000_000
_KEY = SigningKey.from_seed(bytes(range(32)))
_MANIFEST = CID.of(DAG_CBOR, b"manifest")
_PIN = PinRecord(CID.of(DAG_PB, b"x"), (_MANIFEST,), _KEY.public, 3, _NOW, _NOW + 9)
_LEASE = Lease(_KEY.peer_id, b"o" * 32, _MANIFEST, 4, 1 << 20, ("rack:1",), _NOW, _NOW + 9, 1)


def records(data: bytes) -> None:
    """The input as an envelope, then as what a valid envelope holds: a record that is taken
    is one that its signer could have made, byte by byte."""
    for kind in (PIN_RECORD, LEASE):
        try:
            opened = unseal(data, kind)
        except ProtocolViolation:
            continue
        if opened.public_key == _KEY.public:
            assert seal(_KEY, kind, opened.payload) == data  # canonical
    try:
        pin = open_pin_record(seal(_KEY, PIN_RECORD, data), _NOW)
    except ProtocolViolation:
        pass
    else:
        assert pin.record.sign(_KEY).envelope == pin.envelope
        assert not newer(pin, pin)
    try:
        lease = open_lease(seal(_KEY, LEASE, data), _NOW)
    except ProtocolViolation:
        pass
    else:
        assert lease.lease.sign(_KEY).envelope == lease.envelope


def seeds() -> Iterator[bytes]:
    pin, lease = _PIN.sign(_KEY).envelope, _LEASE.sign(_KEY).envelope
    yield from (pin, lease)
    yield unseal(pin, PIN_RECORD).payload
    yield unseal(lease, LEASE).payload


TARGETS = {"records": Target(records, seeds, bytes_max=2048)}
