"""A cluster of real node objects on the network in memory: whole adds and gets, with faults.

Everything but sockets and disks is the real thing: stores over dictionaries, catalogs over
SQLite files in a temporary directory, the DHT, the fragment protocol, the services.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import trio

from dstore.core.envelope import SigningKey
from dstore.core.peerid import PeerId
from dstore.limits import GIB
from dstore.network.streams import PeerAddresses
from dstore.service.node import Node, NodeOptions, assemble
from dstore.service.stores import Stores
from dstore.storage.catalog import open_catalog
from dstore.storage.memory import MemoryStore
from dstore.storage.records import RecordFiles
from dstore.testing.deterministic import WrongClock, simulated_runtime
from dstore.testing.faulty_store import FaultyStore
from dstore.testing.memory_network import MemoryNetwork, NetworkOptions, memory_network


def node_key(number: int, purpose: str = "identity") -> SigningKey:
    """The key of node `number`, the same in every run."""
    return SigningKey.from_seed(hashlib.sha256(f"{purpose} {number}".encode()).digest())


@dataclass
class ClusterNode:
    """One node; `blocks` wraps its store, for breaking it, and `clock` may be set wrong."""

    number: int
    node: Node
    blocks: FaultyStore
    clock: WrongClock
    scope: trio.CancelScope
    stopped: trio.Event

    @property
    def peer_id(self) -> PeerId:
        return self.node.peer_id


@dataclass
class Cluster:
    """Nodes by number; those killed are not among `alive`."""

    hub: MemoryNetwork
    directory: Path
    nursery: trio.Nursery
    options: NodeOptions
    seed: int
    nodes: dict[int, ClusterNode] = field(default_factory=dict)
    stores: dict[int, FaultyStore] = field(default_factory=dict)

    def __getitem__(self, number: int) -> Node:
        return self.nodes[number].node

    @property
    def alive(self) -> Sequence[int]:
        """Numbers of the nodes that run."""
        return [number for number in self.nodes if self.hub.alive(self.peer(number))]

    def peer(self, number: int) -> PeerId:
        """The peer id of a node, alive or not."""
        return node_key(number).peer_id

    def number_of(self, peer: PeerId) -> int:
        """The node with that peer id."""
        return next(number for number in self.nodes if self.peer(number) == peer)

    async def start(self, number: int, options: NodeOptions | None = None) -> Node:
        """Start a node, or start a killed one again over the stores that it had; it joins
        through the lowest number that runs."""
        chosen = options or replace(self.options, label=f"machine-{number}")
        others = [self.nodes[other] for other in self.alive if other != number]
        ready = trio.Event()
        self.nursery.start_soon(self._run, number, chosen, ready)
        await ready.wait()
        node = self.nodes[number].node
        targets = [
            PeerAddresses(one.peer_id, tuple(one.node.network.addresses())) for one in others[:1]
        ]
        await node.routing.bootstrap(targets)
        return node

    async def kill(self, number: int) -> None:
        """As SIGKILL: its connections are lost, its tasks gone; its stores stay."""
        self.hub.kill(self.peer(number))
        self.nodes[number].scope.cancel()
        await self.nodes[number].stopped.wait()

    async def _run(self, number: int, options: NodeOptions, ready: trio.Event) -> None:
        directory = self.directory / f"node-{number}"
        directory.mkdir(exist_ok=True)
        blocks = self.stores.setdefault(number, FaultyStore(MemoryStore()))
        catalog = open_catalog(directory / "catalog.sqlite3", RecordFiles(directory / "records"))
        catalog.release_stale_operations()
        catalog.release_stale_pins()
        host = self.hub.host(self.peer(number))
        clock = WrongClock()
        runtime = simulated_runtime(self.seed * 1000 + number, clock)
        stopped = trio.Event()
        try:
            with trio.CancelScope() as scope:
                async with assemble(
                    Stores(blocks, catalog),
                    host,
                    node_key(number),
                    node_key(number, "owner"),
                    options,
                    runtime,
                ) as node:
                    self.nodes[number] = ClusterNode(number, node, blocks, clock, scope, stopped)
                    ready.set()
                    await trio.sleep_forever()
        finally:
            catalog.close()
            stopped.set()


@asynccontextmanager
async def open_cluster(
    size: int,
    seed: int = 0,
    *,
    options: NodeOptions | None = None,
    network: NetworkOptions | None = None,
) -> AsyncIterator[Cluster]:
    """`size` nodes that know each other through node 0, each a failure domain of its own.
    Run it under `run_deterministic`, or trio's mock clock at least."""
    chosen = options or NodeOptions(capacity_bytes=GIB, memory_cache_bytes=0)
    with tempfile.TemporaryDirectory(prefix="dstore-cluster-", dir=_memory_directory()) as path:
        async with memory_network(seed, network) as hub, trio.open_nursery() as nursery:
            cluster = Cluster(hub, Path(path), nursery, chosen, seed)
            for number in range(size):
                await cluster.start(number)
            yield cluster
            nursery.cancel_scope.cancel()


def _memory_directory() -> str | None:
    """Where SQLite's syncs cost nothing, if there is such a place."""
    shared = Path("/dev/shm")  # noqa: S108 - a directory of random name is made in it
    return str(shared) if shared.is_dir() else None
