"""The yamux state machine: frames on the wire, windows, limits, and every refusal."""

from __future__ import annotations

import tracemalloc

import pytest

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
    GoAwayReceived,
    PingAnswered,
    StreamAcknowledged,
    StreamEnded,
    StreamOpened,
    StreamReset,
    WindowGrown,
)
from dstore.errors import ConnectionLost, ProtocolViolation
from dstore.limits import (
    PEER_MEMORY_BYTES_MAX,
    YAMUX_ACCEPT_BACKLOG,
    YAMUX_CONTROL_FRAMES_MAX,
    YAMUX_FRAME_BYTES_ACCEPTED,
    YAMUX_STREAMS_MAX,
    YAMUX_WINDOW_BYTES,
    YAMUX_WINDOW_BYTES_INITIAL,
)

KIB = 1024


def frame(kind: int, flags: int, stream_id: int, length: int, body: bytes = b"") -> bytes:
    return HEADER.pack(0, kind, flags, stream_id, length) + body


def data(stream_id: int, body: bytes, flags: int = 0) -> bytes:
    return frame(DATA, flags, stream_id, len(body), body)


def sent(connection: YamuxConnection) -> list[tuple[int, int, int, int]]:
    """The frames queued: (type, flags, stream, length)."""
    return [HEADER.unpack(f[:12])[1:] for f in connection.data_to_send()]


def server(**limits: int) -> YamuxConnection:
    return YamuxConnection(initiator=False, limits=YamuxLimits(**limits))


def client(**limits: int) -> YamuxConnection:
    return YamuxConnection(initiator=True, limits=YamuxLimits(**limits))


def serving(stream_id: int = 1, **limits: int) -> YamuxConnection:
    """A server with one accepted stream, its output read."""
    connection = server(**limits)
    assert connection.receive_data(frame(WINDOW_UPDATE, SYN, stream_id, 0)) == [
        StreamOpened(stream_id)
    ]
    connection.accept(stream_id)
    connection.data_to_send()
    return connection


def exchange(a: YamuxConnection, b: YamuxConnection) -> tuple[list[Event], list[Event]]:
    """Carry everything both ways until neither has more to say: (a's events, b's)."""
    at_a: list[Event] = []
    at_b: list[Event] = []
    while a.pending_bytes or b.pending_bytes:
        for f in a.data_to_send():
            at_b += b.receive_data(bytes(f))
        for f in b.data_to_send():
            at_a += a.receive_data(bytes(f))
    return at_a, at_b


class TestWire:
    """Bytes as the specification has them."""

    def test_opening_sends_a_syn_and_the_ids_are_odd_on_the_dialling_side(self) -> None:
        connection = client()
        assert [connection.open_stream(), connection.open_stream()] == [1, 3]
        assert connection.data_to_send() == [
            bytes.fromhex("000100010000000100000000"),
            bytes.fromhex("000100010000000300000000"),
        ]
        assert server().open_stream() == 2

    def test_accepting_sends_an_ack_once(self) -> None:
        connection = server()
        connection.receive_data(bytes.fromhex("000100010000000100000000"))
        connection.accept(1)
        connection.accept(1)
        assert connection.data_to_send() == [bytes.fromhex("000100020000000100000000")]

    def test_close_write_sends_a_fin_and_reset_a_rst(self) -> None:
        connection = serving()
        connection.close_write(1)
        connection.close_write(1)
        connection.reset(1)
        connection.reset(1)
        assert sent(connection) == [(WINDOW_UPDATE, FIN, 1, 0), (WINDOW_UPDATE, RST, 1, 0)]

    def test_pings_overtake_data_and_are_answered_with_their_value(self) -> None:
        connection = serving()
        connection.send(1, memoryview(b"x"))
        assert connection.receive_data(frame(PING, SYN, 0, 0xDEADBEEF)) == []
        connection.ping(7)
        assert sent(connection) == [
            (PING, ACK, 0, 0xDEADBEEF),
            (PING, SYN, 0, 7),
            (DATA, 0, 1, 1),
        ]
        assert connection.receive_data(frame(PING, ACK, 0, 8)) == []
        assert connection.receive_data(frame(PING, ACK, 0, 7)) == [PingAnswered(7)]
        assert connection.receive_data(frame(PING, ACK, 0, 7)) == []

    def test_the_frame_owns_its_bytes(self) -> None:
        connection = serving()
        buffer = bytearray(b"before")
        connection.send(1, memoryview(buffer))
        buffer[:] = b"after!"
        assert connection.data_to_send()[0][12:] == b"before"


