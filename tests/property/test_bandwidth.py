"""Bandwidth limits as arithmetic: never more than the rate, in order, at once after a change."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dstore.core.bandwidth import DAY_MINUTES, Bucket, Limits, Period, limits_at
from dstore.limits import BANDWIDTH_BURST_BYTES, BANDWIDTH_BURST_SECONDS

RATES = st.floats(1e5, 1e9)
STEPS = st.lists(st.tuples(st.floats(0, 5), st.integers(1, 1 << 20)), min_size=1, max_size=60)


def _burst(rate: float) -> float:
    return max(rate * BANDWIDTH_BURST_SECONDS, BANDWIDTH_BURST_BYTES)


@given(RATES, STEPS)
def test_no_more_passes_than_the_rate_and_a_burst(
    rate: float, steps: list[tuple[float, int]]
) -> None:
    bucket, now, passed = Bucket(rate), 0.0, 0
    begun: float | None = None
    for pause, size in steps:
        now += pause
        begun = now if begun is None else begun
        now += bucket.seconds_until(bucket.take(size, now), now)
        passed += size
        assert passed <= _burst(rate) + rate * (now - begun) * (1 + 1e-9) + 1


@given(RATES, STEPS)
def test_whoever_takes_first_goes_first_and_a_ticket_that_was_waited_for_is_due(
    rate: float, steps: list[tuple[float, int]]
) -> None:
    bucket, now = Bucket(rate), 0.0
    tickets = []
    for pause, size in steps:
        now += pause / 100
        tickets.append(bucket.take(size, now))
    waits = [bucket.seconds_until(ticket, now) for ticket in tickets]
    assert waits == sorted(waits)
    assert bucket.seconds_until(tickets[-1], now + waits[-1]) == pytest.approx(0, abs=1e-6)


@given(RATES, st.integers(1, 1 << 30), RATES)
def test_a_new_rate_holds_for_those_who_wait(rate: float, size: int, other: float) -> None:
    bucket = Bucket(rate)
    bucket.take(int(_burst(rate)) + 1, 0.0)
    ticket = bucket.take(size, 0.0)
    before = bucket.seconds_until(ticket, 0.0)
    bucket.set_rate(other, 0.0)
    assert bucket.seconds_until(ticket, 0.0) * other == pytest.approx(before * rate, rel=1e-6)
    bucket.set_rate(math.inf, 0.0)
    assert bucket.seconds_until(ticket, 0.0) == 0
    # No debt of the time without a limit is asked for later.
    bucket.take(1 << 40, 1.0)
    bucket.set_rate(rate, 2.0)
    assert bucket.seconds_until(bucket.take(1, 2.0), 2.0) <= 2 / rate


MINUTES = st.integers(0, DAY_MINUTES - 1)


@given(st.frozensets(st.integers(0, 6)), MINUTES, MINUTES, st.integers(0, 6), MINUTES)
def test_a_period_holds_in_its_minutes_alone(
    days: frozenset[int], start: int, end: int, day: int, minute: int
) -> None:
    """Against the week minute by minute."""
    length = (end - start) % DAY_MINUTES
    week = {
        (first * DAY_MINUTES + start + step) % (7 * DAY_MINUTES)
        for first in days
        for step in (range(length) if length else ())
    }
    period = Period(days, start, end, Limits())
    assert period.holds(day, minute) == ((day * DAY_MINUTES + minute) in week)


def test_the_first_period_that_holds_counts() -> None:
    always = frozenset(range(7))
    night = Period(always, 22 * 60, 6 * 60, Limits(up=2))
    morning = Period(always, 5 * 60, 8 * 60, Limits(up=3))
    base = Limits(up=1)
    hours = [limits_at(base, [night, morning], 0, hour * 60).up for hour in (4, 5, 6, 9, 23)]
    assert hours == [2, 2, 3, 1, 2]
