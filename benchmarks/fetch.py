"""Cold fetches through fresh gateways from five holders: healthy, and with two of them sick.

    python -m benchmarks.fetch [--mib 512] [--runs 5] [--modes healthy,dead,stopped,lying]
                               [--ranges 5] [--small 500] [--json]

Six node processes; the sixth adds one file of random bytes with code 3+2, whose slots the
other five hold, and is killed.  Each run reads the whole file through the gateway of a node
that has been up for some seconds and has never seen it, checked against the file's digest.
In the other modes the holders of the data slots 0 and 1, the most that the code bears, are
killed, stopped (SIGSTOP) or replaced by a process that sends damaged blocks.  Then the first
byte of the whole file and of 1 MiB in its middle, and small files: of a directory, and each a
root of its own.  The modes take turns; prints medians, and medians of the ratios to the
healthy run of the same round.
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
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from benchmarks.http_files import fetch_all
from benchmarks.local_add import MIB, make_file
from benchmarks.protected import CODE, Role, devnet, digest_of, dstore, fresh_gateway, get

HOLDERS = 5
_SICK_SLOTS = (0, 1)
_SMALL_BYTES = 4096
_CLIENTS = 8
_WARM_TURNS = 3
_NOTICED_SECONDS = 2  # the dead are not connected any more; the stopped look as ever

Nodes = list[dict[str, Any]]


def holder_names(nodes: Nodes, cid: str) -> dict[int, str]:
    """Which node holds which slot of the file's first segment."""
    by_peer = {node["peer_id"]: node["name"] for node in nodes}
    status = dstore("status", "--home", nodes[-1]["home"], cid)
    found = {}
    for slot in status["segments"][0]["slots"]:
        for holder in slot["holders"]:
            found[int(slot["slot"])] = by_peer[holder]
    return found


@contextmanager
def sick(directory: Path, nodes: Nodes, names: list[str], mode: str) -> Iterator[None]:
    """The named nodes dead, stopped or lying within the block; well again after it."""
    words = {"dead": "kill", "lying": "kill", "stopped": "pause"}
    for name in names if mode in words else []:
        dstore("devnet", words[mode], name, "--dir", str(directory))
    liars = []
    if mode == "lying":
        for node in (node for node in nodes if node["name"] in names):
            command = [sys.executable, "-m", "benchmarks.liar", node["home"]]
            liars.append(
                subprocess.Popen(
                    command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
                )
            )
        for liar in liars:
            assert liar.stdout is not None
            liar.stdout.readline()  # ready
    time.sleep(_NOTICED_SECONDS)
    try:
        yield
    finally:
        for liar in liars:
            liar.terminate()
            liar.wait(20)
        if mode == "stopped":
            for name in names:
                dstore("devnet", "resume", name, "--dir", str(directory))
        elif mode in words:
            dstore("devnet", "up", "-n", str(len(nodes)), "--dir", str(directory))
            dstore("devnet", "kill", nodes[-1]["name"], "--dir", str(directory))


def whole(work: Path, nodes: Nodes, cid: str, size: int, digest: str) -> dict[str, float]:
    """One cold read of the whole file."""
    holders = [Role(node["pid"]) for node in nodes[:-1] if Path(f"/proc/{node['pid']}").exists()]
    with fresh_gateway(work, nodes) as (gateway, url):
        before = [gateway.cpu_seconds(), sum(role.cpu_seconds() for role in holders)]
        first, seconds = get(url, cid, 0, size, digest)
        after = [gateway.cpu_seconds(), sum(role.cpu_seconds() for role in holders)]
        gib = size / 2**30
        return {
            "mb_per_s": size / 1e6 / seconds,
            "mb_per_s_once_begun": size / 1e6 / (seconds - first),
            "first_byte_ms": 1000 * first,
            "gateway_cpu_s_per_gib": (after[0] - before[0]) / gib,
            "holders_cpu_s_per_gib": (after[1] - before[1]) / gib,
            "gateway_peak_mib": gateway.peak_mib(),
        }


def small(work: Path, count: int, runs: int) -> dict[str, float]:
    """Files of 4 KiB, cold: `count` roots one by one; those of one directory, by eight
    clients at once, and as one `dstore get`.  `again`: those of the directory once more."""
    tree = work / "tree"
    tree.mkdir()
    for number in range(count):
        (tree / f"{number:05}").write_bytes(os.urandom(_SMALL_BYTES))
    alone = [tree / f"{number:05}" for number in range(count)]
    rows: list[dict[str, float]] = []
    with devnet(work / "small", HOLDERS + 1) as nodes:
        home = nodes[-1]["home"]
        root = dstore("add", "--home", home, "--code", CODE, str(tree))["cid"]
        roots = [dstore_add_api(Path(home), path.read_bytes()) for path in alone]
        dstore("devnet", "kill", nodes[-1]["name"], "--dir", str(work / "small"))
        for run in range(runs):
            row = {}
            with fresh_gateway(work / f"one-{run}", nodes) as (_, url):
                paths = [f"/ipfs/{cid}" for cid in roots]
                row["roots_per_s"] = count / fetch_all(url, paths, 1, _SMALL_BYTES)
            with fresh_gateway(work / f"many-{run}", nodes) as (_, url):
                paths = [f"/ipfs/{root}/{path.name}" for path in alone]
                row["of_directory_per_s"] = count / fetch_all(url, paths, _CLIENTS, _SMALL_BYTES)
                warm = [fetch_all(url, paths, _CLIENTS, _SMALL_BYTES) for _ in range(_WARM_TURNS)]
                row["again_per_s"] = count / statistics.median(warm)
            target = work / f"got-{run}"
            with fresh_gateway(work / f"get-{run}", nodes):
                begun = time.perf_counter()
                dstore("get", "--home", str(work / f"get-{run}"), root, "-o", str(target))
                row["get_directory_per_s"] = count / (time.perf_counter() - begun)
            for path in alone:
                if (target / path.name).read_bytes() != path.read_bytes():
                    raise SystemExit(f"{path.name} came back different")
            rows.append(row)
    return {name: statistics.median(row[name] for row in rows) for name in rows[0]}


