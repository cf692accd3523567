"""Bandwidth limits on connections: bytes wait before they are sent, and before more are read.

One shaper for all connections of a host: a limit for all of them, limits for peers named by the
operator, and one for repair, whose bytes wait at their streams (`repair_stream.py`) until those
of the foreground leave room.  A reader that waits lets TCP hold the sender back.  Peers on the
local network are exempt unless the operator says otherwise or names them; how fast bytes may
go is `core/bandwidth.py`'s arithmetic.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

import trio

from dstore.core.bandwidth import Bucket, Limits
from dstore.core.peerid import PeerId
from dstore.limits import (
    BANDWIDTH_REPAIR_SHARE,
    BANDWIDTH_TURN,
    BANDWIDTH_TURN_BYTES_MIN,
    RAW_READ_BYTES,
)

_SOON_SECONDS = 1e-6  # not worth a wait


class Direction:
    """What is sent, or received, under one limit."""

    def __init__(self) -> None:
        self.carried_bytes = 0
        self._bucket = Bucket()
        self._changed = trio.Event()
        self._behind = trio.Lock()  # held by the first of the repair that waits
        self._yielded_at = -math.inf  # since when repair has let others pass

    @property
    def rate(self) -> float:
        """Bytes a second; infinity is no limit."""
        return self._bucket.rate

    def set_rate(self, rate: float) -> None:
        """Have another limit from now on, also for bytes that wait already."""
        self._bucket.set_rate(rate, trio.current_time())
        self._changed.set()
        self._changed = trio.Event()

    @property
    def turn(self) -> int:
        """How many bytes should go at once."""
        if self.rate == math.inf:
            return RAW_READ_BYTES
        return min(RAW_READ_BYTES, max(BANDWIDTH_TURN_BYTES_MIN, int(self.rate * BANDWIDTH_TURN)))

    async def take_turn(self, size: int) -> None:
        """Wait until `size` bytes may pass, behind all who asked before."""
        ticket = self._bucket.take(size, trio.current_time())
        passed = False
        try:
            while True:
                seconds = self._bucket.seconds_until(ticket, trio.current_time())
                if seconds <= _SOON_SECONDS:
                    break
                with trio.move_on_after(seconds):
                    await self._changed.wait()
            passed = True
        finally:
            if not passed:
                self._bucket.give_back(size)

    async def take_rest(self, size: int) -> None:
        """As `take_turn`, but only once nobody else wants these bytes, or when those who take
        the rest have had less than their share for too long."""
        async with self._behind:
            while self.rate < math.inf:
                now = trio.current_time()
                spare = self._bucket.seconds_until_spare(size, now)
                share = self._yielded_at + size / (self.rate * BANDWIDTH_REPAIR_SHARE) - now
                if min(spare, share) <= _SOON_SECONDS:
                    break
                with trio.move_on_after(min(spare, share)):
                    await self._changed.wait()
            self._yielded_at = trio.current_time()
            await self.take_turn(size)


class Scope:
    """Both directions of what one limit is for."""

    def __init__(self) -> None:
        self.up = Direction()
        self.down = Direction()

    @property
    def counted(self) -> tuple[int, int]:
        """Bytes sent and received."""
        return self.up.carried_bytes, self.down.carried_bytes

    def limit(self, up: float, down: float) -> None:
        """Have other limits from now on."""
        self.up.set_rate(up)
        self.down.set_rate(down)


class Shaper:
    """The limits of a host, and what was carried under each."""

    def __init__(
        self, groups: Mapping[str, Collection[PeerId]] | None = None, *, lan: bool = False
    ) -> None:
        """`groups`: peers under a limit of their own, beside that of all, by its name.  `lan`:
        whether the limits of all and of repair hold for peers on the local network too."""
        self.lan = lan
        self.total = Scope()
        self.repair = Scope()
        self.groups = {name: Scope() for name in groups or {}}
        self._group_of = {
            peer: self.groups[name] for name, peers in (groups or {}).items() for peer in peers
        }

    @property
    def limits(self) -> Limits:
        """Those that hold now, beside the groups'."""
        return Limits(self.total.up.rate, self.total.down.rate, self.repair.up.rate)

    def limit(self, limits: Limits) -> None:
        """Have other limits from now on, also for bytes that wait already."""
        self.total.limit(limits.up, limits.down)
        self.repair.limit(limits.repair, limits.repair)

    def group_of(self, peer: PeerId) -> Scope | None:
        """The limits of the group that the peer is in."""
        return self._group_of.get(peer)


