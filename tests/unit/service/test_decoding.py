"""Blocks computed from what is not hashed: right ones only, liars named, little asked twice."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import TypeVar, TypeVarTuple

import pytest
import trio

from dstore.core import erasure
from dstore.core.cid import CID, RAW
from dstore.core.manifest import Segment, Stripe
from dstore.core.peerid import PeerId
from dstore.errors import MalformedBlock, Unrecoverable
from dstore.limits import HELD_LOOKUP_STRIPES
from dstore.runtime import InlineWorkers
from dstore.service.blockcache import BlockCache
from dstore.service.decoding import Holders, StripeDecoder
from dstore.service.fetch import BlockFetcher, open_fetcher
from dstore.storage.memory import MemoryStore
from dstore.testing.deterministic import peer_number

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

K, M = 3, 2
LENGTH = 1000
DRAW = random.Random(11)
DATA = [DRAW.randbytes(LENGTH), DRAW.randbytes(LENGTH), DRAW.randbytes(LENGTH - 7)]
FRAGMENTS = [*DATA, *erasure.encode(K, M, DATA, LENGTH)]
HOLDERS: Holders = {slot: {peer_number(slot): None} for slot in range(K + M)}


def segment_of(fragments: Sequence[bytes]) -> Segment:
    cids = [CID.of(RAW, fragment) for fragment in fragments]
    data = tuple((cid, len(one)) for cid, one in zip(cids[:K], fragments, strict=False))
    return Segment(K, M, (Stripe(data, tuple(cids[K:])),))


SEGMENT = segment_of(FRAGMENTS)


class Client:
    """Peer n sends fragment n, but those that are told to send something else."""

    def __init__(self, fragments: Sequence[bytes] = FRAGMENTS) -> None:
        self.sent: dict[PeerId, bytes | None] = {
            peer_number(slot): fragment for slot, fragment in enumerate(fragments)
        }
        self.asked: Counter[PeerId] = Counter()
        self.unchecked: set[PeerId] = set()

    @asynccontextmanager
    async def get_blocks(
        self, peer: PeerId, cids: Sequence[CID], *, checked: bool = True
    ) -> AsyncIterator[AsyncIterator[tuple[CID, bytes | None]]]:
        self.asked[peer] += 1
        if not checked:
            self.unchecked.add(peer)

        async def answers() -> AsyncIterator[tuple[CID, bytes | None]]:
            for cid in cids:
                await trio.lowlevel.checkpoint()
                yield cid, self.sent[peer]

        yield answers()


class CountingWorkers(InlineWorkers):
    """Workers that count what they are given, by the name of the function."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()

    async def run(self, work: Callable[[*Ts], T], *args: *Ts) -> T:
        self.calls[getattr(work, "__name__", "")] += 1
        return await super().run(work, *args)


class CountingStore(MemoryStore):
    """A store that counts how often somebody looks for blocks."""

    looks = 0

    def has_many(self, cids: Sequence[CID]) -> list[bool]:
        self.looks += 1
        return super().has_many(cids)


class World:
    """A decoder, what it asks, and whom it names."""

    def __init__(self, fetcher: BlockFetcher, client: Client, named: list[PeerId]) -> None:
        self.client = client
        self.named = named
        self.fetcher = fetcher
        self.store = CountingStore()
        self.cache = BlockCache(1 << 20)
        self.far: set[PeerId] = set()  # not connected
        self.decoder = StripeDecoder(fetcher, self.store, self.cache, InlineWorkers(), self.is_near)

    def is_near(self, peer: PeerId) -> bool:
        failed = self.fetcher.is_cooling(peer) or self.fetcher.has_lied(peer)
        return peer not in self.far and not failed

    def lose(self, *slots: int) -> None:
        for slot in slots:
            self.client.sent[peer_number(slot)] = None


@asynccontextmanager
async def world(client: Client | None = None) -> AsyncIterator[World]:
    named: list[PeerId] = []
    made = client or Client()
    async with open_fetcher(made, lambda peer, kind, detail: named.append(peer)) as fetcher:
        yield World(fetcher, made, named)


async def test_parity_is_fetched_unchecked_and_data_checked() -> None:
    async with world() as one:
        one.lose(0, 1)
        assert await one.decoder.make(SEGMENT, HOLDERS, 0, 0) == {0: DATA[0], 1: DATA[1]}
        assert one.client.unchecked == {peer_number(3), peer_number(4)}
        assert one.cache.get(CID.of(RAW, DATA[1])) == DATA[1]
        assert one.cache.get(CID.of(RAW, DATA[2])) == DATA[2]
        assert one.cache.get(CID.of(RAW, FRAGMENTS[3])) is None
        assert one.fetcher.counters.decoded_blocks == 2


