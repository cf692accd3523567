"""Where the DHT takes its peers to be: where they are connected, not where they are said to be."""

from __future__ import annotations

from dstore.core.diversity import subnets_of
from dstore.limits import KAD_TABLE_NARROW_MAX
from dstore.network.kad_peers import KnownPeers
from dstore.network.streams import PeerAddresses
from dstore.testing.deterministic import peer_number
from dstore.testing.memory_network import memory_network

HERE = "/ip4/20.30.40.50/tcp/1"
THERE = "/ip4/90.30.40.50/tcp/1"
SAID = "/ip4/55.30.40.50/tcp/1"


async def test_a_connected_peer_is_where_its_connection_ends() -> None:
    async with memory_network(0) as hub:
        own = hub.host(peer_number(0), [HERE])
        other = hub.host(peer_number(1), [THERE])
        peers = KnownPeers(own)
        assert peers.subnets(other.peer_id, [SAID]) == subnets_of([SAID])
        own.remember(PeerAddresses(other.peer_id, (HERE,)))
        assert peers.subnets(other.peer_id, [SAID]) == subnets_of([HERE])
        await own.connect(PeerAddresses(other.peer_id, (SAID, THERE)))
        assert peers.subnets(other.peer_id, [SAID]) == subnets_of([THERE])


async def test_the_table_of_a_node_takes_few_of_one_subnet() -> None:
    async with memory_network(0) as hub:
        own = hub.host(peer_number(0), [HERE])
        peers = KnownPeers(own)
        for number in range(1, 41):
            host = hub.host(peer_number(number), [f"/ip4/20.99.1.{number}/tcp/1"])
            await own.connect(PeerAddresses(host.peer_id, tuple(host.addresses())))
            peers.heard(host.peer_id)
        assert len(peers.table) == KAD_TABLE_NARROW_MAX
