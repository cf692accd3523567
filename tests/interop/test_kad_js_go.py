"""Our DHT with js-libp2p's and go-libp2p's (Kubo's), over TCP, Noise and yamux: each side
finds what the other provides, through the other, and clients are in nobody's table."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Literal

import pytest
import trio

from dstore.network.host import HostOptions, Libp2pHost, open_host
from dstore.network.routing import Routing, RoutingOptions, open_routing
from dstore.network.streams import PeerAddresses
from dstore.runtime import Runtime
from tests.interop.kad_node import BUILD_SECONDS, go_command, js_command, kad_node

pytestmark = [pytest.mark.slow, pytest.mark.timeout(60 + BUILD_SECONDS)]

KEY = b"\x12\x20" + hashlib.sha256(b"content").digest()
OTHER_KEY = b"\x12\x20" + hashlib.sha256(b"other content").digest()
IPFS = "/ipfs/kad/1.0.0"
SECONDS = 40  # for what one test does; the machine may be busy


@pytest.fixture(scope="module", params=["js", "go"])
def command(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What starts a node of the other implementation."""
    if request.param == "js":
        return js_command("dht.mjs")
    return go_command(tmp_path_factory.mktemp("go"))


@asynccontextmanager
async def our_node(
    seed: int, protocol: str, mode: Literal["server", "client"] = "server"
) -> AsyncIterator[tuple[Libp2pHost, Routing]]:
    runtime = Runtime()
    options = RoutingOptions(protocol=protocol, mode=mode)
    async with (
        open_host(HostOptions(), bytes([seed]) * 32, runtime) as host,
        open_routing(host, options, runtime) as routing,
    ):
        yield host, routing


def where(host: Libp2pHost) -> PeerAddresses:
    return PeerAddresses(host.peer_id, tuple(host.addresses()))


async def holds(routing: Routing, records: int) -> None:
    """Wait for records that were sent without waiting for an answer."""
    while routing.records < records:  # noqa: ASYNC110  # it tells nobody
        await trio.sleep(0.01)


async def providers(routing: Routing, key: bytes) -> list[PeerAddresses]:
    return [provider async for provider in routing.find_providers(key)]


async def test_each_finds_what_the_other_provides(command: list[str]) -> None:
    """Theirs, A, in the middle: ours and their B know A only."""
    async with (
        kad_node(command, "server", IPFS) as a,
        kad_node(command, "server", IPFS) as b,
        our_node(3, IPFS) as (ours, routing),
    ):
        with trio.fail_after(SECONDS):
            await b.connect(a.where)
            await a.knows(b.where.peer)
            assert await routing.bootstrap([a.where]) == 1
            closest = await routing.closest_peers(KEY)
            assert {each.peer for each in closest} == {a.where.peer, b.where.peer}
            assert routing.table_size == 2, "B was found through A"
            connection = ours._swarm.connection(a.where.peer)
            assert connection is not None
            assert connection.muxer_named_early
            await a.knows(b.where.peer, ours.peer_id)

            # Ours looks at theirs.
            await b.ask("provide", KEY.hex())
            found = await providers(routing, KEY)
            assert [each.peer for each in found] == [b.where.peer]
            assert b.where.addresses[0] in found[0].addresses
            found_peer = await routing.find_peer(b.where.peer)
            assert found_peer is not None
            assert b.where.addresses[0] in found_peer.addresses

            # Theirs looks at ours.
            assert await routing.provide(OTHER_KEY) == 2, "read back from both"
            named = await b.ask("providers", OTHER_KEY.hex())
            assert named.keys() == {ours.peer_id}
            assert set(named[ours.peer_id]) >= set(ours.addresses())


async def test_theirs_find_each_other_through_ours(command: list[str]) -> None:
    """Ours in the middle: what A and B learn of each other, they learn from it."""
    async with (
        our_node(3, IPFS) as (ours, routing),
        kad_node(command, "server", IPFS) as a,
        kad_node(command, "server", IPFS) as b,
    ):
        with trio.fail_after(SECONDS):
            await a.connect(where(ours))
            await a.knows(ours.peer_id)
            await a.ask("provide", KEY.hex())
            await holds(routing, 1)
            await b.connect(where(ours))
            await b.knows(ours.peer_id)
            named = await b.ask("providers", KEY.hex())
            assert named.keys() == {a.where.peer}
            assert a.where.addresses[0] in named[a.where.peer]
            assert a.where.peer in await b.ask("closest", KEY.hex())
            found = await b.ask("find", str(a.where.peer))
            assert a.where.addresses[0] in found[a.where.peer]
            await b.knows(ours.peer_id, a.where.peer)
            closest = await routing.closest_peers(KEY)
            assert {each.peer for each in closest} == {a.where.peer, b.where.peer}
            assert routing.table_size == 2


async def test_clients_search_and_provide_and_are_in_no_table(command: list[str]) -> None:
    """A server and a client of each side, on dstore's own protocol."""
    protocol = RoutingOptions().protocol
    async with (
        our_node(3, protocol) as (ours, routing),
        our_node(4, protocol, "client") as (our_client, client_routing),
        kad_node(command, "server", protocol) as theirs,
        kad_node(command, "client", protocol) as their_client,
    ):
        with trio.fail_after(SECONDS):
            await theirs.connect(where(ours))
            await theirs.knows(ours.peer_id)

            await their_client.connect(where(ours))
            await their_client.knows(ours.peer_id)
            await their_client.ask("provide", KEY.hex())
            await holds(routing, 1)
            assert await client_routing.bootstrap([theirs.where]) == 1
            assert await client_routing.provide(OTHER_KEY) == 2

            found = await providers(client_routing, KEY)
            assert [each.peer for each in found] == [their_client.where.peer]
            named = await their_client.ask("providers", OTHER_KEY.hex())
            assert named.keys() == {our_client.peer_id}

            await routing.refresh()
            await client_routing.refresh()
            assert routing.table_size == 1
            assert [p.peer for p in await routing.closest_peers(KEY)] == [theirs.where.peer]
            assert client_routing.table_size == 2
            assert await theirs.table() == {ours.peer_id}