@pytest.mark.parametrize(
    "lie", [bytes(LENGTH), FRAGMENTS[4], FRAGMENTS[3][:-1], FRAGMENTS[3] + b"\0", b""]
)
async def test_who_sent_wrong_parity_is_named_and_what_was_right_is_kept(lie: bytes) -> None:
    async with world() as one:
        one.lose(0)
        one.client.sent[peer_number(3)] = lie
        assert await one.decoder.make(SEGMENT, HOLDERS, 0, 0) == {0: DATA[0]}
        assert one.named == [peer_number(3)]
        assert one.fetcher.has_lied(peer_number(3))
        # The second time with the other parity, and with the data that was there already.
        assert one.client.asked[peer_number(1)] == one.client.asked[peer_number(2)] == 1


async def test_another_holder_of_the_same_slot_is_asked_after_a_liar() -> None:
    liar, honest = peer_number(3), peer_number(7)
    async with world() as one:
        one.lose(0, 4)
        one.client.sent |= {liar: bytes(LENGTH), honest: FRAGMENTS[3]}
        holders: Holders = {**HOLDERS, 3: {liar: None, honest: None}}
        assert (await one.decoder.make(SEGMENT, holders, 0, 0))[0] == DATA[0]
        assert set(one.named) <= {liar}


async def test_where_only_liars_are_left_nothing_is_made() -> None:
    async with world() as one:
        one.lose(0)
        one.client.sent |= {peer_number(3): bytes(LENGTH), peer_number(4): bytes(LENGTH)}
        with pytest.raises(Unrecoverable):
            await one.decoder.make(SEGMENT, HOLDERS, 0, 0)
        assert sorted(one.named) == sorted([peer_number(3), peer_number(4)])


async def test_parity_that_is_not_the_codes_is_the_segments_fault_and_found_out_once() -> None:
    fragments = [*DATA, DRAW.randbytes(LENGTH), DRAW.randbytes(LENGTH)]
    false = segment_of(fragments)
    async with world(Client(fragments)) as one:
        one.lose(0)
        for _ in range(2):
            with pytest.raises(MalformedBlock):
                await one.decoder.make(false, HOLDERS, 0, 0)
        assert one.named == []
        assert one.client.asked[peer_number(3)] == 1


async def test_fragments_that_are_here_are_not_asked_for() -> None:
    async with world() as one:
        one.lose(0)
        one.cache.put(CID.of(RAW, DATA[1]), DATA[1])
        one.store.put_many([(CID.of(RAW, FRAGMENTS[4]), FRAGMENTS[4])])
        assert (await one.decoder.make(SEGMENT, HOLDERS, 0, 0))[0] == DATA[0]
        assert sum(one.client.asked.values()) <= 1


async def test_who_is_connected_is_asked_before_who_would_be_dialled() -> None:
    async with world() as one:
        one.far.add(peer_number(1))
        assert (await one.decoder.make(SEGMENT, HOLDERS, 0, 0))[0] == DATA[0]
        assert not one.client.asked[peer_number(1)]
    async with world() as one:
        one.lose(0, 4)
        one.far.add(peer_number(1))
        assert (await one.decoder.make(SEGMENT, HOLDERS, 0, 0))[0] == DATA[0]
        assert one.client.asked[peer_number(1)] == 1


async def test_the_store_is_looked_into_once_for_many_stripes() -> None:
    count = 2 * HELD_LOOKUP_STRIPES + 1
    long = Segment(K, M, SEGMENT.stripes * count)
    async with world() as one:
        one.lose(0, 1)
        for stripe in range(count):
            assert (await one.decoder.make(long, HOLDERS, stripe, 0))[0] == DATA[0]
            assert one.store.looks == 1 + stripe // HELD_LOOKUP_STRIPES


async def test_stripes_that_wait_for_a_worker_are_decoded_in_one_hand_over() -> None:
    count = 40
    rows = [[DRAW.randbytes(LENGTH) for _ in range(K)] for _ in range(count)]
    made = [[*row, *erasure.encode(K, M, row, LENGTH)] for row in rows]
    long = Segment(K, M, tuple(segment_of(fragments).stripes[0] for fragments in made))
    workers = CountingWorkers()
    async with world() as one:
        decoder = StripeDecoder(one.fetcher, one.store, one.cache, workers, one.is_near)
        one.store.put_many(
            [(CID.of(RAW, data), data) for fragments in made for data in fragments[2:]]
        )
        got: dict[int, dict[int, bytes]] = {}

        async def decode(stripe: int) -> None:
            got[stripe] = await decoder.make(long, HOLDERS, stripe, 0)

        async with trio.open_nursery() as nursery:
            for stripe in range(count):
                nursery.start_soon(decode, stripe)
    assert got == {index: {0: row[0], 1: row[1]} for index, row in enumerate(rows)}
    assert workers.calls["_decode_some"] < count / 2


async def test_parity_can_be_made_from_data() -> None:
    async with world() as one:
        assert await one.decoder.make(SEGMENT, HOLDERS, 0, 4) == {4: FRAGMENTS[4]}
