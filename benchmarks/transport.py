"""Noise streams between two processes: our stack against py-libp2p's own, in one run.

    python benchmarks/transport.py [bulk] [--mib 256] [--runs 5] [--streams 1] [--json]
    python benchmarks/transport.py requests [--count 4000] [--runs 5] [--streams 16] [--json]
    python benchmarks/transport.py connect [--count 6] [--runs 5] [--json]

The two stacks take turns.  Each run starts a process that receives, and connects over loopback
TCP.  `bulk` warms up and times `--mib` MiB until the receiver has said that all of it came:
MB/s, and the CPU seconds that each end spends on a GiB.  `requests` times small questions (72
bytes, one byte back), one after another on each stream: how many a second in all.  `connect`
times connections one after another, TCP, Noise, yamux and the first stream: how many a second
(the stock host gives up after eight).
"ours" is `dstore.network.host`; "stock" is `libp2p.new_host` with Noise and its yamux.
Prints the medians and their ratio.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import secrets
import statistics
import sys
import time
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

import trio

PROTOCOL = "/dstore/bench/1.0.0"
PIECE = 1024 * 1024
WARM_MIB = 16
DATA = secrets.token_bytes(PIECE)  # the same for however many streams, or caches would decide
QUESTION_BYTES = 64
STACKS = ("stock", "ours")
SCRIPT = str(Path(__file__).resolve())


async def drain(stream: Any, size: int, *, whole: bool) -> None:
    """Read `size` bytes.  `whole` asks libp2p's stream for pieces of 1 MiB."""
    while size:
        data = await (
            stream.read(min(size, PIECE)) if whole else stream.read_some(min(size, PIECE))
        )
        if not data:
            raise SystemExit("the stream ended early")
        size -= len(data)


async def receive(stream: Any, *, whole: bool) -> None:
    """Serve one stream: a size, that many bytes, one byte back; again and again."""
    while True:
        head = b""
        while len(head) < 8:
            missing = 8 - len(head)
            piece = await (stream.read(missing) if whole else stream.read_some(missing))
            if not piece:
                return
            head += piece
        await drain(stream, int.from_bytes(head, "big"), whole=whole)
        await stream.write(b"\1")


