"""Ping: 32 random bytes there and back on a stream.  Specification: libp2p ping."""

from __future__ import annotations

from random import Random
from typing import Final

import trio

from dstore.errors import DeadlineExceeded, ProtocolViolation
from dstore.limits import IDLE_STREAM_SECONDS, REQUEST_SECONDS
from dstore.network.streams import BufferedReader, Stream

PING: Final = "/ipfs/ping/1.0.0"
PING_BYTES: Final = 32


async def serve_ping(stream: Stream) -> None:
    """Echo until the peer ends or idles."""
    pending = b""
    while True:
        with trio.move_on_after(IDLE_STREAM_SECONDS) as waiting:
            chunk = await stream.read_some(PING_BYTES)
        if waiting.cancelled_caught or not chunk:
            return
        pending += chunk
        if len(pending) >= PING_BYTES:
            await stream.write(pending[:PING_BYTES])
            pending = pending[PING_BYTES:]


async def measure(stream: Stream, random: Random) -> float:
    """Seconds of one round trip.  Raises DeadlineExceeded, ConnectionLost,
    ProtocolViolation where other bytes come back."""
    payload = random.randbytes(PING_BYTES)
    start = trio.current_time()
    try:
        with trio.fail_after(REQUEST_SECONDS):
            await stream.write(payload)
            answer = await BufferedReader(stream).read_exactly(PING_BYTES)
    except trio.TooSlowError as error:
        raise DeadlineExceeded(f"{stream.peer} did not answer a ping") from error
    if answer != payload:
        raise ProtocolViolation(f"{stream.peer} answered a ping with other bytes")
    return trio.current_time() - start
