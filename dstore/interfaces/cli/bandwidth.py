"""bandwidth: what a running node may send and receive."""

from __future__ import annotations

from pathlib import Path

import click

from dstore.interfaces.cli.options import home_option, json_option, say, say_form


@click.command()
@home_option
@json_option
@click.option("--up", metavar="RATE", help='What is sent, like "5 MB/s"; 0 is no limit.')
@click.option("--down", metavar="RATE", help="What is received.")
@click.option("--reset", is_flag=True, help="Those of the configuration again.")
def bandwidth(home: Path, as_json: bool, up: str | None, down: str | None, reset: bool) -> None:
    """Show the limits on traffic with peers, or change them until the node stops.

    What holds from its next start on stands in node.toml, under [bandwidth].
    """
    from dstore.interfaces.client import Client

    client = Client.of_home(home)
    given = {name: rate for name, rate in (("up", up), ("down", down)) if rate is not None}
    if reset and given:
        raise click.UsageError("--reset goes without --up and --down")
    if reset or given:
        form = client.post("/v1/bandwidth", {"reset": True} if reset else given)
    else:
        form = client.get("/v1/bandwidth")
    if as_json:
        say_form(form)
        return
    say(f"up    {_rate(form['up'])}")
    say(f"down  {_rate(form['down'])}")
    if not form["lan"]:
        say("peers on the local network are not limited")
    if form["overridden"]:
        say("set until the node stops; --reset takes it back")


def _rate(bytes_per_second: int | None) -> str:
    from dstore.interfaces.text import in_bytes

    return "no limit" if bytes_per_second is None else f"{in_bytes(bytes_per_second)}/s"
