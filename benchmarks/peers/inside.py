"""One part of one system, in namespaces of its own: of the network, loopback alone.

    python -m benchmarks.peers.inside NAME PART MIB SMALL FILES WORK

Run by `benchmarks.peers`; prints the row as JSON.  What is measured here can reach nobody, and
no process outlives it.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path

from benchmarks.local_add import MIB
from benchmarks.peers.peer import Load, Peer, Row

# The shell stays as the first process of its namespace: it reaps what others leave.
_ALONE = ["unshare", "--map-root-user", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]
_IN = [*_ALONE, "sh", "-c", 'ip link set lo up && "$@"; exit $?', "sh"]
_PART_SECONDS = 1200


def peer_named(name: str) -> Peer:
    """The system's module: `benchmarks.peers.NAME`."""
    found = import_module(f"benchmarks.peers.{name}").PEER
    assert isinstance(found, Peer)
    return found


def run_part(name: str, part: str, load: Load, work: Path) -> Row:
    """The figures of one part.

    Raises:
        SystemExit: it failed, or took more than twenty minutes; the message says how.
    """
    sizes = [str(load.size // MIB), str(load.small)]
    words = [name, part, *sizes, str(load.path.parent), str(work)]
    try:
        done = subprocess.run(
            [*_IN, sys.executable, "-m", "benchmarks.peers.inside", *words],
            capture_output=True,
            text=True,
            timeout=_PART_SECONDS,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SystemExit(str(error)) from error
    if done.returncode:
        said = (done.stderr.strip() or "no word").splitlines()
        raise SystemExit(said[-1][-500:])
    row: Row = json.loads(done.stdout.splitlines()[-1])
    return row


def main() -> None:
    name, part, mib, small, files, work = sys.argv[1:]
    load = Load(Path(files) / "file", Path(files) / "tree", int(mib) * MIB, int(small))
    begun = time.perf_counter()
    row = peer_named(name).parts[part](Path(work), load)
    print(json.dumps(row | {"part_seconds": time.perf_counter() - begun}))


if __name__ == "__main__":
    main()
