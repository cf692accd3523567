"""Housekeeping: leases extended in time, reservations and orphans that end."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from dstore.core.cid import CID, RAW
from dstore.core.pinrecord import open_lease
from dstore.errors import NodeError
from dstore.limits import (
    LEASE_SECONDS,
    MESSAGE_SECONDS,
    ORPHAN_SECONDS,
    ORPHANS_WALKED_PER_STEP,
    RESERVATION_SECONDS,
)
from dstore.service import keeper as keeper_module
from dstore.service import orphans
from dstore.service.keeper import Keeper
from dstore.service.localadd import Operation
from dstore.service.orphans import Orphans
from dstore.storage.blockstore import Block
from dstore.storage.rows import ReferenceKind, operation_key
from dstore.testing.cluster import node_key
from dstore.testing.single_holder import DAY, START, SingleHolder, open_single_holder, protect


def keeper(here: SingleHolder) -> Keeper:
    return Keeper(here.stores, here.holder.leases, here.runtime)


def lease_ends(here: SingleHolder) -> float:
    (row,) = here.stores.catalog.held_slots()
    assert row.lease is not None
    assert open_lease(row.lease, here.clock.time).lease.expires == row.expires
    return row.expires


def strays(count: int, size: int = 100) -> list[Block]:
    made = [number.to_bytes(4, "big") * (size // 4) for number in range(count)]
    return [(CID.of(RAW, data), data) for data in made]


# --- Leases ------------------------------------------------------------------------------


async def test_leases_run_on_as_long_as_the_wish_and_no_longer(tmp_path: Path) -> None:
    root = protect()
    async with open_single_holder(tmp_path) as here:
        record = root.record(here.owner, expires=START + 100 * DAY)
        await here.put(root, 0, record)
        work = keeper(here)
        renewals = []
        for day in range(140):
            here.clock.time = START + day * DAY
            before = lease_ends(here)
            await work.step()
            if lease_ends(here) != before:
                renewals.append(day)
            # Never without a promise while it is wanted, never beyond the wish.
            if day < 100:
                assert here.clock.time < lease_ends(here) <= START + 100 * DAY
        assert renewals == [15, 30, 45, 60, 75]
        assert lease_ends(here) == START + 100 * DAY
        assert here.stores.catalog.held_slots()[0].state == "held"


async def test_what_its_owner_has_ended_goes_to_the_trash_and_nothing_else(tmp_path: Path) -> None:
    root, other, shared = protect(1), protect(2), protect(1).under("another")
    async with open_single_holder(tmp_path) as here:
        catalog, key = here.stores.catalog, here.owner.public
        await here.put(root, 0, root.record(here.owner, expires=START + 100 * DAY))
        await here.put(other, 0, other.record(here.owner, expires=START + 100 * DAY))
        await here.put(shared, 0, shared.record(here.owner, expires=START + 100 * DAY))

        def states() -> dict[CID, str]:
            return {row.segment: row.state for row in catalog.held_slots()}

        work = keeper(here)
        # A clock far ahead, and a wish that runs out by it, are no word of the owner.
        for wrong in (200 * DAY, -200 * DAY, 0):
            here.clock.time = START + wrong
            await work.step()
            assert set(states().values()) == {"held"}
        for one, state in ((root, "held"), (shared, "trash")):
            ended = one.record(here.owner, seq=2, created=START, expires=START - 600)
            catalog.put_pin_record(key, one.root, 2, START - 600, ended)
            await work.step()
            assert states() == {root.segment.cid: state, other.segment.cid: "held"}


async def test_a_newer_wish_goes_on(tmp_path: Path) -> None:
    root = protect()
    async with open_single_holder(tmp_path) as here:
        await here.put(root, 0, root.record(here.owner, expires=START + 10 * DAY))
        work = keeper(here)
        here.clock.time += 9 * DAY
        await work.step()
        assert lease_ends(here) == START + 10 * DAY
        here.holder.leases.take_records([root.record(here.owner, seq=2)])
        await work.step()
        assert lease_ends(here) == here.clock.time + LEASE_SECONDS


async def test_every_owner_of_a_slot_gets_renewals(tmp_path: Path) -> None:
    root = protect()
    async with open_single_holder(tmp_path) as here:
        await here.put(root, 0)
        await here.put(root, 0, root.record(node_key(2, "owner")))
        here.clock.time += 20 * DAY
        await keeper(here).step()
        ends = {row.expires for row in here.stores.catalog.held_slots()}
        assert ends == {here.clock.time + LEASE_SECONDS}


async def test_one_slot_that_cannot_be_renewed_does_not_keep_others_waiting(
    tmp_path: Path,
) -> None:
    good, bad = protect(1), protect(2)
    async with open_single_holder(tmp_path) as here:
        await here.put(good, 0)
        await here.put(bad, 0)
        here.blocks.inner.delete_many([bad.segment.cid])
        here.clock.time += 20 * DAY
        await keeper(here).step()
        ends = {row.root: row.expires for row in here.stores.catalog.held_slots()}
        assert ends[good.root] == here.clock.time + LEASE_SECONDS
        assert ends[bad.root] == START + LEASE_SECONDS


async def test_many_slots_that_cannot_be_renewed_keep_no_other_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More of them than one step takes, and all with leases that end before the others'."""
    monkeypatch.setattr(keeper_module, "KEEPER_SLOTS_PER_STEP", 2)
    bad, good = [protect(seed) for seed in range(5)], [protect(5), protect(6)]
    async with open_single_holder(tmp_path) as here:
        for root in bad:
            await here.put(root, 0)
            here.blocks.inner.delete_many([root.segment.cid])
        here.clock.time += 1
        for root in good:
            await here.put(root, 0)
        here.clock.time += 20 * DAY
        work = keeper(here)

        def extended() -> set[CID]:
            rows = here.stores.catalog.held_slots()
            return {row.root for row in rows if row.expires == here.clock.time + LEASE_SECONDS}

        for _ in range(4):
            await work.step()
        assert extended() == {root.root for root in good}
        # Those that failed are tried again, round after round.
        here.blocks.put_many([(root.segment.cid, root.segment.block) for root in bad])
        for _ in range(4):
            await work.step()
        assert extended() == {root.root for root in (*bad, *good)}


