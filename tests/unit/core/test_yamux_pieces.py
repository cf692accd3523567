"""Data frames as whoever encrypts takes them: in pieces, of which little is copied."""

from __future__ import annotations

import random

import pytest

from dstore.core.yamux import YamuxConnection
from dstore.core.yamux_frames import HEADER
from dstore.limits import YAMUX_FRAME_BYTES_MAX


def sending() -> tuple[YamuxConnection, int]:
    """One side with a stream whose opening has been sent."""
    connection = YamuxConnection(initiator=True)
    stream = connection.open_stream()
    connection.data_to_send()
    return connection, stream


@pytest.mark.parametrize(
    ("size", "pieces"),
    [
        (1, [13]),
        (65_507, [65_519]),
        (65_508, [12, 65_508]),
        (65_519, [12, 65_519]),
        (65_520, [13, 65_519]),
        (3 * 65_519 - 1, [12, 65_519, 65_519, 65_518]),
        (YAMUX_FRAME_BYTES_MAX, [12, 65_519, 65_519, 65_519, 65_519]),
    ],
)
def test_a_data_frame_carries_its_length_and_comes_in_whole_noise_messages(
    size: int, pieces: list[int]
) -> None:
    connection, stream = sending()
    data = random.Random(size).randbytes(size)
    assert connection.send(stream, memoryview(data)) == size
    out = connection.data_to_send()
    assert [len(piece) for piece in out] == pieces
    assert b"".join(out) == HEADER.pack(0, 0, 0, 1, size) + data


def test_a_frame_holds_no_more_than_its_limit_and_is_never_cut_by_a_ping() -> None:
    connection, stream = sending()
    data = memoryview(bytes(YAMUX_FRAME_BYTES_MAX + 10))
    assert connection.send(stream, data) == YAMUX_FRAME_BYTES_MAX
    assert connection.send(stream, data, YAMUX_FRAME_BYTES_MAX) == 10
    assert len(connection.data_to_send(1)) == 5
    connection.ping(7)
    ping, rest = connection.data_to_send()
    assert (len(ping), len(rest)) == (12, 22)


def test_a_buffer_that_may_change_is_copied() -> None:
    connection, stream = sending()
    data = bytearray(b"a" * 100_000)
    connection.send(stream, memoryview(data))
    data[:] = b"b" * 100_000
    assert b"".join(connection.data_to_send())[12:] == b"a" * 100_000
