"""get, cat, ls: files and directories out of the store."""

from __future__ import annotations

import signal
import sys
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NoReturn

import click

from dstore.interfaces.cli.options import home_option, json_option, say, say_form, table
from dstore.interfaces.cli.progress import ProgressLine

_TERMINATED: Final = 128 + signal.SIGTERM  # as shells report it


@contextmanager
def _unwound_by_sigterm() -> Iterator[None]:
    """SIGTERM ends the block as an exception, so that it can clean up as after Ctrl-C."""

    def end(*_: object) -> NoReturn:
        # `timeout` sends it twice, and cleaning up must not be cut short.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        sys.exit(_TERMINATED)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@click.command()
@click.argument("path", metavar="CID[/PATH]")
@click.option(
    "-o",
    "--output",
    metavar="OUT",
    type=click.Path(path_type=Path),
    help="Where to write it; the last part of the path unless given.",
)
@home_option
@json_option
def get(path: str, output: Path | None, home: Path, as_json: bool) -> None:
    """Write a file or directory to disk.

    Files that exist are replaced, each at once when it is whole; nothing is written outside
    of OUT, whatever the names inside say.
    """
    from dstore.interfaces.client import Client
    from dstore.interfaces.extract import Extraction

    target = (output or Path(path.rstrip("/").rpartition("/")[2])).absolute()
    done = 0
    with _unwound_by_sigterm(), ProgressLine(path) as line, Extraction(target) as extraction:
        for item in Client.of_home(home).tree(path):
            if isinstance(item, bytes):
                done += len(item)
                extraction.write(item)
                line.update("read", done, None)
            else:
                extraction.enter(item)
        extraction.finish()
    if as_json:
        say_form({"path": path, "output": str(target), "files": extraction.files, "bytes": done})
    else:
        plural = "" if extraction.files == 1 else "s"
        say(f"wrote {target}: {extraction.files} file{plural}, {done} bytes")


@click.command()
@click.argument("path", metavar="CID[/PATH]")
@click.option("--offset", metavar="N", type=click.IntRange(min=0), default=0, help="First byte.")
@click.option("--length", metavar="N", type=click.IntRange(min=0), help="How many bytes.")
@home_option
@json_option
def cat(path: str, offset: int, length: int | None, home: Path, as_json: bool) -> None:
    """Write the bytes of a file to standard output.

    With --json one object a line for each piece: its `offset`, and its bytes in base64 as
    `data`.
    """
    from dstore.interfaces.client import Client

    output = sys.stdout.buffer
    with Client.of_home(home).cat(path, offset, length) as pieces:
        for piece in pieces:
            if as_json:
                say_form({"offset": offset, "data": b64encode(piece).decode()})
                offset += len(piece)
            else:
                output.write(piece)
    output.flush()


@click.command()
@click.argument("path", metavar="CID[/PATH]")
@home_option
@json_option
def ls(path: str, home: Path, as_json: bool) -> None:
    """List a directory: CID, size and name of each entry.

    With --json one object a line.
    """
    from dstore.interfaces.client import Client

    entries: Iterator[dict[str, Any]] = Client.of_home(home).ls(path)
    if as_json:
        for entry in entries:
            say_form(entry)
        return
    table([_row(entry) for entry in entries], ["CID", "SIZE", "NAME"])


def _row(entry: dict[str, Any]) -> list[str]:
    size = "-" if entry["size"] is None else str(entry["size"])
    name = {"directory": f"{entry['name']}/", "symlink": f"{entry['name']} -> {entry['target']}"}
    return [entry["cid"], size, name.get(entry["kind"], entry["name"])]
