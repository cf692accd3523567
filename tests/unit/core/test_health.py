"""Live, away, gone; healthy to unreachable: every rule of the durability design, and brute
force over all states of small segments."""

from __future__ import annotations

import itertools

import pytest

from dstore.core.guarantee import shape
from dstore.core.health import (
    SegmentState,
    SlotEvidence,
    SlotState,
    best_state,
    repair_threshold,
    segment_state,
    slot_state,
    suspect_own_connection,
    worst_state,
)
from dstore.core.manifest import Code
from dstore.limits import AT_RISK_SECONDS, AWAY_SECONDS, HEALTH_CHECK_SECONDS

NOW = 1_800_000_000.0
LATER = NOW + 30 * 86_400


@pytest.mark.parametrize(
    ("evidence", "expected"),
    [
        (SlotEvidence(NOW, LATER), "live"),
        (SlotEvidence(NOW, LATER, audit_passed=True), "live"),
        (SlotEvidence(NOW + 300, LATER), "live"),  # clocks differ
        (SlotEvidence(NOW - HEALTH_CHECK_SECONDS, LATER), "live"),
        (SlotEvidence(NOW - HEALTH_CHECK_SECONDS - 1, LATER), "away"),
        (SlotEvidence(NOW - AWAY_SECONDS + 1, LATER), "away"),
        (SlotEvidence(NOW - AWAY_SECONDS, LATER), "gone"),
        (SlotEvidence(NOW - AWAY_SECONDS, LATER, away_until=NOW + 1), "away"),
        (SlotEvidence(NOW - AWAY_SECONDS, LATER, away_until=NOW), "gone"),
        (SlotEvidence(None, LATER), "gone"),
        (SlotEvidence(None, LATER, away_until=NOW + 1), "away"),
        (SlotEvidence(NOW, None), "gone"),
        (SlotEvidence(NOW, NOW), "gone"),
        (SlotEvidence(NOW, LATER, audit_passed=False), "gone"),
    ],
)
def test_slot_state(evidence: SlotEvidence, expected: SlotState) -> None:
    assert slot_state(evidence, NOW) == expected


def test_interval_is_the_callers() -> None:
    assert slot_state(SlotEvidence(NOW - 90, LATER), NOW, interval_seconds=60) == "away"


def test_the_best_holder_decides() -> None:
    assert best_state(["gone", "live", "away"]) == "live"
    assert best_state(["gone", "away"]) == "away"
    assert best_state([]) == "gone"


@pytest.mark.parametrize(
    ("code", "r"), [("4+2", 5), ("10+4", 12), ("20+20", 30), ("2+1", 2), ("1+1", 1), ("3+0", 2)]
)
def test_repair_threshold(code: str, r: int) -> None:
    assert repair_threshold(Code.parse(code)) == r


@pytest.mark.parametrize(
    ("code", "states", "expected"),
    [
        ("4+2", "LLLLLL", "healthy"),
        ("4+2", "LLLLLA", "degraded"),  # one away: nothing is lost yet
        ("4+2", "LLLLLG", "at risk"),  # r is 5
        ("4+2", "LLLLAA", "degraded"),
        ("4+2", "LLLLGG", "at risk"),
        ("4+2", "LLLAAA", "unreachable"),
        ("4+2", "LLLGGG", "unreachable"),
        ("10+4", "LLLLLLLLLLLLLG", "degraded"),
        ("10+4", "LLLLLLLLLLLLGG", "at risk"),
        ("2+1", "LLL", "healthy"),
        ("2+1", "LLA", "degraded"),
        ("2+1", "LLG", "at risk"),
        ("1+1", "LG", "at risk"),
        ("2+0", "LL", "healthy"),
        ("2+0", "LA", "unreachable"),
    ],
)
def test_segment_state(code: str, states: str, expected: SegmentState) -> None:
    km = Code.parse(code)
    names: dict[str, SlotState] = {"L": "live", "A": "away", "G": "gone"}
    slots = {slot: names[letter] for slot, letter in enumerate(states)}
    assert segment_state(km, [shape(km.k, km)], slots) == expected


def test_no_slot_to_spare_for_an_hour_is_at_risk() -> None:
    code = Code(4, 2)
    slots: dict[int, SlotState] = dict.fromkeys(range(4), "live")
    slots |= {4: "away", 5: "away"}
    shapes = [shape(4, code)]
    assert segment_state(code, shapes, slots, AT_RISK_SECONDS - 1) == "degraded"
    assert segment_state(code, shapes, slots, AT_RISK_SECONDS) == "at risk"
    slots[4] = "live"  # one to spare
    assert segment_state(code, shapes, slots, AT_RISK_SECONDS) == "degraded"


def test_slots_that_do_not_exist_are_no_loss() -> None:
    code = Code(4, 2)
    shapes = [shape(1, code)]  # slots 0, 4 and 5
    assert segment_state(code, shapes, {0: "live", 4: "live", 5: "live"}) == "healthy"
    assert segment_state(code, shapes, {0: "live", 4: "live"}) == "at risk"
    assert segment_state(code, shapes, {5: "live"}) == "at risk"
    assert segment_state(code, shapes, {1: "live"}) == "unreachable"


def test_short_stripes_beside_full_ones() -> None:
    code = Code(2, 1)
    shapes = [shape(2, code), shape(1, code)]
    assert segment_state(code, shapes, {0: "live", 2: "live"}) == "at risk"
    assert segment_state(code, shapes, {0: "live", 1: "live"}) == "at risk"
    # Slot 1 alone of two: the short stripe has no fragment there.
    assert segment_state(Code(2, 0), [shape(1, Code(2, 0))], {0: "live"}) == "healthy"


@pytest.mark.parametrize("code", [Code(1, 1), Code(2, 1), Code(2, 2), Code(3, 2), Code(1, 3)])
def test_all_states_of_small_segments(code: Code) -> None:
    """Readability by decoding's own rule; and losing more never looks better."""
    order: list[SegmentState] = ["healthy", "degraded", "at risk", "unreachable"]
    worse: dict[SlotState, SlotState] = {"live": "away", "away": "gone"}
    for counts in [(code.k,), (1,), (1, code.k)]:
        shapes = [shape(count, code) for count in counts]
        choices: list[SlotState] = ["live", "away", "gone"]
        for states in itertools.product(choices, repeat=code.n):
            slots = dict(enumerate(states))
            state = segment_state(code, shapes, slots)
            live = {slot for slot in slots if slots[slot] == "live"}
            readable = all(len(one.slots & live) >= one.data_count for one in shapes)
            assert (state == "unreachable") == (not readable)
            for slot, was in slots.items():
                if was in worse:
                    after = segment_state(code, shapes, slots | {slot: worse[was]})
                    assert order.index(after) >= order.index(state)


def test_a_file_is_as_healthy_as_its_worst_segment() -> None:
    assert worst_state(["healthy", "at risk", "degraded"]) == "at risk"
    assert worst_state(["unreachable", "healthy"]) == "unreachable"
    assert worst_state([]) == "healthy"


@pytest.mark.parametrize(
    ("failed", "contacted", "expected"),
    [(0, 0, False), (0, 10, False), (3, 10, False), (4, 10, True), (1, 3, True), (1, 1, True)],
)
def test_suspect_own_connection(failed: int, contacted: int, expected: bool) -> None:
    assert suspect_own_connection(failed, contacted) is expected
