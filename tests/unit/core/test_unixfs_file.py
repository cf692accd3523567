from __future__ import annotations

import hashlib
import json
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from aleph_cid import CidHasher
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms

from dstore.core.cid import CID, RAW
from dstore.core.unixfs import (
    DEFAULT_PROFILE,
    PROFILES,
    Extent,
    File,
    FileBuilder,
    FileChild,
    Link,
    Profile,
    UnknownProfile,
    children_in_range,
    make_leaf,
    parse,
    profile_named,
)
from dstore.errors import CallerError

VECTORS = json.loads((Path(__file__).parents[2] / "vectors" / "unixfs.json").read_text())
# What Kubo makes of --cid-version=1 without a profile: the oracle knows this one.
KUBO_V1 = Profile("kubo-v1", 1, 262_144, 174, True, 256, 262_144, "links")


def content(vector: dict[str, Any], chunk_bytes: int) -> Iterator[bytes]:
    if "text" in vector:
        yield vector["text"].encode()
        return
    key = hashlib.sha256(vector["seed"].encode()).digest()
    stream = Cipher(algorithms.ChaCha20(key, bytes(16)), None).encryptor()
    zeros, left = bytes(chunk_bytes), vector["bytes"]
    while left:
        size = min(chunk_bytes, left)
        yield stream.update(zeros[:size])
        left -= size


def build(profile: Profile, chunks: Iterator[bytes] | list[bytes]) -> Link:
    builder = FileBuilder(profile)
    for chunk in chunks:
        cid, block = make_leaf(profile, chunk)
        builder.add_leaf(cid, len(chunk), len(block))
    return builder.finish()[0]


@pytest.mark.parametrize(
    "vector",
    [
        pytest.param(
            vector,
            id=f"{vector['profile']}-{vector['bytes']}",
            marks=[pytest.mark.slow] if vector["bytes"] > 1 << 29 else [],
        )
        for vector in VECTORS["files"]
    ],
)
def test_known_cids(vector: dict[str, Any]) -> None:
    profile = PROFILES[vector["profile"]]
    root = build(profile, content(vector, profile.chunk_bytes))
    assert str(root.cid) == vector["cid"]
    assert root.file_bytes == vector["bytes"]


@pytest.mark.parametrize("chunks", [0, 1, 2, 3, 173, 174, 175, 348])
@pytest.mark.parametrize("more", [0, 1])
def test_same_cid_as_the_oracle(chunks: int, more: int) -> None:
    size = chunks * 262_144 + more
    data = bytes(range(256)) * (size // 256 + 1)
    for profile, oracle in (
        (PROFILES["unixfs-v0-2015"], CidHasher.for_ipfs()),
        (KUBO_V1, CidHasher.for_ipfs_v1_raw_leaves()),
    ):
        parts = [data[start : start + 262_144] for start in range(0, size, 262_144)]
        parts = [part[: size - index * 262_144] for index, part in enumerate(parts)]
        oracle.update(data[:size])
        assert str(build(profile, parts).cid) == oracle.finalize()


def test_empty_file() -> None:
    link, blocks = FileBuilder(DEFAULT_PROFILE).finish()
    assert str(link.cid) == "bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku"
    assert (link.file_bytes, link.dag_bytes) == (0, 0)
    assert blocks == [(link.cid, b"")]
    link, blocks = FileBuilder(PROFILES["unixfs-v0-2015"]).finish()
    assert str(link.cid) == "QmbFMke1KXqnYyBBWxB74N4c5SBnJMVAiMNRcGu6x1AwQH"
    assert (link.file_bytes, link.dag_bytes) == (0, 6)


def test_one_chunk_is_its_leaf() -> None:
    builder = FileBuilder(DEFAULT_PROFILE)
    cid, block = make_leaf(DEFAULT_PROFILE, b"hello world")
    assert block == b"hello world"
    assert builder.add_leaf(cid, 11, 11) == []
    assert builder.finish() == (Link(cid, 11, 11), [])


def test_inner_nodes_come_out_as_they_are_finished() -> None:
    profile = Profile("narrow", 1, 1, 2, True, 256, 262_144, "block")
    builder = FileBuilder(profile)
    made = []
    for index in range(5):
        cid, _ = make_leaf(profile, bytes([index]))
        made.append([parse(*block) for block in builder.add_leaf(cid, 1, 1)])
    sizes = [[node.size for node in nodes if isinstance(node, File)] for nodes in made]
    assert sizes == [[], [2], [], [2, 4], []]
    link, blocks = builder.finish()
    last = [node for node in (parse(*block) for block in blocks) if isinstance(node, File)]
    # The fifth leaf stands as deep as the others: two nodes of one child, then the root.
    assert [(node.size, len(node.children)) for node in last] == [(1, 1), (1, 1), (5, 2)]
    assert link.file_bytes == 5
    assert link.cid == blocks[-1][0]


def test_dag_bytes_count_every_block() -> None:
    profile = Profile("narrow", 0, 2, 3, False, 256, 262_144, "links")
    builder = FileBuilder(profile)
    total = 0
    for index in range(20):
        cid, block = make_leaf(profile, bytes([index, index]))
        total += len(block) + sum(len(node) for _, node in builder.add_leaf(cid, 2, len(block)))
    link, blocks = builder.finish()
    assert link.dag_bytes == total + sum(len(block) for _, block in blocks)


def test_memory_does_not_grow_with_the_file() -> None:
    """A million leaves, over a tree of 174 links: what is held is a path of open nodes."""
    profile = PROFILES["unixfs-v0-2015"]
    cid, block = make_leaf(profile, b"x")
    builder = FileBuilder(profile)
    for _ in range(40_000):
        builder.add_leaf(cid, 262_144, len(block))
    tracemalloc.start()
    try:
        for _ in range(40_000):
            builder.add_leaf(cid, 262_144, len(block))
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 1 << 20


@pytest.mark.parametrize(
    ("offset", "length", "expected"),
    [
        (0, 0, []),
        (0, 3, []),
        (5, 0, []),
        (0, 4, [0]),
        (2, 2, [0]),
        (3, 4, [0]),
        (3, 5, [0, 2]),
        (7, 1, [2]),
        (11, 1, [2]),
        (12, 5, [3]),
        (4, 100, [0, 2, 3]),
        (13, 5, []),
        (1000, 5, []),
    ],
)
def test_children_in_range(offset: int, length: int, expected: list[int]) -> None:
    cids = [CID.of(RAW, bytes([index])) for index in range(4)]
    children = tuple(map(FileChild, cids, (4, 0, 5, 1)))
    extents = [
        Extent(cids[0], 3, 4),
        Extent(cids[1], 7, 0),
        Extent(cids[2], 7, 5),
        Extent(cids[3], 12, 1),
    ]
    found = children_in_range(File(13, b"abc", children), offset, length)
    assert found == [extents[index] for index in expected]


def test_profiles() -> None:
    assert profile_named("unixfs-v1-2025") is DEFAULT_PROFILE
    with pytest.raises(UnknownProfile, match="did you mean unixfs-v1-2025") as caught:
        profile_named("unixfs-v1")
    assert isinstance(caught.value, CallerError)
    with pytest.raises(UnknownProfile, match="no CID profile"):
        profile_named("")
