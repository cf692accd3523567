"""DAG-CBOR round trips, one form per value, and agreement with an independent reader."""

from __future__ import annotations

import libipld
from hypothesis import example, given
from hypothesis import strategies as st

from dstore.core import dagcbor
from dstore.core.cid import CID, DAG_CBOR, RAW
from dstore.core.dagcbor import Value
from dstore.errors import MalformedBlock

cids = st.builds(CID.of, st.sampled_from((RAW, DAG_CBOR)), st.binary(max_size=4))
values: st.SearchStrategy[Value] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**64), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=30)
    | st.binary(max_size=40)
    | cids
    | cids.map(lambda cid: cid.binary),
    lambda inner: (
        st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=5), inner, max_size=5)
    ),
    max_leaves=30,
)


@given(values)
def test_round_trip(value: Value) -> None:
    data = dagcbor.encode(value)
    assert dagcbor.decode(data) == value
    assert dagcbor.encode(dagcbor.decode(data)) == data


@given(values, st.data())
def test_one_changed_byte_is_another_value_or_none(value: Value, data: st.DataObject) -> None:
    encoded = bytearray(dagcbor.encode(value))
    position = data.draw(st.integers(0, len(encoded) - 1))
    encoded[position] ^= data.draw(st.integers(1, 255))
    check_accepted_is_canonical(bytes(encoded))


@given(st.binary(max_size=60))
@example(bytes.fromhex("a2616101616102"))
@example(bytes.fromhex("1800"))
def test_whatever_is_accepted_is_canonical(data: bytes) -> None:
    check_accepted_is_canonical(data)


def check_accepted_is_canonical(data: bytes) -> None:
    try:
        value = dagcbor.decode(data)
    except MalformedBlock:
        return
    assert dagcbor.encode(value) == data
    # libipld reads a superset of the canonical form.
    libipld.decode_dag_cbor(data)
