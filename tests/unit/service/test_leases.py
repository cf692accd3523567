"""Promises kept and ended: renewal, release, several owners and roots of one slot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dstore.core import wire
from dstore.core.pinrecord import open_lease
from dstore.errors import Refused
from dstore.limits import LEASE_SECONDS
from dstore.service.restore import restore_references
from dstore.storage.records import RecordFiles
from dstore.testing.cluster import node_key
from dstore.testing.deterministic import peer_number
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


async def release(here: SingleHolder, root: Protected, *records: bytes) -> wire.SlotAnswer:
    ref = wire.SlotRef(root.segment.cid, 0)
    (answer,) = await here.holder.release(ASKER, wire.Release((ref,), records))
    return answer


async def renew(here: SingleHolder, root: Protected, *records: bytes) -> wire.SlotAnswer:
    ref = wire.SlotRef(root.segment.cid, 0)
    (answer,) = await here.holder.renew(ASKER, wire.Renew((ref,), records))
    return answer


def rebuild(here: SingleHolder) -> None:
    """The catalog is lost, and made again from the record files."""
    here.stores.catalog.close()
    for path in list(here.directory.glob("catalog.sqlite3*")):
        path.unlink()
    here.restart()
    here.stores.catalog.rebuild(RecordFiles(here.directory / "records"), now=START)


def states(here: SingleHolder) -> list[str]:
    return [row.state for row in here.stores.catalog.held_slots()]


async def test_a_lease_is_renewed_while_the_record_is_valid(tmp_path: Path) -> None:
    root = protect()
    async with open_single_holder(tmp_path) as here:
        first = open_lease(await here.put(root, 0), START).lease
        here.clock.time += 10 * DAY
        answer = await renew(here, root)
        assert answer.lease is not None
        lease = open_lease(answer.lease, here.clock.time).lease
        assert lease.expires == first.expires + 10 * DAY
        assert lease.serial > first.serial
        (row,) = here.stores.catalog.held_slots()
        assert (row.lease, row.expires) == (answer.lease, lease.expires)
        here.clock.time += 365 * DAY
        assert (await renew(here, root)).refusal is Refusal.EXPIRED
        assert states(here) == ["held"]  # it ends by itself, nobody is in a hurry


async def test_a_lease_ends_with_the_wish_at_the_latest(tmp_path: Path) -> None:
    root = protect()
    async with open_single_holder(tmp_path) as here:
        record = root.record(here.owner, expires=START + 5 * DAY)
        assert open_lease(await here.put(root, 0, record), START).lease.expires == START + 5 * DAY
        assert here.holder.leases.ending(10) == []  # nothing longer could be promised
        longer = root.record(here.owner, seq=2, expires=START + 365 * DAY)
        answer = await renew(here, root, longer)
        assert answer.lease is not None
        assert open_lease(answer.lease, START).lease.expires == START + LEASE_SECONDS


async def test_a_slot_whose_blocks_are_gone_is_not_promised_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = protect()
    async with open_single_holder(tmp_path) as here:
        await here.put(root, 0)
        here.blocks.inner.delete_many([root.slot(0)[1][0]])
        assert (await renew(here, root)).refusal is Refusal.INTERNAL
        assert "cannot be promised again: 1 fragments" in caplog.text
        here.blocks.inner.delete_many([root.segment.cid])
        assert (await renew(here, root)).refusal is Refusal.INTERNAL


async def test_slots_that_are_not_held_are_not_renewed(tmp_path: Path) -> None:
    root = protect()
    async with open_single_holder(tmp_path) as here:
        assert (await renew(here, root)).refusal is Refusal.NOT_FOUND
        await here.accept(root, 0)
        assert (await renew(here, root)).refusal is Refusal.NOT_FOUND


async def test_release_needs_the_owners_word(tmp_path: Path) -> None:
    root = protect()
    async with open_single_holder(tmp_path) as here:
        await here.put(root, 0)
        assert (await release(here, root)).refusal is Refusal.POLICY
        stranger = root.record(node_key(7, "owner"), seq=9, expires=START)
        assert (await release(here, root, stranger)).refusal is Refusal.POLICY
        with pytest.raises(Refused) as error:
            await release(here, root, root.record(here.owner, seq=2)[:-1] + b"\0")
        assert error.value.reason == Refusal.BAD_SIGNATURE
        assert states(here) == ["held"]
        ended = root.record(here.owner, seq=2, expires=START)
        assert (await release(here, root, ended)).refusal is None
        assert states(here) == ["trash"]
        # An old record cannot raise it again.
        with pytest.raises(Refused, match="newer"):
            await here.put(root, 0, root.record(here.owner, seq=1))
        assert (await release(here, root, ended)).refusal is None
        # Its blocks are there, so that a new wish brings it back without a byte moved.
        reception = await here.accept(root, 0, root.record(here.owner, seq=3))
        assert reception.wanted == []
        await reception.finish()
        assert states(here) == ["held"]


async def test_a_slot_promised_again_while_it_is_released_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The owner pins anew between the look at the ended wish and the move to the trash."""
    root = protect()
    async with open_single_holder(tmp_path) as here:
        await here.put(root, 0)
        catalog, leases = here.stores.catalog, here.holder.leases
        act = catalog.release_slot
        signed: list[bytes | None] = []

        def pin_first(*judged: Any) -> bool:
            leases.take_records([root.record(here.owner, seq=3)])
            signed.append(leases.renew(root.segment.cid, 0).lease)
            return act(*judged)

        monkeypatch.setattr(catalog, "release_slot", pin_first)
        ended = root.record(here.owner, seq=2, expires=START)
        assert (await release(here, root, ended)).refusal is Refusal.POLICY
        (row,) = catalog.held_slots()
        assert (row.state, [row.lease]) == ("held", signed)


