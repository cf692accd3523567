"""The `dstore` command: which subcommand is where, and how errors end.

Subcommands are imported when they are called, so that `dstore --help` takes no longer than
click; what they do is in the modules beside this one.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import os
import sys
from pathlib import Path
from typing import Any, Final

import click

from dstore import __version__

# Name → (module in this package, attribute, help).  The order is that of --help.
_COMMANDS: Final[dict[str, tuple[str, str, str]]] = {
    "init": ("node", "init", "Make a home directory: keys and a commented configuration."),
    "run": ("node", "run", "Run the node with its gateway until it is stopped."),
    "id": ("node", "identity", "Show this node's peer id and addresses."),
    "peers": ("node", "peers", "List the peers that this node knows."),
    "version": ("node", "version", "Show the version."),
    "add": ("add", "add", "Store files, directories or standard input; print their CIDs."),
    "get": ("read", "get", "Write a file or directory to disk."),
    "cat": ("read", "cat", "Write the bytes of a file to standard output."),
    "ls": ("read", "ls", "List a directory."),
    "status": ("status", "status", "Show the health of a file, or of this node."),
    "bandwidth": (
        "bandwidth",
        "bandwidth",
        "Show the limits on traffic, or change them.",
    ),
    "pin": ("pin", "pin", "List what is kept, or let go of it."),
    "config": ("config", "config", "Show or check the configuration."),
    "devnet": ("devnet", "devnet", "A network of nodes on this machine, to try things out."),
}
_INTERRUPTED: Final = 130  # as shells report it


class LazyGroup(click.Group):
    """A group whose commands are imported on use."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module, attribute, _ = _COMMANDS[cmd_name]
        found = getattr(importlib.import_module(f"dstore.interfaces.cli.{module}"), attribute)
        assert isinstance(found, click.Command)
        return found

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in _COMMANDS and not args[0].startswith("-"):
            import difflib

            near = difflib.get_close_matches(args[0], _COMMANDS, n=1, cutoff=0.5)
            hint = f" Did you mean {near[0]}?" if near else ""
            ctx.fail(f"No such command {args[0]!r}.{hint}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, _, text) in _COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--home", type=click.Path(path_type=Path), help="As the commands' own --home.")
@click.version_option(__version__, prog_name="dstore", message="%(prog)s %(version)s")
@click.pass_context
def dstore(ctx: click.Context, home: Path | None) -> None:
    """Erasure-coded, content-addressed storage on libp2p.

    Exit codes: 0 fine, 1 this node's fault, 2 wrong usage, 3 not found, 4 network or peers.
    """
    ctx.obj = home


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit."""
    from dstore.errors import DstoreError

    # The interpreter's last collections would look at every object of a process that ends.
    atexit.register(gc.freeze)
    try:
        result: Any = dstore.main(args=arguments, prog_name="dstore", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(_INTERRUPTED)
    except DstoreError as error:
        from dstore.interfaces.text import escape_controls

        text = "\n".join(map(escape_controls, str(error).splitlines())) or type(error).__name__
        click.echo(f"dstore: {text}", err=True)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        _give_up_output()  # whoever read it has enough
        sys.exit(1)
    except OSError as error:  # what there is to say cannot be written
        click.echo(f"dstore: {error.strerror or error}", err=True)
        _give_up_output()
        sys.exit(1)
    sys.exit(result if isinstance(result, int) else 0)


def _give_up_output() -> None:
    """Python would complain again about what is buffered while it exits."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
