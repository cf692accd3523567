"""What an add reads again comes from the files it added, as long as they are what they were."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from dstore.core.cid import CID, RAW
from dstore.errors import NotFoundError
from dstore.limits import SMALL_BLOCK_BYTES
from dstore.service import addedfiles
from dstore.service.addedfiles import AddedFiles
from dstore.service.progress import AddOptions
from dstore.storage.blockstore import Block
from dstore.storage.memory import MemoryStore
from dstore.testing.cluster import open_cluster
from dstore.testing.deterministic import run_deterministic

SIZE: Final = SMALL_BLOCK_BYTES

pytestmark = pytest.mark.skipif(
    not AddedFiles(MemoryStore()).usable, reason="this system does not tell what is in memory"
)


def blocks_of(data: bytes) -> list[Block]:
    pieces = [data[start : start + SIZE] for start in range(0, len(data), SIZE)]
    return [(CID.of(RAW, piece), piece) for piece in pieces]


class Added:
    """A file of three blocks, of which the store has none unless `stored`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.blocks = blocks_of(random.Random(1).randbytes(3 * SIZE))
        path.write_bytes(b"".join(content for _, content in self.blocks))
        self.store = MemoryStore()
        self.files = AddedFiles(self.store)
        self.files.note(path, 0, self.blocks[:2])
        self.files.note(path, 2 * SIZE, self.blocks[2:])

    def read(self) -> list[bytes]:
        return [self.files.get(cid) for cid, _ in self.blocks]

    def is_read_from_the_store(self) -> bool:
        """Not at all before the store has it, and right when it has."""
        with pytest.raises(NotFoundError):
            self.files.get(self.blocks[1][0])
        self.store.put_many(self.blocks)
        return self.read() == self.contents

    @property
    def contents(self) -> list[bytes]:
        return [content for _, content in self.blocks]


@pytest.fixture
def added(tmp_path: Path) -> Added:
    return Added(tmp_path / "file")


def test_the_store_is_not_asked_for_what_the_file_has_in_memory(added: Added) -> None:
    assert added.read() == added.contents


def shorten(path: Path) -> None:
    os.truncate(path, SIZE // 2)


def change(path: Path) -> None:
    path.write_bytes(random.Random(2).randbytes(3 * SIZE))


def put_a_pipe_there(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize("spoil", [shorten, change, Path.unlink, put_a_pipe_there])
def test_a_file_that_is_no_longer_what_it_was_is_read_from_the_store(
    spoil: Callable[[Path], None], added: Added
) -> None:
    spoil(added.path)
    assert added.is_read_from_the_store()


def test_what_the_kernel_no_longer_has_in_memory_is_read_from_the_store(
    added: Added, monkeypatch: pytest.MonkeyPatch
) -> None:
    def not_here(*words: object) -> int:
        raise BlockingIOError

    monkeypatch.setattr(os, "preadv", not_here)
    assert added.is_read_from_the_store()


def test_places_are_kept_for_the_first_large_blocks_alone(
    added: Added, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(addedfiles, "ADDED_BLOCKS_MAX", 4)
    more = blocks_of(random.Random(3).randbytes(2 * SIZE + 1))
    path = added.path.with_name("more")
    path.write_bytes(b"".join(reversed([content for _, content in more])))
    small = more.pop()
    added.files.note(path, 0, [small, *reversed(more)])
    added.store.put_many([small, *more[:1]])  # too small, and too many
    for cid, content in (*more, small):
        assert added.files.get(cid) == content


@pytest.mark.parametrize("profile", ["unixfs-v1-2025", "unixfs-v0-2015"])
def test_an_add_reads_the_leaves_of_its_files_from_them(profile: str, tmp_path: Path) -> None:
    """With leaves that hold more than bytes of the file, it reads the store."""
    single = random.Random(2).randbytes(200_000)
    (tmp_path / "single").write_bytes(single)
    (tmp_path / "large").write_bytes(random.Random(1).randbytes(3_000_000))
    asked: list[int] = []

    async def main() -> None:
        async with open_cluster(6) as cluster:
            store = cluster[0].stores.blocks
            get = store.get

            def noting(cid: CID) -> bytes:
                content = get(cid)
                asked.append(len(content))
                return content

            store.get = noting  # type: ignore[method-assign]  # to see who asks
            result = await cluster[0].add_path(tmp_path, AddOptions(profile=profile))
            assert result.protected
            await cluster.kill(0)
            if profile == "unixfs-v1-2025":
                async with cluster[3].read(result.cid, CID.of(RAW, single)) as chunks:
                    assert b"".join([chunk async for chunk in chunks]) == single

    run_deterministic(1, main)
    leaves = [size for size in asked if size >= SMALL_BLOCK_BYTES]
    assert bool(leaves) == (profile == "unixfs-v0-2015")
