"""The block store contract as tests: subclass `BlockStoreSuite`, give it a store, run pytest.

Every implementation of `dstore.storage.blockstore.BlockStore` passes it, third-party ones
included.  What only a disk can do (crashes, restarts) is tested beside the disk store.
"""

from __future__ import annotations

import hashlib
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path

import pytest

from dstore.core.cid import CID, DAG_PB, RAW
from dstore.errors import MalformedBlock, NodeError, NotFoundError, StorageFull
from dstore.limits import BLOCK_BYTES_MAX, SMALL_BLOCK_BYTES
from dstore.storage.blockstore import Block, BlockStore, Usage

# Both sides of every border that an implementation might have.
SIZES = (
    0,
    1,
    255,
    SMALL_BLOCK_BYTES - 1,
    SMALL_BLOCK_BYTES,
    SMALL_BLOCK_BYTES + 1,
    1_048_576,
    BLOCK_BYTES_MAX,
)


def content(number: int, size: int) -> bytes:
    """Reproducible bytes that differ by number."""
    return hashlib.shake_128(f"{number}/{size}".encode()).digest(size)


def block(number: int, size: int = 100) -> Block:
    """A raw block of reproducible content."""
    data = content(number, size)
    return CID.of(RAW, data), data


class BlockStoreSuite(ABC):
    """The tests; `make` gives each of them an empty store."""

    @abstractmethod
    def make(self, directory: Path, capacity_bytes: int | None = None) -> BlockStore:
        """An empty store, which may use the (existing, empty) directory."""

    @pytest.fixture
    def store(self, tmp_path: Path) -> Iterator[BlockStore]:
        store = self.make(tmp_path)
        yield store
        store.close()

    @pytest.mark.parametrize("size", SIZES)
    @pytest.mark.parametrize("read_soon", [True, False])
    def test_what_is_put_is_got(self, store: BlockStore, size: int, read_soon: bool) -> None:
        cid, data = block(1, size)
        store.put_many([(cid, data)], read_soon=read_soon)
        for _ in range(3):
            assert store.get(cid) == data
        assert store.size(cid) == size
        assert store.has_many([cid]) == [True]
        assert store.usage() == Usage(blocks=1, bytes=size)

    def test_room_shrinks_by_what_is_put(self, tmp_path: Path) -> None:
        store = self.make(tmp_path, capacity_bytes=1000)
        try:
            assert store.room() == 1000
            store.put_many([block(1, 300)])
            assert store.room() == 700
        finally:
            store.close()

    def test_an_absent_block_is_not_found(self, store: BlockStore) -> None:
        cid, _ = block(1)
        with pytest.raises(NotFoundError):
            store.get(cid)
        assert store.size(cid) is None
        assert store.has_many([cid]) == [False]
        store.delete_many([cid])
        assert store.usage() == Usage(0, 0)

    def test_a_batch_of_all_sizes(self, store: BlockStore) -> None:
        blocks = [block(number, size) for number in range(3) for size in SIZES[1:-1]]
        store.put_many(blocks)
        absent = [block(number)[0] for number in range(100, 103)]
        assert store.has_many([*absent, *(cid for cid, _ in blocks)]) == (
            [False] * 3 + [True] * len(blocks)
        )
        assert all(store.get(cid) == data for cid, data in blocks)

    def test_nothing_is_a_batch_too(self, store: BlockStore) -> None:
        store.put_many([])
        store.delete_many([])
        assert store.has_many([]) == []
        assert list(store.multihashes()) == []

    def test_any_version_and_codec_names_the_one_copy(self, store: BlockStore) -> None:
        data = content(1, 50)
        spellings = [
            CID.of(DAG_PB, data, version=0),
            CID.of(DAG_PB, data),
            CID.of(RAW, data),
        ]
        store.put_many([(spellings[0], data)])
        assert all(store.get(cid) == data for cid in spellings)
        store.put_many([(cid, data) for cid in spellings])
        assert store.usage() == Usage(1, 50)
        store.delete_many([spellings[2]])
        assert store.has_many(spellings) == [False] * 3

    def test_other_hash_functions(self, store: BlockStore) -> None:
        data = content(1, SMALL_BLOCK_BYTES)
        digest = hashlib.sha512(data).digest()
        cid = CID.v1(RAW, b"\x13\x40" + digest)
        store.put_many([(cid, data), (CID.of(RAW, data), data)])
        assert store.get(cid) == data
        assert store.usage().blocks == 2

    @pytest.mark.parametrize("size", [100, SMALL_BLOCK_BYTES])
    def test_putting_again_changes_nothing(self, store: BlockStore, size: int) -> None:
        one = block(1, size)
        store.put_many([one, one])
        store.put_many([one, block(2, size)])
        assert store.usage() == Usage(2, 2 * size)
        assert sorted(store.multihashes()) == sorted(
            cid.multihash for cid, _ in (one, block(2, size))
        )

    @pytest.mark.parametrize("size", [0, 100, SMALL_BLOCK_BYTES])
    def test_deleting(self, store: BlockStore, size: int) -> None:
        (gone, _), kept = block(1, size), block(2, size + 1)
        store.put_many([block(1, size), kept])
        store.delete_many([gone, gone])
        store.delete_many([gone])
        with pytest.raises(NotFoundError):
            store.get(gone)
        assert list(store.multihashes()) == [kept[0].multihash]
        assert store.usage() == Usage(1, size + 1)
        store.put_many([block(1, size)])
        assert store.get(gone) == content(1, size)

    def test_blocks_may_go_while_they_are_listed(self, store: BlockStore) -> None:
        blocks = [block(number, 10) for number in range(20)]
        store.put_many(blocks)
        seen = []
        for multihash in store.multihashes():
            seen.append(multihash)
            store.delete_many([CID.v1(RAW, multihash)])
        assert set(seen) <= {cid.multihash for cid, _ in blocks}
        assert len(seen) == len(set(seen))
        assert store.usage() == Usage(20 - len(seen), 10 * (20 - len(seen)))

    def test_an_oversized_block_is_refused(self, store: BlockStore) -> None:
        with pytest.raises(MalformedBlock):
            store.put_many([block(1, BLOCK_BYTES_MAX + 1)])
        assert store.usage() == Usage(0, 0)

    @pytest.mark.parametrize("size", [100, SMALL_BLOCK_BYTES])
    def test_capacity_is_refused_up_front_and_recovers(self, tmp_path: Path, size: int) -> None:
        store = self.make(tmp_path, capacity_bytes=2 * size)
        store.put_many([block(1, size)])
        with pytest.raises(StorageFull):
            store.put_many([block(2, size), block(3, size)])
        assert store.usage().bytes <= 2 * size
        assert store.get(block(1, size)[0]) == content(1, size)
        store.put_many([block(1, size)])
        for number in (2, 3):
            store.delete_many([block(number, size)[0]])
        store.put_many([block(2, size)])
        with pytest.raises(StorageFull):
            store.put_many([block(3, 1)])
        store.delete_many([block(1, size)[0]])
        store.put_many([block(3, size)])
        assert store.usage() == Usage(2, 2 * size)
        store.close()

    def test_threads_share_the_store(self, store: BlockStore) -> None:
        """Eight threads put overlapping batches, read them back and delete their own."""
        shared = [block(number, size) for number in range(4) for size in (50, SMALL_BLOCK_BYTES)]
        failures: list[str] = []

        def work(thread: int) -> None:
            own = [block(1000 + thread * 10 + n, 60 + n * SMALL_BLOCK_BYTES) for n in range(3)]
            for batch in ([*shared, *own], [*reversed(shared)], own):
                store.put_many(batch)
                failures.extend(str(cid) for cid, data in batch if store.get(cid) != data)
            store.delete_many([cid for cid, _ in own])

        threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []
        assert store.usage() == Usage(8, sum(len(data) for _, data in shared))
        assert sorted(store.multihashes()) == sorted(cid.multihash for cid, _ in shared)

    def test_a_closed_store_says_so(self, store: BlockStore) -> None:
        one = block(1)
        store.put_many([one])
        store.close()
        store.close()
        with pytest.raises(NodeError):
            store.get(one[0])
        with pytest.raises(NodeError):
            store.put_many([block(2)])
