from __future__ import annotations

from pathlib import Path

import pytest

from dstore.core import dagpb
from dstore.core.cid import CID, DAG_CBOR, DAG_PB, RAW, decode_varint, encode_varint
from dstore.core.dagpb import PBLink, PBNode
from dstore.core.unixfs import (
    Directory,
    Entry,
    File,
    FileChild,
    HamtShard,
    Mtime,
    Symlink,
    parse,
    parse_child,
)
from dstore.core.unixfs.node import DataType, UnixfsData, decode_data, encode_data, encode_node
from dstore.errors import MalformedBlock
from dstore.limits import DAGPB_LINKS_MAX, SYMLINK_BYTES_MAX

LEAF = CID.of(RAW, b"leaf")
INNER = CID.of(DAG_PB, b"inner")
FILE = DataType.FILE


def node(message: UnixfsData, *links: PBLink) -> tuple[CID, bytes]:
    block = encode_node(links, message)
    return CID.of(DAG_PB, block), block


def shard(*names: str, bits: int, fanout: int = 256, hash_type: int = 0x22) -> tuple[CID, bytes]:
    field = bits.to_bytes((bits.bit_length() + 7) // 8, "big")
    message = UnixfsData(DataType.HAMT_SHARD, field, hash_type=hash_type, fanout=fanout)
    return node(message, *(PBLink(LEAF, name, 4) for name in names))


def test_raw_block_is_a_file() -> None:
    assert parse(LEAF, b"leaf") == File(4, b"leaf")
    assert parse_child(FileChild(LEAF, 4), b"leaf") == File(4, b"leaf")


def test_identity_cid_needs_no_block() -> None:
    assert parse(CID.parse("bafkqabiaaebagba")) == File(5, bytes(range(5)))
    with pytest.raises(ValueError, match="without its block"):
        parse(LEAF)


def test_file_with_inline_data_and_children() -> None:
    message = UnixfsData(FILE, b"abc", 16, (4, 9), mode=0o644, mtime=Mtime(1, 2))
    parsed = parse(*node(message, PBLink(LEAF, "", 4), PBLink(INNER, "", 60)))
    children = (FileChild(LEAF, 4), FileChild(INNER, 9))
    assert parsed == File(16, b"abc", children, 0o644, Mtime(1, 2))


def test_old_leaves() -> None:
    assert parse(*node(UnixfsData(DataType.RAW, b"xyz", 3))) == File(3, b"xyz")
    assert parse(*node(UnixfsData(FILE))) == File(0)


@pytest.mark.parametrize(
    ("message", "links", "why"),
    [
        (UnixfsData(FILE, None, 5, (5,)), 2, "2 links and 1 sizes"),
        (UnixfsData(FILE, None, 5, (5,)), 0, "0 links and 1 sizes"),
        (UnixfsData(FILE, None, 6, (5,)), 1, "declares 6 bytes; its parts are 5"),
        (UnixfsData(FILE, b"abc", 2), 0, "declares 2 bytes"),
        (UnixfsData(FILE, None, None, ((1 << 63) - 1, 1)), 2, "its parts are"),
        (UnixfsData(DataType.METADATA), 0, "METADATA"),
        (UnixfsData(DataType.SYMLINK, b"t"), 1, "symbolic link"),
        (UnixfsData(DataType.SYMLINK), 0, "0 bytes of target"),
        (UnixfsData(DataType.SYMLINK, b"a\0b"), 0, "symbolic link"),
        (UnixfsData(DataType.SYMLINK, bytes(SYMLINK_BYTES_MAX + 1)), 0, "4097 bytes"),
    ],
)
def test_refuses_nodes(message: UnixfsData, links: int, why: str) -> None:
    with pytest.raises(MalformedBlock, match=why):
        parse(*node(message, *[PBLink(LEAF, "", 4)] * links))


def test_refuses_what_is_no_unixfs() -> None:
    empty = dagpb.encode(PBNode((PBLink(LEAF),)))
    with pytest.raises(MalformedBlock, match="without UnixFS data"):
        parse(CID.of(DAG_PB, empty), empty)
    with pytest.raises(MalformedBlock, match="codec is 0x71"):
        parse(CID.of(DAG_CBOR, b"\xa0"), b"\xa0")
    with pytest.raises(MalformedBlock, match="codec 0x71"):
        part = PBLink(CID.of(DAG_CBOR, b"\xa0"), "", 1)
        parse(*node(UnixfsData(FILE, filesize=1, blocksizes=(1,)), part))


def test_child_that_is_not_what_its_parent_says() -> None:
    with pytest.raises(MalformedBlock, match="holds 4 bytes of a file; its parent says 5"):
        parse_child(FileChild(LEAF, 5), b"leaf")
    cid, block = node(UnixfsData(DataType.DIRECTORY))
    with pytest.raises(MalformedBlock, match="is a Directory"):
        parse_child(FileChild(cid, 0), block)


def test_directory() -> None:
    links = PBLink(LEAF, "a", 4), PBLink(INNER, "b\udcff", None)
    parsed = parse(*node(UnixfsData(DataType.DIRECTORY), *links))
    assert parsed == Directory((Entry("a", LEAF, 4), Entry("b\udcff", INNER, None)))


@pytest.mark.parametrize("name", [None, "", ".", "..", "a/b", "/a", "../a", "a\0b"])
def test_directory_names_that_lead_elsewhere(name: str | None) -> None:
    with pytest.raises(MalformedBlock, match="entry name"):
        parse(*node(UnixfsData(DataType.DIRECTORY), PBLink(LEAF, name, 4)))
    if name:
        with pytest.raises(MalformedBlock, match="entry name"):
            parse(*shard("00" + name, bits=1))


def test_directory_names_twice() -> None:
    with pytest.raises(MalformedBlock, match="two entries"):
        parse(*node(UnixfsData(DataType.DIRECTORY), PBLink(LEAF, "a"), PBLink(INNER, "a")))


def test_shard() -> None:
    parsed = parse(*shard("00a", "0A", "FFb", bits=1 | 1 << 10 | 1 << 255))
    assert parsed == HamtShard(256, (0, 10, 255), (Entry("a", LEAF, 4), LEAF, Entry("b", LEAF, 4)))
    assert parse(*shard(bits=0)) == HamtShard(256, (), ())
    wide = parse(*shard("000a", "3FF", bits=1 | 1 << 1023, fanout=1024))
    assert wide == HamtShard(1024, (0, 1023), (Entry("a", LEAF, 4), LEAF))


@pytest.mark.parametrize(
    ("names", "bits", "fanout", "hash_type", "why"),
    [
        ((), 0, 2048, 0x22, "fan-out of 2048"),
        ((), 0, 1 << 62, 0x22, "fan-out"),
        ((), 0, 4, 0x22, "fan-out of 4"),
        ((), 0, 0, 0x22, "fan-out of 0"),
        ((), 0, 24, 0x22, "fan-out of 24"),
        ((), 0, 256, 0x12, "murmur3"),
        (("00a",), 3, 256, 0x22, "2 occupied slots and 1 links"),
        (("00a", "01b"), 1, 256, 0x22, "1 occupied slots and 2 links"),
        (("01a",), 1, 256, 0x22, "not of slot 0"),
        (("01a", "00b"), 3, 256, 0x22, "not of slot 0"),
        (("0aa",), 1 << 10, 256, 0x22, "not of slot 10"),
        (("0",), 1, 256, 0x22, "not of slot 0"),
        (("",), 1, 256, 0x22, "not of slot 0"),
        (("00a",), 1 << 256, 256, 0x22, "bit field of 33 bytes"),
    ],
)
def test_refuses_shards(
    names: tuple[str, ...], bits: int, fanout: int, hash_type: int, why: str
) -> None:
    with pytest.raises(MalformedBlock, match=why):
        parse(*shard(*names, bits=bits, fanout=fanout, hash_type=hash_type))


def test_symlink() -> None:
    assert parse(*node(UnixfsData(DataType.SYMLINK, b"../a\xff"))) == Symlink("../a\udcff")


@pytest.mark.parametrize(
    ("message", "encoded"),
    [
        (UnixfsData(DataType.DIRECTORY), "0801"),
        (UnixfsData(FILE, filesize=0), "08021800"),
        (UnixfsData(FILE, b"x", 1), "080212017818" + "01"),
        (UnixfsData(FILE, None, 300, (256, 44)), "080218ac02208002202c"),
        (
            UnixfsData(DataType.HAMT_SHARD, b"\x01", hash_type=0x22, fanout=256),
            "08051201012822308002",
        ),
        (UnixfsData(FILE, mode=0o644, mtime=Mtime(5)), "080238a40342020805"),
        (UnixfsData(FILE, mtime=Mtime(5, 7)), "0802420708051507000000"),
        (UnixfsData(FILE, mtime=Mtime(-1)), "0802420b08ffffffffffffffffff01"),
        (
            UnixfsData(FILE, mtime=Mtime(-(1 << 62))),
            "0802420b08" + "80" * 8 + "c001",
        ),
    ],
)
def test_message(message: UnixfsData, encoded: str) -> None:
    assert encode_data(message).hex() == encoded
    assert decode_data(bytes.fromhex(encoded)) == message


def test_message_as_other_writers_have_it() -> None:
    expected = UnixfsData(FILE, b"x", 301, (256, 44))
    assert decode_data(bytes.fromhex("18ad02220380022c1201780802")) == expected
    unknown = bytes.fromhex("48055201ff5d00000000610000000000000000")
    assert decode_data(bytes.fromhex("0802") + unknown) == UnixfsData(FILE)


@pytest.mark.parametrize(
    ("encoded", "why"),
    [
        ("", "no type"),
        ("1200", "no type"),
        ("0806", "6"),
        ("08020802", "field 1 twice"),
        ("080212001200", "field 2 twice"),
        ("0a0102", "field 1 has wire type 2"),
        ("08021000", "field 2 has wire type 0"),
        ("08021a00", "field 3 has wire type 2"),
        ("0802250000000000", "wire type 5"),
        ("08020000", "field number 0"),
        ("08021205ab", "cut off"),
        ("080212ffffffffffffffff7f", "cut off"),
        ("08025d00", "cut off"),
        ("080218", "varint"),
        ("080218ffffffffffffffffffff01", "varint"),
        ("0802188000", "not minimal"),
        ("08025b", "wire type 3"),
        ("0802220180", "varint"),
        ("0802388080808010", "more than 32 bits"),
        ("08024200", "without seconds"),
        ("080242051500000000", "without seconds"),
        ("0802420708051500ca9a3b", "1000000000 nanoseconds"),
        ("0802420408051500", "unknown fields"),
    ],
)
def test_refuses_messages(encoded: str, why: str) -> None:
    with pytest.raises(MalformedBlock, match=why):
        decode_data(bytes.fromhex(encoded))


def test_refuses_endless_block_sizes() -> None:
    count = DAGPB_LINKS_MAX + 1
    packed = b"\x08\x02\x22" + encode_varint(count) + bytes(count)
    for encoded in (packed, b"\x08\x02" + b"\x20\x00" * count):
        with pytest.raises(MalformedBlock, match="block sizes"):
            decode_data(encoded)
    assert len(decode_data(b"\x08\x02" + b"\x20\x00" * DAGPB_LINKS_MAX).blocksizes) == count - 1


def test_messages_that_js_wrote(fixtures_dir: Path) -> None:
    folder = fixtures_dir / "js-ipfs-unixfs"
    text = (folder / "file.txt").read_bytes()
    target = (folder / "symlink.txt").read_bytes()
    expected = {
        "directory": UnixfsData(DataType.DIRECTORY),
        "file.txt": UnixfsData(FILE, text, len(text)),
        "symlink.txt": UnixfsData(DataType.SYMLINK, target),
    }
    for name, message in expected.items():
        encoded = (folder / f"{name}.unixfs").read_bytes()
        assert decode_data(encoded) == message
        assert encode_data(message) == encoded


@pytest.mark.parametrize(
    "name",
    [
        "boxo-gateway/dir-special-chars.car",
        "boxo-gateway/directory-with-multilayer-hamt-and-multiblock-files.car",
        "boxo-gateway/fixtures.car",
        "boxo-gateway/unixfs-dir-with-mode-mtime.car",
        "kubo/cli/fixtures/TestGatewayHAMTDirectory.car",
        "kubo/cli/fixtures/TestGatewayMultiRange.car",
    ],
)
def test_blocks_that_kubo_wrote(fixtures_dir: Path, name: str) -> None:
    """Every block of these archives is read, and written back with the same bytes."""
    archive = (fixtures_dir / name).read_bytes()
    header, position = decode_varint(archive)
    position += header
    kinds = set()
    while position < len(archive):
        length, position = decode_varint(archive, position)
        section, position = archive[position : position + length], position + length
        split = 34 if section.startswith(b"\x12\x20") else 36
        cid, block = CID.from_bytes(section[:split]), section[split:]
        if cid.codec in (RAW, DAG_PB):
            kinds.add(type(parse(cid, block)))
        if cid.codec == DAG_PB:
            decoded = dagpb.decode(block)
            assert decoded.data is not None
            assert encode_node(decoded.links, decode_data(decoded.data)) == block
    assert kinds
