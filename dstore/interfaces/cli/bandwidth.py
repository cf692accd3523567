"""bandwidth: what a running node may send and receive."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from dstore.interfaces.cli.options import home_option, json_option, say, say_form


@click.command()
@home_option
@json_option
@click.option("--up", metavar="RATE", help='What is sent, like "5 MB/s"; 0 is no limit.')
@click.option("--down", metavar="RATE", help="What is received.")
@click.option("--repair", metavar="RATE", help="Of each of these, the part for repair.")
@click.option("--peers", metavar="NAME", help="Set --up and --down of these peers alone.")
@click.option("--reset", is_flag=True, help="Those of the configuration again.")
def bandwidth(
    home: Path,
    as_json: bool,
    up: str | None,
    down: str | None,
    repair: str | None,
    peers: str | None,
    reset: bool,
) -> None:
    """Show the limits on traffic with peers, or change them until the node stops.

    What holds from its next start on stands in node.toml, under [bandwidth].
    """
    from dstore.interfaces.client import Client

    client = Client.of_home(home)
    rates = (("up", up), ("down", down), ("repair", repair))
    given = {name: rate for name, rate in rates if rate is not None}
    if reset and (given or peers is not None):
        raise click.UsageError("--reset goes without any other limit")
    if peers is not None and (repair is not None or not given):
        raise click.UsageError("--peers goes with --up, --down or both")
    if reset:
        form = client.post("/v1/bandwidth", {"reset": True})
    elif given:
        form = client.post("/v1/bandwidth", given if peers is None else {"peers": {peers: given}})
    else:
        form = client.get("/v1/bandwidth")
    if as_json:
        say_form(form)
    else:
        _tell(form)


def _tell(form: dict[str, Any]) -> None:
    repair = form["traffic"]["repair"]
    say(f"up      {_rate(form['up'])} (now {_rate(form['sent_bytes_per_second'])})")
    say(f"down    {_rate(form['down'])} (now {_rate(form['received_bytes_per_second'])})")
    say(
        f"repair  {_rate(form['repair'])} (now {_rate(repair['sent_bytes_per_second'])} up, "
        f"{_rate(repair['received_bytes_per_second'])} down)"
    )
    for name, group in form["peers"].items():
        say(f"peers {name} ({_members(group)}):")
        say(f"  up    {_rate(group['up'])} (now {_rate(group['sent_bytes_per_second'])})")
        say(f"  down  {_rate(group['down'])} (now {_rate(group['received_bytes_per_second'])})")
    if not form["lan"]:
        others = "other peers" if form["peers"] else "peers"
        say(f"{others} on the local network are not limited")
    if form["overridden"]:
        say("set until the node stops; --reset takes it back")


def _members(group: dict[str, Any]) -> str:
    """How many are in it: those named, and those that say that they have its labels."""
    from dstore.interfaces.text import escape_controls

    labels = ", ".join(map(escape_controls, group["labels"]))
    named = [str(len(group["ids"]))] if group["ids"] else []
    return " + ".join(
        [*named, f"{len(group['claimed_by'])} by label {labels}"] if labels else named
    )


def _rate(bytes_per_second: int | None) -> str:
    from dstore.interfaces.text import in_bytes

    return "no limit" if bytes_per_second is None else f"{in_bytes(bytes_per_second)}/s"
