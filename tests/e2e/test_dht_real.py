"""Twenty DHT nodes over real TCP, Noise and yamux in one process."""

from __future__ import annotations

import hashlib
from contextlib import AsyncExitStack

import pytest
import trio

from dstore.core.kademlia import closest_of, kad_id
from dstore.network.host import HostOptions, Libp2pHost, open_host
from dstore.network.routing import Routing, RoutingOptions, open_routing
from dstore.network.streams import PeerAddresses, Stream
from dstore.runtime import Runtime

SERVERS = 19
PROTOCOL = RoutingOptions().protocol


def key_of(number: int) -> bytes:
    return b"\x12\x20" + hashlib.sha256(f"key {number}".encode()).digest()


async def says_nothing(stream: Stream) -> None:
    await trio.sleep_forever()


@pytest.mark.slow
async def test_twenty_real_nodes() -> None:
    runtime = Runtime()
    async with AsyncExitStack() as stack:
        hosts: list[Libp2pHost] = []
        routings: list[Routing] = []
        for number in range(SERVERS + 1):
            seed = hashlib.sha256(bytes([number])).digest()
            host = await stack.enter_async_context(open_host(HostOptions(), seed, runtime))
            options = RoutingOptions(mode="server" if number < SERVERS else "client")
            routings.append(await stack.enter_async_context(open_routing(host, options, runtime)))
            hosts.append(host)

        def where(number: int) -> PeerAddresses:
            return PeerAddresses(hosts[number].peer_id, tuple(hosts[number].addresses()))

        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                for routing in routings[1:]:
                    nursery.start_soon(routing.bootstrap, [where(0)])
        client = routings[SERVERS]
        assert len(await client.closest_peers(key_of(0))) == SERVERS
        assert all(routing.table_size == SERVERS - 1 for routing in routings[1:SERVERS])

        # Providers, from servers and from a client.
        for number in (3, 4, SERVERS):
            confirmed = await routings[number].provide(key_of(1))
            assert confirmed == SERVERS - (number < SERVERS)
        found = [p async for p in routings[9].find_providers(key_of(1))]
        assert len(found) == 3
        assert {p.peer: p for p in found} == {where(n).peer: where(n) for n in (3, 4, SERVERS)}
        assert await client.find_peer(hosts[7].peer_id) == where(7)

        # Six of them fall silent: they take requests and answer none.
        silent = set(range(10, 16))
        for number in silent:
            hosts[number].set_handler(PROTOCOL, says_nothing)
            for peer in hosts[number].connected():
                await hosts[number].disconnect(peer)
        alive = [hosts[n].peer_id for n in range(SERVERS) if n not in silent]
        for number in (0, 5, SERVERS):
            others = [peer for peer in alive if peer != hosts[number].peer_id]
            before = trio.current_time()
            closest = await routings[number].closest_peers(key_of(2))
            assert trio.current_time() - before < 2
            assert [each.peer for each in closest] == closest_of(others, kad_id(key_of(2)), 20)
            before = trio.current_time()
            found = [p async for p in routings[number].find_providers(key_of(1))]
            assert len(found) == (2 if number == SERVERS else 3)
            assert trio.current_time() - before < 2
        assert await routings[8].provide(key_of(3)) == len(alive) - 1
