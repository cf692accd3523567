"""The pure parts of `benchmarks/peers`: the files, the statistics, the table."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest

from benchmarks.local_add import MIB
from benchmarks.peers import report
from benchmarks.peers.__main__ import NAMES
from benchmarks.peers.inside import peer_named
from benchmarks.peers.measure import family
from benchmarks.peers.peer import SMALL_BYTES, Unavailable, make_load, tell


def line(system: str, **row: float) -> dict[str, Any]:
    return {"system": system, "version": "1", "part": "large", "mib": 1, "cores": 2, "row": row}


def test_the_files_are_the_same_each_time(tmp_path: Path) -> None:
    loads = []
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        loads.append(make_load(tmp_path / name, 2, 3))
    first, second = loads
    whole = first.path.read_bytes()
    assert first.digest() == second.digest() == hashlib.sha256(whole).hexdigest()
    middle = whole[first.middle : first.middle + 100]
    assert first.digest(first.middle, 100) == hashlib.sha256(middle).hexdigest()
    assert len({path.read_bytes() for path in first.names()} | set(first.bodies())) == 6
    assert {len(body) for body in second.bodies()} == {SMALL_BYTES}


def test_the_range_lies_inside_the_file(tmp_path: Path) -> None:
    load = make_load(tmp_path, 4, 0)
    assert load.middle + MIB <= load.size


def test_medians_with_least_and_most() -> None:
    lines = [line("dstore", fetch_mb_per_s=rate) for rate in (100, 300, 110)]
    found = report.summarise(lines)["dstore"]["figures"]["fetch_mb_per_s"]
    assert found == {"median": 110, "min": 100, "max": 300, "runs": 3, "each": [100, 300, 110]}


def test_targets_hold_or_do_not_or_are_not_measured() -> None:
    ours = line("dstore", fetch_mb_per_s=200.0, coded_add_mb_per_s=150.0)
    tahoe = line("tahoe", fetch_mb_per_s=41.0, coded_add_mb_per_s=50.0)
    found = report.targets(report.summarise([ours, tahoe, line("iroh", fetch_mb_per_s=100.0)]))
    assert [(one["beside"], one["ratio"], one["holds"]) for one in found] == [
        ("tahoe", 3.0, True),
        ("tahoe", None, None),
        ("tahoe", 4.88, False),
        ("iroh", 2.0, True),
        ("helia", None, None),
    ]


def test_rounds_are_compared_one_by_one() -> None:
    lines = [line("dstore", fetch_mb_per_s=rate) for rate in (200.0, 300.0)]
    lines += [line("iroh", fetch_mb_per_s=rate) for rate in (100.0, 100.0)]
    found = next(one for one in report.targets(report.summarise(lines)) if one["beside"] == "iroh")
    assert (found["ratio"], found["by_round"]) == (2.5, [2.0, 3.0])


def test_less_is_better_for_delays() -> None:
    lines = [line("dstore", first_byte_ms=20.0), line("helia", first_byte_ms=5000.0)]
    assert report.result(lines)["times_better"] == {"helia": {"first_byte_ms": 250.0}}


def test_a_later_file_replaces_what_was_said_of_its_systems(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    rows = [line("dstore", fetch_mb_per_s=1.0), line("tahoe", fetch_mb_per_s=2.0)]
    old.write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    new.write_text(json.dumps(line("dstore", fetch_mb_per_s=3.0)))
    found = report.summarise(report.read([old, new]))
    assert report.median(found, "dstore", "fetch_mb_per_s") == 3
    assert report.median(found, "tahoe", "fetch_mb_per_s") == 2


def test_the_table_names_what_was_not_measured() -> None:
    lines = [
        line("dstore", fetch_mb_per_s=1234.4, first_byte_ms=9.87),
        {"system": "kubo", "unavailable": "there is no Go"},
        {"system": "tahoe", "version": "1.20.0", "part": "large", "failed": "status 500"},
    ]
    table = report.markdown(report.summarise(lines))
    assert "| cold fetch, MB/s | 1,234 |" in table
    assert "| first byte of the file, ms | 9.87 |" in table
    assert "- Not measured: kubo: there is no Go" in table
    assert "- Not measured: tahoe, large: status 500" in table
    assert "| cold fetch, MB/s / helia | >= 2 | not measured |  |  |" in table


def test_every_system_has_its_module_and_parts() -> None:
    assert {name: sorted(peer_named(name).parts) for name in NAMES} == {
        "dstore": ["five", "large", "local", "sick", "small"],
        "tahoe": ["five", "large", "sick", "small"],
        "iroh": ["large", "small"],
        "restic": ["large", "small"],
        "helia": ["large", "range", "small"],
        "kubo": ["large", "range", "small"],
    }


def test_a_set_up_that_fails_says_why() -> None:
    with pytest.raises(Unavailable, match="no such package"):
        tell(["sh", "-c", "echo no such package >&2; exit 3"])
    with pytest.raises(Unavailable, match="not-there"):
        tell(["/not-there", "x"])


def test_a_process_is_of_its_own_family() -> None:
    assert os.getpid() in family(os.getppid())
