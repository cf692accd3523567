"""A holder: what it accepts, the order in which it promises, and what it lets go."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from dstore.core import wire
from dstore.core.cid import CID
from dstore.core.manifest import Manifest, Segment
from dstore.core.pinrecord import open_lease
from dstore.errors import Refused, StorageFull
from dstore.limits import HOLDER_MAP_ENTRIES_MAX, LEASE_SECONDS
from dstore.storage.rows import HeldSlot, Placement, ReferenceKind, slot_key
from dstore.testing.cluster import node_key
from dstore.testing.deterministic import peer_number
from dstore.testing.faulty_store import SimulatedCrash
from dstore.testing.single_holder import (
    DAY,
    START,
    Protected,
    SingleHolder,
    open_single_holder,
    protect,
)

ASKER = peer_number(1)
Refusal = wire.Refusal


def refused(error: pytest.ExceptionInfo[Refused]) -> str:
    return error.value.reason


async def test_a_slot_taken_is_leased_told_and_served(tmp_path: Path) -> None:
    root = protect()
    async with open_single_holder(tmp_path) as here:
        lease = open_lease(await here.put(root, 0), START).lease
        assert (lease.holder, lease.owner) == (here.network.peer_id, here.owner.public)
        assert (lease.segment, lease.slot, lease.bytes) == (root.segment.cid, 0, 3000)
        assert (lease.issued, lease.expires) == (START, START + LEASE_SECONDS)
        assert lease.domains == ("label:here",)
        assert here.told == [(root.root, root.segment.cid)]
        wanted = [cid for cid, _ in root.slot(0)]
        absent = root.slot(1)[0][0]
        blocks = here.holder.blocks(ASKER, [*wanted, absent])
        got = [item async for batch in blocks for item in batch]
        assert got == [*root.slot(0), (absent, None)]
        known = await here.holder.find_manifests(ASKER, root.root)
        assert known == wire.Manifests((root.manifest.cid,), (root.record(here.owner),))
        (holding,) = (await here.holder.have(ASKER, [root.segment.cid])).holdings
        assert [(held.slot, held.whole) for held in holding.slots] == [(0, True)]
        assert [(entry.peer, entry.slot) for entry in holding.holders] == [
            (here.network.peer_id, 0)
        ]


async def test_serials_never_repeat(tmp_path: Path) -> None:
    root, serials = protect(), []
    async with open_single_holder(tmp_path) as here:
        for _ in range(3):
            serials.append(open_lease(await here.put(root, 0), START).lease.serial)
            here.restart()
    assert serials == sorted(set(serials))


# --- Order and resumption ----------------------------------------------------------------


@pytest.mark.parametrize("blocks", range(7))
async def test_a_crash_leaves_no_promise_without_its_blocks(tmp_path: Path, blocks: int) -> None:
    """The process dies after any number of blocks (documents included) became durable: no
    lease is on record, a resumed upload sends the rest alone, and then there is one."""
    root = protect(stripes=4)
    async with open_single_holder(tmp_path) as here:
        here.blocks.crash_after_blocks(blocks)
        crashed = False
        try:
            await here.put(root, 0)
        except SimulatedCrash:
            crashed = True
        assert crashed == (blocks < 6)  # manifest, segment, four fragments
        here.restart()
        whole = all(here.has(root.slot(0)))
        rows = here.stores.catalog.held_slots()
        assert [row.state for row in rows] == (["reserved"] if crashed else ["held"])
        assert whole or crashed
        reception = await here.accept(root, 0)
        assert len(reception.wanted) == here.has(root.slot(0)).count(False)
        assert open_lease(await here.put(root, 0), START).lease.slot == 0
        assert all(here.has(root.slot(0)))
        assert here.stores.catalog.held_slots()[0].state == "held"


async def test_an_unfinished_slot_is_not_promised(tmp_path: Path) -> None:
    root = protect()
    async with open_single_holder(tmp_path) as here:
        reception = await here.accept(root, 0)
        assert list(reception.wanted) == [0, 1, 2]
        await reception.store([(1, root.blocks[reception.expected(1)[0]])])
        with pytest.raises(Refused, match="2 fragments of the slot are missing"):
            await reception.finish()
        await reception.abandon()
        (row,) = here.stores.catalog.held_slots()
        assert (row.state, row.lease) == ("reserved", None)
        again = await here.accept(root, 0)
        assert list(again.wanted) == [0, 2]
        assert here.told == []


async def test_nothing_is_kept_for_a_slot_before_its_row_says_so(tmp_path: Path) -> None:
    """A full disk right at the start: what was referenced ends with the reservation."""
    root = protect()
    async with open_single_holder(tmp_path) as here:
        here.blocks.fill()
        with pytest.raises(StorageFull):
            await here.accept(root, 0)
        catalog = here.stores.catalog
        key = slot_key(root.segment.cid, 0)
        assert catalog.referenced_by(ReferenceKind.SLOT, key)
        assert [row.state for row in catalog.held_slots()] == ["reserved"]
        assert catalog.expire_reservations(START + 1)
        assert catalog.referenced_by(ReferenceKind.SLOT, key) == []


async def test_blocks_that_nothing_kept_are_asked_for_again_if_collected_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An orphan is there when the offer comes and swept before it is referenced."""
    root = protect()
    async with open_single_holder(tmp_path) as here:
        here.blocks.put_many(root.slot(0))
        catalog = here.stores.catalog
        reserve = catalog.reserve_slot

        def sweep_first(row: HeldSlot) -> None:
            catalog.sweep(here.blocks, [cid.multihash for cid, _ in root.slot(0)])
            reserve(row)

        monkeypatch.setattr(catalog, "reserve_slot", sweep_first)
        reception = await here.accept(root, 0)
        assert list(reception.wanted) == [0, 1, 2]


