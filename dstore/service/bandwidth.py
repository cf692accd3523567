"""Which bandwidth limits hold now: the configured ones, those of the hour, or those that the
operator set for the time being; and how fast bytes go at present.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

import trio

from dstore.core.bandwidth import Limits, Meter, Period, limits_at
from dstore.core.peerid import PeerId
from dstore.errors import CallerError
from dstore.limits import BANDWIDTH_LOOK_SECONDS
from dstore.network.shaping import Shaper
from dstore.runtime import Runtime
from dstore.service.worker import Worker


@dataclass(frozen=True)
class PeerGroup:
    """Peers with limits of their own, beside those of all: those named, and those that say
    that they have one of the labels.  Other limits by the hour as for all."""

    peers: frozenset[PeerId]
    limits: Limits = field(default_factory=Limits)
    schedule: tuple[Period, ...] = ()
    labels: frozenset[str] = frozenset()


@dataclass(frozen=True)
class BandwidthOptions:
    """The usual limits, other ones by the hour (local time, the first that holds), whether
    they hold for peers on the local network, and the groups of peers by name."""

    limits: Limits = field(default_factory=Limits)
    schedule: tuple[Period, ...] = ()
    lan: bool = False
    groups: Mapping[str, PeerGroup] = field(default_factory=dict)

    @property
    def members(self) -> dict[str, frozenset[PeerId]]:
        """The peers that each group names."""
        return {name: group.peers for name, group in self.groups.items()}

    @property
    def labels(self) -> dict[str, frozenset[str]]:
        """The labels of each group."""
        return {name: group.labels for name, group in self.groups.items()}


@dataclass(frozen=True)
class Flow:
    """Bytes since the start, and bytes a second of late."""

    sent_bytes: int
    received_bytes: int
    sent_rate: float
    received_rate: float


@dataclass(frozen=True)
class Flows:
    """What was carried: for all and with all peers, of it for repair (framing left out), and
    with each group of peers."""

    total: Flow
    repair: Flow
    groups: Mapping[str, Flow]

    @property
    def foreground(self) -> Flow:
        """What was not for repair."""
        total, repair = self.total, self.repair
        return Flow(
            max(0, total.sent_bytes - repair.sent_bytes),
            max(0, total.received_bytes - repair.received_bytes),
            max(0.0, total.sent_rate - repair.sent_rate),
            max(0.0, total.received_rate - repair.received_rate),
        )


class Bandwidth:
    """Sets the limits of a shaper as time passes, and looks at what it counts."""

    def __init__(self, options: BandwidthOptions, shaper: Shaper, runtime: Runtime) -> None:
        self.options = options
        self.shaper = shaper
        self._runtime = runtime
        self._override: Limits | None = None
        self._group_overrides: dict[str, Limits] = {}
        self._meter = Meter()
        self.worker = Worker("bandwidth", self._step)
        self._set()

    @property
    def overridden(self) -> bool:
        """Whether limits set by `override` hold, and not those of the configuration."""
        return self._override is not None or bool(self._group_overrides)

    @property
    def limits(self) -> Limits:
        """Those that hold now for all peers together."""
        if self._override is not None:
            return self._override
        return self._of_the_hour(self.options.limits, self.options.schedule)

    def _of_the_hour(self, usual: Limits, schedule: Sequence[Period]) -> Limits:
        local = datetime.fromtimestamp(self._runtime.clock.now(), tz=UTC).astimezone()
        minute = local.hour * 60 + local.minute
        return limits_at(usual, schedule, local.weekday(), minute)

    def group_limits(self, name: str) -> Limits:
        """Those that hold now for a group.  Raises CallerError where there is none."""
        group = self.options.groups.get(name)
        if group is None:
            known = ", ".join(self.options.groups) or "none"
            raise CallerError(f"no peers are configured as {name!r} (known: {known})")
        override = self._group_overrides.get(name)
        return override or self._of_the_hour(group.limits, group.schedule)

    def override(
        self, limits: Limits | None = None, groups: Mapping[str, Limits] | None = None
    ) -> None:
        """Have these until the node stops, for all peers and for the groups named.  Raises
        CallerError for an unknown group, and sets nothing then."""
        for name in groups or {}:
            self.group_limits(name)
        if limits is not None:
            self._override = limits
        self._group_overrides.update(groups or {})
        self._set()

    def reset(self) -> None:
        """Have those of the configuration again."""
        self._override = None
        self._group_overrides.clear()
        self._set()

    def flows(self) -> Flows:
        """What was carried, and how fast of late."""
        counters = self._counters()
        rates = self._meter.rates(trio.current_time(), counters)
        found = [
            Flow(counters[at], counters[at + 1], rates[at], rates[at + 1])
            for at in range(0, len(counters), 2)
        ]
        groups = dict(zip(self.shaper.groups, found[2:], strict=True))
        return Flows(found[0], found[1], groups)

    def _counters(self) -> tuple[int, ...]:
        shaper = self.shaper
        scopes = (shaper.total, shaper.repair, *shaper.groups.values())
        return tuple(count for scope in scopes for count in scope.counted)

    def _set(self) -> None:
        if self.limits != self.shaper.limits:
            self.shaper.limit(self.limits)
        for name, scope in self.shaper.groups.items():
            limits = self.group_limits(name)
            if (limits.up, limits.down) != (scope.up.rate, scope.down.rate):
                scope.limit(limits.up, limits.down)

    async def _step(self) -> float:
        self._set()
        self._meter.look(trio.current_time(), self._counters())
        return BANDWIDTH_LOOK_SECONDS
