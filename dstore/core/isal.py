"""ISA-L, Intel's storage library, as an engine of `core.erasure`, through ctypes.

The library is the system's, or the copy inside the pinned pyeclib wheel; either is used only
after it has reproduced known parity bytes.  pyeclib's own interface is never called: it
trusts the headers of what it decodes.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, files
from typing import Final

from dstore.core.galois import parity_rows

# A bytes object to be filled, as the C API gives it to extensions: `bytes(n)` would write zeros
# first, a fiftieth of the processor time of an add.
_new_bytes: Final = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_char_p, ctypes.c_ssize_t)(
    ("PyBytes_FromStringAndSize", ctypes.pythonapi)
)

_SYSTEM_NAME: Final = "libisal.so.2"
_TABLE_BYTES: Final = 32  # per coefficient

# 3+2 over bytes 0..44, 45..89, 90..134, computed by the formula alone.  Longer than a vector
# register and no multiple of one, so that the fast loop and its tail are both seen.
_SELF_TEST_LENGTH: Final = 45
_SELF_TEST_PARITY: Final = (
    "c2b830443f45f58d057ff78bf08a0a72017bf3b7ccb6265ed6ac24582359d9a13943cbbfc4beceb63e44ccb0cb",
    "12dbce52b37a90ff1cd5c0fe1fd6345bbc756017f63f2e41a26b7e40a1688ae50ac3d64aab62a8c724edf8c627",
)


class IsalEngine:
    """Calls into the library release the GIL."""

    def __init__(self, library: ctypes.CDLL, name: str) -> None:
        number, pointer = ctypes.c_int, ctypes.c_void_p
        self._init_tables = library.ec_init_tables
        self._init_tables.argtypes = (number, number, ctypes.c_char_p, pointer)
        self._init_tables.restype = None
        self._encode_data = library.ec_encode_data
        self._encode_data.argtypes = (number, number, number, pointer, pointer, pointer)
        self._encode_data.restype = None
        self._name = name

    @property
    def name(self) -> str:
        return self._name

    def combine(self, rows: Sequence[bytes], sources: Sequence[bytes], length: int) -> list[bytes]:
        columns, count = len(sources), len(rows)
        tables = ctypes.create_string_buffer(_TABLE_BYTES * columns * count)
        self._init_tables(columns, count, b"".join(rows), tables)
        # Filled in place before anybody else sees them: a copy of each would be made, and its
        # memory touched first, with the GIL held.
        results: list[bytes] = [_new_bytes(None, length) for _ in rows]
        # Arrays of addresses; they and the lists keep the bytes alive during the call.
        given, wanted = (ctypes.c_char_p * columns)(*sources), (ctypes.c_char_p * count)(*results)
        self._encode_data(length, columns, count, tables, given, wanted)
        return results


def load() -> IsalEngine | None:
    """The first ISA-L that can be loaded and passes the self-test; None where there is none."""
    for path, name in candidates():
        try:
            engine = IsalEngine(ctypes.CDLL(path), name)
        except (OSError, AttributeError):  # not there, or without the functions
            continue
        if _self_test(engine):
            return engine
    return None


def candidates() -> Iterator[tuple[str, str]]:
    """Where the library may be, and what to call it."""
    yield _SYSTEM_NAME, f"isa-l ({_SYSTEM_NAME})"
    try:
        installed = files("pyeclib") or []
    except PackageNotFoundError:
        return
    for file in installed:
        if file.name.startswith("libisal"):
            yield str(file.locate()), "isa-l (pyeclib)"


def _self_test(engine: IsalEngine) -> bool:
    length = _SELF_TEST_LENGTH
    data = [bytes(range(length * i, length * (i + 1))) for i in range(3)]
    parity = engine.combine(parity_rows(3, 2, 3), data, length)
    return tuple(row.hex() for row in parity) == _SELF_TEST_PARITY
