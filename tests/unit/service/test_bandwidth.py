"""Which limits hold: the configured, those of the hour, those set for the time being."""

from __future__ import annotations

import math
from datetime import UTC, datetime

import trio
from trio.testing import MockClock

from dstore.core.bandwidth import Limits, Period
from dstore.limits import BANDWIDTH_LOOK_SECONDS
from dstore.network.shaping import Shaper
from dstore.runtime import Runtime, TrioClock
from dstore.service.bandwidth import Bandwidth, BandwidthOptions

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
