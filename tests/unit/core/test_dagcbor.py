"""DAG-CBOR: known forms, everything that is not the one form, the IPLD codec fixtures."""

from __future__ import annotations

import json
import re
import tracemalloc
from pathlib import Path

import libipld
import pytest

from dstore.core import dagcbor
from dstore.core.cid import CID, DAG_CBOR, RAW
from dstore.core.dagcbor import Value
from dstore.errors import MalformedBlock
from dstore.limits import BLOCK_BYTES_MAX, CBOR_DEPTH_MAX, CBOR_ITEMS_MAX

LEAF = CID.of(RAW, b"leaf")

KNOWN: list[tuple[Value, str]] = [
    (None, "f6"),
    (False, "f4"),
    (True, "f5"),
    (0, "00"),
    (23, "17"),
    (24, "1818"),
    (255, "18ff"),
    (256, "190100"),
    (65_535, "19ffff"),
    (65_536, "1a00010000"),
    (2**32 - 1, "1affffffff"),
    (2**32, "1b0000000100000000"),
    (2**64 - 1, "1bffffffffffffffff"),
    (-1, "20"),
    (-(2**64), "3bffffffffffffffff"),
    (1.5, "fb3ff8000000000000"),
    (-0.0, "fb8000000000000000"),
    ("", "60"),
    ("ü", "62c3bc"),
    (b"", "40"),
    (b"\x00" * 24, "5818" + "00" * 24),
    ([], "80"),
    ([1, [2]], "82018102"),
    ({}, "a0"),
    ({"aa": 1, "b": 2}, "a261620262616101"),  # the shorter key first
    (LEAF, "d82a582500" + LEAF.binary.hex()),
]


@pytest.mark.parametrize(("value", "form"), KNOWN, ids=[form[:16] for _, form in KNOWN])
def test_known_forms_both_ways(value: Value, form: str) -> None:
    assert dagcbor.encode(value).hex() == form
    decoded = dagcbor.decode(bytes.fromhex(form))
    assert decoded == value
    assert type(decoded) is type(value)


@pytest.mark.parametrize(
    "form",
    [
        "",
        "1800",
        "1817",
        "190018",
        "1900ff",
        "1a0000ffff",
        "1b00000000ffffffff",
        "3800",
        "5800",
        "7800",
        "780161",
        "9800",
        "b800",
        "1c",
        "1f",
        "9f00ff",
        "bf616100ff",
        "5f4100ff",
        "7f6161ff",
        "ff",
        "0000",
        "f600",
        "81",
        "8201",
        "a16161",
        "4201",
        "6261",
        "61ff",
        "63eda080",  # a surrogate half
        "f7",
        "e0",
        "f800",
        "f818",
        "f90000",
        "f97e00",
        "fa3fc00000",
        "fb7ff8000000000000",
        "fb7ff0000000000000",
        "fbfff0000000000000",
        "fb3ff8",
        "c001",
        "c243010000",
        "d82b4100",
        "d9002a4100",
        "da0000002a4100",
        "a10101",
        "a1410101",
        "a2616101616102",
        "a2616201616102",
        "a262616101616202",
        "9bffffffffffffffff",
        "bbffffffffffffffff",
        "5bffffffffffffffff",
        "7bffffffffffffffff",
        "d82a",
        "d82a00",
        "d82a6100",
        "d82a40",
        "d82a4100",
        "d82a5824" + LEAF.binary.hex(),  # no zero byte before the CID
        "d82a582501" + LEAF.binary.hex(),
        "d82a59002500" + LEAF.binary.hex(),  # a head longer than it need be
        "d82a582600" + LEAF.binary.hex() + "00",
        "d82a582400" + LEAF.binary.hex()[:-2],
        "d82a582500" + LEAF.binary.hex()[:-2],
        "d82a5f582500" + LEAF.binary.hex() + "ff",
    ],
)
def test_any_other_form_is_refused(form: str) -> None:
    with pytest.raises(MalformedBlock):
        dagcbor.decode(bytes.fromhex(form))


def test_links_and_byte_strings_are_told_apart() -> None:
    value: Value = [LEAF, LEAF.binary, {"a": b"\x00" + LEAF.binary}]
    decoded = dagcbor.decode(dagcbor.encode(value))
    assert decoded == value
    assert isinstance(decoded, list)
    assert [type(item) for item in decoded] == [CID, bytes, dict]
    assert dagcbor.links(dagcbor.encode(value)) == (LEAF,)


def test_links_come_in_encoded_order_with_repeats() -> None:
    other = CID.of(DAG_CBOR, b"other")
    data = dagcbor.encode({"bb": LEAF, "a": [other, {"z": LEAF}], "c": other.binary})
    assert dagcbor.links(data) == (other, LEAF, LEAF)


