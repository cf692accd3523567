"""One real holder over stores in memory, and protected roots to offer it: no network moves.

For tests of what a holder accepts, keeps, promises and forgets; clusters of whole nodes are
in `cluster`.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from dstore.core import erasure, wire
from dstore.core.cid import CID, DAG_PB, RAW
from dstore.core.envelope import SigningKey
from dstore.core.manifest import Code, Manifest, Segment, Stripe
from dstore.core.pinrecord import PinRecord
from dstore.limits import GIB
from dstore.runtime import InlineWorkers, Runtime
from dstore.service.holder import HolderOptions, LocalHolder, LocalReception
from dstore.service.stores import Stores
from dstore.storage.blockstore import Block
from dstore.storage.catalog import open_catalog
from dstore.storage.memory import MemoryStore
from dstore.storage.records import RecordFiles
from dstore.testing.cluster import node_key
from dstore.testing.deterministic import peer_number
from dstore.testing.faulty_store import FaultyStore
from dstore.testing.memory_network import MemoryNetwork, memory_network

START = 1_800_000_000.0
DAY = 86_400.0


@dataclass
class SetClock:
    """Time of day that stands until a test moves it."""

    time: float = START

    def now(self) -> float:
        return self.time


@dataclass(frozen=True)
class Protected:
    """A root with its manifest and segments; `blocks` has every block of them by CID."""

    manifest: Manifest
    segments: tuple[Segment, ...]
    blocks: dict[CID, bytes] = field(repr=False)

    @property
    def root(self) -> CID:
        return self.manifest.root

    @property
    def segment(self) -> Segment:
        """The first one."""
        return self.segments[0]

    def record(
        self,
        owner: SigningKey,
        *,
        seq: int = 1,
        created: float = START - 1000,
        expires: float = START + 365 * DAY,
        manifests: Sequence[CID] | None = None,
    ) -> bytes:
        """The owner's wish for this root, sealed."""
        named = (self.manifest.cid,) if manifests is None else tuple(manifests)
        record = PinRecord(self.root, named, owner.public, seq, int(created), int(expires))
        return record.sign(owner).envelope

    def offer(
        self, record: bytes, slot: int, holders: tuple[wire.HolderEntry, ...] = ()
    ) -> wire.PutSlot:
        """The offer of a slot of the first segment."""
        return wire.PutSlot(record, self.manifest.cid, self.segment.cid, slot, holders)

    def slot(self, slot: int) -> list[Block]:
        """The blocks of a slot of the first segment."""
        return [(cid, self.blocks[cid]) for _, cid, _ in self.segment.slot_blocks(slot)]

    async def load(self, cids: Sequence[CID]) -> list[bytes]:
        """As an owner answers for the manifest and the segments."""
        return [self.blocks[cid] for cid in cids]

    def under(self, name: str) -> Protected:
        """Another root that shares all segments with this one."""
        root = CID.of(DAG_PB, name.encode())
        manifest = Manifest.of(root, self.manifest.code, [one.ref for one in self.segments])
        return Protected(manifest, self.segments, self.blocks | {manifest.cid: manifest.block})


def protect(
    seed: int = 1,
    code: tuple[int, int] = (2, 1),
    stripes: int = 3,
    size: int = 1000,
    segments: int = 1,
) -> Protected:
    """A root of random blocks, `stripes` full stripes in each of its segments."""
    draw = random.Random(seed)  # noqa: S311 - the seed is the point
    k, m = code
    blocks: dict[CID, bytes] = {}
    made: list[Segment] = []
    for _ in range(segments):
        rows: list[Stripe] = []
        for _ in range(stripes):
            data = [draw.randbytes(size) for _ in range(k)]
            parity = [bytes(one) for one in erasure.encode(k, m, data, size)]
            named = {CID.of(RAW, one): one for one in (*data, *parity)}
            blocks |= named
            sized = tuple((CID.of(RAW, one), len(one)) for one in data)
            rows.append(Stripe(sized, tuple(CID.of(RAW, one) for one in parity)))
        made.append(Segment(k, m, tuple(rows)))
    manifest = Manifest.of(
        CID.of(DAG_PB, b"root %d" % seed), Code(k, m), [segment.ref for segment in made]
    )
    documents = {one.cid: one.block for one in made} | {manifest.cid: manifest.block}
    return Protected(manifest, tuple(made), blocks | documents)


@dataclass
class SingleHolder:
    """The holder, what it stands on, and who was told of slots held (root, segment)."""

    hub: MemoryNetwork
    directory: Path
    options: HolderOptions
    blocks: FaultyStore
    clock: SetClock
    told: list[tuple[CID, CID]] = field(default_factory=list)
    owner: SigningKey = field(default_factory=lambda: node_key(1, "owner"))

    def __post_init__(self) -> None:
        self.key = node_key(0)
        self.network = self.hub.host(self.key.peer_id)
        self._open()

    def _open(self) -> None:
        catalog = open_catalog(
            self.directory / "catalog.sqlite3", RecordFiles(self.directory / "records")
        )
        catalog.release_stale_operations()
        self.stores = Stores(self.blocks, catalog)
        self.runtime = Runtime(
            clock=self.clock,
            random=random.Random(0),  # noqa: S311 - a test
            workers=InlineWorkers(),
        )
        self.holder = LocalHolder(
            self.stores,
            self.network,
            self.key,
            self.runtime,
            self.options,
            lambda root, segment: self.told.append((root, segment)),
        )

    def restart(self, **changes: object) -> None:
        """The process ends and starts again over what was stored."""
        self.stores.catalog.close()
        self.blocks.restart()
        self.options = replace(self.options, **changes)  # type: ignore[arg-type]  # its fields
        self._open()

    async def accept(
        self, protected: Protected, slot: int, record: bytes | None = None
    ) -> LocalReception:
        """Offer the slot."""
        offer = protected.offer(record or protected.record(self.owner), slot)
        return await self.holder.offer_slot(peer_number(1), offer, protected.load)

    async def put(self, protected: Protected, slot: int, record: bytes | None = None) -> bytes:
        """Offer the slot and bring what is wanted, one fragment at a time: the lease."""
        reception = await self.accept(protected, slot, record)
        for stripe in reception.wanted:
            await reception.store([(stripe, protected.blocks[reception.expected(stripe)[0]])])
        return await reception.finish()

    def has(self, blocks: Sequence[Block]) -> list[bool]:
        """Which of the blocks are stored."""
        return self.blocks.has_many([cid for cid, _ in blocks])


@asynccontextmanager
async def open_single_holder(
    directory: Path, *, capacity_bytes: int = GIB, lease_seconds: int = 30 * 86_400
) -> AsyncIterator[SingleHolder]:
    """A holder with its catalog in `directory`."""
    options = HolderOptions(
        capacity_bytes=capacity_bytes, domains=("label:here",), lease_seconds=lease_seconds
    )
    async with memory_network(0) as hub:
        one = SingleHolder(hub, directory, options, FaultyStore(MemoryStore()), SetClock())
        try:
            yield one
        finally:
            one.stores.catalog.close()
