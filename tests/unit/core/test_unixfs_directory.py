from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import aleph_cid
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms

from dstore.core.cid import CID, RAW
from dstore.core.unixfs import (
    DEFAULT_PROFILE,
    PROFILES,
    Absent,
    Descend,
    Directory,
    Found,
    HamtShard,
    Link,
    Profile,
    Symlink,
    build_directory,
    build_symlink,
    listing,
    lookup,
    make_leaf,
    parse,
)
from dstore.core.unixfs.hamt import name_hash, slot_of
from dstore.errors import InvalidPath, MalformedBlock
from dstore.limits import NAME_BYTES_MAX

VECTORS = json.loads((Path(__file__).parents[2] / "vectors" / "unixfs.json").read_text())
V0 = PROFILES["unixfs-v0-2015"]
ALWAYS_HAMT = Profile("tiny", 1, 1, 2, True, 8, 4, "block")
X = CID.of(RAW, b"x")


def vector_names(vector: dict[str, Any]) -> list[str]:
    key = hashlib.sha256(vector["seed"].encode()).digest()
    stream = Cipher(algorithms.ChaCha20(key, bytes(16)), None).encryptor()
    lengths = [vector["name_bytes"]] * (vector["files"] - 1) + [vector["last_name_bytes"]]
    letters = VECTORS["alphabet"]
    return ["".join(letters[byte % 39] for byte in stream.update(bytes(n))) for n in lengths]


@pytest.mark.parametrize("vector", VECTORS["directories"], ids=lambda v: f"{v['form']}-{v['cid']}")
def test_known_cids_on_both_sides_of_the_threshold(vector: dict[str, Any]) -> None:
    profile = PROFILES[vector["profile"]]
    leaf, block = make_leaf(profile, b"x")
    names = vector_names(vector)
    root, blocks = build_directory([(name, leaf, len(block)) for name in names], profile)
    assert str(root.cid) == vector["cid"]
    top = parse(*blocks[-1])
    assert isinstance(top, HamtShard if vector["form"] == "hamt" else Directory)
    assert root.dag_bytes == sum(len(data) for _, data in blocks) + len(names) * len(block)
    assert find(dict(blocks), root.cid, names[7]) == leaf


def find(blocks: dict[CID, bytes], root: CID, name: str) -> CID | None:
    step: Found | Descend | Absent = Descend(root, 0)
    while isinstance(step, Descend):
        node = parse(step.cid, blocks[step.cid])
        assert isinstance(node, Directory | HamtShard)
        step = lookup(node, name, step.depth)
    return step.cid if isinstance(step, Found) else None


def test_name_hashes() -> None:
    for name, expected in VECTORS["name_hashes"].items():
        assert f"{name_hash(name):016x}" == expected
    # Most significant bits first.
    assert [slot_of("742.txt", depth, 256) for depth in range(3)] == [0x00, 0xFF, 0x87]
    assert slot_of("742.txt", 0, 1024) == 0x00FF87D1 >> 22
    with pytest.raises(MalformedBlock, match="8 levels deep"):
        slot_of("742.txt", 8, 256)


def test_empty_directories() -> None:
    assert str(build_directory([], V0)[0].cid) == "QmUNLLsPACCz1vLxQVkXqqLX5R1X345qqfHbsf67hvA3Nn"
    link, blocks = build_directory([], DEFAULT_PROFILE)
    assert str(link.cid) == "bafybeiczsscdsbs7ffqz55asqdf3smv6klcw3gofszvwlyarci47bgf354"
    assert link == Link(link.cid, 0, 4)
    assert blocks == [(link.cid, b"\x0a\x02\x08\x01")]


def test_entries_are_sorted_by_bytes() -> None:
    names = ["b", "a", "\U0001f600", "\uffff", "Z", "\udcff", "é"]
    root, blocks = build_directory([(name, X, 1) for name in names], DEFAULT_PROFILE)
    assert build_directory([(name, X, 1) for name in sorted(names)], DEFAULT_PROFILE)[0] == root
    node = parse(*blocks[0])
    assert isinstance(node, Directory)
    # "\uffff" sorts before what lies beyond the basic plane in bytes, and so in code points,
    # but a byte that is no UTF-8 (0xff) comes last.
    assert [e.name for e in node.entries] == ["Z", "a", "b", "é", "\uffff", "\U0001f600", "\udcff"]


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/b", "/", "a\0", "é" * 128, "a" * (NAME_BYTES_MAX + 1), "\ud800"]
)
def test_refuses_names(name: str) -> None:
    with pytest.raises(InvalidPath):
        build_directory([(name, X, 1)], DEFAULT_PROFILE)


