"""Files: bytes to a balanced tree of blocks, and from a node to the children of a range.

The builder holds the links of one unfinished node per level, never the file; making leaves
(the hashing) is a pure function apart from it, so that threads can do it.  Specification:
UnixFS v1, balanced layout; the bytes are Kubo's.
"""

from __future__ import annotations

from typing import NamedTuple

from dstore.core.cid import CID
from dstore.core.dagpb import PBLink
from dstore.core.unixfs.node import DataType, File, UnixfsData, encode_node
from dstore.core.unixfs.profile import Profile

Block = tuple[CID, bytes]


class Link(NamedTuple):
    """What a parent needs to know of a DAG: its root, the bytes of file in it (0 for what is
    no file) and the bytes of all its blocks, repetitions counted (the Tsize)."""

    cid: CID
    file_bytes: int
    dag_bytes: int


class Extent(NamedTuple):
    """A child of a file node: `start` is where in the node's bytes it begins, `size` how
    many of them it holds."""

    cid: CID
    start: int
    size: int


def make_leaf(profile: Profile, chunk: bytes) -> Block:
    """The leaf that holds `chunk` (at most `profile.chunk_bytes`; empty only for an empty
    file).  Touches nothing shared and hashes without the GIL: safe to run in threads."""
    if profile.raw_leaves:
        return profile.raw_cid(chunk), chunk
    message = UnixfsData(DataType.FILE, data=chunk or None, filesize=len(chunk))
    block = encode_node((), message)
    return profile.node_cid(block), block


class FileBuilder:
    """Grows the tree above the leaves, given in order; finished nodes come out at once."""

    def __init__(self, profile: Profile) -> None:
        self._profile = profile
        self._levels: list[list[Link]] = [[]]

    def add_leaf(self, cid: CID, file_bytes: int, dag_bytes: int) -> list[Block]:
        """Append the leaf block `cid`, of `dag_bytes` bytes with `file_bytes` bytes of file.

        Returns the inner nodes that it completed, children before parents.
        """
        return self._push(0, Link(cid, file_bytes, dag_bytes))

    def finish(self) -> tuple[Link, list[Block]]:
        """The root of the file and the inner nodes that were still open.

        Without any leaf the file is empty, and its one leaf is among the blocks.
        """
        blocks: list[Block] = []
        if self._levels == [[]]:
            cid, block = make_leaf(self._profile, b"")
            return Link(cid, 0, len(block)), [(cid, block)]
        level = 0
        # A lone trailing child is wrapped like any other: all leaves are equally deep.
        while level < len(self._levels) - 1 or len(self._levels[level]) > 1:
            if self._levels[level]:
                blocks += self._close(level)
            level += 1
        return self._levels[level][0], blocks

    def _push(self, level: int, link: Link) -> list[Block]:
        if level == len(self._levels):
            self._levels.append([])
        self._levels[level].append(link)
        return self._close(level) if len(self._levels[level]) == self._profile.links_max else []

    def _close(self, level: int) -> list[Block]:
        children = self._levels[level]
        self._levels[level] = []
        size = sum(child.file_bytes for child in children)
        block = encode_node(
            # Kubo writes the empty name of a file's links.
            tuple(PBLink(child.cid, "", child.dag_bytes) for child in children),
            UnixfsData(
                DataType.FILE,
                filesize=size,
                blocksizes=tuple(child.file_bytes for child in children),
            ),
        )
        cid = self._profile.node_cid(block)
        link = Link(cid, size, len(block) + sum(child.dag_bytes for child in children))
        return [(cid, block), *self._push(level + 1, link)]


def children_in_range(file: File, offset: int, length: int) -> list[Extent]:
    """The children that hold any of the bytes [offset, offset + length) of `file`.

    Offsets count from the node's own first byte, its inline data first.  Children that hold
    nothing are passed over: a DAG of nothing but them would have no end.
    """
    found: list[Extent] = []
    start, stop = len(file.data), offset + length
    for child in file.children:
        if start >= stop:
            break
        if max(start, offset) < min(start + child.size, stop):
            found.append(Extent(child.cid, start, child.size))
        start += child.size
    return found
