"""Decoded segments in memory: one bound for all sessions, and what a reader is at stays."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, TypeVar, TypeVarTuple, cast

import pytest
import trio
from trio.testing import MockClock

from dstore.core.cid import CID, RAW
from dstore.core.manifest import Code, Manifest, Segment, Stripe
from dstore.limits import SEGMENT_FRAGMENT_BYTES, SEGMENT_USED_SECONDS, SESSION_SECONDS
from dstore.runtime import InlineWorkers, Runtime
from dstore.service.retrieve import Retriever
from dstore.service.segments import RootSegments, SegmentMemory
from dstore.service.sources import Access, RootSources
from dstore.service.stores import Stores
from dstore.storage.memory import MemoryStore

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

ROOT = CID.of(RAW, b"root")
FRAGMENTS = 3
WEIGHT = SEGMENT_FRAGMENT_BYTES * (FRAGMENTS + 1)


class Workers(InlineWorkers):
    """Counts what is handed over, and of that what is decoded."""

    handed = 0
    decoded = 0

    async def run(self, work: Callable[[*Ts], T], *args: *Ts) -> T:
        self.handed += 1
        named: object = work
        self.decoded += named == Segment.decode
        return await super().run(work, *args)


def segment(number: int) -> Segment:
    names = [CID.of(RAW, b"%d %d" % (number, slot)) for slot in range(FRAGMENTS)]
    return Segment(2, 1, (Stripe(((names[0], 10), (names[1], 10)), (names[2],)),))


class Node:
    """Segments that are here, of a root that nobody else has."""

    def __init__(self, nursery: trio.Nursery, kept: int, segments: int = 12) -> None:
        """Room for `kept` decoded ones."""
        self.segments = [segment(number) for number in range(segments)]
        blocks = MemoryStore()
        blocks.put_many([(one.cid, one.block) for one in self.segments])
        refs = [one.ref for one in self.segments]
        self.manifest = Manifest.of(ROOT, Code(2, 1), refs)
        catalog = SimpleNamespace(placements=lambda cid: [])
        self._stores = Stores(blocks, cast("Any", catalog))
        self.workers = Workers()
        self.memory = SegmentMemory(kept * WEIGHT)
        self._nursery = nursery

    def session(self) -> RootSegments:
        network: Any = SimpleNamespace(peer_id=None)
        fetcher: Any = SimpleNamespace(best_first=list)
        nothing: Any = None
        runtime = Runtime(workers=self.workers)
        access = Access(network, nothing, nothing, fetcher, self._stores, runtime, self._nursery)
        return RootSegments(RootSources(ROOT), access, nothing, self.memory)

    async def load(self, session: RootSegments, number: int) -> None:
        await session.load(self.manifest, self.manifest.segments[number])


async def test_all_sessions_together_keep_so_many_bytes_and_the_latest_uses(
    autojump_clock: MockClock,
) -> None:
    async with trio.open_nursery() as nursery:
        node = Node(nursery, kept=4)
        one, other = node.session(), node.session()
        for number in (0, 1, 2):
            await node.load(one, number)
        await node.load(one, 0)
        for number in (3, 4):
            await node.load(other, number)
        assert node.memory.taken_bytes == 4 * WEIGHT
        assert node.workers.decoded == 5
        await node.load(one, 0)  # used since the one that had to go
        assert node.workers.decoded == 5
        await node.load(one, 1)
        assert node.workers.decoded == 6


async def test_a_session_that_reads_keeps_what_it_is_at(autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        node = Node(nursery, kept=2)
        sessions = [node.session() for _ in range(10)]
        for _ in range(3):
            for number, session in enumerate(sessions):
                await node.load(session, number)
        assert node.workers.decoded == len(sessions)
        await trio.sleep(SEGMENT_USED_SECONDS + 1)
        await node.load(sessions[0], 0)
        await node.load(sessions[0], 1)  # the others read no more
        assert node.memory.taken_bytes == 2 * WEIGHT
        assert node.workers.decoded == len(sessions) + 1


@pytest.mark.parametrize("stored", [0, 1])
async def test_an_empty_store_is_not_looked_into(stored: int) -> None:
    async with trio.open_nursery() as nursery:
        node = Node(nursery, kept=1, segments=stored)
        assert await node.session().local(ROOT) is None
        assert node.workers.handed == stored


@pytest.mark.parametrize("read_on", [False, True])
async def test_sessions_that_are_over_let_go_of_their_segments(
    read_on: bool, autojump_clock: MockClock
) -> None:
    async with trio.open_nursery() as nursery:
        node = Node(nursery, kept=100)
        retriever = Retriever(lambda root: cast("Any", node.session()))
        reading: Any = retriever.session(ROOT)
        await node.load(reading, 0)
        await retriever.worker.step()
        assert retriever.session(ROOT) is reading
        await trio.sleep(SESSION_SECONDS + 1)
        if not read_on:
            del reading
        assert 0 < await retriever.worker.step() <= SESSION_SECONDS
        assert node.memory.taken_bytes == (WEIGHT if read_on else 0)
