"""The host as a `Network`: peers, connections, streams, between hosts on loopback."""

from __future__ import annotations

import logging

import pytest
import trio

from dstore.core.peerid import PeerId
from dstore.errors import (
    ConfigError,
    ConnectionLost,
    NodeError,
    NotFoundError,
    ProtocolViolation,
    Unreachable,
)
from dstore.limits import BOOTSTRAP_BACKOFF_SECONDS_MAX
from dstore.network import bootstrap, swarm
from dstore.network.host import HostOptions, open_host
from dstore.network.identity import peer_id_of
from dstore.network.ping import PING
from dstore.network.streams import BufferedReader, Network, PeerAddresses, Stream, frame
from dstore.runtime import Runtime
from tests.unit.network.hosts import ECHO, SEEDS, echo, until, where


async def exchange(node: Network, peer: PeerId, payload: bytes = b"hello") -> bytes:
    stream = await node.open_stream(peer, [ECHO])
    await stream.write(payload)
    await stream.close_write()
    parts = []
    while part := await stream.read_some():
        parts.append(part)
    await stream.close()
    return b"".join(parts)


async def test_true_port_and_own_id() -> None:
    async with open_host(HostOptions(), SEEDS[0], Runtime()) as node:
        network: Network = node
        assert network.peer_id == peer_id_of(SEEDS[0])
        (address,) = network.addresses()
        assert address.startswith("/ip4/127.0.0.1/tcp/")
        assert not address.endswith("/tcp/0")
        assert network.connected() == []


async def test_a_wildcard_is_written_out() -> None:
    options = HostOptions(listen=("/ip4/0.0.0.0/tcp/0",))
    async with open_host(options, SEEDS[0], Runtime()) as node:
        assert node.addresses()[0].startswith("/ip4/127.0.0.1/tcp/")
        assert not any("0.0.0.0" in address for address in node.addresses())


async def test_streams_both_ways_over_one_connection() -> None:
    async with (
        open_host(HostOptions(), SEEDS[0], Runtime()) as a,
        open_host(HostOptions(), SEEDS[1], Runtime()) as b,
    ):
        a.set_handler(ECHO, echo)
        b.set_handler(ECHO, echo)
        await a.connect(where(b))
        payload = bytes(range(256)) * 4_000
        assert await exchange(a, b.peer_id, payload) == payload
        await until(b.connected)
        assert await exchange(b, a.peer_id, payload) == payload
        assert a.counters["connections_opened"] == b.counters["connections_opened"] == 1
        assert a.connected() == [b.peer_id]
        assert b.connected() == [a.peer_id]


async def test_open_stream_connects_by_remembered_addresses() -> None:
    async with (
        open_host(HostOptions(), SEEDS[0], Runtime()) as a,
        open_host(HostOptions(), SEEDS[1], Runtime()) as b,
    ):
        b.set_handler(ECHO, echo)
        with pytest.raises(Unreachable, match="no address"):
            await a.open_stream(b.peer_id, [ECHO])
        a.remember(where(b))
        assert list(a.known_addresses(b.peer_id)) == list(b.addresses())
        assert await exchange(a, b.peer_id) == b"hello"


async def test_the_first_protocol_that_the_peer_speaks() -> None:
    async with (
        open_host(HostOptions(), SEEDS[0], Runtime()) as a,
        open_host(HostOptions(), SEEDS[1], Runtime()) as b,
    ):
        b.set_handler(ECHO, echo)
        await a.connect(where(b))
        stream = await a.open_stream(b.peer_id, ["/test/newer/2", ECHO])
        assert stream.peer == b.peer_id
        await stream.reset()
        with pytest.raises(ProtocolViolation, match="/test/newer/2"):
            await a.open_stream(b.peer_id, ["/test/newer/2"])
        assert await exchange(a, b.peer_id) == b"hello"


