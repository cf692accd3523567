"""Keeping the DHT's provider records across restarts: read once in the background, then what
is new written every few seconds.

Nothing waits for it: a node serves the DHT before its old records are back, and what a crash
loses of the last seconds other nodes have too.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from dstore.limits import PROVIDER_SAVE_RECORDS, PROVIDER_SAVE_SECONDS
from dstore.network.routing import ProviderEntry, Routing
from dstore.network.streams import PeerAddresses
from dstore.runtime import Runtime, open_plain_nursery
from dstore.service.worker import Worker
from dstore.storage.providers import ProviderFile, SavedProvider


class ProviderKeeper:
    """Saves what `routing` holds for others in the file at `path`."""

    def __init__(self, path: Path, routing: Routing, runtime: Runtime) -> None:
        self._path = path
        self._routing = routing
        self._runtime = runtime
        self._file: ProviderFile | None = None
        self._saved_at = 0.0
        self.worker = Worker("providers", self.step)

    async def step(self) -> float:
        """Load what was saved, the first time; save what has come since the last."""
        file = self._file
        if file is None:
            self._saved_at = trio.current_time()
            file = await self._runtime.workers.run(self._open, self._saved_at)
            await self._load(file)
        now = trio.current_time()
        entries = self._routing.export_providers(since=self._saved_at)
        for start in range(0, max(len(entries), 1), PROVIDER_SAVE_RECORDS):
            await self._save(file, entries[start : start + PROVIDER_SAVE_RECORDS], now)
        self._saved_at = now
        return PROVIDER_SAVE_SECONDS

    def _open(self, now: float) -> ProviderFile:
        """In a worker."""
        self._file = ProviderFile(self._path, day=self._runtime.clock.now(), now=now)
        return self._file

    async def _load(self, file: ProviderFile) -> None:
        saved = await self._runtime.workers.run(file.load, trio.current_time())
        for start in range(0, len(saved), PROVIDER_SAVE_RECORDS):
            self._routing.import_providers(
                ProviderEntry(r.key, PeerAddresses(r.peer, r.addresses), r.seconds_left)
                for r in saved[start : start + PROVIDER_SAVE_RECORDS]
            )
            await trio.lowlevel.checkpoint()

    async def _save(self, file: ProviderFile, entries: list[ProviderEntry], now: float) -> None:
        records = [
            SavedProvider(e.key, e.provider.peer, e.provider.addresses, e.seconds_left)
            for e in entries
        ]
        day = self._runtime.clock.now()
        await self._runtime.workers.run(lambda: file.save(records, day=day, now=now))

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()


@asynccontextmanager
async def open_provider_keeper(
    path: Path, routing: Routing, runtime: Runtime
) -> AsyncIterator[ProviderKeeper]:
    """A `ProviderKeeper` that works until the block ends."""
    keeper = ProviderKeeper(path, routing, runtime)
    try:
        async with open_plain_nursery() as nursery:
            nursery.start_soon(keeper.worker.run)
            yield keeper
            nursery.cancel_scope.cancel()
    finally:
        with trio.CancelScope(shield=True):
            await runtime.workers.run(keeper.close)
