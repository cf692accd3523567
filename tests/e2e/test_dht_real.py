"""Twenty DHT nodes over real TCP, Noise and yamux in one process.

The clock is real here, and the machine may be busy: no assertion is about how long something
took.  Whether silent peers hold up a lookup shows otherwise: no deadline ends their requests.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from functools import partial
from typing import Literal

import pytest
import trio

from dstore.core.kademlia import closest_of, kad_id
from dstore.core.peerid import PeerId
from dstore.network.host import HostOptions, Libp2pHost, open_host
from dstore.network.routing import Routing, RoutingOptions, open_routing
from dstore.network.streams import PeerAddresses, Stream
from dstore.runtime import Runtime
from tests.unit.network.hosts import until

SERVERS = 19
PROTOCOL = RoutingOptions().protocol


def key_of(number: int) -> bytes:
    return b"\x12\x20" + hashlib.sha256(f"key {number}".encode()).digest()


def without_deadlines(patch: pytest.MonkeyPatch, *names: str) -> None:
    """Nothing ends because of a deadline of these names within the test."""
    for name in names:
        patch.setattr(name, 1_000_000)


async def comes_to(expected: object, search: Callable[[], Awaitable[object]]) -> None:
    """`search` gives `expected`.  On a busy machine an honest peer may be late, too, and be
    left behind by one search; not by five."""
    for _ in range(4):
        if await search() == expected:
            return
    assert await search() == expected


async def says_nothing(stream: Stream) -> None:
    await trio.sleep_forever()


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_twenty_real_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = Runtime()
    without_deadlines(
        monkeypatch,
        "dstore.network.kad_requests.KAD_REQUEST_SECONDS",
        "dstore.network.routing.KAD_LOOKUP_SECONDS",
    )
    async with AsyncExitStack() as stack:
        hosts: list[Libp2pHost] = []
        routings: list[Routing] = []
        for number in range(SERVERS + 1):
            seed = hashlib.sha256(bytes([number])).digest()
            options = HostOptions(dial_seconds=100, handshake_seconds=100)
            host = await stack.enter_async_context(open_host(options, seed, runtime))
            mode: Literal["server", "client"] = "server" if number < SERVERS else "client"
            routing = await stack.enter_async_context(
                open_routing(host, RoutingOptions(mode=mode), runtime)
            )
            hosts.append(host)
            routings.append(routing)

        with trio.fail_after(100), pytest.MonkeyPatch.context() as patch:
            # While all answer, nobody is late.
            without_deadlines(
                patch,
                "dstore.core.kademlia.KAD_SLOW_SECONDS_MIN",
                "dstore.core.kademlia.KAD_SLOW_SECONDS_MAX",
            )
            await all_answer(hosts, routings)
        # They did so long ago: what was found before is forgotten.
        monkeypatch.setattr("dstore.network.kad_search.KAD_FOUND_SECONDS", 0)
        with trio.fail_after(100):
            await six_fall_silent(hosts, routings)


def where(host: Libp2pHost) -> PeerAddresses:
    return PeerAddresses(host.peer_id, tuple(host.addresses()))


async def providers(routing: Routing, key: bytes) -> set[PeerId]:
    found = [provider.peer async for provider in routing.find_providers(key)]
    assert len(found) == len(set(found))
    return set(found)


async def all_answer(hosts: Sequence[Libp2pHost], routings: Sequence[Routing]) -> None:
    """Everybody gets to know everybody; servers and a client provide, and are found."""
    async with trio.open_nursery() as nursery:
        for routing in routings[1:]:
            nursery.start_soon(routing.bootstrap, [where(hosts[0])])
    client = routings[SERVERS]
    assert len(await client.closest_peers(key_of(0))) == SERVERS
    # Who was dialled takes the dialler into its table a few steps later.
    await until(lambda: all(one.table_size == SERVERS - 1 for one in routings[1:SERVERS]))
    for number in (3, 4, SERVERS):
        confirmed = await routings[number].provide(key_of(1))
        assert confirmed == SERVERS - (number < SERVERS)
    found = [p async for p in routings[9].find_providers(key_of(1))]
    assert len(found) == 3
    assert {p.peer: p for p in found} == {
        hosts[number].peer_id: where(hosts[number]) for number in (3, 4, SERVERS)
    }
    assert await client.find_peer(hosts[7].peer_id) == where(hosts[7])


async def six_fall_silent(hosts: Sequence[Libp2pHost], routings: Sequence[Routing]) -> None:
    """They take requests, which never end, and answer none: others' lookups end all the same,
    with everybody who is alive."""
    silent = set(range(10, 16))
    for number in silent:
        hosts[number].set_handler(PROTOCOL, says_nothing)
        for peer in hosts[number].connected():
            await hosts[number].disconnect(peer)
    alive = [hosts[n].peer_id for n in range(SERVERS) if n not in silent]
    for number in (0, 5, SERVERS):
        routing, own = routings[number], hosts[number].peer_id

        async def closest(routing: Routing = routing) -> object:
            return [each.peer for each in await routing.closest_peers(key_of(2))]

        others = [peer for peer in alive if peer != own]
        await comes_to(closest_of(others, kad_id(key_of(2)), 20), closest)
        await comes_to(
            {hosts[n].peer_id for n in (3, 4, SERVERS)} - {own if number == SERVERS else None},
            partial(providers, routing, key_of(1)),
        )
    await comes_to(len(alive) - 1, partial(routings[8].provide, key_of(3)))
