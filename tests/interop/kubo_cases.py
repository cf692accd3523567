"""Files and directories whose CIDs are compared with Kubo's: the same bytes on every machine.

Each case makes one file or directory below the path it is given.  The contents come from
SHAKE-256, the names are written out; nothing depends on the machine.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Final

from dstore.limits import KIB, MIB

Make = Callable[[Path], None]

_SIZES: Final = {
    "one byte": 1,
    "chunk of 2015, less one": 256 * KIB - 1,
    "chunk of 2015": 256 * KIB,
    "chunk of 2015, and one": 256 * KIB + 1,
    "chunk of 2025, less one": MIB - 1,
    "chunk of 2025": MIB,
    "chunk of 2025, and one": MIB + 1,
    "two chunks of 2025": 2 * MIB,
    "two chunks of 2025, and one": 2 * MIB + 1,
    "ten and a half chunks": 10 * MIB + 512 * KIB + 7,
}
_NAMES: Final = (
    "plain.txt",
    "with space",
    "-leading dash",
    "quote'\"`",
    "back\\slash",
    "new\nline",
    "per%20cent%",
    "question?#hash&",
    "Z\u00fcrich",  # composed
    "Zu\u0308rich",  # decomposed: another name
    "\u65e5\u672c\u8a9e",
    "\U0001f43b\u200d\u2744\ufe0f",
    "\u0645\u0644\u0641",
    "x" * 255,
)


def content(seed: str, size: int) -> bytes:
    """`size` bytes that follow from `seed`."""
    return hashlib.shake_256(seed.encode()).digest(size)


def _file(name: str, size: int) -> Make:
    def make(path: Path) -> None:
        path.write_bytes(content(name, size))

    return make


def _empty_file(path: Path) -> None:
    path.touch()


def _empty_directory(path: Path) -> None:
    path.mkdir()


def _nested(path: Path) -> None:
    deep = path
    for level in range(12):
        deep = deep / f"level {level}"
        deep.mkdir(parents=True)
        (deep / "here.bin").write_bytes(content(f"level {level}", 1000 * level))
    (path / "empty directory").mkdir()
    (path / "empty file").touch()
    (path / "large.bin").write_bytes(content("large", 3 * MIB + 1))
    (path / "twin.bin").write_bytes(content("large", 3 * MIB + 1))


def _links(path: Path) -> None:
    (path / "sub").mkdir(parents=True)
    (path / "target").write_bytes(b"target")
    for name, target in {
        "relative": "target",
        "up and down": "sub/../target",
        "absolute": "/etc/hostname",
        "dangling": "nowhere",
        "to a directory": "sub",
        "to itself": "to itself",
        "unicode": "Z\u00fcrich/\U0001f43b",
        "long": "a/" * 500 + "b",
    }.items():
        (path / name).symlink_to(target)


def _names(path: Path) -> None:
    path.mkdir()
    for name in _NAMES:
        (path / name).write_bytes(name.encode())


def _names_that_are_no_text(path: Path) -> None:
    path.mkdir()
    for name in (b"latin-\xfcmlaut", b"\xff\xfe", b"half \xf0\x9f"):
        (path / name.decode("utf-8", "surrogateescape")).write_bytes(name)


def _hidden(path: Path) -> None:
    (path / ".git").mkdir(parents=True)
    (path / ".git" / "config").write_bytes(b"hidden")
    (path / ".profile").write_bytes(b"hidden")
    (path / "shown").write_bytes(b"shown")
    (path / "sub").mkdir()
    (path / "sub" / ".only hidden").write_bytes(b"hidden")


def flat(path: Path, count: int) -> None:
    """A directory of `count` small files with names of eight digits."""
    path.mkdir(exist_ok=True)
    for number in range(count):
        file = path / f"{number:08d}"
        if not file.exists():
            file.write_bytes(b"x")


def _wide(path: Path) -> None:
    """HAMTs of several levels, with all kinds of entries, and one inside of another."""
    path.mkdir()
    for number in range(7000):
        (path / f"{content(f'name {number}', 12).hex()}.dat").write_bytes(b"%d" % number)
    (path / "directory").mkdir()
    (path / "directory" / "file").write_bytes(b"below")
    (path / "symbolic link").symlink_to("directory/file")
    (path / "Z\u00fcrich").write_bytes(content("large", 2 * MIB + 1))
    flat(path / "another", 6300)


CASES: Final[dict[str, Make]] = {
    "empty file": _empty_file,
    "empty directory": _empty_directory,
    **{name: _file(name, size) for name, size in _SIZES.items()},
    "all links of 2015": _file("links", 174 * 256 * KIB),
    "all links of 2015, and one byte": _file("links", 174 * 256 * KIB + 1),
    "nested": _nested,
    "symbolic links": _links,
    "names": _names,
    "names that are no text": _names_that_are_no_text,
    "hidden files": _hidden,
    "wide": _wide,
}
HIDDEN: Final = "hidden files"  # is added without and with what is hidden
# The numbers of entries of `flat` on both sides of the threshold between the plain form and
# the HAMT, in each profile.
FLAT: Final = {"unixfs-v1-2025": (5041, 5042), "unixfs-v0-2015": (6241, 6242)}
