"""Bandwidth limits, kept or not: two real nodes, a file fetched under each limit.

    python -m benchmarks.bandwidth [--rates 5,20,50] [--seconds 10] [--runs 5] [--json]

One node has a file; another, a client without a store, reads it through its gateway for the
given seconds, while the one's `up` or the other's `down` is limited over the API (loopback
counts as the local network, so `bandwidth.lan` is on).  The figure is what the gateway's
traffic counter says the connection carried, encryption and framing included, beside the limit.
Then the limit is changed in the middle of one read; a third node reads the same file as
repair beside the gateway, alone and together; and the gateway reads without any limit and, in
turns, under one that is never reached.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import trio

from benchmarks.local_add import make_file
from benchmarks.protected import DSTORE, dstore
from dstore.core import dagpb, wire
from dstore.core.bandwidth import Traffic
from dstore.core.cid import CID
from dstore.network.addresses import split_peer
from dstore.network.fragments_client import FragmentsClient
from dstore.network.host import HostOptions, open_host
from dstore.network.streams import PeerAddresses
from dstore.runtime import Runtime

_FIRST_SECONDS = 1.0  # until the read flows
_SHARED_MB_PER_S = 20.0
_NEVER_REACHED = "20GB/s"
_REPAIR_READERS = 2
_REPAIR_BATCH = 16  # blocks asked for at once


@contextmanager
def node(home: Path, *options: str) -> Iterator[dict[str, Any]]:
    """A node whose limits hold on loopback."""
    dstore("init", "--home", str(home), "--listen", "/ip4/127.0.0.1/tcp/0", *options)
    environ = {
        **os.environ,
        "DSTORE_GATEWAY_LISTEN": "127.0.0.1:0",
        "DSTORE_BANDWIDTH_LAN": "true",
    }
    process = subprocess.Popen(
        [DSTORE, "run", "--home", home, "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environ,
    )
    try:
        assert process.stdout is not None
        yield {**json.loads(process.stdout.readline()), "home": str(home)}
    finally:
        process.terminate()
        process.wait(20)


def read_on(gateway: str, cid: str, stop: threading.Event) -> None:
    """Read a file through a gateway, again and again, until told to stop."""
    while not stop.is_set():
        connection = http.client.HTTPConnection(urlsplit(gateway).netloc, timeout=60)
        connection.request("GET", f"/ipfs/{cid}")
        response = connection.getresponse()
        while not stop.is_set() and response.read(256 * 1024):
            pass
        connection.close()


def limit(at: dict[str, Any], **rates: str) -> dict[str, Any]:
    words = [word for name, rate in rates.items() for word in (f"--{name}", rate)]
    form: dict[str, Any] = dstore("bandwidth", "--home", at["home"], *words)
    return form


def carried(at: dict[str, Any], seconds: float) -> float:
    """Bytes a second that came from peers meanwhile."""
    before, begun = limit(at)["received_bytes"], time.perf_counter()
    time.sleep(seconds)
    after = limit(at)["received_bytes"]
    return float(after - before) / (time.perf_counter() - begun)


async def read_as_repair(address: str, root: str) -> None:
    """Read the blocks of a file from one node again and again, as repair would."""
    base, peer = split_peer(address)
    assert peer is not None
    options = HostOptions(limit_lan=True, repair_protocols=frozenset({wire.REPAIR_PROTOCOL}))
    runtime = Runtime()
    async with (
        open_host(options, os.urandom(32), runtime) as host,
        FragmentsClient(host, runtime, Traffic.REPAIR) as client,
        trio.open_nursery() as nursery,
    ):
        await host.connect(PeerAddresses(peer, (base,)))

        async def get(cids: list[CID]) -> list[bytes]:
            async with client.get_blocks(peer, cids) as blocks:
                return [data async for _, data in blocks if data is not None]

        async def read() -> None:
            while True:
                (top,) = await get([CID.parse(root)])
                for inner in dagpb.decode(top).links:
                    (node,) = await get([inner.cid])
                    leaves = [link.cid for link in dagpb.decode(node).links]
                    for start in range(0, len(leaves), _REPAIR_BATCH):
                        await get(leaves[start : start + _REPAIR_BATCH])

        for _ in range(_REPAIR_READERS):
            nursery.start_soon(read)


@contextmanager
def repairing(address: str, cid: str) -> Iterator[None]:
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.bandwidth", "--repair", address, cid]
    )
    try:
        time.sleep(2 * _FIRST_SECONDS)
        yield
    finally:
        process.terminate()
        process.wait(20)


def sent(at: dict[str, Any], seconds: float) -> tuple[float, float]:
    """Bytes a second that a node sent for its foreground and for repair."""
    before, begun = limit(at)["traffic"], time.perf_counter()
    time.sleep(seconds)
    after, took = limit(at)["traffic"], time.perf_counter() - begun
    foreground, repair = (
        (after[kind]["sent_bytes"] - before[kind]["sent_bytes"]) / took
        for kind in ("foreground", "repair")
    )
    return foreground, repair


def percents(shares: list[float], of: float) -> dict[str, float]:
    """The median, the least and the most of rates as percent of one."""
    found = sorted(round(100 * share / of, 1) for share in shares)
    return {"median": statistics.median(found), "least": found[0], "most": found[-1]}


def with_repair(
    a: dict[str, Any], address: str, cid: str, seconds: float, runs: int
) -> dict[str, Any]:
    """While the gateway reads: what repair beside it takes, of the limit of both."""
    rate, own = _SHARED_MB_PER_S * 1e6, _SHARED_MB_PER_S * 1e6 / 4
    result: dict[str, Any] = {"shared_mb_per_s": _SHARED_MB_PER_S}
    limit(a, up=f"{_SHARED_MB_PER_S}MB/s")
    with repairing(address, cid):
        both = [sent(a, seconds) for _ in range(runs)]
        result["foreground_percent"] = percents([one for one, _ in both], rate)
        result["repair_percent"] = percents([one for _, one in both], rate)
        limit(a, up="0", repair=f"{own / 1e6}MB/s")
        time.sleep(_FIRST_SECONDS)
        alone = [sent(a, seconds)[1] for _ in range(runs)]
        result["repair_of_its_own_limit_percent"] = percents(alone, own)
    limit(a, repair="0")
    return result


def without_limit(a: dict[str, Any], b: dict[str, Any], runs: int) -> dict[str, Any]:
    """The gateway's rate under a limit that is never reached, as percent of that without."""
    ratios = []
    for _ in range(runs):
        rates = []
        for up in ("0", _NEVER_REACHED):
            limit(a, up=up)
            time.sleep(_FIRST_SECONDS)
            rates.append(carried(b, 5))
        ratios.append(rates[1] / rates[0])
    limit(a, up="0")
    return percents(ratios, 1)


