"""The stores of a home directory: made, opened, and put right after what went wrong."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager

import trio

from dstore.core.pinrecord import open_lease
from dstore.errors import ProtocolViolation
from dstore.runtime import Runtime
from dstore.service.restore import restore_references
from dstore.service.stores import Stores
from dstore.storage.catalog import open_catalog
from dstore.storage.diskstore import open_disk_store
from dstore.storage.layout import Home
from dstore.storage.records import RecordFiles


def init_home(home: Home, runtime: Runtime) -> bool:
    """Make the home directory with its keys, in a worker; False where they are there.  One
    that was cut short is finished; a key that an older home has lost is not made up."""
    made = not home.exists
    if not made and home.catalog.exists():
        return False
    home.create()
    for path in (home.identity_key, home.owner_key):
        if not path.exists():
            home.write_private(path, runtime.random.randbytes(32))
            made = True
    return made


@asynccontextmanager
async def open_stores(
    home: Home,
    runtime: Runtime,
    *,
    capacity_bytes: int | None,
    reserve_bytes: int,
) -> AsyncIterator[Stores]:
    """The stores of a home directory whose lock the caller holds; a lost catalog is rebuilt
    from the record files, and what killed operations kept is let go."""

    opened = ExitStack()

    def work() -> Stores:
        with ExitStack() as failed:
            records = RecordFiles(home.records)
            failed.callback(records.close)
            catalog = open_catalog(home.catalog, records)
            failed.callback(catalog.close)
            if catalog.created:
                catalog.rebuild(records, now=runtime.clock.now(), serial_of=_serial)
            catalog.release_stale_operations()
            catalog.release_stale_pins()
            blocks = open_disk_store(
                home.blocks,
                reserve_bytes=reserve_bytes,
                capacity_bytes=capacity_bytes,
            )
            failed.callback(blocks.close)
            stores = Stores(blocks, catalog)
            if catalog.references_missing:
                restore_references(stores)
            opened.push(failed.pop_all())
        return stores

    stores = await runtime.workers.run(work)
    try:
        yield stores
    finally:
        with trio.CancelScope(shield=True):
            await runtime.workers.run(opened.close)


def _serial(lease: bytes) -> int:
    """The serial of a lease that this node signed itself; 0 where it does not open."""
    try:
        return open_lease(lease, math.inf).lease.serial
    except ProtocolViolation:
        return 0