async def test_a_raising_handler_resets_its_stream_and_nothing_else(
    caplog: pytest.LogCaptureFixture,
) -> None:
    # D1: in libp2p's host such an exception cancels the whole node.
    async def explode(stream: Stream) -> None:
        await stream.read_some()
        raise ZeroDivisionError("a fault of ours")

    async with (
        open_host(HostOptions(), SEEDS[0], Runtime()) as a,
        open_host(HostOptions(), SEEDS[1], Runtime()) as b,
    ):
        b.set_handler(ECHO, echo)
        b.set_handler("/test/explode/1", explode)
        await a.connect(where(b))
        steady = await a.open_stream(b.peer_id, [ECHO])
        with caplog.at_level(logging.ERROR, logger="dstore"):
            for _ in range(3):
                stream = await a.open_stream(b.peer_id, ["/test/explode/1"])
                await stream.write(b"x")
                with pytest.raises(ConnectionLost):
                    await stream.read_some()
        assert b.counters["handler_errors"] == 3
        assert [r.__dict__["reason"] for r in caplog.records] == ["ZeroDivisionError"] * 3
        await steady.write(b"still here")
        assert await BufferedReader(steady).read_exactly(10) == b"still here"
        assert a.counters["connections_opened"] == 1


async def test_a_handler_that_returns_has_its_stream_closed() -> None:
    # D18: libp2p leaves the remote side hanging.
    async def brief(stream: Stream) -> None:
        await stream.write(b"bye")

    async with (
        open_host(HostOptions(), SEEDS[0], Runtime()) as a,
        open_host(HostOptions(), SEEDS[1], Runtime()) as b,
    ):
        b.set_handler("/test/brief/1", brief)
        await a.connect(where(b))
        # Beyond the 256 at which libp2p blocks for ever.
        for _ in range(300):
            stream = await a.open_stream(b.peer_id, ["/test/brief/1"])
            assert await BufferedReader(stream).read_exactly(3) == b"bye"
            assert await stream.read_some() == b""
            await stream.close()


@pytest.mark.parametrize("end", ["close", "reset"])
async def test_a_handler_may_end_its_stream_itself(end: str) -> None:
    async def handler(stream: Stream) -> None:
        await stream.read_some()
        await getattr(stream, end)()

    async with (
        open_host(HostOptions(), SEEDS[0], Runtime()) as a,
        open_host(HostOptions(), SEEDS[1], Runtime()) as b,
    ):
        b.set_handler(ECHO, handler)
        await a.connect(where(b))
        stream = await a.open_stream(b.peer_id, [ECHO])
        await stream.write(b"x")
        if end == "close":
            assert await stream.read_some() == b""
        else:
            with pytest.raises(ConnectionLost):
                await stream.read_some()
        await stream.reset()
        assert b.counters["handler_errors"] == 0


async def test_a_lost_connection_is_an_error_and_not_an_end() -> None:
    # D14: in libp2p it reads like the end of the stream.
    async with open_host(HostOptions(), SEEDS[0], Runtime()) as a:
        async with open_host(HostOptions(), SEEDS[1], Runtime()) as b:
            b.set_handler(ECHO, echo)
            await a.connect(where(b))
            stream = await a.open_stream(b.peer_id, [ECHO])
            gone = b.peer_id
        with pytest.raises(ConnectionLost):
            await stream.read_some()
        with pytest.raises(ConnectionLost):
            await stream.write(b"x")
        await until(lambda: not a.connected())
        with pytest.raises(Unreachable):
            await a.open_stream(gone, [ECHO])


async def test_handlers_end_with_their_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    # A handler that never looks at its stream must not live for ever.
    monkeypatch.setattr(swarm, "CLOSE_SECONDS", 0.01)
    cancelled = trio.Event()
    started = trio.Event()

    async def deaf(stream: Stream) -> None:
        started.set()
        try:
            await trio.sleep_forever()
        finally:
            cancelled.set()

    async with (
        open_host(HostOptions(), SEEDS[0], Runtime()) as a,
        open_host(HostOptions(), SEEDS[1], Runtime()) as b,
    ):
        b.set_handler(ECHO, deaf)
        await a.connect(where(b))
        await a.open_stream(b.peer_id, [ECHO])
        await started.wait()
        await a.disconnect(b.peer_id)
        assert a.connected() == []
        with trio.fail_after(10):
            await cancelled.wait()


async def test_identify_and_its_push() -> None:
    async with (
        open_host(HostOptions(agent="alpha"), SEEDS[0], Runtime()) as a,
        open_host(HostOptions(announce=("/ip4/10.1.1.1/tcp/7",)), SEEDS[1], Runtime()) as b,
    ):
        assert not await a.speaks(b.peer_id, PING)
        assert list(b.addresses()) == ["/ip4/10.1.1.1/tcp/7"]
        await a.connect(PeerAddresses(b.peer_id, tuple(b.listening())))
        assert await a.speaks(b.peer_id, PING)
        assert not await a.speaks(b.peer_id, ECHO)
        await until(b.connected)
        assert await b.speaks(a.peer_id, PING)
        seen = b.identified(a.peer_id)
        assert seen is not None
        assert seen.agent == "alpha"
        # The dialler is known by where it listens, not by where it called from.
        assert list(b.known_addresses(a.peer_id)) == list(a.addresses())
        assert "/ip4/10.1.1.1/tcp/7" in a.known_addresses(b.peer_id)
        b.set_handler(ECHO, echo)
        identity = a.identified(b.peer_id)
        assert identity is not None
        await until(lambda: ECHO in getattr(a.identified(b.peer_id), "protocols", ()))


