"""Names found in directories of other nodes: one look for neighbours, and the next ones fetched
before they are asked for."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio

from dstore.core.cid import CID
from dstore.core.unixfs import HamtShard, listing, parse
from dstore.limits import (
    DIRECTORY_AHEAD_AFTER,
    DIRECTORY_AHEAD_FILE_BYTES,
    GIB,
    HELD_LOOKUP_BLOCKS,
    MIB,
)
from dstore.service.node import Node, NodeOptions
from dstore.service.progress import AddOptions
from dstore.service.session import RootSession
from dstore.testing.cluster import Cluster, open_cluster
from dstore.testing.deterministic import run_deterministic

FILES = 4 * HELD_LOOKUP_BLOCKS
NAMES = [f"{number:03}" for number in range(FILES)]
SETTLED_SECONDS = 5  # of a simulated clock: all that was begun has come


@dataclass
class Reader:
    """A node that has nothing of the directory `root`, whose adder is gone."""

    node: Node
    root: CID
    cluster: Cluster
    holders: list[int]  # by slot

    async def ask(self, names: Sequence[str]) -> None:
        """Resolve the names, eight at a time, and let what that begins come to its end."""
        waiting = iter(names)

        async def some() -> None:
            for name in waiting:
                entry = await self.node.resolve(self.root, [name])
                assert entry.kind == "file"

        async with trio.open_nursery() as nursery:
            for _ in range(8):
                nursery.start_soon(some)
        await trio.sleep(SETTLED_SECONDS)

    @property
    def fetched(self) -> int:
        """How many files have come."""
        return self.node.counters.fetched_blocks


def make_tree(directory: Path, size: int, names: Sequence[str]) -> None:
    directory.mkdir()
    source = random.Random(7)
    for name in names:
        (directory / name).write_bytes(source.randbytes(size))


@asynccontextmanager
async def reading(
    directory: Path, size: int = 200, cache: int = 64 * MIB, names: Sequence[str] = NAMES
) -> AsyncIterator[Reader]:
    make_tree(directory, size, names)
    options = NodeOptions(capacity_bytes=GIB, memory_cache_bytes=cache)
    async with open_cluster(7, options=options) as cluster:
        added = await cluster[0].add_path(directory, AddOptions(code=(3, 2)))
        assert added.protected
        status = await cluster[0].status(added.cid)
        holders = [cluster.number_of(slot.holders[0]) for slot in status.segments[0].slots]
        await cluster.kill(0)
        number = next(number for number in cluster.alive if number not in holders)
        yield Reader(cluster[number], added.cid, cluster, holders)


def test_a_few_files_are_fetched_alone(tmp_path: Path) -> None:
    async def main() -> None:
        async with reading(tmp_path / "tree") as reader:
            await reader.ask(NAMES[: DIRECTORY_AHEAD_AFTER - 1])
            few = reader.fetched
            # Again is not more; nor are others far away.
            await reader.ask(NAMES[: DIRECTORY_AHEAD_AFTER - 1])
            assert reader.fetched == few
            await reader.ask(NAMES[-3:])
            assert reader.fetched == few + 3

    run_deterministic(1, main)


def test_where_many_neighbours_are_asked_for_the_next_ones_come_too(tmp_path: Path) -> None:
    async def main() -> None:
        async with reading(tmp_path / "tree") as reader:
            await reader.ask(NAMES[: DIRECTORY_AHEAD_AFTER - 1])
            begun = reader.fetched - (DIRECTORY_AHEAD_AFTER - 1)
            await reader.ask(NAMES[DIRECTORY_AHEAD_AFTER - 1 : DIRECTORY_AHEAD_AFTER])
            assert reader.fetched - begun == HELD_LOOKUP_BLOCKS
            await reader.ask(NAMES[: HELD_LOOKUP_BLOCKS // 2])
            assert reader.fetched - begun == 2 * HELD_LOOKUP_BLOCKS
            ahead = NAMES[HELD_LOOKUP_BLOCKS:][:DIRECTORY_AHEAD_AFTER]
            await reader.ask(ahead[:-1])
            assert reader.fetched - begun == 2 * HELD_LOOKUP_BLOCKS
            await reader.ask(ahead)
            assert reader.fetched - begun == 3 * HELD_LOOKUP_BLOCKS
            await reader.ask(NAMES)
            # Each has come once, whoever asked for it first.
            assert reader.fetched - begun == FILES

    run_deterministic(1, main)


LONG_NAMES = [f"{number:0200}" for number in range(1200)]  # too long for one block


def test_what_could_not_be_kept_of_a_sharded_directory_is_not_fetched_ahead(tmp_path: Path) -> None:
    async def main() -> None:
        async with reading(tmp_path / "tree", cache=MIB // 2, names=LONG_NAMES) as reader:
            await reader.ask(LONG_NAMES[:1])
            begun = reader.fetched
            await reader.ask(LONG_NAMES[1:101])
            assert reader.fetched - begun <= 2 * 100 + 9  # each with its shard, or a deeper one

    run_deterministic(1, main)


def test_in_a_sharded_directory_what_was_wanted_bounds_what_comes_ahead(tmp_path: Path) -> None:
    names = LONG_NAMES

    async def main() -> None:
        async with reading(tmp_path / "tree", names=names) as reader:
            parsed = parse(reader.root, await reader.node.block(reader.root))
            assert isinstance(parsed, HamtShard)
            shards = len(listing(parsed).shards)
            await reader.ask([])  # what the root's block began has come
            begun = reader.fetched
            await reader.ask(names[: DIRECTORY_AHEAD_AFTER - 1])
            assert reader.fetched - begun <= 2 * DIRECTORY_AHEAD_AFTER  # each with its shard
            await reader.ask(names[:100])
            ahead = reader.fetched - begun - shards - 100
            assert 100 < ahead <= 3 * 100 + 20
            await reader.ask(names)
            # Each has come once, and each shard; nine are deeper ones.
            assert reader.fetched - begun == len(names) + shards + 9

    run_deterministic(1, main)


def test_holders_that_fall_silent_cost_what_comes_ahead_nothing_but_time(tmp_path: Path) -> None:
    async def main() -> None:
        async with reading(tmp_path / "tree") as reader:
            await reader.ask(NAMES[: DIRECTORY_AHEAD_AFTER - 1])
            reader.cluster.hub.pause(reader.cluster.peer(reader.holders[1]))
            await reader.ask(NAMES)
            for name in NAMES:
                entry = await reader.node.resolve(reader.root, [name])
                assert entry.content == (tmp_path / "tree" / name).read_bytes()

    run_deterministic(1, main)


@pytest.mark.parametrize(
    ("size", "cache"), [(DIRECTORY_AHEAD_FILE_BYTES + 1, 64 * MIB), (200, MIB // 2)]
)
def test_large_files_and_what_could_not_be_kept_are_not_fetched_ahead(
    tmp_path: Path, size: int, cache: int
) -> None:
    async def main() -> None:
        async with reading(tmp_path / "tree", size, cache) as reader:
            await reader.ask(NAMES[:1])
            begun = reader.fetched - 1
            await reader.ask(NAMES[1 : HELD_LOOKUP_BLOCKS // 2])
            assert reader.fetched - begun == HELD_LOOKUP_BLOCKS // 2

    run_deterministic(1, main)


def test_those_who_ask_together_look_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[int] = []
    real = RootSession.held

    async def held(self: RootSession, cids: Sequence[CID]) -> list[bool]:
        looked.append(len(cids))
        await trio.sleep(0.01)
        return await real(self, cids)

    async def main() -> None:
        async with reading(tmp_path / "tree") as reader:
            monkeypatch.setattr(RootSession, "held", held)
            await reader.ask([*NAMES[:8], *NAMES[-8:]])
            assert looked == [HELD_LOOKUP_BLOCKS, HELD_LOOKUP_BLOCKS]

    run_deterministic(1, main)
