"""A holder that is sick in one way from the moment the file `sick` is in its home directory.

    python -m benchmarks.sick_holder HOME full|unaware|forging|leaseless|busy

For benchmarks and tests of how adds fare: it is the whole daemon, healthy until then.  `full`:
its disk has no room left, also for slots that it has accepted.  `unaware`: the same, and it says
that it has room.  `forging`: it takes a slot and signs the lease wrongly.  `leaseless`: it takes a
slot and never sends the lease.  `busy`: it says for ever that it is working on a slot.  Prints
one line when it is ready, and leaves the file `acted` where it was sick to somebody.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import trio

from dstore.errors import StorageFull
from dstore.interfaces.cli.main import main
from dstore.service.holder import LocalHolder, LocalReception
from dstore.storage.diskstore import DiskStore

MARK = "sick"
"""The name of the file that makes it so."""
ACTED = "acted"
"""The name of the file that tells that somebody met it so."""


def be_full(sick: Callable[[], bool]) -> None:
    room = DiskStore.room

    def no_room(store: DiskStore) -> int | None:
        return 0 if sick() else room(store)

    setattr(DiskStore, "room", no_room)  # noqa: B010  # the sickness
    be_unaware(sick)


def be_unaware(sick: Callable[[], bool]) -> None:
    put_many = DiskStore.put_many

    def put(store: DiskStore, blocks: Any, **options: Any) -> None:
        if sick():
            raise StorageFull("no space is left")
        put_many(store, blocks, **options)

    setattr(DiskStore, "put_many", put)  # noqa: B010


def forge_leases(sick: Callable[[], bool]) -> None:
    finish = LocalReception.finish

    async def forged(reception: LocalReception) -> bytes:
        lease = await finish(reception)
        return lease[:-1] + bytes([lease[-1] ^ 1]) if sick() else lease

    setattr(LocalReception, "finish", forged)  # noqa: B010


def keep_leases(sick: Callable[[], bool]) -> None:
    finish = LocalReception.finish

    async def silent(reception: LocalReception) -> bytes:
        if sick():
            await trio.sleep_forever()
        return await finish(reception)

    setattr(LocalReception, "finish", silent)  # noqa: B010


def be_busy(sick: Callable[[], bool]) -> None:
    offer, store = LocalHolder.offer_slot, LocalReception.store

    async def offered(holder: LocalHolder, *given: Any) -> LocalReception:
        if sick():
            await trio.sleep_forever()
        return await offer(holder, *given)

    async def stored(reception: LocalReception, blocks: Any) -> None:
        if sick():
            await trio.sleep_forever()
        await store(reception, blocks)

    setattr(LocalHolder, "offer_slot", offered)  # noqa: B010
    setattr(LocalReception, "store", stored)  # noqa: B010


KINDS = {
    "full": be_full,
    "unaware": be_unaware,
    "forging": forge_leases,
    "leaseless": keep_leases,
    "busy": be_busy,
}


def sickness(home: Path) -> Callable[[], bool]:
    """Whether the node is sick by now; asked where that shows."""

    def sick() -> bool:
        if not (home / MARK).exists():
            return False
        (home / ACTED).touch()
        return True

    return sick


if __name__ == "__main__":
    _, home, kind = sys.argv
    KINDS[kind](sickness(Path(home)))
    sys.argv = ["dstore", "run", "--home", home, "--json"]
    main()
