"""Imports point down only: the contracts of pyproject.toml, kept."""

from __future__ import annotations

import ast
import subprocess
import sys

import pytest

from tests.tidy.source import ROOT, sources

_FORBIDDEN_IN_CORE = {
    *("trio", "libp2p", "sqlite3", "socket", "random", "secrets", "logging", "time", "os"),
    *("pathlib", "threading", "subprocess", "asyncio", "tempfile", "shutil", "datetime"),
}


def test_import_contracts() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports_command as c; c()"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout


@pytest.mark.parametrize("folder", ["core", "storage", "service", "interfaces", "testing"])
def test_only_network_imports_libp2p(folder: str) -> None:
    """Import-linter's contract again, for imports inside functions too and without a graph."""
    found = [
        f"{one.name}: {name}"
        for one in sources(f"dstore/{folder}")
        for name in one.modules.values()
        if name.partition(".")[0] in ("libp2p", "noise")
    ]
    assert found == []


def test_core_knows_no_world() -> None:
    found = []
    for one in sources("dstore/core"):
        for node in ast.walk(one.tree):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            else:
                continue
            found += [
                f"{one.name}:{node.lineno}: {name}"
                for name in names
                if name.partition(".")[0] in _FORBIDDEN_IN_CORE
            ]
    assert found == []


@pytest.mark.parametrize("module", ["dstore.limits", "dstore.errors"])
def test_the_bottom_imports_nothing_of_dstore(module: str) -> None:
    (one,) = (s for s in sources("dstore") if s.name == f"{module.replace('.', '/')}.py")
    assert not [name for name in one.modules.values() if name.startswith("dstore")]
