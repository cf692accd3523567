"""What a daemon costs that does nothing: memory, start, processor and traffic.

    python benchmarks/daemon.py [--peers 20] [--seconds 60] [--starts 5] [--json]

Memory after import, of this program's modules alone and of the stock `import libp2p` beside
it; seconds from `dstore run` to the first answer of /healthz; then a `dstore devnet` in
which every node has the given number of peers, left alone after a minute: the share of one
core that a node uses, and the bytes that the loopback interface carries for each (sent and
received, TCP and IP headers included).  Linux only; nothing else may use loopback meanwhile.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from benchmarks.protected import DSTORE, Role, devnet, dstore, memory_mib, rss_after_import

SETTLED_SECONDS = 60
_POLL_SECONDS = 0.01
_START_SECONDS = 30


def rss_of_stock() -> int:
    """MiB of a process that has imported trio and the whole of libp2p."""
    script = "import trio, libp2p\nprint(open('/proc/self/status').read())"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    line = next(line for line in done.stdout.splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) // 1024


def start_seconds(home: Path) -> float:
    """From the command to the first answer of the gateway's port."""
    dstore("init", "--home", str(home), "--listen", "/ip4/127.0.0.1/tcp/0")
    begun = time.perf_counter()
    process = subprocess.Popen(
        [DSTORE, "run", "--home", home],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "DSTORE_GATEWAY_LISTEN": "127.0.0.1:28180"},
    )
    try:
        while time.perf_counter() < begun + _START_SECONDS:
            try:
                with urllib.request.urlopen("http://127.0.0.1:28180/healthz", timeout=5):
                    return time.perf_counter() - begun
            except (urllib.error.URLError, ConnectionError):
                time.sleep(_POLL_SECONDS)
        raise SystemExit(f"no answer within {_START_SECONDS} s")
    finally:
        process.terminate()
        process.wait(20)


def loopback_bytes() -> int:
    """Bytes that the loopback interface has carried, each counted once."""
    return int(Path("/sys/class/net/lo/statistics/tx_bytes").read_text())


def idle(work: Path, peers: int, seconds: float) -> dict[str, Any]:
    """A settled network in which each node has `peers` peers, left alone."""
    with devnet(work / "devnet", peers + 1) as nodes:
        time.sleep(SETTLED_SECONDS)
        roles = [Role(node["pid"]) for node in nodes]
        cpu, carried = [role.cpu_seconds() for role in roles], loopback_bytes()
        begun = time.monotonic()
        time.sleep(seconds)
        carried = loopback_bytes() - carried  # before asking anybody anything
        passed = time.monotonic() - begun
        used = [role.cpu_seconds() - was for role, was in zip(roles, cpu, strict=True)]
        rss = [memory_mib(Path(f"/proc/{node['pid']}"), "VmRSS") for node in nodes]
    return {
        "idle_peers": peers,
        "idle_seconds": round(passed, 1),
        "idle_cpu_percent_of_a_core": round(100 * statistics.median(used) / passed, 3),
        "idle_cpu_percent_of_a_core_max": round(100 * max(used) / passed, 3),
        # A byte carried is sent by one node and received by another.
        "idle_bytes_per_s_each": round(2 * carried / passed / len(nodes)),
        "idle_rss_mib": statistics.median(rss),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--peers", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--starts", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="dstore-daemon-") as work:
        starts = [start_seconds(Path(work) / f"start-{i}") for i in range(options.starts)]
        result = {
            "benchmark": "daemon",
            "rss_mib_after_import": rss_after_import(),
            "rss_mib_stock_libp2p": rss_of_stock(),
            "start_seconds": round(statistics.median(starts), 2),
            "start_seconds_max": round(max(starts), 2),
            **idle(Path(work), options.peers, options.seconds),
        }
    if options.json:
        print(json.dumps(result))
        return
    for name, value in result.items():
        print(f"{name:32} {value}")


if __name__ == "__main__":
    main()