class TestReceiving:
    def test_a_frame_cut_anywhere_gives_the_same_bytes(self) -> None:
        stream = frame(WINDOW_UPDATE, SYN, 1, 0) + data(1, b"hello ") + data(1, b"world", FIN)
        for size in range(1, len(stream) + 1):
            connection = server()
            events: list[Event] = []
            for start in range(0, len(stream), size):
                events += connection.receive_data(stream[start : start + size])
            body = b"".join(e.data for e in events if isinstance(e, DataReceived))
            assert body == b"hello world"
            assert events[0] == StreamOpened(1)
            assert events[-1] == StreamEnded(1)

    def test_a_body_is_not_copied_unless_it_would_keep_more_than_itself(self) -> None:
        connection = server()
        large = connection.receive_data(data(1, bytes(60_000), SYN))[-1]
        small = connection.receive_data(data(1, bytes(5000)) + data(1, bytes(40_000)))[0]
        assert isinstance(large, DataReceived)
        assert isinstance(small, DataReceived)
        assert isinstance(large.data, memoryview)
        assert isinstance(small.data, bytes)

    def test_a_syn_may_carry_data_window_and_end(self) -> None:
        connection = server()
        assert connection.receive_data(data(1, b"all", SYN | FIN)) == [
            StreamOpened(1),
            DataReceived(1, b"all"),
            StreamEnded(1),
        ]
        connection.receive_data(frame(WINDOW_UPDATE, SYN, 3, 1000))
        assert connection.send_window(3) == YAMUX_WINDOW_BYTES_INITIAL + 1000

    def test_any_frame_of_the_peer_acknowledges_our_stream(self) -> None:
        connection = client()
        stream = connection.open_stream()
        assert connection.receive_data(data(stream, b"hi")) == [
            StreamAcknowledged(stream),
            DataReceived(stream, b"hi"),
        ]

    def test_frames_for_streams_that_are_over_are_drained(self) -> None:
        connection = serving()
        connection.reset(1)
        late = data(1, bytes(1000)) + frame(WINDOW_UPDATE, FIN, 1, 5) + frame(PING, SYN, 0, 1)
        connection.data_to_send()
        assert connection.receive_data(late) == []
        assert sent(connection) == [(PING, ACK, 0, 1)]
        assert connection.unread_bytes == 0

    def test_streams_may_be_opened_out_of_order(self) -> None:
        connection = server()
        assert connection.receive_data(frame(WINDOW_UPDATE, SYN, 7, 0)) == [StreamOpened(7)]
        assert connection.receive_data(frame(WINDOW_UPDATE, SYN, 5, 0)) == [StreamOpened(5)]

    def test_a_reset_by_the_peer_forgets_what_was_unread(self) -> None:
        connection = serving()
        connection.receive_data(data(1, b"unread"))
        assert connection.unread_bytes == 6
        assert connection.receive_data(frame(WINDOW_UPDATE, RST, 1, 0)) == [
            StreamReset(1, "reset by the peer")
        ]
        assert (connection.stream_count, connection.unread_bytes) == (0, 0)
        with pytest.raises(ConnectionLost):
            connection.send(1, memoryview(b"x"))

    def test_a_stream_is_over_when_both_ended_and_all_is_read(self) -> None:
        connection = serving()
        connection.receive_data(data(1, b"last", FIN))
        connection.close_write(1)
        assert connection.stream_count == 1
        connection.consumed(1, 4)
        assert connection.stream_count == 0

    def test_go_away_ends_opening_in_both_directions(self) -> None:
        a, b = client(), server()
        stream = a.open_stream()
        exchange(a, b)
        a.go_away()
        assert exchange(a, b)[1] == [GoAwayReceived(0)]
        with pytest.raises(ConnectionLost, match="closing"):
            b.open_stream()
        with pytest.raises(ConnectionLost, match="closing"):
            a.open_stream()
        assert not b.is_over
        # What was open goes on.
        a.send(stream, memoryview(b"still"))
        assert exchange(a, b)[1] == [DataReceived(stream, b"still")]
        b.reset(stream)
        assert b.is_over
        # A stream that was on its way is refused, not an offence.
        assert a.receive_data(frame(WINDOW_UPDATE, SYN, 2, 0)) == []
        assert sent(a) == [(WINDOW_UPDATE, RST, 2, 0)]


