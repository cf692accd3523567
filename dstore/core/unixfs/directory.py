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
from dstore.core.unixfs.hamt import build_shards, slot_of
from dstore.core.unixfs.node import (
    DataType,
    Directory,
    Entry,
    HamtShard,
    UnixfsData,
    encode_data,
    encode_node,
    name_fault,
)
from dstore.core.unixfs.profile import Profile
from dstore.errors import InvalidPath
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
    """The entries of this block and the shards below it, both in encoded order."""
    if isinstance(node, Directory):
        return Listing(node.entries, ())
    entries = tuple(item for item in node.entries if isinstance(item, Entry))
    shards = tuple(item for item in node.entries if isinstance(item, CID))
    return Listing(entries, shards)


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
