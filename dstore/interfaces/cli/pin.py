"""pin: what this node's owner keeps."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import click

from dstore.interfaces.cli.options import home_option, json_option, say, say_form, table


@click.group()
def pin() -> None:
    """List what is kept, or let go of it."""


@pin.command("ls")
@home_option
@json_option
def list_pins(home: Path, as_json: bool) -> None:
    """List the pins, oldest first."""
    from dstore.interfaces.client import Client

    form = Client.of_home(home).get("/v1/pins")
    if as_json:
        say_form(form)
        return
    rows = [
        [one["cid"], one["mode"], one["code"] or "-", _date(one["expires"]), one["name"] or "-"]
        for one in form["pins"]
    ]
    table(rows, ["CID", "MODE", "CODE", "UNTIL", "NAME"])


def _date(moment: float | None) -> str:
    if moment is None:
        return "-"
    try:
        return datetime.fromtimestamp(moment, UTC).date().isoformat()
    except (ValueError, OverflowError, OSError):  # no calendar goes so far
        return "always"


@pin.command("rm")
@click.argument("cids", metavar="CID...", nargs=-1, required=True)
@home_option
@json_option
def remove_pins(cids: tuple[str, ...], home: Path, as_json: bool) -> None:
    """Let go of files; their holders are told, and keep them in their trash for a while."""
    from dstore.interfaces.client import Client

    client = Client.of_home(home)
    for cid in cids:
        form = client.post("/v1/pins/rm", {"cid": cid})
        if as_json:
            say_form(form)
        else:
            say(f"unpinned {form['cid']}; {form['holders_told']} holders were told")
