"""Readers that take their time, by themselves and beside honest ones: the memory for serving is
within its bound, and there is always some of it for who has least."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from dstore.core import wire
from dstore.core.cid import CID, RAW
from dstore.core.wirecodec import encode_request
from dstore.errors import ConnectionLost, Refused
from dstore.limits import (
    BLOCK_BYTES_MAX,
    KIB,
    MIB,
    PEER_BUDGET_BYTES,
    PEER_STREAMS_SERVED_MAX,
    SERVED_MEMORY_BYTES_MAX,
    SERVED_WAIT_SECONDS,
)
from dstore.network.fragments_client import FragmentsClient
from dstore.network.fragments_server import FragmentsServer, serve_fragments
from dstore.network.streams import PeerAddresses, Stream, frame
from dstore.service.holder import HolderOptions, LocalHolder
from dstore.service.stores import Stores
from dstore.storage.catalog import open_catalog
from dstore.storage.memory import MemoryStore
from dstore.testing.cluster import node_key
from dstore.testing.deterministic import peer_number, simulated_runtime
from dstore.testing.memory_network import MemoryHost, MemoryNetwork, memory_network

_TAKEN_BYTES = 64 * KIB  # by a slow reader, each
SLOW_SECONDS = 3  # which is more than a stalled one takes

SIZES = [16 * KIB, 2 * MIB, 2 * MIB - 20 * KIB, 2 * MIB]  # the first two do not fit one grant


class _Alive(bytes):
    """A block of which is known that it is still in memory."""

    alive_bytes = 0

    def __new__(cls, data: bytes) -> _Alive:
        _Alive.alive_bytes += len(data)
        return super().__new__(cls, data)

    def __del__(self) -> None:
        _Alive.alive_bytes -= len(self)


class _Store(MemoryStore):
    """Reads a copy each time, as from a disk."""

    def get(self, cid: CID) -> bytes:
        return _Alive(super().get(cid))


class World:
    """A serving node and those who read from it."""

    def __init__(self, hub: MemoryNetwork, directory: Path) -> None:
        made = [bytes([number]) * size for number, size in enumerate(SIZES)]
        self.cids = [CID.of(RAW, data) for data in made]
        blocks = _Store()
        blocks.put_many(list(zip(self.cids, made, strict=True)))
        self._hub = hub
        self.host = hub.host(node_key(0).peer_id)
        runtime = simulated_runtime(1)
        self.catalog = open_catalog(directory / "catalog")
        stores = Stores(blocks, self.catalog)
        holder = LocalHolder(
            stores, self.host, node_key(0), runtime, HolderOptions(), lambda *_: None
        )
        self.faults: list[str] = []
        self.server: FragmentsServer = serve_fragments(
            self.host, holder, runtime, lambda peer, kind, detail: self.faults.append(kind)
        )
        self.reset = 0

    def peer(self, number: int) -> MemoryHost:
        host = self._hub.host(peer_number(number))
        host.remember(PeerAddresses(self.host.peer_id, tuple(self.host.addresses())))
        return host

    async def begin(self, host: MemoryHost, cids: list[CID]) -> Stream:
        """A stream on which blocks were asked for."""
        stream = await host.open_stream(self.host.peer_id, [wire.PROTOCOL])
        await stream.write(frame(encode_request(wire.GetBlocks(tuple(cids)))))
        return stream

    async def read_slowly(self, stream: Stream) -> None:
        """As much as keeps the stream alive, for ever."""
        try:
            while True:
                await trio.sleep(SLOW_SECONDS)
                left = _TAKEN_BYTES
                while left:
                    left -= len(await stream.read_some(left))
        except ConnectionLost:
            self.reset += 1

    async def read(self, number: int) -> list[bytes | None]:
        """All blocks, as an honest reader has them."""
        async with (
            FragmentsClient(self.peer(number), simulated_runtime(2)) as client,
            client.get_blocks(self.host.peer_id, self.cids) as blocks,
        ):
            return [data async for _, data in blocks]


@asynccontextmanager
async def world(directory: Path) -> AsyncIterator[World]:
    async with memory_network(5) as hub:
        made = World(hub, directory)
        yield made
        made.catalog.close()


async def test_what_waits_for_slow_readers_is_within_the_budget(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with world(tmp_path) as here:
        for number in range(2):
            host = here.peer(number + 10)
            for _ in range(PEER_STREAMS_SERVED_MAX):
                await here.begin(host, here.cids)
        await trio.sleep(SLOW_SECONDS)
        assert 0 < here.server.bytes_held <= 2 * PEER_BUDGET_BYTES
        assert _Alive.alive_bytes <= here.server.bytes_held


async def test_sixteen_slow_readers_leave_memory_for_another(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with world(tmp_path) as here, trio.open_nursery() as nursery:
        for number in range(16):
            host = here.peer(number + 10)
            for _ in range(PEER_STREAMS_SERVED_MAX):
                stream = await here.begin(host, here.cids[2:] * 4)
                nursery.start_soon(here.read_slowly, stream)
        await trio.sleep(8 * SLOW_SECONDS)
        held = here.server.bytes_held
        assert held > SERVED_MEMORY_BYTES_MAX * 0.9  # all that they can get
        begun = trio.current_time()
        assert [len(data or b"") for data in await here.read(2)] == SIZES
        assert trio.current_time() - begun < 2
        nursery.cancel_scope.cancel()


async def test_where_all_memory_is_taken_a_newcomer_is_told_to_go_elsewhere(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """And those who read, however slowly, are left in peace."""
    async with world(tmp_path) as here, trio.open_nursery() as nursery:
        for number in range(SERVED_MEMORY_BYTES_MAX // BLOCK_BYTES_MAX):
            stream = await here.begin(here.peer(number + 10), here.cids[3:] * 2)
            nursery.start_soon(here.read_slowly, stream)
        await trio.sleep(SLOW_SECONDS)
        begun = trio.current_time()
        with pytest.raises(Refused) as refused:
            await here.read(2)
        assert refused.value.reason == wire.Refusal.BUSY
        assert trio.current_time() - begun < SERVED_WAIT_SECONDS + 1
        await trio.sleep(20 * SLOW_SECONDS)
        assert here.reset == 0
        assert here.faults == []
        nursery.cancel_scope.cancel()
