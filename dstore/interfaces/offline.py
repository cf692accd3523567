"""What works without a daemon: computing CIDs, and adding to a home that nobody uses.

The home is locked meanwhile, as a daemon would.  Nothing here touches the network.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import trio

from dstore.config import load_config
from dstore.core.unixfs import DEFAULT_PROFILE, profile_named
from dstore.interfaces.arguments import add_options
from dstore.interfaces.forms import Form, add_form
from dstore.interfaces.settings import node_options
from dstore.limits import MIB
from dstore.runtime import Runtime
from dstore.service.homestores import open_stores
from dstore.service.importing import Imported, Importer
from dstore.service.localadd import add_locally
from dstore.service.progress import AddResult, Progress
from dstore.service.rootturns import RootTurns
from dstore.storage.layout import Home

Update = Callable[[str, int, int | None], None]
STDIN = "-"


def cids_of(
    paths: Sequence[str], profile: str | None, hidden: bool, update: Update
) -> list[tuple[str, str]]:
    """Each path with the CID that it has under a profile; nothing is stored.  Raises
    NotFoundError, CallerError."""
    chosen = profile_named(profile or DEFAULT_PROFILE.name)

    async def work() -> list[tuple[str, str]]:
        runtime = Runtime()
        found: list[tuple[str, str]] = []
        for path in paths:
            importer = Importer(chosen, _discard, runtime.workers, _reporter(update))
            imported = await _import(importer, path, hidden, runtime)
            found.append((path, str(imported.cid)))
        return found

    return trio.run(work)


def add_to_home(
    directory: Path, paths: Sequence[str], given: Form, hidden: bool, update: Update
) -> list[Form]:
    """Add to the stores of a home, with local pins.  Raises AlreadyRunning, NotFoundError,
    CallerError, NodeError."""
    options = add_options(given)
    config = load_config(directory / "node.toml")

    async def add(path: str, runtime: Runtime, stores: Any) -> Form:
        imported = await add_locally(
            stores,
            RootTurns(),
            runtime,
            lambda importer: _import(importer, path, hidden, runtime),
            options,
            _reporter(update),
        )
        result = AddResult(imported.cid, imported.size, warnings=imported.warnings)
        return add_form(result, options.name or (None if path == STDIN else Path(path).name))

    async def work() -> list[Form]:
        runtime = Runtime()
        home = Home(directory)
        home.check()
        with home.lock():
            options = node_options(config)
            async with open_stores(
                home,
                runtime,
                capacity_bytes=options.capacity_bytes,
                reserve_bytes=options.reserve_bytes,
            ) as stores:
                return [await add(path, runtime, stores) for path in paths]

    return trio.run(work)


async def _import(importer: Importer, path: str, hidden: bool, runtime: Runtime) -> Imported:
    if path == STDIN:
        return await importer.add_stream(_standard_input(runtime))
    return await importer.add_path(Path(path), hidden=hidden)


async def _standard_input(runtime: Runtime) -> AsyncIterator[bytes]:
    while piece := await runtime.workers.run(sys.stdin.buffer.read, MIB):
        yield piece


def _discard(_: object) -> None:
    """Blocks that nobody keeps."""


def _reporter(update: Update) -> Callable[[Progress], None]:
    def report(progress: Progress) -> None:
        update(progress.stage, progress.done_bytes, progress.total_bytes)

    return report
