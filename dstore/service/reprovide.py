"""Telling the DHT what is here: new roots and segments at once, all of them every 22 hours.

Keys are the multihashes of roots that this node has pinned or holds part of, and of the
segments it holds slots of.  Which are told when is the core's decision (`core/provide_queue.py`).
"""

from __future__ import annotations

import trio

from dstore.core.cid import CID
from dstore.core.provide_queue import ProvideQueue
from dstore.limits import KAD_KEY_BYTES_MAX, REPROVIDE_SECONDS
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
        self._queue = ProvideQueue()
        self._all_due = 0.0
        self._telling: frozenset[bytes] = frozenset()  # the keys of the batch under way
        self._confirmed = trio.Event()  # set, and replaced, with news of any key
        self.worker = Worker("reprovide", self.step)

    @property
    def due(self) -> int:
        """Keys that fewer peers have confirmed than are wanted."""
        return len(self._queue)

    def provide_soon(self, *cids: CID) -> None:
        """Announce these with the next step, which comes at once, and go on trying until
        enough peers have confirmed them."""
        self._queue.soon(cid.multihash for cid in cids if _can_be_provided(cid))
        self.worker.wake()

    async def announce(self, cid: CID) -> None:
        """Have it told, where it is not being told already, and wait until a peer has
        confirmed it.  May take for ever."""
        if cid.multihash not in self._telling:
            self.provide_soon(cid)
        while self._queue.unconfirmed(cid.multihash):
            await self._confirmed.wait()

    async def step(self) -> float:
        """Provide a batch of what is due; returns the seconds until the next."""
        now = trio.current_time()
        if now >= self._all_due:
            self._queue.round(await self._runtime.workers.run(self._keys), now)
            self._all_due = now + REPROVIDE_SECONDS
        batch = self._queue.batch(now)
        if batch.keys:
            self._telling = frozenset(batch.keys)
            try:
                told = await self._routing.provide_many(batch.keys, self._note_confirmed)
            finally:
                self._telling = frozenset()
            if self._queue.note(batch, told, trio.current_time()):
                self._wake_waiting()
        ended = trio.current_time()
        pause = self._queue.pause(batch, now, ended)
        return max(0.0, min(pause, self._all_due - ended))

    def _note_confirmed(self, key: bytes) -> None:
        if self._queue.unconfirmed(key):
            self._queue.confirmed(key)
            self._wake_waiting()

    def _wake_waiting(self) -> None:
        self._confirmed.set()
        self._confirmed = trio.Event()

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
