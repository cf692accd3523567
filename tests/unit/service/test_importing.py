"""Files, directories and streams on disk into blocks: CIDs, bounds, and what goes wrong."""

from __future__ import annotations

import hashlib
import json
import os
import random
import socket
import tracemalloc
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import trio
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms

from dstore.core.cid import CID
from dstore.core.unixfs import (
    DirectoryLister,
    Symlink,
    build_directory,
    build_symlink,
    iter_dag,
    parse,
    profile_named,
)
from dstore.core.unixfs.walk import Budget
from dstore.errors import CallerError, InvalidPath, NotFoundError, StorageFull
from dstore.limits import IMPORT_BATCH_BYTES, MIB
from dstore.runtime import InlineWorkers, ThreadWorkers
from dstore.service import importing
from dstore.service.importing import Imported, Importer, Save
from dstore.service.progress import Progress, Report
from dstore.storage.blockstore import Block
from dstore.storage.layout import Home

VECTORS = json.loads((Path(__file__).parents[2] / "vectors" / "unixfs.json").read_text())
PROFILES = ["unixfs-v0-2015", "unixfs-v1-2025"]


class Saved:
    """Collects blocks; `calls` are the sizes of what came together."""

    def __init__(self) -> None:
        self.blocks: dict[CID, bytes] = {}
        self.calls: list[int] = []

    def __call__(self, blocks: Sequence[Block]) -> None:
        assert all(cid.verify(data) for cid, data in blocks)
        self.blocks.update(blocks)
        self.calls.append(sum(len(data) for _, data in blocks))


def ignore(progress: Progress) -> None:
    pass


def importer(
    save: Save, profile: str = "unixfs-v1-2025", report: Report = ignore, *, inline: bool = False
) -> Importer:
    workers = InlineWorkers() if inline else ThreadWorkers()
    return Importer(profile_named(profile), save, workers, report)


async def pieces(data: bytes, size: int = 700_001) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


def listing(saved: Saved, root: CID) -> dict[str, CID]:
    lister = DirectoryLister(root, Budget())
    found: dict[str, CID] = {}
    while (cid := lister.wanted()) is not None:
        found |= {entry.name: entry.cid for entry in lister.supply(saved.blocks[cid])}
    return found


def complete(saved: Saved, root: CID) -> None:
    """Every block of the DAG was saved."""
    for _ in iter_dag(root, saved.blocks.__getitem__, lambda cid: len(saved.blocks[cid])):
        pass


# --- CIDs --------------------------------------------------------------------------------


def vector_content(vector: dict[str, Any]) -> bytes:
    if "text" in vector:
        return str(vector["text"]).encode()
    key = hashlib.sha256(vector["seed"].encode()).digest()
    cipher = Cipher(algorithms.ChaCha20(key, bytes(16)), None).encryptor()
    return cipher.update(bytes(vector["bytes"]))


SMALL_VECTORS = [one for one in VECTORS["files"] if one["bytes"] <= 64 * MIB]


@pytest.mark.parametrize("vector", SMALL_VECTORS, ids=lambda v: f"{v['bytes']}-{v['cid'][-6:]}")
async def test_the_cids_are_kubos(vector: dict[str, Any], tmp_path: Path) -> None:
    """From a file, and from a stream in odd pieces; the large ones take several batches."""
    data = vector_content(vector)
    path = tmp_path / "file"
    path.write_bytes(data)
    saved = Saved()
    from_file = await importer(saved, vector["profile"]).add_path(path)
    assert (str(from_file.cid), from_file.size) == (vector["cid"], vector["bytes"])
    complete(saved, from_file.cid)
    again = Saved()
    from_stream = await importer(again, vector["profile"]).add_stream(pieces(data))
    assert from_stream == from_file
    assert again.blocks.keys() == saved.blocks.keys()
    assert max(saved.calls) <= 2 * IMPORT_BATCH_BYTES


def test_some_vectors_take_several_batches() -> None:
    assert max(one["bytes"] for one in SMALL_VECTORS) > 2 * IMPORT_BATCH_BYTES


