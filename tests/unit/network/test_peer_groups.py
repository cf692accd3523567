"""Who is under the limit of a group, by name or by its own word, with the clock in hand."""

from __future__ import annotations

import math

import pytest
import trio
from trio.testing import MockClock

from dstore.core.peerid import PeerId
from dstore.limits import BANDWIDTH_CLAIMS_MAX, KIB
from dstore.network.shaping import Line, Shaper
from dstore.testing.deterministic import peer_number

RATE = 1e6
PEER = peer_number(1)


def line_of(shaper: Shaper, peer: PeerId = PEER) -> Line:
    line = Line(shaper, near=True)
    line.belongs_to(peer)
    return line


async def rate(line: Line, direction: str = "up") -> float:
    """Bytes a second over ten seconds, the first burst included; infinity where
    nothing waits."""
    begun, sent = trio.current_time(), 0
    while (passed := trio.current_time() - begun) < 10:
        if sent > 200 * RATE:
            return math.inf
        if direction == "up":
            await line.before_sending(8 * KIB)
        else:
            line.received(8 * KIB)
            await line.before_receiving()
        sent += 8 * KIB
    return sent / passed


@pytest.mark.parametrize("direction", ["up", "down"])
async def test_a_label_brings_a_peer_under_the_limit_of_its_group(
    direction: str, autojump_clock: MockClock
) -> None:
    shaper = Shaper(labels={"site": {"a", "b"}})
    shaper.groups["site"].limit(RATE, RATE)
    line, other = line_of(shaper), line_of(shaper, peer_number(2))
    assert await rate(line, direction) == math.inf
    shaper.claims(PEER, ["x", "b"])  # the connection is open already
    assert await rate(line, direction) == pytest.approx(RATE, rel=0.05)
    assert await rate(line_of(shaper), direction) == pytest.approx(RATE, rel=0.05)
    assert await rate(other, direction) == math.inf
    assert shaper.claimants("site") == [PEER]
    counted = shaper.groups["site"].counted
    assert counted[direction == "down"] > 19 * RATE


@pytest.mark.parametrize(("named", "labelled"), [(RATE, 4 * RATE), (4 * RATE, RATE)])
async def test_the_stricter_of_two_limits_holds_whatever_is_claimed(
    named: float, labelled: float, autojump_clock: MockClock
) -> None:
    shaper = Shaper({"office": {PEER}}, {"site": {"a"}})
    shaper.groups["office"].limit(named, math.inf)
    shaper.groups["site"].limit(labelled, math.inf)
    line = line_of(shaper)
    assert await rate(line) == pytest.approx(named, rel=0.05)
    shaper.claims(PEER, ["a"])
    assert await rate(line) == pytest.approx(RATE, rel=0.05)


async def test_a_claim_cannot_be_taken_back(autojump_clock: MockClock) -> None:
    shaper = Shaper(labels={"slow": {"a"}, "fast": {"b"}})
    shaper.groups["slow"].limit(RATE, RATE)
    shaper.groups["fast"].limit(9 * RATE, RATE)
    line = line_of(shaper)
    for said in (["a"], ["b"], []):
        shaper.claims(PEER, said)
        assert await rate(line) == pytest.approx(RATE, rel=0.05)
        assert await rate(line_of(shaper)) == pytest.approx(RATE, rel=0.05)
    assert shaper.claimants("slow") == shaper.claimants("fast") == [PEER]


def test_claims_that_concern_no_group_are_not_remembered_and_others_are_bounded() -> None:
    shaper = Shaper({"office": {PEER}}, {"site": {"a"}})
    shaper.claims(PEER, ["office", "site"])
    assert shaper.claimants("site") == shaper.claimants("office") == []
    for number in range(BANDWIDTH_CLAIMS_MAX + 10):
        shaper.claims(peer_number(number), ["a"])
    claimed = shaper.claimants("site")
    assert len(claimed) == BANDWIDTH_CLAIMS_MAX
    assert claimed[-1] == peer_number(BANDWIDTH_CLAIMS_MAX + 9)
