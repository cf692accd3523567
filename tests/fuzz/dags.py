"""Fuzz targets: blocks of content: DAG-CBOR, DAG-PB, UnixFS, and whole DAGs of them."""

from __future__ import annotations

from collections.abc import Iterator

from dstore.core import dagcbor, dagpb
from dstore.core.cid import CID, DAG_CBOR, DAG_PB, RAW
from dstore.core.dagpb import PBLink, PBNode
from dstore.core.unixfs.directory import (
    Absent,
    Descend,
    DirectoryLister,
    Found,
    build_directory,
    build_symlink,
    lookup,
)
from dstore.core.unixfs.file import children_in_range
from dstore.core.unixfs.hamt import build_shards
from dstore.core.unixfs.node import (
    DataType,
    Directory,
    Entry,
    File,
    HamtShard,
    Mtime,
    UnixfsData,
    decode_data,
    encode_data,
    encode_node,
    name_fault,
    parse,
)
from dstore.core.unixfs.profile import PROFILES
from dstore.core.unixfs.walk import Budget, iter_dag, links_of
from dstore.errors import BudgetExceeded, MalformedBlock
from tests.fuzz.script import Script
from tests.fuzz.target import Target

_LEAF = CID.of(RAW, b"leaf")
_OLD = CID.of(DAG_PB, b"old", version=0)


def cbor(data: bytes) -> None:
    """What is read has exactly this encoding."""
    try:
        value = dagcbor.decode(data)
    except MalformedBlock:
        return
    assert dagcbor.encode(value) == data
    assert all(link.binary in data for link in dagcbor.links(data))


def pb(data: bytes) -> None:
    """What is read keeps its meaning; data behind the links, it has exactly this encoding."""
    try:
        node = dagpb.decode(data)
    except MalformedBlock:
        return
    encoded = dagpb.encode(node)
    assert dagpb.decode(encoded) == node
    assert encoded == data or (data[:1] == b"\x0a" and node.links)
    assert links_of(CID.of(DAG_PB, data), data) == tuple(link.cid for link in node.links)


def unixfs(data: bytes) -> None:
    """A node keeps the promises of its kind: sizes add up, names can name, slots are found."""
    cid = CID.of(DAG_PB, data)
    try:
        message = decode_data(data)
    except MalformedBlock:
        pass
    else:
        assert decode_data(encode_data(message)) == message
    try:
        node = parse(cid, data)
    except MalformedBlock:
        return
    if isinstance(node, File):
        assert node.size == len(node.data) + sum(child.size for child in node.children)
        pieces = children_in_range(node, 0, node.size)
        assert sum(piece.size for piece in pieces) == node.size - len(node.data)
    elif isinstance(node, Directory | HamtShard):
        _directory(cid, data, node)


def _directory(cid: CID, data: bytes, node: Directory | HamtShard) -> None:
    if isinstance(node, Directory):
        for entry in node.entries:
            assert lookup(node, entry.name) == Found(entry.cid)
    lister = DirectoryLister(cid, Budget(depth=8, blocks=4))
    try:
        entries = lister.supply(data)
    except MalformedBlock:
        return
    assert all(name_fault(entry.name) is None for entry in entries)
    assert len({entry.name for entry in entries}) == len(entries)
    for entry in entries:
        assert lookup(node, entry.name) == Found(entry.cid)
    assert isinstance(lookup(node, "no such name"), Absent | Descend | Found)


def walk(data: bytes) -> None:
    """A DAG drawn from the input, repetition and all: every block once, within the budget."""
    script = Script(data)
    blocks: dict[CID, bytes] = {}
    made: list[CID] = [_LEAF]
    blocks[_LEAF] = b"leaf"
    while script.more:
        cid, block = _block(script, made)
        blocks[cid] = block
        made.append(cid)
    budget = Budget(depth=12, blocks=64, bytes=1 << 20)
    seen: set[bytes] = set()
    try:
        for visit in iter_dag(made[-1], blocks.__getitem__, lambda cid: len(blocks[cid]), budget):
            assert visit.cid.multihash not in seen
            assert visit.depth <= 12
            seen.add(visit.cid.multihash)
    except (BudgetExceeded, MalformedBlock):
        pass
    assert len(seen) <= 64