def test_refuses_a_name_twice() -> None:
    with pytest.raises(InvalidPath, match="two directory entries are named 'a'"):
        build_directory([("a", X, 1), ("b", X, 1), ("a", CID.of(RAW, b"y"), 1)], DEFAULT_PROFILE)


def test_longest_names() -> None:
    link, blocks = build_directory([("a" * NAME_BYTES_MAX, X, 1)], DEFAULT_PROFILE)
    assert find(dict(blocks), link.cid, "a" * NAME_BYTES_MAX) == X


@pytest.mark.parametrize("profile", [DEFAULT_PROFILE, ALWAYS_HAMT])
def test_lookup(profile: Profile) -> None:
    targets = {f"name-{index}": CID.of(RAW, bytes([index])) for index in range(200)}
    root, blocks = build_directory([(n, c, 1) for n, c in targets.items()], profile)
    held = dict(blocks)
    assert blocks[-1][0] == root.cid
    for name, cid in targets.items():
        assert find(held, root.cid, name) == cid
    for absent in ("name-200", "", "name-1 ", "../name-1", "\udcff", "\ud800"):
        assert find(held, root.cid, absent) is None


def test_listing_covers_every_entry_once() -> None:
    targets = {f"name-{index}": CID.of(RAW, bytes([index])) for index in range(200)}
    root, blocks = build_directory([(n, c, 7) for n, c in targets.items()], ALWAYS_HAMT)
    held, shards, seen = dict(blocks), [root.cid], {}
    while shards:
        node = parse(shards[-1], held[shards.pop()])
        assert isinstance(node, HamtShard)
        listed = listing(node)
        shards += listed.shards
        for entry in listed.entries:
            assert entry.name not in seen
            assert entry.dag_bytes == 7
            seen[entry.name] = entry.cid
    assert seen == targets
    assert len(held) > 20


def test_shards_that_never_end() -> None:
    """A lying tree can send a lookup down no further than the hash has bits."""
    node = HamtShard(256, tuple(range(256)), (X,) * 256)
    assert lookup(node, "a", 7) == Descend(X, 8)
    with pytest.raises(MalformedBlock, match="8 levels"):
        lookup(node, "a", 8)


def test_symlink() -> None:
    link, blocks = build_symlink("file.txt", DEFAULT_PROFILE)
    assert blocks[0][1] == b"\x0a\x0c\x08\x04\x12\x08file.txt"
    assert link == Link(blocks[0][0], 0, 14)
    assert parse(*blocks[0]) == Symlink("file.txt")
    assert build_symlink("file.txt", V0)[0].cid.version == 0
    for target in ("", "a\0b", "x" * 4097, "\ud800"):
        with pytest.raises(InvalidPath):
            build_symlink(target, DEFAULT_PROFILE)


@pytest.mark.parametrize("profile", [DEFAULT_PROFILE, V0])
def test_same_cid_as_the_oracle(profile: Profile, tmp_path: Path) -> None:
    def put(folder: Path, files: dict[str, bytes]) -> list[tuple[str, CID, int]]:
        folder.mkdir(exist_ok=True)
        entries = []
        for name, data in files.items():
            (folder / name).write_bytes(data)
            cid, block = make_leaf(profile, data)
            entries.append((name, cid, len(block)))
        return entries

    top = put(tmp_path / "top", {"a": b"1", "é": b"2", "Z z": b"", "a.b": b"1"})
    below = put(tmp_path / "top" / "below", {f"{index:03}": bytes([index]) for index in range(50)})
    inner, _ = build_directory(below, profile)
    entries = [*top, ("below", inner.cid, inner.dag_bytes)]
    root, _ = build_directory(entries, profile)
    expected = aleph_cid.hash_folder(str(tmp_path / "top"), cid_version=profile.cid_version)
    assert str(root.cid) == expected