# --- What is refused ---------------------------------------------------------------------


async def test_no_more_is_promised_than_the_disk_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_single_holder(tmp_path, capacity_bytes=1 << 40) as here:
        monkeypatch.setattr(here.blocks, "room", lambda: 2000)
        assert (await here.holder.hello(ASKER)).free_bytes == 2000
        with pytest.raises(Refused) as error:
            await here.accept(protect(), 0)
        assert refused(error) == Refusal.FULL


async def test_room_is_reserved_before_bytes_move(tmp_path: Path) -> None:
    first, second = protect(1), protect(2)
    async with open_single_holder(tmp_path, capacity_bytes=6500) as here:
        assert (await here.holder.hello(ASKER)).free_bytes == 6500
        reception = await here.accept(first, 0)
        reserved = (await here.holder.hello(ASKER)).free_bytes
        assert reserved < 4000
        with pytest.raises(Refused) as error:
            await here.accept(protect(3, stripes=6), 0)
        assert refused(error) == Refusal.FULL
        # The same slot again is not counted twice.
        reception = await here.accept(first, 0)
        for stripe in reception.wanted:
            await reception.store([(stripe, first.blocks[reception.expected(stripe)[0]])])
        await reception.finish()
        with pytest.raises(Refused):
            await here.accept(second, 0)
        assert [row.root for row in here.stores.catalog.held_slots()] == [first.root]


async def test_what_is_stored_of_a_slot_is_counted_once(tmp_path: Path) -> None:
    first, second = protect(1, stripes=10), protect(2, stripes=10)
    async with open_single_holder(tmp_path, capacity_bytes=25_000) as here:
        reception = await here.accept(first, 0)
        documents = here.blocks.usage().bytes

        async def free() -> int:
            return (await here.holder.hello(ASKER)).free_bytes

        for stripe in list(reception.wanted)[:-1]:
            await reception.store([(stripe, first.blocks[reception.expected(stripe)[0]])])
            assert await free() == 25_000 - documents - 10_000
        await reception.abandon()
        assert await free() == 25_000 - documents - 10_000
        # The rest of it is reserved still, and there is room for another.
        resumed = await here.accept(first, 0)
        assert list(resumed.wanted) == [9]
        assert await free() == 25_000 - documents - 10_000
        await here.put(second, 0)


async def test_a_node_without_capacity_takes_nothing(tmp_path: Path) -> None:
    async with open_single_holder(tmp_path, capacity_bytes=0) as here:
        with pytest.raises(Refused) as error:
            await here.accept(protect(), 0)
        assert refused(error) == Refusal.POLICY
        hello = await here.holder.hello(ASKER)
        assert (hello.free_bytes, hello.slot_bytes_max) == (0, 0)


async def test_records_that_are_old_ended_or_superseded(tmp_path: Path) -> None:
    root = protect()
    async with open_single_holder(tmp_path) as here:
        await here.put(root, 0, root.record(here.owner, seq=3))
        with pytest.raises(Refused, match="newer pin record") as error:
            await here.put(root, 1, root.record(here.owner, seq=2))
        assert refused(error) == Refusal.EXPIRED
        assert [row.slot for row in here.stores.catalog.held_slots()] == [0]
        with pytest.raises(Refused, match="expired"):
            await here.put(root, 1, root.record(here.owner, seq=4, expires=START - 1))
        with pytest.raises(Refused) as error:
            await here.put(root, 1, root.record(here.owner, created=START + DAY))
        assert refused(error) == Refusal.BAD_SIGNATURE
        await here.put(root, 1, root.record(here.owner, seq=4))
        records = here.stores.catalog.pin_records_named(root.root, 9)
        assert [row.seq for row in records] == [4]


