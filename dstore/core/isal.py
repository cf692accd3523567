"""ISA-L, Intel's storage library, as an engine of `core.erasure`, through cffi.

The library is the system's, or the copy inside the pinned pyeclib wheel; either is used only
after it has reproduced known parity bytes.  pyeclib's own interface is never called: it
trusts the headers of what it decodes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, files
from typing import Any, Final, TypeAlias

import cffi

from dstore.core.galois import parity_rows

Buffer: TypeAlias = bytes | bytearray | memoryview

_DECLARATIONS: Final = """
    void ec_init_tables(int k, int rows, unsigned char *a, unsigned char *gftbls);
    void ec_encode_data(int len, int k, int rows, unsigned char *gftbls,
                        unsigned char **data, unsigned char **coding);
"""
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

    def __init__(self, ffi: cffi.FFI, library: Any, name: str) -> None:
        self._ffi = ffi
        self._library = library
        self._name = name

    @property
    def name(self) -> str:
        return self._name

    def combine(self, rows: Sequence[bytes], sources: Sequence[Buffer], length: int) -> list[bytes]:
        ffi, columns = self._ffi, len(sources)
        matrix = ffi.from_buffer("unsigned char[]", b"".join(rows))
        tables = ffi.new("unsigned char[]", _TABLE_BYTES * columns * len(rows))
        self._library.ec_init_tables(columns, len(rows), matrix, tables)
        # The lists keep the buffers alive during the call.
        pinned = [ffi.from_buffer("unsigned char[]", source) for source in sources]
        # Filled in place before anybody else sees them, as C extensions fill new bytes objects:
        # a copy of each would be made, and its memory touched first, with the GIL held.
        results = [bytes(length) for _ in rows]
        targets = [ffi.from_buffer("unsigned char[]", result) for result in results]
        self._library.ec_encode_data(
            length,
            columns,
            len(rows),
            tables,
            ffi.new("unsigned char *[]", pinned),
            ffi.new("unsigned char *[]", targets),
        )
        return results


def load() -> IsalEngine | None:
    """The first ISA-L that can be loaded and passes the self-test; None where there is none."""
    ffi = cffi.FFI()
    ffi.cdef(_DECLARATIONS)
    for path, name in candidates():
        try:
            library = ffi.dlopen(path)
            engine = IsalEngine(ffi, library, name)
            if _self_test(engine):
                return engine
        except (OSError, AttributeError):  # not there, or without the functions
            continue
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
