"""The contract on every store that dstore has."""

from __future__ import annotations

from pathlib import Path

import pytest

from dstore.core.cid import CID
from dstore.errors import CorruptStore, NetworkError, NotFoundError, StorageFull, Unreachable
from dstore.storage.blockstore import BlockStore, Usage
from dstore.storage.diskstore import open_disk_store
from dstore.storage.memory import MemoryStore
from dstore.testing.blockstore_suite import BlockStoreSuite, block
from dstore.testing.faulty_store import FaultyStore, SimulatedCrash


class TestMemory(BlockStoreSuite):
    def make(self, directory: Path, capacity_bytes: int | None = None) -> BlockStore:
        return MemoryStore(capacity_bytes=capacity_bytes)


class TestDisk(BlockStoreSuite):
    def make(self, directory: Path, capacity_bytes: int | None = None) -> BlockStore:
        return open_disk_store(directory / "blocks", capacity_bytes=capacity_bytes)


class TestFaultyWithoutFaults(BlockStoreSuite):
    def make(self, directory: Path, capacity_bytes: int | None = None) -> BlockStore:
        return FaultyStore(MemoryStore(capacity_bytes=capacity_bytes))


def faulty() -> tuple[FaultyStore, list[tuple[CID, bytes]]]:
    blocks = [block(number) for number in range(4)]
    return FaultyStore(MemoryStore()), blocks


def test_scripted_errors_come_at_the_counted_call() -> None:
    store, blocks = faulty()
    store.put_many(blocks)
    store.fail("get", Unreachable("scripted"), after=1, times=2)
    cid, data = blocks[0]
    assert store.get(cid) == data
    for _ in range(2):
        with pytest.raises(NetworkError):
            store.get(cid)
    assert store.get(cid) == data
    assert store.calls["get"] == 4


def test_a_full_disk_refuses_what_is_new_and_serves_what_is_there() -> None:
    store, blocks = faulty()
    store.put_many(blocks[:1])
    store.fill()
    with pytest.raises(StorageFull):
        store.put_many(blocks)
    store.put_many(blocks[:1])
    assert store.get(blocks[0][0]) == blocks[0][1]
    store.drain()
    store.put_many(blocks)
    assert store.usage().blocks == 4


def test_corruption_is_reported_once_and_then_absent() -> None:
    store, blocks = faulty()
    cid, data = blocks[0]
    store.put_many(blocks)
    store.corrupt(cid)
    with pytest.raises(CorruptStore):
        store.get(cid)
    with pytest.raises(NotFoundError):
        store.get(cid)
    store.put_many([(cid, data)])
    assert store.get(cid) == data


def test_a_crash_keeps_whole_blocks_and_nothing_answers_until_the_restart() -> None:
    store, blocks = faulty()
    store.crash_after_blocks(2)
    store.put_many(blocks[:1])
    with pytest.raises(SimulatedCrash):
        store.put_many(blocks[1:])
    with pytest.raises(SimulatedCrash):
        store.get(blocks[0][0])
    store.restart()
    assert store.has_many([cid for cid, _ in blocks]) == [True, True, False, False]
    assert store.usage() == Usage(2, 200)
