"""Many nodes' routing on one network in memory, joined through the first of them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

import trio

from dstore.core.peerid import PeerId
from dstore.network.routing import Routing, RoutingOptions, open_routing
from dstore.network.streams import PeerAddresses
from dstore.testing.deterministic import peer_number, simulated_runtime
from dstore.testing.memory_network import MemoryHost, MemoryNetwork, memory_network


@dataclass
class RoutingCluster:
    """`hosts[i]` and `routings[i]` are node i's, whose peer id is `peer_number(i)`."""

    hub: MemoryNetwork
    stack: AsyncExitStack
    hosts: list[MemoryHost] = field(default_factory=list)
    routings: list[Routing] = field(default_factory=list)

    async def start(self, options: RoutingOptions | None = None) -> Routing:
        """One more node, connected to nobody."""
        number = len(self.hosts)
        host = self.hub.host(peer_number(number))
        context = open_routing(host, options or RoutingOptions(), simulated_runtime(number))
        routing = await self.stack.enter_async_context(context)
        self.hosts.append(host)
        self.routings.append(routing)
        return routing

    def id(self, number: int) -> PeerId:
        """Node `number`'s peer id."""
        return self.hosts[number].peer_id

    def where(self, number: int) -> PeerAddresses:
        """Where node `number` listens."""
        host = self.hosts[number]
        return PeerAddresses(host.peer_id, tuple(host.addresses()))

    async def join(self, numbers: Iterable[int]) -> None:
        """Have these nodes bootstrap from node 0, all at once."""
        async with trio.open_nursery() as nursery:
            for number in numbers:
                nursery.start_soon(self.routings[number].bootstrap, [self.where(0)])


@asynccontextmanager
async def routing_cluster(
    size: int, seed: int = 0, options: RoutingOptions | None = None
) -> AsyncIterator[RoutingCluster]:
    """A cluster of `size` nodes that have joined.  Under trio's mock clock, please."""
    async with memory_network(seed) as hub, AsyncExitStack() as stack:
        cluster = RoutingCluster(hub, stack)
        for _ in range(size):
            await cluster.start(options)
        await cluster.join(range(1, size))
        yield cluster
