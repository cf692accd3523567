"""Random fault schedules: fifty in every run, a thousand more under `make soak`."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.sim.schedule import LASTING, PASSING, Outcome, run_schedule

_OUTCOMES: list[Outcome] = []


@pytest.mark.parametrize("seed", range(50))
def test_acknowledged_adds_stay_readable(seed: int) -> None:
    _OUTCOMES.append(run_schedule(seed))


def test_the_schedules_are_not_all_trivial() -> None:
    """Most adds are acknowledged in spite of their faults, and read in spite of more; every
    kind of fault has been there."""
    outcomes = _OUTCOMES if len(_OUTCOMES) == 50 else [run_schedule(seed) for seed in range(50)]
    assert sum(outcome.protected for outcome in outcomes) >= 25
    assert sum(outcome.reads for outcome in outcomes) >= 50
    assert sum(outcome.partitioned for outcome in outcomes) >= 5
    kinds = Counter(kind for outcome in outcomes for kind in outcome.kinds)
    assert set(kinds) == {*LASTING, *PASSING, "partition"}


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(1000, 2000))
def test_acknowledged_adds_stay_readable_soak(seed: int) -> None:
    run_schedule(seed)
