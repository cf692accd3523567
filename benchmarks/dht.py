"""The DHT on 50 node processes: healthy, and with a third of them killed or stopped.

    python -m benchmarks.dht [--nodes 50] [--lookups 200] [--keys 1000] [--json]

The processes are light: a libp2p host and the routing on it, in server mode, over TCP on the
loopback address; no store and no gateway.  In each case another network is started, and 30 %
of its nodes are killed (SIGKILL) or stopped (SIGSTOP); then nodes that live, one after the
other, look up the peers closest to random keys, provide keys and find their providers.
Recall is the share of the 20 closest living peers that a lookup returned.  The figures begin
with the first lookup after the blow, when nobody knows yet who is dead.

Then one node announces `--keys` keys at once, as a node that has added much does, and the
living nodes are asked how many of them keep the record of each key.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import random
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import trio

from dstore.core.cid import CID, RAW
from dstore.core.kademlia import closest_of, kad_id
from dstore.core.peerid import PeerId
from dstore.limits import KAD_BUCKET
from dstore.network.host import HostOptions, Libp2pHost, open_host
from dstore.network.routing import Routing, RoutingOptions, open_routing
from dstore.network.streams import PeerAddresses
from dstore.runtime import Runtime
from dstore.service.reprovide import Reprovider
from dstore.service.stores import Stores
from dstore.storage.catalog import open_catalog
from dstore.storage.memory import MemoryStore

SICK = 0.3
BURST_SECONDS_MAX = 200


# --- One node ----------------------------------------------------------------------------


@dataclass
class _Node:
    host: Libp2pHost
    routing: Routing
    runtime: Runtime

    async def bootstrap(self, target: PeerAddresses) -> int:
        await self.routing.bootstrap([target])
        return self.routing.table_size

    async def refresh(self) -> int:
        await self.routing.refresh()
        return self.routing.table_size

    async def closest(self, key: bytes) -> list[PeerId]:
        return [each.peer for each in await self.routing.closest_peers(key)]

    async def provide(self, key: bytes) -> int:
        return await self.routing.provide(key)

    async def find(self, key: bytes) -> float:
        """Seconds until the first provider is known; infinity where none is found."""
        begun = time.perf_counter()
        async for _ in self.routing.find_providers(key, count=1):
            return time.perf_counter() - begun
        return float("inf")

    async def burst(self, cids: list[CID]) -> float:
        """Announce them as a node does; the seconds until all are confirmed."""
        with tempfile.TemporaryDirectory(prefix="dstore-dht-") as directory:
            stores = Stores(MemoryStore(), open_catalog(Path(directory) / "catalog.sqlite3"))
            reprovider = Reprovider(self.routing, stores, self.runtime)
            begun = time.perf_counter()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(reprovider.worker.run)
                reprovider.provide_soon(*cids)
                with trio.move_on_after(BURST_SECONDS_MAX):
                    while reprovider.due:  # noqa: ASYNC110 # it tells nobody of its end
                        await trio.sleep(0.05)
                nursery.cancel_scope.cancel()
            stores.catalog.close()
            return time.perf_counter() - begun

    async def records_of(self, provider: PeerId) -> list[bytes]:
        entries = self.routing.export_providers()
        return [entry.key for entry in entries if entry.provider.peer == provider]


def _run_node(number: int, pipe: Connection) -> None:
    """The life of one node process: commands in, (answer, CPU seconds so far) out."""

    async def live() -> None:
        runtime = Runtime()
        seed = hashlib.sha256(b"dht node %d" % number).digest()
        async with (
            open_host(HostOptions(), seed, runtime) as host,
            open_routing(host, RoutingOptions(), runtime) as routing,
        ):
            node = _Node(host, routing, runtime)
            pipe.send(PeerAddresses(host.peer_id, tuple(host.addresses())))
            while True:
                name, *arguments = await trio.to_thread.run_sync(pipe.recv)
                if name == "end":
                    return
                begun = time.perf_counter()
                answer = await getattr(node, name)(*arguments)
                pipe.send((answer, time.perf_counter() - begun))

    trio.run(live)


# --- Fifty of them -----------------------------------------------------------------------


@dataclass
class Remote:
    """A node process as the benchmark sees it."""

    process: BaseProcess
    pipe: Connection
    where: PeerAddresses

    def do(self, *command: Any) -> tuple[Any, float]:
        """(what the command returns, seconds it took at the node)"""
        self.pipe.send(command)
        answer: tuple[Any, float] = self.pipe.recv()
        return answer


@contextmanager
def network(size: int) -> Iterator[list[Remote]]:
    """`size` nodes that have joined through the first and know their neighbours."""
    # Forked, so that fifty interpreters need not import everything again.
    context = multiprocessing.get_context("fork")
    nodes: list[Remote] = []
    with ExitStack() as stack:
        for number in range(size):
            ours, theirs = context.Pipe()
            process = context.Process(target=_run_node, args=(number, theirs), daemon=True)
            process.start()
            theirs.close()
            stack.callback(process.join)
            stack.callback(process.kill)
            nodes.append(Remote(process, ours, ours.recv()))
        for node in nodes[1:]:
            node.do("bootstrap", nodes[0].where)
        for node in nodes:
            node.do("refresh")
        yield nodes


def strike(nodes: list[Remote], how: str, rng: random.Random) -> list[Remote]:
    """Kill or stop 30 % of them; returns the living."""
    if how == "healthy":
        return nodes
    sick = rng.sample(range(1, len(nodes)), round(SICK * len(nodes)))
    for number in sick:
        pid = nodes[number].process.pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL if how == "killed" else signal.SIGSTOP)
    return [node for number, node in enumerate(nodes) if number not in sick]


def percentiles(seconds: list[float]) -> dict[str, float]:
    """Median and 95th percentile, in milliseconds."""
    ordered = sorted(seconds)
    p95 = ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))]
    return {"p50_ms": round(1e3 * statistics.median(ordered), 1), "p95_ms": round(1e3 * p95, 1)}


def lookups(living: list[Remote], count: int, rng: random.Random) -> dict[str, float]:
    """Lookups of random keys, from one living node after the other."""
    peers = [node.where.peer for node in living]
    seconds, recalls = [], []
    for number in range(count):
        node = living[number % len(living)]
        key = b"\x12\x20" + rng.randbytes(32)
        found, took = node.do("closest", key)
        others = [peer for peer in peers if peer != node.where.peer]
        true = set(closest_of(others, kad_id(key), KAD_BUCKET))
        recalls.append(len(true & set(found)) / len(true))
        seconds.append(took)
    return percentiles(seconds) | {
        "recall": round(statistics.mean(recalls), 4),
        "recall_min": round(min(recalls), 4),
    }


def provides(living: list[Remote], count: int, rng: random.Random) -> dict[str, Any]:
    """Single keys provided, and found again from elsewhere."""
    provided, found, confirmed = [], [], []
    for number in range(count):
        key = b"\x12\x20" + rng.randbytes(32)
        peers, took = living[number % len(living)].do("provide", key)
        provided.append(took)
        confirmed.append(peers)
        first, _ = living[(number + len(living) // 2) % len(living)].do("find", key)
        found.append(first)
    return {
        "provide": percentiles(provided) | {"replicas_min": min(confirmed)},
        "find": percentiles(found) | {"missed": sum(each == float("inf") for each in found)},
    }


def burst(living: list[Remote], keys: int, rng: random.Random) -> dict[str, float]:
    """One node announces many keys; their replicas counted where they are kept."""
    provider = living[1]
    cids = [CID.of(RAW, rng.randbytes(32)) for _ in range(keys)]
    took, _ = provider.do("burst", cids)
    replicas = Counter[bytes]({cid.multihash: 0 for cid in cids})
    for node in living:
        if node is not provider:
            kept, _ = node.do("records_of", provider.where.peer)
            replicas.update(key for key in kept if key in replicas)
    return {
        "seconds": round(took, 1),
        "keys_a_second": round(keys / took, 1),
        "replicas_min": min(replicas.values()),
        "replicas_median": statistics.median(replicas.values()),
        "below_10": sum(count < 10 for count in replicas.values()),
    }


def one_case(how: str, options: argparse.Namespace) -> dict[str, Any]:
    """Everything in one fresh network."""
    rng = random.Random(options.seed)
    with network(options.nodes) as nodes:
        living = strike(nodes, how, rng)
        result: dict[str, Any] = {"closest": lookups(living, options.lookups, rng)}
        result |= provides(living, options.lookups, rng)
        if options.keys:
            result["burst"] = burst(living, options.keys, rng)
        return result


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--nodes", type=int, default=50)
    parser.add_argument("--lookups", type=int, default=200)
    parser.add_argument("--keys", type=int, default=1000, help="0 leaves the burst out")
    parser.add_argument("--case", action="append", choices=("healthy", "killed", "stopped"))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    result: dict[str, Any] = {"benchmark": "dht", "nodes": options.nodes}
    for how in options.case or ("healthy", "killed", "stopped"):
        begun = time.perf_counter()
        result[how] = one_case(how, options)
        print(f"{how}: {result[how]}", file=sys.stderr, flush=True)
        print(f"  {time.perf_counter() - begun:.0f} s", file=sys.stderr, flush=True)
    if options.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
