"""Multistream-select 1.0.0: two sides agree on a protocol at the start of a byte stream.

Used on raw connections (for Noise), secured ones (for yamux) and streams.  Reads not one
byte beyond the agreement, and treats every message as hostile: libp2p's own negotiator lets
four bytes of invalid UTF-8 end the node.  Specification: multiformats multistream-select.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, Protocol

from dstore.core.cid import encode_varint
from dstore.errors import ConnectionLost, ProtocolViolation
from dstore.limits import (
    NEGOTIATE_MESSAGE_BYTES_MAX,
    NEGOTIATE_PROPOSALS_MAX,
)

MULTISTREAM: Final = "/multistream/1.0.0"
_NOT_AVAILABLE: Final = "na"


class ByteStream(Protocol):
    """What negotiation needs of a connection or stream."""

    async def read_some(self, max_bytes: int = ...) -> bytes:
        """At least one byte; b"" at the end.  Raises ConnectionLost."""
        ...

    async def write(self, data: bytes) -> None:
        """Raises ConnectionLost."""
        ...


def _message(text: str) -> bytes:
    body = text.encode("utf-8") + b"\n"
    return encode_varint(len(body)) + body


_HEADER: Final = _message(MULTISTREAM)


async def _read_exactly(stream: ByteStream, size: int) -> bytes:
    data = b""
    while len(data) < size:
        chunk = await stream.read_some(size - len(data))
        if not chunk:
            raise ConnectionLost("the other side left during protocol negotiation")
        data += chunk
    return data


async def _read_message(stream: ByteStream) -> str:
    size = (await _read_exactly(stream, 1))[0]
    if size >= 0x80:
        # The limit fits two bytes of varint.
        high = (await _read_exactly(stream, 1))[0]
        size = size & 0x7F | high << 7
        if high == 0 or high >= 0x80:
            raise ProtocolViolation("malformed length in protocol negotiation")
    if not 0 < size <= NEGOTIATE_MESSAGE_BYTES_MAX:
        raise ProtocolViolation(f"negotiation message of {size} bytes")
    body = await _read_exactly(stream, size)
    if body[-1:] != b"\n":
        raise ProtocolViolation("negotiation message without its newline")
    try:
        return body[:-1].decode("utf-8")
    except UnicodeDecodeError as error:
        raise ProtocolViolation("negotiation message is not UTF-8") from error


async def expect(stream: ByteStream, expected: bytes) -> None:
    """Read `expected` and no more: as the side that wrote a `proposal`, that the other agrees.

    Raises ProtocolViolation at the first bytes that differ; ConnectionLost.  The caller sets
    the deadline.
    """
    while expected:
        got = await stream.read_some(len(expected))
        if not got:
            raise ConnectionLost("the other side left during protocol negotiation")
        if not expected.startswith(got):
            raise ProtocolViolation(f"the other side does not agree to {expected!r}: {got!r}")
        expected = expected[len(got) :]


def proposal(protocol: str) -> bytes:
    """What the side that opened a stream writes at first to propose `protocol`, and what the
    other writes to agree.  Where it is known to, the first request may follow at once."""
    return _HEADER + _message(protocol)


async def propose(stream: ByteStream, protocols: Sequence[str]) -> str:
    """As the side that opened `stream`: the first of `protocols` that the other takes.

    Raises ProtocolViolation where it takes none, or answers nonsense; ConnectionLost.  The
    caller sets the deadline.
    """
    # Header and first proposal together save a round trip.
    await stream.write(proposal(protocols[0]))
    await expect(stream, _HEADER)
    for index, protocol in enumerate(protocols):
        if index:
            await stream.write(_message(protocol))
        answer = await _read_message(stream)
        if answer == protocol:
            return protocol
        if answer != _NOT_AVAILABLE:
            raise ProtocolViolation(f"{answer!r} in answer to a proposal of {protocol}")
    raise ProtocolViolation(f"the other side speaks none of {', '.join(protocols)}")


async def accept(stream: ByteStream, speaks: Callable[[str], bool]) -> str:
    """As the side that accepted `stream`: the protocol agreed on.

    Raises ProtocolViolation after NEGOTIATE_PROPOSALS_MAX misses or on nonsense;
    ConnectionLost.  The caller sets the deadline.
    """
    await expect(stream, _HEADER)
    # Sent before the proposal is read: stock py-libp2p waits for it with its proposal.
    await stream.write(_HEADER)
    for _ in range(NEGOTIATE_PROPOSALS_MAX):
        proposal = await _read_message(stream)
        if speaks(proposal):
            await stream.write(_message(proposal))
            return proposal
        await stream.write(_message(_NOT_AVAILABLE))
    raise ProtocolViolation(f"more than {NEGOTIATE_PROPOSALS_MAX} proposals refused")
