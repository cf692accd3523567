"""Walking a DAG: the links of any block, and all distinct blocks in the order that counts.

Depth-first pre-order, links as encoded, every multihash once: the order that stripes are cut
in.  The walk asks for one block at a time and does no I/O; it keeps its own stack, visits
repetition once and stops at its budget, so no DAG can make it run or grow without end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from dstore.core import dagcbor, dagpb
from dstore.core.cid import CID, DAG_CBOR, DAG_PB, RAW
from dstore.core.unixfs.node import DataType, decode_data
from dstore.errors import BudgetExceeded, MalformedBlock
from dstore.limits import DAG_BLOCKS_MAX, DAG_DEPTH_MAX, DAG_PENDING_LINKS_MAX


@dataclass(slots=True)
class Budget:
    """How deep, how many blocks and how many bytes a walk may still go; None is no limit."""

    depth: int = DAG_DEPTH_MAX
    blocks: int = DAG_BLOCKS_MAX
    bytes: int | None = None

    def enter(self, depth: int) -> None:
        """Raises BudgetExceeded where `depth` (0 is the root) is too deep."""
        if depth > self.depth:
            raise BudgetExceeded(f"a DAG more than {self.depth} levels deep")

    def spend(self, size: int) -> None:
        """Take one block of `size` bytes off.  Raises BudgetExceeded where none is left."""
        self.blocks -= 1
        if self.blocks < 0:
            raise BudgetExceeded("a DAG of more blocks than allowed")
        if self.bytes is not None:
            self.bytes -= size
            if self.bytes < 0:
                raise BudgetExceeded("a DAG of more bytes than allowed")


@dataclass(frozen=True, slots=True)
class Visit:
    """One distinct block, at its first place in the DAG.

    `size` is its length in bytes, `depth` that of the place (the root has 0).  `file_root`
    says that a UnixFS file begins here: its own DAG is this block and all visits after it of
    greater depth, up to the next visit that is not deeper (less what came before elsewhere).
    """

    cid: CID
    size: int
    depth: int
    file_root: bool


def links_of(cid: CID, data: bytes) -> tuple[CID, ...]:
    """The CIDs in the block `data` that `cid` names, in encoded order, repetitions included.

    Raises MalformedBlock where the block is not of its codec, or dstore does not know the
    codec and so could not tell what is below.
    """
    if cid.codec == RAW:
        return ()
    if cid.codec == DAG_PB:
        return tuple(link.cid for link in dagpb.decode(data).links)
    if cid.codec == DAG_CBOR:
        return dagcbor.links(data)
    raise MalformedBlock(
        f"{cid}: dstore cannot tell what a block of codec 0x{cid.codec:x} links to"
    )


class DagWalk:
    """The walk as a conversation: ask `wanted`, answer with `leaf` or `node`, until None.

    Identity CIDs are never wanted: they carry their bytes, and the walk goes through them.
    """

    def __init__(self, root: CID, budget: Budget) -> None:
        self._budget = budget
        self._frames: list[_Frame] = []
        self._pending = 0
        self._visited: set[bytes] = set()  # multihashes
        self._expanded: set[bytes] = set()  # codec and multihash
        self._current: CID | None = None
        self._push((root,), part_of_file=False)

    def wanted(self) -> CID | None:
        """The block to answer for next; None where the DAG has been seen in full.

        Raises BudgetExceeded, MalformedBlock.
        """
        while self._current is None and self._frames:
            frame = self._frames[-1]
            if frame.position == len(frame.links):
                self._frames.pop()
                self._pending -= len(frame.links)
                continue
            cid = frame.links[frame.position]
            frame.position += 1
            if cid.is_identity:
                if cid.codec != RAW and self._is_new(cid):
                    self._expand(cid, cid.digest)
            elif self._is_new(cid):
                self._current = cid
        return self._current

    def leaf(self, size: int) -> Visit:
        """The wanted block is raw, of `size` bytes.  Raises BudgetExceeded."""
        if self._current is not None and self._current.codec != RAW:
            raise ValueError(f"{self._current} may have links: its bytes are needed")
        cid = self._take()
        frame = self._frames[-1]
        self._budget.spend(size)
        self._visited.add(cid.multihash)
        return Visit(cid, size, len(self._frames) - 1, not frame.part_of_file)

    def node(self, data: bytes) -> Visit | None:
        """The wanted block is `data`.

        Returns None where the same bytes were visited before under another codec: then only
        their links were new.  Raises BudgetExceeded, MalformedBlock.
        """
        if self._current is not None and self._current.codec == RAW:
            return self.leaf(len(data))
        cid = self._take()
        depth, part_of_file = len(self._frames) - 1, self._frames[-1].part_of_file
        self._budget.spend(len(data))
        is_file = self._expand(cid, data)
        multihash = cid.multihash
        if multihash in self._visited:
            return None
        self._visited.add(multihash)
        return Visit(cid, len(data), depth, is_file and not part_of_file)

    def _take(self) -> CID:
        if self._current is None:
            raise ValueError("no block is wanted")
        cid, self._current = self._current, None
        return cid

    def _is_new(self, cid: CID) -> bool:
        if cid.codec == RAW:
            return cid.multihash not in self._visited
        key = cid.binary if cid.version else b"\x01\x70" + cid.binary
        if key in self._expanded:
            return False
        self._expanded.add(key)
        return True

    def _expand(self, cid: CID, data: bytes) -> bool:
        """Enter the links of a block; whether it is (part of) a UnixFS file."""
        if cid.codec != DAG_PB:
            self._push(links_of(cid, data), part_of_file=False)
            return False
        node = dagpb.decode(data)
        is_file = _is_file(node.data)
        self._push(tuple(link.cid for link in node.links), part_of_file=is_file)
        return is_file

    def _push(self, links: tuple[CID, ...], *, part_of_file: bool) -> None:
        if not links:
            return
        self._budget.enter(len(self._frames))
        self._pending += len(links)
        if self._pending > DAG_PENDING_LINKS_MAX:
            raise BudgetExceeded(
                f"a DAG with more than {DAG_PENDING_LINKS_MAX} links on one path from its root"
            )
        self._frames.append(_Frame(links, part_of_file))


@dataclass(slots=True)
class _Frame:
    """The links of a block on the path from the root to here, and how many are done."""

    links: tuple[CID, ...]
    part_of_file: bool
    position: int = 0


def _is_file(message: bytes | None) -> bool:
    try:
        return message is not None and decode_data(message).type in (DataType.FILE, DataType.RAW)
    except MalformedBlock:  # dag-pb that is not UnixFS: links, and no file
        return False


def iter_dag(
    root: CID,
    load: Callable[[CID], bytes],
    size_of: Callable[[CID], int],
    budget: Budget | None = None,
) -> Iterator[Visit]:
    """All distinct blocks of the DAG under `root`, depth-first pre-order.

    `load` returns the bytes of a block, checked against its CID; raw blocks are not loaded:
    `size_of` returns their length.  Identity CIDs are walked through and not yielded.  Raises
    BudgetExceeded, MalformedBlock and what the two functions raise.
    """
    walk = DagWalk(root, budget or Budget())
    while (cid := walk.wanted()) is not None:
        visit = walk.leaf(size_of(cid)) if cid.codec == RAW else walk.node(load(cid))
        if visit is not None:
            yield visit
