from __future__ import annotations

from pathlib import Path

import pytest

from dstore.core import dagcbor, dagpb
from dstore.core.cid import CID, DAG_CBOR, DAG_PB, RAW, decode_varint
from dstore.core.dagpb import PBLink, PBNode
from dstore.core.unixfs import (
    Budget,
    DagWalk,
    FileBuilder,
    Link,
    Profile,
    Visit,
    build_directory,
    iter_dag,
    links_of,
    make_leaf,
)
from dstore.errors import BudgetExceeded, MalformedBlock

NARROW = Profile("narrow", 1, 4, 2, True, 256, 262_144, "block")


class Blocks:
    """A dict of blocks that counts what is loaded."""

    def __init__(self) -> None:
        self.held: dict[CID, bytes] = {}
        self.loaded: list[CID] = []

    def put(self, codec: int, data: bytes, version: int = 1) -> CID:
        cid = CID.of(codec, data, version=version)
        self.held[cid] = data
        return cid

    def pb(self, *links: CID, data: bytes | None = None) -> CID:
        return self.put(DAG_PB, dagpb.encode(PBNode(tuple(map(PBLink, links)), data)))

    def file(self, *chunks: bytes) -> Link:
        builder = FileBuilder(NARROW)
        for chunk in chunks:
            cid, block = make_leaf(NARROW, chunk)
            self.held[cid] = block
            self.held.update(builder.add_leaf(cid, len(chunk), len(block)))
        link, blocks = builder.finish()
        self.held.update(blocks)
        return link

    def load(self, cid: CID) -> bytes:
        self.loaded.append(cid)
        return self.held[cid]

    def size_of(self, cid: CID) -> int:
        return len(self.held[cid])

    def walk(self, root: CID, budget: Budget | None = None) -> list[Visit]:
        return list(iter_dag(root, self.load, self.size_of, budget))


def test_links_of() -> None:
    blocks = Blocks()
    a, b = blocks.put(RAW, b"a"), blocks.put(RAW, b"b")
    node = blocks.pb(b, a, b)
    assert links_of(node, blocks.held[node]) == (b, a, b)
    assert links_of(a, b"a") == ()
    cbor = dagcbor.encode({"x": [a, {"y": node}], "z": 1})
    assert links_of(CID.of(DAG_CBOR, cbor), cbor) == (a, node)
    with pytest.raises(MalformedBlock, match="codec 0x78"):
        links_of(CID.of(0x78, b""), b"")


def test_order_is_depth_first_first_visit_only() -> None:
    blocks = Blocks()
    a, b, c = (blocks.put(RAW, data) for data in (b"a", b"bb", b"ccc"))
    left, right = blocks.pb(b, a), blocks.pb(a, c)
    root = blocks.pb(left, right, left, c)
    visits = blocks.walk(root)
    assert [visit.cid for visit in visits] == [root, left, b, a, right, c]
    assert [visit.depth for visit in visits] == [0, 1, 2, 2, 1, 2]
    assert [visit.size for visit in visits] == [len(blocks.held[visit.cid]) for visit in visits]
    assert blocks.loaded == [root, left, right]  # leaves are sized, not read


def test_file_roots() -> None:
    blocks = Blocks()
    large, small = blocks.file(b"aaaa", b"bbbb", b"cccc"), blocks.file(b"z")
    entries = [("1", large.cid, large.dag_bytes), ("2", small.cid, 1), ("3", large.cid, 1)]
    directory, made = build_directory(entries, NARROW)
    blocks.held.update(made)
    visits = blocks.walk(directory.cid)
    assert len(visits) == len(blocks.held)
    assert [visit.cid for visit in visits if visit.file_root] == [large.cid, small.cid]
    begin = [visit.cid for visit in visits].index(large.cid)
    own = [visit.size for visit in visits[begin:] if visit.depth > visits[begin].depth]
    assert visits[begin].size + sum(own) == large.dag_bytes
    assert blocks.walk(small.cid) == [Visit(small.cid, 1, 0, True)]
    # Nodes that are no UnixFS are no files.
    assert [v.file_root for v in blocks.walk(blocks.pb(data=b"\xff"))] == [False]


