"""Our host and py-libp2p's own, over its Noise and yamux, dialling in either direction."""

from __future__ import annotations

from typing import Any

import libp2p
import pytest
import trio
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.peer.peerinfo import info_from_p2p_addr
from multiaddr import Multiaddr

from dstore.core.endpoint import parse_endpoint
from dstore.core.peerid import PeerId
from dstore.network.host import HostOptions, Libp2pHost, open_host
from dstore.network.negotiate import propose
from dstore.network.ping import PING
from dstore.network.streams import PeerAddresses, Stream
from dstore.network.tcp import TcpConnection, dial_tcp
from dstore.runtime import Runtime

ECHO = "/test/echo/1"
LISTEN = Multiaddr("/ip4/127.0.0.1/tcp/0")


def stock_host() -> Any:
    host = libp2p.new_host(key_pair=create_new_key_pair(bytes([9]) * 32))

    async def echo(stream: Any) -> None:
        await stream.write(await stream.read(1_000))
        await stream.close()

    host.set_stream_handler(ECHO, echo)
    return host


async def echo(stream: Stream) -> None:
    while data := await stream.read_some():
        await stream.write(data)


async def check(ours: Libp2pHost, stock: Any) -> None:
    """Streams both ways, identify both ways, ping."""
    other = PeerId(stock.get_id().to_bytes())
    assert ours.connected() == [other]
    stream = await ours.open_stream(other, ["/test/none/1", ECHO])
    await stream.write(b"to the stock host")
    assert await stream.read_some() == b"to the stock host"
    await stream.close()
    assert await ours.speaks(other, ECHO)
    assert await ours.ping(other) > 0
    back = await stock.new_stream(_stock_id(ours), [ECHO])
    await back.write(b"to ours")
    assert await back.read(7) == b"to ours"
    await back.close()
    with trio.fail_after(10):
        while PING not in map(str, stock.get_peerstore().get_protocols(_stock_id(ours))):  # noqa: ASYNC110
            await trio.sleep(0.01)


def _stock_id(ours: Libp2pHost) -> Any:
    from libp2p.peer.id import ID

    return ID(ours.peer_id.binary)


async def test_we_dial() -> None:
    stock = stock_host()
    async with stock.run([LISTEN]), open_host(HostOptions(), bytes([1]) * 32, Runtime()) as ours:
        ours.set_handler(ECHO, echo)
        address = str(stock.get_addrs()[0]).partition("/p2p/")[0]
        await ours.connect(PeerAddresses(PeerId(stock.get_id().to_bytes()), (address,)))
        connection = ours._swarm.connection(PeerId(stock.get_id().to_bytes()))
        assert connection is not None
        assert not connection.muxer_named_early  # it negotiates yamux afterwards
        await check(ours, stock)


async def test_it_dials() -> None:
    stock = stock_host()
    async with stock.run([LISTEN]), open_host(HostOptions(), bytes([1]) * 32, Runtime()) as ours:
        ours.set_handler(ECHO, echo)
        target = Multiaddr(f"{ours.addresses()[0]}/p2p/{ours.peer_id}")
        await stock.connect(info_from_p2p_addr(target))
        await check(ours, stock)


# What the stock host does, and ours is written not to do.  Where one of these fails after an
# upgrade, the workaround may be dropped.


async def test_the_stock_host_offers_plaintext() -> None:
    stock = stock_host()
    async with stock.run([LISTEN]):
        endpoint = parse_endpoint(str(stock.get_addrs()[0]).partition("/p2p/")[0])
        raw = TcpConnection(await dial_tcp(endpoint), is_initiator=True)
        assert await propose(raw, ["/plaintext/2.0.0"]) == "/plaintext/2.0.0"
        await raw.close()


async def test_the_stock_host_waits_after_a_successful_dial(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("libp2p.network.swarm._HAPPY_EYEBALLS_DELAY", 1_000_000)
    stock = stock_host()
    async with stock.run([LISTEN]), open_host(HostOptions(), bytes([1]) * 32, Runtime()) as ours:
        target = Multiaddr(f"{ours.addresses()[0]}/p2p/{ours.peer_id}")
        with trio.move_on_after(1) as waiting:
            await stock.connect(info_from_p2p_addr(target))
        # The connection has been there all the while.
        assert waiting.cancelled_caught
        assert ours.counters["connections_opened"] == 1


def test_the_stock_peer_store_forgets_the_node_s_own_key() -> None:
    from libp2p.peer.id import ID
    from libp2p.peer.peerstore import PeerStore, PeerStoreError

    store = PeerStore()
    pair = create_new_key_pair(bytes([9]) * 32)
    own = ID.from_pubkey(pair.public_key)
    store.add_key_pair(own, pair)
    for number in range(1_001):
        stranger = ID.from_pubkey(create_new_key_pair(number.to_bytes(32, "big")).public_key)
        store.add_addr(stranger, LISTEN, 3_600)
    with pytest.raises(PeerStoreError):
        store.privkey(own)
