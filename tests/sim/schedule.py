"""Random faults during adds and gets, drawn from a seed; `python -m tests.sim.schedule SEED`
replays one and prints what happened.

What must hold whatever happens: an add that was acknowledged as protected is readable by
every healthy node while its stripes are, on either side of a partition too; an add and a get
end in bounded time; no wrong byte is ever returned; no holder loses a slot that it promised.
The whole run, scheduler included, follows from the seed.
"""

from __future__ import annotations

import random
import sys
from collections.abc import AsyncIterator, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import trio

from dstore.core.cid import CID
from dstore.core.manifest import Manifest, Segment
from dstore.core.peerid import PeerId
from dstore.errors import DstoreError
from dstore.limits import GIB
from dstore.service.node import NodeOptions
from dstore.service.progress import AddOptions, AddResult
from dstore.storage.blockstore import Block, BlockStore, Usage
from dstore.testing.cluster import Cluster, open_cluster
from dstore.testing.deterministic import run_deterministic
from dstore.testing.memory_network import Latency, NetworkOptions

NODES = 9
ADD_SECONDS_MAX = 600
GET_SECONDS_MAX = 300
PARTITION_SECONDS = (1800, 3 * 3600)
CLOCK_JUMP_SECONDS = 49 * 3600
LASTING = ("kill", "pause", "flip", "swap")
PASSING = ("pause", "delay", "sever", "full", "clock")


class SwappingStore:
    """A holder's store that answers for some blocks with another block's bytes."""

    def __init__(self, inner: BlockStore, dice: random.Random) -> None:
        self._inner = inner
        self._dice = dice
        self._last = b"not a block of anybody"

    def get(self, cid: CID) -> bytes:
        data = self._inner.get(cid)
        other, self._last = self._last, data
        return other if self._dice.random() < 0.5 else data

    def put_many(self, blocks: Sequence[Block], *, read_soon: bool = True) -> None:
        self._inner.put_many(blocks, read_soon=read_soon)

    def has_many(self, cids: Sequence[CID]) -> list[bool]:
        return self._inner.has_many(cids)

    def size(self, cid: CID) -> int | None:
        return self._inner.size(cid)

    def delete_many(self, cids: Sequence[CID]) -> None:
        self._inner.delete_many(cids)

    def multihashes(self) -> Iterator[bytes]:
        return self._inner.multihashes()

    def usage(self) -> Usage:
        return self._inner.usage()

    def room(self) -> int | None:
        return self._inner.room()

    def close(self) -> None:
        self._inner.close()


class Schedule:
    """Faults drawn from a seed, and which nodes they have spoiled for good."""

    def __init__(self, cluster: Cluster, seed: int) -> None:
        self.cluster = cluster
        self.random = random.Random(seed)
        self.spoiled: set[int] = set()
        self.dead: set[int] = set()
        self.kinds: list[str] = []  # of all faults, as they came

    def note(self, what: str) -> None:
        self.kinds.append(what.partition(" ")[0])
        self.cluster.hub.record(f"fault: {what}")

    async def spoil(self, nursery: trio.Nursery, *, lasting: int, passing: int) -> None:
        """Start so many lasting and passing faults, at random moments from now."""
        victims = [number for number in self.cluster.alive if number not in {0, *self.spoiled}]
        self.random.shuffle(victims)
        for victim in victims[:lasting]:
            kind = self.random.choice(LASTING)
            nursery.start_soon(self._lasting, victim, kind, self.random.uniform(0, 3))
        for victim in victims[lasting : lasting + passing]:
            kind = self.random.choice(PASSING)
            nursery.start_soon(self._passing, victim, kind, self.random.uniform(0, 3))

    async def _lasting(self, victim: int, kind: str, at: float) -> None:
        await trio.sleep(at)
        self.note(f"{kind} node {victim}")
        self.spoiled.add(victim)
        peer = self.cluster.peer(victim)
        if kind == "kill":
            self.dead.add(victim)
            await self.cluster.kill(victim)
        elif kind == "pause":
            self.cluster.hub.pause(peer)
        elif kind == "flip":
            self.cluster.hub.corrupt(peer, self._flip)
        else:
            store = self.cluster.stores[victim]
            store.inner = SwappingStore(store.inner, random.Random(self.random.random()))

    def _flip(self, receiver: PeerId, data: bytes) -> bytes:
        """Most writes pass; now and then a byte in the middle of one changes."""
        if len(data) < 64 or self.random.random() < 0.5:
            return data
        spoilt = bytearray(data)
        spoilt[self.random.randrange(32, len(spoilt))] ^= 1 << self.random.randrange(8)
        return bytes(spoilt)

    async def _passing(self, victim: int, kind: str, at: float) -> None:
        await trio.sleep(at)
        self.note(f"{kind} node {victim}, for a while")
        peer, hub = self.cluster.peer(victim), self.cluster.hub
        if kind == "sever":
            for other in self.cluster.alive:
                if other != victim and victim in self.cluster.alive:
                    hub.sever(peer, self.cluster.peer(other))
            return
        with self._passes(victim, kind):
            await trio.sleep(self.random.uniform(0.2, 15))

    @contextmanager
    def _passes(self, victim: int, kind: str) -> Iterator[None]:
        peer, hub, node = self.cluster.peer(victim), self.cluster.hub, self.cluster.nodes[victim]
        if kind == "pause":
            hub.pause(peer)
            yield
            hub.resume(peer)
        elif kind == "delay":
            hub.delay(peer, 0.3)
            yield
            hub.delay(peer, 0)
        elif kind == "full":
            node.blocks.fill()
            yield
            node.blocks.drain()
        else:
            node.clock.ahead = self.random.choice((1, -1)) * CLOCK_JUMP_SECONDS
            yield
            node.clock.ahead = 0.0

    def healthy(self) -> list[int]:
        """Nodes that nothing lasting happened to."""
        return [number for number in self.cluster.alive if number not in self.spoiled]


