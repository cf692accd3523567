from __future__ import annotations

import csv
import hashlib
import pickle
from pathlib import Path

import multibase
import pytest

from dstore.core.cid import (
    CID,
    DAG_CBOR,
    DAG_PB,
    RAW,
    decode_varint,
    encode_varint,
)
from dstore.errors import InvalidCid
from dstore.limits import CID_TEXT_CHARS_MAX

V0 = "QmUNLLsPACCz1vLxQVkXqqLX5R1X345qqfHbsf67hvA3Nn"  # the empty directory
V1 = "bafybeiczsscdsbs7ffqz55asqdf3smv6klcw3gofszvwlyarci47bgf354"  # its version 1
RAW_HELLO = "bafkreifzjut3te2nhyekklss27nh3k72ysco7y32koao5eei66wof36n5e"  # "hello world"


def test_version_0_and_1_of_one_multihash() -> None:
    v0, v1 = CID.parse(V0), CID.parse(V1)
    assert (v0.version, v1.version) == (0, 1)
    assert v0.codec == v1.codec == DAG_PB
    assert v0.multihash == v1.multihash == v0.binary
    assert v0 != v1
    assert (str(v0), str(v1)) == (V0, V1)
    assert CID.v1(DAG_PB, v0.multihash) == v1
    assert CID.of(DAG_PB, b"\x0a\x02\x08\x01", version=0) == v0
    assert CID.of(DAG_PB, b"\x0a\x02\x08\x01") == v1


def test_what_a_cid_is_made_of() -> None:
    cid = CID.parse(RAW_HELLO)
    assert cid.codec == RAW
    assert cid.hash_code == 0x12
    assert cid.digest == hashlib.sha256(b"hello world").digest()
    assert cid.multihash == b"\x12\x20" + cid.digest
    assert cid.binary == b"\x01\x55" + cid.multihash
    assert not cid.is_identity
    assert cid.verify(b"hello world")
    assert cid.verify(memoryview(b"hello world"))
    assert not cid.verify(b"hello worle")


def test_is_a_value() -> None:
    cid = CID.parse(V1)
    assert {cid: 1}[CID.from_bytes(cid.binary)] == 1
    assert cid != cid.binary
    assert repr(cid) == f"CID({V1})"
    assert pickle.loads(pickle.dumps(cid)) == cid
    first, second = sorted([CID.of(RAW, b"a"), CID.of(RAW, b"b")])
    assert first.binary < second.binary


@pytest.mark.parametrize(
    ("hash_code", "digest"),
    [
        (0x12, hashlib.sha256(b"x").digest()),
        (0x13, hashlib.sha512(b"x").digest()),
        (0x16, hashlib.sha3_256(b"x").digest()),
        (0xB220, hashlib.blake2b(b"x", digest_size=32).digest()),
        (0x00, b"x"),
    ],
)
def test_hashes_on_the_allow_list(hash_code: int, digest: bytes) -> None:
    multihash = encode_varint(hash_code) + encode_varint(len(digest)) + digest
    cid = CID.v1(DAG_CBOR, multihash)
    assert cid.hash_code == hash_code
    assert cid.digest == digest
    assert cid.verify(b"x")
    assert not cid.verify(b"y")
    assert CID.parse(str(cid)) == cid


def test_identity_cid_carries_its_content() -> None:
    cid = CID.parse("bafkqabiaaebagba")
    assert cid.is_identity
    assert cid.digest == bytes(range(5))
    assert CID.v1(RAW, b"\x00\x80\x01" + bytes(128)).digest == bytes(128)
    assert CID.v1(RAW, b"\x00\x00").digest == b""


