"""Writing trees that strangers named: nothing lands outside of the target (threats.md 16)."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import pytest

from dstore.errors import DstoreError, InvalidPath, MalformedBlock
from dstore.interfaces.extract import Extraction

Item = dict[str, Any] | bytes


def directory(*path: str) -> Item:
    return {"path": list(path), "kind": "directory", "size": None, "target": None}


def file(*path: str, size: int) -> Item:
    return {"path": list(path), "kind": "file", "size": size, "target": None}


def link(*path: str, target: str) -> Item:
    return {"path": list(path), "kind": "symlink", "size": len(target), "target": target}


def extract(target: Path, *items: Item) -> int:
    with Extraction(target) as extraction:
        for item in items:
            if isinstance(item, bytes):
                extraction.write(item)
            else:
                extraction.enter(item)
        extraction.finish()
    return extraction.files


def everything(below: Path) -> set[str]:
    return {str(path.relative_to(below)) for path in below.rglob("*")}


def test_a_tree(tmp_path: Path) -> None:
    items = [
        directory(),
        directory("a"),
        directory("a", "b"),
        file("a", "b", "deep", size=5),
        b"12",
        b"345",
        file("a", "empty", size=0),
        link("a", "link", target="../../../etc/passwd"),
        directory("c"),
        file("top", size=1),
        b"x",
    ]
    assert extract(tmp_path / "out", *items) == 4
    out = tmp_path / "out"
    assert (out / "a/b/deep").read_bytes() == b"12345"
    assert (out / "a/empty").read_bytes() == b""
    assert (out / "top").read_bytes() == b"x"
    assert (out / "a/link").readlink() == Path("../../../etc/passwd")
    assert (out / "c").is_dir()
    assert everything(tmp_path) == {
        *("out", "out/a", "out/a/b", "out/a/b/deep", "out/a/empty", "out/a/link"),
        *("out/c", "out/top"),
    }


def test_one_file_replaces_another_at_once(tmp_path: Path) -> None:
    target = tmp_path / "f"
    target.write_bytes(b"old")
    with Extraction(target) as extraction:
        extraction.enter({"path": [], "kind": "file", "size": 3, "target": None})
        extraction.write(b"new")
        assert target.read_bytes() == b"old"
        extraction.finish()
    assert target.read_bytes() == b"new"
    assert everything(tmp_path) == {"f"}


@pytest.mark.parametrize(
    "name", ["..", ".", "", "/etc/x", "a/b", "../foo", "nul\0", "x" * 256, "é" * 128]
)
@pytest.mark.parametrize("kind", ["file", "directory", "symlink"])
def test_names_that_mean_another_place(tmp_path: Path, name: str, kind: str) -> None:
    bad = {"path": [name], "kind": kind, "size": 0, "target": "x"}
    with pytest.raises(InvalidPath):
        extract(tmp_path / "out", directory(), bad)
    assert everything(tmp_path) == {"out"}


def test_names_of_bytes_that_are_no_utf8(tmp_path: Path) -> None:
    name = b"\xff\x1b".decode("utf-8", "surrogateescape")
    extract(tmp_path / "out", directory(), file(name, size=1), b"x")
    assert everything(tmp_path / "out") == {name}


def test_no_write_goes_through_a_link_of_the_content(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    with pytest.raises(DstoreError):
        extract(
            tmp_path / "out",
            directory(),
            link("d", target=str(outside)),
            directory("d"),
            file("d", "stolen", size=1),
            b"x",
        )
    assert everything(outside) == set()


def test_no_write_goes_through_a_link_that_was_there(tmp_path: Path) -> None:
    outside, out = tmp_path / "outside", tmp_path / "out"
    outside.mkdir()
    out.mkdir()
    (out / "d").symlink_to(outside)
    with pytest.raises(InvalidPath, match="no directory"):
        extract(out, directory(), directory("d"), file("d", "f", size=0))
    (out / "f").symlink_to(outside / "new")
    extract(out, directory(), file("f", size=1), b"x")
    assert not (out / "f").is_symlink()
    assert everything(outside) == set()


def test_a_file_inside_of_something_that_was_not_announced(tmp_path: Path) -> None:
    (tmp_path / "out" / "d").mkdir(parents=True)
    with pytest.raises(MalformedBlock, match="not announced"):
        extract(tmp_path / "out", directory(), file("d", "f", size=0))


@pytest.mark.parametrize("pieces", [[], [b"12"], [b"1234"]])
def test_a_file_of_another_length_than_said_gets_no_name(
    tmp_path: Path, pieces: list[bytes]
) -> None:
    with pytest.raises(MalformedBlock):
        extract(tmp_path / "out", directory(), file("f", size=3), *pieces)
    assert everything(tmp_path) == {"out"}


def test_leaving_early_removes_the_part(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), Extraction(tmp_path / "f") as extraction:
        extraction.enter({"path": [], "kind": "file", "size": 9, "target": None})
        extraction.write(b"part")
        raise KeyboardInterrupt
    assert everything(tmp_path) == set()


def test_a_directory_is_never_replaced_by_something_else(tmp_path: Path) -> None:
    (tmp_path / "out" / "x").mkdir(parents=True)
    with pytest.raises(InvalidPath, match="is a directory"):
        extract(tmp_path / "out", directory(), file("x", size=0))
    with pytest.raises(InvalidPath, match="is a directory"):
        extract(tmp_path / "out", directory(), link("x", target="y"))
    assert everything(tmp_path) == {"out", "out/x"}


def test_devices_and_pipes_are_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    for name in ("pipe", "link"):
        with pytest.raises(InvalidPath, match="dstore cat"):
            extract(tmp_path / name, file(size=0))
    assert everything(tmp_path) == {"pipe", "link"}
    assert (tmp_path / "pipe").is_fifo()


def test_what_a_killed_one_left_is_in_nobodys_way(tmp_path: Path) -> None:
    # In a container every process may have the number of the one before.
    (tmp_path / f".dstore-{os.getpid()}-0.part").touch()
    with Extraction(tmp_path / "f") as extraction:
        extraction.enter({"path": [], "kind": "file", "size": 1, "target": None})
        extraction.write(b"x")
        extract(tmp_path / "g", file(size=0))
        extraction.finish()
    assert (tmp_path / "f").read_bytes() == b"x"


@pytest.mark.parametrize("target", ["", "a\0b", "x" * 5000])
def test_links_to_nothing_sensible_are_refused(tmp_path: Path, target: str) -> None:
    with pytest.raises(InvalidPath):
        extract(tmp_path / "out", directory(), link("l", target=target))
    assert everything(tmp_path) == {"out"}


def test_files_have_the_mode_that_the_umask_says(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        extract(tmp_path / "f", file(size=0))
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "f").stat().st_mode) == 0o640


def test_descriptors_are_closed(tmp_path: Path) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    extract(tmp_path / "a", directory(), directory("b"), directory("b", "c"), file("d", size=0))
    with pytest.raises(InvalidPath):
        extract(tmp_path / "a", directory(), directory("b"), file("b", "..", size=0))
    assert len(list(Path("/proc/self/fd").iterdir())) == before
