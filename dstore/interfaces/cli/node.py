"""init, run, id, peers, version: the node itself."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from dstore.interfaces.cli.options import home_option, json_option, say, say_form, table

if TYPE_CHECKING:
    from dstore.interfaces.daemon import Running


@click.command()
@home_option
@json_option
@click.option("--label", help="The failure domain of this machine: a household, a rack.")
@click.option("--role", type=click.Choice(["storage", "client"]), help="What it does for others.")
@click.option("--capacity", metavar="SIZE", help='What all blocks may take, like "100 GiB".')
@click.option("--listen", metavar="ADDR", multiple=True, help="A multiaddr to listen on.")
@click.option("--bootstrap", metavar="ADDR", multiple=True, help="A node to join the network by.")
def init(
    home: Path,
    as_json: bool,
    label: str | None,
    role: str | None,
    capacity: str | None,
    listen: tuple[str, ...],
    bootstrap: tuple[str, ...],
) -> None:
    """Make a home directory: keys and a commented configuration.

    A home that is there already is left as it is.
    """
    from dstore.config import parse_config
    from dstore.interfaces.homes import create_home, peer_id_of
    from dstore.interfaces.nodetoml import commented

    given: dict[str, dict[str, object]] = {
        "node": {"role": role},
        "storage": {"capacity": capacity},
        "domain": {"label": label},
        "network": {"listen": listen or None, "bootstrap": bootstrap or None},
    }
    text = commented(parse_config(_toml(given), {}, "the options"))
    made = create_home(home, text)
    peer = peer_id_of(home)
    if as_json:
        say_form({"home": str(home), "peer_id": str(peer), "created": made})
        return
    say(f"{'made' if made else 'already there:'} {home}")
    say(f"peer id {peer}")
    if made:
        say(f"configuration: {home / 'node.toml'}; start the node with  dstore run --home {home}")


def _toml(given: dict[str, dict[str, object]]) -> str:
    import json

    lines: list[str] = []
    for section, values in given.items():
        lines.append(f"[{section}]")
        lines += [
            f"{key} = {json.dumps(value, ensure_ascii=False)}"
            for key, value in values.items()
            if value
        ]
    return "\n".join(lines)


@click.command()
@home_option
@json_option
def run(home: Path, as_json: bool) -> None:
    """Run the node with its gateway until it is stopped (SIGTERM or Ctrl-C).

    One line says that it is ready; logs go to standard error.
    """
    import gc

    # What is loaded stays: to look for garbage among it takes an eighth of the time of loading.
    gc.disable()
    import trio

    from dstore.config import load_config
    from dstore.interfaces.daemon import run_daemon
    from dstore.interfaces.logs import configure_logs

    gc.freeze()
    gc.enable()
    config = load_config(home / "node.toml")
    configure_logs(config.log.level, config.log.format)

    def ready(running: Running) -> None:
        if as_json:
            say_form(
                {
                    "peer_id": running.peer_id,
                    "addresses": list(running.addresses),
                    "gateway": running.gateway,
                    "api": running.api,
                    "home": str(running.home),
                }
            )
            return
        gateway = f"gateway {running.gateway}" if running.gateway else "no gateway"
        say(f"ready: {running.peer_id}, {gateway}, listening on {', '.join(running.addresses)}")

    trio.run(run_daemon, home, config, ready)


@click.command("id")
@home_option
@json_option
def identity(home: Path, as_json: bool) -> None:
    """Show this node's peer id, and its addresses where it runs."""
    from dstore.interfaces.client import Client, DaemonNotRunning

    try:
        form = Client.of_home(home).get("/v1/id")
    except DaemonNotRunning:
        from dstore.interfaces.homes import peer_id_of

        form = {"peer_id": str(peer_id_of(home)), "addresses": [], "home": str(home)}
    if as_json:
        say_form(form)
        return
    say(form["peer_id"])
    for address in form["addresses"]:
        say(f"  {address}")


@click.command()
@home_option
@json_option
def peers(home: Path, as_json: bool) -> None:
    """List the peers that this node knows, the connected ones first."""
    from dstore.interfaces.client import Client
    from dstore.interfaces.text import in_bytes

    form = Client.of_home(home).get("/v1/peers")
    if as_json:
        say_form(form)
        return
    rows = []
    for peer in form["peers"]:
        free = peer["free_bytes"]
        rows.append(
            [
                peer["peer_id"],
                "connected" if peer["connected"] else "-",
                peer["role"] or "-",
                in_bytes(free) if free is not None else "-",
                ",".join(peer["domains"]) or "-",
                str(peer["faults"]),
            ]
        )
    table(rows, ["PEER", "STATE", "ROLE", "FREE", "DOMAINS", "FAULTS"])


@click.command()
@home_option
@json_option
def version(home: Path, as_json: bool) -> None:
    """Show the version."""
    from dstore import __version__

    if as_json:
        say_form({"version": __version__})
    else:
        say(f"dstore {__version__}")
