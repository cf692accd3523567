"""Other systems beside dstore: the same files, the same machine, medians and ratios.

    python -m benchmarks.peers NAME|all [--mib 512] [--small 200] [--runs 3] [--parts large,…]
                               [--json] [--append FILE] [--markdown FILE] [--plot FILE]
    python -m benchmarks.peers report FILE… [--json] [--markdown FILE] [--plot FILE]

NAME is dstore, tahoe, iroh, restic, helia or kubo.  Each is installed into a directory of its
own below ~/.cache/dstore-peers first (--runs 0 does no more), started as real processes that
can reach loopback alone, measured, and stopped.  Several runs go round: every system once, then
again.  A system that cannot be had is named with the reason, and the others are measured.
--append keeps every row in a file of JSON lines, from which `report` makes the table; what a
later file says of a system replaces what an earlier one said.  Linux only.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.local_add import copy_and_sync
from benchmarks.peers import report
from benchmarks.peers.inside import peer_named, run_part
from benchmarks.peers.peer import Unavailable, make_load

NAMES = ("dstore", "tahoe", "iroh", "restic", "helia", "kubo")


def prepared(names: list[str]) -> Iterator[report.Line]:
    """Install the systems: for each its version, or why it is not there."""
    for name in names:
        try:
            yield {"system": name, "version": peer_named(name).prepare()}
        except Unavailable as error:
            yield {"system": name, "unavailable": str(error)}


def measured(there: list[report.Line], options: argparse.Namespace) -> Iterator[report.Line]:
    """Round by round, every part of every system."""
    about = {"mib": options.mib, "small": options.small, "cores": os.cpu_count()}
    with tempfile.TemporaryDirectory(prefix="dstore-peers-", dir=options.dir) as base:
        load = make_load(Path(base), options.mib, options.small)
        for one in [one for _ in range(options.runs) for one in there]:
            for part in peer_named(one["system"]).parts:
                if options.parts and part not in options.parts.split(","):
                    continue
                line = {**one, "part": part, **about}
                with tempfile.TemporaryDirectory(prefix=f"{part}-", dir=base) as work:
                    copied = copy_and_sync(load.path, Path(work) / "copy")
                    disk = {"cp_fsync_mb_per_s": load.size / 1e6 / copied}
                    os.sync()
                    try:
                        line["row"] = disk | run_part(one["system"], part, load, Path(work))
                    except SystemExit as error:
                        line["failed"] = str(error)
                os.sync()  # what the removal left to do belongs to nobody's figure
                yield line


def keep(line: report.Line, path: Path | None) -> None:
    """Told at once, and kept at once: a run that is cut short loses nothing."""
    print(json.dumps(line), file=sys.stderr, flush=True)
    if path:
        with path.open("a") as file:
            file.write(json.dumps(line) + "\n")


def show(lines: list[report.Line], options: argparse.Namespace) -> None:
    summary = report.summarise(lines)
    if options.plot:
        report.plot(summary, options.plot)
    if options.markdown:
        options.markdown.write_text(report.markdown(summary))
    print(json.dumps(report.result(lines)) if options.json else report.markdown(summary))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("name", choices=[*NAMES, "all", "report"])
    parser.add_argument("files", type=Path, nargs="*", help="results files, for report")
    parser.add_argument("--mib", type=int, default=512, help="size of the file (default 512)")
    parser.add_argument("--small", type=int, default=200, help="small files (default 200)")
    parser.add_argument("--runs", type=int, default=3, help="rounds (0: install, no more)")
    parser.add_argument("--parts", help="local, large, range, sick, small (default: all there are)")
    parser.add_argument("--dir", type=Path, help="where to work (default: a temporary directory)")
    parser.add_argument("--append", type=Path, help="add every row to this file")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--markdown", type=Path, help="write the table here too")
    parser.add_argument("--plot", type=Path, help="write a picture (SVG) here")
    options = parser.parse_args()
    if options.name == "report":
        show(report.read(options.files), options)
        return
    lines = []
    for line in prepared(list(NAMES) if options.name == "all" else [options.name]):
        lines.append(line)
        keep(line, options.append)
    for line in measured([one for one in lines if "version" in one], options):
        lines.append(line)
        keep(line, options.append)
    show(lines, options)
    if options.name != "all" and any("unavailable" in one or "failed" in one for one in lines):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