async def test_connections_can_be_looked_at() -> None:
    async with (
        open_host(HostOptions(), SEEDS[0], Runtime()) as a,
        open_host(HostOptions(agent="beta"), SEEDS[1], Runtime()) as b,
    ):
        assert a.connections() == []
        await a.connect(where(b))
        assert await a.speaks(b.peer_id, PING)
        (one,) = a.connections()
        assert (one.peer, one.outbound, one.agent) == (b.peer_id, True, "beta")
        assert one.remote == b.addresses()[0]
        assert one.age_seconds >= 0
        await until(b.connections)
        assert not b.connections()[0].outbound


async def test_ping() -> None:
    async with (
        open_host(HostOptions(), SEEDS[0], Runtime()) as a,
        open_host(HostOptions(), SEEDS[1], Runtime()) as b,
    ):
        await a.connect(where(b))
        for _ in range(10):
            assert 0 < await a.ping(b.peer_id) < 10


async def test_errors_of_the_block_come_out_as_they_are() -> None:
    with pytest.raises(NotFoundError):
        async with open_host(HostOptions(), SEEDS[0], Runtime()):
            raise NotFoundError("this very one")


@pytest.mark.parametrize("way", ["leave", "cancel", "raise"])
async def test_the_port_closes_however_the_block_ends(way: str) -> None:
    # D17: libp2p's port keeps accepting after a cancellation.
    port = 0
    with trio.CancelScope() as scope:
        try:
            async with open_host(HostOptions(), SEEDS[0], Runtime()) as node:
                port = int(node.addresses()[0].rsplit("/", 1)[1])
                if way == "cancel":
                    scope.cancel()
                    await trio.sleep_forever()
                if way == "raise":
                    raise NotFoundError("out of here")
        except NotFoundError:
            pass
    assert port
    with pytest.raises(OSError, match="connect"):
        await trio.open_tcp_stream("127.0.0.1", port)
    again = HostOptions(listen=(f"/ip4/127.0.0.1/tcp/{port}",))
    async with open_host(again, SEEDS[0], Runtime()) as node:
        assert node.addresses() == list(again.listen)


async def test_a_port_in_use_and_addresses_that_are_none() -> None:
    async with open_host(HostOptions(), SEEDS[0], Runtime()) as node:
        taken = HostOptions(listen=("/ip4/127.0.0.1/tcp/0", node.addresses()[0]))
        with pytest.raises(NodeError, match="cannot listen"):
            async with open_host(taken, SEEDS[1], Runtime()):
                pass
    for options in (
        HostOptions(listen=("/ip4/127.0.0.1/udp/1/quic-v1",)),
        HostOptions(announce=("/ip4/0.0.0.0/tcp/1",)),
        HostOptions(bootstrap=("/ip4/127.0.0.1/tcp/1",)),
        HostOptions(bootstrap=("nonsense/p2p/x", f"/ip4/127.0.0.1/tcp/1/p2p/{'1' * 46}")),
    ):
        with pytest.raises(ConfigError):
            async with open_host(options, SEEDS[0], Runtime()):
                pass


async def test_without_listening_addresses_a_node_only_dials() -> None:
    async with (
        open_host(HostOptions(listen=()), SEEDS[0], Runtime()) as a,
        open_host(HostOptions(), SEEDS[1], Runtime()) as b,
    ):
        b.set_handler(ECHO, echo)
        assert a.addresses() == []
        await a.connect(where(b))
        assert await exchange(a, b.peer_id) == b"hello"


