"""An owner's notes of leases, kept up to date: holders extend them without telling.

Holders whose leases, as noted, end within the half of a lease's time are asked how long they
run now.  Nothing is repaired here, and nobody is told anything.
"""

from __future__ import annotations

from dstore.core.cid import CID
from dstore.core.peerid import PeerId
from dstore.limits import KEEPER_SECONDS, LEASE_NOTES_PER_STEP, LEASE_SECONDS
from dstore.runtime import Runtime
from dstore.service.holdings import Holdings
from dstore.service.stores import Stores
from dstore.service.worker import Worker


class LeaseNotes:
    """Asks the holders of this owner's slots in time."""

    def __init__(self, holdings: Holdings, stores: Stores, owner: bytes, runtime: Runtime) -> None:
        self._holdings = holdings
        self._stores = stores
        self._owner = owner
        self._runtime = runtime
        self._last: CID | None = None
        self.worker = Worker("lease notes", self.step)

    async def step(self) -> float:
        """Ask about some segments, each in its turn; returns the seconds until the next step.
        Whoever does not answer is waited for once."""
        silent: set[PeerId] = set()
        for segment, peers, until in await self._runtime.workers.run(self._ending):
            await self._holdings.ask(segment, peers, silent, until)
        return KEEPER_SECONDS

    def _ending(self) -> list[tuple[CID, set[PeerId], float]]:
        """In a worker: segments still wanted with notes that end soon, the holders to ask, and
        until when they are wanted."""
        catalog, now = self._stores.catalog, self._runtime.clock.now()
        soon = now + LEASE_SECONDS / 2
        segments = catalog.segments_with_leases(soon, self._last, LEASE_NOTES_PER_STEP)
        self._last = segments[-1] if len(segments) == LEASE_NOTES_PER_STEP else None
        found = []
        for segment in segments:
            until = self._wanted_until(segment)
            rows = [row for row in catalog.placements(segment) if row.lease is not None]
            # A lease that ends with the owner's wish cannot be made longer.
            peers = {row.peer for row in rows if row.expires < min(soon, until)}
            if until > now and peers:
                found.append((segment, peers, until))
        return found

    def _wanted_until(self, segment: CID) -> float:
        catalog = self._stores.catalog
        roots = catalog.roots_with_segment(segment)
        records = [catalog.pin_record(self._owner, root) for root in roots]
        return max((record.expires for record in records if record is not None), default=0.0)
