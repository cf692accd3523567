"""What only a disk can do: damage, restarts, formats, no room, syncs that fail."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from dstore.core.cid import CID
from dstore.errors import CorruptStore, NotFoundError, StorageFull, StoreTooNew
from dstore.limits import BLOCK_BYTES_MAX, SMALL_BLOCK_BYTES
from dstore.storage import diskstore, files
from dstore.storage.blockstore import Usage
from dstore.storage.database import Database
from dstore.storage.diskstore import DiskStore
from dstore.testing.blockstore_suite import block

LARGE = SMALL_BLOCK_BYTES


def file_of(directory: Path, cid: CID) -> Path:
    name = cid.multihash.hex()
    return directory / "large" / name[-2:] / name


def overwrite_small(directory: Path, cid: CID, data: bytes) -> None:
    database = Database(directory / "small.sqlite3", ((),), what="test")
    with database.transaction() as connection:
        connection.execute("UPDATE blocks SET data = ? WHERE multihash = ?", (data, cid.multihash))
    database.close()


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def truncate(path: Path) -> None:
    os.truncate(path, 100)


def zero(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def swell(path: Path) -> None:
    os.truncate(path, 2 * BLOCK_BYTES_MAX)


@pytest.mark.parametrize("damage", [flip, truncate, zero, swell])
def test_a_damaged_file_is_never_served_and_can_be_put_again(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    store = DiskStore(tmp_path)
    cid, data = block(1, LARGE)
    store.put_many([(cid, data), block(2, LARGE)])
    damage(file_of(tmp_path, cid))
    with pytest.raises(CorruptStore, match=str(cid)):
        store.get(cid)
    assert store.quarantined() == [cid.multihash]
    with pytest.raises(NotFoundError):
        store.get(cid)
    assert store.get(block(2, LARGE)[0]) == block(2, LARGE)[1]
    store.put_many([(cid, data)])
    assert store.get(cid) == data
    store.close()


@pytest.mark.parametrize("read_soon", [True, False])
def test_damage_is_found_however_fresh_the_block_is(tmp_path: Path, read_soon: bool) -> None:
    cid, data = block(1, LARGE)
    with closing(DiskStore(tmp_path)) as store:
        for reads in range(3):
            store.put_many([(cid, data)], read_soon=read_soon)
            for _ in range(reads):
                assert store.get(cid) == data
            flip(file_of(tmp_path, cid))
            with pytest.raises(CorruptStore, match=str(cid)):
                store.get(cid)


def hashed(monkeypatch: pytest.MonkeyPatch) -> list[CID]:
    """Of which CIDs bytes are hashed from here on."""
    seen: list[CID] = []
    verify = CID.verify

    def counted(cid: CID, content: bytes) -> bool:
        seen.append(cid)
        return verify(cid, content)

    monkeypatch.setattr(CID, "verify", counted)
    return seen


def test_what_was_checked_lately_is_not_hashed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks = [block(number, LARGE) for number in range(2)]
    with closing(DiskStore(tmp_path)) as store:
        store.put_many(blocks[:1])
        store.put_many(blocks[1:], read_soon=False)
        seen = hashed(monkeypatch)
        for cid, data in blocks * 3:
            assert store.get(cid) == data
        assert seen == []
    with closing(DiskStore(tmp_path)) as store:  # knows nothing of what was checked before
        for cid, data in blocks * 3:
            assert store.get(cid) == data
        assert seen == [cid for cid, _ in blocks]


def test_a_block_damaged_at_rest_is_not_given_to_a_peer(tmp_path: Path) -> None:
    blocks = [block(1, LARGE), block(2, 500)]
    with closing(DiskStore(tmp_path)) as store:
        store.put_many(blocks)
    flip(file_of(tmp_path, blocks[0][0]))
    overwrite_small(tmp_path, blocks[1][0], b"x" * 500)
    with closing(DiskStore(tmp_path)) as store:
        for cid, _ in blocks:
            with pytest.raises(CorruptStore):
                store.get(cid)


def test_putting_what_is_there_does_not_vouch_for_it(tmp_path: Path) -> None:
    one = block(1, LARGE)
    with closing(DiskStore(tmp_path)) as store:
        store.put_many([one])
    flip(file_of(tmp_path, one[0]))
    with closing(DiskStore(tmp_path)) as store:
        store.put_many([one])
        with pytest.raises(CorruptStore):
            store.get(one[0])


def test_few_blocks_are_known_as_fresh_the_newest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(diskstore, "FRESH_BLOCKS_MAX", 2)
    blocks = [block(number, LARGE) for number in range(3)]
    with closing(DiskStore(tmp_path)) as store:
        store.put_many(blocks)
        seen = hashed(monkeypatch)
        for cid, data in reversed(blocks):
            assert store.get(cid) == data
        assert seen == [blocks[0][0]]


def test_a_damaged_row_is_never_served_and_can_be_put_again(tmp_path: Path) -> None:
    store = DiskStore(tmp_path)
    cid, data = block(1, 500)
    store.put_many([(cid, data)])
    overwrite_small(tmp_path, cid, b"x" * 500)
    with pytest.raises(CorruptStore):
        store.get(cid)
    assert store.has_many([cid]) == [False]
    assert store.usage() == Usage(0, 0)
    store.put_many([(cid, data)])
    assert store.get(cid) == data
    store.close()


@pytest.mark.parametrize("size", [500, LARGE])
def test_putting_a_block_replaces_one_of_the_wrong_length(tmp_path: Path, size: int) -> None:
    store = DiskStore(tmp_path)
    cid, data = block(1, size)
    store.put_many([(cid, data)])
    if size < LARGE:
        overwrite_small(tmp_path, cid, b"short")
    else:
        truncate(file_of(tmp_path, cid))
    store.put_many([(cid, data)])
    assert store.get(cid) == data
    store.close()


def test_a_damaged_database_page_is_reported_and_files_still_served(tmp_path: Path) -> None:
    store = DiskStore(tmp_path)
    small = [block(number, 3000) for number in range(50)]
    store.put_many([*small, block(1, LARGE)])
    store.close()
    path = tmp_path / "small.sqlite3"
    with path.open("r+b") as file:
        file.seek(4096 * 4)
        file.write(os.urandom(path.stat().st_size - 4096 * 4))
    store = DiskStore(tmp_path)
    outcomes = set()
    for cid, data in small:
        try:
            assert store.get(cid) == data
        except (CorruptStore, NotFoundError) as error:
            outcomes.add(type(error))
    assert CorruptStore in outcomes
    assert store.get(block(1, LARGE)[0]) == block(1, LARGE)[1]
    store.close()


def test_a_lost_database_of_small_blocks_is_not_taken_for_an_empty_one(tmp_path: Path) -> None:
    store = DiskStore(tmp_path)
    store.put_many([block(1)])
    store.close()
    (tmp_path / "small.sqlite3").unlink()
    with pytest.raises(CorruptStore, match=r"small\.sqlite3 is gone"):
        DiskStore(tmp_path)


@pytest.mark.parametrize("clean", [True, False])
def test_counts_survive_a_restart(tmp_path: Path, clean: bool) -> None:
    store = DiskStore(tmp_path)
    blocks = [block(number, size) for number in range(5) for size in (10, LARGE + number)]
    store.put_many(blocks)
    expected = store.usage()
    assert expected == Usage(10, sum(len(data) for _, data in blocks))
    if clean:
        store.close()
    assert (tmp_path / "large" / "usage").exists() is clean
    again = DiskStore(tmp_path)
    assert again.usage() == expected
    assert not (tmp_path / "large" / "usage").exists()
    assert all(again.get(cid) == data for cid, data in blocks)
    again.close()
    store.close()


@pytest.mark.parametrize("clean", [True, False])
def test_directories_for_files_are_made_with_the_first_of_them(
    tmp_path: Path, clean: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def made() -> int:
        return sum(one.is_dir() for one in (tmp_path / "large").iterdir())

    store = DiskStore(tmp_path)
    store.put_many([block(1, 10)])
    assert (made(), list(store.multihashes())) == (0, [block(1, 10)[0].multihash])
    store.close()
    store = DiskStore(tmp_path)
    monkeypatch.setattr(files, "sync_directory", disk_full)  # as if the disk were full half-way
    with pytest.raises(StorageFull, match="making"):
        store.put_many([block(2, LARGE)])
    monkeypatch.undo()
    store.put_many([block(2, LARGE)])
    assert made() == 256
    if clean:
        store.close()
    with closing(DiskStore(tmp_path)) as again:
        assert again.usage().blocks == 2
        assert again.get(block(2, LARGE)[0]) == block(2, LARGE)[1]


def disk_full(path: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_damaged_counts_are_counted_anew(tmp_path: Path) -> None:
    store = DiskStore(tmp_path)
    store.put_many([block(1, LARGE)])
    store.close()
    (tmp_path / "large" / "usage").write_bytes(b"{")
    store = DiskStore(tmp_path)
    assert store.usage() == Usage(1, LARGE)
    store.close()


def test_half_written_files_are_swept_at_the_start(tmp_path: Path) -> None:
    store = DiskStore(tmp_path)
    (tmp_path / "tmp" / "17").write_bytes(b"half a blo")
    again = DiskStore(tmp_path)
    assert list((tmp_path / "tmp").iterdir()) == []
    assert list(again.multihashes()) == []
    again.close()
    store.close()


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    DiskStore(tmp_path).close()
    (tmp_path / "format").write_text("dstore block store 2\n")
    with pytest.raises(StoreTooNew, match="install a newer dstore"):
        DiskStore(tmp_path)


@pytest.mark.parametrize("line", ["", "dstore block store", "dstore home 1\n", "x" * 1000])
def test_another_directory_is_refused(tmp_path: Path, line: str) -> None:
    DiskStore(tmp_path).close()
    (tmp_path / "format").write_text(line)
    with pytest.raises(CorruptStore):
        DiskStore(tmp_path)


def test_the_reserve_is_refused_up_front(tmp_path: Path) -> None:
    store = DiskStore(tmp_path, reserve_bytes=1 << 60)
    for size in (10, LARGE):
        with pytest.raises(StorageFull, match="reserve"):
            store.put_many([block(1, size)])
    assert store.usage() == Usage(0, 0)
    store.close()


def test_room_is_what_the_disk_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class SmallDisk:
        f_bavail, f_frsize = 10, 4096

    monkeypatch.setattr(os, "statvfs", lambda _path: SmallDisk)
    for reserve, capacity, room in ((960, None, 40_000), (960, 500, 500), (1 << 30, 500, 0)):
        store = DiskStore(tmp_path, reserve_bytes=reserve, capacity_bytes=capacity)
        assert store.room() == room
        store.close()


def test_inodes_are_kept_in_reserve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = DiskStore(tmp_path)
    real = os.statvfs(tmp_path)

    class FewInodes:
        f_bavail, f_frsize, f_files, f_favail = real.f_bavail, real.f_frsize, 1_000_000, 10_000

    monkeypatch.setattr(os, "statvfs", lambda _path: FewInodes)
    store.put_many([block(1, 10)])  # needs none
    with pytest.raises(StorageFull, match="inodes"):
        store.put_many([block(1, LARGE)])
    store.close()


def test_a_full_database_is_a_full_store_and_recovers(tmp_path: Path) -> None:
    store = DiskStore(tmp_path)
    with store._small._db.transaction() as connection:
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
    store._small._db._writer.execute(f"PRAGMA max_page_count = {pages + 10}")
    stored = 0
    with pytest.raises(StorageFull):
        for number in range(100):
            store.put_many([block(number, 4000)])
            stored += 1
    assert 0 < stored < 100
    assert store.usage() == Usage(stored, stored * 4000)
    assert store.get(block(0, 4000)[0]) == block(0, 4000)[1]
    store.delete_many([block(0, 4000)[0], block(1, 4000)[0]])
    store.put_many([block(200, 4000)])
    assert store.get(block(200, 4000)[0]) == block(200, 4000)[1]
    store.close()


def test_files_are_private_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        store = DiskStore(tmp_path / "blocks")
        store.put_many([block(1, LARGE), block(1, 10)])
    finally:
        os.umask(before)
    for path in (tmp_path / "blocks").rglob("*"):
        assert path.stat().st_mode & 0o077 == 0, path
    store.close()