def dstore_add_api(home: Path, data: bytes) -> str:
    """Add bytes as a root of its own, over the API: no process a file."""
    told = json.loads((home / "api.json").read_text())
    connection = http.client.HTTPConnection(urlsplit(told["url"]).netloc, timeout=60)
    headers = {
        "Authorization": f"Bearer {told['token']}",
        "Content-Type": "application/octet-stream",
    }
    connection.request("POST", f"/v1/add?code={CODE.replace('+', '%2B')}", data, headers)
    lines = connection.getresponse().read().decode().strip().splitlines()
    connection.close()
    return str(json.loads(lines[-1])["result"]["cid"])


def _summary(rows: list[dict[str, float]], healthy: list[dict[str, float]]) -> dict[str, Any]:
    """Medians, and what it came to beside the healthy runs of the same rounds."""
    summary: dict[str, Any] = {
        name: round(statistics.median(row[name] for row in rows), 2) for name in rows[0]
    }
    for name in ("mb_per_s", "first_byte_ms"):
        summary[f"{name}_each"] = [round(row[name], 1) for row in rows]
    pairs = list(zip(rows, healthy, strict=bool(healthy)))
    if pairs:
        for name in ("mb_per_s", "mb_per_s_once_begun"):
            ratios = [row[name] / well[name] for row, well in pairs]
            summary[f"{name}_of_healthy"] = round(statistics.median(ratios), 2)
            summary[f"{name}_of_healthy_each"] = [round(ratio, 2) for ratio in ratios]
        later = [row["first_byte_ms"] - well["first_byte_ms"] for row, well in pairs]
        summary["added_delay_ms"] = round(statistics.median(later), 1)
    return summary


def large(work: Path, mib: int, runs: int, ranges: int, modes: list[str]) -> dict[str, Any]:
    """The whole file in every mode, and the range in the middle."""
    path = work / "file"
    make_file(path, mib)
    size = path.stat().st_size
    digest = digest_of(path, 0, size)
    result: dict[str, Any] = {}
    with devnet(work / "net", HOLDERS + 1) as nodes:
        cid = dstore("add", "--home", nodes[-1]["home"], "--code", CODE, str(path))["cid"]
        holders = holder_names(nodes, cid)
        names = [holders[slot] for slot in _SICK_SLOTS]
        dstore("devnet", "kill", nodes[-1]["name"], "--dir", str(work / "net"))
        rows: dict[str, list[dict[str, float]]] = {mode: [] for mode in modes}
        # In turns: the machine is faster in one minute than in another.
        for run in range(runs):
            for mode in modes:
                current = dstore("devnet", "status", "--dir", str(work / "net"))["nodes"]
                first = [node for node in current if node["name"] not in names]
                ordered = [*first[:-1], *(n for n in current if n["name"] in names), current[-1]]
                with sick(work / "net", current, names, mode):
                    rows[mode].append(whole(work / f"{mode}-{run}", ordered, cid, size, digest))
                print(f"{mode}: {rows[mode][-1]}", file=sys.stderr, flush=True)
        for mode in modes:
            result[mode] = _summary(rows[mode], rows.get("healthy", []))
        middle, firsts = size // 2 + MIB // 3, []
        expected = digest_of(path, middle, MIB)
        for run in range(ranges):
            with fresh_gateway(work / f"range-{run}", nodes) as (_, url):
                firsts.append(1000 * get(url, cid, middle, MIB, expected)[0])
        if firsts:
            result["range_first_byte_ms"] = round(statistics.median(firsts), 1)
            result["range_first_byte_ms_max"] = round(max(firsts), 1)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--mib", type=int, default=512, help="size of the file (default 512)")
    parser.add_argument("--runs", type=int, default=5, help="fresh gateways for each figure")
    parser.add_argument("--ranges", type=int, default=5, help="fresh gateways for the range")
    parser.add_argument("--small", type=int, default=500, help="small files (0: none)")
    parser.add_argument("--modes", default="healthy,dead,stopped,lying", help="'' for none")
    parser.add_argument("--dir", type=Path, help="where to work (default: a temporary directory)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    modes = [mode for mode in options.modes.split(",") if mode]
    result: dict[str, Any] = {"benchmark": "fetch", "mib": options.mib, "code": CODE}
    with tempfile.TemporaryDirectory(prefix="dstore-fetch-", dir=options.dir) as name:
        work = Path(name)
        if modes or options.ranges:
            result |= large(work, options.mib, options.runs, options.ranges, modes)
        if options.small:
            result["small"] = {
                key: round(value, 1)
                for key, value in small(work, options.small, options.runs).items()
            }
    print(json.dumps(result, indent=None if options.json else 1))


if __name__ == "__main__":
    main()
