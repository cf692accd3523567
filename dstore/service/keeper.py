"""A holder's housekeeping: leases extended in time, reservations that nobody uses dropped,
what killed operations left behind released.

Nothing here deletes a slot: an ended pin record only stops the extension of its leases.
"""

from __future__ import annotations

from dstore.core.cid import CID
from dstore.limits import (
    KEEPER_SECONDS,
    KEEPER_SLOTS_PER_STEP,
    ORPHANS_PER_STEP,
    RESERVATION_SECONDS,
)
from dstore.runtime import Runtime
from dstore.service.holder import LocalHolder
from dstore.service.stores import Stores
from dstore.service.worker import Worker


class Keeper:
    """Keeps this node's own promises in order."""

    def __init__(
        self, stores: Stores, holder: LocalHolder, runtime: Runtime, lease_seconds: int
    ) -> None:
        self._stores = stores
        self._holder = holder
        self._runtime = runtime
        self._lease_seconds = lease_seconds
        self.worker = Worker("keeper", self.step)

    async def step(self) -> float:
        """One round; returns the seconds until the next."""
        await self._runtime.workers.run(self._expire_reservations)
        for segment, slot in await self._runtime.workers.run(self._ending_leases):
            await self._runtime.workers.run(self._holder.renew_slot, segment, slot)
        return KEEPER_SECONDS

    def _expire_reservations(self) -> None:
        """In a worker: slots whose upload was given up; their blocks go with them."""
        catalog = self._stores.catalog
        before = self._runtime.clock.now() - RESERVATION_SECONDS
        if catalog.expire_reservations(before):
            self._sweep()

    def _sweep(self) -> None:
        """In a worker: delete some blocks that nothing refers to."""
        batch: list[bytes] = []
        for multihash in self._stores.catalog.orphans(self._stores.blocks):
            batch.append(multihash)
            if len(batch) >= ORPHANS_PER_STEP:
                break
        if batch:
            self._stores.catalog.sweep(self._stores.blocks, batch)

    def _ending_leases(self) -> list[tuple[CID, int]]:
        """In a worker: slots whose lease has less than half of its time left and whose pin
        record is valid."""
        catalog = self._stores.catalog
        now = self._runtime.clock.now()
        ending: list[tuple[CID, int]] = []
        for row in catalog.held_slots():
            if row.state != "held" or row.expires > now + self._lease_seconds / 2:
                continue
            record = catalog.pin_record(row.owner, row.root)
            if record is not None and record.expires > now:
                ending.append((row.segment, row.slot))
            if len(ending) >= KEEPER_SLOTS_PER_STEP:
                break
        return ending
