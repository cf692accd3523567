"""The words of yamux: frame header, flags, the events that frames amount to, the queue of frames.

The rules that join them are in `core/yamux.py`.
Specification: https://github.com/libp2p/specs/blob/master/yamux/README.md.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final

from dstore.limits import NOISE_PLAINTEXT_BYTES_MAX, YAMUX_HEADER_BYTES

HEADER: Final = struct.Struct("!BBHII")  # version, type, flags, stream id, length
VERSION: Final = 0
UINT32_MAX: Final = 2**32 - 1
assert HEADER.size == YAMUX_HEADER_BYTES

DATA: Final = 0
WINDOW_UPDATE: Final = 1
PING: Final = 2
GO_AWAY: Final = 3

SYN: Final = 1
ACK: Final = 2
FIN: Final = 4
RST: Final = 8


class GoAwayCode(IntEnum):
    """Why a session ends, as the Go Away frame says it."""

    NORMAL = 0
    PROTOCOL_ERROR = 1
    INTERNAL_ERROR = 2


@dataclass(frozen=True, slots=True)
class StreamOpened:
    """The peer opened a stream; `accept` or `reset` it."""

    stream_id: int


@dataclass(frozen=True, slots=True)
class StreamAcknowledged:
    """The peer took a stream that this side had opened."""

    stream_id: int


@dataclass(frozen=True, slots=True)
class DataReceived:
    """Bytes for a stream; call `consumed` once they were read."""

    stream_id: int
    data: bytes | memoryview


@dataclass(frozen=True, slots=True)
class StreamEnded:
    """The peer sends no more on this stream."""

    stream_id: int


@dataclass(frozen=True, slots=True)
class StreamReset:
    """The stream is gone, with all that was not read; `reason` says by whom."""

    stream_id: int
    reason: str


@dataclass(frozen=True, slots=True)
class WindowGrown:
    """A stream whose window was used up may send again."""

    stream_id: int


@dataclass(frozen=True, slots=True)
class PingAnswered:
    """The peer answered a ping."""

    value: int


@dataclass(frozen=True, slots=True)
class GoAwayReceived:
    """The peer takes and opens no more streams."""

    code: int


Event = (
    StreamOpened
    | StreamAcknowledged
    | DataReceived
    | StreamEnded
    | StreamReset
    | WindowGrown
    | PingAnswered
    | GoAwayReceived
)


Piece = bytes | memoryview
Pieces = tuple[Piece, ...]


@dataclass(slots=True)
class Output:
    """Frames that wait to be sent, in pieces; `size` is that of all of them in bytes."""

    frames: list[Pieces] = field(default_factory=list)
    urgent: list[Pieces] = field(default_factory=list)
    size: int = 0
    answers: int = 0  # frames that the peer's frames called for, at most

    def take(self, bytes_max: int | None) -> list[Piece]:
        """The pieces of the first frames that together reach `bytes_max`, urgent ones before
        others; all for None."""
        if not self.size:
            return []
        frames = self.urgent + self.frames if self.urgent else self.frames
        count, taken = len(frames), self.size
        if bytes_max is not None and self.size > bytes_max:
            count = taken = 0
            while taken < bytes_max:
                taken += sum(map(len, frames[count]))
                count += 1
        self.frames, self.urgent = frames[count:], []
        self.size -= taken
        self.answers = min(self.answers, len(self.frames))
        return [piece for frame in frames[:count] for piece in frame]


def in_pieces(header: bytes, body: memoryview) -> Pieces:
    """A frame as whoever encrypts takes it: whole messages, and what is left of the body in front
    with the header.  That part alone is copied where nobody can change the rest."""
    size = len(body)
    first = size % NOISE_PLAINTEXT_BYTES_MAX
    if first > NOISE_PLAINTEXT_BYTES_MAX - len(header):
        first = 0
    head = b"".join((header, body[:first]))
    if first == size:
        return (head,)
    if type(body.obj) is not bytes:
        body = memoryview(bytes(body))
    step = NOISE_PLAINTEXT_BYTES_MAX
    return (head, *(body[start : start + step] for start in range(first, size, step)))
