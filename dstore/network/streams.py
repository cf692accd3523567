"""What dstore asks of a network: peers, connections, streams.

Two implementations: `network/host.py` over libp2p, and `testing/memory_network.py` for the
thousand cases.  The Kademlia driver and the fragment protocol know this contract only, so
that both run on either.  Nothing here knows libp2p.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from dstore.core.cid import decode_varint, encode_varint
from dstore.core.peerid import PeerId
from dstore.errors import ConnectionLost, ProtocolViolation
from dstore.limits import STREAM_READ_BYTES_MAX

_LENGTH_BYTES_MAX: Final = 9  # an unsigned varint of 63 bits


class Reads(Protocol):
    """The reading side of a `Stream`."""

    @property
    def peer(self) -> PeerId: ...

    async def read_some(self, max_bytes: int = STREAM_READ_BYTES_MAX) -> bytes:
        """At least one byte, at most `max_bytes`; b"" after the peer closed its side.
        Raises ConnectionLost when the stream was reset or its connection was lost."""
        ...

    async def read_pieces(self, max_bytes: int) -> Sequence[bytes | memoryview]:
        """What has come, as `read_some`, but in the pieces in which it came: whoever wants
        many bytes has them in few calls and without a copy.  Empty after the peer's end."""
        ...


class Stream(Reads, Protocol):
    """One bidirectional byte stream to one peer.

    Every await may be cancelled without harm to other streams; a stream whose read or write
    was cancelled half-way is only good for `reset`.
    """

    async def write(self, data: bytes | bytearray | memoryview) -> None:
        """Hand over all of `data`, waiting while the peer's window is full.
        Raises ConnectionLost."""
        ...

    async def close_write(self) -> None:
        """Tell the peer that no more comes; reading goes on."""
        ...

    async def close(self) -> None:
        """Close both sides in order; what the peer still sends is dropped."""
        ...

    async def reset(self) -> None:
        """End both sides at once; never blocks for the peer, never raises."""
        ...


StreamHandler = Callable[[Stream], Awaitable[None]]


@dataclass(frozen=True)
class PeerAddresses:
    """Where a peer says it can be reached: multiaddrs in text, without the /p2p part."""

    peer: PeerId
    addresses: tuple[str, ...] = ()


class Network(Protocol):
    """A node's view of the network."""

    @property
    def peer_id(self) -> PeerId: ...

    def addresses(self) -> Sequence[str]:
        """Multiaddrs that this node listens on, without the /p2p part."""
        ...

    async def connect(self, target: PeerAddresses) -> None:
        """Have a connection to the peer, by the addresses given or known.
        Raises Unreachable or DeadlineExceeded."""
        ...

    async def open_stream(self, peer: PeerId, protocols: Sequence[str]) -> Stream:
        """A new stream speaking the first of `protocols` that the peer speaks; connects by
        known addresses where needed.  Raises Unreachable, ConnectionLost, DeadlineExceeded;
        ProtocolViolation where the peer speaks none of them."""
        ...

    def set_handler(self, protocol: str, handler: StreamHandler) -> None:
        """Serve `protocol`.  The stream is closed when the handler returns and reset when it
        raises; neither touches other streams."""
        ...

    def connected(self) -> Sequence[PeerId]:
        """Peers with a live connection, in no particular order."""
        ...

    def known_addresses(self, peer: PeerId) -> Sequence[str]:
        """Addresses by which the peer was reached or announced."""
        ...

    def reached_at(self, peer: PeerId) -> str | None:
        """The address at the other end of the connection in use, whatever the peer says of
        itself; its port may be one that only the peer dials from.  None without connection."""
        ...

    def remember(self, target: PeerAddresses) -> None:
        """Note addresses for later dialling."""
        ...

    def on_identified(self, call: Callable[[PeerId], None]) -> None:
        """Call `call` with each peer that is connected and has said which protocols it speaks, or
        has not within the request deadline; and again whenever it says so anew."""
        ...

    def announced(self, peer: PeerId) -> Collection[str] | None:
        """The protocols that the connected peer said it speaks: none where it says nothing
        within the request deadline, None as long as it may still."""
        ...

    async def speaks(self, peer: PeerId, protocol: str) -> bool:
        """Whether the connected peer announced `protocol` (identify).  Waits for identify
        within the request deadline; False where it does not come."""
        ...

    async def disconnect(self, peer: PeerId) -> None:
        """Close the connection to the peer, if any."""
        ...


class BufferedReader:
    """Exact reads and length-prefixed messages from a stream, each length checked first.

    What one read of the stream brought is kept whole and served in slices, so every byte is
    copied at most once however messages and reads are cut, and large reads go around the
    buffer.  One task reads at a time; after a cancelled read only `reset` is left.
    """

    def __init__(self, stream: Reads) -> None:
        self._stream = stream
        self._chunk = b""
        self._position = 0  # of the first byte of `_chunk` not yet served

    async def read_exactly(self, size: int) -> bytes:
        """Exactly `size` bytes.  Raises ConnectionLost where the stream ends first.
        The caller has checked `size` against its limit."""
        if (ready := self.take_ready(size)) is not None:
            return ready
        start, end = self._position, self._position + size
        parts: list[bytes | memoryview] = []
        missing = end - len(self._chunk)
        if start < len(self._chunk):
            parts.append(memoryview(self._chunk)[start:])
        self._chunk, self._position = b"", 0
        while missing:
            pieces = await self._stream.read_pieces(missing)
            if not pieces:
                raise ConnectionLost(f"stream ended {missing} bytes short of {size}")
            parts += pieces
            missing -= sum(map(len, pieces))
        return parts[0] if len(parts) == 1 and type(parts[0]) is bytes else b"".join(parts)

    def take_ready(self, size: int) -> bytes | None:
        """Exactly `size` bytes where so many are here already."""
        start, end = self._position, self._position + size
        if end > len(self._chunk):
            return None
        self._position = end
        return self._chunk[start:end]

    async def read_message(self, bytes_max: int) -> bytes | None:
        """The next varint-length-prefixed message, None at a clean end of the stream.
        Raises ProtocolViolation on a length above `bytes_max`, before any allocation."""
        size = await self.read_length(bytes_max)
        return None if size is None else await self.read_exactly(size)

    async def read_length(self, bytes_max: int) -> int | None:
        """The length of the next message, whose bytes are to be read with `read_exactly`;
        as `read_message` otherwise."""
        size = await self._read_length()
        if size is not None and size > bytes_max:
            raise ProtocolViolation(
                f"{self._stream.peer} declared a message of {size} bytes; at most {bytes_max}"
            )
        return size

    async def _read_length(self) -> int | None:
        """The varint that comes next, None at the end of the stream."""
        if self._position < len(self._chunk) and self._chunk[self._position] < 0x80:
            self._position += 1  # as a rule it is one byte, and here with what came before
            return self._chunk[self._position - 1]
        length = bytearray()
        while len(length) < _LENGTH_BYTES_MAX:
            if self._position == len(self._chunk):
                self._chunk, self._position = await self._stream.read_some(), 0
                if not self._chunk:
                    if length:
                        raise ConnectionLost("stream ended inside a message length")
                    return None
            length.append(self._chunk[self._position])
            self._position += 1
            if length[-1] < 0x80:
                break
        try:
            return decode_varint(length)[0]
        except ValueError as error:
            raise ProtocolViolation(f"message length from {self._stream.peer}: {error}") from error


def frame(message: bytes) -> bytes:
    """`message` behind its length, as `BufferedReader.read_message` reads it."""
    return encode_varint(len(message)) + message
