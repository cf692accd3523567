"""Which connections a host makes, keeps and refuses: dials, caps, simultaneous dials, leaks."""

from __future__ import annotations

import gc
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from dstore.core.endpoint import Endpoint, endpoint_of_socket
from dstore.errors import ConnectionLost, DeadlineExceeded, ProtocolViolation, Unreachable
from dstore.network import host, swarm
from dstore.network.host import HostOptions, Libp2pHost, open_host
from dstore.network.identity import key_pair_of, peer_id_of
from dstore.network.negotiate import propose
from dstore.network.noise import NOISE_PROTOCOL, NoiseTransport
from dstore.network.streams import PeerAddresses
from dstore.network.tcp import TcpConnection
from dstore.runtime import Runtime
from tests.unit.network.hosts import ECHO, SEEDS, descriptors, echo, raw_to, until, visitor, where


@asynccontextmanager
async def silent_endpoint() -> AsyncIterator[str]:
    """A port that completes TCP handshakes and says nothing."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(64)
        yield f"/ip4/127.0.0.1/tcp/{listener.getsockname()[1]}"


def refused_address() -> str:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return f"/ip4/127.0.0.1/tcp/{listener.getsockname()[1]}"


# --- Dialling ---------------------------------------------------------------------------


async def test_a_refused_port_is_tried_once_and_the_peer_not_blacklisted() -> None:
    # D16: libp2p retries, then refuses to dial the peer for a minute.
    address = refused_address()
    target = PeerAddresses(peer_id_of(SEEDS[1]), (address,))
    async with open_host(HostOptions(), SEEDS[0], Runtime()) as a:
        with pytest.raises(Unreachable, match="cannot be reached"):
            await a.connect(target)
        assert a.counters["dial_attempts_failed"] == 1
        async with open_host(HostOptions(listen=(address,)), SEEDS[1], Runtime()):
            await a.connect(target)
            assert a.connected() == [target.peer]


async def test_a_silent_endpoint_costs_the_handshake_deadline_and_no_more() -> None:
    # D16: libp2p hangs for more than 100 s.
    options = HostOptions(handshake_seconds=0.05)
    async with silent_endpoint() as address, open_host(options, SEEDS[0], Runtime()) as a:
        with trio.fail_after(10), pytest.raises(DeadlineExceeded, match="handshake"):
            await a.connect(PeerAddresses(peer_id_of(SEEDS[1]), (address,)))


async def test_a_good_address_beside_silent_ones_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(swarm, "DIAL_STAGGER_SECONDS", 0.01)
    async with (
        silent_endpoint() as silent,
        open_host(HostOptions(), SEEDS[0], Runtime()) as a,
        open_host(HostOptions(), SEEDS[1], Runtime()) as b,
    ):
        addresses = (silent, refused_address(), *b.addresses())
        with trio.fail_after(5):  # less than the handshake with the silent one may take
            await a.connect(PeerAddresses(b.peer_id, addresses))
        # What worked is tried first the next time.
        assert a.known_addresses(b.peer_id)[0] == b.addresses()[0]


async def test_a_connect_waits_for_nothing_after_success(monkeypatch: pytest.MonkeyPatch) -> None:
    # D20: libp2p waits out the delay before its next address after the first succeeded.
    monkeypatch.setattr(swarm, "DIAL_STAGGER_SECONDS", 1_000_000)
    async with (
        open_host(HostOptions(), SEEDS[0], Runtime()) as a,
        open_host(HostOptions(), SEEDS[1], Runtime()) as b,
    ):
        with trio.fail_after(20):
            await a.connect(PeerAddresses(b.peer_id, (*b.addresses(), refused_address())))
        assert a.counters["dial_attempts_failed"] == 0


async def test_closing_waits_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    # D19: libp2p sleeps 200 ms in every close.  Here: no deadline is slept out.
    for name in ("CLOSE_SECONDS", "NEGOTIATE_SECONDS"):
        monkeypatch.setattr(swarm, name, 1_000_000)
    monkeypatch.setattr(host, "CLOSE_SECONDS", 1_000_000)
    with trio.fail_after(20):
        async with open_host(HostOptions(), SEEDS[0], Runtime()) as a:
            async with open_host(HostOptions(), SEEDS[1], Runtime()) as b:
                await a.connect(where(b))
                await until(b.connected)
                await a.disconnect(b.peer_id)
                assert a.connected() == []
                await until(lambda: not b.connected())


async def test_another_peer_than_the_one_dialled_is_refused() -> None:
    async with (
        open_host(HostOptions(), SEEDS[0], Runtime()) as a,
        open_host(HostOptions(), SEEDS[1], Runtime()) as b,
    ):
        wrong = PeerAddresses(peer_id_of(SEEDS[2]), tuple(b.addresses()))
        with pytest.raises(Unreachable, match="cannot be reached"):
            await a.connect(wrong)
        assert a.connected() == []
        await a.connect(where(b))


async def test_a_node_does_not_connect_to_itself() -> None:
    async with open_host(HostOptions(), SEEDS[0], Runtime()) as a:
        with pytest.raises(Unreachable, match="itself"):
            await a.connect(where(a))
        a.remember(where(a))
        assert not a.known_addresses(a.peer_id)
        # Two nodes with one key: no connection, no harm.
        async with visitor(a, SEEDS[0]):
            await until(lambda: a.counters["connections_refused"] == 1)
            assert a.connected() == []


async def test_all_who_want_a_peer_share_one_dial() -> None:
    async with (
        open_host(HostOptions(), SEEDS[0], Runtime()) as a,
        open_host(HostOptions(), SEEDS[1], Runtime()) as b,
    ):
        b.set_handler(ECHO, echo)
        a.remember(where(b))

        async def one() -> None:
            stream = await a.open_stream(b.peer_id, [ECHO])
            await stream.close()

        async with trio.open_nursery() as nursery:
            for _ in range(30):
                nursery.start_soon(one)
        assert a.counters["dials"] == 1
        assert b.counters["connections_accepted"] == 1


async def test_two_nodes_that_meet_need_three_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[int] = []
    send = TcpConnection._send

    async def counted(connection: TcpConnection, data: bytes) -> None:
        sent.append(len(data))
        await send(connection, data)

    monkeypatch.setattr(TcpConnection, "_send", counted)
    async with (
        open_host(HostOptions(), SEEDS[0], Runtime()) as a,
        open_host(HostOptions(), SEEDS[1], Runtime()) as b,
    ):
        await a.connect(where(b))
        await until(lambda: a.identified(b.peer_id) and b.identified(a.peer_id))
        await trio.testing.wait_all_tasks_blocked(0.01)
        # Who each of them is goes with the handshake.
        assert len(sent) == 3


async def test_a_cancelled_waiter_does_not_cancel_the_dial_of_others() -> None:
    async with (
        open_host(HostOptions(), SEEDS[0], Runtime()) as a,
        open_host(HostOptions(), SEEDS[1], Runtime()) as b,
    ):
        impatient = trio.CancelScope()

        async def leave() -> None:
            with impatient:
                await a.connect(where(b))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(leave)
            nursery.start_soon(a.connect, where(b))
            await until(lambda: a.counters["dials"])
            impatient.cancel()
        assert a.connected() == [b.peer_id]


async def test_a_second_caller_with_better_addresses_is_not_failed_by_the_first() -> None:
    async with (
        open_host(HostOptions(), SEEDS[0], Runtime()) as a,
        open_host(HostOptions(), SEEDS[1], Runtime()) as b,
    ):
        outcomes: list[str] = []

        async def hopeless() -> None:
            try:
                await a.connect(PeerAddresses(b.peer_id, (refused_address(),)))
                outcomes.append("connected")
            except Unreachable:
                outcomes.append("unreachable")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(hopeless)
            await until(lambda: a.counters["dials"])
            await a.connect(where(b))
        assert a.connected() == [b.peer_id]
        assert len(outcomes) == 1


# --- Two connections to one peer ----------------------------------------------------------


async def test_simultaneous_dials_leave_working_streams_and_then_one_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(swarm, "NEGOTIATE_SECONDS", 0.01)
    async with (
        open_host(HostOptions(), SEEDS[0], Runtime()) as a,
        open_host(HostOptions(), SEEDS[1], Runtime()) as b,
    ):
        a.set_handler(ECHO, echo)
        b.set_handler(ECHO, echo)
        for _ in range(15):
            done: list[bytes] = []

            async def dial_and_talk(
                node: Libp2pHost, other: Libp2pHost, done: list[bytes] = done
            ) -> None:
                await node.connect(where(other))
                stream = await node.open_stream(other.peer_id, [ECHO])
                await stream.write(b"x")
                done.append(await stream.read_some())
                await stream.close()

            async with trio.open_nursery() as nursery:
                nursery.start_soon(dial_and_talk, a, b)
                nursery.start_soon(dial_and_talk, b, a)
            assert done == [b"x", b"x"]
            await until(lambda: not a._swarm._spare and not b._swarm._spare)
            assert a.connected() == [b.peer_id]
            assert b.connected() == [a.peer_id]
            await a.disconnect(b.peer_id)
            await until(lambda: not b.connected())


async def test_of_two_dials_at_once_the_one_that_would_give_way_is_not_made_at_all() -> None:
    """The dial of the smaller id stays: the other's is given up when that has come."""
    small, large = sorted(SEEDS[:2], key=peer_id_of)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        waiting = f"/ip4/127.0.0.1/tcp/{listener.getsockname()[1]}"
        async with (
            open_host(HostOptions(handshake_seconds=1000), large, Runtime()) as a,
            open_host(HostOptions(), small, Runtime()) as b,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(a.connect, PeerAddresses(b.peer_id, (waiting,)))
            accepted, _ = await trio.to_thread.run_sync(listener.accept)
            with trio.socket.from_stdlib_socket(accepted) as half_way, trio.fail_after(20):
                assert await half_way.recv(1)  # the handshake has begun
                await b.connect(where(a))
                while await half_way.recv(4096):
                    pass  # until it is given up
            await until(lambda: not a._swarm._dials)
            assert a.connected() == [b.peer_id]
            assert a.counters["connections_opened"] == 1


async def test_one_peer_cannot_hold_many_connections() -> None:
    async with open_host(HostOptions(), SEEDS[0], Runtime()) as a, trio.open_nursery() as nursery:
        entered = 0

        async def hold() -> None:
            nonlocal entered
            async with visitor(a, SEEDS[1]):
                entered += 1
                await trio.sleep_forever()

        for _ in range(30):
            nursery.start_soon(hold)
        await until(lambda: entered == 30)
        # The one in use and the one that drains.
        await until(lambda: a._swarm._inbound <= 2)
        assert a.connected() == [peer_id_of(SEEDS[1])]
        nursery.cancel_scope.cancel()


# --- Caps ---------------------------------------------------------------------------------


async def test_slow_handshakes_make_room_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(swarm, "HANDSHAKES_PENDING_MAX", 8)
    async with (
        open_host(HostOptions(), SEEDS[0], Runtime()) as a,
        open_host(HostOptions(), SEEDS[1], Runtime()) as b,
    ):
        slow = [await raw_to(a) for _ in range(20)]
        await until(lambda: a.counters["handshakes_displaced"] == 12)
        await b.connect(where(a))
        assert a._swarm._inbound <= 9
        for connection in slow:
            await connection.close()
        await until(lambda: a._swarm._inbound == 1)


async def test_streams_of_one_peer_are_capped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "PEER_STREAMS_INBOUND_MAX", 4)
    async with (
        open_host(HostOptions(), SEEDS[0], Runtime()) as a,
        open_host(HostOptions(), SEEDS[1], Runtime()) as b,
        open_host(HostOptions(), SEEDS[2], Runtime()) as c,
    ):
        b.set_handler(ECHO, echo)
        await a.connect(where(b))
        await c.connect(where(b))
        streams = [await a.open_stream(b.peer_id, [ECHO]) for _ in range(4)]
        with pytest.raises(ConnectionLost):
            await (await a.open_stream(b.peer_id, [ECHO])).read_some()
        assert b.counters["streams_refused"] == 1
        await (await c.open_stream(b.peer_id, [ECHO])).close()
        await streams[0].close()
        await until(lambda: b._served[a.peer_id] == 3)
        await (await a.open_stream(b.peer_id, [ECHO])).close()


