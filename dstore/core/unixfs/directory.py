"""Directories and symbolic links: building them, listing them, finding one name.

A directory is one block until its profile's threshold, a HAMT above.  Reading goes one block
at a time: each function says what the block at hand yields and which block is needed next.
Specification: UnixFS v1; the thresholds are those of IPIP-0499.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from dstore.core import dagpb
from dstore.core.cid import CID
from dstore.core.dagpb import PBLink
from dstore.core.unixfs.file import Block, Link
from dstore.core.unixfs.hamt import build_shards, hash_prefix, slot_of
from dstore.core.unixfs.node import (
    DataType,
    Directory,
    Entry,
    HamtShard,
    UnixfsData,
    encode_data,
    encode_node,
    name_fault,
    parse,
)
from dstore.core.unixfs.profile import Profile
from dstore.core.unixfs.walk import Budget
from dstore.errors import InvalidPath, MalformedBlock
from dstore.limits import DAGPB_LINKS_MAX, NAME_BYTES_MAX, SYMLINK_BYTES_MAX

_DIRECTORY_DATA: Final = encode_data(UnixfsData(DataType.DIRECTORY))


@dataclass(frozen=True, slots=True)
class Found:
    """The name is here: it leads to `cid`."""

    cid: CID


@dataclass(frozen=True, slots=True)
class Descend:
    """The name, if it exists, is in the shard `cid`; look there with this depth."""

    cid: CID
    depth: int


@dataclass(frozen=True, slots=True)
class Absent:
    """The directory has no such name."""


@dataclass(frozen=True, slots=True)
class Listing:
    """What one block of a directory holds: entries, and shards with more of them."""

    entries: tuple[Entry, ...]
    shards: tuple[CID, ...]


def build_directory(
    entries: Iterable[tuple[str, CID, int]], profile: Profile
) -> tuple[Link, list[Block]]:
    """A directory of (name, cid, bytes of the DAG below): its root, and its blocks, children
    before parents, in whatever form the profile asks for at that size.

    Raises InvalidPath for a name that is illegal, too long or there twice; CallerError where
    no directory can hold the names.
    """
    named: dict[str, Entry] = {}
    for name, cid, dag_bytes in entries:
        _check_name(name)
        if name in named:
            raise InvalidPath(f"two directory entries are named {name!r}")
        named[name] = Entry(name, cid, dag_bytes)
    ordered = sorted(named.values(), key=lambda entry: _name_bytes(entry.name))
    links = _plain_links(ordered, profile)
    if links is None:
        return build_shards(ordered, profile.hamt_fanout, profile.node_cid)
    block = dagpb.join(links, _DIRECTORY_DATA)
    root = profile.node_cid(block)
    dag_bytes = len(block) + sum(entry.dag_bytes or 0 for entry in ordered)
    return Link(root, 0, dag_bytes), [(root, block)]


def _plain_links(entries: list[Entry], profile: Profile) -> list[bytes] | None:
    """The encoded links of a directory in one block; None where it must be a HAMT."""
    by_block = profile.hamt_estimate == "block"
    estimate = len(dagpb.join((), _DIRECTORY_DATA)) if by_block else 0
    links: list[bytes] = []
    for entry in entries:
        link = dagpb.encode_link(PBLink(entry.cid, entry.name, entry.dag_bytes))
        links.append(link)
        estimate += len(link) if by_block else len(_name_bytes(entry.name)) + len(entry.cid.binary)
        if estimate > profile.hamt_threshold_bytes or len(links) > DAGPB_LINKS_MAX:
            return None
    return links


def build_symlink(target: str, profile: Profile) -> tuple[Link, list[Block]]:
    """A symbolic link to `target`, which is not interpreted.  Raises InvalidPath where it is
    empty, too long, or has a NUL."""
    data = _name_bytes(target)
    if not 0 < len(data) <= SYMLINK_BYTES_MAX or b"\0" in data:
        raise InvalidPath(f"a symbolic link cannot point to {target[:64]!r}")
    block = encode_node((), UnixfsData(DataType.SYMLINK, data=data))
    cid = profile.node_cid(block)
    return Link(cid, 0, len(block)), [(cid, block)]


def lookup(node: Directory | HamtShard, name: str, depth: int = 0) -> Found | Descend | Absent:
    """Where `name` is, as far as this block tells.

    `depth` is 0 for the root of the directory, else what `Descend` said.  Raises
    MalformedBlock where the shards go deeper than a hash has bits.
    """
    if isinstance(node, Directory):
        for entry in node.entries:
            if entry.name == name:
                return Found(entry.cid)
        return Absent()
    try:
        slot = slot_of(name, depth, node.fanout)
        entry_or_shard = node.entries[node.slots.index(slot)]
    except ValueError:  # the slot is empty, or the name is no text that a hash could be of
        return Absent()
    if isinstance(entry_or_shard, CID):
        return Descend(entry_or_shard, depth + 1)
    return Found(entry_or_shard.cid) if entry_or_shard.name == name else Absent()


def listing(node: Directory | HamtShard) -> Listing:
    """The entries of this block and the shards below it, both in encoded order, as they
    stand.  To list a directory that is not trusted, use `DirectoryLister`."""
    if isinstance(node, Directory):
        return Listing(node.entries, ())
    entries = tuple(item for item in node.entries if isinstance(item, Entry))
    shards = tuple(item for item in node.entries if isinstance(item, CID))
    return Listing(entries, shards)


class DirectoryLister:
    """All entries of a directory of any form: ask `wanted`, answer with `supply`, until None.

    Entries come in encoded order.  Every name of a HAMT is checked against the slots on the
    way to it, so that no name comes twice and no tree of repetitions is walked for long.
    """

    def __init__(self, root: CID, budget: Budget) -> None:
        self._budget = budget
        self._pending = [_Shard(root, depth=0, prefix=0)]
        self._fanout: int | None = None  # of the root's shard, and so of all

    def wanted(self) -> CID | None:
        """The block to supply next (that of an identity CID is its digest); None at the end."""
        return self._pending[-1].cid if self._pending else None

    def supply(self, data: bytes) -> tuple[Entry, ...]:
        """The entries in the wanted block, whose bytes are `data`.

        Raises InvalidPath where the root is no directory, MalformedBlock where a shard is not
        what belongs in its place, BudgetExceeded.
        """
        shard = self._pending.pop()
        self._budget.enter(shard.depth)
        self._budget.spend(len(data))
        node = parse(shard.cid, data)
        if isinstance(node, Directory) and shard.depth == 0:
            return node.entries
        if not isinstance(node, HamtShard):
            if shard.depth == 0:
                raise InvalidPath(f"{shard.cid} is not a directory")
            raise MalformedBlock(f"{shard.cid} is not a shard, and its parent says so")
        if shard.depth == 0:
            self._fanout = node.fanout
        if node.fanout != self._fanout or (shard.depth and not node.entries):
            raise MalformedBlock(f"shard {shard.cid} does not belong in its directory")
        return self._entries(shard, node)

    def _entries(self, shard: _Shard, node: HamtShard) -> tuple[Entry, ...]:
        entries, below = [], []
        for slot, item in zip(node.slots, node.entries, strict=True):
            prefix = shard.prefix * node.fanout + slot
            if isinstance(item, CID):
                below.append(_Shard(item, shard.depth + 1, prefix))
            elif hash_prefix(item.name, shard.depth, node.fanout) != prefix:
                raise MalformedBlock(
                    f"shard {shard.cid}: {item.name[:64]!r} is where no look-up would find it"
                )
            else:
                entries.append(item)
        self._pending += reversed(below)
        return tuple(entries)


@dataclass(frozen=True, slots=True)
class _Shard:
    """A shard to list; `prefix` is the bits of the hash that lead to it."""

    cid: CID
    depth: int
    prefix: int


def _check_name(name: str) -> None:
    fault = name_fault(name)
    if fault is None and len(_name_bytes(name)) > NAME_BYTES_MAX:
        fault = f"is longer than {NAME_BYTES_MAX} bytes"
    if fault is not None:
        raise InvalidPath(f"directory entry name {name[:64]!r} {fault}")


def _name_bytes(name: str) -> bytes:
    try:
        return name.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        raise InvalidPath(f"name {name[:64]!r} cannot be written as bytes") from error