async def test_framed_messages_over_the_host() -> None:
    async def upper(stream: Stream) -> None:
        reader = BufferedReader(stream)
        while (message := await reader.read_message(100)) is not None:
            await stream.write(frame(message.upper()))

    async with (
        open_host(HostOptions(), SEEDS[0], Runtime()) as a,
        open_host(HostOptions(), SEEDS[1], Runtime()) as b,
    ):
        b.set_handler("/test/upper/1", upper)
        await a.connect(where(b))
        stream = await a.open_stream(b.peer_id, ["/test/upper/1"])
        reader = BufferedReader(stream)
        for word in (b"a", b"", b"word"):
            await stream.write(frame(word))
            assert await reader.read_message(100) == word.upper()
        await stream.write(frame(bytes(101)))
        with pytest.raises(ConnectionLost):
            await reader.read_message(100)
        # The peer's fault: counted as such, not as a fault of the handler.
        assert b.counters["handler_errors"] == 0


async def test_bootstrap_peers_are_dialled_and_dialled_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bootstrap, "BOOTSTRAP_BACKOFF_SECONDS_MIN", 0.001)
    monkeypatch.setattr(bootstrap, "BOOTSTRAP_BACKOFF_SECONDS_MAX", 0.01)
    async with open_host(HostOptions(), SEEDS[0], Runtime()) as b:
        address = b.addresses()[0]
    options = HostOptions(bootstrap=(f"{address}/p2p/{b.peer_id}",))
    again = HostOptions(listen=(address,))
    async with open_host(options, SEEDS[1], Runtime()) as a:
        await until(lambda: a.counters["dial_attempts_failed"] >= 4)
        for _ in range(2):
            async with open_host(again, SEEDS[0], Runtime()):
                await until(a.connected)
            await until(lambda: not a.connected())


def test_backoff_grows_is_capped_and_jittered() -> None:
    import random

    for failures in range(2_000):
        waits = {bootstrap.backoff_seconds(failures, random.Random(n)) for n in range(20)}
        assert len(waits) == 20
        assert 0 < min(waits) <= max(waits) <= BOOTSTRAP_BACKOFF_SECONDS_MAX
    early = [bootstrap.backoff_seconds(n, random.Random(0)) for n in range(5)]
    assert early == sorted(early)


def test_bootstrap_addresses_of_one_peer_go_together() -> None:
    one, two = peer_id_of(SEEDS[0]), peer_id_of(SEEDS[1])
    targets = bootstrap.bootstrap_targets(
        [
            f"/ip4/10.0.0.1/tcp/1/p2p/{one}",
            f"/ip4/10.0.0.2/tcp/1/p2p/{two}",
            f"/ip4/10.0.0.3/tcp/1/p2p/{one}",
        ]
    )
    assert targets == [
        PeerAddresses(one, ("/ip4/10.0.0.1/tcp/1", "/ip4/10.0.0.3/tcp/1")),
        PeerAddresses(two, ("/ip4/10.0.0.2/tcp/1",)),
    ]
    with pytest.raises(ConfigError) as caught:
        bootstrap.bootstrap_targets(["x", "/ip4/10.0.0.1/tcp/1", *[f"/dns/a/tcp/1/p2p/{one}"]])
    assert len(caught.value.faults) == 2


async def test_a_protocol_that_was_announced_is_spoken_without_waiting() -> None:
    """The request goes with the proposal; what the peer says of that is read before its answer,
    however often the reader gives up in between."""
    may = trio.Event()

    async def late(stream: Stream) -> None:
        await may.wait()
        await echo(stream)

    async with (
        open_host(HostOptions(), SEEDS[0], Runtime()) as a,
        open_host(HostOptions(), SEEDS[1], Runtime()) as b,
    ):
        b.set_handler(ECHO, late)
        await a.connect(where(b))
        assert await a.speaks(b.peer_id, ECHO)
        stream = await a.open_stream(b.peer_id, [ECHO])
        await stream.write(b"request")
        with trio.move_on_after(0.01) as impatient:
            await stream.read_some()
        assert impatient.cancelled_caught
        may.set()
        with trio.fail_after(20):
            assert await stream.read_some() == b"request"
        await stream.close()


async def test_a_protocol_that_is_announced_and_not_spoken() -> None:
    async with (
        open_host(HostOptions(), SEEDS[0], Runtime()) as a,
        open_host(HostOptions(), SEEDS[1], Runtime()) as b,
    ):
        b.set_handler(ECHO, echo)
        await a.connect(where(b))
        assert await a.speaks(b.peer_id, ECHO)
        del b._handlers[ECHO]
        stream = await a.open_stream(b.peer_id, [ECHO])
        with trio.fail_after(20), pytest.raises(ProtocolViolation, match="does not agree"):
            await stream.read_some()
        await stream.reset()