async def test_a_stream_without_a_proposal_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    async with (
        open_host(HostOptions(), SEEDS[0], Runtime()) as a,
        open_host(HostOptions(), SEEDS[1], Runtime()) as b,
    ):
        await a.connect(where(b))
        monkeypatch.setattr(host, "NEGOTIATE_SECONDS", 0.01)
        connection = a._swarm.connection(b.peer_id)
        assert connection is not None
        stream = await connection.open_stream()
        await stream.write(b"\x13/multi")
        with pytest.raises(ConnectionLost):
            while await stream.read_some():
                pass
        await until(lambda: not b._served)
        assert a.connected() == [b.peer_id]


def test_sources_are_counted_by_address_or_by_customer_network() -> None:
    def source(host: str) -> str:
        return swarm._source(endpoint_of_socket(host, 1))

    assert source("10.0.0.1") != source("10.0.0.2")
    assert source("2001:db8:1:2::1") == source("2001:db8:1:2:ffff::9")
    assert source("2001:db8:1:2::1") != source("2001:db8:1:3::1")
    assert source("::ffff:10.0.0.1") == source("10.0.0.1")


async def test_one_source_is_capped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(swarm, "CONNECTIONS_PER_IP_MAX", 3)
    far = Endpoint("ip4", "198.51.100.7", 4001)
    async with open_host(HostOptions(), SEEDS[0], Runtime()) as a:
        a._swarm._per_source["198.51.100.7"] = 2
        assert a._swarm._has_room(far)
        a._swarm._per_source["198.51.100.7"] = 3
        assert not a._swarm._has_room(far)
        # A devnet's nodes all come from loopback.
        a._swarm._per_source["127.0.0.1"] = 3
        assert a._swarm._has_room(Endpoint("ip4", "127.0.0.1", 4001))


