"""Bandwidth limits on connections: bytes wait before they are sent and after they are read.

One shaper for all connections of a host.  A reader that waits lets TCP hold the sender back.
Peers on the local network are exempt unless the operator says otherwise; how fast bytes may
go is `core/bandwidth.py`'s arithmetic.
"""

from __future__ import annotations

import math

import trio

from dstore.core.bandwidth import Bucket, Limits
from dstore.limits import BANDWIDTH_TURN, BANDWIDTH_TURN_BYTES_MIN, RAW_READ_BYTES


class Shaper:
    """Counts what connections carry, and slows it down to the limits."""

    def __init__(self, *, lan: bool = False) -> None:
        """`lan`: whether the limits hold for peers on the local network too."""
        self.lan = lan
        self.sent_bytes = 0
        self.received_bytes = 0
        self._up = Bucket()
        self._down = Bucket()
        self._changed = trio.Event()

    @property
    def limits(self) -> Limits:
        """Those that hold now."""
        return Limits(self._up.rate, self._down.rate)

    def limit(self, limits: Limits) -> None:
        """Have other limits from now on, also for bytes that wait already."""
        now = trio.current_time()
        self._up.set_rate(limits.up, now)
        self._down.set_rate(limits.down, now)
        self._changed.set()
        self._changed = trio.Event()

    def turn_up(self, *, near: bool) -> int:
        """How many bytes a connection should send in one turn."""
        return self._turn(self._up, near)

    def turn_down(self, *, near: bool) -> int:
        """How many bytes a connection should read in one turn."""
        return self._turn(self._down, near)

    def _turn(self, bucket: Bucket, near: bool) -> int:
        if bucket.rate == math.inf or (near and not self.lan):
            return RAW_READ_BYTES
        least = max(BANDWIDTH_TURN_BYTES_MIN, int(bucket.rate * BANDWIDTH_TURN))
        return min(RAW_READ_BYTES, least)

    async def before_sending(self, size: int, *, near: bool) -> None:
        """Wait until `size` bytes may be sent; `near` is a peer on the local network."""
        self.sent_bytes += size
        if self._up.rate < math.inf and (self.lan or not near):
            await self._pass(self._up, size)

    async def after_receiving(self, size: int, *, near: bool) -> None:
        """Wait until more than the `size` bytes that came may be read."""
        self.received_bytes += size
        if self._down.rate < math.inf and (self.lan or not near):
            await self._pass(self._down, size)

    async def _pass(self, bucket: Bucket, size: int) -> None:
        ticket = bucket.take(size, trio.current_time())
        passed = False
        try:
            while seconds := bucket.seconds_until(ticket, trio.current_time()):
                with trio.move_on_after(seconds):
                    await self._changed.wait()
            passed = True
        finally:
            if not passed:
                bucket.give_back(size)
