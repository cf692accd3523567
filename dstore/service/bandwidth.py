"""Which bandwidth limits hold now: the configured ones, those of the hour, or those that the
operator set for the time being.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime

from dstore.core.bandwidth import Limits, Period, limits_at
from dstore.limits import BANDWIDTH_SCHEDULE_SECONDS
from dstore.network.shaping import Shaper
from dstore.runtime import Runtime
from dstore.service.worker import Worker


@dataclass(frozen=True)
class BandwidthOptions:
    """The usual limits, other ones by the hour (local time, the first that holds), and whether
    they hold for peers on the local network."""

    limits: Limits = field(default_factory=Limits)
    schedule: tuple[Period, ...] = ()
    lan: bool = False


class Bandwidth:
    """Sets the limits of a shaper as time passes."""

    def __init__(self, options: BandwidthOptions, shaper: Shaper, runtime: Runtime) -> None:
        self._options = options
        self.shaper = shaper
        self._runtime = runtime
        self._override: Limits | None = None
        self.worker = Worker("bandwidth", self._step)
        self._set()

    @property
    def overridden(self) -> bool:
        """Whether limits set by `override` hold, and not those of the configuration."""
        return self._override is not None

    @property
    def limits(self) -> Limits:
        """Those that hold now."""
        if self._override is not None:
            return self._override
        local = datetime.fromtimestamp(self._runtime.clock.now(), tz=UTC).astimezone()
        minute = local.hour * 60 + local.minute
        return limits_at(self._options.limits, self._options.schedule, local.weekday(), minute)

    def override(self, limits: Limits | None) -> None:
        """Have these until the node stops; None: those of the configuration again."""
        self._override = limits
        self._set()

    def _set(self) -> None:
        self.shaper.limit(self.limits)

    async def _step(self) -> float:
        self._set()
        return BANDWIDTH_SCHEDULE_SECONDS
