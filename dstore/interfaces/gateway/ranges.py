"""Conditional and range requests: what the headers ask for, decided without any I/O.

Specification: RFC 9110, sections 13 and 14.  One byte range is served; a request for several
is answered with the whole, as the RFC permits, so that thousands of parts cost nothing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Literal

_ONE_RANGE: Final = re.compile(r"bytes=[ \t]*([0-9]{0,40})-([0-9]{0,40})[ \t]*", re.IGNORECASE)
_HEADER_CHARS_MAX: Final = 128  # of a Range header with one range in it
_ENTITY_TAG: Final = re.compile(r'(?:W/)?("[^"]*")')


@dataclass(frozen=True, slots=True)
class ByteRange:
    """The bytes [start, start + length) of a representation; never empty."""

    start: int
    length: int

    def content_range(self, size: int) -> str:
        """The Content-Range header of this part of a representation of `size` bytes."""
        return f"bytes {self.start}-{self.start + self.length - 1}/{size}"


def select_range(header: str | None, size: int) -> ByteRange | Literal["whole", "unsatisfiable"]:
    """What a Range header asks of a representation of `size` bytes.

    Malformed headers, other units and several ranges are answered with the whole.  So is any
    range of an empty representation: there is no Content-Range to describe it with.
    """
    if header is None or size == 0 or len(header) > _HEADER_CHARS_MAX:
        return "whole"
    match = _ONE_RANGE.fullmatch(header.strip(" \t"))
    if match is None:
        return "whole"
    first, last = match.groups()
    if not first:
        if not last:
            return "whole"
        length = min(int(last), size)
        return ByteRange(size - length, length) if length else "unsatisfiable"
    start = int(first)
    if last and int(last) < start:
        return "whole"  # "5-3" is no range at all
    if start >= size:
        return "unsatisfiable"
    stop = int(last) + 1 if last else size
    return ByteRange(start, min(stop, size) - start)


def not_modified(if_none_match: str | None, etag: str) -> bool:
    """Whether the client has the representation that `etag` names."""
    if if_none_match is None:
        return False
    if if_none_match.strip() == "*":
        return True
    opaque = etag.removeprefix("W/")
    return any(match.group(1) == opaque for match in _ENTITY_TAG.finditer(if_none_match))


def range_applies(if_range: str | None, etag: str) -> bool:
    """Whether a Range header counts: it does not where the client's part is of something
    else.  Dates never match, since content by hash has none; nor do weak tags."""
    return if_range is None or (if_range.strip() == etag and not etag.startswith("W/"))
