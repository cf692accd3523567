"""How cost grows: with nodes, with the size of a file, with blocks in a store, with roots kept.

    python benchmarks/growth.py nodes  [--counts 10,20,40]           [--json FILE]
    python benchmarks/growth.py files  [--mib 102,1024,10240]        [--json FILE]
    python benchmarks/growth.py blocks [--counts 1000,10000,…]       [--json FILE]
    python benchmarks/growth.py roots  [--counts 100,1000,10000]     [--json FILE]
    python benchmarks/growth.py plot FILE… --out docs/performance

Every part prints a table, one row a size, and the growth of each figure from the first row
to the last beside the growth of what was varied: nothing may grow faster than its input.
Traffic is what the loopback interface carried, TCP and IP headers included, in bytes and in
packets; so nothing else may use it meanwhile.  Nodes are real processes.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import random
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import urlopen

from benchmarks.local_add import MIB, make_file
from benchmarks.protected import Role, devnet, dstore, fresh_gateway, memory_mib

Row = dict[str, float]

_LO = Path("/sys/class/net/lo/statistics")
_SETTLED_SECONDS = 30
_IDLE_SECONDS = 30
_SMALL_FILE_BYTES = 4096
_STARTS = _NEWCOMERS = 5


def carried() -> tuple[int, int]:
    """Bytes and packets that loopback has carried."""
    return int((_LO / "tx_bytes").read_text()), int((_LO / "tx_packets").read_text())


@contextmanager
def traffic(row: Row, name: str, per: float) -> Iterator[None]:
    """Notes the seconds, the packets, and the bytes divided by `per` of the block."""
    before, begun = carried(), time.perf_counter()
    yield
    row[f"{name}_seconds"] = time.perf_counter() - begun
    after = carried()
    row[f"{name}_bytes_per"] = (after[0] - before[0]) / per
    row[f"{name}_packets"] = after[1] - before[1]


def rss(nodes: list[dict[str, Any]]) -> float:
    """The largest resident memory of the nodes, MiB."""
    return max(memory_mib(Path(f"/proc/{node['pid']}"), "VmRSS") for node in nodes)


def metric(node: dict[str, Any], name: str) -> float:
    """One value of the node's /metrics."""
    with urlopen(f"{node['gateway']}/metrics", timeout=60) as answer:
        for line in answer.read().decode().splitlines():
            if line.startswith(f"{name} "):
                return float(line.split()[1])
    raise SystemExit(f"{node['name']} has no metric {name}")


def catalog_bytes(nodes: list[dict[str, Any]]) -> int:
    """Bytes in use in the catalogs of all nodes, what their logs have not copied back included
    and what is free for later rows not."""
    total = 0
    for node in nodes:
        path = Path(node["home"]) / "catalog.sqlite3"
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as catalog:
            pages, free, size = (
                catalog.execute(f"PRAGMA {name}").fetchone()[0]
                for name in ("page_count", "freelist_count", "page_size")
            )
        total += (pages - free) * size
    return total


def drain(gateway: str, cid: str, size: int) -> None:
    """Read a file through a gateway, bytes dropped."""
    connection = http.client.HTTPConnection(urlsplit(gateway).netloc, timeout=600)
    connection.request("GET", f"/ipfs/{cid}")
    response = connection.getresponse()
    buffer, got = bytearray(MIB), 0
    while count := response.readinto(buffer):
        got += count
    connection.close()
    if response.status != 200 or got != size:
        raise SystemExit(f"GET {cid}: status {response.status}, {got} of {size} bytes")


# --- The four parts --------------------------------------------------------------------


