"""config: what the node is set to."""

from __future__ import annotations

from pathlib import Path

import click

from dstore.interfaces.cli.options import home_option, json_option, say, say_form


@click.group()
def config() -> None:
    """Show or check the configuration."""


@config.command()
@home_option
@json_option
def show(home: Path, as_json: bool) -> None:
    """Print the configuration in force: node.toml, overridden by the environment."""
    import msgspec

    from dstore.config import load_config
    from dstore.interfaces.nodetoml import commented

    found = load_config(home / "node.toml")
    if as_json:
        say_form(msgspec.to_builtins(found))
    else:
        say(commented(found).rstrip("\n"))


@config.command()
@click.argument("path", type=click.Path(dir_okay=False, path_type=Path), required=False)
@home_option
@json_option
def check(path: Path | None, home: Path, as_json: bool) -> int:
    """Check node.toml, or the file PATH; every fault is named.  Exit code 2 where it has any."""
    from dstore.config import load_config
    from dstore.errors import ConfigError, NotFoundError

    path = path or home / "node.toml"
    if not path.exists():
        raise NotFoundError(f"{path} does not exist; without it every key has its default")
    try:
        load_config(path)
    except ConfigError as error:
        if not as_json:
            raise
        say_form({"path": str(path), "faults": error.faults})
        return error.exit_code
    if as_json:
        say_form({"path": str(path), "faults": []})
    else:
        say(f"{path}: fine")
    return 0
