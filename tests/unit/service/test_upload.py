"""One segment onto its holders: replacements, leases that are wrong, and what is not sent again."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import pytest
import trio

from dstore.core import wire
from dstore.core.cid import CID
from dstore.core.peerid import PeerId
from dstore.core.pinrecord import Lease
from dstore.core.placement import Candidate
from dstore.errors import CorruptStore, DeadlineExceeded, DstoreError, Refused, Unreachable
from dstore.limits import GIB, UPLOADS_MAX
from dstore.network.fragments_client import FragmentsClient, PutProgress, SlotBlock
from dstore.service.offer import Offer
from dstore.service.pinrecords import Wish
from dstore.service.upload import Placed, Uploader
from dstore.testing.cluster import node_key
from dstore.testing.single_holder import (
    DAY,
    START,
    Protected,
    SingleHolder,
    open_single_holder,
    protect,
)

Load = Callable[[CID], Awaitable[bytes]]
Read = Callable[[SlotBlock], Awaitable[bytes]]


class Holders:
    """The client: every peer is one that stores what it is sent, unless a test says otherwise."""

    def __init__(self) -> None:
        self.stored: dict[tuple[PeerId, int], dict[int, bytes]] = {}
        self.sent: list[tuple[PeerId, int, int]] = []
        self.offers: list[wire.PutSlot] = []
        self.errors: dict[PeerId, DstoreError] = {}
        self.lie: Callable[[Lease], Lease] = lambda lease: lease
        self.liars: set[PeerId] = set()
        self.busy = self.peak = 0

    def number(self, peer: PeerId) -> int:
        return next(n for n in range(300) if node_key(n).peer_id == peer)

    async def put_slot(
        self,
        peer: PeerId,
        offer: wire.PutSlot,
        load: Load,
        fragments: Sequence[SlotBlock],
        read: Read,
        progress: Callable[[PutProgress], None],
    ) -> bytes:
        self.offers.append(offer)
        self.busy += 1
        self.peak = max(self.peak, self.busy)
        try:
            await trio.lowlevel.checkpoint()
            mine = self.stored.setdefault((peer, offer.slot), {})
            total = sum(one.size for one in fragments)
            for fragment in fragments:
                if fragment.stripe in mine:
                    continue
                data = await read(fragment)
                assert fragment.cid.verify(data)
                if peer in self.errors and len(mine) >= 1:
                    raise self.errors[peer]
                mine[fragment.stripe] = data
                self.sent.append((peer, offer.slot, fragment.stripe))
                progress(PutProgress(sum(len(one) for one in mine.values()), total))
            if peer in self.errors:
                raise self.errors[peer]
            return self.lease(peer, offer, total)
        finally:
            self.busy -= 1

    def lease(self, peer: PeerId, offer: wire.PutSlot, size: int) -> bytes:
        owner, number = node_key(1, "owner").public, self.number(peer)
        lease = Lease(
            peer, owner, offer.segment, offer.slot, size, (), int(START), int(START + DAY), 1
        )
        if peer in self.liars:
            lease = self.lie(lease)
        signer = next(n for n in range(300) if node_key(n).peer_id == lease.holder)
        assert signer == number or peer in self.liars
        return lease.sign(node_key(signer)).envelope


@dataclass
class Signed:
    """Stands in for a wish; `next` is what it is signed anew to where a peer knows a newer one."""

    envelope: bytes
    owner: bytes
    expires: float
    next: bytes | None = None
    asked: list[PeerId] = field(default_factory=list)

    @property
    def offered(self) -> tuple[bytes, float]:
        return self.envelope, self.expires

    async def outdated(self, peer: PeerId, envelope: bytes) -> bool:
        self.asked.append(peer)
        self.envelope = self.next or self.envelope
        return self.envelope != envelope


class Bench:
    def __init__(self, here: SingleHolder, root: Protected) -> None:
        self.here, self.root = here, root
        here.blocks.put_many([(cid, data) for cid, data in root.blocks.items()])
        self.holders = Holders()
        self.uploader = Uploader(
            here.network,
            cast("FragmentsClient", self.holders),
            here.holder,
            here.stores,
            here.runtime,
        )
        self.wish = Signed(root.record(here.owner), here.owner.public, START + 365 * DAY)
        self.told: list[int] = []
        self.room_bytes = GIB
        self.until = START + 365 * DAY

    def offer(self, *peers: int) -> Offer:
        candidates = [
            Candidate(node_key(n).peer_id, frozenset({f"label:{n}"}), self.room_bytes)
            for n in peers
        ]
        root, owner = self.root, self.here.owner
        if self.until != self.wish.expires:
            record = root.record(owner, expires=self.until)
            self.wish = Signed(record, owner.public, self.until)
        return Offer(
            wish=cast("Wish", self.wish),
            manifest=root.manifest.cid,
            segment=root.segment,
            documents={one.cid: one.block for one in (root.manifest, root.segment)},
            candidates=candidates,
            group=b"g",
        )

    async def place(
        self, *peers: int, held: dict[int, set[PeerId]] | None = None, confirm: bool = True
    ) -> Placed:
        return await self.uploader.place(
            self.offer(*peers),
            self.here.stores.blocks.get,
            held or {},
            self.told.append,
            confirm=confirm,
        )

    def on_record(self) -> set[tuple[int, PeerId]]:
        rows = self.here.stores.catalog.placements(self.root.segment.cid)
        return {(row.slot, row.peer) for row in rows if row.lease is not None}


async def test_every_slot_gets_a_peer_of_its_own(tmp_path: Path) -> None:
    async with open_single_holder(tmp_path) as here:
        bench = Bench(here, protect())
        placed = await bench.place(2, 3, 4, 5)
        assert placed.complete
        assert placed.failures == {}
        assert {len(peers) for peers in placed.holders.values()} == {1}
        assert len({peer for peers in placed.holders.values() for peer in peers}) == 3
        assert bench.on_record() == {(s, p) for s, peers in placed.holders.items() for p in peers}
        assert sum(bench.told) == 9000
        # Everybody was told of everybody.
        for offer in bench.holders.offers:
            assert {entry.slot for entry in offer.holders} == {0, 1, 2}


@pytest.mark.parametrize(
    "error", [Unreachable("gone"), DeadlineExceeded("slow"), Refused("full", wire.Refusal.FULL)]
)
async def test_who_fails_is_replaced(tmp_path: Path, error: DstoreError) -> None:
    async with open_single_holder(tmp_path) as here:
        bench = Bench(here, protect())
        bad = node_key(3).peer_id
        bench.holders.errors[bad] = error
        placed = await bench.place(2, 3, 4, 5)
        assert placed.complete
        assert all(bad not in peers for peers in placed.holders.values())
        assert placed.failures in ({}, {bad: str(error)})
        # With too few others they share; with none at all it is said.
        placed = await bench.place(2, 3)
        assert placed.complete
        assert placed.holders[0] | placed.holders[1] | placed.holders[2] == {node_key(2).peer_id}
        placed = await bench.place(3)
        assert not placed.complete
        assert placed.holders == {}
        assert placed.assignment.unplaced == (0, 1, 2)


async def test_room_is_taken_by_what_is_on_its_way(tmp_path: Path) -> None:
    async with open_single_holder(tmp_path) as here:
        bench = Bench(here, protect())
        bench.room_bytes = 4000  # for one slot of 3000
        bench.holders.errors[node_key(3).peer_id] = Unreachable("gone")
        placed = await bench.place(2, 3, 4)
        assert placed.assignment.unplaced != ()
        assert len(bench.holders.offers) == 3
        # What a peer held before takes none: its word about its room came after.
        bench.holders.errors.clear()
        bench.holders.offers.clear()
        bench.room_bytes = 3000
        held = placed.holders
        placed = await bench.place(2, 3, 4, held=held)
        assert placed.complete
        assert {slot: peers for slot, peers in placed.brought.items() if peers} == {
            slot: peers for slot, peers in placed.holders.items() if slot not in held
        }


LIES: dict[str, Callable[[Lease], Lease]] = {
    "another slot": lambda one: replace(one, slot=one.slot + 1),
    "another segment": lambda one: replace(one, segment=protect(9).segment.cid),
    "another owner": lambda one: replace(one, owner=node_key(8, "owner").public),
    "another holder": lambda one: replace(one, holder=node_key(8).peer_id),
    "fewer bytes": lambda one: replace(one, bytes=one.bytes - 1),
    "a second": lambda one: replace(one, expires=int(START + 1)),
    "less than a day": lambda one: replace(one, expires=int(START + DAY - 601)),
    "ended": lambda one: replace(one, issued=int(START - DAY), expires=int(START - 1)),
}


@pytest.mark.parametrize("lie", LIES)
async def test_a_lease_for_anything_else_is_none(tmp_path: Path, lie: str) -> None:
    async with open_single_holder(tmp_path) as here:
        bench = Bench(here, protect())
        liar = node_key(3).peer_id
        bench.holders.lie, bench.holders.liars = LIES[lie], {liar}
        placed = await bench.place(2, 3, 4)
        assert placed.complete
        assert all(liar not in peers for peers in placed.holders.values())
        assert "answered with a lease" in placed.failures[liar]
        assert all(peer != liar for _, peer in bench.on_record())


async def test_a_lease_runs_no_longer_than_the_owner_wants(tmp_path: Path) -> None:
    async with open_single_holder(tmp_path) as here:
        bench = Bench(here, protect())
        bench.until = START + 3600
        bench.holders.lie = lambda one: replace(one, expires=int(START + 3600))
        bench.holders.liars = {node_key(n).peer_id for n in (2, 3, 4)}
        assert (await bench.place(2, 3, 4)).complete


async def test_what_holders_have_is_not_sent_again(tmp_path: Path) -> None:
    async with open_single_holder(tmp_path) as here:
        bench = Bench(here, protect())
        peers = (2, 3, 4)
        for peer in peers:
            bench.holders.errors[node_key(peer).peer_id] = Unreachable("half-way")
        assert not (await bench.place(*peers)).complete
        first = list(bench.holders.sent)
        assert first
        bench.holders.errors.clear()
        assert (await bench.place(*peers)).complete
        assert len(bench.holders.sent) == len(set(bench.holders.sent))


async def test_known_holders_are_asked_again_or_believed(tmp_path: Path) -> None:
    async with open_single_holder(tmp_path) as here:
        bench = Bench(here, protect())
        held = (await bench.place(2, 3, 4)).holders
        sent = len(bench.holders.sent)
        bench.holders.offers.clear()
        assert (await bench.place(2, 3, 4, 5, 6, held=held)).holders == held
        assert (len(bench.holders.offers), len(bench.holders.sent)) == (3, sent)
        bench.holders.offers.clear()
        assert (await bench.place(2, 3, 4, held=held, confirm=False)).holders == held
        assert bench.holders.offers == []
        # One that does not confirm is replaced.
        lost = next(iter(held[0]))
        bench.holders.errors[lost] = Refused("never heard of it", wire.Refusal.EXPIRED)
        placed = await bench.place(2, 3, 4, 5, held=held)
        assert placed.complete
        assert lost not in placed.holders[0]


async def test_who_may_hold_a_slot_is_on_record_before_it_is_brought(tmp_path: Path) -> None:
    async with open_single_holder(tmp_path) as here:
        bench = Bench(here, protect())
        for peer in (2, 3, 4):
            bench.holders.errors[node_key(peer).peer_id] = Unreachable("gone")
        await bench.place(2, 3, 4)
        rows = here.stores.catalog.placements(bench.root.segment.cid)
        assert {row.peer for row in rows} == {node_key(n).peer_id for n in (2, 3, 4)}
        assert all(row.lease is None and row.expires <= START for row in rows)


async def test_ones_own_slot_is_taken_without_the_network(tmp_path: Path) -> None:
    """Parity included, which is not in the store before."""
    root = protect()
    async with open_single_holder(tmp_path) as here:
        bench = Bench(here, root)
        here.blocks.delete_many([cid for cid, _ in root.slot(2)])
        placed = await bench.place(0)
        assert placed.complete
        assert placed.holders == {slot: {here.network.peer_id} for slot in range(3)}
        assert bench.holders.offers == []
        assert all(here.has(root.slot(2)))
        assert {row.state for row in here.stores.catalog.held_slots()} == {"held"}


async def test_ones_own_slot_is_checked_as_any_holder_checks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = protect()
    async with open_single_holder(tmp_path) as here:
        bench = Bench(here, root)
        here.blocks.delete_many([cid for cid, _ in root.slot(2)])
        honest, data_slots = here.blocks.get, dict([*root.slot(0), *root.slot(1)])

        def flipped(cid: CID) -> bytes:
            data = honest(cid)
            return bytes([data[0] ^ 1]) + data[1:] if cid in data_slots else data

        monkeypatch.setattr(here.blocks, "get", flipped)
        with pytest.raises(CorruptStore):
            await bench.place(0)
        assert not any(here.has(root.slot(2)))
        held = {row.slot for row in here.stores.catalog.held_slots() if row.state == "held"}
        assert 2 not in held


async def test_a_damaged_block_at_home_is_an_error_of_this_node(tmp_path: Path) -> None:
    root = protect()
    async with open_single_holder(tmp_path) as here:
        bench = Bench(here, root)
        here.blocks.corrupt(root.slot(0)[1][0])
        with pytest.raises(CorruptStore):
            await bench.place(2, 3, 4)


async def test_few_slots_at_once_however_many(tmp_path: Path) -> None:
    root = protect(code=(60, 20), stripes=1, size=64)
    async with open_single_holder(tmp_path) as here:
        bench = Bench(here, root)
        placed = await bench.place(*range(2, 90))
        assert placed.complete
        assert bench.holders.peak == UPLOADS_MAX


@pytest.mark.parametrize("honest", [True, False])
async def test_who_knows_a_newer_record_is_offered_one_above_it_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, honest: bool
) -> None:
    async with open_single_holder(tmp_path) as here:
        root = protect()
        bench = Bench(here, root)
        knows = node_key(1).peer_id
        old = bench.wish.envelope
        above = root.record(here.owner, seq=9) if honest else old
        bench.wish.next = above
        put = bench.holders.put_slot

        async def picky(peer: PeerId, offer: wire.PutSlot, *rest: Any) -> bytes:
            if peer == knows and offer.pin_record == old:
                raise Refused("a newer pin record is known here", wire.Refusal.EXPIRED)
            return await put(peer, offer, *rest)

        monkeypatch.setattr(bench.holders, "put_slot", picky)
        placed = await bench.place(1, 2, 3, 4)
        assert placed.complete
        assert bench.wish.asked == [knows]
        assert (knows in placed.failures) is not honest
        assert (knows in {peer for peers in placed.holders.values() for peer in peers}) is honest
