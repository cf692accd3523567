"""Background work: one small step after another, with a status, surviving a failed step.

This is one of the two places where any exception is caught: a step that breaks is logged
and counted, and the next one comes.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import trio

from dstore.limits import WORKER_RETRY_SECONDS

log = logging.getLogger(__name__)

Step = Callable[[], Awaitable[float]]
"""Does a little and returns the seconds until it wants to run again."""


@dataclass
class Worker:
    """One kind of background work and how it is doing."""

    name: str
    step: Step
    steps: int = 0
    failures: int = 0
    failures_in_a_row: int = 0
    last_error: str | None = None
    paused: bool = False

    def __post_init__(self) -> None:
        self._wake = trio.Event()

    def wake(self) -> None:
        """Run the next step now."""
        self._wake.set()

    async def run(self) -> None:
        """Step for ever."""
        while True:
            pause: float = WORKER_RETRY_SECONDS
            if not self.paused:
                try:
                    pause = await self.step()
                    self.steps += 1
                    self.failures_in_a_row = 0
                except Exception as error:
                    self.failures += 1
                    self.failures_in_a_row += 1
                    self.last_error = repr(error)
                    log.exception("a step of %s failed", self.name)
            with trio.move_on_after(pause):
                await self._wake.wait()
            self._wake = trio.Event()
