"""The way out of a node: no new operations, a moment for those under way, then an end."""

from __future__ import annotations

from contextlib import AbstractContextManager
from types import TracebackType

import trio

from dstore.errors import NodeError


class _Operation(AbstractContextManager[None]):
    """One operation inside.  No generator: a small file that is in memory passes two of them,
    and little else."""

    __slots__ = ("_inside", "_left", "_scope")

    def __init__(
        self, inside: dict[trio.CancelScope, None], left: trio.lowlevel.ParkingLot
    ) -> None:
        self._inside = inside
        self._left = left
        self._scope = trio.CancelScope()

    def __enter__(self) -> None:
        self._inside[self._scope] = None
        self._scope.__enter__()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        try:
            caught = self._scope.__exit__(kind, error, traceback)
        finally:
            del self._inside[self._scope]
            self._left.unpark_all()
        if self._scope.cancelled_caught:
            raise NodeError("the node was shut down before this was done")
        return caught


class Gate:
    """Operations pass through it; closed, it lets none in and waits for those inside."""

    def __init__(self) -> None:
        self._closed = False
        self._inside: dict[trio.CancelScope, None] = {}
        self._left = trio.lowlevel.ParkingLot()  # woken whenever one leaves

    @property
    def inside(self) -> int:
        """Operations under way."""
        return len(self._inside)

    def check(self) -> None:
        """Raises NodeError once the gate is closed."""
        if self._closed:
            raise NodeError("the node is shutting down; try again once it runs")

    def enter(self) -> AbstractContextManager[None]:
        """Around one operation.  Raises NodeError where the gate is closed, or the operation
        was still inside when the time was up."""
        self.check()
        return _Operation(self._inside, self._left)

    async def drain(self, seconds: float) -> None:
        """Let nobody in any more, wait `seconds` at most until all have left by themselves,
        and cancel the rest."""
        self._closed = True
        with trio.move_on_after(seconds):
            while self._inside:
                await self._left.park()
        self.end()
        while self._inside:
            await self._left.park()

    def end(self) -> None:
        """Let nobody in any more and cancel whoever is inside."""
        self._closed = True
        for scope in self._inside:
            scope.cancel()
