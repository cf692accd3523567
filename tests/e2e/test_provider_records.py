"""A daemon that keeps provider records is killed and started again: it serves them still."""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest
import trio

from dstore.core.peerid import PeerId
from dstore.limits import PROVIDER_SAVE_SECONDS
from dstore.network.host import HostOptions, Libp2pHost, open_host
from dstore.network.routing import Routing, RoutingOptions, open_routing
from dstore.network.streams import PeerAddresses
from dstore.runtime import Runtime
from dstore.storage.layout import Home

pytestmark = pytest.mark.slow

KEYS = [b"\x12\x20" + hashlib.sha256(bytes([number])).digest() for number in range(3)]
PATIENCE_SECONDS = 30


@asynccontextmanager
async def daemon(home: Home) -> AsyncIterator[PeerAddresses]:
    """`dstore run` until the block ends, and then killed."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("DSTORE_")}
    process = await trio.lowlevel.open_process(
        [sys.executable, "-m", "dstore", "run", "--json", "--home", str(home.directory)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environ
        | {
            "DSTORE_NETWORK_LISTEN": "/ip4/127.0.0.1/tcp/0",
            "DSTORE_GATEWAY_LISTEN": "127.0.0.1:0",
        },
    )
    assert process.stdout is not None
    try:
        line = b""
        with trio.fail_after(PATIENCE_SECONDS):
            while not line.endswith(b"\n"):
                piece = await process.stdout.receive_some()
                assert piece, "the daemon ended before it was ready"
                line += piece
        ready = json.loads(line)
        addresses = [each.partition("/p2p/")[0] for each in ready["addresses"]]
        yield PeerAddresses(PeerId.parse(ready["peer_id"]), tuple(addresses))
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()
            await process.stdout.aclose()


@asynccontextmanager
async def peer_of(target: PeerAddresses, seed: int) -> AsyncIterator[tuple[Libp2pHost, Routing]]:
    """A peer that knows nobody but `target`."""
    runtime = Runtime()
    async with (
        open_host(HostOptions(), bytes([seed]) * 32, runtime) as host,
        open_routing(host, RoutingOptions(mode="client"), runtime) as routing,
    ):
        with trio.fail_after(PATIENCE_SECONDS):
            assert await routing.bootstrap([target]) == 1
        yield host, routing


def saved(home: Home) -> set[bytes]:
    """The keys in the daemon's file."""
    with closing(sqlite3.connect(f"file:{home.providers}?mode=ro", uri=True)) as file:
        return {key for (key,) in file.execute("SELECT key FROM records")}


async def test_a_killed_daemon_serves_the_records_of_others_again(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    async with daemon(home) as before:
        async with peer_of(before, 1) as (host, routing):
            provider = PeerAddresses(host.peer_id, tuple(host.addresses()))
            for key in KEYS:
                assert await routing.provide(key) == 1
        # Its provider is gone: after the kill the file alone knows.
        with trio.fail_after(PROVIDER_SAVE_SECONDS + PATIENCE_SECONDS):
            while saved(home) != set(KEYS):  # noqa: ASYNC110  # another process writes it
                await trio.sleep(0.05)
    async with daemon(home) as after, peer_of(after, 2) as (_, routing):
        assert after.peer == before.peer
        with trio.fail_after(PATIENCE_SECONDS):
            for key in KEYS:
                found: list[PeerAddresses] = []
                while not found:  # the file is read while the daemon serves already
                    found = [each async for each in routing.find_providers(key)]
                assert found == [provider]
