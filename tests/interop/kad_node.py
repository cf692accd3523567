"""DHT nodes of other implementations, each a process of its own: js-libp2p's (`js/dht.mjs`)
and go-libp2p's, which Kubo uses (`go/main.go`).

Both read the same lines and answer each with one line of JSON, a list of peers or an error:
`connect ADDRESS`, `table`, `find PEER`, and of a key in hex (a multihash) `closest`,
`provide`, `providers`.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Literal

import pytest
import trio

from dstore.core.peerid import PeerId
from dstore.network.streams import PeerAddresses

HERE = Path(__file__).parent
BUILD_SECONDS = 300  # from nothing; the cache of go's tool makes the next one short


def js_command(script: str) -> list[str]:
    """The command that runs `script` of js/, its packages installed; skips without node."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        pytest.skip("js-libp2p needs node and npm, and they are not installed")
    folder = HERE / "js"
    lock = folder / "package-lock.json"
    installed = folder / "node_modules" / ".package-lock.json"
    # Tests that run beside each other install once.
    with lock.open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        if not installed.exists() or installed.stat().st_mtime < lock.stat().st_mtime:
            done = subprocess.run(
                [npm, "ci", "--no-audit", "--no-fund"],
                cwd=folder,
                capture_output=True,
                text=True,
                timeout=100,
                check=False,
            )
            assert done.returncode == 0, f"npm ci failed:\n{done.stdout}\n{done.stderr}"
    return [node, str(folder / script)]


def go_command(folder: Path) -> list[str]:
    """The command that runs the node of go/, built into `folder`; skips without go and where
    its modules cannot be had."""
    go = shutil.which("go") or shutil.which("/usr/local/go/bin/go")
    if go is None:
        pytest.skip("go-libp2p needs go, and it is not installed")
    program = folder / "dht"
    for arguments in (["mod", "download"], ["build", "-trimpath", "-o", str(program), "."]):
        done = subprocess.run(
            [go, *arguments],
            cwd=HERE / "go",
            # No other compiler is fetched; repositories around this one do not matter.
            env={**os.environ, "GOTOOLCHAIN": "local", "GOFLAGS": "-mod=readonly -buildvcs=false"},
            capture_output=True,
            text=True,
            timeout=BUILD_SECONDS,
            check=False,
        )
        if done.returncode and arguments[0] == "mod":
            pytest.skip(f"the modules of go-libp2p cannot be had: {done.stderr.strip()[-300:]}")
        assert done.returncode == 0, f"go build failed:\n{done.stderr}"
    return [str(program)]


@asynccontextmanager
async def running(command: list[str]) -> AsyncIterator[trio.Process]:
    """A process with pipes, which ends when its input does, and is killed if it does not."""
    process = await trio.lowlevel.open_process(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield process
    finally:
        with trio.CancelScope(shield=True):
            await process.stdin.aclose()
            with trio.move_on_after(5):
                await process.wait()
            if process.returncode is None:
                process.kill()
                await process.wait()
            await process.stdout.aclose()


class KadNode:
    """One such process; made by `kad_node`."""

    def __init__(self, process: trio.Process) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._stdin, self._stdout = process.stdin, process.stdout
        self._read = bytearray()
        self.address = ""
        self.where: PeerAddresses

    async def started(self) -> None:
        """Wait for its address."""
        self.address = (await self._line()).strip()
        address, _, peer = self.address.rpartition("/p2p/")
        self.where = PeerAddresses(PeerId.parse(peer), (address,))

    async def _line(self) -> str:
        while b"\n" not in self._read:
            piece = await self._stdout.receive_some()
            assert piece, "the node's process ended"
            self._read += piece
        line, _, self._read = self._read.partition(b"\n")
        return line.decode()

    async def ask(self, command: str, argument: str = "") -> dict[PeerId, tuple[str, ...]]:
        """What it answers: peers and their addresses."""
        await self._stdin.send_all(f"{command} {argument}".rstrip().encode() + b"\n")
        answer = json.loads(await self._line())
        assert isinstance(answer, list), f"{command}: {answer['error']}"
        return {PeerId.parse(each["peer"]): tuple(each["addresses"]) for each in answer}

    async def connect(self, target: PeerAddresses) -> None:
        """Have it dial `target`."""
        await self.ask("connect", f"{target.addresses[0]}/p2p/{target.peer}")

    async def table(self) -> set[PeerId]:
        """Who is in its table."""
        return set(await self.ask("table"))

    async def knows(self, *peers: PeerId) -> None:
        """Wait until these are in its table: it checks them first, and tells nobody."""
        while not await self.table() >= set(peers):  # noqa: ASYNC110  # no event crosses
            await trio.sleep(0.02)


@asynccontextmanager
async def kad_node(
    command: list[str], mode: Literal["server", "client"], protocol: str
) -> AsyncIterator[KadNode]:
    """A node that runs until the block ends."""
    async with running([*command, mode, protocol]) as process:
        node = KadNode(process)
        with trio.fail_after(30):
            await node.started()
        yield node
