"""CIDs and blocks against Kubo: known answers always, Kubo itself where it is installed.

`vectors/kubo.json` holds the CIDs that the Kubo named in it gave for the cases of
`kubo_cases.py`.  Where an `ipfs` program is on the PATH, or named by DSTORE_KUBO, that one is
asked too, and reads dstore's blocks.  It runs offline, with a repository of its own.
"""

from __future__ import annotations

import filecmp
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from dstore.core.cid import CID
from dstore.core.unixfs import profile_named
from dstore.interfaces.offline import cids_of
from dstore.runtime import Runtime
from dstore.service.importing import Importer
from dstore.storage.blockstore import Block
from tests.interop.kubo_cases import CASES, FLAT, HIDDEN, flat

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "kubo.json").read_text())
PROFILES = sorted(FLAT)
# What Kubo reads back from dstore's blocks: all kinds of nodes.  Kubo's `get` refuses links
# that leave the directory, so the links are compared by their CID alone.
READ_BACK = ["empty file", "one byte", "ten and a half chunks", "nested", "names", "wide"]


def ignore(*_: object) -> None:
    pass


@pytest.fixture(scope="module")
def trees(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Each case on disk, made on first use."""
    directory = tmp_path_factory.mktemp("cases")

    def tree(name: str) -> Path:
        path = directory / name
        if not path.is_symlink() and not path.exists():
            CASES[name](path)
        return path

    return tree


@dataclass(frozen=True)
class Kubo:
    """An `ipfs` program with an offline repository that has one CID profile."""

    program: str
    repository: Path

    def run(self, *arguments: str) -> str:
        done = subprocess.run(
            [self.program, "--offline", *arguments],
            env={**os.environ, "IPFS_PATH": str(self.repository), "IPFS_TELEMETRY": "off"},
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
        assert done.returncode == 0, f"ipfs {arguments}: {done.stderr}"
        return done.stdout.strip()

    def cid(self, path: Path, *, hidden: bool = False) -> str:
        more = ["--hidden"] if hidden else []
        return self.run("add", "-r", "-Q", "--only-hash", "--progress=false", *more, str(path))


@pytest.fixture(scope="module", params=PROFILES)
def kubo(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Kubo]:
    """The profile's name and a Kubo that is set to it."""
    program = os.environ.get("DSTORE_KUBO") or shutil.which("ipfs")
    if program is None:
        pytest.skip("Kubo is not installed: no ipfs on the PATH, DSTORE_KUBO not set")
    profile: str = request.param
    found = Kubo(program, tmp_path_factory.mktemp("kubo"))
    found.run("init", "--empty-repo")
    found.run("config", "profile", "apply", profile)
    return profile, found


def ours(path: Path, profile: str, *, hidden: bool = False) -> str:
    return cids_of([str(path)], profile, hidden, ignore)[0][1]


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("name", CASES)
def test_known_answers(name: str, profile: str, trees: Callable[[str], Path]) -> None:
    known = VECTORS["cids"][profile]
    assert ours(trees(name), profile) == known[name]
    if name == HIDDEN:
        assert ours(trees(name), profile, hidden=True) == known[f"{name}, added too"]


@pytest.mark.parametrize("profile", PROFILES)
def test_known_answers_around_the_threshold_of_hamts(profile: str, tmp_path: Path) -> None:
    for count in FLAT[profile]:
        flat(tmp_path / "flat", count)
        assert ours(tmp_path / "flat", profile) == VECTORS["cids"][profile][f"{count} files"]


@pytest.mark.slow
def test_kubo_gives_the_same_cids(
    kubo: tuple[str, Kubo], trees: Callable[[str], Path], tmp_path: Path
) -> None:
    profile, program = kubo
    known = VECTORS["cids"][profile]
    given = {name: program.cid(trees(name)) for name in CASES}
    given[f"{HIDDEN}, added too"] = program.cid(trees(HIDDEN), hidden=True)
    for count in FLAT[profile]:
        flat(tmp_path / "flat", count)
        given[f"{count} files"] = program.cid(tmp_path / "flat")
    assert given == known


@pytest.mark.slow
async def test_kubo_reads_our_blocks(
    kubo: tuple[str, Kubo], trees: Callable[[str], Path], tmp_path: Path
) -> None:
    profile, program = kubo
    for number, name in enumerate(READ_BACK):
        blocks: dict[CID, bytes] = {}

        def save(found: Sequence[Block], blocks: dict[CID, bytes] = blocks) -> None:
            blocks.update(found)

        importer = Importer(profile_named(profile), save, Runtime().workers, ignore)
        imported = await importer.add_path(trees(name), hidden=False)
        car = tmp_path / f"{number}.car"
        with car.open("wb") as file:
            file.writelines(car_of(imported.cid, blocks))
        program.run("dag", "import", str(car))
        program.run("get", "-o", str(tmp_path / str(number)), str(imported.cid))
        assert same(trees(name), tmp_path / str(number)), name


def car_of(root: CID, blocks: dict[CID, bytes]) -> Iterator[bytes]:
    """A CARv1 file."""
    reference = b"\xd8\x2a\x58" + bytes([len(root.binary) + 1]) + b"\0" + root.binary
    header = b"\xa2\x65roots\x81" + reference + b"\x67version\x01"
    yield size_of(header) + header
    for cid, data in blocks.items():
        yield size_of(cid.binary + data) + cid.binary + data


def size_of(data: bytes) -> bytes:
    """An unsigned varint."""
    left, found = len(data), bytearray()
    while left > 127:
        found.append(left & 127 | 128)
        left >>= 7
    return bytes([*found, left])


def same(left: Path, right: Path) -> bool:
    """Whether two files or directories are equal, everything below included."""
    if left.is_symlink() or right.is_symlink():
        return left.readlink() == right.readlink()
    if left.is_dir() != right.is_dir():
        return False
    if left.is_dir():
        names = {one.name for one in left.iterdir()}
        return names == {one.name for one in right.iterdir()} and all(
            same(left / name, right / name) for name in names
        )
    return filecmp.cmp(left, right, shallow=False)
