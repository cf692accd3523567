"""Misdeeds of peers, counted as they are reported and written to the catalog behind them."""

from __future__ import annotations

import trio

from dstore.core.peerid import PeerId
from dstore.runtime import Runtime
from dstore.service.counters import Counters
from dstore.service.stores import Stores
from dstore.service.worker import Worker


class Faults:
    """Misdeeds of peers on their way to the catalog; bounded, the excess dropped."""

    def __init__(self, stores: Stores, runtime: Runtime) -> None:
        self._stores = stores
        self._runtime = runtime
        self.counters = Counters()
        self.worker = Worker("faults", self.step)
        self._send, self._receive = trio.open_memory_channel[tuple[PeerId, str, str, float]](256)

    def report(self, peer: PeerId, kind: str, detail: str) -> None:
        self.counters.fault(kind)
        try:
            self._send.send_nowait((peer, kind, detail, self._runtime.clock.now()))
        except trio.WouldBlock:
            return

    async def step(self) -> float:
        """Write down the next one."""
        fault = await self._receive.receive()
        await self._runtime.workers.run(self._stores.catalog.record_fault, *fault)
        return 0.0