class TestWindows:
    def test_sending_stops_at_the_window_and_goes_on_when_it_grows(self) -> None:
        connection = client()
        stream = connection.open_stream()
        view = memoryview(bytes(YAMUX_WINDOW_BYTES))
        position = 0
        while taken := connection.send(stream, view, position):
            position += taken
        assert position == YAMUX_WINDOW_BYTES_INITIAL
        grown = connection.receive_data(frame(WINDOW_UPDATE, ACK, stream, 10))
        assert WindowGrown(stream) in grown
        assert connection.receive_data(frame(WINDOW_UPDATE, 0, stream, 10)) == []
        assert connection.send(stream, view, position) == 20

    def test_what_was_read_is_granted_in_halves_and_a_busy_stream_gets_a_large_window(
        self,
    ) -> None:
        connection = serving()
        half = YAMUX_WINDOW_BYTES_INITIAL // 2
        connection.receive_data(data(1, bytes(half)))
        connection.consumed(1, half - 1)
        assert sent(connection) == []
        connection.consumed(1, 1)
        assert sent(connection) == [
            (WINDOW_UPDATE, 0, 1, half + YAMUX_WINDOW_BYTES - YAMUX_WINDOW_BYTES_INITIAL)
        ]
        half = YAMUX_WINDOW_BYTES // 2
        connection.receive_data(data(1, bytes(half)))
        connection.consumed(1, half)
        assert sent(connection) == [(WINDOW_UPDATE, 0, 1, half)]

    def test_nothing_is_granted_for_what_was_not_read(self) -> None:
        connection = serving()
        connection.receive_data(data(1, bytes(YAMUX_WINDOW_BYTES_INITIAL)))
        assert sent(connection) == []
        with pytest.raises(ProtocolViolation, match="window 0"):
            connection.receive_data(data(1, b"x"))

    def test_the_sum_of_the_windows_stays_within_the_memory_of_a_peer(self) -> None:
        connection = server()
        streams = range(1, 257, 2)  # 128 small windows are 32 MiB
        for stream in streams:
            connection.receive_data(frame(WINDOW_UPDATE, SYN, stream, 0))
            connection.accept(stream)
        for stream in streams:
            for _ in range(20):
                half = YAMUX_WINDOW_BYTES_INITIAL // 2
                connection.receive_data(data(stream, bytes(half)))
                connection.consumed(stream, half)
                assert connection.granted_bytes <= PEER_MEMORY_BYTES_MAX
        # With room again, a busy stream grows; when others come, it shrinks.
        for stream in list(streams)[8:]:
            connection.reset(stream)
        connection.receive_data(data(1, bytes(half)))
        connection.consumed(1, half)
        assert connection.granted_bytes == 7 * YAMUX_WINDOW_BYTES_INITIAL + YAMUX_WINDOW_BYTES

    def test_a_large_window_shrinks_when_other_streams_need_the_memory(self) -> None:
        connection = serving(memory_bytes_max=YAMUX_WINDOW_BYTES + 4 * YAMUX_WINDOW_BYTES_INITIAL)
        half = YAMUX_WINDOW_BYTES_INITIAL // 2
        connection.receive_data(data(1, bytes(half)))
        connection.consumed(1, half)
        assert connection.granted_bytes == YAMUX_WINDOW_BYTES
        for stream in range(3, 15, 2):
            connection.receive_data(frame(WINDOW_UPDATE, SYN, stream, 0))
        connection.receive_data(data(1, bytes(YAMUX_WINDOW_BYTES)))
        connection.consumed(1, YAMUX_WINDOW_BYTES)
        assert connection.granted_bytes == 7 * YAMUX_WINDOW_BYTES_INITIAL

    def test_more_unread_than_a_peer_may_hold_resets_the_stream_that_asks_for_more(self) -> None:
        connection = server(memory_bytes_max=400 * KIB)
        full = data(1, bytes(256 * KIB), SYN)
        assert len(connection.receive_data(full)) == 2
        events = connection.receive_data(data(3, bytes(200 * KIB), SYN))
        assert events[0] == StreamOpened(3)
        assert isinstance(events[1], StreamReset)
        assert len(events) == 2
        assert connection.unread_bytes == 256 * KIB
        assert (WINDOW_UPDATE, RST, 3, 0) in sent(connection)


