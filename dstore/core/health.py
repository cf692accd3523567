"""How well slots, segments and files are: live, away or gone; healthy to unreachable.

Pure functions of what was observed and the time.  They decide what is true, not what to do
about it: repair plans are made elsewhere.  Nothing is ever deleted on the word `unreachable`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Literal

from dstore.core.guarantee import StripeShape
from dstore.core.manifest import Code
from dstore.limits import AT_RISK_SECONDS, AWAY_SECONDS, HEALTH_CHECK_SECONDS

SlotState = Literal["live", "away", "gone"]
SegmentState = Literal["healthy", "degraded", "at risk", "unreachable"]

_SLOT_ORDER: Final[tuple[SlotState, ...]] = ("live", "away", "gone")
_SEGMENT_ORDER: Final[tuple[SegmentState, ...]] = (
    "healthy",
    "degraded",
    "at risk",
    "unreachable",
)


@dataclass(frozen=True, slots=True)
class SlotEvidence:
    """What is known of one holder's hold on one slot; times are unix seconds.

    `answered` is when the holder last answered, None for never; `lease_expires` None where
    the lease was refused or lost; `audit_passed` the result of the last audit, None before
    the first; `away_until` the end of an absence that the holder declared beforehand.
    """

    answered: float | None
    lease_expires: float | None
    audit_passed: bool | None = None
    away_until: float | None = None


def slot_state(
    evidence: SlotEvidence, now: float, interval_seconds: float = HEALTH_CHECK_SECONDS
) -> SlotState:
    """The state of a slot at one holder.

    An answer counts for `interval_seconds`; silence is forgiven for 72 h, and for as long as
    it was declared.  A failed audit or a lost or ended lease is final until the contrary is
    seen.
    """
    if evidence.audit_passed is False:
        return "gone"
    if evidence.lease_expires is None or evidence.lease_expires <= now:
        return "gone"
    silence = float("inf") if evidence.answered is None else now - evidence.answered
    if silence <= interval_seconds:
        return "live"
    declared = evidence.away_until is not None and now < evidence.away_until
    return "away" if declared or silence < AWAY_SECONDS else "gone"


def best_state(states: Iterable[SlotState]) -> SlotState:
    """The state of a slot from those at its holders: the best; gone where there are none."""
    return min(states, key=_SLOT_ORDER.index, default="gone")


def repair_threshold(code: Code) -> int:
    """r: a segment with so few slots left, or fewer, is repaired now.  Half of the parity is
    spent then; a code with one parity slot waits until it is lost."""
    return min(code.k + -(-code.m // 2), code.n - 1)


def segment_state(
    code: Code,
    shapes: Iterable[StripeShape],
    slots: Mapping[int, SlotState],
    low_seconds: float = 0.0,
) -> SegmentState:
    """The state of a segment from those of its slots.

    Slots absent from `slots` are gone, unless no stripe has a fragment there: such a slot
    is made of zeros that everybody has, and counts as live.  `low_seconds` is for how long
    there has been no slot to spare (live <= k).
    """
    distinct = set(shapes)
    existing = {slot for one in distinct for slot in one.slots}
    states: dict[int, SlotState] = {
        slot: slots.get(slot, "gone") if slot in existing else "live" for slot in range(code.n)
    }
    live = {slot for slot, state in states.items() if state == "live"}
    if any(len(one.slots & live) < one.data_count for one in distinct):
        return "unreachable"
    if len(live) == code.n:
        return "healthy"
    away = sum(state == "away" for state in states.values())
    if len(live) + away <= repair_threshold(code):
        return "at risk"
    if len(live) <= code.k and low_seconds >= AT_RISK_SECONDS:
        return "at risk"
    return "degraded"


def worst_state(states: Iterable[SegmentState]) -> SegmentState:
    """The state of a file from those of its segments; healthy where it has none."""
    return max(states, key=_SEGMENT_ORDER.index, default="healthy")


def suspect_own_connection(failed: int, contacted: int) -> bool:
    """Whether so many of the peers contacted in one window failed (more than 30 %) that the
    fault is rather here: no repair then, and no scoring."""
    return failed * 10 > contacted * 3
