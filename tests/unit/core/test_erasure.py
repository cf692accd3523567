"""Reed-Solomon: the formula, both engines, every way to lose fragments, pinned parity."""

from __future__ import annotations

import hashlib
import itertools
import json
import random
from pathlib import Path
from typing import cast

import pytest
from pyeclib.ec_iface import ECDriver

from dstore.core import erasure, isal
from dstore.core.erasure import Engine
from dstore.core.erasure_numpy import NumpyEngine
from dstore.core.galois import parity_rows
from dstore.errors import MalformedBlock, Unrecoverable
from dstore.limits import BLOCK_BYTES_MAX

VECTORS = Path(__file__).parents[2] / "vectors" / "erasure.json"


def multiply(a: int, b: int) -> int:
    product = 0
    while b:
        product ^= a * (b & 1)
        a, b = a << 1 ^ (0x11D if a & 0x80 else 0), b >> 1
    return product


TABLE = [[multiply(a, b) for b in range(256)] for a in range(256)]
INVERSE = [0] + [row.index(1) for row in TABLE[1:]]


def oracle(k: int, m: int, data: list[bytes], length: int) -> list[bytes]:
    """The definition, byte by byte: what any implementation must give."""
    padded = [block.ljust(length, b"\0") for block in data] + [bytes(length)] * (k - len(data))
    parity = []
    for i in range(m):
        row = bytearray(length)
        for j, block in enumerate(padded):
            products = TABLE[INVERSE[(k + i) ^ j]]
            row = bytearray(old ^ products[new] for old, new in zip(row, block, strict=True))
        parity.append(bytes(row))
    return parity


def engines() -> list[Engine]:
    found = isal.load()
    assert found is not None, "pyeclib is a dependency: ISA-L must load"
    return [found, NumpyEngine()]


@pytest.fixture(params=engines(), ids=["isal", "numpy"])
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Engine:
    chosen = cast(Engine, request.param)
    monkeypatch.setattr(erasure, "engine", lambda: chosen)
    return chosen


def blocks(count: int, length: int, seed: int = 0) -> list[bytes]:
    source = random.Random(seed)
    return [source.randbytes(length) for _ in range(count)]


@pytest.mark.parametrize("length", [1, 2, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 129, 1000])
@pytest.mark.parametrize(("k", "m"), [(1, 1), (1, 5), (3, 2), (4, 2), (10, 4), (20, 10)])
@pytest.mark.usefixtures("engine")
def test_parity_is_the_formula(k: int, m: int, length: int) -> None:
    data = blocks(k, length)
    assert erasure.encode(k, m, data, length) == oracle(k, m, data, length)


@pytest.mark.usefixtures("engine")
def test_short_blocks_and_short_stripes_count_as_zeros() -> None:
    data = [b"abcdefgh" * 8, b"xyz", b"\xff"]
    assert erasure.encode(5, 3, data, 64) == oracle(5, 3, data, 64)
    full = [*(block.ljust(64, b"\0") for block in data), bytes(64), bytes(64)]
    assert erasure.encode(5, 3, data, 64) == erasure.encode(5, 3, full, 64)


@pytest.mark.usefixtures("engine")
def test_the_largest_codes() -> None:
    for k, m in ((1, 254), (254, 1), (128, 127)):
        data = blocks(k, 33)
        parity = erasure.encode(k, m, data, 33)
        assert parity == oracle(k, m, data, 33)
        fragments = dict(enumerate(data + parity))
        lost = random.Random(k).sample(range(k + m), m)
        kept = {index: fragments[index] for index in fragments if index not in lost}
        assert erasure.reconstruct(k, m, kept, lost, 33, k) == {i: fragments[i] for i in lost}


@pytest.mark.parametrize(
    ("k", "m", "count"), [(1, 2, 1), (3, 2, 3), (4, 3, 4), (4, 3, 2), (5, 2, 1)]
)
@pytest.mark.usefixtures("engine")
def test_every_choice_of_fragments_gives_all_others(k: int, m: int, count: int) -> None:
    data = blocks(count, 40)
    parity = erasure.encode(k, m, data, 40)
    stripe = dict(enumerate(data)) | {k + row: block for row, block in enumerate(parity)}
    for chosen in itertools.combinations(sorted(stripe), count):
        kept = {index: stripe[index] for index in chosen}
        assert erasure.reconstruct(k, m, kept, sorted(stripe), 40, count) == stripe


@pytest.mark.usefixtures("engine")
def test_reconstruct_takes_fragments_unpadded_and_keeps_the_order_asked_for() -> None:
    data = [b"a" * 50, b"b" * 20, b"c" * 7]
    parity = erasure.encode(3, 2, data, 50)
    kept = {1: data[1], 3: parity[0], 4: parity[1]}
    made = erasure.reconstruct(3, 2, kept, [2, 0, 1], 50, 3)
    assert list(made) == [2, 0, 1]
    assert [made[index].rstrip(b"\0") for index in range(3)] == data


def test_members_that_a_short_stripe_lacks_are_zeros() -> None:
    parity = erasure.encode(4, 1, [b"only"], 4)
    assert erasure.reconstruct(4, 1, {4: parity[0]}, [0, 3], 4, 1) == {0: b"only", 3: bytes(4)}
    # What somebody sends in such a place is not looked at.
    assert erasure.reconstruct(4, 1, {2: b"fake", 4: parity[0]}, [0], 4, 1) == {0: b"only"}