def by_nodes(work: Path, count: int) -> Row:
    """A network of `count` nodes: how long it takes to start (again and again), its idle cost, one
    protected file, the cold fetch, and what it takes a further one to join."""
    row: Row = {"nodes": count}
    path, size = work / "file", 64 * MIB
    make_file(path, size // MIB)
    begun = time.perf_counter()
    with devnet(work / "net", count) as nodes:
        up = [time.perf_counter() - begun]
        time.sleep(_SETTLED_SECONDS)
        roles = [Role(node["pid"]) for node in nodes]
        before, idle = [role.cpu_seconds() for role in roles], carried()
        row["start_cpu_seconds_each"] = sum(before) / count
        time.sleep(_IDLE_SECONDS)
        after = carried()
        used = [role.cpu_seconds() - was for role, was in zip(roles, before, strict=True)]
        row["idle_cpu_percent"] = 100 * statistics.median(used) / _IDLE_SECONDS
        row["idle_bytes_per_s_each"] = 2 * (after[0] - idle[0]) / _IDLE_SECONDS / count
        row["idle_packets_per_s_each"] = 2 * (after[1] - idle[1]) / _IDLE_SECONDS / count
        with traffic(row, "add", size):
            added = dstore("add", "--home", nodes[0]["home"], "--code", "3+2", str(path))
        with fresh_gateway(work / "gateway", nodes) as (_, url), traffic(row, "fetch", size):
            drain(url, added["cid"], size)
        row["dht_records_max"] = max(metric(node, "dstore_dht_records") for node in nodes)
        row["rss_mib"] = rss(nodes)
        row["one_more_seconds"] = statistics.median(
            one_more(work / "net", count + number) for number in range(1, _NEWCOMERS + 1)
        )
    for number in range(1, _STARTS):
        begun = time.perf_counter()
        with devnet(work / f"net{number}", count):
            up.append(time.perf_counter() - begun)
    row["up_seconds"] = statistics.median(up)
    return row


def one_more(net: Path, count: int) -> float:
    """Seconds until a further node, which makes `count`, is up and connected as `devnet up` asks:
    to all others, or to twenty where there are more."""
    begun = time.perf_counter()
    dstore("devnet", "up", "-n", str(count), "--dir", str(net))
    return time.perf_counter() - begun


def by_file(work: Path, mib: int) -> Row:
    """One protected file of `mib` MiB on five nodes, and its cold fetch."""
    row: Row = {"mib": mib}
    path, size = work / "file", mib * MIB
    make_file(path, mib)
    with devnet(work / "net") as nodes:
        roles = [Role(node["pid"]) for node in nodes]
        with traffic(row, "add", size):
            added = dstore("add", "--home", nodes[0]["home"], "--code", "3+2", str(path))
        row["add_mb_per_s"] = size / 1e6 / row["add_seconds"]
        row["adder_peak_mib"] = roles[0].peak_mib()
        row["holder_peak_mib"] = max(role.peak_mib() for role in roles[1:])
        path.unlink()
        with fresh_gateway(work / "gateway", nodes) as (gateway, url):
            with traffic(row, "fetch", size):
                drain(url, added["cid"], size)
            row["fetch_mb_per_s"] = size / 1e6 / row["fetch_seconds"]
            row["gateway_peak_mib"] = gateway.peak_mib()
        time.sleep(_SETTLED_SECONDS)
        row["dht_records_per_gib"] = sum(metric(node, "dstore_dht_records") for node in nodes) / (
            mib / 1024
        )
        row["catalog_bytes_per_mib"] = catalog_bytes(nodes) / mib
    return row


def by_blocks(work: Path, count: int) -> Row:
    """`count` blocks of 1 KiB in one store, by a process of its own."""
    script = f"from benchmarks.growth import store_row; store_row({str(work / 'store')!r}, {count})"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return {"blocks": count, **json.loads(done.stdout)}


def store_row(directory: str, count: int) -> None:
    """Prints the figures of one store; run as a process, for its memory."""
    import resource

    from benchmarks.store import fresh, put_in_batches
    from dstore.storage.diskstore import open_disk_store

    home = Path(directory)
    home.mkdir()
    kept = []
    with closing(open_disk_store(home)) as store:
        begun = time.perf_counter()
        for _ in range(0, count, 1000):
            blocks = fresh(1000, 1024)
            put_in_batches(store, blocks, 1000)
            kept.append(blocks[0][0])
        put = time.perf_counter() - begun
    begun = time.perf_counter()
    with closing(open_disk_store(home)) as store:
        opened = time.perf_counter() - begun
        wanted = [random.choice(kept) for _ in range(2000)]
        begun = time.perf_counter()
        for cid in wanted:
            store.get(cid)
        get = time.perf_counter() - begun
        begun = time.perf_counter()
        usage = store.usage()
        told = time.perf_counter() - begun
        assert usage.blocks == count
        row = {
            "put_us_per_block": 1e6 * put / count,
            "get_us_per_block": 1e6 * get / len(wanted),
            "open_ms": 1000 * opened,
            "usage_ms": 1000 * told,
            "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            "disk_bytes_per_block": sum(
                one.stat().st_size for one in home.rglob("*") if one.is_file()
            )
            / count,
        }
    print(json.dumps(row))


