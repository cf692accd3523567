"""Two processes, real TCP: a block crosses the hardened host and is checked against its CID.

The serving process is this file run as a script; a third process sends garbage and leaves,
and the block still comes.
"""

from __future__ import annotations

import hashlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import pytest
import trio

from dstore.core.cid import CID, RAW
from dstore.core.endpoint import parse_endpoint
from dstore.errors import ConnectionLost, NetworkError
from dstore.limits import BLOCK_BYTES_MAX
from dstore.network.addresses import parse_target
from dstore.network.host import HostOptions, open_host
from dstore.network.streams import BufferedReader, PeerAddresses, Stream, frame
from dstore.runtime import Runtime

PROTOCOL = "/test/block/1"


def block_of(size: int) -> bytes:
    """The same bytes in every process."""
    return hashlib.shake_128(b"a block").digest(size)


async def serve(size: int) -> None:
    """Answer a request for the block's CID with the block, for any other with nothing."""
    block = block_of(size)
    cid = CID.of(RAW, block)

    async def handler(stream: Stream) -> None:
        reader = BufferedReader(stream)
        while (wanted := await reader.read_message(100)) is not None:
            await stream.write(frame(block if wanted == cid.binary else b""))

    async with open_host(HostOptions(), os.urandom(32), Runtime()) as host:
        host.set_handler(PROTOCOL, handler)
        print(f"{host.addresses()[0]}/p2p/{host.peer_id}", flush=True)
        # Until the parent lets go of the pipe.
        async with trio.lowlevel.FdStream(os.dup(0)) as stdin:
            await stdin.receive_some(1)


def be_hostile(address: str) -> None:
    """Send garbage on many connections and leave without a word."""
    endpoint = parse_endpoint(address)
    for number in range(50):
        with socket.create_connection((endpoint.host, endpoint.port), timeout=10) as line:
            line.sendall(b"\x13/multistream/1.0.0\n" * (number % 2) + os.urandom(1 + number * 97))


@asynccontextmanager
async def serving(size: int) -> AsyncIterator[tuple[PeerAddresses, trio.Process]]:
    async with trio.open_nursery() as nursery:
        process: trio.Process = await nursery.start(
            partial(
                trio.run_process,
                [sys.executable, __file__, "serve", str(size)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                check=False,
            )
        )
        assert process.stdout is not None
        line = b""
        with trio.fail_after(60):
            while not line.endswith(b"\n"):
                chunk = await process.stdout.receive_some()
                assert chunk, "the serving process ended"
                line += chunk
        try:
            yield parse_target(line.decode().strip()), process
        finally:
            nursery.cancel_scope.cancel()


async def fetch(stream: Stream, cid: CID) -> bytes:
    await stream.write(frame(cid.binary))
    block = await BufferedReader(stream).read_message(BLOCK_BYTES_MAX)
    assert block is not None
    return block


@pytest.mark.parametrize("size", [1, 262_144, BLOCK_BYTES_MAX])
async def test_a_block_crosses_and_is_what_its_cid_says(size: int) -> None:
    cid = CID.of(RAW, block_of(size))
    async with (
        serving(size) as (target, _),
        open_host(HostOptions(listen=()), os.urandom(32), Runtime()) as host,
    ):
        await host.connect(target)
        stream = await host.open_stream(target.peer, [PROTOCOL])
        for _ in range(3):
            assert cid.verify(await fetch(stream, cid))
        await stream.write(frame(CID.of(RAW, b"not there").binary))
        await stream.close()


async def test_garbage_of_a_third_process_changes_nothing() -> None:
    cid = CID.of(RAW, block_of(100_000))
    async with (
        serving(100_000) as (target, server),
        open_host(HostOptions(listen=()), os.urandom(32), Runtime()) as host,
    ):
        await host.connect(target)
        stream = await host.open_stream(target.peer, [PROTOCOL])
        assert cid.verify(await fetch(stream, cid))
        await trio.run_process([sys.executable, __file__, "hostile", target.addresses[0]])
        assert cid.verify(await fetch(stream, cid))
        await host.disconnect(target.peer)
        await host.connect(target)
        again = await host.open_stream(target.peer, [PROTOCOL])
        assert cid.verify(await fetch(again, cid))
        assert server.returncode is None


async def test_a_killed_process_is_noticed_at_once() -> None:
    cid = CID.of(RAW, block_of(1_000))
    async with (
        serving(1_000) as (target, server),
        open_host(HostOptions(listen=()), os.urandom(32), Runtime()) as host,
    ):
        await host.connect(target)
        stream = await host.open_stream(target.peer, [PROTOCOL])
        assert cid.verify(await fetch(stream, cid))
        server.send_signal(signal.SIGKILL)
        with trio.fail_after(10), pytest.raises(ConnectionLost):
            await stream.read_some()
        assert host.connected() == []
        with trio.fail_after(10), pytest.raises(NetworkError):
            await host.open_stream(target.peer, [PROTOCOL])


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        trio.run(serve, int(sys.argv[2]))
    else:
        be_hostile(sys.argv[2])
