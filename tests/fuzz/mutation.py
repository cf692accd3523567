"""Mutations of inputs: of plain bytes, and of messages whose nested lengths must stay whole.

Random changes of protobuf bytes break a length nearly always and stop at the first check;
here a message is taken apart into its fields, one field changes, and the lengths are written
anew.  Works on anything that is made of protobuf fields, whoever reads it.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

Leaf = Callable[[bytes, int], bytes]

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_NUMBERS = (0, 1, 2, 127, 128, 255, 256, 16_383, 16_384, 1 << 20, (1 << 31) - 1, 1 << 31)
_LARGE = ((1 << 32) - 1, 1 << 32, (1 << 53) - 1, 1 << 53, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)
_BYTES_OF_INTEREST = (0, 1, 9, 10, 13, 0x22, 0x25, 0x2E, 0x2F, 0x3C, 0x7F, 0x80, 0xC0, 0xFF)

Field = tuple[int, int | bytes]  # key (number << 3 | wire type) and value


def plain(random: Random) -> Leaf:
    """Changes of bytes without any feedback: flips, runs, repetitions, other numbers."""

    def mutate(data: bytes, size_max: int) -> bytes:
        out = bytearray(data)
        for _ in range(1 << random.randrange(4)):
            at = random.randrange(len(out) + 1)
            match random.randrange(6):
                case 0 if out:
                    out[at % len(out)] ^= 1 << random.randrange(8)
                case 1:
                    out[at:at] = random.randbytes(random.choice((1, 2, 4, 8)))
                case 2:
                    del out[at : at + random.choice((1, 2, 8, 64))]
                case 3 if out:
                    out[at % len(out)] = random.choice(_BYTES_OF_INTEREST)
                case 4:
                    out[at:at] = out[at : at + random.choice((1, 8, 64))]
                case _:
                    number = random.choice(_NUMBERS + _LARGE) & 0xFFFFFFFF
                    out[at : at + 4] = number.to_bytes(4, "big")
        return bytes(out[:size_max])

    return mutate


def of_fields(random: Random, leaf: Leaf) -> Leaf:
    """Changes of single fields of a message; what is none is left to `leaf`."""

    def mutate(data: bytes, size_max: int) -> bytes:
        fields = _parsed(data)
        if not fields or random.random() < 0.1:
            return leaf(data, size_max)
        at = random.randrange(len(fields))
        match random.randrange(8):
            case 0:
                del fields[at]
            case 1:
                fields[at:at] = [fields[at]] * random.choice((1, 1, 1, 3, 40))
            case 2:
                fields.append(fields.pop(at))
            case 3:
                key, value = fields[at]
                fields[at] = (key ^ (8 << random.randrange(4)), value)
            case _:
                fields[at] = _changed(fields[at], size_max)
        return _written(fields)[:size_max]

    def _changed(field: Field, size_max: int) -> Field:
        key, value = field
        if isinstance(value, int):
            return key, random.choice((*_NUMBERS, *_LARGE, value + 1, max(value - 1, 0)))
        if key & 7 != _BYTES:
            return key, random.randbytes(len(value))
        nested = _parsed(value)
        if nested and random.random() < 0.7:
            return key, mutate(value, size_max)
        return key, leaf(value, min(size_max, len(value) + 256))

    return mutate


def _parsed(data: bytes) -> list[Field]:
    """The fields of a message, none where it is not one."""
    fields: list[Field] = []
    position = 0
    while position < len(data):
        key, position = _varint(data, position)
        wire = key & 7
        value: int | bytes
        if position < 0 or key >> 3 == 0:
            return []
        if wire == _VARINT:
            value, position = _varint(data, position)
        elif wire in (_BYTES, _FIXED64, _FIXED32):
            size = 8 if wire == _FIXED64 else 4
            if wire == _BYTES:
                size, position = _varint(data, position)
            if position < 0 or size > len(data) - position:
                return []
            value = data[position : position + size]
            position += size
        else:
            return []
        if position < 0:
            return []
        fields.append((key, value))
    return fields


def _varint(data: bytes, position: int) -> tuple[int, int]:
    """The number and the position behind it; -1 where there is none."""
    value = 0
    for index in range(10):
        if not 0 <= position + index < len(data):
            break
        byte = data[position + index]
        value |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            return value, position + index + 1
    return 0, -1


def _written(fields: list[Field]) -> bytes:
    out = bytearray()
    for key, value in fields:
        _put_varint(out, key)
        if isinstance(value, int):
            _put_varint(out, value)
        else:
            if key & 7 == _BYTES:
                _put_varint(out, len(value))
            out += value
    return bytes(out)


def _put_varint(out: bytearray, value: int) -> None:
    value &= (1 << 64) - 1
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