def measure(work: Path, rates: list[float], seconds: float, runs: int) -> dict[str, Any]:
    path = work / "file"
    make_file(path, 2048)
    result: dict[str, Any] = {"benchmark": "bandwidth", "seconds": seconds}
    with node(work / "a") as a:
        cid = dstore("add", "--home", a["home"], "--local-only", str(path))["cid"]
        address = next(one for one in a["addresses"] if "127.0.0.1" in one)
        with node(work / "b", "--role", "client", "--bootstrap", address) as b:
            stop = threading.Event()
            reader = threading.Thread(target=read_on, args=(b["gateway"], cid, stop))
            limit(a, up="5MB/s")
            reader.start()
            try:
                for mb in rates:
                    for at, direction in ((a, "up"), (b, "down")):
                        limit(a, up="0")
                        limit(b, down="0")
                        limit(at, **{direction: f"{mb}MB/s"})
                        time.sleep(_FIRST_SECONDS)
                        errors = [100 * (carried(b, seconds) / (mb * 1e6) - 1) for _ in range(runs)]
                        name = f"{direction}_{mb:g}_mb_per_s"
                        result[name] = {
                            "error_percent": round(statistics.median(errors), 2),
                            "error_percent_worst": round(max(map(abs, errors)), 2),
                        }
                        print(f"{name}: {result[name]}", flush=True)
                limit(b, down="0")
                limit(a, up="10MB/s")
                time.sleep(_FIRST_SECONDS)
                before = carried(b, 3)
                limit(a, up="40MB/s")
                after = carried(b, 3)
                result["changed_10_to_40_mb_per_s"] = [
                    round(before / 1e6, 1),
                    round(after / 1e6, 1),
                ]
                result["repair"] = with_repair(a, address, cid, seconds, runs)
                print(f"repair: {result['repair']}", flush=True)
                result["never_reached_percent"] = without_limit(a, b, runs)
            finally:
                stop.set()
                limit(a, up="0")
                reader.join()
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rates", default="5,20,50", help="limits, MB/s")
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--repair", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.repair:
        trio.run(read_as_repair, *options.repair)
        return
    rates = [float(rate) for rate in options.rates.split(",")]
    with tempfile.TemporaryDirectory(prefix="dstore-bandwidth-") as work:
        result = measure(Path(work), rates, options.seconds, options.runs)
    print(json.dumps(result, indent=None if options.json else 1))


if __name__ == "__main__":
    main()
