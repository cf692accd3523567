"""Every input that is kept, replayed: what once broke a decoder does not again.

The search for new ones is `make fuzz` (30 seconds a target) and `make soak` (10 minutes).
"""

from __future__ import annotations

import pytest

from tests.fuzz import corpus
from tests.fuzz.target import MODULES, load, run_bounded


@pytest.mark.parametrize("name", MODULES)
def test_inputs_that_are_kept(name: str) -> None:
    target = load(name)
    run_bounded(target, b"", weigh=False)  # what is made once is not weighed
    for data in corpus.inputs(name):
        assert len(data) <= target.bytes_max
        run_bounded(target, data, weigh=True)
