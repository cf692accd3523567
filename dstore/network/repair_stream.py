"""A stream whose bytes come after those of the foreground: repair and other maintenance.

A wrapper with the interface of `Stream`.  It hands little at a time to the connection, each
piece when the limits have room for it, and takes little at a time from it, so that the peer's
window holds the peer back.  Without a limit nothing waits; what a limit is, `shaping.py` knows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

from dstore.core.peerid import PeerId
from dstore.limits import STREAM_READ_BYTES_MAX

if TYPE_CHECKING:  # it brings libp2p, which the fragment protocol does without
    from dstore.network.connection import HostStream

_OwnWait = Callable[[], AbstractContextManager[None]]


class RepairStream:
    """A `Stream` over another one that is given up to it."""

    def __init__(self, stream: HostStream) -> None:
        self._stream = stream
        self._line = stream.connection.line
        self._untaken_bytes = 0
        self._ended = False
        self._while_reading: _OwnWait = nullcontext
        self._while_writing: _OwnWait = nullcontext
        stream.on_arrival(self._arrived)

    def on_own_waits(self, reading: _OwnWait, writing: _OwnWait) -> None:
        """Enter these around what a read or a write waits for here: that is not the peer's."""
        self._while_reading, self._while_writing = reading, writing

    def _arrived(self, size: int) -> None:
        if not self._ended:
            self._untaken_bytes += size
            self._line.repair_arrived(size)

    async def _took(self, size: int) -> None:
        if size and not self._ended:
            self._untaken_bytes -= size
            with self._while_reading():
                await self._line.after_repair_took(size)

    def _end(self) -> None:
        """Nobody will take what came: the connection has to wait for it after all."""
        if not self._ended:
            self._ended = True
            self._line.repair_dropped(self._untaken_bytes)

    @property
    def peer(self) -> PeerId:
        return self._stream.peer

    async def read_some(self, max_bytes: int = STREAM_READ_BYTES_MAX) -> bytes:
        data = await self._stream.read_some(min(max_bytes, self._line.repair_turn_down()))
        await self._took(len(data))
        return data

    async def read_pieces(self, max_bytes: int) -> Sequence[bytes | memoryview]:
        pieces = await self._stream.read_pieces(min(max_bytes, self._line.repair_turn_down()))
        await self._took(sum(map(len, pieces)))
        return pieces

    async def write(self, data: bytes | bytearray | memoryview) -> None:
        with memoryview(data) as given, given.cast("B") as view:
            position = 0
            while position < len(view):
                piece = view[position : position + self._line.repair_turn_up()]
                with self._while_writing():
                    await self._line.before_repair_sends(len(piece))
                await self._stream.write(piece)
                position += len(piece)

    async def close_write(self) -> None:
        await self._stream.close_write()

    async def close(self) -> None:
        self._end()
        await self._stream.close()

    async def reset(self) -> None:
        self._end()
        await self._stream.reset()