class Line:
    """One connection under the limits: `near` is a peer on the local network.

    What its repair streams waited for is not waited for again when the connection carries it.
    """

    def __init__(self, shaper: Shaper, *, near: bool) -> None:
        self._shaper = shaper
        self._near = near
        self._total = shaper.total
        self._group: Scope | None = None
        self._owed = 0  # received and not yet waited for
        self._repair_up = 0  # waited for by a stream and not yet sent
        self._repair_down = 0  # received for a stream, which waits for it

    def belongs_to(self, peer: PeerId) -> None:
        """The peer is authenticated: the limits of its group hold, where it is in one."""
        self._group = self._shaper.group_of(peer)

    @property
    def exempt(self) -> bool:
        """Whether the limits of all peers and of repair pass it over."""
        return self._near and not self._shaper.lan

    def _holding(self, total: Direction, group: Direction | None) -> list[Direction]:
        """The limits that there are on it, the narrower first."""
        holding = []
        if group is not None and group.rate < math.inf:
            holding.append(group)
        if total.rate < math.inf and not self.exempt:
            holding.append(total)
        return holding

    def _up(self) -> list[Direction]:
        return self._holding(self._total.up, self._group.up if self._group else None)

    def _down(self) -> list[Direction]:
        return self._holding(self._total.down, self._group.down if self._group else None)

    # --- For the connection -------------------------------------------------------------

    def turn_up(self) -> int:
        """How many bytes to send in one turn."""
        return min((one.turn for one in self._up()), default=RAW_READ_BYTES)

    def turn_down(self) -> int:
        """How many bytes to read in one turn."""
        return min((one.turn for one in self._down()), default=RAW_READ_BYTES)

    async def before_sending(self, size: int) -> None:
        """Wait until `size` bytes may be sent."""
        self._total.up.carried_bytes += size
        if self._group is not None:
            self._group.up.carried_bytes += size
        holding = self._up()
        if not holding:
            self._repair_up = 0
            return
        paid = min(size, self._repair_up)
        self._repair_up -= paid
        if size > paid:
            for one in holding:
                await one.take_turn(size - paid)

    def received(self, size: int) -> None:
        """Count bytes that came; `before_receiving` waits for them."""
        self._total.down.carried_bytes += size
        if self._group is not None:
            self._group.down.carried_bytes += size
        self._owed += size

    async def before_receiving(self) -> None:
        """Wait until more than what came may be read."""
        holding = self._down()
        if not holding:
            self._owed = self._repair_down = 0
            return
        paid = min(self._owed, self._repair_down)
        self._owed -= paid
        self._repair_down -= paid
        if self._owed:
            for one in holding:
                await one.take_turn(self._owed)
            self._owed = 0

    # --- For its repair streams ---------------------------------------------------------

    def repair_turn_up(self) -> int:
        """How many bytes of repair to send in one turn."""
        return min(self.turn_up(), self._shaper.repair.up.turn)

    def repair_turn_down(self) -> int:
        """How many bytes of repair to take in one turn."""
        return min(self.turn_down(), self._shaper.repair.down.turn)

    async def before_repair_sends(self, size: int) -> None:
        """Wait until a stream may hand over `size` bytes of repair."""
        self._shaper.repair.up.carried_bytes += size
        await self._rest(self._shaper.repair.up, self._up(), size)
        self._repair_up += size

    def repair_arrived(self, size: int) -> None:
        """Bytes have come for a stream, which will wait for them (`after_repair_took`)."""
        self._shaper.repair.down.carried_bytes += size
        self._repair_down += size

    def repair_dropped(self, size: int) -> None:
        """Bytes that came for a stream were never taken: the connection waits for them."""
        self._owed += size

    async def after_repair_took(self, size: int) -> None:
        """Wait until a stream may take more than the `size` bytes of repair that it took."""
        await self._rest(self._shaper.repair.down, self._down(), size)

    async def _rest(self, repair: Direction, holding: list[Direction], size: int) -> None:
        if repair.rate < math.inf and not self.exempt:
            await repair.take_turn(size)
        for one in holding:
            await one.take_rest(size)