def test_identity_cids_are_walked_through() -> None:
    blocks = Blocks()
    leaf = blocks.put(RAW, b"leaf")
    inline_node = dagpb.encode(PBNode((PBLink(leaf), PBLink(CID.parse("bafkqabiaaebagba")))))
    inline = CID.v1(DAG_PB, bytes([0, len(inline_node)]) + inline_node)
    root = blocks.pb(inline, inline)
    assert [visit.cid for visit in blocks.walk(root)] == [root, leaf]
    assert [visit.cid for visit in blocks.walk(inline)] == [leaf]
    assert blocks.walk(CID.parse("bafkqabiaaebagba")) == []


def test_same_bytes_under_another_codec() -> None:
    """They are one block, but what they link to depends on how they are read."""
    blocks = Blocks()
    leaf = blocks.put(RAW, b"leaf")
    node = blocks.pb(leaf)
    as_raw = blocks.put(RAW, blocks.held[node])
    old = blocks.put(DAG_PB, blocks.held[node], version=0)
    root = blocks.pb(as_raw, node, old)
    assert [visit.cid for visit in blocks.walk(root)] == [root, as_raw, leaf]
    root = blocks.pb(old, node, as_raw)
    assert [visit.cid for visit in blocks.walk(root)] == [root, old, leaf]
    assert blocks.loaded.count(node) == 1


def test_budgets() -> None:
    blocks = Blocks()
    cid = blocks.put(RAW, b"x" * 10)
    for _ in range(4):
        cid = blocks.pb(cid)
    sizes = [visit.size for visit in blocks.walk(cid)]
    exact = Budget(depth=4, blocks=5, bytes=sum(sizes))
    assert len(blocks.walk(cid, exact)) == 5
    assert (exact.blocks, exact.bytes) == (0, 0)
    with pytest.raises(BudgetExceeded, match="3 levels"):
        blocks.walk(cid, Budget(depth=3))
    with pytest.raises(BudgetExceeded, match="blocks"):
        blocks.walk(cid, Budget(blocks=4))
    with pytest.raises(BudgetExceeded, match="bytes"):
        blocks.walk(cid, Budget(bytes=sum(sizes) - 1))


def test_walk_as_a_conversation() -> None:
    blocks = Blocks()
    leaf = blocks.put(RAW, b"leaf")
    root = blocks.pb(leaf)
    walk = DagWalk(root, Budget())
    with pytest.raises(ValueError, match="no block is wanted"):
        walk.node(b"")
    assert walk.wanted() == walk.wanted() == root
    with pytest.raises(ValueError, match="bytes are needed"):
        walk.leaf(5)
    assert walk.node(blocks.held[root]) == Visit(root, len(blocks.held[root]), 0, False)
    assert walk.wanted() == leaf
    assert walk.node(b"leaf") == Visit(leaf, 4, 1, True)
    assert walk.wanted() is None


def test_malformed_block_ends_the_walk() -> None:
    blocks = Blocks()
    root = blocks.pb(blocks.put(DAG_PB, b"\xff"))
    with pytest.raises(MalformedBlock):
        blocks.walk(root)


def test_archive_that_kubo_wrote(fixtures_dir: Path) -> None:
    """A HAMT of many levels with files of several blocks: every block is reached."""
    name = "directory-with-multilayer-hamt-and-multiblock-files.car"
    archive = (fixtures_dir / "boxo-gateway" / name).read_bytes()
    blocks = Blocks()
    header, start = decode_varint(archive)
    (root,) = links_of(CID.of(DAG_CBOR, b""), archive[start : start + header])
    position = start + header
    while position < len(archive):
        length, position = decode_varint(archive, position)
        section, position = archive[position : position + length], position + length
        split = 34 if section.startswith(b"\x12\x20") else 36
        blocks.held[CID.from_bytes(section[:split])] = section[split:]
    visited = {visit.cid for visit in blocks.walk(root)}
    assert visited == set(blocks.held)