# --- What is spoken -----------------------------------------------------------------------


async def test_only_noise_is_spoken() -> None:
    # D9: libp2p offers plaintext, with which anybody is anybody.
    async with open_host(HostOptions(), SEEDS[0], Runtime()) as a:
        raw = await raw_to(a)
        others = ["/plaintext/2.0.0", "/secio/1.0.0", "/tls/1.0.0", NOISE_PROTOCOL]
        assert await propose(raw, others) == NOISE_PROTOCOL
        await raw.close()
        raw = await raw_to(a)
        with pytest.raises(ProtocolViolation, match="speaks none"):
            await propose(raw, others[:3])
        await raw.close()


async def test_only_yamux_is_spoken() -> None:
    from libp2p.peer.id import ID

    from dstore.network.connection import _Secured

    async with open_host(HostOptions(), SEEDS[0], Runtime()) as a:
        raw = await raw_to(a)
        await propose(raw, [NOISE_PROTOCOL])
        noise = NoiseTransport(key_pair_of(SEEDS[1]))
        session = _Secured(await noise.secure_outbound(raw, ID(a.peer_id.binary)))
        with pytest.raises(ProtocolViolation, match="speaks none"):
            await propose(session, ["/mplex/6.7.0"])
        assert await _proposes_yamux(session)
        await raw.close()


