"""Two processes of a system that gives a file from one to the other.

Each is a program that takes JSON lines (`iroh/node.py`, `helia/node.mjs`): one adds, the other
fetches into a store of its own.  Neither system erasure-codes; both encrypt and verify.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.local_add import MIB
from benchmarks.peers.measure import Servant, Trees, servant
from benchmarks.peers.peer import SMALL_BYTES, Load, Row

Command = Sequence[str | Path]


@contextmanager
def _two(command: Command, work: Path, connect: bool) -> Iterator[tuple[Servant, Servant]]:
    with servant([*command, work / "giver"], work / "giver.log") as giver:
        with servant([*command, work / "taker"], work / "taker.log") as taker:
            if connect:
                taker.ask("connect", address=giver.address)
            yield giver, taker


def _checked(answer: dict[str, Any], digest: str) -> dict[str, Any]:
    if answer["sha256"] != digest:
        raise SystemExit("what was fetched is not what was added")
    return answer


def large(command: Command, work: Path, load: Load, *, connect: bool) -> Row:
    """Add and fetch of the large file."""
    with _two(command, work, connect) as (giver, taker):
        used = Trees(giver.pid)
        added = giver.ask("add", path=str(load.path))
        row: Row = {
            "local_add_mb_per_s": load.size / 1e6 / added["seconds"],
            "local_add_cpu_s_per_gib": used.cpu_seconds() / load.gib,
            "local_add_peak_mib": used.peak_mib(),
        }
        used = Trees(giver.pid, taker.pid)
        answer = taker.ask("fetch", name=added["id"], address=giver.address)
        row |= {
            "fetch_mb_per_s": load.size / 1e6 / answer["seconds"],
            "fetch_cpu_s_per_gib": used.cpu_seconds() / load.gib,
            "gateway_peak_mib": Trees(taker.pid).peak_mib(),
            "holder_peak_mib": Trees(giver.pid).peak_mib(),
        }
        _checked(answer, load.digest())
        if "first" in answer:
            row["first_byte_ms"] = 1000 * answer["first"]
    return row


def middle(command: Command, work: Path, load: Load, *, connect: bool) -> Row:
    """One cold read of 1 MiB in the middle."""
    with _two(command, work, connect) as (giver, taker):
        added = giver.ask("add", path=str(load.path))
        where = {"offset": load.middle, "length": MIB}
        answer = taker.ask("fetch", name=added["id"], address=giver.address, **where)
        _checked(answer, load.digest(load.middle, MIB))
    return {"range_first_byte_ms": 1000 * answer["first"], "range_ms": 1000 * answer["seconds"]}


def small(command: Command, work: Path, load: Load, *, connect: bool) -> Row:
    """One by one, and a directory at once; the puts are local adds."""
    alone = work / "alone"
    alone.mkdir()
    paths = []
    for number, body in enumerate(load.bodies()):
        paths.append(str(alone / str(number)))
        Path(paths[-1]).write_bytes(body)
    with _two(command, work, connect) as (giver, taker):
        each = giver.ask("add_each", paths=paths)
        tree = giver.ask("add_tree", path=str(load.tree))
        got = taker.ask("fetch_each", ids=each["ids"], address=giver.address)
        got_tree = taker.ask("fetch_tree", name=tree["id"], address=giver.address)
    for answer in (got, got_tree):
        if answer["bytes"] != load.small * SMALL_BYTES:
            raise SystemExit(f"{answer['bytes']} bytes of {load.small} small files")
    return {
        "small_add_per_s": load.small / each["seconds"],
        "small_add_together_per_s": load.small / tree["seconds"],
        "small_get_per_s": load.small / got["seconds"],
        "small_get_together_per_s": load.small / got_tree["seconds"],
    }
