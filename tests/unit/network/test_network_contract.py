"""Both implementations of the network contract, held to the same suite."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from dstore.network.host import HostOptions, open_host
from dstore.network.streams import Network
from dstore.runtime import Runtime
from dstore.testing.deterministic import peer_number
from dstore.testing.memory_network import NetworkOptions, memory_network
from dstore.testing.network_suite import NetworkSuite


class TestLibp2pHost(NetworkSuite):
    def pair(self) -> AbstractAsyncContextManager[tuple[Network, Network]]:
        return self._pair()

    @asynccontextmanager
    async def _pair(self) -> AsyncIterator[tuple[Network, Network]]:
        runtime = Runtime()
        async with (
            open_host(HostOptions(), bytes([1]) * 32, runtime) as first,
            open_host(HostOptions(), bytes([2]) * 32, runtime) as second,
        ):
            yield first, second


class TestMemoryNetwork(NetworkSuite):
    def pair(self) -> AbstractAsyncContextManager[tuple[Network, Network]]:
        return self._pair()

    @asynccontextmanager
    async def _pair(self) -> AsyncIterator[tuple[Network, Network]]:
        async with memory_network(1, NetworkOptions(ragged=False)) as network:
            yield network.host(peer_number(1)), network.host(peer_number(2))