def test_too_few_fragments() -> None:
    data = blocks(4, 10)
    parity = erasure.encode(4, 2, data, 10)
    with pytest.raises(Unrecoverable, match="4 data blocks"):
        erasure.reconstruct(4, 2, {0: data[0], 1: data[1], 5: parity[1]}, [2], 10, 4)


def test_wrong_bytes_give_wrong_bytes_and_no_crash() -> None:
    data = blocks(4, 100)
    parity = erasure.encode(4, 2, data, 100)
    kept = {0: b"", 1: data[1], 2: bytes(100), 4: parity[0], 5: parity[1]}
    made = erasure.reconstruct(4, 2, kept, [3], 100, 4)
    assert len(made[3]) == 100
    assert made[3] != data[3]


@pytest.mark.parametrize(
    ("k", "m", "data", "length"),
    [
        (0, 1, [], 1),
        (1, -1, [b"a"], 1),
        (200, 56, [b"a"], 1),
        (2, 1, [], 1),
        (2, 1, [b"a"] * 3, 1),
        (2, 1, [b"a"], 0),
        (2, 1, [b"a"], BLOCK_BYTES_MAX + 1),
        (2, 1, [b"ab"], 1),
    ],
)
def test_numbers_that_no_stripe_has(k: int, m: int, data: list[bytes], length: int) -> None:
    with pytest.raises(ValueError):
        erasure.encode(k, m, data, length)


def test_indices_outside_the_stripe_are_refused() -> None:
    for fragments, wanted in (({6: b"a"}, [0]), ({-1: b"a"}, [0]), ({0: b"a"}, [6])):
        with pytest.raises(ValueError, match="indices"):
            erasure.reconstruct(4, 2, fragments, wanted, 1, 1)


def test_fragments_longer_than_their_segment_says_are_the_datas_fault() -> None:
    """A lying segment: the fragment has the CID that it lists, and not the size."""
    with pytest.raises(MalformedBlock, match="longer"):
        erasure.reconstruct(1, 1, {0: b"ab"}, [1], 1, 1)
    # One that is not needed does no harm.
    assert erasure.reconstruct(1, 1, {0: b"a", 1: b"long"}, [0], 1, 1) == {0: b"a"}


def test_no_parity_is_a_code_too() -> None:
    assert erasure.encode(3, 0, [b"a", b"b"], 1) == []


def test_pyeclib_makes_the_same_parity() -> None:
    """An independent user of the same matrix; its fragments carry a header of 80 bytes."""
    for k, m in ((4, 2), (10, 4), (20, 10)):
        length = 4096
        data = blocks(k, length, seed=k)
        driver = ECDriver(k=k, m=m, ec_type="isa_l_rs_cauchy")
        theirs = [fragment[80 : 80 + length] for fragment in driver.encode(b"".join(data))[k:]]
        assert erasure.encode(k, m, data, length) == theirs


def test_pinned_parity() -> None:
    """tests/vectors/erasure.json: data block j is SHA-256 in counter mode over "block j"."""
    for vector in json.loads(VECTORS.read_text()):
        k, m, sizes = vector["k"], vector["m"], vector["sizes"]
        data = [
            b"".join(
                hashlib.sha256(f"block {j} {counter}".encode()).digest()
                for counter in range(-(-size // 32))
            )[:size]
            for j, size in enumerate(sizes)
        ]
        parity = erasure.encode(k, m, data, max(sizes))
        assert [hashlib.sha256(row).hexdigest() for row in parity] == vector["parity_sha256"]


def test_matrix_rows_are_those_of_the_published_formula() -> None:
    # inverse((4 + i) XOR j): inverses of 4 5 6 7, then of 5 4 7 6.
    rows = parity_rows(4, 2, 4)
    assert [row.hex() for row in rows] == ["47a77aba", "a747ba7a"]
    assert [TABLE[row[j]][(4 + i) ^ j] for i, row in enumerate(rows) for j in range(4)] == [1] * 8


def test_the_engine_has_a_name_and_isal_is_found() -> None:
    assert erasure.engine_name().startswith("isa-l")
    assert NumpyEngine().name.startswith("numpy")


@pytest.mark.parametrize("length", [1, 15, 16, 31, 33, 100, 1000])
def test_every_byte_of_a_result_is_written(length: int, engine: Engine) -> None:
    """Results begin as memory that somebody else has left."""
    data = blocks(2, length)
    for _ in range(8):
        left = [b"\xff" * length for _ in range(8)]
        del left
        assert engine.combine([b"\0\0", b"\1\0"], data, length) == [bytes(length), data[0]]
    assert data == blocks(2, length)


def test_a_library_that_computes_wrongly_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isal.IsalEngine, "combine", lambda *_: [b"wrong", b"wrong"])
    assert isal.load() is None


def test_without_isal_numpy_takes_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isal, "candidates", lambda: [("libno-such.so.9", "none")])
    erasure.engine.cache_clear()
    try:
        assert erasure.engine_name().startswith("numpy")
    finally:
        erasure.engine.cache_clear()
