"""Strict DAG-CBOR: one value, one encoding, with links told apart from byte strings.

Exactly the canonical form is read: shortest heads, definite lengths, map keys unique and in
length-first order, tag 42 alone, finite 64-bit floats.  Depth, items and bytes are bounded
before anything is allocated.  This is not a general CBOR reader.  Specification: IPLD
DAG-CBOR.  Why not on top of a library: docs/decisions/0003-own-dag-cbor.md.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Final, TypeAlias

from dstore.core.cid import CID
from dstore.errors import InvalidCid, MalformedBlock
from dstore.limits import BLOCK_BYTES_MAX, CBOR_DEPTH_MAX, CBOR_ITEMS_MAX

Value: TypeAlias = (
    "bool | int | float | str | bytes | CID | Sequence[Value] | Mapping[str, Value] | None"
)
"""What DAG-CBOR can say.  Decoding gives lists and dicts for the last two."""

_UNSIGNED, _NEGATIVE, _BYTES, _TEXT, _ARRAY, _MAP, _TAG, _SIMPLE = range(8)
# Heads of a link: tag 42, a byte string of 37 bytes, the 0x00 that stands before every CID.
_LINK_TAG: Final = b"\xd8\x2a"
_LINK_36: Final = b"\xd8\x2a\x58\x25\x00"
_FALSE, _TRUE, _NULL, _FLOAT64 = 0xF4, 0xF5, 0xF6, 0xFB


def encode(value: Value) -> bytes:
    """The one DAG-CBOR form of `value`.

    Raises ValueError where it has none: NaN and infinities, integers beyond 64 bits, keys
    that are no text, other types, nesting beyond CBOR_DEPTH_MAX.
    """
    out = bytearray()
    _encode(value, out, 0)
    return bytes(out)


def decode(data: bytes, *, bytes_max: int = BLOCK_BYTES_MAX) -> Value:
    """The value that `data` encodes: all of it, and in its one legal form.

    Links come as `CID`, byte strings as `bytes`.  Raises MalformedBlock for anything else,
    for links whose hash dstore refuses, and beyond `bytes_max`, CBOR_DEPTH_MAX or
    CBOR_ITEMS_MAX.  Linear in the input, about 0.5 µs an item.
    """
    return _Decoder(data, bytes_max).document()


def links(data: bytes, *, bytes_max: int = BLOCK_BYTES_MAX) -> tuple[CID, ...]:
    """All links of the block in encoded order, repeats included.  Raises as `decode`."""
    decoder = _Decoder(data, bytes_max)
    decoder.document()
    return tuple(decoder.links)


def _head(major: int, argument: int) -> bytes:
    """The shortest head of a major type with its argument."""
    if argument < 24:
        return bytes((major << 5 | argument,))
    if argument < 1 << 8:
        return bytes((major << 5 | 24, argument))
    if argument < 1 << 16:
        return struct.pack(">BH", major << 5 | 25, argument)
    if argument < 1 << 32:
        return struct.pack(">BI", major << 5 | 26, argument)
    if argument < 1 << 64:
        return struct.pack(">BQ", major << 5 | 27, argument)
    raise ValueError("an integer of DAG-CBOR has at most 64 bits and a sign")


def _encode(value: Value, out: bytearray, depth: int) -> None:
    if isinstance(value, CID):
        binary = value.binary
        out += _LINK_TAG
        out += _head(_BYTES, len(binary) + 1)
        out.append(0)
        out += binary
    elif value is None:
        out.append(_NULL)
    elif isinstance(value, bool):
        out.append(_TRUE if value else _FALSE)
    elif isinstance(value, int):
        out += _head(_UNSIGNED, value) if value >= 0 else _head(_NEGATIVE, -1 - value)
    elif isinstance(value, str):
        text = value.encode()
        out += _head(_TEXT, len(text))
        out += text
    elif isinstance(value, bytes):
        out += _head(_BYTES, len(value))
        out += value
    elif isinstance(value, float):
        if not isfinite(value):
            raise ValueError("DAG-CBOR has no NaN and no infinities")
        out += struct.pack(">Bd", _FLOAT64, value)
    elif depth >= CBOR_DEPTH_MAX:
        raise ValueError(f"nested more than {CBOR_DEPTH_MAX} deep")
    elif isinstance(value, list | tuple):
        out += _head(_ARRAY, len(value))
        for item in value:
            _encode(item, out, depth + 1)
    elif isinstance(value, Mapping):
        _encode_map(value, out, depth)
    else:
        raise ValueError(f"DAG-CBOR has no {type(value).__name__}")


def _encode_map(value: Mapping[str, Value], out: bytearray, depth: int) -> None:
    if not all(isinstance(key, str) for key in value):
        raise ValueError("keys of a DAG-CBOR map are text")
    keys = sorted((len(raw), raw, key) for key in value for raw in (key.encode(),))
    out += _head(_MAP, len(keys))
    for length, raw, key in keys:
        out += _head(_TEXT, length)
        out += raw
        _encode(value[key], out, depth + 1)


class _Decoder:
    """One pass over one document; collects its links on the way."""

    __slots__ = ("_data", "_items", "_position", "links")

    def __init__(self, data: bytes, bytes_max: int) -> None:
        if len(data) > bytes_max:
            raise MalformedBlock(f"DAG-CBOR of {len(data)} bytes; at most {bytes_max} taken")
        self._data = data
        self._position = 0
        self._items = 0
        self.links: list[CID] = []

    def document(self) -> Value:
        value = self._value(0)
        if self._position != len(self._data):
            raise self._fault("bytes after the value")
        return value

    def _fault(self, what: str) -> MalformedBlock:
        return MalformedBlock(f"not DAG-CBOR: {what} at byte {self._position}")

    def _value(self, depth: int) -> Value:
        data, position = self._data, self._position
        if position >= len(data):
            raise self._fault("cut off")
        self._items += 1
        if self._items > CBOR_ITEMS_MAX:
            raise self._fault(f"more than {CBOR_ITEMS_MAX} items")
        initial = data[position]
        major = initial >> 5
        if major == _TAG:
            return self._link()
        if major == _SIMPLE:
            return self._simple(initial)
        self._position = position + 1
        argument = initial & 31
        if argument >= 24:
            argument = self._argument(argument)
        if major == _UNSIGNED:
            return argument
        if major == _NEGATIVE:
            return -1 - argument
        if major == _BYTES:
            return self._take(argument)
        if major == _TEXT:
            return self._text(argument)
        if depth >= CBOR_DEPTH_MAX:
            raise self._fault(f"nested more than {CBOR_DEPTH_MAX} deep")
        # Every item takes a byte or more, so a count beyond the rest is a lie.
        if argument > len(data) - self._position:
            raise self._fault(f"{argument} items announced")
        if major == _ARRAY:
            return [self._value(depth + 1) for _ in range(argument)]
        return self._map(argument, depth)

    def _argument(self, info: int) -> int:
        """The argument behind a head whose low five bits are `info` >= 24."""
        if info > 27:
            raise self._fault("indefinite length or reserved head")
        raw = self._take(1 << (info - 24))
        argument = int.from_bytes(raw, "big")
        if argument < (24 if info == 24 else 1 << (8 << (info - 25))):
            raise self._fault("a head longer than it need be")
        return argument

    def _take(self, count: int) -> bytes:
        start = self._position
        if count > len(self._data) - start:
            raise self._fault("cut off")
        self._position = start + count
        return self._data[start : start + count]

    def _text(self, count: int) -> str:
        try:
            return self._take(count).decode()
        except UnicodeDecodeError as error:
            raise self._fault("text that is not UTF-8") from error

    def _map(self, count: int, depth: int) -> dict[str, Value]:
        result: dict[str, Value] = {}
        previous = (-1, b"")
        for _ in range(count):
            initial = self._take(1)[0]
            if initial >> 5 != _TEXT:
                raise self._fault("a map key that is not text")
            length = initial & 31
            if length >= 24:
                length = self._argument(length)
            start = self._position
            key = self._text(length)
            order = (length, self._data[start : start + length])
            if order <= previous:
                raise self._fault("map keys repeated or out of order")
            previous = order
            result[key] = self._value(depth + 1)
        return result

    def _link(self) -> CID:
        data, position = self._data, self._position
        if data.startswith(_LINK_36, position) and len(data) >= position + 41:
            binary = data[position + 5 : position + 41]
            self._position = position + 41
        else:
            if not data.startswith(_LINK_TAG, position):
                raise self._fault("a tag other than 42")
            self._position = position + 2
            initial = self._take(1)[0]
            if initial >> 5 != _BYTES:
                raise self._fault("a link that is not a byte string")
            length = initial & 31
            if length >= 24:
                length = self._argument(length)
            prefixed = self._take(length)
            if not prefixed.startswith(b"\x00"):
                raise self._fault("a link without its leading zero byte")
            binary = prefixed[1:]
        try:
            cid = CID.from_bytes(binary)
        except InvalidCid as error:
            raise MalformedBlock(f"DAG-CBOR link: {error}") from error
        self.links.append(cid)
        return cid

    def _simple(self, initial: int) -> bool | float | None:
        if initial == _FLOAT64:
            self._position += 1
            number: float = struct.unpack(">d", self._take(8))[0]
            if not isfinite(number):
                raise self._fault("NaN or an infinity")
            return number
        if initial not in (_FALSE, _TRUE, _NULL):
            raise self._fault("a simple value other than false, true and null")
        self._position += 1
        return None if initial == _NULL else initial == _TRUE