async def test_documents_that_do_not_fit_each_other_are_refused(tmp_path: Path) -> None:
    root, other = protect(1), protect(2)
    async with open_single_holder(tmp_path) as here:
        record = root.record(here.owner)

        async def garbage(cids: Sequence[CID]) -> list[bytes]:
            return [b"\xa0" for _ in cids]

        async def of_both(cids: Sequence[CID]) -> list[bytes]:
            return [(root.blocks | other.blocks)[cid] for cid in cids]

        with pytest.raises(Refused) as error:
            await here.holder.offer_slot(ASKER, root.offer(record, 0), garbage)
        assert refused(error) == Refusal.MALFORMED
        foreign = wire.PutSlot(record, root.manifest.cid, other.segment.cid, 0)
        with pytest.raises(Refused, match="does not list"):
            await here.holder.offer_slot(ASKER, foreign, of_both)
        empty = protect(5, code=(2, 1), stripes=1)
        with pytest.raises(Refused, match="nothing in slot 3"):
            await here.holder.offer_slot(
                ASKER, empty.offer(empty.record(here.owner), 3), empty.load
            )
        assert here.stores.catalog.held_slots() == []
        assert here.blocks.usage().blocks == 0


# --- Holder maps -------------------------------------------------------------------------


def entries(count: int, slot: int = 1, expires: float = START) -> tuple[wire.HolderEntry, ...]:
    return tuple(
        wire.HolderEntry(peer_number(100 + number), slot, int(expires), ("/ip4/192.0.2.1/tcp/1",))
        for number in range(count)
    )


async def offer_with(
    here: SingleHolder, root: Protected, holders: tuple[wire.HolderEntry, ...]
) -> None:
    offer = root.offer(root.record(here.owner), 0, holders)
    await here.holder.offer_slot(ASKER, offer, root.load)


async def test_the_holder_map_is_kept_and_told(tmp_path: Path) -> None:
    root = protect()
    async with open_single_holder(tmp_path) as here:
        me = wire.HolderEntry(here.network.peer_id, 2, int(START), ())
        await offer_with(here, root, (*entries(2), me, *entries(1, slot=9)))
        known = here.stores.catalog.placements(root.segment.cid)
        assert {(one.slot, one.peer) for one in known} == {
            (1, peer_number(100)),
            (1, peer_number(101)),
        }
        assert here.network.known_addresses(peer_number(100)) == ("/ip4/192.0.2.1/tcp/1",)
        (holding,) = (await here.holder.have(ASKER, [root.segment.cid])).holdings
        assert {entry.peer for entry in holding.holders} == {peer_number(100), peer_number(101)}
        assert holding.slots == ()  # only reserved


async def test_hearsay_does_not_touch_what_is_known_by_a_lease(tmp_path: Path) -> None:
    root = protect()
    async with open_single_holder(tmp_path) as here:
        known = Placement(root.segment.cid, 1, peer_number(100), START + DAY, b"lease")
        here.stores.catalog.put_placements([known])
        await offer_with(here, root, entries(1, expires=0))
        assert here.stores.catalog.placements(root.segment.cid) == [known]


async def test_invented_holders_are_bounded(tmp_path: Path) -> None:
    root = protect()
    async with open_single_holder(tmp_path) as here:
        await offer_with(here, root, entries(HOLDER_MAP_ENTRIES_MAX, expires=9e9))
        await offer_with(here, root, entries(HOLDER_MAP_ENTRIES_MAX, slot=2, expires=9e9))
        known = here.stores.catalog.placements(root.segment.cid)
        assert len(known) == HOLDER_MAP_ENTRIES_MAX
        assert max(one.expires for one in known) <= START + LEASE_SECONDS


# --- Challenges --------------------------------------------------------------------------


async def test_challenges_are_answered_from_the_disk(tmp_path: Path) -> None:
    root, other = protect(1), protect(2)
    async with open_single_holder(tmp_path) as here:
        await here.put(root, 0)
        await here.put(other, 2)
        lost = root.slot(0)[1][0]
        here.blocks.corrupt(lost)
        items = [
            wire.Challenged(segment, slot, stripe, b"n")
            for segment, slot, stripe in [
                (root.segment.cid, 0, 0),
                (root.segment.cid, 0, 1),
                (other.segment.cid, 2, 2),
                (root.segment.cid, 1, 0),
                (root.segment.cid, 0, 99),
            ]
        ]
        before = here.blocks.calls["get"]
        shown = here.holder.challenge(ASKER, items)
        got = [item async for batch in shown for item in batch]
        assert got == [
            root.slot(0)[0],
            (lost, None),
            other.slot(2)[2],
            (root.segment.cid, None),
            (root.segment.cid, None),
        ]
        # Each segment is decoded once for neighbours, not once for each question.
        assert here.blocks.calls["get"] - before <= 4 + 3


async def test_what_is_stored_is_what_was_offered(tmp_path: Path) -> None:
    root = protect()
    async with open_single_holder(tmp_path) as here:
        await here.put(root, 1)
        stored = here.blocks
        assert Manifest.decode(stored.get(root.manifest.cid)) == root.manifest
        assert Segment.decode(stored.get(root.segment.cid)) == root.segment
        assert stored.usage().blocks == 2 + 3
        assert node_key(0).peer_id == here.network.peer_id
