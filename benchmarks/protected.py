"""A protected add over five node processes, and the cold fetch through a sixth one's gateway.

    python benchmarks/protected.py [--mib 512] [--runs 3] [--ranges 5] [--json]

Every run starts five fresh nodes (`dstore devnet`), adds one file of random bytes through the
first with code 3+2, so that the adder holds one slot of five, and reads it back through the
gateway of a sixth node that has been up for ten seconds and has never seen it.  Then a 1 MiB
range in the middle, each time through another fresh gateway.  The page cache is warm, all is
on one machine.  Prints medians, CPU seconds and memory by role.
"""

from __future__ import annotations

import argparse
import hashlib
import http.client
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from benchmarks.local_add import MIB, copy_and_sync, make_file, sha256

DSTORE = Path(sys.executable).with_name("dstore")
NODES = 5
CODE = "3+2"
SETTLED_SECONDS = 10
_TICKS = os.sysconf("SC_CLK_TCK")
_IMPORT = "import dstore.interfaces.daemon, dstore.interfaces.gateway.app, dstore.network.host"


class Role:
    """A node process: its CPU seconds and memory."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._proc = Path(f"/proc/{pid}")

    def cpu_seconds(self) -> float:
        fields = (self._proc / "stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS

    def peak_mib(self) -> int:
        return memory_mib(self._proc, "VmHWM")


def memory_mib(proc: Path, what: str) -> int:
    lines = (proc / "status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(what)) // 1024


def rss_after_import() -> int:
    """MiB of a process that has imported all that a daemon imports, and done nothing."""
    script = f"{_IMPORT}\nprint(open('/proc/self/status').read())"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    line = next(line for line in done.stdout.splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) // 1024


def dstore(*words: str) -> Any:
    """What a dstore command answers."""
    done = subprocess.run([DSTORE, *words, "--json"], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"dstore {' '.join(words)}: {done.stderr.strip()}")
    return json.loads(done.stdout)


@contextmanager
def devnet(directory: Path, nodes: int = NODES) -> Iterator[list[dict[str, Any]]]:
    dstore("devnet", "up", "-n", str(nodes), "--dir", str(directory))
    try:
        yield dstore("devnet", "status", "--dir", str(directory))["nodes"]
    finally:
        subprocess.run([DSTORE, "devnet", "down", "--dir", directory], capture_output=True)


@contextmanager
def fresh_gateway(home: Path, nodes: list[dict[str, Any]]) -> Iterator[tuple[Role, str]]:
    """A node that stores nothing and knows nobody but the first node, ten seconds later."""
    first = f"{nodes[0]['address']}/p2p/{nodes[0]['peer_id']}"
    settings = ["--role", "client", "--listen", "/ip4/127.0.0.1/tcp/0", "--bootstrap", first]
    dstore("init", "--home", str(home), *settings)
    process = subprocess.Popen(
        [DSTORE, "run", "--home", home, "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "DSTORE_GATEWAY_LISTEN": "127.0.0.1:0"},
    )
    try:
        assert process.stdout is not None
        ready = json.loads(process.stdout.readline())
        time.sleep(SETTLED_SECONDS)
        yield Role(process.pid), ready["gateway"]
    finally:
        process.terminate()
        process.wait(20)


def get(gateway: str, cid: str, start: int, size: int, digest: str) -> tuple[float, float]:
    """Seconds to the first byte of a range and to its end; checks the bytes."""
    return get_path(gateway, f"/ipfs/{cid}", start, size, digest)


def get_path(url: str, path: str, start: int, size: int, digest: str) -> tuple[float, float]:
    """`get` of any server's path."""
    found, buffer = hashlib.sha256(), bytearray(MIB)
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=120)
    begun = time.perf_counter()
    headers = {"Range": f"bytes={start}-{start + size - 1}"}
    connection.request("GET", path, headers=headers)
    response = connection.getresponse()
    found.update(piece := response.read1(MIB))
    first, got = time.perf_counter() - begun, len(piece)
    while count := response.readinto(buffer):
        found.update(memoryview(buffer)[:count])
        got += count
    seconds = time.perf_counter() - begun
    connection.close()
    if (response.status, got, found.hexdigest()) != (206, size, digest):
        raise SystemExit(f"GET {path}: status {response.status}, {got} bytes, not what was added")
    return first, seconds