class TestClosing:
    def test_after_close_the_peer_may_finish_and_then_is_reset(self) -> None:
        connection = serving()
        connection.receive_data(data(1, bytes(YAMUX_WINDOW_BYTES_INITIAL)))
        connection.close(1)
        assert connection.unread_bytes == 0
        # The peer's window was used up: it must not be left waiting.
        frames = sent(connection)
        assert frames[0] == (WINDOW_UPDATE, FIN, 1, 0)
        assert frames[1][3] > 0
        assert connection.receive_data(data(1, bytes(1000), FIN)) == [StreamEnded(1)]
        assert connection.stream_count == 0

    def test_after_close_a_peer_that_goes_on_is_reset(self) -> None:
        connection = serving()
        connection.close(1)
        total = 0
        events: list[Event] = []
        while not events:
            events = connection.receive_data(data(1, bytes(64 * KIB)))
            total += 64 * KIB
            assert connection.unread_bytes == 0
        assert isinstance(events[0], StreamReset)
        assert total <= YAMUX_WINDOW_BYTES + 64 * KIB
        assert sent(connection)[-1] == (WINDOW_UPDATE, RST, 1, 0)

    def test_streams_that_the_peer_never_closes_are_swept_at_the_second_sweep(self) -> None:
        connection = serving()
        connection.expire_lingering()
        connection.close(1)
        connection.expire_lingering()
        assert connection.stream_count == 1
        connection.expire_lingering()
        assert connection.stream_count == 0
        assert sent(connection)[-1] == (WINDOW_UPDATE, RST, 1, 0)

    def test_late_operations_on_a_stream_that_is_gone_do_nothing(self) -> None:
        connection = serving()
        connection.reset(1)
        connection.data_to_send()
        connection.consumed(1, 10)
        connection.close_write(1)
        connection.close(1)
        connection.accept(1)
        assert connection.data_to_send() == []
        assert connection.send_window(1) == 0


class TestLimits:
    def test_streams_beyond_the_backlog_and_the_cap_are_refused_not_an_offence(self) -> None:
        connection = server()
        opened = 0
        for stream in range(1, 2 * (YAMUX_ACCEPT_BACKLOG + 10), 2):
            opened += len(connection.receive_data(frame(WINDOW_UPDATE, SYN, stream, 0)))
        assert opened == YAMUX_ACCEPT_BACKLOG
        assert sent(connection) == [
            (WINDOW_UPDATE, RST, stream, 0)
            for stream in range(2 * YAMUX_ACCEPT_BACKLOG + 1, 2 * (YAMUX_ACCEPT_BACKLOG + 10), 2)
        ]
        connection = server()
        for stream in range(1, 2 * YAMUX_STREAMS_MAX, 2):
            assert connection.receive_data(frame(WINDOW_UPDATE, SYN, stream, 0))
            connection.accept(stream)
        over = 2 * YAMUX_STREAMS_MAX + 1
        assert connection.receive_data(data(over, b"ignored", SYN)) == []
        assert sent(connection)[-1] == (WINDOW_UPDATE, RST, over, 0)
        assert connection.stream_count == YAMUX_STREAMS_MAX

    def test_a_flood_of_streams_ends_the_connection_before_its_refusals_pile_up(self) -> None:
        connection = server()
        flood = b"".join(frame(WINDOW_UPDATE, SYN, s, 0) for s in range(1, 40_001, 2))
        with pytest.raises(ProtocolViolation, match="no answers"):
            connection.receive_data(flood)
        assert connection.stream_count == YAMUX_ACCEPT_BACKLOG
        assert connection.pending_bytes <= 12 * (YAMUX_CONTROL_FRAMES_MAX + 1)

    def test_a_flood_of_pings_ends_the_connection(self) -> None:
        connection = server()
        with pytest.raises(ProtocolViolation, match="no answers"):
            connection.receive_data(frame(PING, SYN, 0, 1) * (YAMUX_CONTROL_FRAMES_MAX + 1))
        # A peer that reads its answers may ask again.
        connection = server()
        for _ in range(3):
            connection.receive_data(frame(PING, SYN, 0, 1) * YAMUX_CONTROL_FRAMES_MAX)
            assert len(connection.data_to_send()) == YAMUX_CONTROL_FRAMES_MAX

    def test_streams_opened_and_reset_at_once_leave_nothing(self) -> None:
        connection = server()
        for stream in range(1, 20_001, 2):
            connection.receive_data(frame(WINDOW_UPDATE, SYN | RST, stream, 0))
        assert (connection.stream_count, connection.granted_bytes) == (0, 0)
        assert connection.pending_bytes == 0

    def test_opening_waits_for_the_peer_after_the_backlog_and_never_exceeds_the_cap(self) -> None:
        a, b = client(), server()
        for _ in range(YAMUX_ACCEPT_BACKLOG):
            a.open_stream()
        assert not a.may_open()
        with pytest.raises(ConnectionLost, match="256 streams"):
            a.open_stream()
        for event in exchange(a, b)[1]:
            assert isinstance(event, StreamOpened)
            b.accept(event.stream_id)
        exchange(a, b)
        assert a.may_open()
        a.open_stream()
        a.reset(1)
        assert a.stream_count == YAMUX_ACCEPT_BACKLOG

    def test_stream_ids_run_out_without_wrapping(self) -> None:
        connection = client()
        connection._next_id = 2**32 - 1
        assert connection.open_stream() == 2**32 - 1
        with pytest.raises(ConnectionLost, match="used up"):
            connection.open_stream()


