"""From a DAG to stripes: which blocks are coded together, as a pure function of the DAG.

This is the writer's rule; a reader trusts what a segment lists and never needs it.  The
blocks come as the visits of a walk, in its order; their bytes are never seen here.
Format: docs/reference/formats.md, "From DAG to stripes".
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from dstore.core.cid import CID
from dstore.core.manifest import Code, Segment, SizedCID, Stripe
from dstore.core.unixfs.walk import Budget, Visit, iter_dag
from dstore.errors import BudgetExceeded, MalformedBlock
from dstore.limits import (
    ALIGNED_FILE_BYTES_MIN,
    BLOCK_BYTES_MAX,
    SEGMENT_BYTES_MAX,
    SEGMENT_FRAGMENTS_MAX,
    SEGMENTS_MAX,
)


@dataclass(frozen=True)
class SegmentPlan:
    """One segment before its parity exists: data blocks by stripe."""

    code: Code
    stripes: tuple[tuple[SizedCID, ...], ...]

    @property
    def blocks(self) -> int:
        return sum(len(stripe) for stripe in self.stripes)

    @property
    def data_bytes(self) -> int:
        return sum(size for stripe in self.stripes for _, size in stripe)

    def segment(self, parity: Sequence[Sequence[CID]]) -> Segment:
        """The segment, given the CIDs of the m parity blocks of each stripe in turn."""
        return Segment(
            self.code.k,
            self.code.m,
            tuple(
                Stripe(data, tuple(rows)) for data, rows in zip(self.stripes, parity, strict=True)
            ),
        )


@dataclass(frozen=True)
class Cuts:
    """Where segments end.  dstore writes with one set of values; tests use smaller ones."""

    segment_bytes: int = SEGMENT_BYTES_MAX
    segment_fragments: int = SEGMENT_FRAGMENTS_MAX
    aligned_file_bytes: int = ALIGNED_FILE_BYTES_MIN


CUTS: Final = Cuts()


def size_class(size: int) -> tuple[int, int]:
    """The bit length of a size and its next three bits: sizes of one class differ by less
    than an eighth."""
    length = size.bit_length()
    return length, (size << 4 >> length) & 7


class SegmentPlanner:
    """Turns visits into segments as they come; holds one segment and at most
    ALIGNED_FILE_BYTES_MIN worth of one file."""

    def __init__(self, code: Code, cuts: Cuts = CUTS) -> None:
        if cuts.segment_fragments < code.n or cuts.segment_bytes < BLOCK_BYTES_MAX:
            raise ValueError(f"segments that cannot hold one stripe of {code}")
        self._code = code
        self._cuts = cuts
        self._segment: list[SizedCID] = []
        self._segment_bytes = 0
        self._segments = 0
        # The file that the walk is in: how deep its root is (None: in no file), the blocks
        # held back until it is known to be large, and how many bytes those have.
        self._file_depth: int | None = None
        self._file: list[SizedCID] = []
        self._file_bytes = 0
        self._file_is_large = False

    def feed(self, visit: Visit) -> list[SegmentPlan]:
        """Take the next visit; returns the segments that it completes, mostly none.

        Raises MalformedBlock for a block beyond BLOCK_BYTES_MAX, BudgetExceeded beyond
        SEGMENTS_MAX.
        """
        done: list[SegmentPlan] = []
        if self._file_depth is not None and visit.depth <= self._file_depth:
            self._end_file(done)
        if self._file_depth is None and visit.file_root:
            self._file_depth = visit.depth
        if visit.cid.is_identity or visit.size == 0:
            return done
        if visit.size > BLOCK_BYTES_MAX:
            raise MalformedBlock(
                f"{visit.cid} has {visit.size} bytes; blocks have at most {BLOCK_BYTES_MAX}"
            )
        block = (visit.cid, visit.size)
        if self._file_depth is None or self._file_is_large:
            self._append(block, done)
            return done
        self._file.append(block)
        self._file_bytes += visit.size
        if self._file_bytes >= self._cuts.aligned_file_bytes:
            self._file_is_large = True
            self._cut(done)
            self._release_file(done)
        return done

    def finish(self) -> list[SegmentPlan]:
        """The walk is over; returns the last segments."""
        done: list[SegmentPlan] = []
        if self._file_depth is not None:
            self._end_file(done)
        self._cut(done)
        return done

    def _end_file(self, done: list[SegmentPlan]) -> None:
        self._release_file(done)
        if self._file_is_large:
            self._cut(done)
        self._file_depth = None
        self._file_is_large = False

    def _release_file(self, done: list[SegmentPlan]) -> None:
        for block in self._file:
            self._append(block, done)
        self._file = []
        self._file_bytes = 0

    def _append(self, block: SizedCID, done: list[SegmentPlan]) -> None:
        if (
            self._segment_bytes + block[1] > self._cuts.segment_bytes
            or self._code.fragments(len(self._segment) + 1) > self._cuts.segment_fragments
        ):
            self._cut(done)
        self._segment.append(block)
        self._segment_bytes += block[1]

    def _cut(self, done: list[SegmentPlan]) -> None:
        if not self._segment:
            return
        self._segments += 1
        if self._segments > SEGMENTS_MAX:
            raise BudgetExceeded(f"a DAG of more than {SEGMENTS_MAX} segments")
        # Python's sort is stable, also in reverse.
        blocks = sorted(self._segment, key=lambda block: size_class(block[1]), reverse=True)
        k = self._code.k
        stripes = tuple(tuple(blocks[at : at + k]) for at in range(0, len(blocks), k))
        done.append(SegmentPlan(self._code, stripes))
        self._segment = []
        self._segment_bytes = 0


def plan_segments(visits: Iterable[Visit], code: Code, cuts: Cuts = CUTS) -> Iterator[SegmentPlan]:
    """The segments of a walk's visits, in order.  Raises as `SegmentPlanner.feed`."""
    planner = SegmentPlanner(code, cuts)
    for visit in visits:
        yield from planner.feed(visit)
    yield from planner.finish()


def plan_dag(
    root: CID,
    load: Callable[[CID], bytes],
    size_of: Callable[[CID], int],
    code: Code,
    *,
    budget: Budget | None = None,
    cuts: Cuts = CUTS,
) -> Iterator[SegmentPlan]:
    """The segments of the DAG under `root`.

    `load` gives the bytes of blocks that are not raw, `size_of` the sizes of those that are;
    neither is asked for identity CIDs.  Raises BudgetExceeded, MalformedBlock, and whatever
    the two functions raise.
    """
    return plan_segments(iter_dag(root, load, size_of, budget), code, cuts)
