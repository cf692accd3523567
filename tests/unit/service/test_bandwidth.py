"""Which limits hold: the configured, those of the hour, those set for the time being."""

from __future__ import annotations

import math
from datetime import UTC, datetime

import pytest
import trio
from trio.testing import MockClock

from dstore.core.bandwidth import Limits, Period
from dstore.core.peerid import PeerId
from dstore.errors import CallerError
from dstore.interfaces.api.bandwidth import override
from dstore.interfaces.forms import bandwidth_form
from dstore.limits import BANDWIDTH_LOOK_SECONDS
from dstore.network.shaping import Line, Shaper
from dstore.runtime import Runtime, TrioClock
from dstore.service.bandwidth import Bandwidth, BandwidthOptions, PeerGroup

_START = 1_800_000_000.0


def _minute() -> int:
    local = datetime.fromtimestamp(_START, tz=UTC).astimezone()
    return local.hour * 60 + local.minute


async def test_the_hour_decides_and_an_override_comes_before_it(autojump_clock: MockClock) -> None:
    begin = (_minute() + 10) % 1440
    period = Period(frozenset(range(7)), begin, (begin + 10) % 1440, Limits(up=2e6))
    shaper = Shaper()
    runtime = Runtime(clock=TrioClock(_START))
    options = BandwidthOptions(Limits(up=1e6), (period,))
    bandwidth = Bandwidth(options, shaper, runtime)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bandwidth.worker.run)
        assert shaper.limits == Limits(1e6, math.inf)
        await trio.sleep(601 + BANDWIDTH_LOOK_SECONDS)
        assert shaper.limits == Limits(2e6, math.inf)
        bandwidth.override(Limits(down=3e6))
        assert bandwidth.overridden
        assert shaper.limits == Limits(math.inf, 3e6)
        await trio.sleep(600)
        assert shaper.limits == Limits(math.inf, 3e6)
        bandwidth.reset()
        assert shaper.limits == Limits(1e6, math.inf)
        nursery.cancel_scope.cancel()


async def test_current_rates_and_a_group_changed_while_running(autojump_clock: MockClock) -> None:
    peer = PeerId.of_ed25519(bytes(32))
    options = BandwidthOptions(groups={"office": PeerGroup(frozenset({peer}), Limits(up=2e6))})
    shaper = Shaper(options.members)
    bandwidth = Bandwidth(options, shaper, Runtime(clock=TrioClock(_START)))
    line = Line(shaper, near=False)
    line.belongs_to(peer)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bandwidth.worker.run)
        for _ in range(30):
            await line.before_sending(100_000)
            await line.before_repair_sends(10_000)
            line.received(50_000)
            await trio.sleep(1)
        flows = bandwidth.flows()
        assert flows.groups["office"] == flows.total
        assert flows.total.sent_rate == pytest.approx(100_000, rel=0.11)
        assert flows.repair.sent_rate == pytest.approx(10_000, rel=0.11)
        assert flows.foreground.sent_bytes == 30 * 90_000
        assert bandwidth_form(bandwidth)["peers"]["office"]["up"] == 2_000_000
        override(bandwidth, {"repair": "1MB/s", "peers": {"office": {"down": "3MB/s"}}})
        assert shaper.limits == Limits(repair=1e6)
        assert (shaper.groups["office"].up.rate, shaper.groups["office"].down.rate) == (2e6, 3e6)
        for wrong in (
            {"peers": {"nobody": {"up": "0"}}},
            {"up": 3},
            {"peers": {"office": {"x": ""}}},
        ):
            with pytest.raises(CallerError):
                override(bandwidth, wrong)
        bandwidth.reset()
        assert shaper.groups["office"].down.rate == math.inf
        assert not bandwidth.overridden
        await trio.sleep(12)
        assert bandwidth.flows().total.sent_rate == 0
        nursery.cancel_scope.cancel()


async def test_a_group_has_hours_of_its_own_and_shows_who_claims_to_be_in_it(
    autojump_clock: MockClock,
) -> None:
    named, claims = (PeerId.of_ed25519(bytes([number] * 32)) for number in range(2))
    begin = (_minute() + 10) % 1440
    period = Period(frozenset(range(7)), begin, (begin + 10) % 1440, Limits(up=5e6))
    group = PeerGroup(frozenset({named}), Limits(1e6, 2e6), (period,), frozenset({"site-a"}))
    options = BandwidthOptions(groups={"office": group})
    shaper = Shaper(options.members, options.labels)
    bandwidth = Bandwidth(options, shaper, Runtime(clock=TrioClock(_START)))
    office = shaper.groups["office"]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bandwidth.worker.run)
        assert (office.up.rate, office.down.rate) == (1e6, 2e6)
        await trio.sleep(601 + BANDWIDTH_LOOK_SECONDS)
        assert (office.up.rate, office.down.rate) == (5e6, math.inf)
        override(bandwidth, {"peers": {"office": {"down": "3MB/s"}}})
        assert (office.up.rate, office.down.rate) == (5e6, 3e6)
        await trio.sleep(600)
        assert (office.up.rate, office.down.rate) == (5e6, 3e6)
        bandwidth.reset()
        assert (office.up.rate, office.down.rate) == (1e6, 2e6)
        assert shaper.limits == Limits()
        nursery.cancel_scope.cancel()
    shaper.claims(claims, ["site-a"])
    form = bandwidth_form(bandwidth)["peers"]["office"]
    assert (form["ids"], form["labels"]) == ([str(named)], ["site-a"])
    assert form["claimed_by"] == [str(claims)]
