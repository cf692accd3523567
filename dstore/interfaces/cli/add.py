"""add: files, directories and standard input into the store."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dstore.interfaces.cli.options import home_option, json_option, say, say_form, warn
from dstore.interfaces.cli.progress import ProgressLine

if TYPE_CHECKING:
    from dstore.interfaces.client import Client

Form = dict[str, Any]
STDIN = "-"


@dataclass(frozen=True)
class _Choices:
    """How the paths are added: the fields of the API's request."""

    options: Form
    hidden: bool


@click.command()
@click.argument("paths", metavar="PATH...", nargs=-1, required=True)
@home_option
@json_option
@click.option("--code", metavar="K+M", default="auto", help="Erasure code, like 4+2, or auto.")
@click.option("--local-only", is_flag=True, help="Store on this node alone.")
@click.option("--cid-only", is_flag=True, help="Print the CID; store nothing.")
@click.option("--cid-profile", metavar="PROFILE", help="unixfs-v1-2025 or unixfs-v0-2015.")
@click.option(
    "--require-guarantee",
    metavar="N",
    type=click.IntRange(min=0),
    default=0,
    help="Fail unless any N peers may be lost.",
)
@click.option("--hidden", is_flag=True, help="Add names that begin with a dot too.")
@click.option("--name", help="The pin's name.")
@click.option("--pin-for", metavar="DURATION", help='How long to keep it, like "90d" or "2y".')
def add(
    paths: tuple[str, ...],
    home: Path,
    as_json: bool,
    code: str,
    local_only: bool,
    cid_only: bool,
    cid_profile: str | None,
    require_guarantee: int,
    hidden: bool,
    name: str | None,
    pin_for: str | None,
) -> None:
    """Store files, directories or standard input (-), and print `added CID NAME`.

    The file is protected when this returns, or a warning says why it is not yet.
    """
    if "" in paths:
        # As a path it would be the working directory: not what an unset variable means.
        raise click.UsageError("an empty path: is a variable unset?")
    if paths.count(STDIN) > 1:
        raise click.UsageError("standard input can be added once")
    if STDIN in paths and sys.stdin is None:
        raise click.UsageError("there is no standard input to add")
    choices = _Choices(
        {
            "code": code,
            "profile": cid_profile,
            "local_only": local_only,
            "require_guarantee": require_guarantee,
            "name": name,
            "pin_seconds": _seconds(pin_for),
        },
        hidden,
    )
    if cid_only:
        _print_cids(paths, choices, as_json)
        return
    for form in _added(paths, choices, home):
        if as_json:
            say_form(form)
        else:
            say(f"added {form['cid']} {form['name'] or STDIN}")
        for warning in form["warnings"]:
            warn(f"{form['name'] or STDIN}: {warning}")


def _seconds(pin_for: str | None) -> int | None:
    if pin_for is None:
        return None
    from dstore.config import parse_duration

    try:
        return parse_duration(pin_for)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--pin-for") from error


def _added(paths: tuple[str, ...], choices: _Choices, home: Path) -> Iterator[Form]:
    """The forms of what was added, by the daemon or, with --local-only, without one."""
    from dstore.interfaces.client import Client, DaemonNotRunning

    try:
        client = Client.of_home(home)
        first = _by_daemon(client, paths[0], choices)
    except DaemonNotRunning as error:
        if choices.options["local_only"]:
            yield from _without_daemon(paths, choices, home)
            return
        raise DaemonNotRunning(
            f"{error}\nadding needs the network; --local-only stores on this node alone"
        ) from error
    yield first
    for path in paths[1:]:
        yield _by_daemon(client, path, choices)


def _by_daemon(client: Client, path: str, choices: _Choices) -> Form:
    """One path through the local API."""
    from dstore.errors import ConnectionLost

    with ProgressLine(path) as line:
        if path == STDIN:
            events = client.add_stream(
                sys.stdin.buffer, choices.options, lambda sent: line.update("import", sent, None)
            )
        else:
            options = {**choices.options, "hidden": choices.hidden}
            events = client.add_path(Path(path).absolute(), options)
        for event in events:
            if "result" in event:
                form: Form = event["result"]
                return form
            progress = event.get("progress", {})
            line.update(progress["stage"], progress["done_bytes"], progress["total_bytes"])
    raise ConnectionLost("the daemon stopped before the add was done; add again to go on")


def _without_daemon(paths: tuple[str, ...], choices: _Choices, home: Path) -> list[Form]:
    from dstore.interfaces.offline import add_to_home

    with ProgressLine("") as line:
        return add_to_home(home, paths, choices.options, choices.hidden, line.update)


def _print_cids(paths: tuple[str, ...], choices: _Choices, as_json: bool) -> None:
    from dstore.interfaces.offline import cids_of

    with ProgressLine("") as line:
        found = cids_of(paths, choices.options["profile"], choices.hidden, line.update)
    for path, cid in found:
        if as_json:
            say_form({"cid": cid, "name": path})
        else:
            say(cid)
