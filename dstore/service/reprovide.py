"""Telling the DHT what is here: new roots and segments at once, all of them every 22 hours.

Keys are the multihashes of roots that this node has pinned or holds part of, and of the
segments it holds slots of.
"""

from __future__ import annotations

from functools import partial

import trio

from dstore.core.cid import CID
from dstore.limits import PROVIDE_CONCURRENCY, PROVIDE_RETRY_SECONDS, REPROVIDE_SECONDS
from dstore.network.routing import Routing
from dstore.runtime import Runtime
from dstore.service.stores import Stores
from dstore.service.worker import Worker


class Reprovider:
    """Keeps this node's provider records alive."""

    def __init__(self, routing: Routing, stores: Stores, runtime: Runtime) -> None:
        self._routing = routing
        self._stores = stores
        self._runtime = runtime
        self._due: dict[bytes, float] = {}
        self._all_due = 0.0
        self.worker = Worker("reprovide", self.step)

    def provide_soon(self, *cids: CID) -> None:
        """Announce these with the next step, which comes at once."""
        for cid in cids:
            self._due.setdefault(cid.multihash, 0.0)
        self.worker.wake()

    async def step(self) -> float:
        """Provide what is due; returns the seconds until something is due again."""
        now = trio.current_time()
        if now >= self._all_due:
            for key in await self._runtime.workers.run(self._keys):
                self._due.setdefault(key, now)
            self._all_due = now + REPROVIDE_SECONDS
        due = [key for key, time in self._due.items() if time <= now]
        limiter = trio.CapacityLimiter(PROVIDE_CONCURRENCY)
        async with trio.open_nursery() as nursery:
            for key in due:
                nursery.start_soon(partial(self._provide, key, limiter))
        times = [*self._due.values(), self._all_due]
        return max(0.0, min(times) - trio.current_time())

    async def _provide(self, key: bytes, limiter: trio.CapacityLimiter) -> None:
        async with limiter:
            confirmed = await self._routing.provide(key)
        if confirmed:
            self._due.pop(key, None)
        else:
            self._due[key] = trio.current_time() + PROVIDE_RETRY_SECONDS

    def _keys(self) -> list[bytes]:
        """In a worker: everything that this node provides."""
        catalog = self._stores.catalog
        cids = [*catalog.held_roots(), *catalog.held_segments()]
        cids += [pin.root for pin in catalog.pins()]
        return list(dict.fromkeys(cid.multihash for cid in cids))
