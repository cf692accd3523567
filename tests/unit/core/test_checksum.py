"""The checksum of bytes at rest: as CRC-64/XZ defines it, and what stands in for it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dstore.core import checksum, isal


def by_definition(data: bytes) -> int:
    """Bit by bit, the polynomial of ECMA-182 reflected."""
    value = 2**64 - 1
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = value >> 1 ^ (0xC96C5795D7870F42 if value & 1 else 0)
    return value ^ (2**64 - 1)


def crc64() -> Callable[[bytes], int]:
    found = checksum.crc64()
    assert found is not None, "pyeclib is a dependency: ISA-L must load"
    return found


@given(st.binary(max_size=300))
def test_crc_is_what_its_definition_says(data: bytes) -> None:
    assert crc64()(data) == by_definition(data)


@pytest.mark.parametrize("function", [crc64(), checksum.murmur], ids=["crc64", "murmur"])
@given(
    data=st.binary(min_size=1, max_size=5000), at=st.integers(min_value=0), bit=st.integers(0, 7)
)
def test_one_bit_changes_it(
    function: Callable[[bytes], int], data: bytes, at: int, bit: int
) -> None:
    damaged = bytearray(data)
    damaged[at % len(data)] ^= 1 << bit
    assert 0 <= function(data) < 2**64
    assert function(bytes(damaged)) != function(data)


def test_without_isal_murmur_takes_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isal, "candidates", lambda: [("libno-such.so.9", "none")])
    assert checksum.crc64() is None
    checksum._function.cache_clear()
    try:
        assert checksum.checksum(b"what") == checksum.murmur(b"what")
    finally:
        checksum._function.cache_clear()
