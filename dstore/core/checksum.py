"""A checksum for bytes that were right a moment ago: it tells what an accident did to them.

CRC-64/XZ by ISA-L, three times as fast as what else there is; MurmurHash3 where that library is
missing.  It stays within the process that computed it and proves nothing to anybody.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from typing import Final

import mmh3

# Of the nine digits: what every implementation of CRC-64/XZ is checked by.
_CHECKED: Final = b"123456789"
_CHECK: Final = 0x995DC9BBDF1939FA


def checksum(data: bytes) -> int:
    """64 bits.  Releases the GIL where ISA-L is at hand."""
    return _function()(data)


def murmur(data: bytes) -> int:
    """64 bits of MurmurHash3, with the GIL held."""
    found: int = mmh3.hash64(data, signed=False)[0]
    return found


def crc64() -> Callable[[bytes], int] | None:
    """CRC-64/XZ; None where there is no ISA-L that has it and passes the check."""
    # Imported here: finding the library takes longer than most commands have to wait.
    from dstore.core import isal

    for path, _ in isal.candidates():
        try:
            function = ctypes.CDLL(path).crc64_ecma_refl
        except (OSError, AttributeError):  # not there, or without the function
            continue
        function.restype = ctypes.c_uint64
        function.argtypes = (ctypes.c_uint64, ctypes.c_char_p, ctypes.c_uint64)

        def compute(data: bytes, function: Callable[[int, bytes, int], int] = function) -> int:
            return function(0, data, len(data))

        if compute(_CHECKED) == _CHECK:
            return compute
    return None


@cache
def _function() -> Callable[[bytes], int]:
    return crc64() or murmur
