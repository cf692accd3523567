"""From a root in the block store to its manifest: stripes planned, parity named.

All work happens in worker threads, some megabytes of whole stripes a call.  The result is
the same for the same DAG and code.  Parity itself is not kept: `slotreader` makes it again
where it is sent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from dstore.core import erasure
from dstore.core.cid import CID, RAW
from dstore.core.manifest import Code, Manifest, SegmentRef, SizedCID
from dstore.core.stripes import SegmentPlan, plan_dag
from dstore.errors import NotFoundError
from dstore.limits import ENCODE_BATCH_BYTES, ENCODE_BATCHES_IN_FLIGHT
from dstore.runtime import Workers
from dstore.service.pipeline import from_iterable, in_order
from dstore.service.progress import Progress, Report
from dstore.storage.blockstore import Block, BlockStore, GetBlock

Stripes = Sequence[tuple[SizedCID, ...]]


@dataclass(frozen=True)
class Encoded:
    """A root with its protection, whose blocks are stored.  Segments are read back one at a
    time where they are needed: those of a large file fill more memory than anything else of
    an add.  `fragment_bytes` are those of all slots together, `read` reads a block of the data
    (in a worker)."""

    manifest: Manifest
    fragment_bytes: int
    read: GetBlock


async def encode_root(
    root: CID,
    code: Code,
    blocks: BlockStore,
    read: GetBlock,
    save: Callable[[Sequence[Block]], None],
    workers: Workers,
    report: Report,
) -> Encoded:
    """Plan the stripes of the DAG under `root`, all of it in `blocks`, and find the CIDs of the
    parity of what `read` reads.

    `save` is called in a worker, with the segment and manifest blocks.  Raises NotFoundError
    where a block of the DAG is missing, MalformedBlock, BudgetExceeded, and what `save` raises.
    """

    def size_of(cid: CID) -> int:
        size = blocks.size(cid)
        if size is None:
            raise NotFoundError(f"block {cid} of {root} is not in the store")
        return size

    def plan() -> Iterator[SegmentPlan]:
        return plan_dag(root, blocks.get, size_of, code)

    def encode(stripes: Stripes) -> list[list[CID]]:
        """In a worker: the parity CIDs of each stripe."""
        rows: list[list[CID]] = []
        for stripe in stripes:
            length = max(size for _, size in stripe)
            made = erasure.encode(code.k, code.m, [read(cid) for cid, _ in stripe], length)
            rows.append([CID.of(RAW, block) for block in made])
        return rows

    def begin() -> tuple[int, SegmentPlan | Manifest]:
        """In a worker: the bytes in all, and the first plan."""
        # Planned twice, once for the total alone: a plan costs less than keeping all of it.
        return sum(one.data_bytes for one in plan()), go_on([])

    def go_on(made: list[Block]) -> SegmentPlan | Manifest:
        """In a worker: save the segment made, the last with the manifest; what comes next."""
        following = next(plans, None) or Manifest.of(root, code, refs)
        if isinstance(following, Manifest):
            made.append((following.cid, following.block))
        if made:
            save(made)
        return following

    done = fragment_bytes = 0
    refs: list[SegmentRef] = []
    plans = plan()
    total, one = await workers.run(begin)
    while not isinstance(one, Manifest):
        rows: list[list[CID]] = []
        async with in_order(
            from_iterable(_batches(one.stripes)),
            lambda stripes: workers.run(encode, stripes),
            weigh=_bytes_of,
            budget=ENCODE_BATCH_BYTES * ENCODE_BATCHES_IN_FLIGHT,
        ) as batches:
            async for batch in batches:
                encoded = one.stripes[len(rows) : len(rows) + len(batch)]
                rows += batch
                done += _bytes_of(encoded)
                report(Progress("encode", done, total))
        segment = one.segment(rows)
        refs.append(segment.ref)
        fragment_bytes += sum(segment.slot_bytes(slot) for slot in range(segment.n))
        one = await workers.run(go_on, [(segment.cid, segment.block)])
    return Encoded(one, fragment_bytes, read)


def _bytes_of(stripes: Iterable[tuple[SizedCID, ...]]) -> int:
    return sum(size for stripe in stripes for _, size in stripe)


def _batches(stripes: Stripes) -> Iterator[Stripes]:
    """Runs of whole stripes of about ENCODE_BATCH_BYTES."""
    start = size = 0
    for index, stripe in enumerate(stripes):
        weight = sum(block for _, block in stripe)
        if index > start and size + weight > ENCODE_BATCH_BYTES:
            yield stripes[start:index]
            start, size = index, 0
        size += weight
    if start < len(stripes):
        yield stripes[start:]