def by_roots(work: Path, count: int) -> Row:
    """`count` small files, each a protected root of its own, kept on a network of five."""
    row: Row = {"roots": count}
    with devnet(work / "net") as nodes:
        first = nodes[0]
        told = json.loads((Path(first["home"]) / "api.json").read_text())
        connection = http.client.HTTPConnection(urlsplit(told["url"]).netloc, timeout=600)
        generator = random.Random(count)

        def add() -> None:
            connection.request(
                "POST",
                "/v1/add?code=3%2B2",
                body=generator.randbytes(_SMALL_FILE_BYTES),
                headers={
                    "Authorization": f"Bearer {told['token']}",
                    "Content-Type": "application/octet-stream",
                },
            )
            answer = connection.getresponse().read().decode().strip().splitlines()
            if not json.loads(answer[-1])["result"]["protected"]:
                raise SystemExit(f"not protected: {answer[-1]}")

        with traffic(row, "add", count):
            for _ in range(count):
                add()
        row["add_ms_per_root"] = 1000 * row.pop("add_seconds") / count
        begun = time.perf_counter()
        listed = dstore("pin", "ls", "--home", first["home"])
        row["pin_ls_seconds"] = time.perf_counter() - begun
        if len(listed["pins"] if isinstance(listed, dict) else listed) != count:
            raise SystemExit(f"{len(listed)} pins listed, {count} added")
        time.sleep(_SETTLED_SECONDS)
        role, idle = Role(first["pid"]), carried()
        before = role.cpu_seconds()
        time.sleep(_IDLE_SECONDS)
        row["idle_cpu_percent"] = 100 * (role.cpu_seconds() - before) / _IDLE_SECONDS
        row["idle_bytes_per_s_each"] = 2 * (carried()[0] - idle[0]) / _IDLE_SECONDS / len(nodes)
        row["rss_mib"] = rss(nodes)
        row["dht_records_per_root"] = (
            sum(metric(node, "dstore_dht_records") for node in nodes) / count
        )
        row["catalog_bytes_per_root"] = catalog_bytes(nodes) / count
        begun = time.perf_counter()
        dstore("devnet", "kill", first["name"], "--dir", str(work / "net"))
        dstore("devnet", "up", "-n", str(len(nodes)), "--dir", str(work / "net"))
        row["restart_seconds"] = time.perf_counter() - begun
    return row


_PARTS: dict[str, tuple[Callable[[Path, int], Row], str]] = {
    "nodes": (by_nodes, "10,20,40"),
    "files": (by_file, "102,1024,10240"),
    "blocks": (by_blocks, "1000,10000,100000,1000000"),
    "roots": (by_roots, "100,1000,10000"),
}


# --- Tables and plots ------------------------------------------------------------------


def table(rows: list[Row]) -> str:
    """Markdown: a line for each figure, a column for each size, the growth at the end."""
    varied, *figures = rows[0]
    lines = [
        "| | " + " | ".join(f"{row[varied]:,.0f} {varied}" for row in rows) + " | growth |",
        "| --- |" + " --- |" * (len(rows) + 1),
    ]
    factor = rows[-1][varied] / rows[0][varied]
    for name in figures:
        values = [row[name] for row in rows]
        growth = values[-1] / values[0] if values[0] else float("nan")
        cells = " | ".join(f"{value:,.3g}" if value < 1000 else f"{value:,.0f}" for value in values)
        lines.append(f"| {name.replace('_', ' ')} | {cells} | {growth:.2f} of {factor:g} |")
    return "\n".join(lines)


def plot(files: list[Path], out: Path) -> None:
    """One picture of small plots for each results file, both axes logarithmic."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.fonttype"] = "none"  # letters as text: a quarter of the size
    mpl.rcParams["svg.hashsalt"] = "dstore"  # the same figures draw the same bytes
    from matplotlib import pyplot

    out.mkdir(parents=True, exist_ok=True)
    for path in files:
        found = json.loads(path.read_text())
        rows: list[Row] = found["rows"]
        varied, *figures = rows[0]
        columns = 4
        height = -(-len(figures) // columns)
        figure, axes = pyplot.subplots(height, columns, figsize=(3 * columns, 2.4 * height))
        for axis, name in zip(axes.flat, figures, strict=False):
            axis.plot([row[varied] for row in rows], [row[name] for row in rows], marker="o")
            axis.set_xscale("log")
            axis.set_xticks([row[varied] for row in rows], [f"{row[varied]:,.0f}" for row in rows])
            axis.minorticks_off()
            axis.set_title(name.replace("_", " "), fontsize=8)
            axis.set_ylim(0, 1.1 * max(row[name] for row in rows) or 1)
            axis.tick_params(labelsize=7)
        for axis in list(axes.flat)[len(figures) :]:
            axis.set_axis_off()
        figure.supxlabel(varied, fontsize=8)
        figure.tight_layout()
        figure.savefig(out / f"growth-{found['part']}.svg", metadata={"Date": None})
        pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parts = parser.add_subparsers(dest="part", required=True)
    for name, (_, sizes) in _PARTS.items():
        part = parts.add_parser(name)
        part.add_argument("--counts", "--mib", dest="sizes", default=sizes)
        part.add_argument("--json", type=Path, help="write the rows to this file too")
        part.add_argument("--dir", type=Path, help="where to work")
    drawing = parts.add_parser("plot")
    drawing.add_argument("files", type=Path, nargs="+")
    drawing.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    if options.part == "plot":
        plot(options.files, options.out)
        return
    work, _ = _PARTS[options.part]
    rows = []
    for size in map(int, options.sizes.split(",")):
        with tempfile.TemporaryDirectory(prefix="dstore-growth-", dir=options.dir) as directory:
            rows.append(work(Path(directory), size))
        print(json.dumps({name: round(value, 3) for name, value in rows[-1].items()}), flush=True)
    if options.json:
        found = {"part": options.part, "cores": os.cpu_count(), "rows": rows}
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    print(table(rows))


if __name__ == "__main__":
    main()
