"""Fuzzing: `python -m tests.fuzz [TARGET…] --seconds N`; see docs/contributing.md.

Each target runs in a process of its own, two at once.  Inputs that add coverage stay in
`.fuzz/TARGET/` for the next run; `--keep` chooses the few that together reach all of it and
writes them to `tests/fuzz/corpus/`, which the test suite replays.  The last line counts
targets as pytest counts tests.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import time
from base64 import b64decode, b64encode
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from random import SystemRandom

from tests.fuzz import corpus
from tests.fuzz.engine import is_guided
from tests.fuzz.target import MODULES, load, run_bounded

ROOT = Path(__file__).resolve().parents[2]
WORK = ROOT / ".fuzz"
_START_SECONDS = 120  # imports and the inputs that are there, on a busy machine


@dataclass(frozen=True)
class Outcome:
    """What one target's run came to.  `broke` is the input that broke a property, if any."""

    name: str
    status: int
    log: str
    broke: bytes | None

    @property
    def line(self) -> str:
        """A row for people."""
        inputs = _last(r"number_of_executed_units:\s+(\d+)", self.log)
        coverage = _last(r"cov: (\d+)", self.log)
        new = _last(r"new_units_added:\s+(\d+)", self.log)
        state = "ok" if self.status == 0 else "BROKEN"
        return f"{self.name:16} {inputs:>10} {coverage:>8} {new:>6}  {state}"


def _last(pattern: str, text: str) -> str:
    found = re.findall(pattern, text)
    return found[-1] if found else "-"


def search(name: str, seconds: float, seed: int) -> Outcome:
    """Run one target for so long."""
    folder = WORK / name
    corpus.unpack(name, folder)
    with tempfile.TemporaryDirectory(prefix="dstore-fuzz-") as found:
        status, log = _engine(name, folder, found, seconds, seed)
        broke = [path.read_bytes() for path in Path(found).iterdir()]
    return Outcome(name, status, log, broke[0] if broke else None)


def keep(name: str) -> int:
    """Choose the inputs that reach everything that `.fuzz/` reaches; how many."""
    folder = WORK / name
    corpus.unpack(name, folder)
    return corpus.write(name, corpus.choose(name, [one.read_bytes() for one in folder.iterdir()]))


def _engine(name: str, folder: Path, found: str, seconds: float, seed: int) -> tuple[int, str]:
    """Status and log of a process that searches."""
    arguments = [str(folder), found, f"--seconds={seconds}", f"--seed={seed}"]
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz.engine", name, *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        timeout=seconds + _START_SECONDS,
        check=False,
    )
    return done.returncode, done.stdout


def _report(outcome: Outcome) -> None:
    print(outcome.line, flush=True)
    if outcome.status:
        kept = [line for line in outcome.log.splitlines() if not line.startswith(("#", "INFO"))]
        print("\n".join(kept)[-6000:])
    if outcome.broke is not None:
        text = b64encode(outcome.broke).decode()
        print(f"replay: python -m tests.fuzz {outcome.name} --input {text}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=", ".join(MODULES))
    parser.add_argument("--seconds", type=float, default=30, help="for each target")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--seed", type=int, default=SystemRandom().randrange(1 << 31))
    parser.add_argument("--input", help="replay this one input, in base64")
    parser.add_argument("--keep", action="store_true", help="choose the corpus anew")
    given = parser.parse_args()
    names = given.targets or list(MODULES)
    unknown = [name for name in names if name not in MODULES]
    if unknown:
        parser.error(f"no such target: {', '.join(unknown)}")
    if given.input is not None:
        run_bounded(load(names[0]), b64decode(given.input, validate=True), weigh=True)
        print("nothing broke")
        return 0
    if given.keep:
        for name in names:
            print(f"{name:16} {keep(name):>10} inputs kept", flush=True)
        return 0
    how = "steered by coverage" if is_guided() else "WITHOUT COVERAGE: atheris is not installed"
    print(f"{len(names)} targets, {given.seconds:g} s each, {how}; --seed {given.seed}")
    print(f"{'target':16} {'inputs':>10} {'branches':>8} {'new':>6}", flush=True)
    for name in names:
        load(name)  # here: two threads that enter libp2p's circle of imports at once deadlock
    started, failed = time.monotonic(), 0
    with ThreadPoolExecutor(given.jobs) as pool:
        runs = [pool.submit(search, name, given.seconds, given.seed) for name in names]
        for run in runs:
            outcome = run.result()
            failed += outcome.status != 0
            _report(outcome)
    counts = f"{len(names) - failed} passed"
    if failed:
        counts = f"{failed} failed, {counts}"
    print(f"{counts} in {time.monotonic() - started:.2f}s")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
