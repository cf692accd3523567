"""Who works on a root: its adds one after the other, and whoever lets go of it before them all.

Two adds of the same bytes would sign pin records against each other, and a pin that is let go
of during an add would come back without what it keeps.  Letting go does not wait for an add
that may take hours: it ends it.  Only this process is meant; other devices with the owner's
key are the business of `service/pinrecords.py`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio

from dstore.core.cid import CID
from dstore.errors import CallerError
from dstore.storage.rows import pin_key


@dataclass(eq=False)
class _Root:
    """What goes on about one root; `pin` is for who changes the pin: no longer than it takes to
    list the blocks of the root."""

    users: int = 0
    protecting: trio.Lock = field(default_factory=trio.Lock)
    pin: trio.Lock = field(default_factory=trio.Lock)
    adds: set[trio.CancelScope] = field(default_factory=set)


class RootTurns:
    """Turns by root; one that nobody uses is not remembered."""

    def __init__(self) -> None:
        self._roots: dict[bytes, _Root] = {}

    def __len__(self) -> int:
        return len(self._roots)

    @asynccontextmanager
    async def pinning(self, root: CID) -> AsyncIterator[None]:
        """While the pin is written: nobody lets go of it meanwhile."""
        async with self._of(root) as one, one.pin:
            yield

    @asynccontextmanager
    async def protecting(self, root: CID) -> AsyncIterator[None]:
        """While the pinned root is brought to holders, after the adds that came before.  Raises
        CallerError where it is let go of meanwhile: what is under way here is cancelled."""
        async with self._of(root) as one:
            with trio.CancelScope() as scope:
                one.adds.add(scope)
                try:
                    async with one.protecting:
                        yield
                finally:
                    one.adds.discard(scope)
        if scope.cancelled_caught:
            raise let_go_of(root)

    @asynccontextmanager
    async def letting_go(self, root: CID) -> AsyncIterator[None]:
        """While the root is let go of: the adds that have come so far are ended, later ones
        wait."""
        async with self._of(root) as one:
            for scope in one.adds:
                scope.cancel()
            async with one.protecting, one.pin:
                yield

    @asynccontextmanager
    async def _of(self, root: CID) -> AsyncIterator[_Root]:
        key = pin_key(root)
        one = self._roots.setdefault(key, _Root())
        one.users += 1
        try:
            yield one
        finally:
            one.users -= 1
            if not one.users:
                del self._roots[key]


def let_go_of(root: CID) -> CallerError:
    """What becomes of an add whose root was let go of before it ended."""
    return CallerError(
        f"{root} was let go of (`dstore pin rm`) while it was added; add it again to keep it"
    )
