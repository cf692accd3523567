"""The inputs that are kept: one text file per target, a line of base64 each.

Lines with a remark are inputs that once broke something; they stay.  The others were chosen
by the coverage that they add, and may be chosen anew.
"""

from __future__ import annotations

import hashlib
import sys
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterable
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

from tests.fuzz.target import load

FOLDER = Path(__file__).parent / "corpus"
_CODE = str(Path(__file__).parents[2] / "dstore")
Trace = Callable[[FrameType, str, Any], Any]
TARGET_BYTES_MAX = 12_000  # of one target's inputs, what broke something apart


def kept(name: str) -> dict[bytes, str]:
    """Input → remark, of one target."""
    path = FOLDER / f"{name}.txt"
    found: dict[bytes, str] = {}
    for line in path.read_text("ascii").splitlines() if path.exists() else ():
        encoded, _, remark = line.partition("  # ")
        found[b64decode(encoded, validate=True)] = remark
    return found


def inputs(name: str) -> list[bytes]:
    """All that a target is replayed with: its seeds, and what is kept."""
    return list(dict.fromkeys([b"", *load(name).seeds(), *kept(name)]))


def write(name: str, chosen: Iterable[bytes]) -> int:
    """Keep the chosen inputs, shortest first, as far as there is room; how many."""
    remarked = {data: remark for data, remark in kept(name).items() if remark}
    seeds = set(load(name).seeds())
    room, found = TARGET_BYTES_MAX, dict(remarked)
    for data in sorted(set(chosen) - seeds - remarked.keys(), key=lambda data: (len(data), data)):
        room -= len(data)
        if room < 0:
            break
        found[data] = ""
    lines = sorted(
        (len(data), b64encode(data).decode() + (f"  # {remark}" if remark else ""))
        for data, remark in found.items()
    )
    FOLDER.mkdir(exist_ok=True)
    if found:
        (FOLDER / f"{name}.txt").write_text("".join(f"{line}\n" for _, line in lines), "ascii")
    return len(found)


def choose(name: str, candidates: Iterable[bytes]) -> list[bytes]:
    """Those of the candidates, shortest first, that reach steps from one line of dstore to
    another which neither the seeds nor those before them reach."""
    check, chosen = load(name).check, []
    reached = set().union(*(steps(check, data) for data in load(name).seeds()))
    for data in sorted(set(candidates), key=lambda data: (len(data), data)):
        new = steps(check, data) - reached
        if new:
            chosen.append(data)
            reached |= new
    return chosen


def steps(check: Callable[[bytes], None], data: bytes) -> set[tuple[CodeType, int, int]]:
    """The steps between lines that a check of the input makes in dstore's code."""
    found: set[tuple[CodeType, int, int]] = set()

    def enter(frame: FrameType, event: str, argument: object) -> Trace | None:
        code, last = frame.f_code, 0
        if not code.co_filename.startswith(_CODE):
            return None

        def step(frame: FrameType, event: str, argument: object) -> Trace:
            nonlocal last
            found.add((code, last, frame.f_lineno))
            last = frame.f_lineno
            return step

        return step

    before = sys.gettrace()
    sys.settrace(enter)
    try:
        check(data)
    finally:
        sys.settrace(before)
    return found


def unpack(name: str, folder: Path) -> None:
    """Write every input as a file of its own, as engines want them."""
    folder.mkdir(parents=True, exist_ok=True)
    for data in inputs(name):
        (folder / hashlib.sha1(data, usedforsecurity=False).hexdigest()).write_bytes(data)
