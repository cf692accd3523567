"""One side of a fragment stream, played by hand: for tests of what the other side makes of it.

It checks nothing and has no deadlines; a test says what is sent, in what order, how wrong.
"""

from __future__ import annotations

import trio

from dstore.core import wire
from dstore.core.wirecodec import decode_answer, encode_answer, encode_request, encode_upload
from dstore.errors import ConnectionLost
from dstore.limits import CONTROL_BYTES_MAX
from dstore.network.streams import BufferedReader, Stream, frame


class Script:
    """The stream and what may be sent on it."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.reader = BufferedReader(stream)

    async def request(self, request: wire.Request) -> None:
        """Send a request, as a client would."""
        await self.stream.write(frame(encode_request(request)))

    async def upload(self, upload: wire.Upload, data: bytes = b"") -> None:
        """Send a block of a slot, as a client would: `data` whatever the header says."""
        await self.stream.write(frame(encode_upload(upload)) + data)

    async def send(self, answer: wire.Answer, data: bytes = b"") -> None:
        """Send an answer, as a server would: `data` whatever the header says."""
        await self.stream.write(frame(encode_answer(answer)) + data)

    async def read_request(self) -> bytes:
        """The request that comes next, not decoded."""
        message = await self.reader.read_message(CONTROL_BYTES_MAX)
        assert message is not None, "the stream has ended"
        return message

    async def answer(self) -> wire.Answer:
        """The answer that comes next."""
        return decode_answer(await self.read_request())

    async def until_reset(self, seconds: float) -> None:
        """Read until the other side ends the stream by a reset, no later than that."""
        with trio.fail_after(seconds):
            try:
                while await self.stream.read_some():
                    pass
            except ConnectionLost:
                return
        raise AssertionError("the stream was closed in order")
