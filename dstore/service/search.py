"""Which segment leads to a block: the manifests of a root take turns.

A manifest may be invented, list thousands of segments that nobody has, or real ones of which
the holders are silent.  It costs its turn then, and in the same session it comes later; the
true one is tried beside it, not after it.  Blocks are checked by whoever fetches them.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Generic, TypeVar

import trio

from dstore.core.cid import CID
from dstore.core.manifest import Code, Manifest, Segment, SegmentRef
from dstore.errors import (
    DataError,
    DstoreError,
    NetworkError,
    NotFoundError,
    PeerError,
    Unrecoverable,
)
from dstore.limits import (
    HEDGE_SECONDS,
    HEDGE_SECONDS_UNKNOWN,
    MANIFEST_FAILURES_COUNTED,
    SEGMENT_ALONE_SECONDS,
    SEGMENT_PROVED_SECONDS,
)
from dstore.runtime import open_plain_nursery
from dstore.service.decoding import Holders
from dstore.service.segments import RootSegments
from dstore.service.sources import RootSources

T = TypeVar("T")
Way = Callable[[], Awaitable[T | None]]  # None where it leads nowhere


@dataclass(frozen=True, slots=True)
class Listing:
    """A segment that lists the block, the manifest that it was found by, who holds its slots,
    and where in it the block is."""

    manifest: CID
    segment: Segment
    holders: Holders
    stripe: int
    slot: int


class Search(Generic[T]):
    """One block, looked for in the segments of all manifests, those that become known
    meanwhile too.

    `attempt` makes the result of a segment that lists the block; where it fails, the search
    goes on.  `direct`, which needs no segment, comes last, or as soon as a segment fails or
    leads nowhere for long.
    """

    def __init__(
        self,
        sources: RootSources,
        segments: RootSegments,
        cid: CID,
        position: float,
        attempt: Callable[[Listing], Awaitable[T]],
        direct: Callable[[], Awaitable[T]] | None = None,
        useless: set[CID] | None = None,
    ) -> None:
        """`useless` are segments of which an earlier search found that they do not list the
        block; this one adds to them."""
        self._sources = sources
        self._segments = segments
        self._cid = cid
        self._position = position
        self._attempt = attempt
        self._direct = direct
        self._refs: dict[CID, Iterator[SegmentRef]] = {}  # by manifest, what is left to try
        self._turns: Counter[CID] = Counter()  # that each manifest has had
        self._late_at: dict[CID, float] = {}  # manifests and segments under way
        self._taken: set[tuple[Code, SegmentRef]] = set()
        self._useless = set[CID]() if useless is None else useless
        self._attempted: set[CID] = set()  # segments
        self._running = 0
        self._looking = 0  # of those, with a segment that lists the block
        self._alone_until = 0.0  # when another way begins beside those that run
        self._news = trio.Event()
        self._result: T | None = None
        self._failure: DstoreError | None = None

    async def find(self) -> T:
        """The first result.  Raises NotFoundError where no segment lists the block, else what
        an attempt raised."""
        listing = self._in_memory()
        way = None if listing is None else partial(self._look, listing)
        proved = listing is not None and listing.segment.cid in self._segments.proved
        if way is not None and proved and len(self._sources.manifests) <= 1:
            self._running += 1
            await self._run(way)  # nothing could be tried beside it
            way = None
        if self._result is None:
            await self._race(way)
        result, self._result = self._result, None
        if result is not None:
            self._failure = None  # its traceback holds frames, and what was fetched in them
            return result
        raise self._failure or NotFoundError(f"no segment lists {self._cid}")

    async def _race(self, way: Way[T] | None) -> None:
        """Try `way`, then one way after another: the next where one has failed, or after a
        while beside those that are under way."""
        alone_seconds = HEDGE_SECONDS
        async with open_plain_nursery() as nursery:
            while self._result is None:
                way = way or self._next()
                self._alone_until = trio.current_time() + alone_seconds
                if way is not None:
                    self._running += 1
                    nursery.start_soon(self._run, way)
                elif not self._running:
                    break
                way = None
                self._news = trio.Event()
                await self._wait()
                alone_seconds = HEDGE_SECONDS_UNKNOWN
            nursery.cancel_scope.cancel()

    async def _wait(self) -> None:
        """Until a way has ended, or those under way have had their time alone."""
        while not self._news.is_set():
            left_seconds = self._alone_until - trio.current_time()
            if left_seconds <= 0:
                break
            with trio.move_on_after(left_seconds):
                await self._news.wait()

    def _in_memory(self) -> Listing | None:
        """A segment in memory that lists the block; of several, that by the manifest which most
        peers named.  None where a manifest that even more named is to be tried first."""
        found = self._segments.listing(self._cid)
        order = [manifest.cid for manifest in self._sources.by_agreement()]
        if not found or (order and self._segments.is_new(order[0])):
            return None
        known = {cid: rank for rank, cid in enumerate(order)}
        manifest, segment, holders = min(found, key=lambda one: known.get(one[0], len(known)))
        return Listing(manifest, segment, holders, *segment.locate[self._cid.multihash])

    def _next(self) -> Way[T] | None:
        """What to try now beside what is under way: of the manifest that had fewest turns, if
        those are equal, that most peers named.  A failure earlier in the session counts as a
        turn."""
        self._note_late()
        if self._failure is not None and self._direct is not None:
            return self._take_direct()
        failed = self._segments.failed

        def turns(manifest: Manifest) -> int:
            return self._turns[manifest.cid] + min(failed[manifest.cid], MANIFEST_FAILURES_COUNTED)

        for manifest in sorted(self._sources.by_agreement(), key=turns):
            if manifest.cid not in self._late_at and (ref := self._next_ref(manifest)) is not None:
                self._turns[manifest.cid] += 1
                self._late_at[manifest.cid] = trio.current_time() + HEDGE_SECONDS
                return partial(self._try, manifest, ref)
        stuck = bool(self._attempted) and trio.current_time() >= self._alone_until
        return self._take_direct() if stuck or not self._running else None

    def _note_late(self) -> None:
        """What is waited for too long comes later in the next search, unless it leads to the
        block yet."""
        now = trio.current_time()
        for cid, late_at in self._late_at.items():
            if now >= late_at:
                self._segments.failed[cid] += 1
                self._late_at[cid] = math.inf

    def _next_ref(self, manifest: Manifest) -> SegmentRef | None:
        refs = self._refs.get(manifest.cid)
        if refs is None:
            likely = self._segments.likely_first(manifest, self._cid, self._position)
            refs = self._refs[manifest.cid] = iter(likely)
        for ref in refs:
            key = manifest.code, ref
            known = ref.cid in self._useless or ref.cid in self._attempted
            if not known and key not in self._taken:
                self._taken.add(key)
                return ref
        return None

    def _take_direct(self) -> Way[T] | None:
        direct, self._direct = self._direct, None
        return direct

    async def _run(self, way: Way[T]) -> None:
        try:
            result = await way()
            if result is not None:
                self._result = result
        except (NotFoundError, NetworkError, PeerError, DataError) as error:
            # That nobody has it says less than why a segment that lists it was of no use.
            if self._failure is None or not isinstance(error, NotFoundError):
                self._failure = error
        self._running -= 1
        self._news.set()

    async def _try(self, manifest: Manifest, ref: SegmentRef) -> T | None:
        """What one segment of a manifest leads to; None where it does not list the block, or was
        attempted meanwhile."""
        try:
            try:
                segment, holders = await self._segments.load(manifest, ref)
            except NotFoundError as error:
                lost = f"a segment of {manifest.cid} is missing: {error}"
                raise Unrecoverable(lost) from error
            place = segment.locate.get(self._cid.multihash)
            if place is None:
                self._useless.add(segment.cid)
                return None
            if self._looking:  # another segment leads to the block, as far as is known
                self._late_at[manifest.cid] = math.inf  # to wait for it is no failure of this one
                left_seconds = self._alone_until - trio.current_time()
                with trio.move_on_after(max(0.0, left_seconds)):
                    await self._news.wait()
            if segment.cid in self._attempted:
                return None
            return await self._look(Listing(manifest.cid, segment, holders, *place))
        except (NetworkError, PeerError, DataError):
            self._segments.failed[manifest.cid] += 1
            raise
        finally:
            self._late_at.pop(manifest.cid, None)

    async def _look(self, listing: Listing) -> T:
        """What a segment that lists the block leads to."""
        segment = listing.segment.cid
        if not self._attempted:
            proved = segment in self._segments.proved
            alone_seconds = SEGMENT_PROVED_SECONDS if proved else SEGMENT_ALONE_SECONDS
            late_at = self._alone_until = trio.current_time() + alone_seconds
            self._late_at |= {segment: late_at, listing.manifest: late_at}
        self._attempted.add(segment)
        self._looking += 1
        try:
            return await self._attempt(listing)
        except (NotFoundError, NetworkError, PeerError, DataError):
            self._segments.failed[segment] += 1
            raise
        finally:
            self._looking -= 1
            self._late_at.pop(segment, None)
            self._late_at.pop(listing.manifest, None)
