"""The network contract as tests: subclass `NetworkSuite`, give it two nodes, run pytest.

The libp2p host and the network in memory both pass it, so that what is tested on the one
holds on the other.  It needs pytest-trio; it knows nothing of what carries the bytes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractAsyncContextManager

import pytest
import trio

from dstore.core.peerid import PeerId
from dstore.errors import ConnectionLost, ProtocolViolation, Unreachable
from dstore.limits import MIB
from dstore.network.streams import BufferedReader, Network, PeerAddresses, Stream, frame

ECHO = "/test/echo/1"
SILENT = "/test/silent/1"
_PATIENCE_SECONDS = 30  # for anything that should happen soon, on a slow machine too


def where(node: Network) -> PeerAddresses:
    """How to reach the node."""
    return PeerAddresses(node.peer_id, tuple(node.addresses()))


async def echo(stream: Stream) -> None:
    """Gives back what comes, until the end."""
    while data := await stream.read_some():
        await stream.write(data)


class NetworkSuite(ABC):
    """The tests; `pair` opens for each of them two nodes that do not know each other."""

    @abstractmethod
    def pair(self) -> AbstractAsyncContextManager[tuple[Network, Network]]: ...

    async def test_connecting_is_mutual_and_tells_addresses(self) -> None:
        async with self.pair() as (first, second):
            assert first.peer_id != second.peer_id
            assert list(first.connected()) == []
            with pytest.raises(Unreachable):
                await first.open_stream(second.peer_id, [ECHO])
            await first.connect(where(second))
            await first.connect(where(second))  # there already
            assert list(first.connected()) == [second.peer_id]
            assert set(second.addresses()) <= set(first.known_addresses(second.peer_id))
            answer = await _accepted(first, second)
            assert answer.peer == first.peer_id
            assert list(second.connected()) == [first.peer_id]

    async def test_both_ends_hear_of_each_other_and_of_what_changes(self) -> None:
        async with self.pair() as (first, second):
            second.set_handler(ECHO, echo)
            heard: list[tuple[PeerId, bool, bool]] = []
            news = trio.Event()

            def note_at(node: Network, other: Network) -> None:
                def note(peer: PeerId) -> None:
                    nonlocal news
                    assert peer == other.peer_id
                    spoken = node.announced(peer) or ()
                    heard.append((peer, ECHO in spoken, SILENT in spoken))
                    news.set()
                    news = trio.Event()

                node.on_identified(note)

            async def until(expected: set[tuple[PeerId, bool, bool]]) -> None:
                with trio.fail_after(_PATIENCE_SECONDS):
                    while not expected <= set(heard):
                        await news.wait()
                heard.clear()

            note_at(first, second)
            note_at(second, first)
            assert not first.announced(second.peer_id)
            for dialler, other in ((first, second), (second, first)):
                await dialler.connect(where(other))
                await until({(second.peer_id, True, False), (first.peer_id, False, False)})
                await dialler.disconnect(other.peer_id)
                with trio.fail_after(_PATIENCE_SECONDS):
                    while first.connected() or second.connected():  # noqa: ASYNC110
                        await trio.sleep(0.01)
            await first.connect(where(second))
            await until({(second.peer_id, True, False), (first.peer_id, False, False)})
            second.set_handler(SILENT, echo)
            await until({(second.peer_id, True, True)})

    async def test_remembered_addresses_are_dialled(self) -> None:
        async with self.pair() as (first, second):
            second.set_handler(ECHO, echo)
            first.remember(where(second))
            assert list(first.connected()) == []
            assert await _exchange(first, second, b"hello") == b"hello"

    async def test_the_first_protocol_spoken_is_chosen(self) -> None:
        async with self.pair() as (first, second):
            second.set_handler(ECHO, echo)
            await first.connect(where(second))
            stream = await first.open_stream(second.peer_id, ["/test/none/1", ECHO])
            await stream.write(b"x")
            assert await stream.read_some() == b"x"
            with pytest.raises(ProtocolViolation):
                await first.open_stream(second.peer_id, ["/test/none/1"])
            await stream.write(b"y")  # the refusal touched that stream alone
            assert await stream.read_some() == b"y"
            assert await first.speaks(second.peer_id, ECHO)
            assert not await first.speaks(second.peer_id, "/test/none/1")

    async def test_bulk_both_ways_arrives_whole(self) -> None:
        async with self.pair() as (first, second):
            second.set_handler(ECHO, echo)
            await first.connect(where(second))
            data = bytes(range(256)) * (3 * MIB // 256)
            assert await _exchange(first, second, data) == data

    async def test_half_close_leaves_the_other_half(self) -> None:
        async def answer_at_the_end(stream: Stream) -> None:
            size = 0
            while data := await stream.read_some():
                size += len(data)
            await stream.write(frame(str(size).encode()))

        async with self.pair() as (first, second):
            second.set_handler(ECHO, answer_at_the_end)
            await first.connect(where(second))
            stream = await first.open_stream(second.peer_id, [ECHO])
            await stream.write(bytes(1000))
            await stream.close_write()
            reader = BufferedReader(stream)
            with trio.fail_after(_PATIENCE_SECONDS):
                assert await reader.read_message(100) == b"1000"
                assert await reader.read_message(100) is None
            with pytest.raises(ConnectionLost):
                await stream.write(b"after the end")

    async def test_writes_wait_for_a_reader_and_can_be_cancelled(self) -> None:
        async with self.pair() as (first, second):
            await first.connect(where(second))
            near, far = await _both_ends(first, second)
            with trio.move_on_after(0.2) as scope:
                await near.write(bytes(64 * MIB))
            assert scope.cancelled_caught
            await near.reset()
            await near.reset()  # never raises
            with trio.fail_after(_PATIENCE_SECONDS), pytest.raises(ConnectionLost):
                await _drain(far)
            second.set_handler(ECHO, echo)  # other streams are as they were
            assert await _exchange(first, second, b"still here") == b"still here"

    async def test_closed_and_reset_ends_say_so(self) -> None:
        async with self.pair() as (first, second):
            await first.connect(where(second))
            near, far = await _both_ends(first, second)
            await near.write(b"last words")
            await near.close()
            with trio.fail_after(_PATIENCE_SECONDS):
                assert await far.read_some() == b"last words"
                assert await far.read_some() == b""
            near, far = await _both_ends(first, second)
            await far.reset()
            with trio.fail_after(_PATIENCE_SECONDS), pytest.raises(ConnectionLost):
                await near.read_some()

    async def test_a_failing_handler_resets_its_stream_only(self) -> None:
        async def fail(stream: Stream) -> None:
            await stream.read_some()
            raise ProtocolViolation("not like this")

        async with self.pair() as (first, second):
            second.set_handler(SILENT, fail)
            second.set_handler(ECHO, echo)
            await first.connect(where(second))
            stream = await first.open_stream(second.peer_id, [SILENT])
            await stream.write(b"x")
            with trio.fail_after(_PATIENCE_SECONDS), pytest.raises(ConnectionLost):
                await stream.read_some()
            assert await _exchange(first, second, b"hello") == b"hello"

    async def test_disconnecting_loses_the_streams(self) -> None:
        async with self.pair() as (first, second):
            await first.connect(where(second))
            near, far = await _both_ends(first, second)
            await first.disconnect(second.peer_id)
            await first.disconnect(second.peer_id)  # nothing to do
            assert list(first.connected()) == []
            for end in (near, far):
                with trio.fail_after(_PATIENCE_SECONDS), pytest.raises(ConnectionLost):
                    await end.read_some()
            assert await _accepted(first, second)  # and they may connect again


async def _exchange(first: Network, second: Network, data: bytes) -> bytes:
    """What the echo gives back."""
    stream = await first.open_stream(second.peer_id, [ECHO])
    received = bytearray()

    async def send() -> None:
        await stream.write(data)
        await stream.close_write()

    with trio.fail_after(_PATIENCE_SECONDS):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            while piece := await stream.read_some():
                received += piece
    await stream.close()
    return bytes(received)


async def _drain(stream: Stream) -> None:
    while await stream.read_some():
        pass


async def _both_ends(first: Network, second: Network) -> tuple[Stream, Stream]:
    """A stream from `first` to `second`; the handler keeps the far end open."""
    send, receive = trio.open_memory_channel[Stream](1)

    async def keep(stream: Stream) -> None:
        await send.send(stream)
        await trio.sleep_forever()

    second.set_handler(SILENT, keep)
    near = await first.open_stream(second.peer_id, [SILENT])
    # A stream may only exist for the peer once something was written; here it is known.
    with trio.fail_after(_PATIENCE_SECONDS):
        return near, await receive.receive()


async def _accepted(first: Network, second: Network) -> Stream:
    """The far end of a new stream."""
    _, far = await _both_ends(first, second)
    return far
