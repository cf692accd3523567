"""dstore itself: code 3+2; six nodes, of which the sixth adds and the other five hold the slots."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import trio

from benchmarks.fetch import HOLDERS, Nodes, dstore_add_api, holder_names, sick
from benchmarks.http_files import fetch_all
from benchmarks.local_add import add
from benchmarks.peers.measure import Trees, beside_sick, local_add, middle, whole
from benchmarks.peers.peer import SMALL_BYTES, Load, Peer, Row
from benchmarks.protected import CODE, devnet, dstore, fresh_gateway

_SICK_SLOTS = (0, 1)
CLIENTS = 8


def local_row(path: str, home: str) -> None:
    """Prints the figures of one local add; run as a process, for its memory."""
    seconds, cpu = trio.run(add, Path(path), Path(home))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(json.dumps({"seconds": seconds, "cpu_seconds": cpu, "peak_mib": peak}))


def local(work: Path, load: Load) -> Row:
    script = (
        "from benchmarks.peers.dstore import local_row;"
        f"local_row({str(load.path)!r}, {str(work / 'home')!r})"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr[-500:])
    return local_add(load, json.loads(done.stdout))


def five(work: Path, load: Load) -> Row:
    """A coded add where the adder is one of five nodes and keeps one slot of the five."""
    with devnet(work / "net") as nodes:
        begun = time.perf_counter()
        added = dstore("add", "--home", nodes[0]["home"], "--code", CODE, str(load.path))
        seconds = time.perf_counter() - begun
        if not added["protected"]:
            raise SystemExit(f"the add was not protected: {added}")
    return {"own_slot_add_mb_per_s": load.size / 1e6 / seconds}


@contextmanager
def _added(work: Path, load: Load, row: Row) -> Iterator[tuple[Nodes, str, list[str]]]:
    """Six nodes, of which the sixth has added the file and is dead; the CID; who has slots 0, 1."""
    with devnet(work / "net", HOLDERS + 1) as nodes:
        trees = Trees(*(node["pid"] for node in nodes))
        begun = time.perf_counter()
        added = dstore("add", "--home", nodes[-1]["home"], "--code", CODE, str(load.path))
        row["coded_add_mb_per_s"] = load.size / 1e6 / (time.perf_counter() - begun)
        row["coded_add_cpu_s_per_gib"] = trees.cpu_seconds() / load.gib
        row["adder_peak_mib"] = Trees(nodes[-1]["pid"]).peak_mib()
        if not added["protected"]:
            raise SystemExit(f"the add was not protected: {added}")
        slots = holder_names(nodes, added["cid"])
        dstore("devnet", "kill", nodes[-1]["name"], "--dir", str(work / "net"))
        yield nodes, str(added["cid"]), [slots[slot] for slot in _SICK_SLOTS]


def large(work: Path, load: Load) -> Row:
    row: Row = {}
    with _added(work, load, row) as (nodes, cid, _):
        holders = Trees(*(node["pid"] for node in nodes[:-1]))
        with fresh_gateway(work / "whole", nodes) as (gateway, url):
            row |= whole(url, f"/ipfs/{cid}", load, Trees(gateway.pid), holders)
        with fresh_gateway(work / "range", nodes) as (_, url):
            row |= middle(url, f"/ipfs/{cid}", load)
    return row


def sick_holders(work: Path, load: Load) -> Row:
    """The holders of two data slots stopped, then killed, before the gateway starts."""
    row: Row = {}
    with _added(work, load, {}) as (_, cid, names):
        for mode in ("stopped", "dead"):
            current: Nodes = dstore("devnet", "status", "--dir", str(work / "net"))["nodes"]
            well = [node for node in current[:-1] if node["name"] not in names]
            with sick(work / "net", current, names, mode):
                with fresh_gateway(work / mode, well) as (gateway, url):
                    trees = Trees(*(node["pid"] for node in well))
                    found = whole(url, f"/ipfs/{cid}", load, Trees(gateway.pid), trees)
            row |= beside_sick(mode, found)
    return row


def small(work: Path, load: Load) -> Row:
    with devnet(work / "net", HOLDERS + 1) as nodes:
        home = Path(nodes[-1]["home"])
        bodies = load.bodies()
        begun = time.perf_counter()
        roots = [dstore_add_api(home, body) for body in bodies]
        alone = time.perf_counter() - begun
        begun = time.perf_counter()
        root = dstore("add", "--home", str(home), "--code", CODE, str(load.tree))["cid"]
        together = time.perf_counter() - begun
        dstore("devnet", "kill", nodes[-1]["name"], "--dir", str(work / "net"))
        with fresh_gateway(work / "each", nodes) as (_, url):
            each = fetch_all(url, [f"/ipfs/{cid}" for cid in roots], 1, SMALL_BYTES)
        with fresh_gateway(work / "tree", nodes) as (_, url):
            paths = [f"/ipfs/{root}/{path.name}" for path in load.names()]
            tree = fetch_all(url, paths, CLIENTS, SMALL_BYTES)
    return {
        "small_put_per_s": load.small / alone,
        "small_put_together_per_s": load.small / together,
        "small_get_per_s": load.small / each,
        "small_get_together_per_s": load.small / tree,
    }


PEER = Peer(
    prepare=lambda: version("dstore"),
    parts={
        "local": local,
        "five": five,
        "large": large,
        "sick": sick_holders,
        "small": small,
    },
)
