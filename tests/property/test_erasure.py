"""Both engines agree on every byte, and any data_count fragments give back the stripe."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dstore.core import erasure, isal
from dstore.core.erasure_numpy import NumpyEngine

ISAL = isal.load()
assert ISAL is not None
NUMPY = NumpyEngine()


@given(st.data())
def test_the_engines_agree(data: st.DataObject) -> None:
    length = data.draw(st.integers(1, 300))
    sources = data.draw(
        st.lists(st.binary(min_size=length, max_size=length), min_size=1, max_size=6)
    )
    width = len(sources)
    rows = data.draw(st.lists(st.binary(min_size=width, max_size=width), min_size=1, max_size=9))
    assert ISAL is not None
    assert ISAL.combine(rows, sources, length) == NUMPY.combine(rows, sources, length)


@given(st.data())
def test_any_sufficient_fragments_give_back_the_stripe(data: st.DataObject) -> None:
    k, m = data.draw(st.integers(1, 12)), data.draw(st.integers(0, 8))
    blocks = data.draw(st.lists(st.binary(min_size=1, max_size=80), min_size=1, max_size=k))
    length = max(len(block) for block in blocks)
    parity = erasure.encode(k, m, blocks, length)
    stripe = dict(enumerate(blocks)) | {k + row: block for row, block in enumerate(parity)}
    kept = data.draw(st.permutations(sorted(stripe)))[: len(blocks)]
    wanted = data.draw(st.permutations(sorted(stripe)))
    made = erasure.reconstruct(
        k, m, {index: stripe[index] for index in kept}, wanted, length, len(blocks)
    )
    assert {index: bytes(block) for index, block in made.items()} == {
        index: block.ljust(length, b"\0") for index, block in stripe.items()
    }
