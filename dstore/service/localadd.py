"""Adding to this node alone: import the blocks, keep them with a local pin.

The first half of every add, and all of it where no daemon runs.  Blocks are durable before
they are named; what a killed process left is released when the stores are opened again.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

import trio

from dstore.core.cid import CID
from dstore.core.unixfs import iter_dag, profile_named
from dstore.runtime import Runtime
from dstore.service.importing import Imported, Importer, Note, no_note
from dstore.service.progress import AddOptions, Report
from dstore.service.rootturns import RootTurns
from dstore.service.stores import Stores
from dstore.storage.blockstore import Block
from dstore.storage.rows import PinRow, ReferenceKind, operation_key, pin_key

Import = Callable[[Importer], Awaitable[Imported]]


async def add_locally(
    stores: Stores,
    turns: RootTurns,
    runtime: Runtime,
    run: Import,
    options: AddOptions,
    report: Report,
    *,
    note: Note = no_note,
    read_soon: bool = False,
) -> Imported:
    """Import with `run` and pin the root locally.  `note` as `Importer` takes it, `read_soon` as
    `BlockStore.put_many`.  Raises NotFoundError, CallerError, StorageFull."""
    async with Operation("add", stores, runtime, read_soon=read_soon) as save:
        importer = Importer(profile_named(options.profile), save, runtime.workers, report, note)
        imported = await run(importer)
        async with turns.pinning(imported.cid):
            await runtime.workers.run(_pin, stores, runtime, imported.cid, options.name)
    return imported


def _pin(stores: Stores, runtime: Runtime, root: CID, name: str | None) -> None:
    """In a worker.  The DAG is stored: keep it, so that nothing of the operation is needed
    any more."""
    blocks, catalog, now = stores.blocks, stores.catalog, runtime.clock.now()
    pinned = catalog.get_pin(root) is not None

    def size_of(cid: CID) -> int:
        return blocks.size(cid) or 0

    def pin(known: PinRow | None) -> PinRow:
        if known is None:
            return PinRow(root, "local", name, now, None)
        if known.mode == "local" and known.expires is not None and known.expires <= now:
            # Letting go of it was begun and cut short, or holders are asked no more.
            known = replace(known, expires=None)
        return replace(known, name=name or known.name)

    multihashes = (visit.cid.multihash for visit in iter_dag(root, blocks.get, size_of))
    try:
        catalog.reference(ReferenceKind.LOCAL_PIN, pin_key(root), multihashes, durable=True)
        catalog.change_pin(root, pin)
        pinned = True
    finally:
        if not pinned:
            catalog.release(ReferenceKind.LOCAL_PIN, pin_key(root))


class Operation:
    """Keeps what is saved under it until the block ends; what a killed process left is
    released when the node starts."""

    def __init__(
        self, kind: str, stores: Stores, runtime: Runtime, *, read_soon: bool = True
    ) -> None:
        """`read_soon` as `BlockStore.put_many` takes it."""
        self._kind = kind
        self._read_soon = read_soon
        self._stores = stores
        self._runtime = runtime
        self._id = 0

    async def __aenter__(self) -> Callable[[Sequence[Block]], None]:
        self._id = await self._runtime.workers.run(
            self._stores.catalog.begin_operation, self._kind, self._runtime.clock.now()
        )
        return self._save

    async def __aexit__(self, *exc: object) -> None:
        with trio.CancelScope(shield=True):
            await self._runtime.workers.run(self._stores.catalog.end_operation, self._id)

    def _save(self, blocks: Sequence[Block]) -> None:
        """In a worker.  Reference first, then put: collection beside us takes nothing."""
        self._stores.catalog.reference(
            ReferenceKind.OPERATION,
            operation_key(self._id),
            [cid.multihash for cid, _ in blocks],
        )
        self._stores.blocks.put_many(blocks, read_soon=self._read_soon)
