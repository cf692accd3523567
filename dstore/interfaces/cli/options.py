"""What the commands share: --home and --json, and how they print.

Imports nothing heavy: every command imports this first.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from dstore.interfaces.text import escape_controls

F = TypeVar("F", bound=Callable[..., Any])


def default_home() -> Path:
    """Where a node lives unless --home or DSTORE_HOME says otherwise."""
    import platformdirs

    return Path(platformdirs.user_data_path("dstore"))


def _home(ctx: click.Context, parameter: click.Parameter, value: Path | None) -> Path:
    """The command's own --home, else the one before the command, else the environment's."""
    source = ctx.get_parameter_source(parameter.name or "")
    before: Path | None = ctx.find_root().obj
    if before is not None and source is not click.core.ParameterSource.COMMANDLINE:
        value = before
    return (value or default_home()).expanduser().absolute()


_home_type = click.Path(file_okay=False, path_type=Path)
home_option = click.option(
    "--home",
    type=_home_type,
    envvar="DSTORE_HOME",
    callback=_home,
    help="The node's directory.  [env: DSTORE_HOME]",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def say(text: str) -> None:
    """A line on standard output, made safe where it is a terminal."""
    click.echo(escape_controls(text) if sys.stdout.isatty() else _bytes(text))


def say_form(form: object) -> None:
    """A JSON value on one line of standard output."""
    from dstore.interfaces.forms import dump

    click.echo(dump(form))


def warn(text: str) -> None:
    """A line on standard error."""
    click.echo(f"dstore: {escape_controls(text)}", err=True)


def table(rows: list[list[str]], header: list[str]) -> None:
    """Columns on standard output."""
    rows = [[escape_controls(cell) for cell in row] for row in [header, *rows]]
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        click.echo("  ".join(cells).rstrip())


def _bytes(text: str) -> bytes:
    """The bytes that a name has, whatever the locale; a pipe gets what the file is called."""
    return text.encode("utf-8", "surrogateescape")
