from __future__ import annotations

import json
from pathlib import Path

import pytest

from dstore.core import dagpb
from dstore.core.cid import CID, RAW
from dstore.core.dagpb import PBLink, PBNode
from dstore.errors import MalformedBlock
from dstore.limits import BLOCK_BYTES_MAX, DAGPB_LINKS_MAX

TARGET = CID.parse("bafkqabiaaebagba")
HASH = b"\x0a\x09" + TARGET.binary


def field(tag: int, content: bytes) -> bytes:
    assert len(content) < 128
    return bytes([tag, len(content)]) + content


@pytest.mark.parametrize(
    ("node", "encoded"),
    [
        (PBNode(), b""),
        (PBNode(data=b""), b"\x0a\x00"),
        (PBNode(data=b"\x00\x01"), b"\x0a\x02\x00\x01"),
        (PBNode((PBLink(TARGET),)), field(0x12, HASH)),
        (PBNode((PBLink(TARGET, ""),)), field(0x12, HASH + b"\x12\x00")),
        (PBNode((PBLink(TARGET, "é", 300),)), field(0x12, HASH + b"\x12\x02\xc3\xa9\x18\xac\x02")),
        (PBNode((PBLink(TARGET, None, 0),)), field(0x12, HASH + b"\x18\x00")),
        (PBNode((PBLink(TARGET, "\udcff"),)), field(0x12, HASH + b"\x12\x01\xff")),
        (PBNode((PBLink(TARGET),), b"x"), field(0x12, HASH) + b"\x0a\x01x"),
    ],
)
def test_canonical_form(node: PBNode, encoded: bytes) -> None:
    assert dagpb.encode(node) == encoded
    assert dagpb.decode(encoded) == node
    assert dagpb.decode(memoryview(encoded)) == node


def test_data_before_links_is_read() -> None:
    encoded = b"\x0a\x01x" + field(0x12, HASH) * 2
    assert dagpb.decode(encoded) == PBNode((PBLink(TARGET), PBLink(TARGET)), b"x")


@pytest.mark.parametrize(
    ("encoded", "why"),
    [
        (field(0x12, HASH) + b"\x0a\x00" + field(0x12, HASH), "both sides"),
        (b"\x0a\x00\x0a\x00", "data twice"),
        (b"\x1a\x00", "unknown field"),
        (b"\x08\x00", "unknown field"),
        (b"\x0a", "index"),
        (b"\x0a\x02x", "2 bytes where 1"),
        (b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\x7f", "where 0 are left"),
        (b"\x0a" + b"\xff" * 10, "too long"),
        (b"\x0a\x81\x00x", "not minimal"),
        (field(0x12, b""), "begin with its CID"),
        (field(0x12, b"\x12\x00"), "begin with its CID"),
        (field(0x12, b"\x0a\x00"), "CID"),
        (field(0x12, HASH + HASH), "repeated"),
        (field(0x12, HASH + b"\x18\x00\x12\x00"), "misplaced"),
        (field(0x12, HASH + b"\x18\x00\x18\x00"), "repeated"),
        (field(0x12, HASH + b"\x20\x00"), "unknown"),
        (field(0x12, b"\x0a\x7f" + TARGET.binary), "127 bytes where 9"),
        (field(0x12, HASH + b"\x12\x05abc") + b"\x0a\x10" + bytes(16), "5 bytes where 3"),
        (field(0x12, HASH + b"\x18\x80") + b"\x0a\x00", "misplaced"),  # Tsize past its link
        (field(0x12, HASH + b"\x18"), "cut off"),
        (field(0x12, field(0x0A, b"\x01\x55\x11\x14" + bytes(20))), "0x11"),  # sha1
    ],
)
def test_refuses(encoded: bytes, why: str) -> None:
    with pytest.raises(MalformedBlock, match=why):
        dagpb.decode(encoded)


def test_refuses_more_than_the_limits() -> None:
    most = field(0x12, b"\x0a\x04\x01\x55\x00\x00") * DAGPB_LINKS_MAX
    assert len(dagpb.decode(most).links) == DAGPB_LINKS_MAX
    with pytest.raises(MalformedBlock, match="links"):
        dagpb.decode(most + most[:8])
    with pytest.raises(MalformedBlock, match="at most"):
        dagpb.decode(bytes(BLOCK_BYTES_MAX + 1))


def test_no_encoding_for_what_has_none() -> None:
    with pytest.raises(ValueError, match="varint"):
        dagpb.encode_link(PBLink(CID.of(RAW, b""), "", -1))
    with pytest.raises(ValueError, match="surrogates"):
        dagpb.encode_link(PBLink(CID.of(RAW, b""), "\ud800"))


def test_published_nodes_round_trip(fixtures_dir: Path) -> None:
    seen = 0
    for path in (fixtures_dir / "ipld-codec-fixtures" / "fixtures").glob("dagpb_*/*.dag-pb"):
        block = path.read_bytes()
        node = dagpb.decode(block)
        assert dagpb.encode(node) == block
        model = json.loads(next(path.parent.glob("*.dag-json")).read_text())
        assert ("Data" in model) == (node.data is not None)
        assert [str(link.cid) for link in node.links] == [
            link["Hash"]["/"] for link in model["Links"]
        ]
        assert [link.name for link in node.links] == [link.get("Name") for link in model["Links"]]
        assert [link.tsize for link in node.links] == [link.get("Tsize") for link in model["Links"]]
        seen += 1
    assert seen >= 17


def test_published_malformed_nodes_are_refused(fixtures_dir: Path) -> None:
    folder = fixtures_dir / "ipld-codec-fixtures" / "negative-fixtures" / "dag-pb" / "decode"
    cases = [case for path in folder.glob("*.json") for case in json.loads(path.read_text())]
    assert len(cases) >= 9
    for case in cases:
        with pytest.raises(MalformedBlock):
            dagpb.decode(bytes.fromhex(case["hex"]))
