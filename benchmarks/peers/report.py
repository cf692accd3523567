"""From the measured rows to a table: medians with their spread, ratios, and the targets.

A line of a results file is one part of one run of one system, as JSON: its `row`, or why there
is none (`failed`), or why the system is not there (`unavailable`).
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Line = dict[str, Any]
Summary = dict[str, dict[str, Any]]

OURS = "dstore"


@dataclass(frozen=True)
class Figure:
    """What a figure is called, and whether more of it is better."""

    title: str
    more: bool = True


FIGURES = {
    "local_add_mb_per_s": Figure("local add, MB/s"),
    "coded_add_mb_per_s": Figure("add, 3-of-5 to five other processes, MB/s"),
    "own_slot_add_mb_per_s": Figure("add, 3-of-5 on five processes, of which one adds, MB/s"),
    "fetch_mb_per_s": Figure("cold fetch, MB/s"),
    "stopped_fetch_mb_per_s": Figure("cold fetch, two of five holders stopped, MB/s"),
    "dead_fetch_mb_per_s": Figure("cold fetch, two of five holders dead, MB/s"),
    "first_byte_ms": Figure("first byte of the file, ms", more=False),
    "stopped_first_byte_ms": Figure("first byte, two stopped, ms", more=False),
    "dead_first_byte_ms": Figure("first byte, two dead, ms", more=False),
    "range_first_byte_ms": Figure("first byte of 1 MiB in the middle, ms", more=False),
    "range_ms": Figure("1 MiB in the middle, ms", more=False),
    "small_put_per_s": Figure("4 KiB, coded to five, one by one, files/s"),
    "small_put_together_per_s": Figure("4 KiB, coded to five, a directory, files/s"),
    "small_add_per_s": Figure("4 KiB, added locally, one by one, files/s"),
    "small_add_together_per_s": Figure("4 KiB, added locally, a directory, files/s"),
    "small_get_per_s": Figure("4 KiB, cold, one by one, files/s"),
    "small_get_together_per_s": Figure("4 KiB, cold, of a directory, files/s"),
    "holder_peak_mib": Figure("peak memory of a holder, MiB", more=False),
    "gateway_peak_mib": Figure("peak memory of who fetches, MiB", more=False),
    "adder_peak_mib": Figure("peak memory of who adds coded, MiB", more=False),
    "local_add_peak_mib": Figure("peak memory of a local add, MiB", more=False),
    "local_add_cpu_s_per_gib": Figure("CPU of a local add, s/GiB", more=False),
    "coded_add_cpu_s_per_gib": Figure("CPU of a coded add, all processes, s/GiB", more=False),
    "fetch_cpu_s_per_gib": Figure("CPU of a cold fetch, all processes, s/GiB", more=False),
    "cp_fsync_mb_per_s": Figure("the disk: cp + fsync of the file before each part, MB/s"),
}

# What is asked of dstore: the figure, beside whom, and how many times as much.
TARGETS = (
    ("coded_add_mb_per_s", "tahoe", 3.0),
    ("own_slot_add_mb_per_s", "tahoe", 3.0),
    ("fetch_mb_per_s", "tahoe", 5.0),
    ("fetch_mb_per_s", "iroh", 2.0),
    ("fetch_mb_per_s", "helia", 2.0),
)

PLOTTED = (
    "local_add_mb_per_s",
    "coded_add_mb_per_s",
    "fetch_mb_per_s",
    "stopped_fetch_mb_per_s",
    "first_byte_ms",
    "range_ms",
    "small_get_per_s",
    "gateway_peak_mib",
)


def read(paths: Iterable[Path]) -> list[Line]:
    """The lines of results files; what a later file says of a system replaces what was said."""
    found: list[Line] = []
    for path in paths:
        new = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
        again = {line["system"] for line in new}
        found = [line for line in found if line["system"] not in again] + new
    return found


def summarise(lines: Iterable[Line]) -> Summary:
    """For each system: its version, the figures, and what went wrong."""
    summary: Summary = {}
    values: dict[str, dict[str, list[float]]] = {}
    for line in lines:
        name = line["system"]
        about = summary.setdefault(name, {"figures": {}, "failed": []})
        for key in ("version", "unavailable"):
            if key in line:
                about[key] = line[key]
        if "failed" in line:
            about["failed"].append(f"{line['part']}: {line['failed']}")
        for figure, value in line.get("row", {}).items():
            values.setdefault(name, {}).setdefault(figure, []).append(value)
    for name, figures in values.items():
        for figure, each in figures.items():
            summary[name]["figures"][figure] = {
                "median": round(statistics.median(each), 2),
                "min": round(min(each), 2),
                "max": round(max(each), 2),
                "runs": len(each),
                "each": [round(value, 2) for value in each],
            }
    return summary


def median(summary: Summary, name: str, figure: str) -> float | None:
    found = summary.get(name, {}).get("figures", {}).get(figure)
    return None if found is None else float(found["median"])


def times(summary: Summary, name: str, figure: str) -> float | None:
    """How many times better dstore's median is than the system's."""
    ours, theirs = median(summary, OURS, figure), median(summary, name, figure)
    if not ours or not theirs:
        return None
    return ours / theirs if FIGURES[figure].more else theirs / ours


def targets(summary: Summary) -> list[dict[str, Any]]:
    """Each target with the ratio of the medians and whether it holds; None: not measured.

    `by_round` has the ratio of each round, in which both had the same machine.
    """
    found = []
    for figure, name, factor in TARGETS:
        ratio = times(summary, name, figure)
        ours, theirs = (
            summary.get(who, {}).get("figures", {}).get(figure, {}).get("each", [])
            for who in (OURS, name)
        )
        found.append(
            {
                "figure": figure,
                "beside": name,
                "target": factor,
                "ratio": None if ratio is None else round(ratio, 2),
                "by_round": [round(a / b, 2) for a, b in zip(ours, theirs, strict=False)],
                "holds": None if ratio is None else ratio >= factor,
            }
        )
    return found


def result(lines: list[Line]) -> dict[str, Any]:
    """All of it as one JSON object."""
    summary = summarise(lines)
    better = {
        name: {
            figure: round(ratio, 2)
            for figure in about["figures"]
            if figure in FIGURES and (ratio := times(summary, name, figure)) is not None
        }
        for name, about in summary.items()
        if name != OURS
    }
    sizes = sorted({line["mib"] for line in lines if "mib" in line})
    return {
        "benchmark": "peers",
        "mib": sizes,
        "cores": sorted({line["cores"] for line in lines if "cores" in line}),
        "systems": summary,
        "times_better": better,
        "targets": targets(summary),
    }


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _cell(found: dict[str, float] | None) -> str:
    if found is None:
        return ""
    low, high = _number(found["min"]), _number(found["max"])
    if found["runs"] == 1:
        return _number(found["median"])
    return f"{_number(found['median'])} ({low} to {high})"


def markdown(summary: Summary) -> str:
    """Medians with the least and the most of all runs, a column a system; then the targets."""
    names = [name for name, about in summary.items() if about["figures"]]
    heads = [f"{name} {summary[name].get('version', '')}".strip() for name in names]
    lines = ["| | " + " | ".join(heads) + " |", "| --- |" + " --- |" * len(names)]
    for figure, about in FIGURES.items():
        cells = [_cell(summary[name]["figures"].get(figure)) for name in names]
        if any(cells):
            lines.append(f"| {about.title} | " + " | ".join(cells) + " |")
    lines += ["", "| target | asked | measured | by round | |", "| --- |" + " --- |" * 4]
    for one in targets(summary):
        title = f"{FIGURES[one['figure']].title} / {one['beside']}"
        measured = "not measured" if one["ratio"] is None else f"{one['ratio']:.2f}"
        word = {None: "", True: "holds", False: "missed"}[one["holds"]]
        rounds = ", ".join(f"{ratio:.2f}" for ratio in one["by_round"])
        lines.append(f"| {title} | >= {one['target']:g} | {measured} | {rounds} | {word} |")
    notes = [f"{name}: {about['unavailable']}" for name, about in not_there(summary)]
    notes += [f"{name}, {what}" for name, about in summary.items() for what in about["failed"]]
    return "\n".join([*lines, "", *(f"- Not measured: {note}" for note in notes)]).rstrip() + "\n"


def not_there(summary: Summary) -> list[tuple[str, dict[str, Any]]]:
    return [(name, about) for name, about in summary.items() if "unavailable" in about]


def plot(summary: Summary, path: Path) -> None:
    """A bar for each system in small plots, with lines from the least to the most."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.fonttype"] = "none"  # letters as text: a quarter of the size
    mpl.rcParams["svg.hashsalt"] = "dstore"  # the same figures draw the same bytes
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, len(PLOTTED) // 2, figsize=(12, 5))
    for axis, name in zip(axes.flat, PLOTTED, strict=True):
        rows = {
            who: about["figures"][name]
            for who, about in summary.items()
            if name in about["figures"]
        }
        middles = [row["median"] for row in rows.values()]
        low = [row["median"] - row["min"] for row in rows.values()]
        high = [row["max"] - row["median"] for row in rows.values()]
        colours = ["#1f77b4" if who == OURS else "#aaaaaa" for who in rows]
        axis.bar(list(rows), middles, yerr=[low, high], color=colours, capsize=2)
        axis.set_title(FIGURES[name].title, fontsize=7)
        axis.tick_params(labelsize=7)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
