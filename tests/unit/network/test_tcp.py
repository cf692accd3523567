"""What a TCP connection asks of its socket."""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import pytest
import trio
import trio.testing

from dstore.core.endpoint import endpoint_of_socket
from dstore.errors import ConnectionLost
from dstore.limits import KIB, MIB, NEAR_SEND_BUFFER_BYTES
from dstore.network.shaping import Shaper
from dstore.network.tcp import (
    DirectListener,
    DirectSocket,
    TcpConnection,
    dial_tcp,
    listen_tcp,
    take_over,
)
from tests.unit.network.hosts import descriptors


class Told:
    """A socket and its stream, whose kernel says what a test wants of its round trips."""

    def __init__(self, info: bytes) -> None:
        self.socket = self
        self.info = info
        self.options: list[tuple[int, ...]] = []

    def getpeername(self) -> tuple[str, int]:
        return "192.0.2.1", 4001

    def getsockopt(self, *_: int) -> bytes:
        return self.info

    def setsockopt(self, *option: int) -> None:
        self.options.append(option)


@asynccontextmanager
async def over_loopback() -> AsyncIterator[tuple[TcpConnection, DirectSocket]]:
    """A connection, and the socket at its other end."""
    (listener,) = await listen_tcp("/ip4/127.0.0.1/tcp/0")
    async with listener:
        dialled = await dial_tcp(endpoint_of_socket(*listener.socket.getsockname()))
        connection = take_over(dialled, is_initiator=True, shaper=Shaper())
        connection.trust()
        async with await listener.accept() as far:
            yield connection, far
            await connection.close()


@pytest.mark.parametrize(
    ("info", "near"),
    [
        (bytes(68) + struct.pack("=I", 999), True),
        (bytes(68) + struct.pack("=I", 1000), False),
        (bytes(40), False),  # a kernel that says less
    ],
)
async def test_the_queue_in_the_kernel_is_cut_for_near_peers_only(info: bytes, near: bool) -> None:
    told: Any = Told(info)  # what TcpConnection uses of a socket
    connection = TcpConnection(told, is_initiator=True)
    assert told.options == []
    connection.trust()
    cut = [(socket.SOL_SOCKET, socket.SO_SNDBUF, NEAR_SEND_BUFFER_BYTES)]
    assert told.options == (cut if near else [])


@pytest.mark.skipif(not hasattr(socket, "TCP_INFO"), reason="a system that tells no round trips")
async def test_a_peer_on_this_machine_is_near() -> None:
    async with over_loopback() as (connection, _):
        held = connection._stream.socket.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
        assert held in (NEAR_SEND_BUFFER_BYTES, 2 * NEAR_SEND_BUFFER_BYTES)


async def test_what_is_gathered_goes_together_when_a_read_has_to_wait() -> None:
    async with over_loopback() as (connection, far):
        connection.gather()
        await far.send_all(memoryview(b"two words"))
        assert await connection.read_some(4) == b"two "
        await connection.write(b"said ")
        await connection.write(b"in a row")
        assert await connection.read_some(5) == b"words"  # which is here already
        with trio.move_on_after(0):
            await far.receive_some(KIB)
            pytest.fail("sent before anything was waited for")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(connection.read_some)
            assert await far.receive_some(KIB) == b"said in a row"
            await far.send_all(memoryview(b"heard"))
        await connection.write(b"the end")
        connection.gather(False)
        await connection.write(b", and on")
        assert await far.receive_some(KIB) == b"the end, and on"
        connection.gather()
        await connection.write(b"last")
        await connection.flush()
        assert await far.receive_some(KIB) == b"last"


async def test_what_a_slow_reader_takes_in_pieces_comes_whole_and_in_order() -> None:
    said = bytes(range(256)) * (32 * KIB)
    heard = bytearray()
    async with over_loopback() as (connection, far), trio.open_nursery() as nursery:
        nursery.start_soon(connection.write, said)
        while len(heard) < len(said):
            heard += await far.receive_some(50_000)
            await trio.lowlevel.checkpoint()
    assert heard == said


