from __future__ import annotations

import contextlib
import hashlib

import libipld
from hypothesis import given
from hypothesis import strategies as st

from dstore.core.cid import CID, DAG_CBOR, DAG_PB, RAW, decode_varint, encode_varint
from dstore.core.peerid import PeerId
from dstore.errors import InvalidCid

codecs = st.sampled_from([RAW, DAG_PB, DAG_CBOR, 0x129, 0x72]) | st.integers(0, (1 << 63) - 1)
multihashes = st.binary(max_size=64).map(
    lambda data: b"\x12\x20" + hashlib.sha256(data).digest()
) | st.binary(max_size=128).map(lambda data: b"\x00" + encode_varint(len(data)) + data)


@given(codecs, multihashes)
def test_round_trips(codec: int, multihash: bytes) -> None:
    cid = CID.v1(codec, multihash)
    assert (cid.version, cid.codec, cid.multihash) == (1, codec, multihash)
    assert CID.from_bytes(cid.binary) == cid
    assert CID.parse(str(cid)) == cid


@given(multihashes, st.sampled_from([RAW, DAG_PB, DAG_CBOR]))
def test_text_as_another_implementation_reads_it(multihash: bytes, codec: int) -> None:
    cid = CID.v1(codec, multihash)
    assert libipld.decode_multibase(str(cid))[1] == cid.binary


@given(st.binary(max_size=64))
def test_of_verifies_its_data_alone(data: bytes) -> None:
    cid = CID.of(RAW, data)
    assert cid.verify(data)
    assert not cid.verify(data + b"\0")


@given(st.binary(max_size=48) | st.binary(max_size=40).map(lambda tail: b"\x01\x55" + tail))
def test_any_bytes_are_a_cid_or_refused(data: bytes) -> None:
    with contextlib.suppress(InvalidCid):
        cid = CID.from_bytes(data)
        assert cid.binary == data
        assert CID.parse(str(cid)) == cid


@given(st.text(max_size=80) | st.text("bzQmfkFu0123456789abcxyz", max_size=80))
def test_any_text_is_a_cid_or_refused(text: str) -> None:
    with contextlib.suppress(InvalidCid):
        assert CID.parse(str(CID.parse(text))) == CID.parse(text)
    with contextlib.suppress(InvalidCid):
        assert PeerId.parse(str(PeerId.parse(text))) == PeerId.parse(text)


@given(st.integers(0, (1 << 63) - 1), st.binary(max_size=4), st.binary(max_size=4))
def test_varints(value: int, before: bytes, after: bytes) -> None:
    written = encode_varint(value)
    assert decode_varint(before + written + after, len(before)) == (
        value,
        len(before) + len(written),
    )


@given(st.binary(max_size=12))
def test_a_varint_has_one_form(data: bytes) -> None:
    with contextlib.suppress(ValueError):
        value, end = decode_varint(data)
        assert encode_varint(value) == data[:end]
