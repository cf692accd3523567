"""Files and directories built and read back, against plain reference algorithms."""

from __future__ import annotations

from random import Random
from typing import Literal

from aleph_cid import CidHasher
from hypothesis import given, settings
from hypothesis import strategies as st

from dstore.core.cid import CID, RAW
from dstore.core.dagpb import PBLink
from dstore.core.unixfs import (
    PROFILES,
    Absent,
    Budget,
    Descend,
    Directory,
    DirectoryLister,
    Entry,
    FileBuilder,
    FileChild,
    Found,
    HamtShard,
    Link,
    Profile,
    build_directory,
    children_in_range,
    iter_dag,
    lookup,
    make_leaf,
    name_fault,
    parse,
    parse_child,
)
from dstore.core.unixfs.node import DataType, UnixfsData, encode_node


@st.composite
def profiles(draw: st.DrawFn) -> Profile:
    version: Literal[0, 1] = draw(st.sampled_from([0, 1]))
    return Profile(
        "drawn",
        version,
        chunk_bytes=draw(st.integers(1, 5)),
        links_max=draw(st.integers(2, 5)),
        raw_leaves=draw(st.booleans()),
        hamt_fanout=draw(st.sampled_from([8, 16, 256, 1024])),
        hamt_threshold_bytes=draw(st.integers(0, 2000)),
        hamt_estimate=draw(st.sampled_from(["block", "links"])),
    )


def build(profile: Profile, data: bytes) -> tuple[Link, dict[CID, bytes]]:
    builder, held = FileBuilder(profile), {}
    for start in range(0, len(data), profile.chunk_bytes):
        chunk = data[start : start + profile.chunk_bytes]
        cid, block = make_leaf(profile, chunk)
        held[cid] = block
        held.update(builder.add_leaf(cid, len(chunk), len(block)))
    link, blocks = builder.finish()
    held.update(blocks)
    return link, held


def build_by_level(profile: Profile, data: bytes) -> Link:
    """The balanced tree in the plainest way: all leaves, then level upon level."""
    chunks = [data[i : i + profile.chunk_bytes] for i in range(0, len(data), profile.chunk_bytes)]
    level = []
    for chunk in chunks or [b""]:
        cid, block = make_leaf(profile, chunk)
        level.append(Link(cid, len(chunk), len(block)))
    while len(level) > 1:
        above = []
        for start in range(0, len(level), profile.links_max):
            part = level[start : start + profile.links_max]
            sizes = tuple(link.file_bytes for link in part)
            block = encode_node(
                tuple(PBLink(link.cid, "", link.dag_bytes) for link in part),
                UnixfsData(DataType.FILE, filesize=sum(sizes), blocksizes=sizes),
            )
            total = len(block) + sum(link.dag_bytes for link in part)
            above.append(Link(profile.node_cid(block), sum(sizes), total))
        level = above
    return level[0]


def read(held: dict[CID, bytes], child: FileChild, offset: int, length: int) -> bytes:
    """The bytes of a range, loading nothing that does not hold any of them."""
    file = parse_child(child, held[child.cid])
    out = file.data[offset : offset + length] if offset < len(file.data) else b""
    for cid, start, size in children_in_range(file, offset, length):
        begin, end = max(offset, start), min(offset + length, start + size)
        out += read(held, FileChild(cid, size), begin - start, end - begin)
    return out


@given(profiles(), st.binary(max_size=200))
def test_files(profile: Profile, data: bytes) -> None:
    link, held = build(profile, data)
    assert link == build_by_level(profile, data)
    assert read(held, FileChild(link.cid, link.file_bytes), 0, len(data) + 1) == data
    visits = list(iter_dag(link.cid, held.__getitem__, lambda cid: len(held[cid]), Budget()))
    assert {visit.cid for visit in visits} == set(held)
    assert [visit.cid for visit in visits if visit.file_root] == [link.cid]
    assert sum(visit.size for visit in visits) <= link.dag_bytes


@given(profiles(), st.binary(max_size=100), st.integers(0, 110), st.integers(0, 110))
def test_ranges(profile: Profile, data: bytes, offset: int, length: int) -> None:
    link, held = build(profile, data)
    child = FileChild(link.cid, len(data))
    assert read(held, child, offset, length) == data[offset : offset + length]


@settings(max_examples=25)
@given(st.integers(0, 5), st.integers(-3, 3))
def test_oracle(chunks: int, more: int) -> None:
    profile = PROFILES["unixfs-v0-2015"]
    data = bytes(max(0, chunks * profile.chunk_bytes + more))
    oracle = CidHasher.for_ipfs()
    oracle.update(data)
    assert str(build(profile, data)[0].cid) == oracle.finalize()


legal_names = (
    st.binary(min_size=1, max_size=40)
    .map(lambda name: name.decode("utf-8", "surrogateescape"))
    .filter(lambda name: name_fault(name) is None)
)


@given(profiles(), st.lists(legal_names, unique=True, max_size=60), st.randoms())
def test_directories(profile: Profile, names: list[str], random: Random) -> None:
    entries = [(name, CID.of(RAW, name.encode("utf-8", "surrogateescape")), 3) for name in names]
    root, blocks = build_directory(entries, profile)
    held = dict(blocks)
    assert root.dag_bytes == sum(len(block) for _, block in blocks) + 3 * len(names)
    random.shuffle(entries)
    assert build_directory(entries, profile) == (root, blocks)

    for name, cid, _ in entries:
        assert find(held, root.cid, name) == Found(cid)
    assert find(held, root.cid, "/") == Absent()

    listed: list[Entry] = []
    lister = DirectoryLister(root.cid, Budget(blocks=len(blocks)))
    while (wanted := lister.wanted()) is not None:
        listed += lister.supply(held[wanted])
    assert sorted(listed) == sorted(entries)


def find(held: dict[CID, bytes], root: CID, name: str) -> Found | Absent:
    step: Found | Descend | Absent = Descend(root, 0)
    while isinstance(step, Descend):
        node = parse(step.cid, held[step.cid])
        assert isinstance(node, Directory | HamtShard)
        step = lookup(node, name, step.depth)
    return step
