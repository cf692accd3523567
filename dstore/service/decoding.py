"""Blocks of a stripe that nobody sends, computed from its other fragments.

Parity is not hashed when it comes: what is computed from it is, and where that is right, so
was the parity.  Only where it is not are the fragments checked one by one, and whoever sent
a wrong one is named and not asked again.  Nothing leaves that was not checked against its CID.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from dstore.core import erasure
from dstore.core.cid import CID
from dstore.core.manifest import Segment
from dstore.core.peerid import PeerId
from dstore.errors import CorruptStore, MalformedBlock, NotFoundError, Unrecoverable
from dstore.limits import (
    DECODE_BATCH_BYTES,
    HEDGE_SECONDS_UNKNOWN,
    HELD_LOOKUP_STRIPES,
    HELD_LOOKUPS_KEPT,
)
from dstore.runtime import JointWork, Workers
from dstore.service.blockcache import BlockCache
from dstore.service.fetch import BlockFetcher, Unchecked
from dstore.service.race import gather_enough
from dstore.storage.blockstore import BlockStore

Holders = dict[int, dict[PeerId, None]]  # by slot


@dataclass(frozen=True, slots=True)
class _Task:
    """A stripe to decode: the fragment `slot` and its missing data blocks, from `got`."""

    segment: Segment
    stripe: int
    slot: int
    got: Mapping[int, bytes | Unchecked]


# The blocks made; where they came out wrong, None and those of the inputs that are right.
_Decoded = tuple[dict[int, bytes] | None, dict[int, bytes]]


class StripeDecoder:
    """Makes missing blocks of stripes; asks holders for what it needs."""

    def __init__(
        self,
        fetcher: BlockFetcher,
        blocks: BlockStore,
        cache: BlockCache,
        workers: Workers,
        is_near: Callable[[PeerId], bool],
    ) -> None:
        """`is_near` tells whether a peer is connected and has done nothing wrong lately."""
        self._is_near = is_near
        self._fetcher = fetcher
        self._blocks = blocks
        self._cache = cache
        self._workers = workers
        self._decoding: JointWork[_Task, _Decoded] = JointWork(workers, _decode_some)
        self._held: OrderedDict[tuple[CID, int], Collection[bytes]] = OrderedDict()
        self._bad_stripes: set[tuple[CID, int]] = set()

    async def make(
        self, segment: Segment, holders: Holders, stripe: int, slot: int
    ) -> dict[int, bytes]:
        """The fragment `slot` and all data blocks of the stripe that are not at hand, verified,
        from as many others as there are data blocks; they are in the cache, too.

        Raises Unrecoverable where too few fragments can be had, MalformedBlock where they do not
        give what the segment says.
        """
        if (segment.cid, stripe) in self._bad_stripes:
            raise MalformedBlock(f"stripe {stripe} of {segment.cid} is known not to decode")
        known: dict[int, bytes] = {}
        while True:
            got = await self._gather(segment, holders, stripe, slot, known)
            made, right = await self._decoding.run(_Task(segment, stripe, slot, got))
            if made is not None:
                break
            wrong = [(other, one) for other, one in got.items() if other not in right]
            if not wrong:
                # All inputs are right, so it is the encoder that lied: never try it again.
                self._bad_stripes.add((segment.cid, stripe))
                raise MalformedBlock(f"stripe {stripe} of {segment.cid} does not decode")
            for other, one in wrong:
                assert isinstance(one, Unchecked)
                self._fetcher.lied(one.peer, fragment_cid(segment, stripe, other))
            known = right  # and once more, with those of others
        for lost, data in made.items():
            self._cache.put(fragment_cid(segment, stripe, lost), data)
        self._fetcher.counters.decoded_blocks += len(made)
        return made

    async def _gather(
        self,
        segment: Segment,
        holders: Holders,
        stripe: int,
        slot: int,
        known: Mapping[int, bytes],
    ) -> dict[int, bytes | Unchecked]:
        """As many fragments other than `slot` as there are data blocks: those `known`, those
        here, then those of holders."""
        needed = len(segment.stripes[stripe].data)
        others = [other for other in existing_slots(segment, stripe) if other != slot]
        got: dict[int, bytes | Unchecked] = dict(known)
        for other in others:
            data = self._cache.get(fragment_cid(segment, stripe, other))
            if data is not None and len(got) < needed:
                got[other] = data
        missing = [other for other in others if other not in got]
        if len(got) < needed:
            held = await self._held_near(segment, stripe)
            cids = {other: fragment_cid(segment, stripe, other) for other in missing}
            here = {other: cid for other, cid in cids.items() if cid.multihash in held}
            if here:
                got |= await self._workers.run(self._read, here, needed - len(got))
                missing = [other for other in missing if other not in got]
        # Whether a connection can be had is not waited for, nor for holders that failed; of the
        # others data comes first, as neighbouring blocks are wanted next anyway.
        missing.sort(key=lambda other: (self._rank(holders, other), other))
        ways = [partial(self._fetch, segment, holders, stripe, other) for other in missing]
        got |= await gather_enough(ways, needed - len(got), stagger_seconds=HEDGE_SECONDS_UNKNOWN)
        if len(got) < needed:
            raise Unrecoverable(
                f"{len(got)} fragments of stripe {stripe} of {segment.cid} could be had; "
                f"{needed} are needed"
            )
        return got

    async def _held_near(self, segment: Segment, stripe: int) -> Collection[bytes]:
        """The multihashes of fragments that this node stores itself, of this stripe and its
        neighbours: one look at the store for many stripes."""
        group = stripe // HELD_LOOKUP_STRIPES
        held = self._held.get((segment.cid, group))
        if held is None:
            first = group * HELD_LOOKUP_STRIPES
            cids = [
                fragment_cid(segment, index, slot)
                for index in range(first, min(first + HELD_LOOKUP_STRIPES, len(segment.stripes)))
                for slot in existing_slots(segment, index)
            ]
            here = await self._workers.run(self._blocks.has_many, cids)
            held = {cid.multihash for cid, is_here in zip(cids, here, strict=True) if is_here}
            self._held[segment.cid, group] = held
            if len(self._held) > HELD_LOOKUPS_KEPT:
                self._held.popitem(last=False)
        return held

    def _read(self, cids: Mapping[int, CID], enough: int) -> dict[int, bytes]:
        """In a worker: those that this node stores itself, `enough` at most."""
        found: dict[int, bytes] = {}
        for slot, cid in cids.items():
            if len(found) == enough:
                break
            try:
                found[slot] = self._blocks.get(cid)
            except (NotFoundError, CorruptStore):
                continue
        return found

    def _rank(self, holders: Holders, slot: int) -> int:
        """0 for a slot with a holder that is near, 1 for one whose holders would be dialled, 2
        where all have failed lately or lied."""
        peers, fetcher = holders.get(slot, {}), self._fetcher
        if any(map(self._is_near, peers)):
            return 0
        failed = (fetcher.is_cooling(peer) or fetcher.has_lied(peer) for peer in peers)
        return 2 if all(failed) else 1

    async def _fetch(
        self, segment: Segment, holders: Holders, stripe: int, slot: int
    ) -> tuple[int, bytes | Unchecked]:
        """One fragment from a holder.  Data is checked as it comes: it is wanted for itself."""
        cid = fragment_cid(segment, stripe, slot)
        size = fragment_size(segment, stripe, slot)
        peers = holders.get(slot, {})
        if slot >= segment.k:
            return slot, await self._fetcher.fetch_unchecked(peers, cid, size)
        data = await self._fetcher.fetch(peers, cid, size)
        self._cache.put(cid, data)
        return slot, data


def fragment_cid(segment: Segment, stripe: int, slot: int) -> CID:
    """The CID of a fragment that exists."""
    cid = segment.fragment(stripe, slot)
    assert cid is not None
    return cid


def fragment_size(segment: Segment, stripe: int, slot: int) -> int:
    """The bytes of a fragment that exists."""
    one = segment.stripes[stripe]
    return one.data[slot][1] if slot < segment.k else one.length


def existing_slots(segment: Segment, stripe: int) -> list[int]:
    """The slots in which the stripe has a fragment."""
    return [*range(len(segment.stripes[stripe].data)), *range(segment.k, segment.n)]


def _decode_some(tasks: Sequence[_Task]) -> list[_Decoded]:
    """In a worker: the first of the stripes, at least one."""
    done: list[_Decoded] = []
    size = 0
    for task in tasks:
        done.append(_decode(task))
        size += task.segment.stripes[task.stripe].length * len(task.got)
        if size >= DECODE_BATCH_BYTES:
            break
    return done


def _decode(task: _Task) -> _Decoded:
    """The blocks computed, verified against what the segment says."""
    segment, stripe, got = task.segment, task.stripe, task.got
    one = segment.stripes[stripe]
    wanted = sorted({task.slot, *range(len(one.data))} - got.keys())
    inputs = {
        other: given.data if isinstance(given, Unchecked) else given for other, given in got.items()
    }
    # A peer chose the length of what is unchecked: of another, it is wrong, whatever it gives.
    if all(len(data) == fragment_size(segment, stripe, at) for at, data in inputs.items()):
        made = erasure.reconstruct(segment.k, segment.m, inputs, wanted, one.length, len(one.data))
        blocks = {lost: made[lost][: fragment_size(segment, stripe, lost)] for lost in wanted}
        if all(fragment_cid(segment, stripe, lost).verify(blocks[lost]) for lost in wanted):
            return blocks, {}
    right = {
        other: data
        for other, data in inputs.items()
        if not isinstance(got[other], Unchecked)
        or fragment_cid(segment, stripe, other).verify(data)
    }
    return None, right