@pytest.mark.parametrize("work", ["read", "write"])
async def test_who_waits_on_a_connection_that_is_closed_hears_of_it(work: str) -> None:
    async with over_loopback() as (connection, _):

        async def wait() -> None:
            with pytest.raises(ConnectionLost):
                if work == "read":
                    await connection.read_some()
                await connection.write(bytes(64 * MIB))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked()
            await connection.close()


async def test_a_peer_that_is_gone_is_a_lost_connection() -> None:
    async with over_loopback() as (connection, far):
        await far.send_all(memoryview(b"the end"))
        far.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        await far.aclose()  # by a reset
        with pytest.raises(ConnectionLost):
            while await connection.read_some():
                pass
        with pytest.raises(ConnectionLost):
            await connection.write(b"too late")


async def test_who_sends_or_reads_without_waiting_gives_the_others_their_turns() -> None:
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await trio.lowlevel.checkpoint()

    async with over_loopback() as (connection, far), trio.open_nursery() as nursery:
        nursery.start_soon(others)
        for _ in range(8):
            await connection.write(bytes(20 * KIB))  # long, and the kernel has room for it
        assert turns >= 7  # one for each, but that the first or the last may miss
        turns = 0
        await far.send_all(memoryview(bytes(20_000)))
        for _ in range(8):
            await connection._stream.receive_some(1_000)  # here already
        assert turns >= 7
        nursery.cancel_scope.cancel()


class Listening:
    """A listening socket of which `accept` ends as a test wants, time after time."""

    def __init__(self, readable: socket.socket, outcomes: list[Any]) -> None:
        self.fileno = readable.fileno
        self.close = readable.close
        self.outcomes = outcomes

    def accept(self) -> tuple[socket.socket, object]:
        outcome = self.outcomes.pop(0)
        if isinstance(outcome, OSError):
            raise outcome
        return outcome, None


@contextmanager
def listening(*outcomes: Any) -> Iterator[DirectListener]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.send(b"somebody is there")
        script: Any = Listening(ours, list(outcomes))
        yield DirectListener(script)


async def test_a_connection_that_ended_before_it_was_accepted_is_passed_over() -> None:
    with socket.socket() as accepted:
        early = OSError(errno.ECONNABORTED, "software caused connection abort")
        with listening(early, BlockingIOError(), early, accepted) as listener:
            assert (await listener.accept()).socket is accepted


async def test_who_accepts_hears_that_there_is_no_room_for_a_connection() -> None:
    with listening(OSError(errno.EMFILE, "too many open files")) as listener:
        with pytest.raises(OSError, match="too many") as caught:
            await listener.accept()
        assert caught.value.errno == errno.EMFILE  # which `serve_listeners` waits out


async def test_a_listener_that_is_closed_says_so_to_who_waits() -> None:
    (listener,) = await listen_tcp("/ip4/127.0.0.1/tcp/0")

    async def wait() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await listener.accept()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        await listener.aclose()
    await listener.aclose()  # as often as one likes
    with pytest.raises(trio.ClosedResourceError):
        await listener.accept()


async def test_both_ends_send_what_they_have_at_once() -> None:
    (listener,) = await listen_tcp("/ip4/127.0.0.1/tcp/0")
    async with listener:
        dialled = await dial_tcp(endpoint_of_socket(*listener.socket.getsockname()))
        async with dialled, await listener.accept() as accepted:
            for end in (dialled, accepted):
                assert end.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


async def test_a_dial_that_is_refused_or_given_up_leaves_no_descriptor() -> None:
    (listener,) = await listen_tcp("/ip4/127.0.0.1/tcp/0")
    nobody = endpoint_of_socket(*listener.socket.getsockname())
    await listener.aclose()
    before = descriptors()
    with pytest.raises(ConnectionRefusedError):
        await dial_tcp(nobody)
    with trio.CancelScope() as scope:
        scope.cancel()
        await dial_tcp(nobody)
    assert scope.cancelled_caught
    assert descriptors() == before
