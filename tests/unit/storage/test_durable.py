"""Group commit: calls from many threads share one commit, and each learns its own fate."""

from __future__ import annotations

import errno
import os
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from dstore.errors import NodeError, StorageFull
from dstore.storage import durable
from dstore.storage.durable import DurableFiles, GroupCommit


class Commits:
    """A commit that waits at a gate, so that the test knows who is in which group."""

    def __init__(self) -> None:
        self.groups: list[list[int]] = []
        self.entered = threading.Semaphore(0)
        self.gate = threading.Semaphore(0)
        self.error: BaseException | None = None

    def __call__(self, items: list[int]) -> None:
        self.entered.release()
        assert self.gate.acquire(timeout=10)
        self.groups.append(sorted(items))
        if self.error is not None:
            raise self.error


def queued(group: GroupCommit[int], count: int) -> None:
    """Wait until so many items gather behind the running commit."""
    for _ in range(10_000):
        with group._changed:
            if len(group._gathering.items) >= count:
                return
            group._changed.wait(timeout=0.001)
    raise AssertionError("the calls never came")


def start(
    group: GroupCommit[int], commits: Commits, pool: ThreadPoolExecutor
) -> list[Future[None]]:
    """One leader in its commit and three calls that wait for the next one."""
    futures: list[Future[None]] = [pool.submit(group.run, [0])]
    assert commits.entered.acquire(timeout=10)
    for number in (1, 2, 3):
        futures.append(pool.submit(group.run, [number]))
    queued(group, 3)
    return futures


def test_those_who_wait_are_committed_together() -> None:
    commits = Commits()
    group = GroupCommit(commits)
    with ThreadPoolExecutor(4) as pool:
        start(group, commits, pool)
        commits.gate.release(2)
    assert commits.groups == [[0], [1, 2, 3]]


@pytest.mark.parametrize("error", [StorageFull("no room"), RuntimeError("a bug")])
def test_a_failed_commit_fails_every_call_in_it_and_no_other(error: Exception) -> None:
    commits = Commits()
    group = GroupCommit(commits)
    with ThreadPoolExecutor(4) as pool:
        first, *others = start(group, commits, pool)
        commits.gate.release()
        assert commits.entered.acquire(timeout=10)
        commits.error = error
        commits.gate.release()
    assert first.exception() is None
    raised = [future.exception() for future in others]
    if isinstance(error, StorageFull):
        assert [type(one) for one in raised] == [StorageFull] * 3
    else:
        assert sorted(type(one).__name__ for one in raised) == (
            ["NodeError", "NodeError", "RuntimeError"]
        )
    commits.error = None
    commits.gate.release()
    group.run([9])
    assert commits.groups[-1] == [9]


def test_files_replace_each_other_whole(tmp_path: Path) -> None:
    files = DurableFiles(tmp_path / "tmp")
    target = str(tmp_path / "file")
    files.write([(target, b"one" * 1000)])
    files.write([(target, b"two")])
    assert Path(target).read_bytes() == b"two"
    files.close()
    files.close()


@pytest.mark.parametrize("syncfs", [True, False])
def test_large_batches_with_and_without_syncfs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, syncfs: bool
) -> None:
    if not syncfs:
        monkeypatch.setattr(durable, "_syncfs", None)
    monkeypatch.setattr(
        durable, "_sync_file_range", None if not syncfs else durable._sync_file_range
    )
    files = DurableFiles(tmp_path / "tmp")
    batch = [(str(tmp_path / f"{number}"), bytes([number])) for number in range(150)]
    files.write(batch)
    assert all(Path(path).read_bytes() == content for path, content in batch)
    files.sync_everything()
    files.close()


def test_a_missing_directory_is_an_error_that_leaves_nothing(tmp_path: Path) -> None:
    files = DurableFiles(tmp_path / "tmp")
    with pytest.raises(NodeError, match="writing"):
        files.write([(str(tmp_path / "nowhere" / "file"), b"x")])
    assert list((tmp_path / "tmp").iterdir()) == []
    files.close()


def test_a_name_that_stood_before_outlives_a_failed_sync(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = DurableFiles(tmp_path / "tmp")
    old, new = str(tmp_path / "old"), str(tmp_path / "new")
    files.write([(old, b"one")])

    def fail(path: str) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(durable, "sync_directory", fail)
    with pytest.raises(StorageFull):
        files.write([(old, b"two"), (new, b"two")])
    assert Path(old).read_bytes() in (b"one", b"two")
    assert not Path(new).exists()
    files.close()
