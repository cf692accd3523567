"""Arithmetic in GF(2^8) and the matrices of the erasure code; coefficients, never data.

The matrices are fixed by formula, so that any implementation makes the same parity bytes.
Format: docs/reference/formats.md, "Erasure coding".
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, lru_cache


def _powers() -> tuple[bytes, bytes]:
    """Powers of the generator 2 modulo x^8 + x^4 + x^3 + x^2 + 1, and logarithms."""
    exponentials, logarithms, value = bytearray(510), bytearray(256), 1
    for power in range(255):
        exponentials[power] = exponentials[power + 255] = value
        logarithms[value] = power
        value = value << 1 ^ (0x11D if value & 0x80 else 0)
    return bytes(exponentials), bytes(logarithms)


_EXP, _LOG = _powers()


def _inverse(value: int) -> int:
    return _EXP[255 - _LOG[value]]


@cache
def products(factor: int) -> bytes:
    """The 256 products with `factor`: a table for `bytes.translate`."""
    if factor == 0:
        return bytes(256)
    power = _LOG[factor]
    return bytes((0, *(_EXP[power + _LOG[value]] for value in range(1, 256))))


def _combine_rows(factors: bytes, rows: Sequence[bytes], width: int) -> bytes:
    """The sum of factors[i] * rows[i], for short rows of coefficients."""
    total = 0
    for factor, row in zip(factors, rows, strict=True):
        if factor:
            total ^= int.from_bytes(row.translate(products(factor)), "little")
    return total.to_bytes(width, "little")


@lru_cache(maxsize=256)
def parity_rows(k: int, m: int, data_count: int) -> tuple[bytes, ...]:
    """The first `data_count` columns of the m parity rows: inverse((k + i) XOR j).

    The missing members of a short stripe are zeros and add nothing, so their columns are
    left out.
    """
    return tuple(bytes(_inverse(k + i ^ j) for j in range(data_count)) for i in range(m))


def _invert_cauchy(xs: Sequence[int], ys: Sequence[int]) -> list[bytes]:
    """The inverse of the square matrix 1 / (x_i + y_j), by the closed form, in O(n²).

    Element (j, i) is  Π_l (x_i + y_l) · Π_l (x_l + y_j)  divided by
    (x_i + y_j) · Π_{l≠i} (x_i + x_l) · Π_{l≠j} (y_j + y_l);  all in logarithms.
    """
    over_x = [
        sum(_LOG[x ^ y] for y in ys) - sum(_LOG[x ^ other] for other in xs if other != x)
        for x in xs
    ]
    over_y = [
        sum(_LOG[x ^ y] for x in xs) - sum(_LOG[y ^ other] for other in ys if other != y)
        for y in ys
    ]
    return [
        bytes(_EXP[(of_x + of_y - _LOG[x ^ y]) % 255] for x, of_x in zip(xs, over_x, strict=True))
        for y, of_y in zip(ys, over_y, strict=True)
    ]


@lru_cache(maxsize=1024)
def recovery_rows(
    k: int, m: int, data_count: int, chosen: tuple[int, ...], wanted: tuple[int, ...]
) -> tuple[bytes, ...]:
    """Rows that make the wanted fragments from the `data_count` chosen ones.

    `chosen` is sorted: the data members at hand, then as many parity fragments as data
    members are missing.
    """
    present = [index for index in chosen if index < k]
    parity = [index for index in chosen if index >= k]
    missing = [index for index in range(data_count) if index not in set(present)]
    matrix = parity_rows(k, m, data_count)
    width = len(chosen)
    column = {index: position for position, index in enumerate(chosen)}

    def unit(index: int) -> bytes:
        row = bytearray(width)
        row[column[index]] = 1
        return bytes(row)

    # What the parity fragments at hand say of the missing members alone.
    remainders = []
    for index in parity:
        row = bytearray(unit(index))
        for member in present:
            row[column[member]] ^= matrix[index - k][member]
        remainders.append(bytes(row))
    solved = {
        member: _combine_rows(factors, remainders, width)
        for member, factors in zip(missing, _invert_cauchy(parity, missing), strict=True)
    }
    data = [solved[member] if member in solved else unit(member) for member in range(data_count)]
    return tuple(
        unit(index)
        if index in column
        else data[index]
        if index < k
        else _combine_rows(matrix[index - k], data, width)
        for index in wanted
    )
