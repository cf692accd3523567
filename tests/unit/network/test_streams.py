"""BufferedReader: exact whatever the cuts, lengths checked first, bytes copied once."""

from __future__ import annotations

import itertools
import tracemalloc
from collections.abc import Iterable

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from dstore.core.cid import encode_varint
from dstore.core.peerid import PeerId
from dstore.errors import ConnectionLost, ProtocolViolation
from dstore.limits import STREAM_READ_BYTES_MAX
from dstore.network.streams import BufferedReader, Stream, frame
from dstore.testing.deterministic import peer_number


class CannedStream:
    """A stream that yields the given pieces, cut further where a read asks for less."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces = (piece for piece in pieces if piece)
        self._rest = memoryview(b"")
        self.reads: list[int] = []

    @property
    def peer(self) -> PeerId:
        return peer_number(0)

    async def read_some(self, max_bytes: int = STREAM_READ_BYTES_MAX) -> bytes:
        await trio.lowlevel.checkpoint()
        self.reads.append(max_bytes)
        if not self._rest:
            piece = next(self._pieces, b"")
            if len(piece) <= max_bytes:
                return piece
            self._rest = memoryview(piece)
        taken, self._rest = self._rest[:max_bytes], self._rest[max_bytes:]
        return bytes(taken)

    async def read_pieces(self, max_bytes: int) -> list[bytes]:
        piece = await self.read_some(max_bytes)
        return [piece] if piece else []

    async def write(self, data: bytes | bytearray | memoryview) -> None:
        raise AssertionError("the reader does not write")

    async def close_write(self) -> None:
        raise AssertionError("the reader does not close")

    async def close(self) -> None:
        raise AssertionError("the reader does not close")

    async def reset(self) -> None:
        raise AssertionError("the reader does not reset")


def _reader(*pieces: bytes) -> BufferedReader:
    stream: Stream = CannedStream(pieces)
    return BufferedReader(stream)


def _cut(data: bytes, sizes: Iterable[int]) -> list[bytes]:
    pieces, start = [], 0
    for size in sizes:
        if start >= len(data):
            break
        pieces.append(data[start : start + size])
        start += size
    return [*pieces, data[start:]]


@given(
    messages=st.lists(st.binary(max_size=300), max_size=8),
    tail=st.binary(max_size=600),
    sizes=st.lists(st.integers(1, 200), max_size=30),
)
def test_messages_and_raw_bytes_survive_every_cut(
    messages: list[bytes], tail: bytes, sizes: list[int]
) -> None:
    async def check() -> None:
        # A message, then raw bytes, as the fragment protocol sends them.
        sent = b"".join(frame(message) + message[::-1] for message in messages) + tail
        reader = _reader(*_cut(sent, sizes))
        for message in messages:
            assert await reader.read_message(300) == message
            assert await reader.read_exactly(len(message)) == message[::-1]
        assert await reader.read_exactly(len(tail)) == tail
        assert await reader.read_message(300) is None
        assert await reader.read_exactly(0) == b""

    trio.run(check)


@pytest.mark.parametrize("cut", [1, 2, 100])
async def test_oversized_message_is_refused_before_allocation(cut: int) -> None:
    declared = 1 << 40
    data = encode_varint(declared) + b"start"
    stream = CannedStream(_cut(data, itertools.repeat(cut)))
    tracemalloc.start()
    try:
        with pytest.raises(ProtocolViolation, match=str(declared)):
            await BufferedReader(stream).read_message(1000)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()
    assert all(asked <= STREAM_READ_BYTES_MAX for asked in stream.reads)


async def test_limit_is_inclusive() -> None:
    assert await _reader(frame(bytes(1000))).read_message(1000) == bytes(1000)
    with pytest.raises(ProtocolViolation):
        await _reader(frame(bytes(1001))).read_message(1000)


@pytest.mark.parametrize(
    "length",
    [
        b"\x80\x00",  # not minimal
        b"\x81\x80\x00",
        b"\xff" * 9,  # ten bytes and more
        b"\xff" * 8 + b"\x80\x01",
    ],
)
@pytest.mark.parametrize("bytewise", [True, False])
async def test_malformed_lengths(length: bytes, bytewise: bool) -> None:
    pieces = _cut(length, itertools.repeat(1)) if bytewise else [length]
    with pytest.raises(ProtocolViolation):
        await _reader(*pieces).read_message(1 << 62)


async def test_ends_of_the_stream() -> None:
    assert await _reader().read_message(10) is None
    assert await _reader(frame(b"")).read_message(10) == b""
    with pytest.raises(ConnectionLost, match="length"):
        await _reader(b"\x80").read_message(1000)
    with pytest.raises(ConnectionLost, match="2 bytes short of 5"):
        await _reader(b"\x05abc").read_message(1000)
    with pytest.raises(ConnectionLost, match="short"):
        await _reader(b"abc").read_exactly(4)


async def test_bulk_reads_copy_at_most_once() -> None:
    block = bytes(STREAM_READ_BYTES_MAX)
    whole = await _reader(block).read_exactly(len(block))
    assert whole is block  # one piece is handed through
    size = 16 * len(block)
    reader = _reader(*[block] * 16)
    tracemalloc.start()
    try:
        data = await reader.read_exactly(size)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(data) == size
    assert peak < size * 1.2  # the result, and no second copy of it


async def test_many_messages_of_one_read_cost_linear_time() -> None:
    """Each message is sliced out of the piece once."""
    count = 50_000
    reader = _reader(frame(b"ab") * count)
    tracemalloc.start()
    try:
        for _ in range(count):
            assert await reader.read_message(2) == b"ab"
        # Shifting or re-slicing the rest for each message would allocate it each time.
        assert tracemalloc.get_traced_memory()[1] < 3 * count / 4
    finally:
        tracemalloc.stop()
    assert await reader.read_message(2) is None


async def test_a_large_read_asks_for_no_more_than_it_needs() -> None:
    size = STREAM_READ_BYTES_MAX + 10
    stream = CannedStream([frame(b"x") + bytes(5), bytes(size - 5), b"next"])
    reader = BufferedReader(stream)
    assert await reader.read_message(1) == b"x"
    assert await reader.read_exactly(size) == bytes(size)
    assert stream.reads[1:] == [size - 5]
