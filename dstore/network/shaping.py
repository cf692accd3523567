"""Bandwidth limits on connections: bytes wait before they are sent, and before more are read.

One shaper for all connections of a host: a limit for all of them, limits for groups of peers, and
one for repair, whose bytes wait at their streams (`repair_stream.py`) until those of the
foreground leave room.  A reader that waits lets TCP hold the sender back.  Peers on the local
network are exempt unless the operator says otherwise or they are in a group; how fast bytes may
go is `core/bandwidth.py`'s arithmetic.

A peer is in a group because the operator named it, or because it says that it has a label of the
group.  All limits that a peer is under hold, and what it has claimed once it cannot take back: a
claim can bring a peer under one limit more, and never from under one.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Collection, Iterable, Mapping
from weakref import WeakSet

import trio

from dstore.core.bandwidth import Bucket, Limits
from dstore.core.peerid import PeerId
from dstore.limits import (
    BANDWIDTH_CLAIMS_MAX,
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
        self,
        groups: Mapping[str, Collection[PeerId]] | None = None,
        labels: Mapping[str, Collection[str]] | None = None,
        *,
        lan: bool = False,
    ) -> None:
        """`groups`: peers under a limit of their own, beside that of all, by its name; `labels`:
        those of which peers may claim one to be in a group, by its name too.  `lan`: whether
        the limits of all and of repair hold for peers on the local network too."""
        self.lan = lan
        self.total = Scope()
        self.repair = Scope()
        named, labels = groups or {}, labels or {}
        self.groups = {name: Scope() for name in dict.fromkeys((*named, *labels))}
        self._named = {name: frozenset(named.get(name, ())) for name in self.groups}
        self._labels = {name: frozenset(labels.get(name, ())) for name in self.groups}
        self._claims: OrderedDict[PeerId, frozenset[str]] = OrderedDict()  # names of groups
        self._lines: WeakSet[Line] = WeakSet()

    @property
    def limits(self) -> Limits:
        """Those that hold now, beside the groups'."""
        return Limits(self.total.up.rate, self.total.down.rate, self.repair.up.rate)

    def limit(self, limits: Limits) -> None:
        """Have other limits from now on, also for bytes that wait already."""
        self.total.limit(limits.up, limits.down)
        self.repair.limit(limits.repair, limits.repair)

    def groups_of(self, peer: PeerId) -> tuple[Scope, ...]:
        """The limits of the groups that the peer is in."""
        claimed = self._claims.get(peer, frozenset())
        return tuple(
            scope
            for name, scope in self.groups.items()
            if peer in self._named[name] or name in claimed
        )

    def claimants(self, name: str) -> list[PeerId]:
        """The peers that are in a group by what they say, the latest to say it last."""
        return [peer for peer, names in self._claims.items() if name in names]

    def claims(self, peer: PeerId, labels: Iterable[str]) -> None:
        """The peer says that it has these labels.  It is in their groups from now on, and in
        those of labels that it claimed before; the connections that it has, too."""
        said = frozenset(labels)
        names = frozenset(name for name, some in self._labels.items() if some & said)
        before = self._claims.get(peer, frozenset())
        if not names | before:
            return
        self._claims[peer] = names | before
        self._claims.move_to_end(peer)
        if len(self._claims) > BANDWIDTH_CLAIMS_MAX:
            self._claims.popitem(last=False)
        if names - before:
            for line in list(self._lines):
                line.regroup(peer)

    def holds(self, line: Line) -> None:
        """Have the line follow what its peer claims, as long as there is one."""
        self._lines.add(line)


class Line:
    """One connection under the limits: `near` is a peer on the local network.

    What its repair streams waited for is not waited for again when the connection carries it.
    """

    def __init__(self, shaper: Shaper, *, near: bool) -> None:
        self._shaper = shaper
        self._near = near
        self._total = shaper.total
        self._peer: PeerId | None = None
        self._groups: tuple[Scope, ...] = ()
        self._owed = 0  # received and not yet waited for
        self._repair_up = 0  # waited for by a stream and not yet sent
        self._repair_down = 0  # received for a stream, which waits for it

    def belongs_to(self, peer: PeerId) -> None:
        """The peer is authenticated: the limits of its groups hold, where it is in any."""
        self._peer = peer
        if self._shaper.groups:
            self._shaper.holds(self)
            self.regroup(peer)

    def regroup(self, peer: PeerId) -> None:
        """The peer has come into a group, perhaps this line's."""
        if peer == self._peer:
            self._groups = self._shaper.groups_of(peer)

    @property
    def exempt(self) -> bool:
        """Whether the limits of all peers and of repair pass it over."""
        return self._near and not self._shaper.lan

    def _up(self) -> list[Direction]:
        """The limits that there are on what is sent, the narrower first."""
        holding = [group.up for group in self._groups if group.up.rate < math.inf]
        if self._total.up.rate < math.inf and not self.exempt:
            holding.append(self._total.up)
        return holding

    def _down(self) -> list[Direction]:
        """The limits that there are on what is received, the narrower first."""
        holding = [group.down for group in self._groups if group.down.rate < math.inf]
        if self._total.down.rate < math.inf and not self.exempt:
            holding.append(self._total.down)
        return holding

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
        for group in self._groups:
            group.up.carried_bytes += size
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
        for group in self._groups:
            group.down.carried_bytes += size
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
