"""A configuration as the text of a `node.toml`: every key, with what its field says of it."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Mapping
from functools import cache
from typing import Any

import msgspec

from dstore.config import Config


def commented(config: Config | None = None) -> str:
    """The configuration as a TOML file with every key documented: configs/node.toml."""
    config = config or Config()
    lines = [
        "# dstore's configuration.  Every key is here with its default; remove what you do not",
        "# change.  DSTORE_SECTION_KEY in the environment overrides a key.",
        "",
    ]
    for field in msgspec.structs.fields(Config):
        section = getattr(config, field.name)
        lines += [*_comment(type(section).__doc__ or ""), f"[{field.name}]"]
        documents = _documents()[field.name]
        for key in msgspec.structs.fields(section):
            value = getattr(section, key.name)
            lines += _comment(documents[key.name])
            if key.name == "peers":
                lines += _tables(f"{field.name}.{key.name}", value)
            else:
                lines.append(f"{key.name} = {_toml(value)}")
        lines.append("")
    return "\n".join(lines)


def _tables(name: str, groups: Mapping[str, Any]) -> list[str]:
    """One table a group, after the keys of its section."""
    lines = []
    for group, values in groups.items():
        keys = (key.name for key in msgspec.structs.fields(type(values)))
        lines.append(f"[{name}.{group}]")
        lines += [f"{key} = {_toml(getattr(values, key))}" for key in keys]
    return lines


def _comment(text: str) -> list[str]:
    return [f"# {line.strip()}" for line in text.strip().splitlines()]


def _toml(value: object) -> str:
    if isinstance(value, tuple):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if isinstance(value, int) else msgspec.json.encode(value).decode()


@cache  # the source is read and parsed for it: 50 ms
def _documents() -> dict[str, dict[str, str]]:
    """What the fields say of themselves, by section."""
    default = Config()
    names = [field.name for field in msgspec.structs.fields(Config)]
    return {name: _field_documents(type(getattr(default, name))) for name in names}


def _field_documents(section: type) -> dict[str, str]:
    """The string below each field of the section, as written in the source."""
    body = ast.parse(inspect.getsource(section)).body[0]
    assert isinstance(body, ast.ClassDef)
    documents: dict[str, str] = {}
    for field, after in zip(body.body, body.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
            assert isinstance(after, ast.Expr)
            assert isinstance(after.value, ast.Constant)
            documents[field.target.id] = str(after.value.value)
    return documents
