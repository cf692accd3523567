"""The in-memory network: the streams' contract, and the faults it plays."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from dstore.errors import (
    ConnectionLost,
    DeadlineExceeded,
    ProtocolViolation,
    Unreachable,
)
from dstore.limits import DIAL_SECONDS, NEGOTIATE_SECONDS
from dstore.network.streams import Network, PeerAddresses, Stream
from dstore.testing.deterministic import peer_number
from dstore.testing.memory_network import (
    Latency,
    MemoryHost,
    MemoryNetwork,
    NetworkOptions,
    memory_network,
)

A, B, C = (peer_number(number) for number in range(3))
ECHO = "/echo/1"
OPTIONS = NetworkOptions(latency=Latency(0.01, 0.02), window_bytes=1000)


async def _echo(stream: Stream) -> None:
    while data := await stream.read_some():
        await stream.write(data)


def _pair(network: MemoryNetwork) -> tuple[MemoryHost, MemoryHost]:
    first, second = network.host(A), network.host(B)
    first.remember(PeerAddresses(B, tuple(second.addresses())))
    return first, second


async def _accepted(
    network: MemoryNetwork,
) -> tuple[Stream, Stream, Callable[[], None]]:
    """The two ends of a stream, and what ends the handler that keeps the far one open."""
    first, second = _pair(network)
    send, receive = trio.open_memory_channel[Stream](1)
    done = trio.Event()

    async def keep(stream: Stream) -> None:
        await send.send(stream)
        await done.wait()

    second.set_handler("/keep/1", keep)
    near = await first.open_stream(B, ["/keep/1"])
    return near, await receive.receive(), done.set


async def test_satisfies_the_contract(autojump_clock: MockClock) -> None:
    async with memory_network() as network:
        host: Network = network.host(A)
        assert host.peer_id == A
        assert host.addresses() == ("/ip4/127.0.0.1/tcp/10000",)
        assert host.connected() == ()


async def test_echo_negotiates_the_first_spoken(autojump_clock: MockClock) -> None:
    async with memory_network(options=OPTIONS) as network:
        first, second = _pair(network)
        second.set_handler(ECHO, _echo)
        stream = await first.open_stream(B, ["/none/1", ECHO])
        assert stream.peer == B
        assert first.connected() == (B,)
        assert second.connected() == (A,)
        assert second.known_addresses(A) == first.addresses()
        before = trio.current_time()
        await stream.write(b"hello")
        assert await stream.read_some() == b"hello"
        assert 0.02 <= trio.current_time() - before <= 0.04
        await stream.close_write()
        assert await stream.read_some() == b""
        assert await stream.read_some() == b""
        assert await first.speaks(B, ECHO)
        assert not await first.speaks(B, "/none/1")
        assert not await first.speaks(C, ECHO)
        with pytest.raises(ProtocolViolation):
            await first.open_stream(B, ["/none/1"])
        with pytest.raises(ConnectionLost):
            await stream.write(b"after the end")


async def test_writes_wait_for_the_window(autojump_clock: MockClock) -> None:
    async with memory_network(options=OPTIONS) as network:
        near, far, _ = await _accepted(network)
        await near.write(bytes(1000))
        with trio.move_on_after(60) as scope:
            await near.write(b"x")
        assert scope.cancelled_caught
        assert len(await far.read_some(300)) == 300
        await near.write(bytes(300))
        got = 0
        while got < 1000:
            got += len(await far.read_some())
        assert got == 1000


async def test_large_transfers_arrive_whole_and_ragged(autojump_clock: MockClock) -> None:
    options = NetworkOptions(latency=Latency(0, 0), window_bytes=1000, ragged=True)
    data = bytes(range(256)) * 50
    async with memory_network(options=options) as network:
        near, far, _ = await _accepted(network)
        sizes: list[int] = []
        received = bytearray()
        async with trio.open_nursery() as nursery:

            async def send() -> None:
                await near.write(memoryview(data))
                await near.close_write()

            nursery.start_soon(send)
            while chunk := await far.read_some():
                sizes.append(len(chunk))
                received += chunk
    assert received == data
    assert len(set(sizes)) > 3


async def test_half_close_and_close(autojump_clock: MockClock) -> None:
    async with memory_network(options=OPTIONS) as network:
        near, far, _ = await _accepted(network)
        await near.write(b"last words")
        await near.close()
        assert await far.read_some() == b"last words"
        assert await far.read_some() == b""
        await far.write(bytes(5000))  # dropped: more than the window, and nobody waits
        with pytest.raises(ConnectionLost):
            await near.read_some()


async def test_reset_reaches_waiting_readers_and_writers(autojump_clock: MockClock) -> None:
    async with memory_network(options=OPTIONS) as network:
        near, far, _ = await _accepted(network)

        async def lose(wait: Callable[[], Awaitable[object]]) -> None:
            with pytest.raises(ConnectionLost):
                await wait()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(lose, far.read_some)
            nursery.start_soon(lose, lambda: far.write(bytes(5000)))
            await trio.testing.wait_all_tasks_blocked()
            await near.reset()
        with pytest.raises(ConnectionLost):
            await near.read_some()
        await near.reset()  # never raises


async def test_handler_errors_reset_only_their_stream(autojump_clock: MockClock) -> None:
    async def fail(stream: Stream) -> None:
        async with trio.open_nursery():
            await stream.read_some()
            raise ProtocolViolation("no")

    async with memory_network(options=OPTIONS) as network:
        first, second = _pair(network)
        second.set_handler(ECHO, _echo)
        second.set_handler("/fail/1", fail)
        good = await first.open_stream(B, [ECHO])
        bad = await first.open_stream(B, ["/fail/1"])
        await bad.write(b"x")
        with pytest.raises(ConnectionLost):
            await bad.read_some()
        await good.write(b"still here")
        assert await good.read_some() == b"still here"
        assert second.handler_errors == 1


async def test_faults_of_the_code_under_test_are_not_swallowed(autojump_clock: MockClock) -> None:
    async def broken(stream: Stream) -> None:
        raise KeyError("a bug")

    with pytest.raises(BaseExceptionGroup) as caught:
        async with memory_network() as network:
            first, second = _pair(network)
            second.set_handler(ECHO, broken)
            await first.open_stream(B, [ECHO])
            await trio.sleep_forever()
    assert caught.group_contains(KeyError)


async def test_kill_loses_connections_and_cancels_handlers(autojump_clock: MockClock) -> None:
    cancelled = trio.Event()

    async def wait(stream: Stream) -> None:
        try:
            await trio.sleep_forever()
        finally:
            cancelled.set()

    async with memory_network(options=OPTIONS) as network:
        first, second = _pair(network)
        second.set_handler("/wait/1", wait)
        stream = await first.open_stream(B, ["/wait/1"])
        network.kill(B)
        with pytest.raises(ConnectionLost):
            await stream.read_some()
        await cancelled.wait()
        assert first.connected() == ()
        with pytest.raises(Unreachable):
            await first.open_stream(B, [ECHO])
        with pytest.raises(Unreachable):
            await second.connect(PeerAddresses(A, tuple(first.addresses())))
        again = network.host(B)
        again.set_handler(ECHO, _echo)
        assert again.addresses() == second.addresses()
        await first.open_stream(B, [ECHO])


async def test_pause_is_silence_and_resume_delivers(autojump_clock: MockClock) -> None:
    async with memory_network(options=OPTIONS) as network:
        near, far, _ = await _accepted(network)
        network.pause(B)
        await near.write(b"into the void")
        for silent in (far.read_some, near.read_some):
            with trio.move_on_after(10) as scope:
                await silent()
            assert scope.cancelled_caught
        network.resume(B)
        assert await far.read_some() == b"into the void"


async def test_silence_meets_deadlines_and_then_the_keep_alive(autojump_clock: MockClock) -> None:
    async with memory_network(options=OPTIONS) as network:
        near, _, _ = await _accepted(network)
        third = network.host(C)
        third.remember(PeerAddresses(B, ("/ip4/127.0.0.1/tcp/10001",)))
        network.pause(B)
        start = trio.current_time()
        with pytest.raises(DeadlineExceeded):
            await third.connect(PeerAddresses(B))
        assert trio.current_time() - start == pytest.approx(DIAL_SECONDS)
        with pytest.raises(ConnectionLost):
            await near.read_some()
        assert trio.current_time() - start == pytest.approx(OPTIONS.silence_seconds)


async def test_negotiation_has_a_deadline(autojump_clock: MockClock) -> None:
    async with memory_network(options=OPTIONS) as network:
        first, second = _pair(network)
        second.set_handler(ECHO, _echo)
        await first.connect(PeerAddresses(B))
        network.pause(B)
        start = trio.current_time()
        with pytest.raises(DeadlineExceeded):
            await first.open_stream(B, [ECHO])
        assert trio.current_time() - start == pytest.approx(NEGOTIATE_SECONDS)


async def test_partition_drop_sever_and_heal(autojump_clock: MockClock) -> None:
    async with memory_network(options=OPTIONS) as network:
        first, second = _pair(network)
        second.set_handler(ECHO, _echo)
        network.partition([A], [B])
        with pytest.raises(DeadlineExceeded):
            await first.open_stream(B, [ECHO])
        network.heal()
        stream = await first.open_stream(B, [ECHO])
        network.drop(A, B)
        assert network.silent_between(B, A)
        network.heal()
        await stream.write(b"x")
        assert await stream.read_some() == b"x"
        network.sever(A, B)
        with pytest.raises(ConnectionLost):
            await stream.write(b"x")
        await first.open_stream(B, [ECHO])


async def test_delay_and_corruption(autojump_clock: MockClock) -> None:
    async with memory_network(options=OPTIONS) as network:
        first, second = _pair(network)
        second.set_handler(ECHO, _echo)
        stream = await first.open_stream(B, [ECHO])
        network.corrupt(B, lambda receiver, data: data[::-1])
        await stream.write(b"abc")
        assert await stream.read_some() == b"cba"
        network.corrupt(B, None)
        network.delay(B, 5)
        start = trio.current_time()
        await stream.write(b"abc")
        assert await stream.read_some() == b"abc"
        assert trio.current_time() - start > 10


async def test_who_cannot_be_dialled(autojump_clock: MockClock) -> None:
    async with memory_network() as network:
        host, other = network.host(A), network.host(B)
        for target in (
            PeerAddresses(A, ("/ip4/127.0.0.1/tcp/10000",)),  # itself
            PeerAddresses(B),  # no address known
            PeerAddresses(B, ("/ip4/127.0.0.1/tcp/9",)),  # not there
            PeerAddresses(C, tuple(other.addresses())),  # somebody else there
        ):
            with pytest.raises(Unreachable):
                await host.connect(target)
        with pytest.raises(ValueError, match="running already"):
            network.host(A)


async def test_finished_streams_are_forgotten(autojump_clock: MockClock) -> None:
    async with memory_network(options=NetworkOptions(Latency(0, 0))) as network:
        first, second = _pair(network)
        second.set_handler(ECHO, _echo)
        for _ in range(20):
            stream = await first.open_stream(B, [ECHO])
            await stream.close()
        await trio.testing.wait_all_tasks_blocked()
        connection = first.live_connection(B)
        assert connection is not None
        assert connection.streams == 0
