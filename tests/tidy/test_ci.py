"""`.ci/counts.sh` reads what pytest prints; the logs here have the forms of real ones."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tidy.source import ROOT

SKIPPED = "SKIPPED [2] tests/conftest.py:34: external test data not found: /x (set DSTORE_FIXTURES)"


def shell(log: Path, call: str) -> tuple[str, int]:
    """What `call` prints, and its status."""
    done = subprocess.run(
        ["sh", "-c", f". .ci/counts.sh; log=$1; {call}", "sh", str(log)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=20,
    )
    assert done.stderr == ""
    return done.stdout.strip(), done.returncode


@pytest.mark.parametrize(
    ("closing", "passed", "failed"),
    [
        ("75 passed in 66.59s (0:01:06)", 75, 0),
        ("1 failed, 74 passed, 2 skipped, 3 deselected, 1 warning in 5.20s", 74, 1),
        ("2 failed, 1 passed, 12 errors in 0.20s", 1, 14),
        ("10 failed, 1 error in 0.20s", 0, 11),
        ("1 skipped, 1 xfailed in 0.20s", 0, 0),
        ("======= 3 failed, 1504 passed, 2 skipped in 241.03s (0:04:01) =======", 1504, 3),
        ("============ 1 error in 0.20s ============", 0, 1),
        ("no tests ran in 0.01s", 0, 0),
        ("2 failed, 23 passed in 391.07s", 23, 2),  # make fuzz
        ("", 0, 0),
    ],
)
def test_the_closing_line_is_counted(
    tmp_path: Path, closing: str, passed: int, failed: int
) -> None:
    log = tmp_path / "log"
    log.write_text(
        "bringing up nodes...\n....F..s...  [100%]\n"
        "FAILED tests/x.py::test_1 - AssertionError: 7 passed in 3.2s is no closing line\n"
        f"{closing}\nmake: *** [Makefile:35: test] Error 1\n"
    )
    assert shell(log, "count $log passed") == (str(passed), 0)
    assert shell(log, "failures $log") == (str(failed), 0)


def test_of_several_runs_the_last_counts(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("40 passed in 3.00s\n...\n1 failed, 1500 passed in 200.00s (0:03:20)\n")
    assert shell(log, "count $log passed") == ("1500", 0)
    assert shell(log, "failures $log") == ("1", 0)


@pytest.mark.parametrize(
    ("line", "status"),
    [
        (SKIPPED, 0),
        ("SKIPPED [1] tests/x.py:1: js-libp2p needs node and npm, and they are missing", 1),
        ("75 passed in 66.59s (0:01:06)", 1),
    ],
)
def test_skipped_fixtures_are_seen(tmp_path: Path, line: str, status: int) -> None:
    log = tmp_path / "log"
    log.write_text(f"= short test summary info =\n{line}\n")
    assert shell(log, "fixtures_skipped $log") == ("", status)


@pytest.mark.parametrize("options", [["-q"], []])
def test_what_pytest_prints_is_read(tmp_path: Path, options: list[str]) -> None:
    """One test of each outcome.  Spread over processes the closing line is the same, and not
    worth starting them here."""
    (tmp_path / "pytest.ini").write_text("[pytest]\naddopts = -ra\n")
    (tmp_path / "test_all.py").write_text(
        "import pytest\n"
        "@pytest.fixture\ndef broken():\n    raise RuntimeError\n"
        "@pytest.fixture\ndef data():\n    pytest.skip('not found (set DSTORE_FIXTURES)')\n"
        "def test_1(): pass\n"
        "def test_2(): pass\n"
        "def test_3(): assert 0\n"
        "def test_4(broken): pass\n"
        "def test_5(broken): pass\n"
        "def test_6(data): pass\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, "-p", "no:cacheprovider", "."],
        cwd=tmp_path,
        env={
            **{name: value for name, value in os.environ.items() if "PYTEST" not in name},
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        },
        capture_output=True,
        text=True,
        timeout=60,
    )
    log = tmp_path / "log"
    log.write_text(done.stdout)
    assert shell(log, "count $log passed") == ("2", 0)
    assert shell(log, "failures $log") == ("3", 0)
    assert shell(log, "fixtures_skipped $log") == ("", 0)
