"""An honest client beside slow senders in every phase: its median and its p99, with and without.

    python -m benchmarks.slow_senders [--slow 500] [--seconds 12] [--runs 5] [--json]

One node process with a file of 4 KiB.  Another process holds `--slow` connections, a fifth of
them in each phase: the negotiation before Noise, the Noise handshake, the headers and the body
of an HTTP request, and a request on a fragment stream.  Each sends a byte a second, and comes
again when it is cut off.  Meanwhile this process asks, one question after another, for the file
over a fresh HTTP connection, and for TCP, Noise, yamux and a ping: for `--seconds` without the
slow senders, then for as long beside them.  Milliseconds; medians of the runs.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import secrets
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import trio

from benchmarks.protected import DSTORE, Role, dstore
from dstore.core.endpoint import parse_endpoint
from dstore.core.peerid import PeerId
from dstore.core.wire import PROTOCOL
from dstore.errors import DstoreError
from dstore.network.connection import upgrade
from dstore.network.host import HostOptions, open_host
from dstore.network.identity import key_pair_of
from dstore.network.negotiate import propose
from dstore.network.noise import NOISE_PROTOCOL, NoiseTransport
from dstore.network.streams import PeerAddresses
from dstore.network.tcp import TcpConnection, dial_tcp
from dstore.runtime import Runtime, open_plain_nursery

_FILE_BYTES = 4096
_TRICKLE_SECONDS = 1.0
_HOLD_SECONDS = 30  # for all slow connections to be open
_BEGINNING = b"\x13/multistream/1.0.0\n"
_LONG = b"\xff\x3f"  # a message of 8,191 bytes follows, both to yamux's users and to Noise

Write = Callable[[bytes], Awaitable[None]]


class Crowd:
    """The slow senders: how many are held, and how often each kind was cut off."""

    def __init__(self, node: dict[str, Any]) -> None:
        self._peer = PeerId.parse(node["peer_id"])
        self._address = node["addresses"][0].rsplit("/p2p/", 1)[0]
        self._gateway = urlsplit(node["gateway"]).port
        self.held = 0
        self.cut: Counter[str] = Counter()
        self.phases = {
            "negotiation": self._negotiation,
            "handshake": self._handshake,
            "headers": self._headers,
            "body": self._body,
            "fragments": self._fragments,
        }

    async def keep(self, phase: str) -> None:
        """One slow sender, again and again, at an instant of its own in each second."""
        await trio.sleep(random.random() * _TRICKLE_SECONDS)
        while True:
            try:
                await self.phases[phase]()
            except (DstoreError, OSError, trio.BrokenResourceError):
                self.cut[phase] += 1
                await trio.sleep(_TRICKLE_SECONDS)

    async def _trickle(self, write: Write, data: bytes) -> None:
        self.held += 1
        try:
            for byte in itertools.cycle(data):
                await write(bytes([byte]))
                await trio.sleep(_TRICKLE_SECONDS)
        finally:
            self.held -= 1

    async def _dial(self) -> TcpConnection:
        dialled = await dial_tcp(parse_endpoint(self._address))
        return TcpConnection(dialled, is_initiator=True)

    async def _negotiation(self) -> None:
        raw = await self._dial()
        try:
            await self._trickle(raw.write, _BEGINNING)
        finally:
            await raw.close()

    async def _handshake(self) -> None:
        raw = await self._dial()
        try:
            await propose(raw, [NOISE_PROTOCOL])
            await raw.write(_LONG)
            await self._trickle(raw.write, b"x")
        finally:
            await raw.close()

    async def _http(self, start: bytes) -> None:
        stream = await trio.open_tcp_stream("127.0.0.1", self._gateway)
        async with stream:
            await stream.send_all(start)
            await self._trickle(stream.send_all, b"x")

    async def _headers(self) -> None:
        await self._http(b"GET / HTTP/1.1\r\nHost: localhost\r\nA: ")

    async def _body(self) -> None:
        await self._http(
            b"POST /ipfs/x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9999\r\n\r\n"
        )

    async def _fragments(self) -> None:
        noise = NoiseTransport(key_pair_of(secrets.token_bytes(32)))
        connection = await upgrade(await self._dial(), noise, _HOLD_SECONDS, self._peer)
        async with open_plain_nursery() as nursery:
            nursery.start_soon(connection.run)
            try:
                stream = await connection.open_stream()
                await propose(stream, [PROTOCOL])
                await stream.write(_LONG)
                await self._trickle(stream.write, b"x")
            finally:
                nursery.cancel_scope.cancel()


async def crowd(node: dict[str, Any], count: int) -> None:
    """Hold the slow senders, say so, and what became of them when standard input ends."""
    slow = Crowd(node)
    async with trio.open_nursery() as nursery:
        for _, phase in zip(range(count), itertools.cycle(slow.phases), strict=False):
            nursery.start_soon(slow.keep, phase)
        with trio.fail_after(_HOLD_SECONDS):
            while slow.held < count * 0.98:  # noqa: ASYNC110  # some are cut off at any time
                await trio.sleep(0.01)
        print("held", flush=True)
        await trio.to_thread.run_sync(sys.stdin.read)
        print(json.dumps({"held": slow.held, "cut": slow.cut}), flush=True)
        nursery.cancel_scope.cancel()


# --- The honest client --------------------------------------------------------------------


async def fetch(node: dict[str, Any], cid: str) -> None:
    """The file, over a connection of its own."""
    stream = await trio.open_tcp_stream("127.0.0.1", urlsplit(node["gateway"]).port)
    async with stream:
        head = f"GET /ipfs/{cid} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        await stream.send_all(head.encode())
        answer = b""
        while piece := await stream.receive_some():
            answer += piece
    if not answer.startswith(b"HTTP/1.1 200") or len(answer) < _FILE_BYTES:
        raise SystemExit(f"not the file: {answer[:80]!r}")


async def honest(node: dict[str, Any], cid: str, seconds: float) -> dict[str, float]:
    """Milliseconds of the two questions, asked in turns."""
    target = PeerAddresses(PeerId.parse(node["peer_id"]), tuple(node["addresses"]))
    spent: dict[str, list[float]] = {"get": [], "connect": []}
    async with open_host(HostOptions(listen=()), secrets.token_bytes(32), Runtime()) as host:

        async def connect() -> None:
            await host.connect(target)
            await host.ping(target.peer)

        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            begun = time.perf_counter()
            await fetch(node, cid)
            got = time.perf_counter()
            await connect()
            connected = time.perf_counter()
            spent["get"].append(1000 * (got - begun))
            spent["connect"].append(1000 * (connected - got))
            await host.disconnect(target.peer)
    found: dict[str, float] = {"questions": 2 * len(spent["get"])}
    for what, times in spent.items():
        found[f"{what}_ms"] = statistics.median(times)
        found[f"{what}_p99_ms"] = statistics.quantiles(times, n=100)[-1]
    return found


# --- Together -----------------------------------------------------------------------------


@contextmanager
def one_node(home: Path) -> Iterator[tuple[dict[str, Any], Role]]:
    dstore("init", "--home", str(home), "--listen", "/ip4/127.0.0.1/tcp/0")
    process = subprocess.Popen(
        [DSTORE, "run", "--home", home, "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "DSTORE_GATEWAY_LISTEN": "127.0.0.1:0"},
    )
    try:
        assert process.stdout is not None
        yield json.loads(process.stdout.readline()), Role(process.pid)
    finally:
        process.terminate()
        process.wait(20)


@contextmanager
def slow_senders(node: dict[str, Any], count: int, told: dict[str, Any]) -> Iterator[None]:
    command = [sys.executable, "-m", "benchmarks.slow_senders", "--slow", str(count)]
    process = subprocess.Popen(
        [*command, "--crowd", json.dumps(node)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        if process.stdout.readline() != "held\n":
            raise SystemExit("the slow connections could not be opened")
        yield
        output, _ = process.communicate("", timeout=20)
        told.update(json.loads(output))
    finally:
        process.kill()
        process.wait(20)


def measure(slow: int, seconds: float, runs: int) -> dict[str, Any]:
    rows: dict[str, list[dict[str, float]]] = {"alone": [], "elsewhere": [], "beside": []}
    cut: Counter[str] = Counter()
    held = []
    with tempfile.TemporaryDirectory(prefix="dstore-slow-") as name, ExitStack() as stack:
        file = Path(name) / "file"
        file.write_bytes(os.urandom(_FILE_BYTES))
        node, role = stack.enter_context(one_node(Path(name) / "home"))
        other, _ = stack.enter_context(one_node(Path(name) / "other"))
        cid = dstore("add", "--home", node["home"], "--local-only", str(file))["cid"]
        trio.run(honest, node, cid, 1.0)  # all is loaded
        for _ in range(runs):
            rows["alone"].append(trio.run(honest, node, cid, seconds))
            told: dict[str, Any] = {}
            with slow_senders(other, slow, told):
                rows["elsewhere"].append(trio.run(honest, node, cid, seconds))
            with slow_senders(node, slow, told):
                rows["beside"].append(trio.run(honest, node, cid, seconds))
            cut.update(told["cut"])
            held.append(told["held"])
        peak = role.peak_mib()
    medians = {
        when: {key: round(statistics.median(row[key] for row in each), 2) for key in each[0]}
        for when, each in rows.items()
    }
    ratios = {
        key: round(medians["beside"][key] / medians["elsewhere"][key], 2)
        for key in medians["elsewhere"]
        if key.endswith("_ms")
    }
    return {
        "benchmark": "slow_senders",
        "slow": slow,
        "held_at_the_end": held,
        "cut_off": dict(cut),
        "node_peak_mib": peak,
        **medians,
        "ratio": ratios,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--slow", type=int, default=500, help="slow connections (default 500)")
    parser.add_argument("--seconds", type=float, default=12, help="of each measurement")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--crowd", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.crowd:
        trio.run(crowd, json.loads(options.crowd), options.slow)
        return
    result = measure(options.slow, options.seconds, options.runs)
    print(json.dumps(result, indent=None if options.json else 1))


if __name__ == "__main__":
    main()
