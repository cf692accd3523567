"""The tracked source files, parsed once, for the tidy tests.

Files that git does not track are nobody's commitment yet and are left out; generated code is
held to nothing.
"""

from __future__ import annotations

import ast
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Source:
    """One Python file; `name` is its path from the root."""

    name: str

    @cached_property
    def text(self) -> str:
        return (ROOT / self.name).read_text(encoding="utf-8")

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text, self.name)

    @cached_property
    def modules(self) -> dict[str, str]:
        """Names bound by imports anywhere in the file → what they stand for."""
        found: dict[str, str] = {}
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    bound = alias.asname or alias.name.partition(".")[0]
                    found[bound] = alias.name if alias.asname else bound
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                for alias in node.names:
                    found[alias.asname or alias.name] = f"{node.module}.{alias.name}"
        return found

    def functions(self) -> Iterator[Function]:
        for node in ast.walk(self.tree):
            if isinstance(node, Function):
                yield node

    def calls(self) -> Iterator[tuple[str, ast.Call, tuple[ast.AST, ...]]]:
        """Every call of something imported or built in, by its full name, with the nodes
        around it, outermost first.  Names that a parameter shadows are left out."""
        yield from self._calls(self.tree, ())

    def _calls(
        self, node: ast.AST, around: tuple[ast.AST, ...]
    ) -> Iterator[tuple[str, ast.Call, tuple[ast.AST, ...]]]:
        if isinstance(node, ast.Call):
            name = self._full_name(node.func, around)
            if name is not None:
                yield name, node, around
        for child in ast.iter_child_nodes(node):
            yield from self._calls(child, (*around, node))

    def _full_name(self, node: ast.expr, around: tuple[ast.AST, ...]) -> str | None:
        parts: list[str] = []
        while isinstance(node, ast.Attribute):
            parts.append(node.attr)
            node = node.value
        if not isinstance(node, ast.Name):
            return None
        for outer in around:
            if isinstance(outer, Function):
                given = [*outer.args.posonlyargs, *outer.args.args, *outer.args.kwonlyargs]
                if any(argument.arg == node.id for argument in given):
                    return None
        return ".".join([self.modules.get(node.id, node.id), *reversed(parts)])


@lru_cache
def tracked(*suffixes: str) -> tuple[str, ...]:
    """Tracked files that exist, by suffix, as paths from the root."""
    done = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, timeout=60
    )
    names = done.stdout.decode().split("\0")
    return tuple(
        sorted(name for name in names if name.endswith(suffixes) and (ROOT / name).is_file())
    )


@lru_cache
def sources(*folders: str) -> tuple[Source, ...]:
    """The Python files under the folders, generated ones left out."""
    return tuple(
        Source(name)
        for name in tracked(".py")
        if name.startswith(tuple(f"{folder}/" for folder in folders))
        and not name.endswith("_pb2.py")
    )