async def _proposes_yamux(session: object) -> bool:
    from dstore.network.negotiate import _message, _read_message

    await session.write(_message("/yamux/1.0.0"))  # type: ignore[attr-defined]
    return await _read_message(session) == "/yamux/1.0.0"  # type: ignore[arg-type]


# --- Nothing left behind --------------------------------------------------------------------


async def test_four_hundred_inbound_connections_leave_nothing_behind() -> None:
    # D4: libp2p keeps a slot and a task of each for ever and stops accepting after 250.
    async with open_host(HostOptions(), SEEDS[0], Runtime()) as a:
        noise = [NoiseTransport(key_pair_of(seed)) for seed in SEEDS[1:]]
        from dstore.network.connection import upgrade

        async def visit(number: int) -> None:
            connection = await upgrade(await raw_to(a), noise[number % 7], 5, a.peer_id)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(connection.run)
                await connection.close()

        async def settled() -> tuple[int, int]:
            await until(lambda: a._swarm._inbound == 0 and not a.connected())
            await trio.testing.wait_all_tasks_blocked()
            gc.collect()
            return trio.lowlevel.current_statistics().tasks_living, descriptors()

        await visit(0)
        before = await settled()
        for number in range(400):
            await visit(number)
        assert a.counters["connections_opened"] == 401
        assert await settled() == before
        swarm_of_a = a._swarm
        left = [*swarm_of_a._live, *swarm_of_a._spare, *swarm_of_a._handshakes]
        assert [*left, *swarm_of_a._per_source, *a._served, *a._pings] == []


async def test_thousands_of_known_peers_change_nothing() -> None:
    # D3: libp2p's peer store evicts the node's own key at 1,000, and the node dies of it.
    from dstore.core.peerid import PeerId

    async with (
        open_host(HostOptions(), SEEDS[0], Runtime()) as a,
        open_host(HostOptions(), SEEDS[1], Runtime()) as b,
    ):
        for number in range(3_000):
            stranger = PeerId.of_ed25519(number.to_bytes(32, "big"))
            a.remember(PeerAddresses(stranger, ("/ip4/10.0.0.1/tcp/4001",)))
        await b.connect(where(a))
        assert await b.speaks(a.peer_id, "/ipfs/ping/1.0.0")
        await until(a.connected)
        assert await a.ping(b.peer_id) > 0
