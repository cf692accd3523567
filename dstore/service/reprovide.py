"""Telling the DHT what is here: new roots and segments at once, all of them every 22 hours.

Keys are the multihashes of roots that this node has pinned or holds part of, and of the
segments it holds slots of.  A key that too few peers have confirmed is told again, ever less
often; the rest of a round does not wait for it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

import trio

from dstore.core.cid import CID
from dstore.core.kademlia import kad_id
from dstore.limits import (
    KAD_KEY_BYTES_MAX,
    PROVIDE_BATCH_KEYS,
    PROVIDE_RETRY_SECONDS,
    PROVIDE_RETRY_SECONDS_MAX,
    REPROVIDE_SECONDS,
)
from dstore.network.kad_provide import Provided
from dstore.network.routing import Routing
from dstore.runtime import Runtime
from dstore.service.stores import Stores
from dstore.service.worker import Worker

_AT_ONCE: Final = -math.inf  # and before the great round


@dataclass(slots=True)
class _Due:
    """One key that wants telling, at `time`."""

    time: float
    tries: int = 0
    confirmed: bool = False  # by one peer at least


class Reprovider:
    """Keeps this node's provider records alive."""

    def __init__(self, routing: Routing, stores: Stores, runtime: Runtime) -> None:
        self._routing = routing
        self._stores = stores
        self._runtime = runtime
        self._due: dict[bytes, _Due] = {}
        self._all_due = 0.0
        self._confirmed = trio.Event()  # set, and replaced, with each batch
        self.worker = Worker("reprovide", self.step)

    @property
    def due(self) -> int:
        """Keys that fewer peers have confirmed than are wanted."""
        return len(self._due)

    def provide_soon(self, *cids: CID) -> None:
        """Announce these with the next step, which comes at once, and go on trying until
        enough peers have confirmed them."""
        for cid in cids:
            if _can_be_provided(cid):
                self._due[cid.multihash] = _Due(_AT_ONCE)
        self.worker.wake()

    async def announce(self, cid: CID) -> None:
        """`provide_soon`, and wait until a peer has confirmed it.  May take for ever."""
        self.provide_soon(cid)
        while (due := self._due.get(cid.multihash)) is not None and not due.confirmed:
            await self._confirmed.wait()

    async def step(self) -> float:
        """Provide a batch of what is due; returns the seconds until the next."""
        now = trio.current_time()
        if now >= self._all_due:
            for key in await self._runtime.workers.run(self._keys):
                self._due.setdefault(key, _Due(now))
            self._all_due = now + REPROVIDE_SECONDS
        # What was asked for just now comes before the great round.
        due = [key for key, due in self._due.items() if due.time <= now]
        fresh = [key for key in due if self._due[key].time == _AT_ONCE]
        batch = sorted(fresh or due, key=kad_id)[:PROVIDE_BATCH_KEYS]
        if batch:
            self._note(await self._routing.provide_many(batch), due)
        ended = trio.current_time()
        pause = max(0.0, min((d.time for d in self._due.values()), default=ended) - ended)
        if not self._due:
            return max(0.0, self._all_due - ended)
        # The great round leaves half of the time to others.
        return min(pause if fresh else max(pause, ended - now), max(0.0, self._all_due - ended))

    def _note(self, told: Mapping[bytes, Provided], due: Iterable[bytes]) -> None:
        """Keys told to enough peers are done, the others wait."""
        retry = trio.current_time() + PROVIDE_RETRY_SECONDS
        if not any(provided.told for provided in told.values()):
            for key in due:  # this node is alone: the rest would fare no better
                self._due[key].time = retry
            return
        for key, provided in told.items():
            waiting = self._due[key]
            waiting.confirmed |= provided.confirmed > 0
            if provided.enough:
                del self._due[key]
            else:
                later = PROVIDE_RETRY_SECONDS * (2**waiting.tries - 1)
                waiting.time = min(retry + later, retry + PROVIDE_RETRY_SECONDS_MAX)
                waiting.tries = min(waiting.tries + 1, 16)
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