def digest_of(path: Path, start: int, size: int) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        file.seek(start)
        for _ in range(0, size, MIB):
            digest.update(file.read(MIB))
    return digest.hexdigest()


def used(roles: list[Role], before: list[float]) -> list[float]:
    return [role.cpu_seconds() - was for role, was in zip(roles, before, strict=True)]


def one_run(work: Path, path: Path, ranges: int) -> dict[str, Any]:
    size = path.stat().st_size
    gib = size / 2**30
    with devnet(work / "devnet") as nodes, ExitStack() as stack:
        roles = [Role(node["pid"]) for node in nodes]
        before = [role.cpu_seconds() for role in roles]
        begun = time.perf_counter()
        added = dstore("add", "--home", nodes[0]["home"], "--code", CODE, str(path))
        add_seconds = time.perf_counter() - begun
        if not added["protected"]:
            raise SystemExit(f"the add was not protected: {added}")
        add_cpu = used(roles, before)
        add_peaks = [role.peak_mib() for role in roles]
        gateway, url = stack.enter_context(fresh_gateway(work / "gateway", nodes))
        roles.append(gateway)
        before = [role.cpu_seconds() for role in roles]
        _, get_seconds = get(url, added["cid"], 0, size, digest_of(path, 0, size))
        get_cpu = used(roles, before)
        middle = size // 2 + MIB // 3
        expected = digest_of(path, middle, MIB)
        first_bytes = []
        for number in range(ranges):
            with fresh_gateway(work / f"gateway-{number}", nodes) as (_, other):
                first_bytes.append(get(other, added["cid"], middle, MIB, expected)[0])
        return {
            "add_mb_per_s": size / 1e6 / add_seconds,
            "get_mb_per_s": size / 1e6 / get_seconds,
            "first_byte_ms": statistics.median(first_bytes) * 1000,
            "first_byte_ms_max": max(first_bytes) * 1000,
            "add_cpu_s_per_gib_adder": add_cpu[0] / gib,
            "add_cpu_s_per_gib_holder": statistics.mean(add_cpu[1:]) / gib,
            "get_cpu_s_per_gib_gateway": get_cpu[-1] / gib,
            "get_cpu_s_per_gib_holders_together": sum(get_cpu[:-1]) / gib,
            "peak_rss_mib_adder": add_peaks[0],
            "peak_rss_mib_holder": max(role.peak_mib() for role in roles[1:NODES]),
            "peak_rss_mib_gateway": gateway.peak_mib(),
        }


def measure(work: Path, mib: int, runs: int, ranges: int) -> dict[str, Any]:
    path = work / "file"
    make_file(path, mib)
    results, sha, copy = [], [], []
    for number in range(runs):
        with tempfile.TemporaryDirectory(prefix=f"run-{number}-", dir=work) as directory:
            results.append(one_run(Path(directory), path, ranges))
        os.sync()
        sha.append(mib * MIB / 1e6 / sha256(path))
        copy.append(mib * MIB / 1e6 / copy_and_sync(path, work / "copy"))
    medians = {
        name: round(statistics.median(one[name] for one in results), 2) for name in results[0]
    }
    return {
        "benchmark": "protected",
        "mib": mib,
        "runs": runs,
        "code": CODE,
        "nodes": NODES,
        "cores": os.cpu_count(),
        **medians,
        "rss_mib_after_import": rss_after_import(),
        "sha256_mb_per_s": round(statistics.median(sha), 1),
        "cp_fsync_mb_per_s": round(statistics.median(copy), 1),
        "each": [{name: round(value, 2) for name, value in one.items()} for one in results],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--mib", type=int, default=512, help="size of the file (default 512)")
    parser.add_argument("--runs", type=int, default=3, help="runs, each with fresh nodes")
    parser.add_argument("--ranges", type=int, default=5, help="fresh gateways a run for the range")
    parser.add_argument("--dir", type=Path, help="where to work (default: a temporary directory)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="dstore-protected-", dir=options.dir) as work:
        result = measure(Path(work), options.mib, options.runs, options.ranges)
    if options.json:
        print(json.dumps(result))
        return
    for name, value in result.items():
        if name != "each":
            print(f"{name:36} {value}")


if __name__ == "__main__":
    main()