def test_a_link_with_a_hash_that_protects_nothing_is_refused() -> None:
    sha1 = b"\x01\x55\x11\x14" + bytes(20)
    with pytest.raises(MalformedBlock, match="hash function"):
        dagcbor.decode(b"\xd8\x2a\x58\x19\x00" + sha1)


def test_depth_is_bounded() -> None:
    deepest = b"\x81" * CBOR_DEPTH_MAX + b"\x00"
    assert dagcbor.encode(dagcbor.decode(deepest)) == deepest
    for head in (b"\x81", b"\xa1\x60"):
        with pytest.raises(MalformedBlock, match="deep"):
            dagcbor.decode(head * (CBOR_DEPTH_MAX + 1) + b"\x00")
        with pytest.raises(MalformedBlock, match="deep"):
            dagcbor.decode(head * 500_000)
    nested: Value = 0
    for _ in range(CBOR_DEPTH_MAX + 1):
        nested = [nested]
    with pytest.raises(ValueError, match="deep"):
        dagcbor.encode(nested)


def test_size_is_bounded() -> None:
    with pytest.raises(MalformedBlock, match="at most 4"):
        dagcbor.decode(b"\x44abcd", bytes_max=4)
    with pytest.raises(MalformedBlock, match="at most"):
        dagcbor.links(bytes(BLOCK_BYTES_MAX + 1))


def test_the_densest_hostile_block_takes_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    hostile = b"\x9a\x00\x0a\x00\x00" + b"\xa1\x60\x80" * 0xA0000
    assert len(hostile) <= BLOCK_BYTES_MAX
    # Measured on a part, since tracing costs seconds; memory is proportional to the items.
    traced = CBOR_ITEMS_MAX // 16
    monkeypatch.setattr(dagcbor, "CBOR_ITEMS_MAX", traced)
    tracemalloc.start()
    try:
        with pytest.raises(MalformedBlock, match="items"):
            dagcbor.decode(hostile)
        assert tracemalloc.get_traced_memory()[1] * 16 < 64 * 1024 * 1024
    finally:
        tracemalloc.stop()


def test_announced_lengths_allocate_nothing() -> None:
    tracemalloc.start()
    try:
        for head in ("9a7fffffff", "ba7fffffff", "5a7fffffff", "7a7fffffff"):
            with pytest.raises(MalformedBlock):
                dagcbor.decode(bytes.fromhex(head) + bytes(64))
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "value",
    [float("nan"), float("inf"), 2**64, -(2**64) - 1, {1: 2}, object(), {"a": {3}}, "\ud800"],
)
def test_what_has_no_form_is_not_encoded(value: Value) -> None:
    with pytest.raises(ValueError):
        dagcbor.encode(value)


# --- External fixtures -----------------------------------------------------------------

# dbl-sha2-256, sha1, sha3-512, sha3-384, keccak-256 and the like: no hash of dstore's
# allow-list, so 19 of the 128 blocks, legal as DAG-CBOR, are refused for their links.
REFUSED_HASHES = {"0x11", "0x14", "0x15", "0x1b", "0x56"}


def test_codec_fixtures_keep_their_bytes_and_cid(fixtures_dir: Path) -> None:
    """Every dag-cbor block of the IPLD codec fixtures, floats and 64-bit integers included."""
    files = sorted((fixtures_dir / "ipld-codec-fixtures" / "fixtures").glob("*/*.dag-cbor"))
    assert len(files) == 128
    refused = []
    for file in files:
        data = file.read_bytes()
        try:
            value = dagcbor.decode(data)
        except MalformedBlock as error:
            match = re.search(r"hash function (0x[0-9a-f]+) is not", str(error))
            assert match, error
            refused.append(match[1])
            assert libipld.encode_dag_cbor(libipld.decode_dag_cbor(data)) == data
            continue
        again = dagcbor.encode(value)
        assert again == data, file
        assert str(CID.of(DAG_CBOR, again)) == file.stem
    assert len(refused) == 19
    assert set(refused) == REFUSED_HASHES


def test_negative_codec_fixtures_are_refused(fixtures_dir: Path) -> None:
    folder = fixtures_dir / "ipld-codec-fixtures" / "negative-fixtures" / "dag-cbor" / "decode"
    cases = [
        case for file in sorted(folder.glob("*.json")) for case in json.loads(file.read_text())
    ]
    assert cases
    for case in cases:
        with pytest.raises(MalformedBlock):
            dagcbor.decode(bytes.fromhex(case["hex"]))


def test_libipld_reads_what_we_write() -> None:
    value: Value = {"v": 1, "list": [[LEAF, 5], "text", None, True, -7, 2.25], "raw": b"\x01\x02"}
    data = dagcbor.encode(value)
    read = libipld.decode_dag_cbor(data)
    assert read["list"][0] == [LEAF.binary, 5]
    assert libipld.encode_dag_cbor(read) == data
