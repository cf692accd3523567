"""Sharded directories: a hash array mapped trie, one block per shard.

An entry's place follows from its name alone, so every builder makes the same tree whatever
the order of insertion.  Specification: UnixFS v1 (HAMT-sharded directories); the bits of
murmur3-x64-64 are consumed most significant first, as Kubo does.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import groupby, pairwise

import mmh3

from dstore.core.cid import CID
from dstore.core.dagpb import PBLink
from dstore.core.unixfs.file import Block, Link
from dstore.core.unixfs.node import (
    MURMUR3_X64_64,
    DataType,
    Entry,
    UnixfsData,
    encode_node,
    slot_digits,
)
from dstore.errors import CallerError, MalformedBlock

_HASH_BITS = 64


def name_hash(name: str) -> int:
    """The 64 bits that place `name`."""
    half: int = mmh3.hash64(name.encode("utf-8", "surrogateescape"), signed=False)[0]
    return half


def hash_prefix(name: str, depth: int, fanout: int) -> int:
    """The bits that lead to `name` through the slots of a shard at `depth` (0 is the root of
    its directory), that shard's own slot last.

    Raises MalformedBlock where the trie is deeper than a hash has bits.
    """
    bits = fanout.bit_length() - 1
    shift = _HASH_BITS - bits * (depth + 1)
    if shift < 0:
        raise MalformedBlock(f"a sharded directory {depth} levels deep")
    return name_hash(name) >> shift


def slot_of(name: str, depth: int, fanout: int) -> int:
    """The slot of `name` in a shard at `depth`.  Raises as `hash_prefix`."""
    return hash_prefix(name, depth, fanout) & fanout - 1


def build_shards(
    entries: list[Entry], fanout: int, node_cid: Callable[[bytes], CID]
) -> tuple[Link, list[Block]]:
    """The trie over `entries` (names distinct): its root and all blocks, children first.

    Raises CallerError where two names have one hash.
    """
    hashed = sorted((name_hash(entry.name), entry) for entry in entries)
    for (left, first), (right, second) in pairwise(hashed):
        if left == right:
            raise CallerError(
                f"{first.name!r} and {second.name!r} have the same murmur3 hash: no sharded "
                "directory can hold both; rename one"
            )
    blocks: list[Block] = []
    root = _build(hashed, 0, fanout, node_cid, blocks)
    return root, blocks


def _build(
    hashed: list[tuple[int, Entry]],
    depth: int,
    fanout: int,
    node_cid: Callable[[bytes], CID],
    blocks: list[Block],
) -> Link:
    # Recursion ends: 64 bits of distinct hashes differ within 64 / log2(fanout) levels.
    bits = fanout.bit_length() - 1
    shift = _HASH_BITS - bits * (depth + 1)
    digits = slot_digits(fanout)
    links: list[PBLink] = []
    field = 0
    for slot, group in groupby(hashed, lambda item: item[0] >> shift & fanout - 1):
        field |= 1 << slot
        label = f"{slot:0{digits}X}"
        members = list(group)
        if len(members) == 1:
            entry = members[0][1]
            links.append(PBLink(entry.cid, label + entry.name, entry.dag_bytes))
        else:
            below = _build(members, depth + 1, fanout, node_cid, blocks)
            links.append(PBLink(below.cid, label, below.dag_bytes))
    message = UnixfsData(
        DataType.HAMT_SHARD,
        data=field.to_bytes((field.bit_length() + 7) // 8, "big"),
        hash_type=MURMUR3_X64_64,
        fanout=fanout,
    )
    block = encode_node(tuple(links), message)
    cid = node_cid(block)
    blocks.append((cid, block))
    return Link(cid, 0, len(block) + sum(link.tsize or 0 for link in links))
