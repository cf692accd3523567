"""Pin records and leases: round trips; whatever else arrives ends in a ProtocolViolation."""

from __future__ import annotations

import contextlib

from hypothesis import given
from hypothesis import strategies as st

from dstore.core.cid import CID, DAG_CBOR, DAG_PB, RAW
from dstore.core.envelope import SigningKey, seal
from dstore.core.pinrecord import LEASE, PIN_RECORD, Lease, PinRecord, open_lease, open_pin_record
from dstore.errors import ProtocolViolation

KEYS = [SigningKey.from_seed(bytes((i,)) * 32) for i in range(4)]
NOW = 2**40

numbers = st.integers(0, NOW)
blocks = st.builds(CID.of, st.just(DAG_CBOR), st.binary(max_size=4))
roots = st.builds(CID.of, st.sampled_from((RAW, DAG_PB, DAG_CBOR)), st.binary(max_size=4))
labels = st.text(
    st.characters(codec="utf-8", exclude_categories=("C", "Z")), min_size=1, max_size=20
)


@given(
    st.sampled_from(KEYS),
    roots,
    st.lists(blocks, min_size=1, max_size=16, unique=True),
    st.tuples(numbers, numbers, numbers),
    st.integers(1, 16),
)
def test_pin_record_round_trip(
    key: SigningKey, root: CID, manifests: list[CID], times: tuple[int, int, int], copies: int
) -> None:
    record = PinRecord(root, tuple(manifests), key.public, *times, copies)
    signed = record.sign(key)
    opened = open_pin_record(signed.envelope, NOW)
    assert opened == signed
    assert opened.record == record


@given(
    st.sampled_from(KEYS),
    st.sampled_from(KEYS),
    blocks,
    st.integers(0, 254),
    st.integers(1, 2**30),
    st.lists(labels, max_size=16),
    st.tuples(numbers, numbers, numbers),
)
def test_lease_round_trip(
    key: SigningKey,
    owner: SigningKey,
    segment: CID,
    slot: int,
    size: int,
    domains: list[str],
    times: tuple[int, int, int],
) -> None:
    issued, term, serial = times
    lease = Lease(
        key.peer_id,
        owner.public,
        segment,
        slot,
        size,
        tuple(domains),
        issued,
        issued + term,
        serial,
    )
    opened = open_lease(lease.sign(key).envelope, NOW)
    assert opened.lease == lease


@given(st.binary(max_size=300))
def test_any_bytes_are_refused_in_one_way(data: bytes) -> None:
    with contextlib.suppress(ProtocolViolation):
        open_pin_record(data, NOW)
        raise AssertionError("random bytes were accepted")
    with contextlib.suppress(ProtocolViolation):
        open_lease(seal(KEYS[0], LEASE, data), NOW)
        raise AssertionError("a random payload was accepted")
    with contextlib.suppress(ProtocolViolation):
        open_pin_record(seal(KEYS[0], PIN_RECORD, data), NOW)
        raise AssertionError("a random payload was accepted")
