"""The DHT against py-libp2p's own, on its stock host: each finds what the other provides."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import libp2p
import pytest
import trio
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.kad_dht.common import PROTOCOL_ID
from libp2p.kad_dht.kad_dht import DHTMode, KadDHT
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import PeerInfo
from libp2p.tools.anyio_service import background_trio_service
from multiaddr import Multiaddr

from dstore.core.peerid import PeerId
from dstore.network.host import HostOptions, Libp2pHost, open_host
from dstore.network.routing import Routing, RoutingOptions, open_routing
from dstore.network.streams import PeerAddresses
from dstore.runtime import Runtime

KEY = b"\x12\x20" + hashlib.sha256(b"content").digest()


@asynccontextmanager
async def dialled_sockets_closed() -> AsyncIterator[None]:
    """The stock host leaves some sockets that it dialled open: closed here, before the
    garbage collector complains of them in some other test."""
    dialled: list[trio.SocketStream] = []
    open_tcp_stream = trio.open_tcp_stream

    async def dial(*args: Any, **kwargs: Any) -> trio.SocketStream:
        dialled.append(await open_tcp_stream(*args, **kwargs))
        return dialled[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trio, "open_tcp_stream", dial)
        try:
            yield
        finally:
            for stream in dialled:
                stream.socket.close()


@asynccontextmanager
async def stock_node(seed: int) -> AsyncIterator[tuple[Any, Any]]:
    host = libp2p.new_host(key_pair=create_new_key_pair(bytes([seed]) * 32))
    async with dialled_sockets_closed(), host.run([Multiaddr("/ip4/127.0.0.1/tcp/0")]):
        dht = KadDHT(host, DHTMode.SERVER)
        async with background_trio_service(dht):
            yield host, dht


@asynccontextmanager
async def our_node(seed: int) -> AsyncIterator[tuple[Libp2pHost, Routing]]:
    runtime = Runtime()
    options = RoutingOptions(protocol=str(PROTOCOL_ID))
    async with (
        open_host(HostOptions(), bytes([seed]) * 32, runtime) as host,
        open_routing(host, options, runtime) as routing,
    ):
        yield host, routing


def where(stock: Any) -> PeerAddresses:
    address = str(stock.get_addrs()[0]).partition("/p2p/")[0]
    return PeerAddresses(PeerId(stock.get_id().to_bytes()), (address,))


def info(ours: Libp2pHost) -> PeerInfo:
    return PeerInfo(ID(ours.peer_id.binary), [Multiaddr(a) for a in ours.addresses()])


@pytest.mark.slow
async def test_each_finds_what_the_other_provides() -> None:
    """Stock A in the middle; ours and stock B know A only."""
    async with (
        stock_node(1) as (stock_a, dht_a),
        stock_node(2) as (stock_b, dht_b),
        our_node(3) as (ours, routing),
    ):
        with trio.fail_after(60):
            await stock_b.connect(PeerInfo(stock_a.get_id(), stock_a.get_addrs()))
            await dht_b.add_peer(stock_a.get_id())
            await dht_a.add_peer(stock_b.get_id())
            assert await routing.bootstrap([where(stock_a)]) == 1
            assert routing.table_size == 2, "B was found through A"

            # Ours looks at theirs.
            assert await dht_b.provide(KEY.hex())
            found = [p async for p in routing.find_providers(KEY)]
            assert [p.peer for p in found] == [where(stock_b).peer]
            assert where(stock_b).addresses[0] in found[0].addresses
            found_peer = await routing.find_peer(where(stock_b).peer)
            assert found_peer is not None
            assert where(stock_b).addresses[0] in found_peer.addresses

            # Theirs looks at ours.
            other_key = KEY[:-1] + b"\x00"
            assert await routing.provide(other_key) == 2, "read back from both"
            providers = await dht_b.find_providers(other_key.hex())
            assert {p.peer_id.to_bytes() for p in providers} == {ours.peer_id.binary}
            assert {str(a) for p in providers for a in p.addrs} >= set(ours.addresses())


@pytest.mark.slow
async def test_a_stock_node_finds_peers_and_providers_through_ours() -> None:
    """Ours in the middle: what the stock nodes learn, they learn from it."""
    async with (
        our_node(3) as (ours, routing),
        stock_node(1) as (stock_a, dht_a),
        stock_node(2) as (stock_b, dht_b),
    ):
        with trio.fail_after(60):
            for stock, dht in ((stock_a, dht_a), (stock_b, dht_b)):
                await stock.connect(info(ours))
                await dht.add_peer(info(ours).peer_id, skip_server_mode_check=True)
            assert await dht_a.provide(KEY.hex())
            while not routing.records:  # sent without waiting for an answer  # noqa: ASYNC110
                await trio.sleep(0.01)
            assert len(await routing.closest_peers(KEY)) == 2
            assert routing.table_size == 2
            providers = await dht_b.find_providers(KEY.hex())
            assert {p.peer_id for p in providers} == {stock_a.get_id()}
            found = await dht_b.find_peer(stock_a.get_id())
            assert found is not None
            assert found.peer_id == stock_a.get_id()
            assert where(stock_a).addresses[0] in [
                str(a).partition("/p2p/")[0] for a in found.addrs
            ]
            found = await dht_a.find_peer(info(ours).peer_id)
            assert found is not None
            assert found.peer_id == info(ours).peer_id
