"""restic, Debian's: a backup to a local repository.  It has no nodes, so local adds alone.

It encrypts what it stores and compresses what compresses; random bytes do not.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from benchmarks.peers.measure import local_add, run_timed
from benchmarks.peers.peer import Load, Peer, Row, Unavailable, place, tell


def _restic() -> Path:
    installed = shutil.which("restic")
    return Path(installed) if installed else place("restic") / "root" / "usr" / "bin" / "restic"


def prepare() -> str:
    """The one on the PATH, else Debian's package, unpacked without being installed."""
    if not _restic().exists():
        directory = place("restic")
        directory.mkdir(parents=True, exist_ok=True)
        for tool in ("apt-get", "dpkg-deb"):
            if shutil.which(tool) is None:
                raise Unavailable(f"no restic on the PATH, and no {tool} to bring it")
        tell(["apt-get", "download", "restic"], cwd=directory)
        package = next(directory.glob("restic_*.deb"))
        tell(["dpkg-deb", "-x", package, directory / "root"])
    return tell([_restic(), "version"]).split()[1]


def _backup(work: Path, name: str, what: Path) -> Row:
    env = {
        "RESTIC_REPOSITORY": str(work / name),
        "RESTIC_PASSWORD": "measured",
        "RESTIC_CACHE_DIR": str(work / f"{name}-cache"),
    }
    run_timed([_restic(), "init"], env, work / f"{name}-init.log")
    return run_timed([_restic(), "backup", "--quiet", what], env, work / f"{name}.log")


def large(work: Path, load: Load) -> Row:
    return local_add(load, _backup(work, "large", load.path))


def small(work: Path, load: Load) -> Row:
    took = _backup(work, "small", load.tree)
    return {"small_add_together_per_s": load.small / took["seconds"]}


PEER = Peer(prepare=prepare, parts={"large": large, "small": small})
