"""Random faults during adds and gets, replayable by seed.

What must hold whatever happens: an add that was acknowledged as protected is readable by
every healthy node while its stripes are, an add and a get end in bounded time, and no wrong
byte is ever returned.  A failing seed fails the same way again: the whole run, scheduler
included, follows from it.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator

import pytest
import trio

from dstore.core.cid import CID
from dstore.core.manifest import Manifest, Segment
from dstore.core.peerid import PeerId
from dstore.errors import DstoreError
from dstore.limits import GIB
from dstore.service.node import NodeOptions
from dstore.service.progress import AddOptions, AddResult
from dstore.testing.cluster import Cluster, open_cluster
from dstore.testing.deterministic import run_deterministic
from dstore.testing.memory_network import Latency, NetworkOptions

NODES = 9
ADD_SECONDS_MAX = 600
GET_SECONDS_MAX = 300


class Schedule:
    """Faults drawn from a seed, and which nodes they have spoiled for good."""

    def __init__(self, cluster: Cluster, seed: int) -> None:
        self.cluster = cluster
        self.random = random.Random(seed)
        self.spoiled: set[int] = set()
        self.dead: set[int] = set()

    async def spoil(self, nursery: trio.Nursery, *, lasting: int, passing: int) -> None:
        """Start so many lasting and passing faults, at random moments from now."""
        victims = [number for number in self.cluster.alive if number not in {0, *self.spoiled}]
        self.random.shuffle(victims)
        for victim in victims[:lasting]:
            kind = self.random.choice(["kill", "pause", "lie"])
            nursery.start_soon(self._lasting, victim, kind, self.random.uniform(0, 3))
        for victim in victims[lasting : lasting + passing]:
            kind = self.random.choice(["pause", "delay", "sever"])
            nursery.start_soon(self._passing, victim, kind, self.random.uniform(0, 3))

    async def _lasting(self, victim: int, kind: str, at: float) -> None:
        await trio.sleep(at)
        self.spoiled.add(victim)
        peer = self.cluster.peer(victim)
        if kind == "kill":
            self.dead.add(victim)
            await self.cluster.kill(victim)
        elif kind == "pause":
            self.cluster.hub.pause(peer)
        else:
            self.cluster.hub.corrupt(peer, self._flip)

    def _flip(self, receiver: PeerId, data: bytes) -> bytes:
        """Most writes pass; now and then a byte in the middle of one changes."""
        if len(data) < 64 or self.random.random() < 0.5:
            return data
        spoilt = bytearray(data)
        spoilt[self.random.randrange(32, len(spoilt))] ^= 1 << self.random.randrange(8)
        return bytes(spoilt)

    async def _passing(self, victim: int, kind: str, at: float) -> None:
        await trio.sleep(at)
        peer, hub = self.cluster.peer(victim), self.cluster.hub
        if kind == "sever":
            for other in self.cluster.alive:
                if other != victim and victim in self.cluster.alive:
                    hub.sever(peer, self.cluster.peer(other))
            return
        if kind == "pause":
            hub.pause(peer)
        else:
            hub.delay(peer, 0.3)
        await trio.sleep(self.random.uniform(0.2, 15))
        if kind == "pause":
            hub.resume(peer)
        else:
            hub.delay(peer, 0)

    def healthy(self) -> list[int]:
        """Nodes that nothing lasting happened to."""
        return [number for number in self.cluster.alive if number not in self.spoiled]


def readable(cluster: Cluster, schedule: Schedule, manifest_cid: CID) -> bool:
    """Whether healthy nodes together have enough of every stripe, by looking into their
    stores: what the services must achieve with messages alone."""
    stores = [cluster.stores[number].inner for number in schedule.healthy()]

    def find(cid: CID) -> bytes | None:
        return next((one.get(cid) for one in stores if one.has_many([cid])[0]), None)

    encoded = find(manifest_cid)
    if encoded is None:
        return False
    for ref in Manifest.decode(encoded).segments:
        block = find(ref.cid)
        if block is None:
            return False
        for stripe in Segment.decode(block).stripes:
            fragments = [*(cid for cid, _ in stripe.data), *stripe.parity]
            if sum(find(cid) is not None for cid in fragments) < len(stripe.data):
                return False
    return True


async def stream(data: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(data), 65_536):
        yield data[start : start + 65_536]


async def add(cluster: Cluster, data: bytes) -> AddResult | None:
    """The result, or None where the add failed cleanly."""
    with trio.fail_after(ADD_SECONDS_MAX):
        try:
            return await cluster[0].add_stream(stream(data), AddOptions(code=(4, 2)))
        except DstoreError:
            return None


async def get(cluster: Cluster, reader: int, root: CID, data: bytes) -> bool:
    """Whether everything came; that whatever came was right is asserted."""
    got = bytearray()
    with trio.fail_after(GET_SECONDS_MAX):
        try:
            async with cluster[reader].read(root) as chunks:
                async for chunk in chunks:
                    got += chunk
        except DstoreError:
            assert data.startswith(got)
            return False
    assert bytes(got) == data
    return True


def run_schedule(seed: int) -> tuple[bool, int]:
    """One run: (whether the add was acknowledged, how many reads came whole)."""

    async def main() -> tuple[bool, int]:
        draw = random.Random(seed)
        data = draw.randbytes(draw.choice([1, 50_000, 1_048_576, 3_000_000, 6_500_000]))
        options = NodeOptions(capacity_bytes=GIB, memory_cache_bytes=0)
        network = NetworkOptions(latency=Latency(0.002, 0.04))
        async with open_cluster(NODES, seed, options=options, network=network) as cluster:
            schedule = Schedule(cluster, seed)
            async with trio.open_nursery() as nursery:
                await schedule.spoil(nursery, lasting=draw.randint(0, 2), passing=2)
                result = await add(cluster, data)
            if result is None or not result.protected or result.manifest is None:
                return False, 0
            whole = 0
            async with trio.open_nursery() as nursery:
                left = max(0, 2 - len(schedule.spoiled))
                await schedule.spoil(nursery, lasting=left, passing=1)
                for reader in draw.sample(schedule.healthy(), 2):
                    if reader in schedule.healthy():
                        whole += await get(cluster, reader, result.cid, data)
            # The storm is over: what is readable must now be read.
            if draw.random() < 0.5:
                schedule.spoiled.add(0)
                await cluster.kill(0)
            if readable(cluster, schedule, result.manifest):
                reader = draw.choice(schedule.healthy())
                assert await get(cluster, reader, result.cid, data), "readable, and was not read"
                whole += 1
            return True, whole

    return run_deterministic(seed, main)


@pytest.mark.parametrize("seed", range(20))
def test_acknowledged_adds_stay_readable(seed: int) -> None:
    run_schedule(seed)


def test_the_schedules_are_not_all_trivial() -> None:
    """Most adds are acknowledged in spite of their faults, and read in spite of more."""
    outcomes = [run_schedule(seed) for seed in range(100, 106)]
    assert sum(acknowledged for acknowledged, _ in outcomes) >= 3
    assert sum(whole for _, whole in outcomes) >= 6


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(1000, 1200))
def test_acknowledged_adds_stay_readable_soak(seed: int) -> None:
    run_schedule(seed)