OFFENCES = {
    "version": HEADER.pack(1, DATA, 0, 1, 0),
    "unknown type": HEADER.pack(0, 4, 0, 0, 0),
    "unknown type on a stream": HEADER.pack(0, 9, 0, 1, 0),
    "4 GiB": frame(DATA, 0, 1, 2**32 - 1),
    "larger than any window": frame(DATA, 0, 1, YAMUX_FRAME_BYTES_ACCEPTED + 1),
    "larger than this window": frame(DATA, 0, 1, YAMUX_WINDOW_BYTES_INITIAL + 1),
    "data for the session": frame(DATA, 0, 0, 1),
    "window of the session": frame(WINDOW_UPDATE, 0, 0, 1),
    "ping on a stream": frame(PING, SYN, 1, 1),
    "go away on a stream": frame(GO_AWAY, 0, 1, 0),
    "our parity": frame(WINDOW_UPDATE, SYN, 2, 0),
    "opened twice": frame(WINDOW_UPDATE, SYN, 1, 0),
    "never opened by the peer": data(3, b"x"),
    "never opened by us": frame(WINDOW_UPDATE, 0, 2, 1),
    "window overflow": frame(WINDOW_UPDATE, 0, 1, 2**32 - 1),
    "data after the end": data(1, b"", FIN) + data(1, b"x"),
}


@pytest.mark.parametrize("offence", OFFENCES.values(), ids=OFFENCES.keys())
def test_an_offence_ends_the_connection_at_once_and_for_good(offence: bytes) -> None:
    connection = serving()
    with pytest.raises(ProtocolViolation):
        connection.receive_data(offence)
    assert sent(connection) == [(GO_AWAY, 0, 0, 1)]
    with pytest.raises(ProtocolViolation):
        connection.receive_data(frame(PING, SYN, 0, 1))
    assert connection.data_to_send() == []


def test_a_declared_length_allocates_nothing() -> None:
    """threats.md 1: 4 GiB refused; 1 MiB, which is allowed, costs nothing until it comes."""
    connections = [serving() for _ in range(100)]
    connections[0].receive_data(b"")
    offence, honest = OFFENCES["4 GiB"], frame(DATA, 0, 1, YAMUX_WINDOW_BYTES_INITIAL)
    tracemalloc.start()
    try:
        for connection in connections[:50]:
            with pytest.raises(ProtocolViolation):
                connection.receive_data(offence)
        for connection in connections[50:]:
            connection.receive_data(honest)
        assert tracemalloc.get_traced_memory()[1] < 500_000
    finally:
        tracemalloc.stop()
