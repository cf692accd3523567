"""Two yamux state machines joined by a wire that cuts anywhere, against a model of pipes.

The model knows what each side wrote and read on each stream; the machines must deliver
exactly that, in order, within their windows, and be empty at the end.  Hostile bytes may
raise ProtocolViolation and nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
)

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
    PingAnswered,
    StreamEnded,
    StreamOpened,
    StreamReset,
)
from dstore.errors import ProtocolViolation
from dstore.limits import (
    YAMUX_FRAME_BYTES_MAX,
    YAMUX_WINDOW_BYTES,
    YAMUX_WINDOW_BYTES_INITIAL,
)

LIMITS = YamuxLimits(streams_max=6, backlog_max=4, memory_bytes_max=3 * YAMUX_WINDOW_BYTES)


@dataclass
class Pipe:
    """One direction of one stream: bytes as counters of a known sequence."""

    written: int = 0  # accepted by the sender's machine
    arrived: int = 0  # handed out by the receiver's machine
    read: int = 0
    shut: bool = False  # the sender closed it
    ended: bool = False  # the receiver was told
    unwatched: bool = False  # the receiver closed, or the stream was reset


@dataclass
class Side:
    machine: YamuxConnection
    inbox: bytearray = field(default_factory=bytearray)
    pongs: int = 0
    pings: int = 0


def pattern(start: int, size: int) -> bytes:
    """Bytes of the endless sequence that every pipe carries."""
    offset = start % 251
    return (bytes(range(251)) * (size // 251 + 2))[offset : offset + size]


class TwoMachines(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.sides = [
            Side(YamuxConnection(initiator=True, limits=LIMITS)),
            Side(YamuxConnection(initiator=False, limits=LIMITS)),
        ]
        # (receiving side, stream): the pipe towards that side
        self.pipes: dict[tuple[int, int], Pipe] = {}
        self.known: list[set[int]] = [set(), set()]  # streams that each side may use
        self.gone: set[int] = set()  # reset by either side

    def pick(self, side: int, which: int) -> int | None:
        usable = sorted(self.known[side] - self.gone)
        return usable[which % len(usable)] if usable else None

    @rule(side=st.integers(0, 1))
    def open(self, side: int) -> None:
        machine = self.sides[side].machine
        if not machine.may_open():
            return
        stream = machine.open_stream()
        assert stream % 2 == 1 - side
        self.known[side].add(stream)
        self.pipes[0, stream] = Pipe()
        self.pipes[1, stream] = Pipe()

    @rule(side=st.integers(0, 1), which=st.integers(0, 5), size=st.integers(1, 400_000))
    def write(self, side: int, which: int, size: int) -> None:
        stream = self.pick(side, which)
        if stream is None or self.pipes[1 - side, stream].shut:
            return
        pipe = self.pipes[1 - side, stream]
        machine = self.sides[side].machine
        window = machine.send_window(stream)
        taken = machine.send(stream, memoryview(pattern(pipe.written, size)))
        assert taken == min(size, window, YAMUX_FRAME_BYTES_MAX)
        pipe.written += taken

    @rule(side=st.integers(0, 1), which=st.integers(0, 5), size=st.integers(1, 400_000))
    def read(self, side: int, which: int, size: int) -> None:
        stream = self.pick(side, which)
        if stream is None or self.pipes[side, stream].unwatched:
            return
        pipe = self.pipes[side, stream]
        size = min(size, pipe.arrived - pipe.read)
        pipe.read += size
        self.sides[side].machine.consumed(stream, size)

    @rule(side=st.integers(0, 1), which=st.integers(0, 5))
    def close_write(self, side: int, which: int) -> None:
        stream = self.pick(side, which)
        if stream is not None:
            self.pipes[1 - side, stream].shut = True
            self.sides[side].machine.close_write(stream)

    @rule(side=st.integers(0, 1), which=st.integers(0, 5))
    def close(self, side: int, which: int) -> None:
        stream = self.pick(side, which)
        if stream is not None:
            self.pipes[1 - side, stream].shut = True
            self.pipes[side, stream].unwatched = True
            self.sides[side].machine.close(stream)

    @rule(side=st.integers(0, 1), which=st.integers(0, 5))
    def reset(self, side: int, which: int) -> None:
        stream = self.pick(side, which)
        if stream is not None:
            self.sides[side].machine.reset(stream)
            self.gone.add(stream)

    @rule(side=st.integers(0, 1))
    def ping(self, side: int) -> None:
        if self.sides[side].pings == self.sides[side].pongs:
            self.sides[side].pings += 1
            self.sides[side].machine.ping(self.sides[side].pings)

    @rule(side=st.integers(0, 1), cut=st.integers(1, 300_000))
    def carry(self, side: int, cut: int) -> None:
        """Deliver the next `cut` bytes of what the other side has sent."""
        here, there = self.sides[side], self.sides[1 - side]
        here.inbox += b"".join(there.machine.data_to_send())
        piece = bytes(here.inbox[:cut])
        del here.inbox[:cut]
        for event in here.machine.receive_data(piece):
            if isinstance(event, StreamOpened):
                self.known[side].add(event.stream_id)
                here.machine.accept(event.stream_id)
            elif isinstance(event, DataReceived):
                pipe = self.pipes[side, event.stream_id]
                assert not pipe.ended
                if not pipe.unwatched:
                    assert event.data == pattern(pipe.arrived, len(event.data))
                    pipe.arrived += len(event.data)
                    assert pipe.arrived <= pipe.written
            elif isinstance(event, StreamEnded):
                pipe = self.pipes[side, event.stream_id]
                assert pipe.shut
                assert pipe.unwatched or pipe.arrived == pipe.written
                pipe.ended = True
            elif isinstance(event, StreamReset):
                self.gone.add(event.stream_id)
            elif isinstance(event, PingAnswered):
                here.pongs += 1
                assert event.value == here.pongs

    @precondition(lambda self: len(self.pipes) > 0)
    @rule()
    def settle(self) -> None:
        """Carry, and read, until both are quiet: everything written has been read."""
        for _ in range(1000):
            moved = False
            for side in (0, 1):
                if self.sides[1 - side].machine.pending_bytes or self.sides[side].inbox:
                    self.carry(side, 2**30)
                    moved = True
                for which in range(len(self.known[side])):
                    self.read(side, which, 2**30)
            if not moved:
                break
        else:
            raise AssertionError("the two never come to rest")
        for (side, stream), pipe in self.pipes.items():
            if stream not in self.gone and not pipe.unwatched:
                assert pipe.read == pipe.arrived == pipe.written
                assert pipe.ended == pipe.shut
                window = self.sides[1 - side].machine.send_window(stream)
                # Nobody waits for ever: at rest, at least half a window is open.
                assert pipe.shut or window > YAMUX_WINDOW_BYTES_INITIAL // 2
        for here in self.sides:
            assert here.machine.unread_bytes == 0
            assert here.pongs == here.pings

    @invariant()
    def bounded(self) -> None:
        for here in self.sides:
            assert 0 <= here.machine.unread_bytes <= LIMITS.memory_bytes_max
            assert here.machine.stream_count <= 2 * LIMITS.streams_max
            assert here.machine.granted_bytes <= max(
                LIMITS.memory_bytes_max, 2 * LIMITS.streams_max * YAMUX_WINDOW_BYTES_INITIAL
            )

    def teardown(self) -> None:
        if self.pipes:
            self.settle()
        for stream in {stream for _, stream in self.pipes}:
            for here in self.sides:
                here.machine.reset(stream)
        for here in self.sides:
            assert here.machine.stream_count == 0
            assert here.machine.granted_bytes == 0
            assert here.machine.unread_bytes == 0


TestTwoMachines = TwoMachines.TestCase
TestTwoMachines.settings = settings(stateful_step_count=40, deadline=None)


def header(draw_kind: int, flags: int, stream: int, length: int) -> bytes:
    return HEADER.pack(0, draw_kind, flags, stream, length)


HOSTILE = st.lists(
    st.one_of(
        st.binary(max_size=40),
        st.builds(
            header,
            st.sampled_from([DATA, WINDOW_UPDATE, PING, GO_AWAY, 7]),
            st.sampled_from([0, SYN, ACK, FIN, RST, SYN | FIN, SYN | RST, ACK | FIN, 0xFFFF]),
            st.one_of(st.integers(0, 12), st.integers(0, 2**32 - 1)),
            st.one_of(st.integers(0, 40), st.integers(0, 2**32 - 1)),
        ),
    ),
    max_size=40,
)


@settings(deadline=None)
@given(pieces=HOSTILE, initiator=st.booleans(), opened=st.integers(0, 4))
@example(pieces=[header(DATA, 0, 1, 2**32 - 1)], initiator=True, opened=1)
def test_arbitrary_bytes_raise_protocol_violation_or_nothing(
    pieces: list[bytes], initiator: bool, opened: int
) -> None:
    machine = YamuxConnection(initiator=initiator, limits=LIMITS)
    for _ in range(opened):
        machine.open_stream()
    received = handed_out = 0
    for piece in pieces:
        received += len(piece)
        try:
            events = machine.receive_data(piece)
        except ProtocolViolation:
            break
        handed_out += sum(len(e.data) for e in events if isinstance(e, DataReceived))
        assert handed_out <= received
        assert machine.unread_bytes <= handed_out
        assert machine.pending_bytes <= 12 * (opened + 2 * len(pieces) + received)
    assert machine.stream_count <= 2 * LIMITS.streams_max
    for frame in machine.data_to_send():
        version, kind, _, _, length = HEADER.unpack(frame)
        assert version == 0
        assert kind in (WINDOW_UPDATE, PING, GO_AWAY)
        assert length < 2**32


@settings(deadline=None)
@given(pieces=HOSTILE, cuts=st.lists(st.integers(1, 30), min_size=1, max_size=20))
def test_the_cuts_between_reads_change_nothing(pieces: list[bytes], cuts: list[int]) -> None:
    def outcome(chunks: list[bytes]) -> tuple[list[object], bytes, bool]:
        machine = YamuxConnection(initiator=False, limits=LIMITS)
        events: list[object] = []
        broken = False
        for chunk in chunks:
            try:
                for event in machine.receive_data(chunk):
                    if isinstance(event, DataReceived):
                        events += [(event.stream_id, byte) for byte in event.data]
                    else:
                        events.append(event)
            except ProtocolViolation:
                broken = True
                break
        return events, b"".join(machine.data_to_send()), broken

    stream = b"".join(pieces)
    chunks: list[bytes] = []
    position = 0
    while position < len(stream):
        size = cuts[len(chunks) % len(cuts)]
        chunks.append(stream[position : position + size])
        position += size
    whole_events, whole_sent, whole_broken = outcome([stream])
    cut_events, cut_sent, cut_broken = outcome(chunks)
    assert whole_broken == cut_broken
    assert whole_sent == cut_sent
    if not whole_broken:
        assert whole_events == cut_events
