"""Bandwidth limits, kept or not: two real nodes, a file fetched under each limit.

    python -m benchmarks.bandwidth [--rates 5,20,50] [--seconds 10] [--runs 5] [--json]

One node has a file; another, a client without a store, reads it through its gateway for the
given seconds, while the one's `up` or the other's `down` is limited over the API (loopback
counts as the local network, so `bandwidth.lan` is on).  The figure is what the gateway's
traffic counter says the connection carried, encryption and framing included, beside the limit.
Then the limit is changed in the middle of one read.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from benchmarks.local_add import make_file
from benchmarks.protected import DSTORE, dstore

_FIRST_SECONDS = 1.0  # until the read flows


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
    options = parser.parse_args()
    rates = [float(rate) for rate in options.rates.split(",")]
    with tempfile.TemporaryDirectory(prefix="dstore-bandwidth-") as work:
        result = measure(Path(work), rates, options.seconds, options.runs)
    print(json.dumps(result, indent=None if options.json else 1))


if __name__ == "__main__":
    main()
