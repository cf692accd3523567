"""The yamux multiplexer as a state machine: bytes in, events out; frames out, no I/O.

It keeps the rules (windows, stream ids, limits) and who owes whom how many bytes; it does
not keep the data: received bytes leave as events and the caller says when they were read.
Specification: https://github.com/libp2p/specs/blob/master/yamux/README.md.
"""

from __future__ import annotations

from dataclasses import dataclass

from dstore.core.yamux_frames import (
    ACK,
    DATA,
    FIN,
    GO_AWAY,
    HEADER,
    PING,
    RST,
    SYN,
    UINT32_MAX,
    VERSION,
    WINDOW_UPDATE,
    DataReceived,
    Event,
    GoAwayCode,
    GoAwayReceived,
    Output,
    Piece,
    PingAnswered,
    StreamAcknowledged,
    StreamEnded,
    StreamOpened,
    StreamReset,
    WindowGrown,
    in_pieces,
)
from dstore.errors import ConnectionLost, ProtocolViolation
from dstore.limits import (
    PEER_MEMORY_BYTES_MAX,
    YAMUX_ACCEPT_BACKLOG,
    YAMUX_CONTROL_FRAMES_MAX,
    YAMUX_FRAME_BYTES_ACCEPTED,
    YAMUX_FRAME_BYTES_MAX,
    YAMUX_HEADER_BYTES,
    YAMUX_STREAMS_MAX,
    YAMUX_WINDOW_BYTES,
    YAMUX_WINDOW_BYTES_INITIAL,
)


@dataclass(frozen=True, slots=True)
class YamuxLimits:
    """What one connection may hold; the defaults are those of limits.py."""

    streams_max: int = YAMUX_STREAMS_MAX  # per direction
    backlog_max: int = YAMUX_ACCEPT_BACKLOG  # opened but not taken, per direction
    answers_max: int = YAMUX_CONTROL_FRAMES_MAX  # frames owed to a peer that does not read
    window_bytes: int = YAMUX_WINDOW_BYTES  # a busy stream's window
    memory_bytes_max: int = PEER_MEMORY_BYTES_MAX  # received and not read, all streams


@dataclass(slots=True)
class _Stream:
    ours: bool  # this side opened it
    acknowledged: bool = False  # by whichever side did not open it
    send_window: int = YAMUX_WINDOW_BYTES_INITIAL  # bytes that the peer takes now
    credit: int = YAMUX_WINDOW_BYTES_INITIAL  # bytes that the peer may still send
    window: int = YAMUX_WINDOW_BYTES_INITIAL  # credit + unread + owed
    unread: int = 0  # bytes in the caller's hands, not consumed
    write_closed: bool = False
    peer_ended: bool = False
    discarding: bool = False  # closed for reading: what comes is dropped
    discarded: int = 0
    lingered: bool = False  # was already lingering at the last sweep


@dataclass(slots=True)
class _Body:
    """The data frame whose body is coming in."""

    stream_id: int = 0
    left: int = 0
    flags: int = 0