@dataclass
class Outcome:
    """What a run came to; `reads` counts those that came whole."""

    protected: bool = False
    reads: int = 0
    partitioned: bool = False
    kinds: list[str] = field(default_factory=list)
    events: list[tuple[float, str]] = field(default_factory=list)


def readable(cluster: Cluster, numbers: Collection[int], manifest_cid: CID) -> bool:
    """Whether the nodes together have enough of every stripe, by looking into their stores:
    what the services must achieve with messages alone."""
    stores = [cluster.stores[number].inner for number in numbers]

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


def promised(cluster: Cluster, numbers: Collection[int]) -> dict[tuple[int, CID, int], str]:
    """The slots that the nodes hold or hold no more: (node, segment, slot) → state."""
    return {
        (number, row.segment, row.slot): row.state
        for number in numbers
        for row in cluster[number].stores.catalog.held_slots()
        if row.state != "reserved"
    }


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


async def part_and_heal(
    schedule: Schedule, draw: random.Random, result: AddResult, data: bytes
) -> None:
    """A partition for hours: each side serves what it can decode, and loses no slot."""
    cluster, healthy = schedule.cluster, schedule.healthy()
    others = [number for number in healthy if number]
    cut = set(draw.sample(others, draw.randint(1, len(others))))
    sides = [set(cluster.alive) - cut, cut]
    before = promised(cluster, healthy)
    schedule.note(f"partition {sorted(cut)} from the others")
    cluster.hub.partition([cluster.peer(number) for number in cut])
    await trio.sleep(draw.uniform(*PARTITION_SECONDS))
    assert result.manifest is not None
    for side in sides:
        members = [number for number in healthy if number in side]
        if readable(cluster, members, result.manifest):
            reader = draw.choice(members)
            assert await get(cluster, reader, result.cid, data), "its side could decode it"
    cluster.hub.heal()
    await trio.sleep(draw.uniform(60, 1200))
    assert promised(cluster, healthy) == before, "a slot was lost to the partition"


async def _run(seed: int, outcome: Outcome) -> None:
    draw = random.Random(seed)
    data = draw.randbytes(draw.choice([1, 50_000, 1_048_576, 3_000_000, 6_500_000]))
    options = NodeOptions(capacity_bytes=GIB, memory_cache_bytes=0)
    network = NetworkOptions(latency=Latency(0.002, 0.04))
    async with open_cluster(NODES, seed, options=options, network=network) as cluster:
        schedule = Schedule(cluster, seed)
        outcome.events, outcome.kinds = cluster.hub.events, schedule.kinds
        async with trio.open_nursery() as nursery:
            await schedule.spoil(nursery, lasting=draw.randint(0, 2), passing=2)
            result = await add(cluster, data)
        if result is None or not result.protected or result.manifest is None:
            return
        outcome.protected = True
        async with trio.open_nursery() as nursery:
            left = max(0, 2 - len(schedule.spoiled))
            await schedule.spoil(nursery, lasting=left, passing=1)
            for reader in draw.sample(schedule.healthy(), 2):
                if reader in schedule.healthy():
                    outcome.reads += await get(cluster, reader, result.cid, data)
        if draw.random() < 0.25:
            outcome.partitioned = True
            await part_and_heal(schedule, draw, result, data)
        # The storm is over: what is readable must now be read.
        if draw.random() < 0.5:
            schedule.spoiled.add(0)
            await cluster.kill(0)
        if readable(cluster, schedule.healthy(), result.manifest):
            reader = draw.choice(schedule.healthy())
            assert await get(cluster, reader, result.cid, data), "readable, and was not read"
            outcome.reads += 1


def run_schedule(seed: int) -> Outcome:
    """One run.  What fails says how to repeat it."""
    outcome = Outcome()
    try:
        run_deterministic(seed, _run, seed, outcome)
    except BaseException as error:
        faults = [f"  {at:10.3f} s  {what}" for at, what in outcome.events if "fault:" in what]
        error.add_note("\n".join([f"replay: python -m tests.sim.schedule {seed}", *faults]))
        raise
    return outcome


def main() -> None:
    for seed in map(int, sys.argv[1:]):
        outcome = run_schedule(seed)
        for at, what in outcome.events:
            if not what.startswith("#"):
                print(f"{at:10.3f} s  {what}")
        print(f"seed {seed}: protected {outcome.protected}, whole reads {outcome.reads}")


if __name__ == "__main__":
    main()
