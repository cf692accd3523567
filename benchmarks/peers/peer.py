"""What a peer is to the runner: how it is set up, and the parts that are measured.

A part starts everything it needs, measures, and stops it again.  Its row has those of the
figures of `report.FIGURES` that the system offers; what it does not offer is left out.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy

from benchmarks.local_add import MIB

Row = dict[str, float]

SMALL_BYTES = 4096
_SETUP_SECONDS = 1800


class Unavailable(Exception):
    """The system cannot be had here; the message says why."""


@dataclass(frozen=True)
class Load:
    """The files that every system is given: one large, and a directory of small ones."""

    path: Path
    tree: Path
    size: int
    small: int

    @property
    def middle(self) -> int:
        """Where the range of 1 MiB begins: inside a chunk of every system."""
        return self.size // 2 + MIB // 3

    @property
    def gib(self) -> float:
        return self.size / 2**30

    def names(self) -> list[Path]:
        return [self.tree / f"{number:05}" for number in range(self.small)]

    def bodies(self) -> list[bytes]:
        """As many small files that are not of the directory, so that nobody has them yet."""
        return [path.read_bytes()[::-1] for path in self.names()]

    def digest(self, start: int = 0, size: int = 0) -> str:
        """SHA-256 of a part of the large file, in hexadecimal; of all of it if unsaid."""
        found, left = hashlib.sha256(), size or self.size
        with self.path.open("rb") as file:
            file.seek(start)
            while piece := file.read(min(MIB, left)):
                found.update(piece)
                left -= len(piece)
        return found.hexdigest()


def make_load(directory: Path, mib: int, small: int) -> Load:
    """Random bytes, the same for the same sizes, on disk and in the page cache."""
    load = Load(directory / "file", directory / "tree", mib * MIB, small)
    generator = numpy.random.default_rng(mib)
    with load.path.open("wb") as file:
        for _ in range(mib):
            file.write(generator.bytes(MIB))
    load.tree.mkdir()
    for path in load.names():
        path.write_bytes(generator.bytes(SMALL_BYTES))
    os.sync()
    return load


@dataclass(frozen=True)
class Peer:
    """A system: `prepare` installs it where it is not yet and tells its version."""

    prepare: Callable[[], str]
    parts: dict[str, Callable[[Path, Load], Row]]


def place(name: str) -> Path:
    """The directory that a system is installed in."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "dstore-peers" / name


def tell(command: Sequence[str | Path], cwd: Path | None = None) -> str:
    """What a command of the set-up prints.

    Raises:
        Unavailable: it cannot be started, fails or takes too long.
    """
    try:
        done = subprocess.run(
            command, cwd=cwd, capture_output=True, text=True, timeout=_SETUP_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unavailable(str(error)) from error
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines() or ["no word"]
        raise Unavailable(f"{Path(command[0]).name} {command[1]}: {said[-1][:300]}")
    return done.stdout.strip()


def venv_with(name: str, requirement: str) -> Path:
    """The `bin` directory of a virtual environment of the system's own.

    Raises:
        Unavailable: the package cannot be installed.
    """
    directory = place(name) / "venv"
    ready = directory / "ready"
    if not ready.exists() or ready.read_text() != requirement:
        tell([sys.executable, "-m", "venv", "--clear", directory])
        tell([directory / "bin" / "python", "-m", "pip", "install", "-q", requirement])
        ready.write_text(requirement)
    return directory / "bin"
