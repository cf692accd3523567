"""A node, assembled: which part gets what, in which order they start and stop.  Only wiring.

`open_node` is for programs that embed dstore:

    async with open_node(Path("~/.dstore").expanduser(), NodeOptions()) as node:
        result = await node.add_path(Path("dataset"), AddOptions())
        async with node.read(result.cid) as chunks: ...

`assemble` takes stores and a network that exist already; simulations use it.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import trio

from dstore import __version__
from dstore.core import wire
from dstore.core.cid import CID
from dstore.core.envelope import SigningKey
from dstore.core.erasure import engine_name
from dstore.core.peerid import PeerId
from dstore.limits import (
    BLOCK_BYTES_MAX,
    GIB,
    LEASE_SECONDS,
    MIB,
    PEERS_LISTED_MAX,
    PIN_SECONDS_DEFAULT,
    SHUTDOWN_SECONDS,
)
from dstore.network.fragments_client import FragmentsClient
from dstore.network.fragments_server import serve_fragments
from dstore.network.routing import Routing, RoutingOptions, open_routing
from dstore.network.streams import Network, PeerAddresses
from dstore.runtime import Runtime
from dstore.service.bandwidth import Bandwidth, BandwidthOptions
from dstore.service.blockcache import BlockCache
from dstore.service.candidates import CandidateFinder, label_domains, peer_domains
from dstore.service.counters import Counters
from dstore.service.faults import Faults
from dstore.service.fetch import open_fetcher
from dstore.service.gate import Gate
from dstore.service.holder import HolderOptions, LocalHolder
from dstore.service.holdings import Holdings
from dstore.service.homestores import init_home, open_stores
from dstore.service.keeper import Keeper
from dstore.service.leasenotes import LeaseNotes
from dstore.service.peerlabels import Claims, label_workers
from dstore.service.peers import PeerList
from dstore.service.pinrecords import PinRecords
from dstore.service.pins import Pins
from dstore.service.progress import (
    AddOptions,
    AddResult,
    DirectoryEntry,
    Entry,
    NodeStatus,
    PeerStatus,
    Pin,
    Report,
    RootStatus,
    Totals,
)
from dstore.service.providers import open_provider_keeper
from dstore.service.publish import Publisher, PublishOptions
from dstore.service.reprovide import Reprovider
from dstore.service.retrieve import Retriever
from dstore.service.rootturns import RootTurns
from dstore.service.segments import SegmentMemory
from dstore.service.session import RootSession
from dstore.service.sources import Access, Discovery
from dstore.service.status import StatusReader
from dstore.service.stores import Stores
from dstore.service.upload import Uploader
from dstore.service.worker import Worker
from dstore.storage.layout import Home


@dataclass(frozen=True)
class NodeOptions:
    """What a node is set to; sizes in bytes, times in seconds.  `bootstrap` are multiaddrs
    that end in /p2p/PEER-ID."""

    role: wire.Role = wire.Role.STORAGE
    label: str = ""
    capacity_bytes: int = 100 * GIB
    reserve_bytes: int = GIB
    memory_cache_bytes: int = 32 * MIB
    pin_seconds: int = PIN_SECONDS_DEFAULT
    lease_seconds: int = LEASE_SECONDS
    listen: tuple[str, ...] = ("/ip4/127.0.0.1/tcp/0",)
    announce: tuple[str, ...] = ()
    bootstrap: tuple[str, ...] = ()
    connections_max: int = 1024
    routing: RoutingOptions = field(default_factory=RoutingOptions)
    bandwidth: BandwidthOptions = field(default_factory=BandwidthOptions)

    @property
    def stores_slots(self) -> bool:
        """Whether it keeps fragments for others."""
        return self.role is wire.Role.STORAGE


_FULL = "full: no new slots are taken; raise storage.capacity or make room on the disk"


def _ignore(_: object) -> None:
    """Progress that nobody watches."""


class Node:
    """A running node: what the interfaces and embedding programs call."""

    def __init__(
        self,
        stores: Stores,
        network: Network,
        routing: Routing,
        publisher: Publisher,
        retriever: Retriever,
        status: StatusReader,
        peers: PeerList,
        pins: Pins,
        workers: Sequence[Worker],
        runtime: Runtime,
        options: NodeOptions,
        counters: Counters,
        gate: Gate,
        join: Callable[[PeerAddresses], None],
    ) -> None:
        self.stores = stores
        self.network = network
        self.routing = routing
        self.workers = workers
        self.counters = counters
        self._publisher = publisher
        self._retriever = retriever
        self._status = status
        self._peers = peers
        self._pins = pins
        self._runtime = runtime
        self._options = options
        self._gate = gate
        self._join = join
        self._started = trio.current_time()
        self.bandwidth: Bandwidth | None = None  # where the network is a real one

    @property
    def peer_id(self) -> PeerId:
        return self.network.peer_id

    # --- Writing -------------------------------------------------------------------------

    async def add_path(
        self,
        path: Path,
        options: AddOptions | None = None,
        report: Report = _ignore,
        *,
        hidden: bool = False,
    ) -> AddResult:
        """Add a file or directory.  Raises as `Publisher.add_path`."""
        with self._gate.enter():
            result = await self._publisher.add_path(
                path, options or AddOptions(), report, hidden=hidden
            )
            self._retriever.forget(result.cid)
        return result

    async def add_stream(
        self,
        chunks: AsyncIterator[bytes],
        options: AddOptions | None = None,
        report: Report = _ignore,
    ) -> AddResult:
        """Add a file whose bytes come from `chunks`.  Raises as `Publisher.add_path`."""
        with self._gate.enter():
            result = await self._publisher.add_stream(chunks, options or AddOptions(), report)
            self._retriever.forget(result.cid)
        return result

    # --- Reading -------------------------------------------------------------------------

    async def resolve(self, root: CID, names: Sequence[str] = ()) -> Entry:
        """What /ipfs/ROOT/NAME/… is.  Raises as `Retriever.resolve`."""
        with self._gate.enter():
            return await self._retriever.resolve(root, names)

    async def entry(self, root: CID, cid: CID, *, held: bool = True) -> Entry:
        """What one node of the root's DAG is, as `entries` names it; `held` as there."""
        with self._gate.enter():
            return await self._retriever.entry(root, cid, held=held)

    @asynccontextmanager
    async def read(
        self, root: CID, cid: CID | None = None, offset: int = 0, length: int | None = None
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """The bytes of the file `cid` (the root itself where None) of the root's DAG:
        `async with node.read(root) as chunks: async for chunk in chunks: …`"""
        with self._gate.enter():
            async with self._retriever.read(root, cid or root, offset, length) as chunks:
                yield chunks

    def entries(
        self, root: CID, directory: CID | None = None
    ) -> AsyncGenerator[DirectoryEntry, None]:
        """The entries of a directory of the root's DAG."""
        self._gate.check()
        return self._retriever.entries(root, directory or root)

    async def block(self, root: CID, cid: CID | None = None, *, held: bool = True) -> bytes:
        """One block of the root's DAG, verified; `held` as `entries` says."""
        with self._gate.enter():
            return await self._retriever.block(root, cid or root, held=held)

    # --- Looking -------------------------------------------------------------------------

    async def status(self, root: CID) -> RootStatus:
        """The health of a root, as its holders answer now.  Raises NotFoundError."""
        self._retriever.forget(root)
        with self._gate.enter():
            return await self._status.status(self._retriever.session(root))

    async def pins(self) -> list[Pin]:
        """What this node's owner keeps."""
        return await self._pins.all()

    async def unpin(self, root: CID) -> int:
        """Let go of a root here and at its holders; how many of them confirmed."""
        with self._gate.enter():
            return await self._pins.remove(root)

    async def peers(self, *, ask: bool = True) -> list[PeerStatus]:
        """Peers connected or known, the connected ones first; `ask` as `PeerList.all`."""
        return await self._peers.all(ask=ask)

    async def connect(self, target: PeerAddresses) -> None:
        """Have a connection to a peer; the DHT is joined through it in the background.
        Raises NetworkError."""
        await self.network.connect(target)
        self._join(target)

    async def holds(self, cid: CID) -> bool:
        """Whether the block is stored here."""
        found = await self._runtime.workers.run(self.stores.blocks.has_many, [cid])
        return cid.is_identity or found[0]

    async def totals(self) -> Totals:
        """How much the catalog knows of."""

        def work() -> Totals:
            catalog = self.stores.catalog
            return Totals(
                tuple(catalog.slot_totals()), catalog.pin_count(), catalog.placement_count()
            )

        return await self._runtime.workers.run(work)

    async def summary(self) -> NodeStatus:
        """The node itself."""
        usage = await self._runtime.workers.run(self.stores.blocks.usage)
        room = await self._runtime.workers.run(self.stores.blocks.room)
        full = room is not None and room < BLOCK_BYTES_MAX
        return NodeStatus(
            peer_id=self.peer_id,
            addresses=tuple(self.network.addresses()),
            version=__version__,
            peers=len(self.network.connected()),
            blocks=usage.blocks,
            bytes=usage.bytes,
            capacity_bytes=self._options.capacity_bytes,
            uptime_seconds=trio.current_time() - self._started,
            erasure_engine=engine_name(),
            warnings=(_FULL,) if full else (),
        )


@asynccontextmanager
async def assemble(
    stores: Stores,
    network: Network,
    identity: SigningKey,
    owner: SigningKey,
    options: NodeOptions,
    runtime: Runtime,
    claims: Claims | None = None,
) -> AsyncIterator[Node]:
    """A node over stores and a network that the caller opened and will close."""
    faults = Faults(stores, runtime)
    domains = peer_domains(network.addresses(), label_domains(options.label))
    async with (
        open_routing(network, options.routing, runtime) as routing,
        FragmentsClient(network, runtime) as client,
        open_fetcher(client, faults.report, faults.counters) as fetcher,
        trio.open_nursery() as nursery,
    ):
        candidates = CandidateFinder(network, routing, client, stores, runtime)
        holdings = Holdings(network, client, stores, runtime)
        reprovider = Reprovider(routing, stores, runtime)
        holder = LocalHolder(
            stores, network, identity, runtime, _holder_options(options), reprovider.provide_soon
        )
        serve_fragments(network, holder, runtime, faults.report)
        access = Access(network, routing, client, fetcher, stores, runtime, nursery)
        retriever = _retriever(access, options.memory_cache_bytes)
        records, turns = PinRecords(stores, network, client, owner, runtime), RootTurns()
        publisher = Publisher(
            stores,
            network,
            routing,
            candidates,
            holdings,
            Uploader(network, client, holder, stores, runtime),
            reprovider,
            records,
            turns,
            runtime,
            PublishOptions(options.pin_seconds, domains, options.stores_slots),
        )
        keeper = Keeper(stores, holder.leases, runtime)
        notes = LeaseNotes(holdings, stores, owner.public, runtime)
        workers = [one.worker for one in (reprovider, keeper, notes, retriever, faults)]
        workers += await label_workers(network, candidates, stores, runtime, claims)
        await _begin(workers, nursery, routing, stores, runtime)
        gate = Gate()
        node = Node(
            stores,
            network,
            routing,
            publisher,
            retriever,
            StatusReader(network, holdings, candidates, stores, runtime, domains),
            PeerList(network, candidates, stores, runtime),
            Pins(stores, network, client, holder.leases, records, turns, runtime),
            workers,
            runtime,
            options,
            faults.counters,
            gate,
            lambda target: nursery.start_soon(routing.bootstrap, [target]),
        )
        try:
            yield node
            await gate.drain(SHUTDOWN_SECONDS)
        finally:
            gate.end()
        nursery.cancel_scope.cancel()


def _retriever(access: Access, cache_bytes: int) -> Retriever:
    """Sessions share what is kept in memory."""
    discovery, cache, memory = Discovery(access), BlockCache(cache_bytes), SegmentMemory()
    return Retriever(lambda root: RootSession(root, access, discovery, cache, memory))


async def _begin(
    workers: Sequence[Worker],
    nursery: trio.Nursery,
    routing: Routing,
    stores: Stores,
    runtime: Runtime,
) -> None:
    """Start the background work, with the peers that are known from before."""
    for worker in workers:
        nursery.start_soon(worker.run)
    for row in await runtime.workers.run(stores.catalog.peers, PEERS_LISTED_MAX):
        routing.add_peer(PeerAddresses(row.peer, row.addresses))


def _holder_options(options: NodeOptions) -> HolderOptions:
    return HolderOptions(
        options.role,
        options.capacity_bytes if options.stores_slots else 0,
        label_domains(options.label),
        options.lease_seconds,
    )


@asynccontextmanager
async def open_node(
    directory: Path, options: NodeOptions | None = None, runtime: Runtime | None = None
) -> AsyncIterator[Node]:
    """A node on the real network with the home directory `directory`, made where missing.

    It stops in the reverse order of its start: background work and reads end, then the
    network, and the stores last, each within SHUTDOWN_SECONDS.  Raises AlreadyRunning,
    StoreTooNew, CorruptStore, NodeError, ConfigError.
    """
    # Imported here: libp2p costs most of a second, which simulations need not pay.
    from dstore.network.bootstrap import bootstrap_targets
    from dstore.network.host import HostOptions, open_host

    options = options or NodeOptions()
    runtime = runtime or Runtime()
    home = Home(directory)
    await runtime.workers.run(partial(init_home, home, runtime))
    with home.lock():
        home.check()
        identity = SigningKey.from_seed(home.read_key(home.identity_key))
        owner = SigningKey.from_seed(home.read_key(home.owner_key))
        host_options = HostOptions(
            listen=options.listen,
            announce=options.announce,
            agent=f"dstore/{__version__}",
            connections_max=options.connections_max,
            limit_lan=options.bandwidth.lan,
            peer_groups=options.bandwidth.members,
            label_groups=options.bandwidth.labels,
            repair_protocols=frozenset({wire.REPAIR_PROTOCOL}),
        )
        labelled = any(options.bandwidth.labels.values())
        async with (
            open_stores(
                home,
                runtime,
                capacity_bytes=options.capacity_bytes,
                reserve_bytes=options.reserve_bytes,
            ) as stores,
            open_host(host_options, identity.seed, runtime) as host,
            assemble(
                stores,
                host,
                identity,
                owner,
                options,
                runtime,
                host.shaper.claims if labelled else None,
            ) as node,
            open_provider_keeper(home.providers, node.routing, runtime) as providers,
            trio.open_nursery() as nursery,
        ):
            node.bandwidth = Bandwidth(options.bandwidth, host.shaper, runtime)
            nursery.start_soon(node.bandwidth.worker.run)
            # After everything is served: peers ask once what this node speaks.
            targets = bootstrap_targets(options.bootstrap)
            node.workers = (*node.workers, providers.worker)
            nursery.start_soon(node.routing.bootstrap, targets)
            for target in targets:
                nursery.start_soon(host.stay_connected, target)
            yield node
            nursery.cancel_scope.cancel()
