"""Systematic Reed-Solomon over GF(2^8) with a Cauchy matrix: bytes in, bytes out.

What is computed is fixed by formula, whatever computes it: ISA-L through ctypes, or numpy
where there is none; the two agree on every byte.  This file knows nothing of CIDs, stores or
files.  Format: docs/reference/formats.md, "Erasure coding".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Protocol

from dstore.core.galois import parity_rows, recovery_rows
from dstore.errors import MalformedBlock, Unrecoverable
from dstore.limits import BLOCK_BYTES_MAX, FRAGMENTS_PER_STRIPE_MAX


class Engine(Protocol):
    """Linear combinations of blocks over GF(2^8)."""

    @property
    def name(self) -> str:
        """The library and where it comes from."""
        ...

    def combine(self, rows: Sequence[bytes], sources: Sequence[bytes], length: int) -> list[bytes]:
        """For each row the sum of row[j] * sources[j], bytewise.

        `sources` all have `length` >= 1 bytes, each row has a coefficient for every one.
        """
        ...


def encode(k: int, m: int, data: Sequence[bytes], length: int) -> list[bytes]:
    """The m parity fragments, of `length` bytes each, of 1 to k data blocks.

    Blocks shorter than `length` count as padded with zeros; the missing members of a short
    stripe count as zeros.  Releases the GIL while it works (ISA-L); call it in a worker
    thread.  Raises ValueError for numbers that no stripe can have.
    """
    _check(k, m, len(data), length)
    if m == 0:
        return []
    sources = [_padded(block, length) for block in data]
    return engine().combine(parity_rows(k, m, len(data)), sources, length)


def reconstruct(
    k: int,
    m: int,
    fragments: Mapping[int, bytes],
    wanted: Sequence[int],
    length: int,
    data_count: int,
) -> dict[int, bytes]:
    """The wanted fragments of a stripe, from any `data_count` of those it has.

    `fragments` maps index (data 0..data_count-1, parity k..k+m-1) to bytes; those shorter
    than `length` count as padded with zeros, and those that are not needed are not looked
    at.  Results have `length` bytes: the caller cuts a data block to its size.  Members from
    `data_count` to k - 1 are zeros, and come back as such.  Nothing here can tell wrong bytes
    from right ones: check the results against their CIDs.  Raises Unrecoverable where there
    are too few fragments, MalformedBlock where one of those used is longer than `length` (the
    segment lies about sizes), ValueError for numbers that no stripe can have.
    """
    _check(k, m, data_count, length)
    if not all(0 <= index < k + m for index in (*fragments, *wanted)):
        raise ValueError(f"fragment indices are 0 to {k + m - 1}")
    available = sorted(index for index in fragments if index < data_count or index >= k)
    if len(available) < data_count:
        raise Unrecoverable(
            f"a stripe of {data_count} data blocks needs as many fragments; "
            f"{len(available)} are at hand"
        )
    chosen = tuple(available[:data_count])
    if longer := [index for index in chosen if len(fragments[index]) > length]:
        raise MalformedBlock(f"fragments {longer} are longer than their stripe, {length} bytes")
    results = {index: bytes(length) for index in wanted if data_count <= index < k}
    solving = tuple(sorted(index for index in set(wanted) if index not in results))
    if solving:
        rows = recovery_rows(k, m, data_count, chosen, solving)
        sources = [_padded(fragments[index], length) for index in chosen]
        made = engine().combine(rows, sources, length)
        results.update(zip(solving, made, strict=True))
    return {index: results[index] for index in wanted}


def engine_name() -> str:
    """Which engine computes, for `dstore version` and the metrics."""
    return engine().name


@cache
def engine() -> Engine:
    """The fastest engine that is here and passes its self-test; chosen on first use."""
    # Imported here: numpy, and finding ISA-L, cost time that most commands need not pay.
    from dstore.core import isal

    found = isal.load()
    if found is not None:
        return found
    from dstore.core.erasure_numpy import NumpyEngine

    return NumpyEngine()


def _check(k: int, m: int, data_count: int, length: int) -> None:
    if k < 1 or m < 0 or k + m > FRAGMENTS_PER_STRIPE_MAX:
        raise ValueError(f"no such code: {k}+{m}")
    if not 1 <= data_count <= k:
        raise ValueError(f"a stripe of {data_count} data blocks at {k}+{m}")
    if not 1 <= length <= BLOCK_BYTES_MAX:
        raise ValueError(f"fragments of {length} bytes")


def _padded(block: bytes, length: int) -> bytes:
    """The block itself where it has the length, else a copy with zeros behind it."""
    size = len(block)
    if size == length:
        return block
    if size > length:
        raise ValueError(f"a block of {size} bytes in a stripe of {length}")
    return block.ljust(length, b"\0")