@pytest.mark.parametrize(
    ("binary", "why"),
    [
        (b"", "cut off"),
        (b"\x01", "cut off"),
        (b"\x01\x55\x12", "cut off"),
        (b"\x00" + bytes(33), "version 0"),
        (b"\x02\x55\x12\x20" + bytes(32), "version 2"),
        (b"\x12\x20" + bytes(31), "version 18"),
        (b"\x12\x20" + bytes(33), "version 18"),
        (b"\x01\x55\x12\x20" + bytes(31), "31 bytes and declares 32"),
        (b"\x01\x55\x12\x20" + bytes(33), "33 bytes and declares 32"),
        (b"\x81\x00\x55\x12\x20" + bytes(32), "not minimal"),
        (b"\x01\xd5\x00\x12\x20" + bytes(32), "not minimal"),
        (b"\x01" + b"\xff" * 9 + b"\x01\x12\x20" + bytes(32), "too long"),
        # Hashes and lengths that do not protect what they name.
        (b"\x01\x55\x11\x14" + bytes(20), "0x11"),  # sha1
        (b"\x01\x55\xd5\x01\x10" + bytes(16), "0xd5"),  # md5
        (b"\x01\x55\x22\x08" + bytes(8), "0x22"),  # murmur3
        (b"\x01\x55\x12\x13" + bytes(19), "19 bytes"),
        (b"\x01\x55\x12\x14" + bytes(20), "not a whole"),
        (b"\x01\x55\x13\x20" + bytes(32), "not a whole"),
        (b"\x01\x55\x12\x81\x01" + bytes(129), "129 bytes"),
        (b"\x01\x55\x00\x81\x01" + bytes(129), "identity CID of 129"),
    ],
)
def test_refuses_bytes(binary: bytes, why: str) -> None:
    with pytest.raises(InvalidCid, match=why):
        CID.from_bytes(binary)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "b",
        "z",
        "ba",
        "Qm",
        V0[:-1],
        V0 + "a",
        V0.replace("U", "0"),
        "z" + V0,  # version 0 never has a prefix
        V1[:-1],
        V1 + "a",
        V1[:-1] + "5",  # bits left over behind the digest
        V1 + "=",
        " " + V1,
        V1 + "\n",
        V1.replace("y", "1"),
        "/ipfs/" + V1,
        "\0" + V1,
        "é" + V1,
        "9" * CID_TEXT_CHARS_MAX,
        "b" * (CID_TEXT_CHARS_MAX + 1),
        "?" + V1[1:],
    ],
)
def test_refuses_text(text: str) -> None:
    with pytest.raises(InvalidCid):
        CID.parse(text)


def test_digits_in_either_case() -> None:
    cid = CID.parse(V1)
    assert CID.parse(V1.upper()) == cid
    assert CID.parse("b" + V1[1:].upper()) == cid
    assert CID.parse("F" + cid.binary.hex()) == cid


@pytest.mark.parametrize("value", [0, 1, 127, 128, 255, 300, 16384, (1 << 63) - 1])
def test_varint(value: int) -> None:
    written = encode_varint(value)
    assert decode_varint(b"\xff" + written + b"\x05", 1) == (value, 1 + len(written))
    assert len(written) <= 9


@pytest.mark.parametrize("value", [-1, 1 << 63])
def test_varint_has_no_form_for(value: int) -> None:
    with pytest.raises(ValueError, match="unsigned varint"):
        encode_varint(value)


@pytest.mark.parametrize("data", [b"", b"\x80", b"\x80\x00", b"\xff" * 9, b"\x80" * 9 + b"\x01"])
def test_varint_refuses(data: bytes) -> None:
    with pytest.raises(ValueError, match="varint"):
        decode_varint(data)


def test_published_multihashes(fixtures_dir: Path) -> None:
    """Whole digests of allowed functions verify; the truncated and the others are refused."""
    verified = 0
    with (fixtures_dir / "multihash" / "test_cases.csv").open() as lines:
        for row in csv.DictReader(lines):
            content, multihash = row["input"].encode(), bytes.fromhex(row["multihash"])
            try:
                cid = CID.v1(RAW, multihash)
            except InvalidCid:
                whole = {"sha2-256": 256, "sha2-512": 512}.get(row["algorithm"])
                assert int(row["bits"]) != whole
                continue
            assert cid.verify(content)
            verified += 1
    assert verified >= 2


def test_every_multibase() -> None:
    cid = CID.parse(V1)
    seen = 0
    for encoding in multibase.ENCODINGS:
        if encoding.encoding not in ("identity", "base256emoji"):  # not printable ASCII
            text = multibase.encode(encoding.encoding, cid.binary).decode()
            assert CID.parse(text) == cid, encoding.encoding
            seen += 1
    assert seen >= 20


def test_published_codec_fixtures_name_their_bytes(fixtures_dir: Path) -> None:
    seen = 0
    for path in (fixtures_dir / "ipld-codec-fixtures" / "fixtures").glob("*/*.dag-*"):
        cid = CID.parse(path.stem)
        assert cid.verify(path.read_bytes()), path
        assert str(cid) == path.stem
        seen += 1
    assert seen > 100
