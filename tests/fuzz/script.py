"""Reading an input as a script: small numbers and byte strings, zeros when it is used up.

And running coroutines that wait for nothing, without an event loop.
"""

from __future__ import annotations

from collections.abc import Coroutine
from typing import TypeVar

from dstore.errors import ConnectionLost

T = TypeVar("T")


class Script:
    """Draws from the bytes of an input, front to back."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._position = 0

    @property
    def more(self) -> bool:
        return self._position < len(self._data)

    def take(self, size: int) -> bytes:
        """The next `size` bytes, fewer at the end."""
        start, self._position = self._position, self._position + size
        return self._data[start : self._position]

    def number(self, size: int = 1) -> int:
        """The number in the next `size` bytes."""
        return int.from_bytes(self.take(size).ljust(size, b"\0"), "big")

    def rest(self) -> bytes:
        return self.take(len(self._data))


class Inbound:
    """A byte stream from a peer that has sent `data` and left: each read brings at most
    `piece` bytes.  What is written is counted and dropped."""

    def __init__(self, data: bytes, piece: int) -> None:
        self._data = data
        self._piece = max(1, piece)
        self.position = 0
        self.written = 0
        self.broken = False  # whether the end is an error

    async def read_some(self, max_bytes: int = 1 << 18) -> bytes:
        assert max_bytes > 0
        if self.position >= len(self._data) and self.broken:
            raise ConnectionLost("reset")
        start = self.position
        self.position = min(len(self._data), start + min(self._piece, max_bytes))
        return self._data[start : self.position]

    async def read_pieces(self, max_bytes: int) -> list[bytes]:
        piece = await self.read_some(max_bytes)
        return [piece] if piece else []

    async def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += len(data)


def run(coroutine: Coroutine[object, object, T]) -> T:
    """What the coroutine returns; it may wait for nothing."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        result: T = stop.value
        return result
    coroutine.close()
    raise AssertionError("a coroutine waited")
