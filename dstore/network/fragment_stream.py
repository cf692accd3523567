"""One stream of `/dstore/fragments/1.0.0`: messages and blocks, each wait with its deadline.

Both sides stand on this.  It knows lengths and silence, not what the messages mean; any
error leaves the stream good for `reset` only.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TypeVar

import trio

from dstore.core.peerid import PeerId
from dstore.errors import ConnectionLost, DeadlineExceeded
from dstore.limits import (
    CONTROL_BYTES_MAX,
    MESSAGE_SECONDS,
    PROGRESS_SECONDS,
    REPAIR_MESSAGE_SECONDS,
    SMALL_WRITES_BYTES,
    STREAM_READ_BYTES_MAX,
    STREAM_WRITE_BYTES,
)
from dstore.network.repair_stream import RepairStream
from dstore.network.streams import BufferedReader, Reads, Stream, frame

T = TypeVar("T")

_FLUSH_SECONDS = 0.01  # small writes wait for company no longer than this


class _PatientReads:
    """The reading side of a stream, where silence ends in DeadlineExceeded.

    `patience_seconds` is for the next bytes only: what follows them has PROGRESS_SECONDS.
    """

    def __init__(self, stream: Reads) -> None:
        self.peer = stream.peer
        self._stream = stream
        self.patience_seconds: float = PROGRESS_SECONDS
        self.heard: Callable[[], None] = lambda: None
        self._scope: trio.CancelScope | None = None

    async def read_some(self, max_bytes: int = STREAM_READ_BYTES_MAX) -> bytes:
        return await self._patiently(self._stream.read_some, max_bytes)

    async def read_pieces(self, max_bytes: int) -> Sequence[bytes | memoryview]:
        return await self._patiently(self._stream.read_pieces, max_bytes)

    async def _patiently(self, read: Callable[[int], Awaitable[T]], max_bytes: int) -> T:
        patience_seconds, self.patience_seconds = self.patience_seconds, PROGRESS_SECONDS
        with trio.move_on_after(patience_seconds) as self._scope:
            data = await read(max_bytes)
            self.heard()
            return data
        raise DeadlineExceeded(f"{self.peer} sent nothing for {patience_seconds:g} s")

    def own_wait(self) -> AbstractContextManager[None]:
        """For what is waited for on this side."""
        return _put_off(self._scope)


class FragmentStream:
    """Reads by one task, writes by any number: a message and the block behind it stay
    together."""

    def __init__(self, stream: Stream) -> None:
        self._reads = _PatientReads(stream)
        self._reads.heard = self._heard
        self._reader = BufferedReader(self._reads)
        self._stream = stream
        self._writing = trio.Lock()
        self._write_scope: trio.CancelScope | None = None
        self._small = bytearray()
        self._flushed_at = -math.inf
        self.written_at = trio.current_time()  # when the peer last took bytes
        self._message_seconds: float = MESSAGE_SECONDS
        if isinstance(stream, RepairStream):
            self._message_seconds = REPAIR_MESSAGE_SECONDS
            stream.on_own_waits(self._reads.own_wait, lambda: _put_off(self._write_scope))

    @property
    def peer(self) -> PeerId:
        return self._stream.peer

    def _heard(self) -> None:
        """Who sends is alive: a write that waits for it may wait on."""
        if self._write_scope is not None and self._write_scope.deadline < math.inf:
            self._write_scope.deadline = trio.current_time() + PROGRESS_SECONDS

    # --- Reading -----------------------------------------------------------------------

    async def read_length(self, patience_seconds: float) -> int | None:
        """The length of the next control message, None at the end of the stream.  Its first
        byte may take `patience_seconds`.  Raises DeadlineExceeded, ConnectionLost and, for a
        length above CONTROL_BYTES_MAX, ProtocolViolation."""
        self._reads.patience_seconds = patience_seconds
        return await self._reader.read_length(CONTROL_BYTES_MAX)

    async def read_bytes(self, size: int) -> bytes:
        """The next `size` bytes, which the caller has checked: a message or a block."""
        if (ready := self._reader.take_ready(size)) is not None:
            return ready
        self._reads.patience_seconds = PROGRESS_SECONDS
        with trio.move_on_after(self._message_seconds) as scope:
            data = await self._reader.read_exactly(size)
        if scope.cancelled_caught:
            seconds = self._message_seconds
            raise DeadlineExceeded(f"{self.peer} took over {seconds:g} s for {size} bytes")
        return data

    async def read_message(self, patience_seconds: float) -> bytes:
        """The next control message.  Raises as `read_length`; the end of the stream is
        ConnectionLost."""
        size = await self.read_length(patience_seconds)
        if size is None:
            raise ConnectionLost(f"{self.peer} ended the stream within an exchange")
        return await self.read_bytes(size)

    async def discard(self) -> None:
        """Drop what comes until the stream ends."""
        while await self._reads.read_some():
            pass

    # --- Writing -----------------------------------------------------------------------

    async def send(self, message: bytes) -> None:
        """One control message, at once."""
        async with self._writing:
            self._small += frame(message)
            await self._flush()

    async def queue(self, message: bytes, block: bytes = b"") -> None:
        """A control message and the block behind it; small ones may wait for `flush`, or for
        the next of them, up to a hundredth of a second past the last write."""
        room = SMALL_WRITES_BYTES - len(self._small) - len(message) - len(block)
        due = trio.current_time() > self._flushed_at + _FLUSH_SECONDS
        if room > 0 and not due and not self._writing.locked():
            self._small += frame(message)
            self._small += block
            return
        async with self._writing:
            self._small += frame(message)
            if len(block) < SMALL_WRITES_BYTES:
                self._small += block
                await self._flush()
            else:
                await self._flush()
                await self._write(block)

    async def flush(self) -> None:
        """Hand over what `queue` kept."""
        if self._small:
            async with self._writing:
                await self._flush()

    async def _flush(self) -> None:
        if self._small:
            small, self._small = self._small, bytearray()
            await self._write(small)

    async def _write(self, data: bytes | bytearray) -> None:
        """All of `data`, each slice of it within PROGRESS_SECONDS of the last sign of life."""
        view = memoryview(data)
        for start in range(0, len(view), STREAM_WRITE_BYTES):
            with trio.move_on_after(PROGRESS_SECONDS) as scope:
                self._write_scope = scope
                await self._stream.write(view[start : start + STREAM_WRITE_BYTES])
            self._write_scope = None
            if scope.cancelled_caught:
                raise DeadlineExceeded(f"{self.peer} took nothing for {PROGRESS_SECONDS} s")
            self.written_at = trio.current_time()
        self._flushed_at = trio.current_time()

    # --- Ending ------------------------------------------------------------------------

    async def close_write(self) -> None:
        """Tell the peer that no more comes."""
        await self._stream.close_write()

    async def close(self) -> None:
        """Close in order; what the peer still sends is dropped."""
        await self._stream.close()

    async def reset(self) -> None:
        """End both sides at once."""
        await self._stream.reset()


@contextmanager
def _put_off(scope: trio.CancelScope | None) -> Iterator[None]:
    """While this side waits for itself, and not for the peer, which has all its time after."""
    if scope is not None:
        scope.deadline = math.inf
    yield
    if scope is not None:
        scope.deadline = trio.current_time() + PROGRESS_SECONDS


async def alongside(
    background: Callable[[], Awaitable[None]], main: Callable[[], Awaitable[T]]
) -> T:
    """What `main` returns, `background` running beside it and cancelled at its end.  The
    first error of either cancels the other and is raised bare."""
    results: list[T] = []
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(background)
            results.append(await main())
            nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        raise _first_error(group) from None
    return results[0]


def _first_error(group: BaseExceptionGroup) -> BaseException:
    """An error of the group that is more than a cancellation, where there is one."""
    leaves: list[BaseException] = []
    groups: list[BaseExceptionGroup] = [group]
    while groups:
        for error in groups.pop().exceptions:
            if isinstance(error, BaseExceptionGroup):
                groups.append(error)
            else:
                leaves.append(error)
    errors = [error for error in leaves if not isinstance(error, trio.Cancelled)]
    return errors[0] if errors else group
