"""The way out of a node: no new operations, a moment for those under way, then an end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import trio

from dstore.errors import NodeError


class Gate:
    """Operations pass through it; closed, it lets none in and waits for those inside."""

    def __init__(self) -> None:
        self._closed = False
        self._inside: dict[trio.CancelScope, None] = {}
        self._left = trio.Event()  # set, and replaced, whenever one leaves

    @property
    def inside(self) -> int:
        """Operations under way."""
        return len(self._inside)

    def check(self) -> None:
        """Raises NodeError once the gate is closed."""
        if self._closed:
            raise NodeError("the node is shutting down; try again once it runs")

    @contextmanager
    def enter(self) -> Iterator[None]:
        """Around one operation.  Raises NodeError where the gate is closed, or the operation
        was still inside when the time was up."""
        self.check()
        scope = trio.CancelScope()
        self._inside[scope] = None
        try:
            with scope:
                yield
        finally:
            del self._inside[scope]
            self._left.set()
            self._left = trio.Event()
        if scope.cancelled_caught:
            raise NodeError("the node was shut down before this was done")

    async def drain(self, seconds: float) -> None:
        """Let nobody in any more, wait `seconds` at most until all have left by themselves,
        and cancel the rest."""
        self._closed = True
        with trio.move_on_after(seconds):
            while self._inside:
                await self._left.wait()
        self.end()
        while self._inside:
            await self._left.wait()

    def end(self) -> None:
        """Let nobody in any more and cancel whoever is inside."""
        self._closed = True
        for scope in self._inside:
            scope.cancel()
