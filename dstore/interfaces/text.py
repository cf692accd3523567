"""Text for people: control characters escaped, sizes and durations in words.

File names and messages of peers come from strangers; nothing here trusts them.
"""

from __future__ import annotations

import unicodedata
from typing import Final

# Control, format (right-to-left overrides among them) and surrogate characters; line breaks.
_UNSAFE: Final = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})


def escape_controls(text: str) -> str:
    """The text with everything that could drive a terminal or forge a line written as
    `\\x1b`, `\\u202e` or, for bytes that are no UTF-8, `\\xff`."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(map(_escaped, text))


def _escaped(character: str) -> str:
    code = ord(character)
    if unicodedata.category(character) not in _UNSAFE:
        return character
    if 0xDC80 <= code <= 0xDCFF:  # a byte that was no UTF-8 (PEP 383)
        return f"\\x{code - 0xDC00:02x}"
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def in_bytes(size: int) -> str:
    """A size as people read it: `17 B`, `1.5 MiB`."""
    value = float(size)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if value < 1024 or unit == "TiB":
            break
        value /= 1024
    return f"{size} B" if unit == "B" else f"{value:.1f} {unit}"


def in_time(seconds: float) -> str:
    """A duration as people read it: `42 s`, `3 h`, `360 days`."""
    for unit, size in (("days", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{int(seconds // size)} {unit}"
    return f"{int(seconds)} s"
