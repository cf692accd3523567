"""Arguments as people and programs write them, on the command line and in requests: checked.

Every length is bounded before use and every fault is a CallerError that names the field.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dstore.core.cid import CID
from dstore.errors import CallerError, InvalidPath
from dstore.limits import DURATION_SECONDS_MAX, PATH_BYTES_MAX
from dstore.service.progress import AddOptions


def split_path(text: str) -> tuple[CID, list[str]]:
    """Root and names of `CID[/name]…`; a leading `/ipfs/` is taken.  Raises InvalidCid,
    InvalidPath."""
    text = text.removeprefix("/ipfs/")
    if len(text) > PATH_BYTES_MAX:
        raise InvalidPath(f"the path is longer than {PATH_BYTES_MAX} characters")
    root, *names = [part for part in text.split("/") if part] or [""]
    if ".." in names or "." in names:
        raise InvalidPath(f"{text!r}: . and .. mean nothing below a CID")
    return CID.parse(root), names


def parse_root(text: str) -> CID:
    """The root of `CID` or `/ipfs/CID`.  Raises InvalidCid, InvalidPath."""
    root, names = split_path(text)
    if names:
        raise InvalidPath(f"{text!r} is a path below a root: the CID of a root is needed")
    return root


def natural(given: Mapping[str, Any], name: str) -> int | None:
    """A whole number >= 0, from JSON or a query; None where it is not given."""
    value = given.get(name)
    if value is None:
        return None
    if isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) < 20:
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise CallerError(f"{name}: {value!r} is not a whole number")
    return value


def flag(given: Mapping[str, Any], name: str) -> bool:
    """True or false, from JSON or a query; false where it is not given."""
    value = given.get(name, False)
    value = {"true": True, "false": False}.get(value, value) if isinstance(value, str) else value
    if not isinstance(value, bool):
        raise CallerError(f"{name}: {value!r} is neither true nor false")
    return value


def parse_code(text: str) -> tuple[int, int] | None:
    """`4+2` → (4, 2), `auto` → None.  Raises CallerError; what no code can be is refused
    where it is used."""
    if text == "auto":
        return None
    k, plus, m = text.partition("+")
    if not (plus and k.isascii() and m.isascii() and k.isdecimal() and m.isdecimal()):
        raise CallerError(f"{text!r} is not a code: write k+m, like 4+2, or auto")
    if len(k) > 3 or len(m) > 3:
        raise CallerError(f"{text!r}: a code has at most 255 fragments")
    return int(k), int(m)


def add_options(given: Mapping[str, Any]) -> AddOptions:
    """The options of an add.  Raises CallerError."""
    texts: dict[str, str | None] = {}
    for name in ("code", "profile", "name"):
        value = given.get(name)
        if value is not None and not (
            isinstance(value, str) and len(value) <= PATH_BYTES_MAX and _encodes(value)
        ):
            raise CallerError(f"{name}: not a text in UTF-8 of {PATH_BYTES_MAX} characters")
        texts[name] = value
    pin_seconds = natural(given, "pin_seconds")
    if pin_seconds == 0:
        raise CallerError("pin_seconds: must be more than nothing")
    if pin_seconds is not None and pin_seconds > DURATION_SECONDS_MAX:
        raise CallerError("pin_seconds: at most 100 years")
    require_guarantee = natural(given, "require_guarantee") or 0
    local_only = flag(given, "local_only")
    if local_only and require_guarantee:
        raise CallerError(
            "local_only and require_guarantee: what is on this node alone survives no loss of it"
        )
    return AddOptions(
        code=parse_code(texts["code"] or "auto"),
        profile=texts["profile"] or AddOptions().profile,
        local_only=local_only,
        require_guarantee=require_guarantee,
        pin_seconds=pin_seconds,
        name=texts["name"],
    )


def local_path(given: Mapping[str, Any]) -> Path:
    """The absolute path of a file on this machine.  Raises CallerError."""
    path = given.get("path")
    if not isinstance(path, str) or not path.startswith("/") or "\0" in path:
        raise CallerError("path: an absolute path on this machine is needed")
    if not _encodes(path, "surrogateescape"):
        raise CallerError("path: no file can have that name")
    return Path(path)


def _encodes(text: str, errors: str = "strict") -> bool:
    """Whether the text has a form in UTF-8: JSON can name halves of characters."""
    try:
        text.encode("utf-8", errors)
    except UnicodeEncodeError:
        return False
    return True
