"""status: the health of a file, or of this node."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import click

from dstore.interfaces.cli.options import home_option, json_option, say, say_form, table
from dstore.interfaces.text import in_bytes, in_time

AT_RISK_EXIT: Final = 4
_STATES_SHOWN: Final = ("live", "away", "missing", "empty")


@click.command()
@click.argument("cid", required=False)
@home_option
@json_option
def status(cid: str | None, home: Path, as_json: bool) -> int:
    """Show the health of a file or directory by its CID, or of this node.

    Holders are asked, so what is shown is true now.  Exit code 4 where the file is at risk
    (no fragment to spare) or unreachable.
    """
    from dstore.interfaces.client import Client

    client = Client.of_home(home)
    if cid is None:
        form = client.get("/v1/id")
        say_form(form) if as_json else _say_node(form)
        return 0
    form = client.status(cid)
    say_form(form) if as_json else _say_root(form)
    return AT_RISK_EXIT if form["state"] in ("at risk", "unreachable") else 0


def _say_node(form: dict[str, Any]) -> None:
    say(f"peer id   {form['peer_id']}")
    say(f"gateway   {form['gateway'] or 'off'}")
    say(f"peers     {form['peers']} connected")
    used, capacity = in_bytes(form["bytes"]), in_bytes(form["capacity_bytes"])
    say(f"stored    {used} of {capacity} in {form['blocks']} blocks")
    say(f"running   {in_time(form['uptime_seconds'])}, dstore {form['version']}")
    for warning in form["warnings"]:
        say(f"warning   {warning}")


def _say_root(form: dict[str, Any]) -> None:
    say(f"{form['cid']}  {form['state']}")
    code = f"code {form['code']}" if form["code"] else "not protected"
    say(f"  {in_bytes(form['dag_bytes'])}, {code}; {form['guarantee']['text']}")
    rows = []
    for index, segment in enumerate(form["segments"]):
        states = [slot["state"] for slot in segment["slots"]]
        counts = [f"{states.count(one)} {one}" for one in _STATES_SHOWN if one in states]
        rows.append([f"  segment {index}", segment["state"], ", ".join(counts)])
    if rows:
        table(rows, ["  SEGMENT", "STATE", "SLOTS"])
