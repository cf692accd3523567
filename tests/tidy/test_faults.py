"""`docs/explanation/faults.md` names tests that exist, for every fault of the design."""

from __future__ import annotations

import re

from tests.fuzz.target import MODULES
from tests.tidy.source import ROOT, Source, tracked

FAULTS = 34
_TEXT = (ROOT / "docs" / "explanation" / "faults.md").read_text("utf-8")
_ROWS = dict(re.findall(r"^\| (\d+) \|(.*)\|$", _TEXT, re.MULTILINE))


def test_every_fault_has_its_row() -> None:
    assert [int(number) for number in _ROWS] == list(range(1, FAULTS + 1))


def test_every_row_names_a_test_or_what_is_missing() -> None:
    silent = [n for n, row in _ROWS.items() if "::" not in row and "not yet: " not in row]
    assert silent == []


def test_the_tests_exist() -> None:
    named = set(re.findall(r"`([\w/]+\.py)::(\w+)`", _TEXT))
    assert len(named) > 50
    files = set(tracked(".py"))
    missing = []
    for file, name in sorted(named):
        source = Source(f"tests/{file}")
        if source.name not in files or name not in {one.name for one in source.functions()}:
            missing.append(f"{file}::{name}")
    assert missing == []


def test_the_fuzz_targets_exist() -> None:
    named = {
        target
        for listed in re.findall(r"fuzz ((?:`[\w-]+`(?:, )?)+)", _TEXT)
        for target in re.findall(r"`([\w-]+)`", listed)
    }
    assert len(named) > 10
    assert named <= MODULES.keys()