async def send(stream: Any, size: int, *, whole: bool) -> None:
    await stream.write(size.to_bytes(8, "big"))
    for _ in range(size // PIECE):
        await stream.write(DATA)
    await drain(stream, 1, whole=whole)


async def bulk(streams: list[Any], mib: int, *, whole: bool) -> float:
    """MB/s over all streams together."""

    async def all_of(each: int) -> None:
        async with trio.open_nursery() as nursery:
            for stream in streams:
                nursery.start_soon(_send, stream, each)

    async def _send(stream: Any, each: int) -> None:
        await send(stream, each * PIECE, whole=whole)

    await all_of(max(1, WARM_MIB // len(streams)))
    each = max(1, mib // len(streams))
    start = time.perf_counter()
    await all_of(each)
    return each * len(streams) * PIECE / (time.perf_counter() - start) / 1e6


async def requests(streams: list[Any], count: int, *, whole: bool) -> float:
    """Small questions a second, `count` in all."""
    question = QUESTION_BYTES.to_bytes(8, "big") + bytes(QUESTION_BYTES)

    async def ask(stream: Any, each: int) -> None:
        for _ in range(each):
            await stream.write(question)
            await drain(stream, 1, whole=whole)

    async def all_of(each: int) -> None:
        async with trio.open_nursery() as nursery:
            for stream in streams:
                nursery.start_soon(ask, stream, each)

    await all_of(10)
    each = max(1, count // len(streams))
    start = time.perf_counter()
    await all_of(each)
    return each * len(streams) / (time.perf_counter() - start)


MEASURES = {"bulk": bulk, "requests": requests}


async def with_cpu(measure: Awaitable[float]) -> tuple[float, float]:
    """The figure, and the CPU seconds of this process meanwhile."""
    begun = time.process_time()
    return await measure, time.process_time() - begun


# --- Ours -------------------------------------------------------------------------------


async def serve_ours() -> None:
    from dstore.network.host import HostOptions, open_host
    from dstore.runtime import Runtime

    seed = secrets.token_bytes(32)
    async with open_host(HostOptions(), seed, Runtime(random=random.SystemRandom())) as host:
        host.set_handler(PROTOCOL, lambda stream: receive(stream, whole=False))
        print(host.addresses()[0], host.peer_id, flush=True)
        await trio.sleep_forever()


async def run_ours(
    address: str, peer: str, what: str, amount: int, streams: int
) -> tuple[float, float]:
    from dstore.core.peerid import PeerId
    from dstore.network.host import HostOptions, open_host
    from dstore.network.streams import PeerAddresses
    from dstore.runtime import Runtime

    seed = secrets.token_bytes(32)
    async with open_host(HostOptions(), seed, Runtime(random=random.SystemRandom())) as host:
        target = PeerAddresses(PeerId.parse(peer), (address,))
        if what == "connect":
            spent = 0.0
            for _ in range(amount):
                start = time.perf_counter()
                await host.connect(target)
                await host.open_stream(target.peer, [PROTOCOL])
                spent += time.perf_counter() - start
                await host.disconnect(target.peer)
            return amount / spent, 0.0
        await host.connect(target)
        opened = [await host.open_stream(target.peer, [PROTOCOL]) for _ in range(streams)]
        return await with_cpu(MEASURES[what](opened, amount, whole=False))


# --- Stock ------------------------------------------------------------------------------


def stock_host() -> Any:
    from libp2p import new_host
    from libp2p.crypto.ed25519 import create_new_key_pair
    from libp2p.crypto.x25519 import create_new_key_pair as create_noise_key_pair
    from libp2p.security.noise.transport import PROTOCOL_ID, Transport

    pair = create_new_key_pair()
    noise = Transport(pair, create_noise_key_pair().private_key)
    return new_host(key_pair=pair, sec_opt={PROTOCOL_ID: noise}, muxer_preference="YAMUX")


async def serve_stock() -> None:
    from multiaddr import Multiaddr

    host = stock_host()
    async with host.run(listen_addrs=[Multiaddr("/ip4/127.0.0.1/tcp/0")]):

        async def handle(stream: Any) -> None:
            try:
                await receive(stream, whole=True)
            finally:
                await stream.reset()

        host.set_stream_handler(PROTOCOL, handle)
        address = str(host.get_addrs()[0]).split("/p2p/")[0]
        print(address, host.get_id(), flush=True)
        await trio.sleep_forever()


async def run_stock(
    address: str, peer: str, what: str, amount: int, streams: int
) -> tuple[float, float]:
    from libp2p.peer.peerinfo import info_from_p2p_addr
    from multiaddr import Multiaddr

    host = stock_host()
    async with host.run(listen_addrs=[]):
        info = info_from_p2p_addr(Multiaddr(f"{address}/p2p/{peer}"))
        if what == "connect":
            spent = 0.0
            for _ in range(amount):
                start = time.perf_counter()
                await host.connect(info)
                await host.new_stream(info.peer_id, [PROTOCOL])
                spent += time.perf_counter() - start
                await host.disconnect(info.peer_id)
            return amount / spent, 0.0
        await host.connect(info)
        opened = [await host.new_stream(info.peer_id, [PROTOCOL]) for _ in range(streams)]
        return await with_cpu(MEASURES[what](opened, amount, whole=True))


# --- Together ---------------------------------------------------------------------------


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def one_run(stack: str, what: str, amount: int, streams: int) -> list[float]:
    """Both ends in processes of their own: the sender's figure, and the CPU seconds of the
    sender and of the receiver meanwhile, warming up included."""
    command = [sys.executable, SCRIPT]
    async with trio.open_nursery() as nursery:
        server = await nursery.start(_process, [*command, "--serve", stack])
        try:
            line = b""
            while not line.endswith(b"\n"):
                line += await server.stdout.receive_some()
            address, peer = line.decode().split()
            options = ["--amount", str(amount), "--streams", str(streams)]
            before = cpu_seconds(server.pid)
            done = await trio.run_process(
                [*command, what, "--send", stack, "--to", address, peer, *options],
                capture_stdout=True,
            )
            figure, sender = map(float, done.stdout.split())
            return [figure, sender, cpu_seconds(server.pid) - before]
        finally:
            server.terminate()


async def _process(command: list[str], task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
    import subprocess

    await trio.run_process(
        command,
        task_status=task_status,
        stdout=subprocess.PIPE,
        check=False,
    )


async def compare(what: str, amount: int, runs: int, streams: int) -> dict[str, Any]:
    figures: dict[str, list[float]] = {stack: [] for stack in STACKS}
    cpu: dict[str, list[list[float]]] = {stack: [] for stack in STACKS}
    for _ in range(runs):
        for stack in STACKS:
            figure, *spent = await one_run(stack, what, amount, streams)
            figures[stack].append(round(figure, 1))
            cpu[stack].append(spent)
    gib = (amount + WARM_MIB) / 1024
    per_gib = {
        stack: dict(
            zip(
                ("sender", "receiver"),
                (round(statistics.median(end) / gib, 2) for end in zip(*spent, strict=True)),
                strict=True,
            )
        )
        for stack, spent in cpu.items()
    }
    medians = {stack: statistics.median(figures[stack]) for stack in STACKS}
    return {
        "benchmark": "transport",
        "what": what,
        "unit": "MB/s" if what == "bulk" else "per s",
        "amount": amount,
        "streams": streams,
        "cores": os.cpu_count(),
        "figures": figures,
        "medians": medians,
        "ratio": round(medians["ours"] / medians["stock"], 2),
        **({"cpu_s_per_gib": per_gib} if what == "bulk" else {}),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", nargs="?", default="bulk", choices=[*MEASURES, "connect"])
    parser.add_argument("--mib", "--count", "--amount", dest="amount", type=int)
    parser.add_argument("--runs", type=int, default=5, help="runs of each stack (default 5)")
    parser.add_argument("--streams", type=int, help="parallel streams (1; 16 for requests)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--serve", choices=STACKS, help=argparse.SUPPRESS)
    parser.add_argument("--send", choices=STACKS, help=argparse.SUPPRESS)
    parser.add_argument("--to", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        trio.run(serve_ours if options.serve == "ours" else serve_stock)
        return
    what = options.what
    amount = options.amount or {"bulk": 256, "requests": 4000, "connect": 6}[what]
    streams = options.streams or (16 if what == "requests" else 1)
    if options.send:
        run = run_ours if options.send == "ours" else run_stock
        print(*trio.run(run, *options.to, what, amount, streams))
        return
    result = trio.run(compare, what, amount, options.runs, streams)
    if options.json:
        print(json.dumps(result))
        return
    for stack in STACKS:
        print(f"{stack:6} {result['medians'][stack]:8.1f} {result['unit']} (median)")
    print(f"ratio  {result['ratio']:8.2f}")


if __name__ == "__main__":
    main()
