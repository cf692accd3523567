"""A holder in memory: the serving half of the fragment protocol, for tests of its two sides.

It believes every offer and signs nothing: a lease is a line of text.  What the real one
checks is `service/holder.py`'s business.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence

import trio

from dstore.core import wire
from dstore.core.cid import CID
from dstore.core.peerid import PeerId
from dstore.core.wire import Refusal
from dstore.errors import DstoreError, HashMismatch, Refused
from dstore.network.fragments_server import Batch, FetchBlocks

SlotKey = tuple[CID, int]


class MemoryReception:
    """A slot being received; `stored` survives it, for a resume."""

    def __init__(
        self, holder: MemoryHolder, key: SlotKey, slot: dict[int, tuple[CID, int]]
    ) -> None:
        self._holder = holder
        self._key = key
        self._slot = slot
        self._stored = holder.slots.setdefault(key, {})
        self.wanted = tuple(stripe for stripe in sorted(slot) if stripe not in self._stored)
        self.finished = False
        self.abandoned = trio.Event()

    def expected(self, stripe: int) -> tuple[CID, int]:
        return self._slot[stripe]

    async def store(self, blocks: Sequence[tuple[int, bytes]]) -> None:
        for stripe, data in blocks:
            cid, _ = self._slot[stripe]
            if not cid.verify(data):
                raise HashMismatch(f"other bytes than {cid}")
        await self._holder.storing(blocks)
        self._holder.batches.append([stripe for stripe, _ in blocks])
        self._stored.update(blocks)

    async def finish(self) -> bytes:
        assert set(self._stored) == set(self._slot), "finished before all was stored"
        self.finished = True
        return b"lease " + str(self._key[1]).encode()

    async def abandon(self) -> None:
        await trio.lowlevel.checkpoint()
        self.abandoned.set()


async def _at_once(blocks: Sequence[tuple[int, bytes]]) -> None:
    await trio.lowlevel.checkpoint()


class MemoryHolder:
    """What a test puts into its dictionaries is served; what peers bring goes into `slots`.

    `expected` says for each (segment, slot) which blocks belong to it, by stripe; `documents`
    which blocks are asked of the offering peer first.  `error`, where set, is what every
    method raises; `storing` is awaited before each batch is kept.
    """

    def __init__(self) -> None:
        self.kept: dict[CID, bytes] = {}
        self.manifests: dict[CID, wire.Manifests] = {}
        self.holdings: dict[CID, wire.Holding] = {}
        self.expected: dict[SlotKey, dict[int, tuple[CID, int]]] = {}
        self.documents: list[CID] = []
        self.slots: dict[SlotKey, dict[int, bytes]] = {}
        self.receptions: list[MemoryReception] = []
        self.batches: list[list[int]] = []
        self.fetched: dict[CID, bytes] = {}
        self.asked: list[str] = []
        self.error: DstoreError | None = None
        self.storing: Callable[[Sequence[tuple[int, bytes]]], Awaitable[None]] = _at_once
        self.deciding: Callable[[], Awaitable[None]] = trio.lowlevel.checkpoint

    async def _asked(self, what: str) -> None:
        self.asked.append(what)
        await self.deciding()
        if self.error is not None:
            raise self.error

    async def hello(self, peer: PeerId) -> wire.Hello:
        await self._asked("hello")
        return wire.Hello("dstore/test", wire.Role.STORAGE, 10**12, 10**9, 2_592_000, ("rack1",))

    async def find_manifests(self, peer: PeerId, root: CID) -> wire.Manifests:
        await self._asked("find_manifests")
        return self.manifests.get(root, wire.Manifests())

    async def blocks(self, peer: PeerId, cids: Sequence[CID]) -> AsyncGenerator[Batch, None]:
        await self._asked("blocks")
        for cid in cids:
            await trio.lowlevel.checkpoint()
            yield deque(((cid, self.kept.get(cid)),))

    async def have(self, peer: PeerId, segments: Sequence[CID]) -> wire.Haves:
        await self._asked(f"have {len(segments)}")
        return wire.Haves(tuple(self.holdings.get(cid, wire.Holding(cid)) for cid in segments))

    async def offer_slot(
        self, peer: PeerId, offer: wire.PutSlot, fetch_blocks: FetchBlocks
    ) -> MemoryReception:
        await self._asked("offer_slot")
        if self.documents:
            fetched = await fetch_blocks(self.documents)
            self.fetched |= zip(self.documents, fetched, strict=True)
        key = (offer.segment, offer.slot)
        if key not in self.expected:
            raise Refused("nobody expects this slot", Refusal.POLICY)
        self.receptions.append(MemoryReception(self, key, self.expected[key]))
        return self.receptions[-1]

    async def renew(self, peer: PeerId, request: wire.Renew) -> Sequence[wire.SlotAnswer]:
        await self._asked("renew")
        return [
            wire.SlotAnswer(ref.segment, ref.slot, lease=b"renewed")
            if (ref.segment, ref.slot) in self.slots
            else wire.SlotAnswer(ref.segment, ref.slot, refusal=Refusal.NOT_FOUND)
            for ref in request.slots
        ]

    async def release(self, peer: PeerId, request: wire.Release) -> Sequence[wire.SlotAnswer]:
        await self._asked("release")
        for ref in request.slots:
            self.slots.pop((ref.segment, ref.slot), None)
        return [wire.SlotAnswer(ref.segment, ref.slot) for ref in request.slots]

    async def challenge(
        self, peer: PeerId, items: Sequence[wire.Challenged]
    ) -> AsyncGenerator[Batch, None]:
        await self._asked("challenge")
        for item in items:
            data = self.slots.get((item.segment, item.slot), {}).get(item.stripe)
            if data is None:
                yield deque(((item.segment, None),))
            else:
                yield deque(((self.expected[item.segment, item.slot][item.stripe][0], data),))
