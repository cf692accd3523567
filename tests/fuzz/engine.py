"""Runs one target in this process until its time is over: `python -m tests.fuzz.engine`.

With atheris every branch of dstore's Python counts as coverage and steers the search.  Where
atheris is not installed, inputs are changed without feedback, which finds less; the caller
says so.  Either way the first input that breaks a property is written down and ends the
process with another status than 0.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from tests.fuzz.mutation import of_fields, plain
from tests.fuzz.target import BESIDE, MODULES, Target, load, run_bounded

_WEIGHED = 251  # one input in so many is run with its memory measured, which is slow
BROKEN = 77  # the status after an input that broke a property


def is_guided() -> bool:
    """Whether the search is steered by coverage here."""
    return importlib.util.find_spec("atheris") is not None


def checker(target: Target) -> Callable[[bytes], None]:
    """The check of each input, some with their memory measured."""
    count = 0

    def one(data: bytes) -> None:
        nonlocal count
        count += 1
        run_bounded(target, data, weigh=count % _WEIGHED == 0)

    return one


def run_guided(name: str, folder: Path, found: Path, seconds: float, seed: int) -> None:
    """Hand over to libFuzzer, which never returns."""
    import atheris

    with atheris.instrument_imports(include=["dstore", *BESIDE.get(MODULES[name], ())]):
        target = load(name)
    options: dict[str, Any] = {}
    if target.protobuf:
        # atheris.Mutate, for the leaves, refuses to be called in 3.0.
        random = Random(seed)
        mutate = of_fields(random, plain(random))
        options["custom_mutator"] = lambda data, size_max, seed: mutate(data, size_max)
    given = [
        f"-max_len={target.bytes_max}",
        f"-seed={seed}",
        f"-artifact_prefix={found}/",
        "-rss_limit_mb=1024",
        "-timeout=30",
        "-print_final_stats=1",
        f"-max_total_time={seconds:g}",
    ]
    atheris.Setup([sys.argv[0], *given, str(folder)], checker(target), **options)
    atheris.Fuzz()


def run_blind(name: str, folder: Path, found: Path, seconds: float, seed: int) -> int:
    """Change the inputs of `folder` at random until the time is over; the status."""
    target = load(name)
    check, random = checker(target), Random(seed)
    mutate = plain(random)
    if target.protobuf:
        mutate = of_fields(random, mutate)
    corpus = sorted(path.read_bytes() for path in folder.iterdir())
    count, end = 0, time.monotonic() + seconds
    while time.monotonic() < end:
        # Everything as it is first, then changes.
        data = corpus[count] if count < len(corpus) else random.choice(corpus)
        for _ in range(random.randrange(1, 5) if count >= len(corpus) else 0):
            data = mutate(data, target.bytes_max)
        count += 1
        try:
            check(data)
        except Exception:  # noqa: BLE001 - whatever it is, it is what was looked for
            traceback.print_exc()
            name = f"crash-{hashlib.sha1(data, usedforsecurity=False).hexdigest()}"
            (found / name).write_bytes(data)
            return BROKEN
    print(f"stat::number_of_executed_units: {count}", file=sys.stderr)
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.engine", description=__doc__)
    parser.add_argument("target", choices=MODULES)
    parser.add_argument("folder", type=Path, help="of inputs; what adds coverage is added")
    parser.add_argument("found", type=Path, help="folder for inputs that break something")
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--blind", action="store_true", help="even where atheris is")
    given = parser.parse_args()
    if given.blind or not is_guided():
        return run_blind(given.target, given.folder, given.found, given.seconds, given.seed)
    run_guided(given.target, given.folder, given.found, given.seconds, given.seed)
    return 0


if __name__ == "__main__":
    sys.exit(main())
