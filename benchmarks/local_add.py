"""A local add of one large file against SHA-256 and against cp + fsync; or of many small ones.

    python benchmarks/local_add.py [--mib 1024] [--runs 5] [--json]
    python benchmarks/local_add.py --files 3000 [--runs 5] [--json]

The add is the whole of it: read, chunk, hash, store durably, reference, pin.  All three read
the same file from the page cache, in turn, in one process, each writing to the same disk.
The ratio is against the slower of the two baselines; the target is 0.6, or 500 MB/s.  Small
files are 4 KiB each, in one directory, beside a copy of that directory and one sync.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import shutil
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import trio

from dstore.runtime import Runtime
from dstore.service.homestores import init_home, open_stores
from dstore.service.localadd import add_locally
from dstore.service.progress import AddOptions
from dstore.service.rootturns import RootTurns
from dstore.storage.layout import Home

MIB = 1 << 20
_SMALL_FILE_BYTES = 4096


def make_file(path: Path, mib: int) -> None:
    """Random bytes, on disk and in the page cache."""
    with path.open("wb") as file:
        for _ in range(mib):
            file.write(os.urandom(MIB))
        file.flush()
        os.fsync(file.fileno())


def sha256(path: Path) -> float:
    start = time.perf_counter()
    digest, buffer = hashlib.sha256(), bytearray(MIB)
    with path.open("rb", buffering=0) as file:
        while size := file.readinto(buffer):
            digest.update(memoryview(buffer)[:size])
    return time.perf_counter() - start


def copy_and_sync(path: Path, target: Path) -> float:
    start = time.perf_counter()
    shutil.copyfile(path, target)
    with target.open("rb+") as file:
        os.fsync(file.fileno())
    seconds = time.perf_counter() - start
    target.unlink()
    return seconds


async def add(path: Path, directory: Path) -> tuple[float, float]:
    """Seconds and CPU seconds of an add to a fresh node's stores."""
    runtime, home = Runtime(), Home(directory)
    await runtime.workers.run(partial(init_home, home, runtime))
    async with open_stores(home, runtime, capacity_bytes=None, reserve_bytes=0) as stores:
        start, cpu = time.perf_counter(), time.process_time()
        await add_locally(
            stores,
            RootTurns(),
            runtime,
            lambda importer: importer.add_path(path),
            AddOptions(local_only=True),
            lambda progress: None,
        )
        return time.perf_counter() - start, time.process_time() - cpu


def measure(work: Path, mib: int, runs: int) -> dict[str, Any]:
    path = work / "file"
    make_file(path, mib)
    seconds: dict[str, list[float]] = {"add": [], "sha256": [], "cp_fsync": []}
    cpu: list[float] = []
    for number in range(runs):
        home = work / f"home-{number}"
        took, used = trio.run(add, path, home)
        seconds["add"].append(took)
        cpu.append(used)
        shutil.rmtree(home)
        os.sync()  # what the removal left to do belongs to nobody's figure
        seconds["sha256"].append(sha256(path))
        seconds["cp_fsync"].append(copy_and_sync(path, work / "copy"))
        os.sync()
    size = mib * MIB / 1e6
    speed = {name: [round(size / one, 1) for one in values] for name, values in seconds.items()}
    medians = {name: statistics.median(values) for name, values in speed.items()}
    slower = min(medians["sha256"], medians["cp_fsync"])
    return {
        "benchmark": "local_add",
        "mib": mib,
        "cores": os.cpu_count(),
        "mb_per_s": speed,
        "median_mb_per_s": medians,
        "ratio": round(medians["add"] / slower, 2),
        "cpu_seconds_per_gib": round(statistics.median(cpu) * 1024 / mib, 2),
        "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }


def copy_all(path: Path, target: Path) -> float:
    """Seconds to copy a directory and to have it on disk."""
    start = time.perf_counter()
    shutil.copytree(path, target)
    os.sync()
    seconds = time.perf_counter() - start
    shutil.rmtree(target)
    return seconds


def measure_small(work: Path, count: int, runs: int) -> dict[str, Any]:
    """Many files of 4 KiB in one directory, added together."""
    path = work / "files"
    path.mkdir()
    for number in range(count):
        (path / f"{number:06}").write_bytes(os.urandom(_SMALL_FILE_BYTES))
    os.sync()
    added: list[float] = []
    copied: list[float] = []
    for number in range(runs):
        home = work / f"home-{number}"
        added.append(count / trio.run(add, path, home)[0])
        shutil.rmtree(home)
        os.sync()
        copied.append(count / copy_all(path, work / "copy"))
        os.sync()
    return {
        "benchmark": "local_add_small",
        "files": count,
        "cores": os.cpu_count(),
        "files_per_s": round(statistics.median(added)),
        "files_per_s_each": [round(one) for one in added],
        "cp_sync_files_per_s": round(statistics.median(copied)),
        "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--mib", type=int, default=1024, help="size of the file (default 1024)")
    parser.add_argument("--files", type=int, help="so many small files instead")
    parser.add_argument("--runs", type=int, default=5, help="runs of each (default 5)")
    parser.add_argument("--dir", type=Path, help="where to work (default: a temporary directory)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="dstore-local-add-", dir=options.dir) as work:
        if options.files:
            result = measure_small(Path(work), options.files, options.runs)
        else:
            result = measure(Path(work), options.mib, options.runs)
    if options.json or options.files:
        print(json.dumps(result, indent=None if options.json else 1))
        return
    for name, speed in result["median_mb_per_s"].items():
        print(f"{name:9} {speed:8.1f} MB/s (median of {options.runs})")
    print(f"ratio     {result['ratio']:8.2f} of the slower baseline")
    print(f"CPU       {result['cpu_seconds_per_gib']:8.2f} s per GiB")
    print(f"peak RSS  {result['peak_rss_mib']:8d} MiB")


if __name__ == "__main__":
    main()
