"""What a disk refuses: calls that fail, sectors that cannot be read, no direct I/O."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from dstore.core.cid import CID, IDENTITY, RAW, encode_varint
from dstore.errors import CorruptStore, NodeError, NotFoundError, StorageFull
from dstore.limits import BLOCK_BYTES_MAX, SMALL_BLOCK_BYTES
from dstore.storage import durable
from dstore.storage.blockstore import Usage
from dstore.storage.database import Database
from dstore.storage.diskstore import DiskStore
from dstore.testing.blockstore_suite import block

LARGE = SMALL_BLOCK_BYTES


def file_of(directory: Path, cid: CID) -> Path:
    name = cid.multihash.hex()
    return directory / "large" / name[-2:] / name


def refuse_direct(monkeypatch: pytest.MonkeyPatch, call: str) -> list[int]:
    """The file system takes no direct I/O, as seen at `call`; how often it was asked."""
    asked: list[int] = []
    real = getattr(os, call)

    def refused(target: Any, *rest: Any, **options: Any) -> Any:
        flags = rest[0] if call == "open" else fcntl.fcntl(target, fcntl.F_GETFL)
        if isinstance(flags, int) and flags & os.O_DIRECT:
            asked.append(1)
            if flags & os.O_CREAT:  # Linux makes the file before it refuses to open it so
                Path(target).touch()
            raise OSError(errno.EINVAL, "Invalid argument")
        return real(target, *rest, **options)

    monkeypatch.setattr(os, call, refused)
    return asked


@pytest.mark.skipif(not hasattr(os, "O_DIRECT"), reason="no direct I/O on this system")
@pytest.mark.parametrize("call", ["open", "write", "readv"])
def test_without_direct_io_all_is_as_usual(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    cid, data = block(1, LARGE)
    asked = refuse_direct(monkeypatch, call)
    with closing(DiskStore(tmp_path)) as store:
        store.put_many([(cid, data)], read_soon=False)
        assert store.get(cid) == data
        assert asked
        assert list((tmp_path / "tmp").iterdir()) == []


def test_what_is_not_read_soon_is_whole_whatever_its_length(tmp_path: Path) -> None:
    lengths = [LARGE - 1, LARGE, LARGE + 1, LARGE + 4096, BLOCK_BYTES_MAX - 1, BLOCK_BYTES_MAX]
    blocks = [block(number, length) for number, length in enumerate(lengths)]
    with closing(DiskStore(tmp_path)) as store:
        store.put_many(blocks, read_soon=False)
        for cid, data in blocks * 2:
            assert store.get(cid) == data
            assert store.size(cid) == len(data)


def failing(
    monkeypatch: pytest.MonkeyPatch, call: str, code: int, *, where: str = "/large/"
) -> None:
    """Calls of `os.call` for files of blocks fail."""
    real = getattr(os, call)

    def failed(path: Any, *rest: Any, **options: Any) -> Any:
        if where in str(path):
            raise OSError(code, os.strerror(code))
        return real(path, *rest, **options)

    monkeypatch.setattr(os, call, failed)


def break_sector(monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    """The file cannot be read from here on, in no way."""
    bad = path.stat().st_ino

    def failing_for_it(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(descriptor: int, *rest: Any) -> Any:
            if os.fstat(descriptor).st_ino == bad:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return real(descriptor, *rest)

        return call

    for name in ("read", "readv"):
        monkeypatch.setattr(os, name, failing_for_it(getattr(os, name)))


@pytest.mark.parametrize("again", [True, False])
@pytest.mark.parametrize("read_soon", [True, False])
def test_a_block_on_a_bad_sector_counts_as_absent_and_can_be_put_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, again: bool, read_soon: bool
) -> None:
    """In the process that wrote it, which has a checksum, and in a later one, which has none."""
    cid, data = block(1, LARGE)
    store = DiskStore(tmp_path)
    store.put_many([(cid, data)], read_soon=read_soon)
    if again:
        store.close()
        store = DiskStore(tmp_path)
    break_sector(monkeypatch, file_of(tmp_path, cid))
    with closing(store):
        with pytest.raises(CorruptStore, match=str(cid)):
            store.get(cid)
        assert store.has_many([cid]) == [False]
        assert store.usage() == Usage(0, 0)
        store.put_many([(cid, data)])
        assert store.get(cid) == data


def test_a_file_of_the_wrong_length_that_cannot_be_read_makes_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cid, data = block(1, LARGE)
    with closing(DiskStore(tmp_path)) as store:
        store.put_many([(cid, data)])
        os.truncate(file_of(tmp_path, cid), 100)
        break_sector(monkeypatch, file_of(tmp_path, cid))
        store.put_many([(cid, data)])
        assert store.get(cid) == data


def test_a_damaged_row_goes_where_there_is_no_room_for_evidence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cid, data = block(1, 500)
    with closing(DiskStore(tmp_path)) as store:
        store.put_many([(cid, data)])
        database = Database(tmp_path / "small.sqlite3", ((),), what="test")
        with database.transaction() as connection:
            connection.execute("UPDATE blocks SET data = zeroblob(500)")
        database.close()

        def full(path: Path, content: bytes) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(Path, "write_bytes", full)
        with pytest.raises(CorruptStore):
            store.get(cid)
        assert store.has_many([cid]) == [False]


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENFILE, errno.EACCES])
def test_a_block_that_cannot_be_opened_now_is_neither_absent_nor_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    cid, data = block(1, LARGE)
    with closing(DiskStore(tmp_path)) as store:
        store.put_many([(cid, data)])
        with monkeypatch.context() as patch:
            failing(patch, "open", code)
            with pytest.raises(NodeError) as found:
                store.get(cid)
            assert type(found.value) is NodeError
        assert store.get(cid) == data


@pytest.mark.parametrize(
    ("call", "use"),
    [
        ("stat", lambda store, cid: store.has_many([cid])),
        ("stat", lambda store, cid: store.delete_many([cid])),
        ("unlink", lambda store, cid: store.delete_many([cid])),
        ("listdir", lambda store, cid: list(store.multihashes())),
    ],
)
def test_what_the_disk_refuses_is_an_error_of_this_node(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    call: str,
    use: Callable[[DiskStore, CID], object],
) -> None:
    cid, data = block(1, LARGE)
    with closing(DiskStore(tmp_path)) as store:
        store.put_many([(cid, data)])
        with monkeypatch.context() as patch:
            failing(patch, call, errno.EIO)
            with pytest.raises(NodeError):
                use(store, cid)


def test_damage_on_a_disk_that_lets_nothing_be_changed_is_told_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cid, data = block(1, LARGE)
    with closing(DiskStore(tmp_path)) as store:
        store.put_many([(cid, data)])
        file_of(tmp_path, cid).write_bytes(bytes(LARGE))
        with monkeypatch.context() as patch:
            failing(patch, "rename", errno.EROFS)
            with pytest.raises(CorruptStore):
                store.get(cid)


@pytest.mark.parametrize("length", [117, 126, 128])
def test_a_cid_too_long_for_a_file_name_is_of_no_block_here(tmp_path: Path, length: int) -> None:
    cid = CID.from_bytes(bytes([1, RAW, IDENTITY]) + encode_varint(length) + bytes(length))
    with closing(DiskStore(tmp_path)) as store:
        assert store.size(cid) is None
        assert store.has_many([cid]) == [False]
        with pytest.raises(NotFoundError):
            store.get(cid)
        store.delete_many([cid])


def test_a_block_is_here_once_it_is_durable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cid, data = block(1, LARGE)
    seen: list[list[bool]] = []

    def sync(path: str) -> None:  # its file has its name by now, and loses it again
        seen.append(store.has_many([cid]))
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with closing(DiskStore(tmp_path)) as store:
        with monkeypatch.context() as patch:
            patch.setattr(durable, "sync_directory", sync)
            with pytest.raises(NodeError):
                store.put_many([(cid, data)])
        assert [*seen, store.has_many([cid])] == [[False], [False]]
        store.put_many([(cid, data)])
        assert store.has_many([cid]) == [True]


def put_with_failing_calls(
    store: DiskStore, monkeypatch: pytest.MonkeyPatch, code: int, batch: int, read_soon: bool
) -> list[type[Exception]]:
    """Put batches of files while the first, second, … write, sync or rename fails, until one
    put goes through; returns the errors seen."""
    seen: list[type[Exception]] = []
    for turn in range(100):
        calls = 0

        def counted(real: Callable[..., object]) -> Callable[..., object]:
            def call(*args: object) -> object:
                nonlocal calls
                calls += 1
                if calls == turn + 1:  # noqa: B023 (called within the turn)
                    raise OSError(code, os.strerror(code))
                return real(*args)

            return call

        with monkeypatch.context() as patch:
            for name in ("sync_data", "sync_filesystem", "sync_directory"):
                patch.setattr(durable, name, counted(getattr(durable, name)))
            for name in ("rename", "write"):
                patch.setattr(os, name, counted(getattr(os, name)))
            blocks = [block(number, LARGE) for number in range(batch)]
            try:
                store.put_many(blocks, read_soon=read_soon)
            except NodeError as error:
                seen.append(type(error))
            else:
                if calls <= turn:
                    return seen
        # Whatever happened: no half block, exact counts, nothing left over.
        found = list(store.multihashes())
        for cid, data in (block(number, LARGE) for number in range(batch)):
            if cid.multihash in found:
                assert store.get(cid) == data
        assert store.usage() == Usage(len(found), LARGE * len(found))
        assert list((store._directory / "tmp").iterdir()) == []
        store.delete_many([block(number, LARGE)[0] for number in range(batch)])
    raise AssertionError("no put ever went through")


@pytest.mark.parametrize(
    ("code", "kind"),
    [(errno.ENOSPC, StorageFull), (errno.EDQUOT, StorageFull), (errno.EIO, NodeError)],
)
@pytest.mark.parametrize(("batch", "calls"), [(3, 10), (12, 26)])
@pytest.mark.parametrize("read_soon", [True, False])
def test_every_disk_call_fails_in_turn(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    code: int,
    kind: type[NodeError],
    batch: int,
    calls: int,
    read_soon: bool,
) -> None:
    """A batch below and one above the size from which the whole file system is synced."""
    store = DiskStore(tmp_path)
    seen = put_with_failing_calls(store, monkeypatch, code, batch, read_soon)
    assert len(seen) >= calls
    assert set(seen) == {kind}
    store.close()
