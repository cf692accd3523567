"""A holder's housekeeping: leases extended in time, slots that their owner has let go of put in
the trash, reservations that nobody uses dropped, what killed operations left behind deleted after
a day.

Nothing here deletes a slot: a pin record that has run out only stops the extension of its leases.
"""

from __future__ import annotations

import trio

from dstore.limits import (
    KEEPER_SECONDS,
    KEEPER_SLOTS_PER_STEP,
    MESSAGE_SECONDS,
    RESERVATION_SECONDS,
)
from dstore.runtime import Runtime
from dstore.service.leases import Leases
from dstore.service.orphans import Orphans
from dstore.service.stores import Stores
from dstore.service.worker import Worker
from dstore.storage.rows import HeldSlot


class Keeper:
    """Keeps this node's own promises in order."""

    def __init__(self, stores: Stores, leases: Leases, runtime: Runtime) -> None:
        self._stores = stores
        self._leases = leases
        self._runtime = runtime
        self._orphans = Orphans(stores)
        self._ahead = self._clock_ahead()
        self._tried: HeldSlot | None = None  # the last one of this round
        self.worker = Worker("keeper", self.step)

    async def step(self) -> float:
        """One round; returns the seconds until the next."""
        run = self._runtime.workers.run
        for row in await run(self._leases.let_go, KEEPER_SLOTS_PER_STEP):
            await run(self._leases.release, row.segment, row.slot)
        if not self._clock_was_set():
            await run(self._expire_reservations)
        await self._extend_leases()
        await run(self._orphans.step, trio.current_time())
        return KEEPER_SECONDS

    async def _extend_leases(self) -> None:
        """Some of those that are due, going round all of them: slots that cannot be promised
        again, as many as there may be, keep no other from its turn."""
        run = self._runtime.workers.run
        due = await run(self._leases.ending, KEEPER_SLOTS_PER_STEP, self._tried)
        for row in due:
            self._tried = row
            await run(self._leases.renew, row.segment, row.slot, (row.owner,))
        if len(due) < KEEPER_SLOTS_PER_STEP:
            self._tried = None

    def _clock_ahead(self) -> float:
        """By how much the time of day is ahead of trio's, which nobody sets."""
        return self._runtime.clock.now() - trio.current_time()

    def _clock_was_set(self) -> bool:
        """Whether somebody set the clock since the last step: how long a reservation has been
        idle shows at the next one, since whoever still uploads touches it by then."""
        before, self._ahead = self._ahead, self._clock_ahead()
        return abs(self._ahead - before) > MESSAGE_SECONDS

    def _expire_reservations(self) -> None:
        """In a worker: slots whose upload was given up; their blocks go with them."""
        before = self._runtime.clock.now() - RESERVATION_SECONDS
        for row in self._stores.catalog.expire_reservations(before):
            self._orphans.sweep_slot(row)
