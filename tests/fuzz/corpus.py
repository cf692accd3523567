"""The inputs that are kept: one text file per target, a line of base64 each.

Lines with a remark are inputs that once broke something; they stay.  The others were chosen
by the coverage that they add, and may be chosen anew.
"""

from __future__ import annotations

import hashlib
from base64 import b64decode, b64encode
from collections.abc import Iterable
from pathlib import Path

from tests.fuzz.target import load

FOLDER = Path(__file__).parent / "corpus"
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
    (FOLDER / f"{name}.txt").write_text("".join(f"{line}\n" for _, line in lines), "ascii")
    return len(found)


def unpack(name: str, folder: Path) -> None:
    """Write every input as a file of its own, as engines want them."""
    folder.mkdir(parents=True, exist_ok=True)
    for data in inputs(name):
        (folder / hashlib.sha1(data, usedforsecurity=False).hexdigest()).write_bytes(data)
