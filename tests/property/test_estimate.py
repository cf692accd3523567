"""What is expected of a peer follows from what it did, within its bounds."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dstore.core.estimate import PeerEstimate
from dstore.limits import HEDGE_SECONDS_MAX, HEDGE_SECONDS_MIN, HEDGE_SECONDS_UNKNOWN, MIB

DELAYS = st.lists(st.floats(0, 10), min_size=1, max_size=30)
RATES = st.lists(st.floats(1e3, 1e9), min_size=1, max_size=30)


def _seen(delays: list[float], rates: list[float]) -> PeerEstimate:
    estimate = PeerEstimate()
    for delay in delays:
        estimate.answered(delay)
    for rate in rates:
        estimate.moved(MIB, MIB / rate)
    return estimate


def test_a_peer_of_which_nothing_is_known_is_tried_and_not_waited_for_long() -> None:
    estimate = PeerEstimate()
    assert estimate.expected_seconds(MIB) == 0
    assert estimate.patience_seconds(MIB) == HEDGE_SECONDS_UNKNOWN


@given(DELAYS, RATES, st.integers(0, 64 * MIB))
def test_averages_stay_between_what_was_seen(
    delays: list[float], rates: list[float], size: int
) -> None:
    estimate = _seen(delays, rates)
    expected = estimate.expected_seconds(size)
    least = min(delays) + size / max(rates)
    most = max(delays) + size / min(rates)
    assert least * (1 - 1e-6) - 1e-9 <= expected <= most * (1 + 1e-6) + 1e-9
    assert HEDGE_SECONDS_MIN <= estimate.patience_seconds(size) <= HEDGE_SECONDS_MAX


@given(DELAYS, RATES, st.integers(0, 64 * MIB), st.integers(0, 64 * MIB))
def test_more_bytes_are_never_expected_sooner(
    delays: list[float], rates: list[float], size: int, more: int
) -> None:
    estimate = _seen(delays, rates)
    assert estimate.expected_seconds(size) <= estimate.expected_seconds(size + more)
    assert estimate.patience_seconds(size) <= estimate.patience_seconds(size + more)


def test_the_newest_answers_count_most() -> None:
    estimate = _seen([1.0] * 20, [1e6])
    for _ in range(10):
        estimate.answered(0.01)
    assert estimate.delay_seconds == pytest.approx(0.01, abs=0.1)


def test_one_answer_out_of_a_buffer_says_little() -> None:
    estimate = PeerEstimate()
    estimate.answered(0.01)
    estimate.moved(MIB, 0.1)
    estimate.moved(MIB, 1e-5)
    assert 0.05 < estimate.expected_seconds(MIB) < 0.2


def test_answers_without_bytes_or_time_teach_no_rate() -> None:
    estimate = PeerEstimate()
    estimate.moved(0, 1.0)
    estimate.moved(MIB, 0.0)
    assert estimate.seconds_per_byte is None
