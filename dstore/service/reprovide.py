"""Telling the DHT what is here: new roots and segments at once, all of them every 22 hours.

Keys are the multihashes of roots that this node has pinned or holds part of, and of the
segments it holds slots of.
"""

from __future__ import annotations

from collections.abc import Iterator

import trio

from dstore.core.cid import CID
from dstore.limits import (
    KAD_KEY_BYTES_MAX,
    PROVIDE_CONCURRENCY,
    PROVIDE_FAILURES_MAX,
    PROVIDE_RETRY_SECONDS,
    REPROVIDE_SECONDS,
)
from dstore.network.routing import Routing
from dstore.runtime import Runtime, open_plain_nursery
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
        self._failures = 0  # in a row: nobody is there to tell
        self._confirmed = trio.Event()  # set, and replaced, with each key confirmed
        self.worker = Worker("reprovide", self.step)

    @property
    def due(self) -> int:
        """Keys that no peer has confirmed yet."""
        return len(self._due)

    def provide_soon(self, *cids: CID) -> None:
        """Announce these with the next step, which comes at once, and go on trying until a
        peer has confirmed them."""
        for cid in cids:
            if _can_be_provided(cid):
                self._due[cid.multihash] = 0.0
        self._failures = 0
        self.worker.wake()

    async def announce(self, cid: CID) -> None:
        """`provide_soon`, and wait until a peer has confirmed it.  May take for ever."""
        self.provide_soon(cid)
        while cid.multihash in self._due:
            await self._confirmed.wait()

    async def step(self) -> float:
        """Provide what is due; returns the seconds until something is due again."""
        now = trio.current_time()
        if now >= self._all_due:
            for key in await self._runtime.workers.run(self._keys):
                self._due.setdefault(key, now)
            self._all_due = now + REPROVIDE_SECONDS
        # What was asked for just now comes before the great round.
        due = sorted((time, key) for key, time in self._due.items() if time <= now)
        keys = iter([key for _, key in due])
        self._failures = 0
        failed: list[bytes] = []
        async with open_plain_nursery() as nursery:
            for _ in range(min(PROVIDE_CONCURRENCY, len(due))):
                nursery.start_soon(self._provide_all, keys, failed)
        self._due |= dict.fromkeys(failed, trio.current_time() + PROVIDE_RETRY_SECONDS)
        times = [*self._due.values(), self._all_due]
        return max(0.0, min(times) - trio.current_time())

    async def _provide_all(self, keys: Iterator[bytes], failed: list[bytes]) -> None:
        for key in keys:
            if self._failures < PROVIDE_FAILURES_MAX:
                confirmed = await self._routing.provide(key)
            else:
                confirmed = 0  # this node is alone: the rest would fare no better
            if confirmed:
                self._failures = 0
                self._due.pop(key, None)
                self._confirmed.set()
                self._confirmed = trio.Event()
            else:
                self._failures += 1
                failed.append(key)

    def _keys(self) -> list[bytes]:
        """In a worker: everything that this node provides."""
        catalog = self._stores.catalog
        segments = catalog.held_segments()
        cids = [*catalog.held_roots(), *segments, *(pin.root for pin in catalog.pins())]
        for segment in segments:  # several roots may share it
            cids += catalog.roots_with_segment(segment)
        return list(dict.fromkeys(cid.multihash for cid in cids if _can_be_provided(cid)))


def _can_be_provided(cid: CID) -> bool:
    """Not what carries its own bytes, nor what the DHT has no room for as a key."""
    return not cid.is_identity and len(cid.multihash) <= KAD_KEY_BYTES_MAX
