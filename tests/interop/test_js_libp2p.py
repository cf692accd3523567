"""Our host and a js-libp2p node exchange bytes over TCP, Noise and yamux, dialled from
either side.  The versions are those of `js/package-lock.json`."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from dstore.core.peerid import PeerId
from dstore.network.host import HostOptions, open_host
from dstore.network.streams import PeerAddresses, Stream
from dstore.runtime import Runtime
from tests.interop.kad_node import js_command, running

pytestmark = pytest.mark.slow

ECHO = "/dstore/test/echo/1.0.0"
SIZE = 700_001  # several windows' worth of frames, and no round number


@pytest.fixture(scope="module")
def node() -> list[str]:
    """The command that runs the js-libp2p node, its packages installed."""
    return js_command("node.mjs")


@asynccontextmanager
async def js_listener(node: list[str]) -> AsyncIterator[PeerAddresses]:
    """A js-libp2p node that echoes."""
    async with running([*node, "listen"]) as process:
        assert process.stdout is not None
        with trio.fail_after(30):
            line = b""
            while not line.endswith(b"\n"):
                piece = await process.stdout.receive_some()
                assert piece, "the js-libp2p node ended before it listened"
                line += piece
        address, _, peer = line.decode().strip().rpartition("/p2p/")
        yield PeerAddresses(PeerId.parse(peer), (address,))


async def test_we_dial_js(node: list[str]) -> None:
    sent = random.Random(1).randbytes(SIZE)
    runtime = Runtime(random=random.Random(2))
    async with js_listener(node) as js, open_host(HostOptions(), bytes(32), runtime) as host:
        with trio.fail_after(30):
            await host.connect(js)
            connection = host._swarm.connection(js.peer)
            assert connection is not None
            assert connection.muxer_named_early
            # Two at a time: windows and frames of both on one connection.
            async with trio.open_nursery() as nursery:
                for _ in range(2):
                    nursery.start_soon(_echo_through, await host.open_stream(js.peer, [ECHO]), sent)


async def _echo_through(stream: Stream, sent: bytes) -> None:
    digest, size = hashlib.sha256(), 0

    async def write() -> None:
        await stream.write(sent)
        await stream.close_write()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(write)
        while data := await stream.read_some():
            digest.update(data)
            size += len(data)
    assert size == len(sent)
    assert digest.digest() == hashlib.sha256(sent).digest()
    await stream.close()


async def test_js_dials_us(node: list[str]) -> None:
    async def echo(stream: Stream) -> None:
        while data := await stream.read_some():
            await stream.write(data)

    runtime = Runtime(random=random.Random(3))
    async with open_host(HostOptions(), bytes(range(32)), runtime) as host:
        host.set_handler(ECHO, echo)
        address = f"{host.addresses()[0]}/p2p/{host.peer_id}"
        with trio.fail_after(30):
            done = await trio.run_process([*node, "dial", address, str(SIZE)], capture_stdout=True)
    assert json.loads(done.stdout) == {"bytes": SIZE, "same": True}
