"""One yamux stream as its reader and its writer see it: chunks received, waiting, the end.

Which bytes may come and go is the state machine's business (`core/yamux.py`), moving them
the session's (`network/yamux.py`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Final

import trio
from libp2p.abc import IMuxedStream
from libp2p.stream_muxer.exceptions import MuxedStreamClosed, MuxedStreamEOF, MuxedStreamReset

from dstore.errors import ConnectionLost
from dstore.limits import STREAM_READ_BYTES_MAX, YAMUX_FRAME_BYTES_MAX, YAMUX_OUT_BYTES_HIGH

if TYPE_CHECKING:
    from dstore.network.yamux import YamuxSession

# Pieces shorter than this are kept joined: an object of its own for each byte that a peer
# sends would hold forty times what its window allows.
_SMALL_BYTES: Final = 4096
_JOINED_BYTES: Final = 64 * 1024
# A writer lets the others have their turn after this much.
_TURN_BYTES: Final = YAMUX_FRAME_BYTES_MAX


class StreamLost(ConnectionLost, MuxedStreamReset):  # type: ignore[misc] # libp2p is untyped
    """The stream was reset, by either side, or its connection was lost."""


class StreamShut(ConnectionLost, MuxedStreamClosed):  # type: ignore[misc] # same
    """This side had closed the stream before."""


class YamuxStream(IMuxedStream):  # type: ignore[misc] # libp2p is untyped
    """One stream.  `read`, `write`, `close` as libp2p wants them; `read_some`, `write`,
    `close_write`, `close`, `reset` as `dstore.network.streams.Stream` wants them.
    What it raises is both a `dstore.errors.ConnectionLost` and a libp2p exception.

    Any await may be cancelled without harm to the connection and to other streams."""

    def __init__(self, session: YamuxSession, stream_id: int, *, is_initiator: bool) -> None:
        self.muxed_conn = session
        self.stream_id = stream_id
        self.is_initiator = is_initiator
        self._core = session.core
        self._chunks: deque[bytes | bytearray | memoryview] = deque()
        self._readable = trio.Event()
        self._writable = trio.Event()
        self._ended = False  # the peer sends no more
        self._write_shut = False
        self._shut = False  # closed here, both ways
        self._lost: str | None = None
        self.on_arrival: Callable[[int], None] | None = None  # called with the size of what comes

    async def read_some(self, max_bytes: int = STREAM_READ_BYTES_MAX) -> bytes:
        """At least one byte, at most `max_bytes`; b"" after the peer closed its side.
        Raises StreamLost, or StreamShut after `close`."""
        if not await self._wait_readable():
            return b""
        data = self._take(max_bytes)
        self._consumed(len(data))
        return data if type(data) is bytes else bytes(data)

    async def read_pieces(self, max_bytes: int) -> list[bytes | memoryview]:
        """As `read_some`, all that has come up to `max_bytes`, as it came."""
        if not await self._wait_readable():
            return []
        pieces: list[bytes | memoryview] = []
        left = max_bytes
        while self._chunks and left:
            piece = self._take(left)
            pieces.append(piece)
            left -= len(piece)
        self._consumed(max_bytes - left)
        return pieces

    async def _wait_readable(self) -> bool:
        """Until something has come; False after the peer's end."""
        await trio.lowlevel.checkpoint_if_cancelled()
        while not self._chunks:
            if self._shut:
                raise StreamShut(f"stream {self.stream_id} is closed")
            if self._ended:
                self._forget_if_over()
                return False
            if self._lost is not None:
                raise StreamLost(self._lost)
            if self._readable.is_set():
                self._readable = trio.Event()
            await self._readable.wait()
        return True

    def _take(self, max_bytes: int) -> bytes | memoryview:
        """The next piece, or the front of it."""
        chunk = self._chunks[0]
        if len(chunk) <= max_bytes:
            self._chunks.popleft()
            return bytes(chunk) if isinstance(chunk, bytearray) else chunk
        view = memoryview(chunk)
        self._chunks[0] = view[max_bytes:]
        return view[:max_bytes]

    def _consumed(self, size: int) -> None:
        self._core.consumed(self.stream_id, size)
        self.muxed_conn.operated()

    async def read(self, n: int | None = None) -> bytes:
        """libp2p's read: as `read_some`, but MuxedStreamEOF after the peer's end."""
        if n == 0:
            return b""
        data = await self.read_some(STREAM_READ_BYTES_MAX if n is None or n < 0 else n)
        if not data:
            raise MuxedStreamEOF("the peer closed its side")
        return data

    async def write(self, data: bytes | bytearray | memoryview) -> None:
        """Hand over all of `data`; the buffer is the caller's again on return.
        Raises StreamLost or StreamShut (both ConnectionLost)."""
        await trio.lowlevel.checkpoint_if_cancelled()
        session, core = self.muxed_conn, self._core
        with memoryview(data) as given, given.cast("B") as view:
            position, turn, end = 0, 0, len(view)
            waited = False
            while position < end:
                self._check_writable()
                # Who begins goes behind those that wait, or would pass them each time.
                behind = session.crowded and not turn and not waited
                if behind or core.pending_bytes >= YAMUX_OUT_BYTES_HIGH:
                    await session.wait_room()
                    turn, waited = 0, True
                    continue
                waited = False
                if turn >= _TURN_BYTES:
                    await trio.lowlevel.checkpoint()
                    turn = 0
                    continue
                taken = core.send(self.stream_id, view, position)
                if taken:
                    position += taken
                    turn += taken
                    session.operated()
                else:
                    if self._writable.is_set():
                        self._writable = trio.Event()
                    await self._writable.wait()
                    turn = 0
            if not end:
                self._check_writable()

    async def close_write(self) -> None:
        """Tell the peer that no more comes; reading goes on.  Does not wait."""
        if not self._write_shut:
            self._write_shut = True
            self._core.close_write(self.stream_id)
            self._writable.set()
            self._forget_if_over()
            self.muxed_conn.operated()

    async def close(self) -> None:
        """Close both sides in order; what the peer still sends is dropped.  Does not wait."""
        if not self._shut:
            self._shut = self._write_shut = True
            self._core.close(self.stream_id)
            self._drop()

    async def reset(self) -> None:
        """End both sides at once; never waits, never raises."""
        self._core.reset(self.stream_id)
        if not self._shut:
            self._shut = self._write_shut = True
            self._lost = "reset by this side"
            self._drop()
        self.muxed_conn.operated()

    def set_deadline(self, ttl: int) -> bool:
        """False: deadlines are cancel scopes here, around each read and write."""
        return False

    def get_remote_address(self) -> tuple[str, int] | None:
        return self.muxed_conn.get_remote_address()

    async def __aenter__(self) -> YamuxStream:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> None:
        await self.close()

    def _check_writable(self) -> None:
        if self._lost is not None:
            raise StreamLost(self._lost)
        if self._write_shut:
            raise StreamShut(f"stream {self.stream_id} is closed for writing")

    def _drop(self) -> None:
        self._chunks.clear()
        self.muxed_conn.forget(self.stream_id)
        self._wake()
        self.muxed_conn.operated()

    def _forget_if_over(self) -> None:
        if self._write_shut and self._ended and not self._chunks:
            self.muxed_conn.forget(self.stream_id)

    def _wake(self) -> None:
        self._readable.set()
        self._writable.set()

    # --- Called by the session ----------------------------------------------------------

    def received(self, data: bytes | memoryview) -> None:
        """Keep `data` until it is read; its window bounds how much there can be."""
        if self.on_arrival is not None:
            self.on_arrival(len(data))
        chunks = self._chunks
        if len(data) >= _SMALL_BYTES:
            chunks.append(data)
        elif chunks and type(last := chunks[-1]) is bytearray and len(last) < _JOINED_BYTES:
            last += data
        else:
            chunks.append(bytearray(data))
        self._readable.set()

    def window_grew(self) -> None:
        self._writable.set()

    def peer_ended(self) -> None:
        self._ended = True
        self._readable.set()

    def was_reset(self, reason: str) -> None:
        """The stream is gone, and what was not read with it."""
        self._ended = False
        self._chunks.clear()
        self.was_lost(reason)

    def was_lost(self, reason: str) -> None:
        """The connection is gone; what came before may be read."""
        if self._lost is None:
            self._lost = reason
        self._wake()
