"""What a reader that stops reading costs the others on its connection.

    python -m benchmarks.slow_reader [--mib 256] [--stalled 8] [--runs 5] [--json]

Two processes, one connection over loopback TCP with Noise and yamux.  A bulk transfer on one
stream is timed alone, and while the receiver has stopped reading `--stalled` other streams that
the sender goes on filling: MB/s of both, in turns, and their ratio.  Beside it what each stopped
stream takes before its sender has to wait, and how much the receiver's memory grows meanwhile.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import trio

from benchmarks.protected import memory_mib
from benchmarks.transport import PIECE, PROTOCOL, bulk, receive
from dstore.core.peerid import PeerId
from dstore.network.host import HostOptions, Libp2pHost, open_host
from dstore.network.streams import PeerAddresses, Stream
from dstore.runtime import Runtime

_STOPPED = "/dstore/bench/stopped/1.0.0"
_KIB = 1024
_QUIET_SECONDS = 0.5  # without a byte taken: the sender waits


async def serve() -> None:
    """The receiving end: one protocol that is read, and one that is not."""

    async def hold(stream: Stream) -> None:
        await trio.sleep_forever()

    async with open_host(HostOptions(), os.urandom(32), Runtime()) as host:
        host.set_handler(PROTOCOL, lambda stream: receive(stream, whole=False))
        host.set_handler(_STOPPED, hold)
        print(host.addresses()[0], host.peer_id, flush=True)
        await trio.sleep_forever()


class Stopped:
    """Streams that nobody reads, filled until their senders wait."""

    def __init__(self) -> None:
        self.taken_bytes = 0
        self._taken = trio.Event()

    async def fill(self, stream: Stream) -> None:
        while True:
            await stream.write(bytes(16 * _KIB))
            self.taken_bytes += 16 * _KIB
            self._taken.set()
            self._taken = trio.Event()

    async def full(self) -> None:
        waiting = False
        while not waiting:
            with trio.move_on_after(_QUIET_SECONDS) as scope:
                await self._taken.wait()
            waiting = scope.cancelled_caught


async def one_run(
    host: Libp2pHost, peer: PeerId, receiver: Path, mib: int, stalled: int
) -> dict[str, float]:
    stream = await host.open_stream(peer, [PROTOCOL])
    alone = await bulk([stream], mib, whole=False)
    before = memory_mib(receiver, "VmRSS")
    opened = [await host.open_stream(peer, [_STOPPED]) for _ in range(stalled)]
    async with trio.open_nursery() as nursery:
        stopped = Stopped()
        for one in opened:
            nursery.start_soon(stopped.fill, one)
        await stopped.full()
        grown = memory_mib(receiver, "VmRSS") - before
        beside = await bulk([stream], mib, whole=False)
        nursery.cancel_scope.cancel()
    for one in opened:
        await one.reset()
    await stream.close()
    return {
        "alone_mb_per_s": alone,
        "beside_mb_per_s": beside,
        "percent": 100 * beside / alone,
        "taken_kib_each": stopped.taken_bytes / _KIB / stalled,
        "receiver_mib_more": grown,
    }


async def measure(mib: int, stalled: int, runs: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.slow_reader", "--serve"]
    server = await trio.lowlevel.open_process(command, stdout=subprocess.PIPE)
    try:
        assert server.stdout is not None
        line = b""
        while not line.endswith(b"\n"):
            line += await server.stdout.receive_some()
        address, name = line.decode().split()
        peer = PeerId.parse(name)
        async with open_host(HostOptions(), os.urandom(32), Runtime()) as host:
            await host.connect(PeerAddresses(peer, (address,)))
            receiver = Path(f"/proc/{server.pid}")
            rows = [await one_run(host, peer, receiver, mib, stalled) for _ in range(runs)]
    finally:
        server.terminate()
    medians = {name: round(statistics.median(row[name] for row in rows), 1) for name in rows[0]}
    return {
        "benchmark": "slow_reader",
        "piece_bytes": PIECE,
        "mib": mib,
        "stalled": stalled,
        "runs": runs,
        **medians,
        "percent_each": [round(row["percent"], 1) for row in rows],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--mib", type=int, default=256)
    parser.add_argument("--stalled", type=int, default=8, help="streams that nobody reads")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        trio.run(serve)
        return
    result = trio.run(measure, options.mib, options.stalled, options.runs)
    print(json.dumps(result, indent=None if options.json else 1))


if __name__ == "__main__":
    main()
