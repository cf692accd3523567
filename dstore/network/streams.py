"""What dstore asks of a network: peers, connections, streams.

Two implementations: `network/host.py` over libp2p, and `testing/memory_network.py` for the
thousand cases.  The Kademlia driver and the fragment protocol know this contract only, so
that both run on either.  Nothing here knows libp2p.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from dstore.core.cid import decode_varint, encode_varint
from dstore.core.peerid import PeerId
from dstore.errors import ConnectionLost, ProtocolViolation
from dstore.limits import STREAM_READ_BYTES_MAX


class Stream(Protocol):
    """One bidirectional byte stream to one peer.

    Every await may be cancelled without harm to other streams; a stream whose read or write
    was cancelled half-way is only good for `reset`.
    """

    @property
    def peer(self) -> PeerId: ...

    async def read_some(self, max_bytes: int = STREAM_READ_BYTES_MAX) -> bytes:
        """At least one byte, at most `max_bytes`; b"" after the peer closed its side.
        Raises ConnectionLost when the stream was reset or its connection was lost."""
        ...

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

    def remember(self, target: PeerAddresses) -> None:
        """Note addresses for later dialling."""
        ...

    async def speaks(self, peer: PeerId, protocol: str) -> bool:
        """Whether the connected peer announced `protocol` (identify).  Waits for identify
        within the request deadline; False where it does not come."""
        ...

    async def disconnect(self, peer: PeerId) -> None:
        """Close the connection to the peer, if any."""
        ...


class BufferedReader:
    """Exact reads and length-prefixed messages from a stream, each length checked first."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._buffer = bytearray()

    async def _fill(self) -> bool:
        chunk = await self._stream.read_some()
        self._buffer += chunk
        return bool(chunk)

    async def read_exactly(self, size: int) -> bytes:
        """Exactly `size` bytes.  Raises ConnectionLost where the stream ends first.
        The caller has checked `size` against its limit."""
        if not self._buffer:
            # The whole read in one piece, without the buffer, where the stream gives it.
            parts: list[bytes] = []
            missing = size
            while missing:
                chunk = await self._stream.read_some(min(missing, STREAM_READ_BYTES_MAX))
                if not chunk:
                    raise ConnectionLost(f"stream ended {missing} bytes short of {size}")
                parts.append(chunk)
                missing -= len(chunk)
            return parts[0] if len(parts) == 1 else b"".join(parts)
        head = bytes(self._buffer[:size])
        del self._buffer[:size]
        if len(head) == size:
            return head
        return head + await self.read_exactly(size - len(head))

    async def read_message(self, bytes_max: int) -> bytes | None:
        """The next varint-length-prefixed message, None at a clean end of the stream.
        Raises ProtocolViolation on a length above `bytes_max`, before any allocation."""
        while True:
            try:
                size, start = decode_varint(self._buffer)
                break
            except ValueError as error:
                if len(self._buffer) >= 9 or (self._buffer and self._buffer[-1] < 0x80):
                    raise ProtocolViolation(
                        f"message length from {self._stream.peer}: {error}"
                    ) from error
            if not await self._fill():
                if self._buffer:
                    raise ConnectionLost("stream ended inside a message length")
                return None
        if size > bytes_max:
            raise ProtocolViolation(
                f"{self._stream.peer} declared a message of {size} bytes; at most {bytes_max}"
            )
        del self._buffer[:start]
        return await self.read_exactly(size)


def frame(message: bytes) -> bytes:
    """`message` behind its length, as `BufferedReader.read_message` reads it."""
    return encode_varint(len(message)) + message
