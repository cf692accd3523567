"""devnet: a network of nodes on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from dstore.interfaces.cli.options import json_option, say, say_form, table

if TYPE_CHECKING:
    from dstore.interfaces.devnet import Devnet

dir_option = click.option(
    "--dir",
    "directory",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("devnet"),
    show_default=True,
    help="Where the nodes' homes are.",
)


@click.group()
def devnet() -> None:
    """A network of nodes on this machine, to try things out.

    The nodes are called n1, n2 and so on; use one with --home DIR/n1.
    """


def _load(directory: Path) -> Devnet:
    from dstore.interfaces.devnet import Devnet

    return Devnet.load(directory)


def _show(found: Devnet, as_json: bool) -> None:
    forms = [node.form for node in found.nodes]
    if as_json:
        say_form({"dir": str(found.directory), "nodes": forms})
        return
    rows = [
        [one["name"], one["state"], str(one["pid"]), one["domain"], one["gateway"] or "-"]
        for one in forms
    ]
    table(rows, ["NAME", "STATE", "PID", "DOMAIN", "GATEWAY"])


@devnet.command()
@click.option("-n", "--nodes", "count", default=5, show_default=True, help="How many nodes.")
@click.option("--domains", type=click.IntRange(min=1), help="Failure domains; one each if unset.")
@dir_option
@json_option
def up(count: int, domains: int | None, directory: Path, as_json: bool) -> None:
    """Start the nodes, and return when all are ready and connected.

    Where the directory has nodes already, those that are dead start again.
    """
    from dstore.interfaces.devnet import Devnet

    found = Devnet(directory)
    found.up(count, domains)
    _show(found, as_json)


@devnet.command()
@dir_option
@json_option
def status(directory: Path, as_json: bool) -> None:
    """Show the nodes."""
    _show(_load(directory), as_json)


@devnet.command()
@dir_option
@json_option
def down(directory: Path, as_json: bool) -> None:
    """Stop all nodes; their homes stay."""
    found = _load(directory)
    found.down()
    _show(found, True) if as_json else say(f"stopped {len(found.nodes)} nodes")


def _signal_command(name: str, help_text: str, word: str) -> None:
    @devnet.command(name, help=help_text)
    @click.argument("node", metavar="NAME")
    @dir_option
    @json_option
    def command(node: str, directory: Path, as_json: bool) -> None:
        found = _load(directory)
        getattr(found, name)(node)
        say_form(found.node(node).form) if as_json else say(f"{word} {node}")


_signal_command("kill", "Kill a node at once, as a power cut would (SIGKILL).", "killed")
_signal_command("pause", "Stop a node in its tracks (SIGSTOP).", "paused")
_signal_command("resume", "Let a paused node go on (SIGCONT).", "resumed")
