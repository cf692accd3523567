"""Segments of several manifests that list one block: who waits for whom, and for how long."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import cast

import pytest
import trio

from dstore.core.cid import CID, RAW
from dstore.core.manifest import Code, Manifest, Segment, SegmentRef, Stripe
from dstore.errors import Unrecoverable
from dstore.service.decoding import Holders
from dstore.service.search import Listing, Search
from dstore.service.segments import RootSegments
from dstore.service.sources import RootSources
from dstore.testing.deterministic import run_deterministic

DATA = b"block"
BLOCK = CID.of(RAW, DATA)
ROOT = CID.of(RAW, b"root")


def listing_it(number: int) -> tuple[Manifest, Segment]:
    """A manifest of one segment, which lists the block and another one."""
    other = b"other %d" % number
    stripes = [Stripe(((CID.of(RAW, data), len(data)),), ()) for data in (DATA, other)]
    segment = Segment(1, 0, tuple(stripes))
    return Manifest.of(ROOT, Code(1, 0), [segment.ref]), segment


class Known:
    """What is known of the root: each segment comes after so many seconds."""

    def __init__(self, *seconds: float) -> None:
        made = [listing_it(number) for number in range(len(seconds))]
        self.order = [manifest for manifest, _ in made]
        self.manifests = {manifest.cid: manifest for manifest in self.order}
        self.failed: Counter[CID] = Counter()
        self.proved: set[CID] = set()
        self._made = {
            manifest.cid: (segment, after)
            for (manifest, segment), after in zip(made, seconds, strict=True)
        }

    def by_agreement(self) -> list[Manifest]:
        return self.order

    def listing(self, cid: CID) -> list[tuple[CID, Segment, Holders]]:
        return []

    def likely_first(self, manifest: Manifest, cid: CID, position: float) -> Sequence[SegmentRef]:
        return manifest.segments

    async def load(self, manifest: Manifest, ref: SegmentRef) -> tuple[Segment, Holders]:
        segment, after = self._made[manifest.cid]
        await trio.sleep(after)
        return segment, {}


@pytest.mark.parametrize("seed", range(8))
def test_who_waits_for_another_goes_on_when_that_fails(seed: int) -> None:
    """And is not held to have been late itself."""

    async def main() -> None:
        known = Known(0.6, 0.2)  # the second begins beside the first, which is late
        first, second = known.order

        async def attempt(listing: Listing) -> bytes:
            if listing.manifest == first.cid:
                await trio.sleep(1)
                raise Unrecoverable("nobody has it")
            return DATA

        search = Search(
            cast("RootSources", known), cast("RootSegments", known), BLOCK, 0.0, attempt
        )
        begin = trio.current_time()
        assert await search.find() == DATA
        assert trio.current_time() - begin == pytest.approx(1.6)
        assert (known.failed[first.cid] > 0, known.failed[second.cid]) == (True, 0)

    run_deterministic(seed, main)