@pytest.mark.parametrize("profile", PROFILES)
async def test_a_directory_is_what_its_parts_make(profile: str, tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "none").mkdir()
    contents = {
        "small": b"small",
        "empty": b"",
        "chunk": bytes(profile_named(profile).chunk_bytes),
        "large": random.Random(1).randbytes(3 * MIB + 5),
        "a/b/deep": b"deep",
    }
    for name, data in contents.items():
        (tmp_path / name).write_bytes(data)
    (tmp_path / "link").symlink_to("a/../nowhere")
    seen: list[Progress] = []
    saved = Saved()
    imported = await importer(saved, profile, seen.append).add_path(tmp_path)
    assert imported.size == sum(len(data) for data in contents.values())
    assert imported.warnings == ()
    complete(saved, imported.cid)

    async def alone(data: bytes) -> CID:
        return (await importer(Saved(), profile).add_stream(pieces(data))).cid

    top = listing(saved, imported.cid)
    assert set(top) == {"small", "empty", "chunk", "large", "a", "none", "link"}
    for name in ("small", "empty", "chunk", "large"):
        assert top[name] == await alone(contents[name])
    assert listing(saved, top["none"]) == {}
    below = listing(saved, listing(saved, top["a"])["b"])
    assert below == {"deep": await alone(b"deep")}
    target = parse(top["link"], saved.blocks[top["link"]])
    assert isinstance(target, Symlink)
    assert target.target == "a/../nowhere"
    assert top["link"] == build_symlink("a/../nowhere", profile_named(profile))[0].cid
    done = [progress.done_bytes for progress in seen]
    assert done == sorted(done)
    assert (seen[-1].done_bytes, seen[-1].total_bytes) == (imported.size, imported.size)


async def test_a_large_directory_is_a_hamt(tmp_path: Path) -> None:
    for number in range(5000):
        (tmp_path / f"{number:040}").touch()
    saved = Saved()
    imported = await importer(saved).add_path(tmp_path)
    profile = profile_named("unixfs-v1-2025")
    empty = (await importer(Saved()).add_stream(pieces(b""))).cid
    entries = [(f"{number:040}", empty, 0) for number in range(5000)]
    assert imported.cid == build_directory(entries, profile)[0].cid
    assert len(listing(saved, imported.cid)) == 5000


async def test_many_small_directories_take_linear_time(tmp_path: Path) -> None:
    """Their blocks are saved in batches that are counted, not summed up again and again."""
    for number in range(1500):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "file").write_bytes(b"%d" % number)
    saved = Saved()
    imported = await importer(saved).add_path(tmp_path)
    assert len(listing(saved, imported.cid)) == 1500
    complete(saved, imported.cid)
    assert len(saved.calls) < 40


# --- What is left out, and what is refused -----------------------------------------------


async def test_hidden_and_special_entries_are_left_out_and_said_so(tmp_path: Path) -> None:
    (tmp_path / "seen").touch()
    (tmp_path / ".hidden").touch()
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "config").touch()
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as server:
        here = Path.cwd()
        os.chdir(tmp_path)  # the name of a socket is short
        try:
            server.bind("socket")
        finally:
            os.chdir(here)
        saved = Saved()
        imported = await importer(saved).add_path(tmp_path)
        assert set(listing(saved, imported.cid)) == {"seen"}
        assert [warning[:1] for warning in imported.warnings] == ["2", "2"]
        everything = await importer(saved).add_path(tmp_path, hidden=True)
        assert set(listing(saved, everything.cid)) == {"seen", ".hidden", ".git"}
        assert len(everything.warnings) == 1


async def test_the_home_of_a_node_is_never_added(tmp_path: Path) -> None:
    home = Home(tmp_path / "tree" / "node")
    home.create()
    (home.directory / "owner.key").write_bytes(b"private")
    other = tmp_path / "tree" / "other"
    other.mkdir()
    (other / "format").write_text("some other format 1")
    (tmp_path / "tree" / "pipe").mkdir()
    os.mkfifo(tmp_path / "tree" / "pipe" / "format")
    saved = Saved()
    imported = await importer(saved).add_path(tmp_path / "tree")
    assert set(listing(saved, imported.cid)) == {"other", "pipe"}
    assert any(str(home.directory) in warning for warning in imported.warnings)
    with pytest.raises(CallerError, match="keys stay private"):
        await importer(saved).add_path(home.directory)
    assert not any(b"private" in block for block in saved.blocks.values())