def _block(script: Script, made: list[CID]) -> tuple[CID, bytes]:
    """One more block, with links to those before it."""
    how, count = script.number(), script.number() % 40
    links = [made[-1 - script.number() % len(made)] for _ in range(count)]
    if how % 5 == 0:
        block = script.take(count)
        return CID.of((RAW, DAG_PB, DAG_CBOR, 0x0129)[how % 4], block), block
    if how % 5 == 1:
        block = dagcbor.encode(links)
        return CID.of(DAG_CBOR, block), block
    if how % 5 == 2 and count < 4:
        inline = dagcbor.encode(links[:2])
        if len(inline) < 128:  # its length is one byte
            return CID.v1(DAG_CBOR, b"\x00" + bytes((len(inline),)) + inline), inline
    message = UnixfsData(DataType.FILE, filesize=count, blocksizes=(1,) * count)
    block = encode_node(tuple(PBLink(link, "", 1) for link in links), message)
    return CID.of(DAG_PB, block, version=how % 2 if how % 5 == 3 else 1), block


def cbor_values() -> Iterator[bytes]:
    values: tuple[dagcbor.Value, ...] = (
        {"a": [1, -1, 255, 256, 65_536, 1 << 32, (1 << 64) - 1], "bb": {"": None}},
        [True, False, None, 1.5, -0.0, "text \u20ac", b"bytes", _LEAF, _OLD],
        [[[[[]]]]],
        {"link": CID.v1(RAW, b"\x00\x03abc")},
    )
    for value in values:
        yield dagcbor.encode(value)


def pb_nodes() -> Iterator[bytes]:
    links = (PBLink(_LEAF, "name", 9), PBLink(_OLD), PBLink(_LEAF, "", 1 << 40))
    for node in (PBNode(), PBNode(links, b"data"), PBNode(links), PBNode((), b"")):
        yield dagpb.encode(node)
    yield dagpb.encode(PBNode((), b"first")) + dagpb.encode(PBNode(links))


def unixfs_nodes() -> Iterator[bytes]:
    profile = next(iter(PROFILES.values()))
    entries = [(f"name {number}", _LEAF, number) for number in range(3)]
    yield build_directory(entries, profile)[1][0][1]
    yield build_symlink("../target", profile)[1][0][1]
    yield encode_node(
        (PBLink(_LEAF, "", 9), PBLink(_OLD, "", 9)),
        UnixfsData(DataType.FILE, None, 12, (4, 8), mode=0o644, mtime=Mtime(-1, 5)),
    )
    yield encode_node((), UnixfsData(DataType.RAW, b"inline", 6))
    yield encode_data(UnixfsData(DataType.METADATA, b"x", mtime=Mtime(1 << 40)))
    named = [Entry(f"name {number}", _LEAF, number) for number in range(6)]
    for fanout in (8, 256):
        yield build_shards(named, fanout, lambda block: CID.of(DAG_PB, block))[1][-1][1]


def dags() -> Iterator[bytes]:
    yield bytes((4, 3, 0, 0, 0, 4, 2, 0, 1, 1, 2, 0, 1))
    yield bytes((4, 39, *([0] * 39))) * 9
    yield bytes((1, 1, 0)) * 16
    yield bytes((2, 1, 0, 2, 2, 0, 1, 0, 4, 65, 65, 65, 65))


TARGETS = {
    "dagcbor": Target(cbor, cbor_values),
    "dagpb": Target(pb, pb_nodes, protobuf=True),
    "unixfs": Target(unixfs, unixfs_nodes, protobuf=True),
    "walk": Target(walk, dags, bytes_max=2048),
}
