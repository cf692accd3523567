"""Fuzz target: the yamux state machine, peer and driver both drawn from the input.

A script feeds frames, whole or mangled, and calls what a driver may call in between; after
every step the bounds and the book-keeping must hold.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from dstore.core.yamux import YamuxConnection, YamuxLimits
from dstore.core.yamux_frames import (
    ACK,
    DATA,
    FIN,
    GO_AWAY,
    HEADER,
    PING,
    RST,
    SYN,
    WINDOW_UPDATE,
    DataReceived,
    Event,
    StreamEnded,
    StreamOpened,
    StreamReset,
)
from dstore.errors import ConnectionLost, ProtocolViolation
from dstore.limits import YAMUX_OUT_BYTES_HIGH, YAMUX_WINDOW_BYTES_INITIAL
from tests.fuzz.script import Script
from tests.fuzz.target import Target

# Small, so that a short script reaches each of them.
_LIMITS = YamuxLimits(
    streams_max=5,
    backlog_max=3,
    answers_max=40,
    window_bytes=2 * YAMUX_WINDOW_BYTES_INITIAL,
    memory_bytes_max=3 * YAMUX_WINDOW_BYTES_INITIAL - 1000,
)
_LENGTHS = (0, 1, 12, 255, 256 * 1024, 256 * 1024 + 1, 1 << 20, (1 << 20) + 1, 1 << 31, 2**32 - 1)
_FLAGS = (0, SYN, ACK, FIN, RST, SYN | FIN, SYN | RST, ACK | FIN, SYN | ACK, FIN | RST, 0xFFFF)


class _Driver:
    """A driver that does what the script says, and checks what it is told."""

    def __init__(self, script: Script, *, initiator: bool) -> None:
        self.script = script
        self.machine = YamuxConnection(initiator=initiator, limits=_LIMITS)
        self.parity = 1 if initiator else 0  # of our own ids
        self.unread: Counter[int] = Counter()
        self.open: set[int] = set()  # as far as events and calls tell
        self.ended: set[int] = set()
        self.shut: set[int] = set()  # by us, for writing
        self.closed: set[int] = set()  # by us, both ways
        self.expired: set[int] = set()  # of these, perhaps reset since
        self.over = False

    def step(self) -> None:
        script, machine = self.script, self.machine
        op = script.number()
        stream = script.number() % 12
        match op % 12:
            case 0 | 1 | 2:
                self.receive(self.frame(op, stream))
            case 3:
                self.receive(script.take(stream * 4))
            case 4:
                self.open_stream()
            case 5:
                machine.accept(stream)
            case 6:
                size = min(script.number(3), self.unread[stream])
                machine.consumed(stream, size)
                self.unread[stream] -= size
            case 7:
                machine.close_write(stream)
                self.shut.add(stream)
            case 8:
                machine.close(stream)
                self.shut.add(stream)
                self.closed.add(stream)
                self.unread[stream] = 0
            case 9:
                machine.reset(stream)
                self.gone(stream)
            case 10:
                self.send(stream, script.number(3))
            case _:
                self.rare(stream)
        self.check()

    def frame(self, op: int, stream: int) -> bytes:
        """A frame of the peer: its header, and for data a body of that length or shorter."""
        script = self.script
        how = script.number()
        kind = (DATA, WINDOW_UPDATE, PING, GO_AWAY)[how % 4] if how < 250 else how
        flags = _FLAGS[script.number() % len(_FLAGS)]
        choice = script.number()
        length = choice if choice < 200 else _LENGTHS[choice % len(_LENGTHS)]
        head = HEADER.pack(op // 250, kind, flags, stream, length)
        if kind != DATA or length > _LIMITS.window_bytes:
            return head
        return head + bytes(length if op % 12 else length // 2)

    def receive(self, data: bytes) -> None:
        try:
            events = self.machine.receive_data(data)
        except ProtocolViolation:
            self.over = True
            try:
                self.machine.receive_data(b"")
            except ProtocolViolation:
                return
            raise AssertionError("a violation was forgiven") from None
        assert sum(len(e.data) for e in events if isinstance(e, DataReceived)) <= len(data) + 12
        for event in events:
            self.on_event(event)

    def on_event(self, event: Event) -> None:
        if isinstance(event, StreamOpened):
            assert event.stream_id % 2 != self.parity
            # An id may come again once its stream is over on both sides.
            over = event.stream_id in self.ended & self.shut and not self.unread[event.stream_id]
            assert event.stream_id not in self.open or over or event.stream_id in self.expired
            self.gone(event.stream_id)
            self.open.add(event.stream_id)
        elif isinstance(event, DataReceived):
            assert event.data
            assert event.stream_id in self.open
            assert event.stream_id not in self.ended
            self.unread[event.stream_id] += len(event.data)
            assert self.unread[event.stream_id] <= _LIMITS.window_bytes
        elif isinstance(event, StreamEnded):
            assert event.stream_id in self.open
            assert event.stream_id not in self.ended
            self.ended.add(event.stream_id)
        elif isinstance(event, StreamReset):
            assert event.stream_id in self.open
            self.gone(event.stream_id)

    def gone(self, stream: int) -> None:
        self.open.discard(stream)
        self.ended.discard(stream)
        self.shut.discard(stream)
        self.closed.discard(stream)
        self.expired.discard(stream)
        self.unread[stream] = 0

    def open_stream(self) -> None:
        might = self.machine.may_open()
        try:
            stream = self.machine.open_stream()
        except ConnectionLost:
            return
        assert might
        assert stream % 2 == self.parity
        self.open.add(stream)

    def send(self, stream: int, size: int) -> None:
        if self.machine.pending_bytes >= YAMUX_OUT_BYTES_HIGH:
            return  # the driver waits then, however large a window the peer has opened
        window = self.machine.send_window(stream)
        try:
            sent = self.machine.send(stream, memoryview(bytes(min(size, 1 << 17))))
        except ConnectionLost:
            return
        assert sent <= window
        assert self.machine.send_window(stream) == window - sent

    def rare(self, which: int) -> None:
        if which < 4:
            self.machine.ping(which)
        elif which < 8:
            self.machine.expire_lingering()
            self.expired |= self.closed
        elif which == 8:
            self.machine.go_away()
        else:
            for frame in self.machine.data_to_send():
                assert HEADER.unpack_from(frame)[0] == 0
            assert self.machine.pending_bytes == 0

    def check(self) -> None:
        machine = self.machine
        assert 0 <= machine.unread_bytes <= _LIMITS.memory_bytes_max
        assert machine.stream_count <= 2 * _LIMITS.streams_max
        assert (
            0
            <= machine.granted_bytes
            <= max(_LIMITS.memory_bytes_max, 2 * _LIMITS.streams_max * YAMUX_WINDOW_BYTES_INITIAL)
        )


def yamux(data: bytes) -> None:
    """No script breaks a bound; a violation lasts; after the end nothing is left."""
    script = Script(data)
    driver = _Driver(script, initiator=bool(script.number() & 1))
    while script.more and not driver.over:
        driver.step()
    if driver.over:  # and what the last frames opened was not told
        return
    for stream in driver.open:
        driver.machine.reset(stream)
    assert driver.machine.stream_count == 0
    assert driver.machine.granted_bytes == 0
    assert driver.machine.unread_bytes == 0


def seeds() -> Iterator[bytes]:
    opened = bytes((0, 2, 1, 1, 0))  # a window update with SYN on stream 2
    body = bytes((1, 2, 0, 0, 100))  # 100 bytes of data on it
    closing = bytes((1, 2, 0, 3, 10))  # the last ten
    yield bytes((1,)) + opened + bytes((5, 2)) + body + bytes((6, 2, 0, 0, 100)) + closing
    yield bytes((1,)) + opened + body + bytes((8, 2)) + body + bytes((11, 4, 11, 4))
    yield bytes((1, 4, 0, 10, 1, 0, 1, 0, 1, 1, 1, 2, 0, 7, 1, 11, 9))
    yield bytes((0,)) + bytes((0, 0, 2, 1, 7)) * 3 + bytes((11, 9, 11, 1, 0, 0, 2, 2, 1))
    yield bytes((0,)) + bytes((0, 1, 1, 1, 0, 1, 1, 0, 0, 204)) * 2
    full = bytes((0, 254))  # no flags, 256 KiB
    streams = [bytes((0, stream, 1, 1, 0, 1, stream, 0)) + full for stream in (1, 3, 5)]
    yield bytes((0,)) + b"".join(streams)  # more than may be unread
    yield bytes((0, 0, 1, 1, 1, 0, 8, 1)) + (bytes((1, 1, 0)) + full) * 4  # after a close


TARGETS = {"yamux": Target(yamux, seeds, bytes_max=1024)}