@pytest.mark.parametrize("name", ["owner.key", "blocks/ab/block", "blocks", "../link", "../up/f"])
async def test_nothing_that_lies_in_a_home_is_added(name: str, tmp_path: Path) -> None:
    home = Home(tmp_path / "node")
    home.create()
    (home.directory / "owner.key").write_bytes(b"private")
    (home.directory / "blocks" / "ab").mkdir(parents=True)
    (home.directory / "blocks" / "ab" / "block").touch()
    (tmp_path / "link").symlink_to("node/owner.key")
    (tmp_path / "up").symlink_to("node/blocks")
    (home.directory / "blocks" / "f").touch()
    (tmp_path / "beside").write_bytes(b"public")
    saved = Saved()
    with pytest.raises(CallerError, match="keys stay private"):
        await importer(saved).add_path(home.directory / name)
    assert not saved.blocks
    await importer(saved).add_path(tmp_path / "beside")


async def test_a_link_at_the_path_itself_is_followed(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"hello world")
    (tmp_path / "link").symlink_to("file")
    saved = Saved()
    direct = await importer(saved).add_path(tmp_path / "file")
    assert await importer(saved).add_path(tmp_path / "link") == direct


@pytest.mark.parametrize("where", ["missing", "missing/below", "pipe", "dangling"])
async def test_paths_that_are_no_files(where: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "dangling").symlink_to("nothing")
    with pytest.raises((NotFoundError, CallerError), match=where.split("/")[0]):
        await importer(Saved()).add_path(tmp_path / where)