async def test_a_step_that_fails_goes_on_behind_the_slot_that_it_failed_at(tmp_path: Path) -> None:
    bad, good = protect(1), protect(2)
    async with open_single_holder(tmp_path) as here:
        await here.put(bad, 0)
        here.clock.time += 1
        await here.put(good, 0)
        here.clock.time += 20 * DAY
        work = keeper(here)
        here.blocks.fail("get", NodeError("the disk answers nothing"))
        with pytest.raises(NodeError):
            await work.step()
        await work.step()
        ends = {row.root: row.expires for row in here.stores.catalog.held_slots()}
        assert ends[good.root] == here.clock.time + LEASE_SECONDS
        assert ends[bad.root] == START + LEASE_SECONDS


# --- Reservations ------------------------------------------------------------------------


async def test_a_reservation_ends_after_its_idle_time_and_its_blocks_go(tmp_path: Path) -> None:
    root, kept = protect(1), protect(2)
    async with open_single_holder(tmp_path) as here:
        await here.put(kept, 0)
        here.clock.time = START + 1
        reception = await here.accept(root, 0)
        await reception.store([(0, root.blocks[reception.expected(0)[0]])])
        work = keeper(here)
        here.clock.time += RESERVATION_SECONDS - 1
        await work.step()
        assert len(here.stores.catalog.held_slots()) == 2
        # A fragment that arrives starts the idle time again.
        await reception.store([(1, root.blocks[reception.expected(1)[0]])])
        here.clock.time += RESERVATION_SECONDS - 1
        await work.step()
        assert len(here.stores.catalog.held_slots()) == 2
        here.clock.time += 2
        await work.step()
        assert [row.root for row in here.stores.catalog.held_slots()] == [kept.root]
        assert not any(here.has([*root.slot(0), *documents(root.manifest.cid, root.segment.cid)]))
        assert all(here.has(kept.slot(0)))
        assert here.stores.catalog.reserved_bytes() == 0