class YamuxConnection:
    """One side of one connection.

    `receive_data` raises ProtocolViolation when the peer breaks a rule; the connection is
    then over, and `data_to_send` holds a last Go Away.  Operations on a stream that is gone
    do nothing, so that a late caller needs no check of its own.
    """

    def __init__(self, *, initiator: bool, limits: YamuxLimits | None = None) -> None:
        self.limits = limits or YamuxLimits()
        self._next_id = 1 if initiator else 2
        self._peer_parity = 0 if initiator else 1
        self._peer_id_highest = 0
        self._streams: dict[int, _Stream] = {}
        self._live = {True: 0, False: 0}  # by who opened: ours, theirs
        self._waiting = {True: 0, False: 0}  # of these, not acknowledged
        self._granted = 0  # the sum of the windows of all live streams
        self._unread = 0
        self._head = bytearray()
        self._body = _Body()
        self._out = Output()
        self._ping: int | None = None
        self._going_away = False
        self._peer_going_away = False
        self._violation: str | None = None

    # --- What the driver asks -----------------------------------------------------------

    @property
    def pending_bytes(self) -> int:
        """Bytes that wait in `data_to_send`."""
        return self._out.size

    @property
    def stream_count(self) -> int:
        """Streams that are not over on both sides."""
        return len(self._streams)

    @property
    def unread_bytes(self) -> int:
        """Bytes handed out in events and not consumed."""
        return self._unread

    @property
    def granted_bytes(self) -> int:
        """The sum of the windows granted to the peer."""
        return self._granted

    @property
    def is_over(self) -> bool:
        """Whether the peer said good-bye and no stream is left."""
        return self._peer_going_away and not self._streams

    def may_open(self) -> bool:
        """Whether `open_stream` would find room now."""
        return (
            self._live[True] < self.limits.streams_max
            and self._waiting[True] < self.limits.backlog_max
        )

    def send_window(self, stream_id: int) -> int:
        """Bytes that the peer takes on this stream now; 0 for one that is gone."""
        stream = self._streams.get(stream_id)
        return 0 if stream is None or stream.write_closed else stream.send_window

    def data_to_send(self, bytes_max: int | None = None) -> list[Piece]:
        """The frames queued, whole and in order, urgent ones first: all, or the first of them
        that together reach `bytes_max`.  Each comes in one piece, or in several where it is
        longer than NOISE_PLAINTEXT_BYTES_MAX, none of which is."""
        return self._out.take(bytes_max)

    # --- What the driver does -----------------------------------------------------------

    def open_stream(self) -> int:
        """The id of a new stream.  Raises ConnectionLost when either side is going away,
        the ids are used up, or there is no room (see `may_open`)."""
        if self._going_away or self._peer_going_away:
            raise ConnectionLost("the connection is closing: no new streams")
        if self._next_id > UINT32_MAX:
            raise ConnectionLost("the connection has used up its stream ids")
        if not self.may_open():
            raise ConnectionLost(f"{self._live[True]} streams are open already")
        stream_id = self._next_id
        self._next_id += 2
        self._add(stream_id, ours=True)
        self._queue(WINDOW_UPDATE, SYN, stream_id, 0)
        return stream_id

    def accept(self, stream_id: int) -> None:
        """Take a stream that the peer opened."""
        stream = self._streams.get(stream_id)
        if stream is not None and not stream.ours and not stream.acknowledged:
            self._acknowledge(stream)
            self._queue(WINDOW_UPDATE, ACK, stream_id, 0)

    def send(self, stream_id: int, data: memoryview, start: int = 0) -> int:
        """Queue one frame with as much of `data[start:]` (items of one byte) as the window
        and the frame take, copied unless it is of a bytes object; how many bytes that was, 0 when
        the window is used up.
        Raises ConnectionLost on a stream that is closed for writing or gone."""
        stream = self._streams.get(stream_id)
        if stream is None or stream.write_closed:
            raise ConnectionLost(f"stream {stream_id} is closed for writing")
        size = min(len(data) - start, stream.send_window, YAMUX_FRAME_BYTES_MAX)
        if size <= 0:
            return 0
        stream.send_window -= size
        header = HEADER.pack(VERSION, DATA, 0, stream_id, size)
        self._out.frames.append(in_pieces(header, data[start : start + size]))
        self._out.size += YAMUX_HEADER_BYTES + size
        return size

    def consumed(self, stream_id: int, size: int) -> None:
        """The reader took `size` bytes of this stream: grant them to the peer again, in
        halves of the window."""
        stream = self._streams.get(stream_id)
        if stream is None:
            return
        size = min(size, stream.unread)
        stream.unread -= size
        self._unread -= size
        self._grant(stream_id, stream)
        self._remove_if_over(stream_id, stream)

    def close_write(self, stream_id: int) -> None:
        """Send no more on this stream."""
        stream = self._streams.get(stream_id)
        if stream is not None and not stream.write_closed:
            stream.write_closed = True
            self._queue(WINDOW_UPDATE, FIN, stream_id, 0)
            self._remove_if_over(stream_id, stream)

    def close(self, stream_id: int) -> None:
        """Send no more and read no more.  The peer may end what it is at: what it sends is
        dropped, up to a window's worth; then the stream is reset."""
        self.close_write(stream_id)
        stream = self._streams.get(stream_id)
        if stream is not None and not stream.discarding:
            stream.discarding = True
            self.consumed(stream_id, stream.unread)

    def reset(self, stream_id: int) -> None:
        """End the stream in both directions at once."""
        if self._remove(stream_id):
            self._queue(WINDOW_UPDATE, RST, stream_id, 0)

    def expire_lingering(self) -> None:
        """Reset the streams that were closed here before the last call and that the peer
        has not closed since.  Called now and then, it bounds how long they take up room."""
        for stream_id, stream in list(self._streams.items()):
            if stream.discarding and stream.lingered:
                self.reset(stream_id)
            elif stream.discarding:
                stream.lingered = True

    def ping(self, value: int) -> None:
        """Ask for a sign of life; PingAnswered with the same value (32 bits) follows."""
        self._ping = value
        self._queue(PING, SYN, 0, value, urgent=True)

    def go_away(self, code: GoAwayCode = GoAwayCode.NORMAL) -> None:
        """Tell the peer that the session ends; streams that it opens from here on are
        refused.  Only the first call counts."""
        if not self._going_away:
            self._going_away = True
            self._queue(GO_AWAY, 0, 0, code)

    # --- What the peer does -------------------------------------------------------------

    def receive_data(self, data: bytes) -> list[Event]:
        """What the next `data` from the peer, cut anywhere, means.

        Raises ProtocolViolation, at once and at every later call, when the peer breaks a
        rule.  Nothing is allocated for a length before the bytes are there.
        """
        if self._violation is not None:
            raise ProtocolViolation(self._violation)
        events: list[Event] = []
        try:
            self._parse(data, events)
        except ProtocolViolation as error:
            self._violation = str(error)
            self.go_away(GoAwayCode.PROTOCOL_ERROR)
            raise
        return events

    def _parse(self, data: bytes, events: list[Event]) -> None:
        position, end = 0, len(data)
        while position < end:
            if self._body.left:
                size = min(self._body.left, end - position)
                self._on_body(_piece(data, position, size), events)
                position += size
                continue
            if self._head or end - position < YAMUX_HEADER_BYTES:
                size = min(YAMUX_HEADER_BYTES - len(self._head), end - position)
                self._head += data[position : position + size]
                position += size
                if len(self._head) < YAMUX_HEADER_BYTES:
                    return
                fields = HEADER.unpack(self._head)
                self._head.clear()
            else:
                fields = HEADER.unpack_from(data, position)
                position += YAMUX_HEADER_BYTES
            self._on_header(events, *fields)

    def _on_header(
        self, events: list[Event], version: int, kind: int, flags: int, stream_id: int, length: int
    ) -> None:
        if version != VERSION:
            raise ProtocolViolation(f"yamux: version {version}")
        if kind in (DATA, WINDOW_UPDATE):
            if stream_id == 0:
                raise ProtocolViolation(f"yamux: a frame of type {kind} for the session")
            if kind == DATA and length > YAMUX_FRAME_BYTES_ACCEPTED:
                raise ProtocolViolation(f"yamux: a frame of {length} bytes")
            if flags & SYN:
                self._on_syn(stream_id, events)
            stream = self._known(stream_id)
            if stream is not None and stream.ours and not stream.acknowledged:
                # Any frame shows that the peer took the stream; not all flag it.
                self._acknowledge(stream)
                events.append(StreamAcknowledged(stream_id))
            if kind == DATA:
                self._on_data(stream_id, stream, flags, length, events)
            elif stream is not None:
                self._on_window_update(stream_id, stream, length, events)
                self._on_flags(stream_id, flags, events)
        elif stream_id != 0:
            raise ProtocolViolation(f"yamux: a frame of type {kind} for stream {stream_id}")
        elif kind == PING:
            if flags & SYN:
                self._answer(PING, ACK, 0, length, urgent=True)
            elif length == self._ping:
                self._ping = None
                events.append(PingAnswered(length))
        elif kind == GO_AWAY:
            self._peer_going_away = True
            events.append(GoAwayReceived(length))
        else:
            raise ProtocolViolation(f"yamux: frame type {kind}")

    def _on_syn(self, stream_id: int, events: list[Event]) -> None:
        if stream_id & 1 != self._peer_parity:
            raise ProtocolViolation(f"yamux: the peer opened stream {stream_id}, an id of ours")
        if stream_id in self._streams:
            raise ProtocolViolation(f"yamux: the peer opened stream {stream_id} twice")
        # Ids need not come in order: go's and Rust's implementations may send them late.
        self._peer_id_highest = max(self._peer_id_highest, stream_id)
        if (
            self._going_away
            or self._live[False] >= self.limits.streams_max
            or self._waiting[False] >= self.limits.backlog_max
        ):
            self._answer(WINDOW_UPDATE, RST, stream_id, 0)
            return
        self._add(stream_id, ours=False)
        events.append(StreamOpened(stream_id))

    def _known(self, stream_id: int) -> _Stream | None:
        """The stream, None for one that is over: the peer may not know yet."""
        stream = self._streams.get(stream_id)
        if stream is None:
            ours = stream_id & 1 != self._peer_parity
            if stream_id >= self._next_id if ours else stream_id > self._peer_id_highest:
                raise ProtocolViolation(f"yamux: stream {stream_id} was never opened")
        return stream

    def _on_data(
        self, stream_id: int, stream: _Stream | None, flags: int, length: int, events: list[Event]
    ) -> None:
        if stream is not None and length:
            if stream.peer_ended:
                raise ProtocolViolation(f"yamux: data after the end of stream {stream_id}")
            if length > stream.credit:
                raise ProtocolViolation(
                    f"yamux: {length} bytes on stream {stream_id}, window {stream.credit}"
                )
            stream.credit -= length
            if not stream.discarding and self._unread + length > self.limits.memory_bytes_max:
                self._remove(stream_id)
                self._answer(WINDOW_UPDATE, RST, stream_id, 0)
                events.append(StreamReset(stream_id, "too much unread on this connection"))
        if length:
            self._body = _Body(stream_id, length, flags)
        else:
            self._on_flags(stream_id, flags, events)

    def _on_body(self, data: bytes | memoryview, events: list[Event]) -> None:
        body = self._body
        body.left -= len(data)
        stream = self._streams.get(body.stream_id)
        if stream is not None and stream.discarding:
            self._discard(body.stream_id, stream, len(data), events)
        elif stream is not None:
            stream.unread += len(data)
            self._unread += len(data)
            events.append(DataReceived(body.stream_id, data))
        if not body.left:
            self._on_flags(body.stream_id, body.flags, events)

    def _discard(self, stream_id: int, stream: _Stream, size: int, events: list[Event]) -> None:
        stream.discarded += size
        if stream.discarded > self.limits.window_bytes:
            self._remove(stream_id)
            self._answer(WINDOW_UPDATE, RST, stream_id, 0)
            events.append(StreamReset(stream_id, "closed here, and the peer went on sending"))
        else:
            self._grant(stream_id, stream)

    def _on_window_update(
        self, stream_id: int, stream: _Stream, length: int, events: list[Event]
    ) -> None:
        if stream.send_window + length > UINT32_MAX:
            raise ProtocolViolation(f"yamux: the window of stream {stream_id} overflows")
        if length and not stream.send_window:
            events.append(WindowGrown(stream_id))
        stream.send_window += length

    def _on_flags(self, stream_id: int, flags: int, events: list[Event]) -> None:
        if not flags & (FIN | RST):
            return
        stream = self._streams.get(stream_id)
        if stream is None:
            return
        if flags & RST:
            self._remove(stream_id)
            events.append(StreamReset(stream_id, "reset by the peer"))
        elif not stream.peer_ended:
            stream.peer_ended = True
            events.append(StreamEnded(stream_id))
            self._remove_if_over(stream_id, stream)

    # --- Book-keeping -------------------------------------------------------------------

    def _add(self, stream_id: int, *, ours: bool) -> None:
        stream = _Stream(ours)
        self._streams[stream_id] = stream
        self._live[ours] += 1
        self._waiting[ours] += 1
        self._granted += stream.window

    def _acknowledge(self, stream: _Stream) -> None:
        stream.acknowledged = True
        self._waiting[stream.ours] -= 1

    def _remove(self, stream_id: int) -> bool:
        stream = self._streams.pop(stream_id, None)
        if stream is None:
            return False
        self._live[stream.ours] -= 1
        if not stream.acknowledged:
            self._waiting[stream.ours] -= 1
        self._granted -= stream.window
        self._unread -= stream.unread
        return True

    def _remove_if_over(self, stream_id: int, stream: _Stream) -> None:
        if stream.write_closed and stream.peer_ended and not stream.unread:
            self._remove(stream_id)

    def _grant(self, stream_id: int, stream: _Stream) -> None:
        """Return what was read to the peer's credit, once it is half the window.  A stream
        that used up half its first window gets a large one while the memory allows."""
        owed = stream.window - stream.credit - stream.unread
        if stream.peer_ended or owed < stream.window // 2:
            return
        small, large = YAMUX_WINDOW_BYTES_INITIAL, self.limits.window_bytes
        others = self._granted - stream.window
        window = large if others + large <= self.limits.memory_bytes_max else small
        owed += window - stream.window
        if owed <= 0:
            return
        self._granted += window - stream.window
        stream.window = window
        stream.credit += owed
        self._queue(WINDOW_UPDATE, 0, stream_id, owed)

    def _answer(
        self, kind: int, flags: int, stream_id: int, length: int, *, urgent: bool = False
    ) -> None:
        self._out.answers += 1
        if self._out.answers > self.limits.answers_max:
            raise ProtocolViolation("yamux: the peer sends requests and reads no answers")
        self._queue(kind, flags, stream_id, length, urgent=urgent)

    def _queue(
        self, kind: int, flags: int, stream_id: int, length: int, *, urgent: bool = False
    ) -> None:
        frame = HEADER.pack(VERSION, kind, flags, stream_id, length)
        # Pings overtake data, or a full queue would look like a dead peer.
        (self._out.urgent if urgent else self._out.frames).append((frame,))
        self._out.size += len(frame)


def _piece(data: bytes, start: int, size: int) -> bytes | memoryview:
    """That part of `data`, without a copy where it is nearly all of it: what is not read yet is
    counted by its size, and must not keep much more in memory than that."""
    if 8 * size > 7 * len(data):
        return memoryview(data)[start : start + size]
    return data[start : start + size]
