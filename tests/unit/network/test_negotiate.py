"""Multistream-select against itself, against libp2p's negotiator, and against nonsense."""

from __future__ import annotations

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import memory_stream_pair

from dstore.core.cid import encode_varint
from dstore.errors import ConnectionLost, ProtocolViolation
from dstore.limits import NEGOTIATE_MESSAGE_BYTES_MAX, NEGOTIATE_PROPOSALS_MAX
from dstore.network.negotiate import accept, expect, proposal, propose


class Pipe:
    """One end of a memory stream, which gives `step` bytes at a time at most."""

    def __init__(self, stream: trio.abc.Stream, step: int = 1 << 20) -> None:
        self.stream = stream
        self.step = step

    async def read_some(self, max_bytes: int = 1 << 20) -> bytes:
        return bytes(await self.stream.receive_some(min(max_bytes, self.step)))

    async def write(self, data: bytes) -> None:
        await self.stream.send_all(data)

    # libp2p's names
    async def read(self, n: int | None = None) -> bytes:
        return await self.read_some(n or 1 << 20)


class Script:
    """A remote side that says `data` whatever it hears, then leaves."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.written = b""

    async def read_some(self, max_bytes: int = 1 << 20) -> bytes:
        chunk, self.data = self.data[:max_bytes], self.data[max_bytes:]
        return chunk

    async def write(self, data: bytes) -> None:
        self.written += data


def pair(step: int = 1 << 20) -> tuple[Pipe, Pipe]:
    left, right = memory_stream_pair()
    return Pipe(left, step), Pipe(right, step)


def message(text: bytes) -> bytes:
    return encode_varint(len(text)) + text


HEADER = message(b"/multistream/1.0.0\n")


@pytest.mark.parametrize("step", [1, 7, 1 << 20])
async def test_the_first_common_protocol_wins_and_not_a_byte_more_is_read(step: int) -> None:
    here, there = pair(step)
    agreed: list[str] = []

    async def serve() -> None:
        agreed.append(await accept(there, {"/b", "/c"}.__contains__))
        await there.write(b"payload")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        agreed.append(await propose(here, ["/a", "/b", "/c"]))
    assert agreed == ["/b", "/b"]
    received = b""
    while len(received) < 7:
        received += await here.read_some(100)
    assert received == b"payload"


async def test_no_common_protocol() -> None:
    here, there = pair()

    async def serve() -> None:
        with pytest.raises(ConnectionLost):
            await accept(there, {"/x"}.__contains__)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        with pytest.raises(ProtocolViolation, match="speaks none of /a, /b"):
            await propose(here, ["/a", "/b"])
        await here.stream.aclose()


@pytest.mark.parametrize("ours_proposes", [True, False])
async def test_with_the_negotiator_of_libp2p(ours_proposes: bool) -> None:
    from libp2p.protocol_muxer.multiselect import Multiselect
    from libp2p.protocol_muxer.multiselect_client import MultiselectClient
    from libp2p.protocol_muxer.multiselect_communicator import MultiselectCommunicator

    here, there = pair()
    agreed: list[str] = []

    async def stock() -> None:
        communicator = MultiselectCommunicator(there)
        if ours_proposes:
            protocol, _ = await Multiselect({"/b": None}).negotiate(communicator)
        else:
            protocol = await MultiselectClient().select_one_of(["/a", "/b"], communicator)
        agreed.append(str(protocol))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(stock)
        if ours_proposes:
            agreed.append(await propose(here, ["/a", "/b"]))
        else:
            agreed.append(await accept(here, {"/b"}.__contains__))
    assert agreed == ["/b", "/b"]


@pytest.mark.parametrize(
    "hostile",
    [
        b"\xff\xfe\xfd\xfc",  # a length of two bytes that is not minimal or too long
        b"\x04\xff\xfe\xfd\n",  # four bytes of invalid UTF-8: the end of a stock node
        b"\x00",
        b"\x80\x00",
        b"\x80\x80\x80\x80\x80\x80\x80\x80\x80\x01",
        message(b"x" * NEGOTIATE_MESSAGE_BYTES_MAX + b"\n"),
        message(b"/multistream/1.0.0"),
        message(b"/multistream/2.0.0\n"),
        HEADER + b"\x04\xff\xfe\xfd\n",
        HEADER + b"\xff\xfe\xfd\xfc",
        HEADER + b"\x00",
        HEADER + b"\x80\x00",
        HEADER + b"\x80" * 9 + b"\x01",
        HEADER + message(b"x" * NEGOTIATE_MESSAGE_BYTES_MAX + b"\n"),
        HEADER + message(b"no newline"),
        HEADER + message(b"/not-there\n") * (NEGOTIATE_PROPOSALS_MAX + 1),
        b"GET / HTTP/1.1\r\nHost: node.example\r\n" + b"Accept: */*\r\n" * 9,
    ],
)
async def test_nonsense_is_a_violation(hostile: bytes) -> None:
    with pytest.raises(ProtocolViolation):
        await accept(Script(hostile), {"/here"}.__contains__)


@pytest.mark.parametrize("cut", [b"", b"\x13", HEADER[:5], HEADER, HEADER + b"\x20/abc"])
async def test_leaving_in_the_middle_is_a_lost_connection(cut: bytes) -> None:
    with pytest.raises(ConnectionLost):
        await accept(Script(cut), {"/here"}.__contains__)
    with pytest.raises(ConnectionLost):
        await propose(Script(cut), ["/here"])


async def test_an_answer_to_another_question_is_a_violation() -> None:
    with pytest.raises(ProtocolViolation, match="in answer to a proposal of /here"):
        await propose(Script(HEADER + message(b"/there\n")), ["/here"])


async def test_agreement_to_what_was_proposed_ahead() -> None:
    script = Script(HEADER + message(b"/here\n") + b"the rest")
    await expect(script, proposal("/here"))
    assert script.data == b"the rest"
    for refusal in (b"na\n", b"/there\n"):
        with pytest.raises(ProtocolViolation, match="does not agree to"):
            await expect(Script(HEADER + message(refusal)), proposal("/here"))
    with pytest.raises(ConnectionLost):
        await expect(Script(HEADER), proposal("/here"))


@given(st.binary(max_size=200))
def test_any_bytes_end_in_an_error_of_ours(data: bytes) -> None:
    async def main() -> None:
        with pytest.raises((ProtocolViolation, ConnectionLost)):
            await accept(Script(data), {"/here"}.__contains__)
        with pytest.raises((ProtocolViolation, ConnectionLost)):
            await propose(Script(data), ["/here"])

    trio.run(main)