async def test_a_clock_that_was_set_ends_no_upload(tmp_path: Path) -> None:
    root = protect()
    async with open_single_holder(tmp_path) as here:
        work = keeper(here)
        reception = await here.accept(root, 0)
        here.clock.time += 2 * DAY
        await work.step()
        assert len(here.stores.catalog.held_slots()) == 1
        # Whoever goes on is seen by the next step; who does not is gone then.
        await reception.store([(0, root.blocks[reception.expected(0)[0]])])
        await work.step()
        assert len(here.stores.catalog.held_slots()) == 1
        here.clock.time -= 2 * DAY
        await work.step()
        here.clock.time += 2 * DAY
        await work.step()
        here.clock.time += MESSAGE_SECONDS
        for _ in range(RESERVATION_SECONDS // MESSAGE_SECONDS):
            await work.step()
            here.clock.time += MESSAGE_SECONDS
        await work.step()
        assert here.stores.catalog.held_slots() == []


def documents(*cids: CID) -> list[Block]:
    return [(cid, b"") for cid in cids]


async def test_what_another_slot_needs_stays(tmp_path: Path) -> None:
    root = protect()
    async with open_single_holder(tmp_path) as here:
        await here.put(root, 0)
        await here.accept(root, 1)
        here.clock.time += RESERVATION_SECONDS + 1
        await keeper(here).step()
        assert [row.slot for row in here.stores.catalog.held_slots()] == [0]
        assert all(here.has(documents(root.manifest.cid, root.segment.cid)))


async def test_a_reservation_that_was_finished_meanwhile_is_not_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lease is signed between the look at idle reservations and their deletion."""
    root = protect()
    async with open_single_holder(tmp_path) as here:
        reception = await here.accept(root, 0)
        for stripe in reception.wanted:
            await reception.store([(stripe, root.blocks[reception.expected(stripe)[0]])])
        catalog = here.stores.catalog
        delete = catalog._delete
        here.clock.time += RESERVATION_SECONDS + 1
        cids = [cid for cid, _ in root.slot(0)]

        def finish_first(segment: CID, slot: int, which: object) -> bool:
            (row,) = catalog.held_slots()
            here.holder.leases.promise(row, cids)
            return delete(segment, slot, which)  # type: ignore[arg-type]  # passed on

        monkeypatch.setattr(catalog, "_delete", finish_first)
        await keeper(here).step()
        assert [row.state for row in catalog.held_slots()] == ["held"]
        assert all(here.has(root.slot(0)))


# --- Orphans -----------------------------------------------------------------------------


def step_all(sweeper: Orphans, here: SingleHolder) -> int:
    """One whole round."""
    swept = sweeper.step(here.clock.time)
    while sweeper._walk is not None:
        swept += sweeper.step(here.clock.time)
    return swept


async def test_orphans_are_deleted_after_a_day(tmp_path: Path) -> None:
    root = protect()
    async with open_single_holder(tmp_path) as here:
        await here.put(root, 0)
        here.blocks.put_many(strays(10))
        before = here.blocks.usage().blocks
        sweeper = Orphans(here.stores)
        assert step_all(sweeper, here) == 0
        assert sweeper.known == 10
        here.clock.time += ORPHAN_SECONDS - 1
        assert step_all(sweeper, here) == 0
        here.clock.time += 1
        assert step_all(sweeper, here) == 10
        assert here.blocks.usage().blocks == before - 10
        assert all(here.has(root.slot(0)))
        step_all(sweeper, here)
        assert sweeper.known == 0


async def test_an_orphan_that_was_needed_again_starts_its_day_anew(tmp_path: Path) -> None:
    async with open_single_holder(tmp_path) as here:
        (stray,) = strays(1)
        here.blocks.put_many([stray])
        sweeper = Orphans(here.stores)
        step_all(sweeper, here)
        here.clock.time += ORPHAN_SECONDS / 2
        here.stores.catalog.reference(ReferenceKind.CACHE, b"key", [stray[0].multihash])
        step_all(sweeper, here)
        assert sweeper.known == 0
        here.stores.catalog.release(ReferenceKind.CACHE, b"key")
        here.clock.time += ORPHAN_SECONDS / 2
        assert step_all(sweeper, here) == 0
        here.clock.time += ORPHAN_SECONDS
        assert step_all(sweeper, here) == 1


async def test_a_round_is_made_in_small_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(orphans, "ORPHANS_WALKED_PER_STEP", 10)
    assert ORPHANS_WALKED_PER_STEP >= 1000
    async with open_single_holder(tmp_path) as here:
        here.blocks.put_many(strays(35))
        sweeper = Orphans(here.stores)
        known = []
        for _ in range(4):
            sweeper.step(here.clock.time)
            known.append(sweeper.known)
        assert known == [10, 20, 30, 35]
        here.clock.time += ORPHAN_SECONDS
        assert [sweeper.step(here.clock.time) for _ in range(5)] == [10, 10, 10, 5, 0]


async def test_what_is_remembered_of_orphans_is_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(orphans, "ORPHANS_REMEMBERED_MAX", 20)
    async with open_single_holder(tmp_path) as here:
        here.blocks.put_many(strays(50))
        sweeper = Orphans(here.stores)
        for _ in range(3):
            step_all(sweeper, here)
            assert sweeper.known <= 20
            here.clock.time += ORPHAN_SECONDS
        for _ in range(6):
            step_all(sweeper, here)
            here.clock.time += ORPHAN_SECONDS
        assert here.blocks.usage().blocks == 0


async def test_a_repeated_add_keeps_what_the_killed_one_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its blocks are old orphans by now; the sweep comes between any two steps of the add."""
    async with open_single_holder(tmp_path) as here:
        blocks = strays(30)
        here.blocks.put_many(blocks)
        sweeper = Orphans(here.stores)
        step_all(sweeper, here)
        here.clock.time += ORPHAN_SECONDS

        inner_put = here.blocks.inner.put_many

        def sweep_and_put(more: Sequence[Block], *, read_soon: bool) -> None:
            step_all(sweeper, here)  # after they are referenced, before they are put
            inner_put(more, read_soon=read_soon)

        monkeypatch.setattr(here.blocks.inner, "put_many", sweep_and_put)
        async with Operation("add", here.stores, here.runtime) as save:
            for start in range(0, 30, 10):
                save(blocks[start : start + 10])
                step_all(sweeper, here)
            assert all(here.has(blocks))
        assert here.stores.catalog.operations() == []


async def test_a_killed_operation_lets_go_at_the_next_start(tmp_path: Path) -> None:
    async with open_single_holder(tmp_path) as here:
        blocks = strays(5)
        catalog = here.stores.catalog
        number = catalog.begin_operation("add", START)
        catalog.reference(
            ReferenceKind.OPERATION, operation_key(number), [cid.multihash for cid, _ in blocks]
        )
        here.blocks.put_many(blocks)
        sweeper = Orphans(here.stores)
        step_all(sweeper, here)
        assert sweeper.known == 0
        here.restart()
        sweeper = Orphans(here.stores)
        step_all(sweeper, here)
        assert sweeper.known == 5


async def test_nothing_is_swept_while_references_are_missing(tmp_path: Path) -> None:
    async with open_single_holder(tmp_path) as here:
        here.blocks.put_many(strays(5))
        here.stores.catalog._raise_counter("unverified", 1)
        sweeper = Orphans(here.stores)
        step_all(sweeper, here)
        here.clock.time += ORPHAN_SECONDS
        assert step_all(sweeper, here) == 0
        assert here.blocks.usage().blocks == 5
