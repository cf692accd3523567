"""The DHT's core on thousands of simulated nodes, and among Sybils.

    python benchmarks/dht_sim.py run --nodes 10000 [--out FILE]    # appends, one row a line
    python benchmarks/dht_sim.py sessions --nodes 300 --out FILE
    python benchmarks/dht_sim.py burst --nodes 1000 10000 --keys 1000 --out FILE
    python benchmarks/dht_sim.py sybils --out FILE
    python benchmarks/dht_sim.py table FILE
    python benchmarks/dht_sim.py plot FILE --out docs/performance

The figures are those of a model (`dstore/testing/dht_simulation.py`) and depend on nothing
but the seed; only `wall` is measured.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

from dstore.limits import KAD_BUCKET
from dstore.testing.dht_burst import Burst
from dstore.testing.dht_churn import Churn
from dstore.testing.dht_simulation import Outcome, Simulation, add_sybils

Row = dict[str, Any]
CONDITIONS = ("0 % dead", "10 % dead", "30 % dead", "50 % dead", "30 % replaced")
LOOKUPS = 200
PROVIDES = 100
BURST_CONDITIONS = ("0 % dead", "30 % dead")
SESSION_MINUTES = (15, 60, 240)
_MINUTE = 60.0


def fresh_key(sim: Simulation) -> bytes:
    return b"\x12\x20" + sim.random.randbytes(32)


def percentile(values: list[float], part: float) -> float:
    return sorted(values)[min(int(len(values) * part), len(values) - 1)]


def churn(sim: Simulation, condition: str) -> None:
    """Nodes die; where they are replaced, as many join through living ones."""
    nodes = list(sim.nodes.values())
    number = len(nodes) * int(condition.split()[0]) // 100
    for node in sim.random.sample(nodes, number):
        node.alive = False
    if "replaced" in condition:
        living = [node for node in nodes if node.alive]
        for newcomer in sim.grow(number):
            sim.join(newcomer, sim.random.choice(living))


def times(outcomes: list[Outcome], name: str) -> Row:
    seconds = [one.seconds for one in outcomes]
    return {
        f"{name}_messages": statistics.fmean(one.messages for one in outcomes),
        f"{name}_p50": percentile(seconds, 0.5),
        f"{name}_p95": percentile(seconds, 0.95),
    }


def measure(nodes: int, condition: str, seed: int) -> Row:
    """One row: records provided, then churn, then lookups, provides and finds."""
    began = time.perf_counter()
    sim = Simulation(seed)
    sim.fill_tables(sim.grow(nodes))
    everybody = list(sim.nodes.values())
    early = [fresh_key(sim) for _ in range(PROVIDES)]
    for key in early:
        sim.provide(sim.random.choice(everybody), key)
    churn(sim, condition)
    living = [node for node in sim.nodes.values() if node.alive]
    lookups, recalls = [], []
    for _ in range(LOOKUPS):
        node, key = sim.random.choice(living), fresh_key(sim)
        lookups.append(sim.search(node, key))
        true = sim.true_closest(key, node)
        recalls.append(len(set(lookups[-1].closest) & set(true)) / len(true))
    late = [fresh_key(sim) for _ in range(PROVIDES)]
    provides = [sim.provide(sim.random.choice(living), key) for key in late]

    def found(keys: list[bytes]) -> float:
        finds = [sim.search(sim.random.choice(living), key, providers=1) for key in keys]
        return statistics.fmean(bool(one.providers) for one in finds)

    return {
        "nodes": nodes,
        "condition": condition,
        "hops": statistics.fmean(one.hops for one in lookups),
        **times(lookups, "lookup"),
        "recall": statistics.fmean(recalls),
        **times(provides, "provide"),
        "confirmed": statistics.fmean(one.confirmed for one in provides),
        "found_early": found(early),
        "found_late": found(late),
        "wall": time.perf_counter() - began,
    }


def sessions(nodes: int, median_minutes: int, seed: int) -> Row:
    """One row: an hour for the tables to age, half an hour of lookups and provides, and the
    search for what was provided half an hour before."""
    began = time.perf_counter()
    churning = Churn(Simulation(seed), nodes, median_minutes * _MINUTE)
    churning.run(60 * _MINUTE, 30 * _MINUTE, every=10.0, find_after=30 * _MINUTE)
    report = churning.report
    return {
        "nodes": nodes,
        "median_session_min": median_minutes,
        "left": report.left,
        "dead_in_tables": report.dead_in_tables,
        **times(report.lookups, "lookup"),
        "recall": statistics.fmean(report.recalls),
        "found_30_min": statistics.fmean(report.found),
        "upkeep": report.upkeep_messages / nodes / 120,
        "wall": time.perf_counter() - began,
    }


def burst(nodes: int, condition: str, keys: int, seed: int) -> Row:
    """One row: many keys provided by one node, and how many living nodes then have each."""
    began = time.perf_counter()
    sim = Simulation(seed)
    everybody = sim.grow(nodes)
    sim.fill_tables(everybody)
    churn(sim, condition)
    living = [node for node in everybody if node.alive]
    provider = sim.random.choice(living)
    wanted = [fresh_key(sim) for _ in range(keys)]
    report = Burst(sim, provider, wanted).run()
    others = [node for node in living if node is not provider]
    recalls = []
    for key in wanted:
        true = sim.true_closest(key, provider)
        has = [bool(sim.nodes[peer].store.providers(key, sim.now)) for peer in true]
        recalls.append(statistics.fmean(has))
    return {
        "nodes": nodes,
        "condition": condition,
        "keys": keys,
        "key_messages": report.messages / keys,
        "lookups": report.lookups,
        "burst_seconds": report.seconds,
        "told_again": report.told_again,
        "confirmed_min": min(report.confirmed.values()),
        "replicas_min": min(
            sum(bool(node.store.providers(key, sim.now)) for node in others) for key in wanted
        ),
        "closest_mean": statistics.fmean(recalls),
        "closest_min": min(recalls),
        "wall": time.perf_counter() - began,
    }


def sybils(seeds: int, *, diverse: bool, subnets: int) -> Row:
    """200 honest nodes, 20 liars next to the key, for each seed."""
    good, found, confirmed, messages = [], [], [], []
    for seed in range(seeds):
        sim = Simulation(seed, diverse=diverse)
        nodes = sim.grow(200)
        key = fresh_key(sim)
        numbers = [(101 + i, 10 + j) for j in range(10) for i in range(subnets)]
        add_sybils(sim, key, 20, [f"/ip4/{a}.7.{b}.7/tcp/4001" for a, b in numbers])
        sim.fill_tables(nodes)
        confirmed.append(sim.provide(sim.random.choice(nodes), key).confirmed)
        for node in sim.random.sample(nodes, 10):
            lookup = sim.search(node, key)
            messages.append(lookup.messages)
            nearest = sim.true_closest(key, node)[: KAD_BUCKET // 4]
            good.append(set(nearest) <= set(lookup.closest))
            found.append(bool(sim.search(node, key, providers=1).providers))
    return {
        "sybils": f"20 in {subnets} /16",
        "limits": "on" if diverse else "off",
        "lookups": statistics.fmean(good),
        "found": statistics.fmean(found),
        "confirmed_min": min(confirmed),
        "messages": statistics.fmean(messages),
    }


HEADS = {
    "nodes": "nodes",
    "condition": "condition",
    "hops": "hops",
    "lookup_messages": "messages / lookup",
    "lookup_p50": "lookup p50 s",
    "lookup_p95": "p95 s",
    "recall": "recall of the k closest",
    "provide_messages": "messages / provide",
    "provide_p50": "provide p50 s",
    "provide_p95": "p95 s",
    "confirmed": "confirmed of 20",
    "found_early": "found, provided before",
    "found_late": "found, provided after",
    "median_session_min": "median session, min",
    "left": "nodes that left",
    "dead_in_tables": "of the tables, dead",
    "found_30_min": "found after 30 min",
    "upkeep": "upkeep, messages a minute and node",
    "keys": "keys",
    "key_messages": "messages / key",
    "lookups": "look-ups",
    "burst_seconds": "all confirmed after s",
    "told_again": "keys told again",
    "confirmed_min": "of the worst key, confirmed copies",
    "replicas_min": "counted at living nodes",
    "closest_mean": "of the 20 closest, told",
    "closest_min": "of the worst key",
    "wall": "run s",
}


def table(rows: list[Row]) -> str:
    """Markdown; one table for each kind of row."""
    lines: list[str] = []
    previous: list[str] = []
    for row in rows:
        if list(row) != previous:
            previous = list(row)
            heads = [HEADS.get(name, name) for name in previous]
            lines += ["", f"| {' | '.join(heads)} |", "| --- " * len(heads) + "|"]
        cells = [f"{v:.3g}" if isinstance(v, float) else str(v) for v in row.values()]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines).strip()


def plot(rows: list[Row], out: Path) -> None:
    """One picture of small plots: each figure against the size, a line for each condition."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.fonttype"] = "none"
    mpl.rcParams["svg.hashsalt"] = "dstore"
    from matplotlib import pyplot

    shown = ("hops", "lookup_messages", "lookup_p50", "lookup_p95", "recall", "found_early")
    figure, axes = pyplot.subplots(2, 3, figsize=(10, 5.4))
    for axis, name in zip(axes.flat, shown, strict=True):
        for condition in CONDITIONS:
            some = [row for row in rows if row.get("condition") == condition]
            sizes = [row["nodes"] for row in some]
            axis.plot(sizes, [row[name] for row in some], marker="o", label=condition)
        axis.set_xscale("log")
        axis.set_ylim(0, 1.05 * max(row[name] for row in rows if name in row))
        axis.set_title(HEADS[name].replace("p95", "lookup p95").replace("lookup lookup", "lookup"))
    axes.flat[0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(out / "dht-simulation.svg", metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("part", choices=("run", "sessions", "burst", "sybils", "table", "plot"))
    parser.add_argument("file", type=Path, nargs="?")
    parser.add_argument("--nodes", type=int, nargs="+", default=[100, 1000])
    parser.add_argument("--conditions", nargs="+", default=CONDITIONS)
    parser.add_argument("--keys", type=int, default=1000, help="of a burst")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, help="append rows to this file; plot: a folder")
    options = parser.parse_args()
    if options.part in ("table", "plot"):
        rows = [json.loads(line) for line in options.file.read_text("utf-8").splitlines()]
        if options.part == "table":
            print(table(rows))
        else:
            plot(rows, options.out)
        return
    if options.part == "run":
        made = (measure(n, c, options.seed) for n in options.nodes for c in options.conditions)
    elif options.part == "sessions":
        made = (sessions(n, m, options.seed) for n in options.nodes for m in SESSION_MINUTES)
    elif options.part == "burst":
        cells = [(n, c) for n in options.nodes for c in BURST_CONDITIONS]
        made = (burst(n, c, options.keys, options.seed) for n, c in cells)
    else:
        cases = [(diverse, subnets) for subnets in (2, 4, 6, 8) for diverse in (True, False)]
        made = (sybils(20, diverse=d, subnets=n) for d, n in cases)
    for row in made:
        print(json.dumps(row), flush=True)
        if options.out is not None:
            with options.out.open("a", encoding="utf-8") as results:
                results.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