@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize("size", [10, 2 * MIB])
async def test_an_unreadable_file_is_named(
    inside: bool, size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever runs the tests may be root, who may read everything: the refusal is played."""
    secret = tmp_path / "secret"
    secret.write_bytes(bytes(size))
    open_file = os.open

    def refuse(path: Any, flags: int, *rest: Any, **more: Any) -> int:
        if path == secret:
            raise PermissionError(13, "Permission denied", str(path))
        return open_file(path, flags, *rest, **more)

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(CallerError, match=r"secret cannot be read: Permission denied"):
        await importer(Saved()).add_path(tmp_path if inside else secret)


async def test_a_directory_that_cannot_be_listed_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "locked").mkdir()
    scandir = os.scandir

    def refuse(path: Any) -> Any:
        if Path(path).name == "locked":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(CallerError, match="locked cannot be read"):
        await importer(Saved()).add_path(tmp_path)


async def test_names_that_are_no_text_keep_their_bytes(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9")
    (tmp_path / name).write_bytes(b"x")
    saved = Saved()
    imported = await importer(saved).add_path(tmp_path)
    assert set(listing(saved, imported.cid)) == {name}


async def test_a_name_that_no_directory_may_have_is_refused_with_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "x").touch()

    def refuse(entries: Any, profile: Any) -> Any:
        raise InvalidPath("directory entry name 'x' is odd")

    monkeypatch.setattr(importing, "build_directory", refuse)
    with pytest.raises(InvalidPath, match="below: directory entry"):
        await importer(Saved()).add_path(tmp_path)


# --- Files that change -------------------------------------------------------------------


async def plain(data: bytes) -> Imported:
    return await importer(Saved()).add_stream(pieces(data))


async def test_a_file_that_grows_while_it_is_read_ends_somewhere(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"1" * (IMPORT_BATCH_BYTES + 10))
    rounds = 0

    def save(blocks: Sequence[Block]) -> None:
        nonlocal rounds
        rounds += 1
        if rounds < 4:
            with path.open("ab") as file:
                file.write(b"2" * 300)

    imported = await importer(save, inline=True).add_path(path)
    assert imported.cid == (await plain(path.read_bytes()[: imported.size])).cid
    assert imported.size >= IMPORT_BATCH_BYTES + 10


async def test_a_file_that_shrinks_while_it_is_read_ends_there(tmp_path: Path) -> None:
    path = tmp_path / "file"
    data = random.Random(2).randbytes(3 * IMPORT_BATCH_BYTES)
    path.write_bytes(data)

    def save(blocks: Sequence[Block]) -> None:
        os.truncate(path, IMPORT_BATCH_BYTES + 100)

    imported = await importer(save, inline=True).add_path(path)
    assert imported.size <= len(data)
    assert imported.cid == (await plain(data[: imported.size])).cid


async def test_a_small_file_that_has_grown_is_not_read_into_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").write_bytes(b"small")
    (tmp_path / "b").write_bytes(b"small")
    data = random.Random(3).randbytes(IMPORT_BATCH_BYTES * 2)
    scan = importing._scan

    def scan_then_grow(path: Path, hidden: bool) -> Any:
        tree = scan(path, hidden)
        (tmp_path / "b").write_bytes(data)
        return tree

    monkeypatch.setattr(importing, "_scan", scan_then_grow)
    saved = Saved()
    imported = await importer(saved).add_path(tmp_path)
    assert listing(saved, imported.cid)["b"] == (await plain(data)).cid
    assert imported.size == 5 + len(data)
    assert max(saved.calls) <= 2 * IMPORT_BATCH_BYTES


async def test_a_file_that_became_a_pipe_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(b"data")
    scan = importing._scan

    def scan_then_swap(path: Path, hidden: bool) -> Any:
        tree = scan(path, hidden)
        (tmp_path / "file").unlink()
        os.mkfifo(tmp_path / "file")
        return tree

    monkeypatch.setattr(importing, "_scan", scan_then_swap)
    with trio.fail_after(10), pytest.raises(CallerError, match="no longer a file"):
        await importer(Saved()).add_path(tmp_path)


async def test_a_file_that_vanished_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(b"data")
    scan = importing._scan

    def scan_then_remove(path: Path, hidden: bool) -> Any:
        tree = scan(path, hidden)
        (tmp_path / "file").unlink()
        return tree

    monkeypatch.setattr(importing, "_scan", scan_then_remove)
    with pytest.raises(NotFoundError, match="file does not exist"):
        await importer(Saved()).add_path(tmp_path)


# --- Bounds and ends ---------------------------------------------------------------------


async def peak_of_stream(megabytes: int) -> int:
    async def generated() -> AsyncIterator[bytes]:
        piece = bytes(MIB)
        for number in range(megabytes):
            yield number.to_bytes(8, "big") + piece[8:]

    def drop(blocks: Sequence[Block]) -> None:
        pass

    tracemalloc.start()
    try:
        result = await importer(drop, inline=True).add_stream(generated())
        assert result.size == megabytes * MIB
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


async def test_memory_does_not_grow_with_the_stream() -> None:
    small, large = await peak_of_stream(64), await peak_of_stream(256)
    # Which of the batches in flight overlap is chance; 192 MiB more would show.
    assert large < small + 2 * IMPORT_BATCH_BYTES
    assert large < 8 * IMPORT_BATCH_BYTES


async def test_cancelling_midway_ends_at_once_and_closes_the_source(tmp_path: Path) -> None:
    closed = trio.Event()
    begun = trio.Event()

    async def endless() -> AsyncIterator[bytes]:
        try:
            while True:
                yield bytes(MIB)
                await trio.lowlevel.checkpoint()
        finally:
            closed.set()

    token = trio.lowlevel.current_trio_token()

    def save(blocks: Sequence[Block]) -> None:
        token.run_sync_soon(begun.set)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(importer(save).add_stream, endless())
        with trio.fail_after(20):
            await begun.wait()
            nursery.cancel_scope.cancel()
    assert closed.is_set()


async def test_a_full_store_ends_the_import_and_closes_the_source() -> None:
    closed = False

    async def endless() -> AsyncIterator[bytes]:
        nonlocal closed
        try:
            while True:
                yield bytes(MIB)
        finally:
            closed = True

    def save(blocks: Sequence[Block]) -> None:
        raise StorageFull("no room")

    with pytest.raises(StorageFull):
        await importer(save).add_stream(endless())
    assert closed


def descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


async def test_an_open_file_is_closed_when_an_import_fails(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(3 * IMPORT_BATCH_BYTES))

    def save(blocks: Sequence[Block]) -> None:
        raise StorageFull("no room")

    before = descriptors()
    for _ in range(5):
        with pytest.raises(StorageFull):
            await importer(save).add_path(tmp_path / "file")
    assert descriptors() <= before + 1
