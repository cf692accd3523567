"""Bulk over lines that are slow: who reads is given his time, and streams share in turn."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from trio.testing import MockClock, memory_stream_pair

from dstore.core.bandwidth import Limits
from dstore.core.cid import CID, RAW
from dstore.core.peerid import PeerId
from dstore.errors import DstoreError
from dstore.limits import (
    BANDWIDTH_BYTES_PER_SECOND_MIN,
    BANDWIDTH_TURN_BYTES_MIN,
    MIB,
    YAMUX_BATCH_BYTES,
)
from dstore.network.fragments_client import FragmentsClient
from dstore.network.fragments_server import FragmentsServer
from dstore.network.repair_stream import RepairStream
from dstore.network.shaping import Line, Shaper
from dstore.network.tcp import TcpConnection
from dstore.network.yamux import YamuxSession
from dstore.testing.deterministic import peer_number, simulated_runtime
from dstore.testing.memory_holder import MemoryHolder
from tests.unit.network.test_shaping import MemorySocket

SERVER = peer_number(99)


class Named:
    """A yamux stream as the fragment protocol wants it: with a peer."""

    def __init__(self, stream: Any, peer: PeerId) -> None:
        self.peer = peer
        for name in ("read_some", "read_pieces", "write", "close_write", "close", "reset"):
            setattr(self, name, getattr(stream, name))
        # As repair streams have it beneath them.
        self.connection = stream.muxed_conn.secured_conn
        self.on_arrival = lambda told: setattr(stream, "on_arrival", told)


class Dialled:
    """A network of one connection."""

    def __init__(self, session: YamuxSession, wrap: Callable[[Any], Any] = lambda one: one) -> None:
        self._session = session
        self._wrap = wrap

    async def open_stream(self, peer: PeerId, _: Sequence[str]) -> Any:
        return self._wrap(Named(await self._session.open_stream(), peer))


@asynccontextmanager
async def connected(
    shaper: Shaper, other: Shaper | None = None
) -> AsyncIterator[tuple[YamuxSession, YamuxSession]]:
    """Both ends of a connection; what the first sends and receives passes the shaper, and what
    the second does, the other one."""
    left, right = memory_stream_pair()
    ours: Any = TcpConnection(MemorySocket(left), is_initiator=True, shaper=shaper)  # type: ignore[arg-type] # what it uses of a socket stream
    theirs: Any = TcpConnection(MemorySocket(right), is_initiator=False, shaper=other)  # type: ignore[arg-type] # same
    ours.trust()
    theirs.trust()
    near, far = YamuxSession(ours, "far"), YamuxSession(theirs, "near")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(near.start)
        nursery.start_soon(far.start)
        await near.event_started.wait()
        await far.event_started.wait()
        yield near, far
        nursery.cancel_scope.cancel()


async def read_all(rate: int, peers: int, readers: int) -> tuple[list[str], list[str]]:
    """What became of readers of three blocks of a MiB each, on every connection of a node that
    sends `rate` bytes a second; and of whom the node complained."""
    shaper = Shaper(lan=True)
    shaper.limit(Limits(up=float(rate)))
    holder = MemoryHolder()
    made = [bytes([number]) * MIB for number in range(3)]
    cids = [CID.of(RAW, data) for data in made]
    holder.kept.update(zip(cids, made, strict=True))
    faults: list[str] = []
    outcome: list[str] = []
    server = FragmentsServer(
        holder, simulated_runtime(1), lambda peer, kind, detail: faults.append(detail)
    )

    async def serve(session: YamuxSession, peer: PeerId, nursery: trio.Nursery) -> None:
        while True:
            stream: Any = Named(await session.accept_stream(), peer)
            nursery.start_soon(server.serve_stream, stream)

    async def read(client: FragmentsClient) -> None:
        try:
            async with client.get_blocks(SERVER, cids) as blocks:
                async for _, data in blocks:
                    assert data is not None
            outcome.append("whole")
        except DstoreError as error:
            outcome.append(str(error))

    async def peer_of(number: int) -> None:
        async with connected(shaper) as (near, far), trio.open_nursery() as serving:
            serving.start_soon(serve, near, peer_number(number), serving)
            network: Any = Dialled(far)
            client = FragmentsClient(network, simulated_runtime(number + 2))
            async with trio.open_nursery() as reading:
                for _ in range(readers):
                    reading.start_soon(read, client)
            serving.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        for number in range(peers):
            nursery.start_soon(peer_of, number)
    return outcome, faults


@pytest.mark.parametrize(
    ("rate", "peers", "readers"),
    [(128_000, 1, 1), (128_000, 4, 1), (400_000, 10, 1), (1_000_000, 1, 12)],
)
async def test_readers_of_a_slow_node_have_their_blocks_and_no_blame(
    rate: int, peers: int, readers: int, autojump_clock: MockClock
) -> None:
    outcome, faults = await read_all(rate, peers, readers)
    assert outcome == ["whole"] * (peers * readers)
    assert not faults


@pytest.mark.parametrize("writers", [4, 8, 16])
async def test_streams_of_one_connection_take_turns(
    writers: int, autojump_clock: MockClock
) -> None:
    rate, seconds = 1_000_000, 120
    shaper = Shaper(lan=True)
    shaper.limit(Limits(up=float(rate)))
    longest = [0.0] * writers

    async def give(stream: Any, number: int) -> None:
        while True:
            begun = trio.current_time()
            await stream.write(bytes(YAMUX_BATCH_BYTES))
            longest[number] = max(longest[number], trio.current_time() - begun)

    async def take(stream: Any) -> None:
        while True:
            await stream.read_some()

    async with connected(shaper) as (near, far), trio.open_nursery() as nursery:
        for number in range(writers):
            stream = await near.open_stream()
            other = await far.accept_stream()
            nursery.start_soon(give, stream, number)
            nursery.start_soon(take, other)
        await trio.sleep(seconds)
        nursery.cancel_scope.cancel()
    # Each waits for a turn of every other one, and for what was queued before.
    turn_bytes = YAMUX_BATCH_BYTES * 1.001  # with what carries it
    assert max(longest) < (writers + 5) * turn_bytes / rate


class RepairBeside:
    """Repair of blocks of a MiB each from one node to another, beside foreground that takes all
    it can of a least limit, on one of the two sides."""

    def __init__(self, slow: str) -> None:
        self.shaper, self.other = Shaper(lan=True), Shaper(lan=True)
        self._slow = slow
        least = float(BANDWIDTH_BYTES_PER_SECOND_MIN)
        if slow == "sender":
            self.shaper.limit(Limits(up=least))
        else:
            self.other.limit(Limits(down=least))
        self.holder = MemoryHolder()
        self.faults: list[str] = []
        self.server = FragmentsServer(
            self.holder, simulated_runtime(1), lambda peer, kind, detail: self.faults.append(detail)
        )

    async def foreground(self) -> None:
        line = Line(self.shaper if self._slow == "sender" else self.other, near=False)
        while True:
            if self._slow == "sender":
                await line.before_sending(BANDWIDTH_TURN_BYTES_MIN)
            else:
                line.received(BANDWIDTH_TURN_BYTES_MIN)
                await line.before_receiving()

    async def serve(self, session: YamuxSession, nursery: trio.Nursery) -> None:
        while True:
            stream: Any = Named(await session.accept_stream(), peer_number(1))
            nursery.start_soon(self.server.serve_stream, RepairStream(stream))

    async def read(self, readers: int) -> list[int]:
        """The bytes that each reader has got of a block of its own."""
        made = [bytes([number]) * MIB for number in range(readers)]
        cids = [CID.of(RAW, data) for data in made]
        self.holder.kept.update(zip(cids, made, strict=True))
        got = [0] * readers

        async def read_one(client: FragmentsClient, number: int) -> None:
            async with client.get_blocks(SERVER, [cids[number]]) as blocks:
                async for _, data in blocks:
                    got[number] += len(data or b"")

        async with (
            connected(self.shaper, self.other) as (near, far),
            trio.open_nursery() as serving,
        ):
            serving.start_soon(self.serve, near, serving)
            serving.start_soon(self.foreground)
            network: Any = Dialled(far, RepairStream)
            client = FragmentsClient(network, simulated_runtime(2))
            async with trio.open_nursery() as reading:
                for number in range(readers):
                    reading.start_soon(read_one, client, number)
            serving.cancel_scope.cancel()
        return got


@pytest.mark.parametrize(
    ("slow", "readers"), [("sender", 1), ("sender", 2), ("receiver", 1), ("receiver", 2)]
)
async def test_repair_goes_on_beside_a_busy_foreground_on_the_least_limit(
    slow: str, readers: int, autojump_clock: MockClock
) -> None:
    beside = RepairBeside(slow)
    assert await beside.read(readers) == [MIB] * readers
    assert trio.current_time() > 100  # the foreground has taken its part
    assert not beside.faults