async def test_a_record_that_drops_the_manifest_releases_its_slots(tmp_path: Path) -> None:
    old, new = protect(1), protect(2)
    async with open_single_holder(tmp_path) as here:
        await here.put(old, 0)
        both = old.record(here.owner, seq=2, manifests=[new.manifest.cid, old.manifest.cid])
        assert (await release(here, old, both)).refusal is Refusal.POLICY
        dropped = old.record(here.owner, seq=3, manifests=[new.manifest.cid])
        assert (await release(here, old, dropped)).refusal is None
        assert states(here) == ["trash"]


async def test_records_of_strangers_are_not_collected(tmp_path: Path) -> None:
    """Only for owners and roots that it has a record of already: nothing grows unasked."""
    root, other = protect(1), protect(2)
    async with open_single_holder(tmp_path) as here:
        await here.put(root, 0)
        await renew(here, root, other.record(here.owner), root.record(node_key(5, "owner")))
        assert [row.root for row in here.stores.catalog.pin_records()] == [root.root]


# --- Sharing -----------------------------------------------------------------------------


async def test_two_owners_of_a_slot_each_have_their_lease(tmp_path: Path) -> None:
    root, second = protect(), node_key(2, "owner")
    async with open_single_holder(tmp_path) as here:
        await here.put(root, 0)
        here.clock.time += 1
        reception = await here.accept(root, 0, root.record(second))
        assert reception.wanted == []
        await reception.finish()
        assert states(here) == ["held", "held"]
        # Renewal is for the owner that asks, though the other changed last.
        answer = await renew(here, root, root.record(here.owner, seq=2))
        assert answer.lease is not None
        assert open_lease(answer.lease, START).lease.owner == here.owner.public
        # The end of one is not the end of the other.
        assert (
            await release(here, root, root.record(here.owner, seq=3, expires=START))
        ).refusal is None
        kept = {row.owner: row.state for row in here.stores.catalog.held_slots()}
        assert kept == {here.owner.public: "trash", second.public: "held"}
        here.stores.catalog.empty_trash(here.clock.time + 1)
        assert (
            here.stores.catalog.sweep(here.blocks, [cid.multihash for cid, _ in root.slot(0)]) == 0
        )


async def test_leases_of_all_owners_are_due(tmp_path: Path) -> None:
    root, second = protect(), node_key(2, "owner")
    async with open_single_holder(tmp_path) as here:
        await here.put(root, 0)
        await here.put(root, 0, root.record(second))
        assert here.holder.leases.ending(10) == []
        here.clock.time += 16 * DAY
        due = here.holder.leases.ending(10)
        assert {row.owner for row in due} == {here.owner.public, second.public}
        assert len(here.holder.leases.ending(1)) == 1


async def test_a_segment_shared_by_two_roots_is_kept_for_the_other(tmp_path: Path) -> None:
    first = protect()
    second = first.under("another directory with the same large file")
    async with open_single_holder(tmp_path) as here:
        await here.put(first, 0)
        reception = await here.accept(second, 0)
        assert reception.wanted == []
        await reception.finish()
        assert here.told[-1] == (second.root, second.segment.cid)
        ended = first.record(here.owner, seq=2, expires=START)
        assert (await release(here, first, ended)).refusal is Refusal.POLICY
        assert states(here) == ["held"]
        here.clock.time += 16 * DAY
        assert len(here.holder.leases.ending(10)) == 1
        assert (await renew(here, first)).lease is not None
        also_ended = second.record(here.owner, seq=2, expires=START)
        assert (await release(here, second, also_ended)).refusal is None
        assert states(here) == ["trash"]


async def test_a_shared_segment_is_kept_for_the_other_after_a_rebuild(tmp_path: Path) -> None:
    """The row and the record file of the slot name the first root alone."""
    first = protect()
    second = first.under("another directory with the same large file")
    async with open_single_holder(tmp_path) as here:
        await here.put(first, 0)
        await here.put(second, 0)
        never_offered = second.under("only named")
        named = [second.manifest.cid, never_offered.manifest.cid]
        here.holder.leases.take_records([second.record(here.owner, seq=2, manifests=named)])
        stranger = first.under("of somebody else")
        here.blocks.put_many([(stranger.manifest.cid, stranger.manifest.block)])
        record = stranger.record(node_key(2, "owner"))
        here.stores.catalog.put_pin_record(
            node_key(2, "owner").public, stranger.root, 1, START + DAY, record
        )
        here.stores.catalog.put_pin_record(bytes(32), first.root, 1, START + DAY, b"does not open")
        rebuild(here)
        assert restore_references(here.stores)
        catalog = here.stores.catalog
        manifests = {first.manifest.cid, second.manifest.cid}
        assert {one for _, one in catalog.manifests_with(first.segment.cid)} == manifests
        assert all(catalog.referenced([cid.multihash for cid in manifests]))
        ended = first.record(here.owner, seq=2, expires=START)
        assert (await release(here, first, ended)).refusal is Refusal.POLICY
        assert states(here) == ["held"]


async def test_promises_survive_a_restart_and_a_lost_catalog(tmp_path: Path) -> None:
    root = protect()
    async with open_single_holder(tmp_path) as here:
        lease = await here.put(root, 0)
        rebuild(here)
        (row,) = here.stores.catalog.held_slots()
        assert (row.state, row.lease) == ("held", lease)
