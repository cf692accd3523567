"""Parity for slots that go at different speeds: computed seldom, and little of it kept."""

from __future__ import annotations

import pytest
import trio

from dstore.core import erasure
from dstore.core.cid import CID, RAW
from dstore.core.manifest import Segment, Stripe
from dstore.limits import KIB, PARITY_BATCH_BYTES, PARITY_KEPT_BYTES
from dstore.runtime import InlineWorkers
from dstore.service.slotreader import ParityReader
from dstore.storage.memory import MemoryStore
from dstore.testing.deterministic import run_deterministic

K, M, STRIPES = 4, 8, 60
SIZE = 256 * KIB  # one stripe's parity fills a batch


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Stripes of which parity was computed; what comes of it is the number of the call."""
    calls: list[int] = []

    def encode(k: int, m: int, data: list[bytes], length: int) -> list[bytes]:
        calls.append(len(calls))
        return [data[0][:8] + bytes([row]) for row in range(m)]

    monkeypatch.setattr(erasure, "encode", encode)
    return calls


def segment_in(store: MemoryStore) -> Segment:
    stripes = []
    for number in range(STRIPES):
        block = number.to_bytes(8, "big") + bytes(SIZE - 8)
        cid = CID.of(RAW, block)
        store.put_many([(cid, block)])
        stripes.append(Stripe(((cid, SIZE),) * K, (cid,) * M))
    return Segment(K, M, tuple(stripes))


@pytest.mark.parametrize(("slower", "at_most"), [(0.0, 1.0), (0.1, 1.0), (0.5, 3.5)])
def test_slots_of_different_speed_share_what_is_computed(
    slower: float, at_most: float, computed: list[int]
) -> None:
    async def main() -> None:
        store = MemoryStore()
        reader = ParityReader(store.get, InlineWorkers(), segment_in(store))

        async def bring(row: int) -> None:
            for stripe in range(STRIPES):
                await trio.sleep(1 + slower * row / M)
                got = await reader.read(stripe, K + row)
                assert got == stripe.to_bytes(8, "big") + bytes([row])
                kept = sum(batch.size for batch in reader._batches)
                assert kept <= PARITY_KEPT_BYTES
            reader.ended(K + row)

        async with trio.open_nursery() as nursery:
            for row in range(M):
                nursery.start_soon(bring, row)
        assert len(computed) <= at_most * STRIPES

    run_deterministic(1, main)


def test_a_slot_that_ended_behind_the_others_takes_no_room(computed: list[int]) -> None:
    """Two that go on close together need what is between them, not what a third had yet to ask."""
    apart = PARITY_KEPT_BYTES // PARITY_BATCH_BYTES - 1

    async def main() -> None:
        store = MemoryStore()
        reader = ParityReader(store.get, InlineWorkers(), segment_in(store))
        await reader.read(0, K)
        for stripe in range(STRIPES):
            await reader.read(stripe, K + 1)
            if stripe == apart:
                reader.ended(K)
            if stripe >= apart:
                await reader.read(stripe - apart, K + 2)
        assert len(computed) == STRIPES

    run_deterministic(1, main)
