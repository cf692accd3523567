"""Pins listed and let go of: at home, at the holders, and after adds that were cut short."""

from __future__ import annotations

import math
import random
import shutil
from collections.abc import AsyncIterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from dstore.core import wire
from dstore.core.cid import CID, RAW
from dstore.core.pinrecord import open_pin_record
from dstore.core.stripes import Cuts, plan_dag
from dstore.errors import CallerError, NotFoundError, StorageFull
from dstore.limits import ORPHAN_SECONDS
from dstore.service import encoding
from dstore.service.leases import Leases
from dstore.service.progress import AddOptions, AddResult, Progress
from dstore.storage.catalog import Catalog
from dstore.storage.records import RecordFiles
from dstore.storage.rows import PinRow, ReferenceKind
from dstore.testing.cluster import Cluster, node_key, open_cluster
from dstore.testing.deterministic import run_deterministic


async def stream(size: int = 2_000_000) -> AsyncIterator[bytes]:
    yield random.Random(size).randbytes(size)


def states(cluster: Cluster) -> set[str]:
    return {
        row.state for number in cluster.alive for row in cluster[number].stores.catalog.held_slots()
    }


def test_pins_say_how_and_until_when() -> None:
    async def main() -> None:
        async with open_cluster(8) as cluster:
            node = cluster[0]
            local = await node.add_stream(stream(10), AddOptions(local_only=True, name="mine"))
            safe = await node.add_stream(stream(), AddOptions(pin_seconds=5000))
            pins = {pin.cid: pin for pin in await node.pins()}
            assert set(pins) == {local.cid, safe.cid}
            assert (pins[local.cid].mode, pins[local.cid].name) == ("local", "mine")
            assert pins[local.cid].expires is None
            kept = pins[safe.cid]
            assert (kept.mode, kept.code) == ("protected", safe.code)
            assert kept.expires is not None
            assert 4990 < kept.expires - kept.created <= 5000

    run_deterministic(1, main)


def test_letting_go_of_a_small_network_includes_ones_own_slots() -> None:
    async def main() -> None:
        async with open_cluster(3) as cluster:
            result = await cluster[0].add_stream(stream())
            assert states(cluster) == {"held"}
            assert cluster[0].stores.catalog.held_slots()
            assert await cluster[0].unpin(result.cid) == 2
            assert states(cluster) == {"trash"}

    run_deterministic(1, main)


def test_what_is_let_go_of_at_home_is_deleted_after_its_day() -> None:
    async def main() -> None:
        async with open_cluster(1) as cluster:
            result = await cluster[0].add_stream(stream())
            assert await cluster[0].unpin(result.cid) == 0
            blocks = cluster[0].stores.blocks
            assert blocks.usage().blocks > 0
            await trio.sleep(ORPHAN_SECONDS + 3600)
            assert blocks.usage().blocks == 0

    run_deterministic(1, main)


def test_an_add_that_was_cut_short_can_be_let_go_of() -> None:
    """Slots were placed, but the pin does not say so yet."""

    async def main() -> None:
        async with open_cluster(8) as cluster:
            with trio.move_on_after(60) as scope:

                def stop_in_upload(progress: object) -> None:
                    if "upload" in repr(progress) and states(cluster) & {"held"}:
                        scope.cancel()

                await cluster[0].add_stream(stream(), AddOptions(), stop_in_upload)
            assert scope.cancelled_caught
            (pin,) = await cluster[0].pins()
            assert (pin.mode, "held" in states(cluster)) == ("local", True)
            await cluster[0].unpin(pin.cid)
            assert "held" not in states(cluster)

    run_deterministic(3, main)


def test_holders_that_are_away_do_not_hold_it_up() -> None:
    async def main() -> None:
        async with open_cluster(8) as cluster:
            result = await cluster[0].add_stream(stream())
            for number in range(1, 8):
                cluster.hub.pause(cluster.peer(number))
            begin = trio.current_time()
            assert await cluster[0].unpin(result.cid) == 0
            assert trio.current_time() - begin < 10
            assert await cluster[0].pins() == []

    run_deterministic(1, main)


def test_what_is_not_pinned_cannot_be_let_go_of() -> None:
    async def main() -> None:
        async with open_cluster(1) as cluster:
            with pytest.raises(NotFoundError, match="dstore pin ls"):
                await cluster[0].unpin(CID.of(RAW, b"never"))

    run_deterministic(1, main)


@pytest.mark.parametrize("stage", ["encode", "upload"])
def test_letting_go_during_an_add_ends_the_add(stage: str) -> None:
    async def main() -> None:
        async with open_cluster(4) as cluster:
            node, reached, errors = cluster[0], trio.Event(), []
            first = await node.add_stream(stream(), AddOptions(local_only=True))

            def report(progress: Progress) -> None:
                if progress.stage == stage:
                    reached.set()

            async def add() -> None:
                with pytest.raises(CallerError, match="let go of") as error:
                    await node.add_stream(stream(), AddOptions(), report)
                errors.append(error.value)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(add)
                await reached.wait()
                await node.unpin(first.cid)
                assert await node.pins() == []
            assert len(errors) == 1
            assert await node.pins() == []
            assert "held" not in states(cluster)
            assert node.stores.catalog.referenced([first.cid.multihash]) == [False]
            # Nothing of it stands in the way of adding it again.
            assert (await node.add_stream(stream())).protected

    run_deterministic(1, main)


def test_cut_short_it_is_no_longer_protected_and_can_be_repeated() -> None:
    async def main() -> None:
        async with open_cluster(4) as cluster:
            node = cluster[0]
            result = await node.add_stream(stream())
            slow = next(n for n in (1, 2, 3) if cluster[n].stores.catalog.held_slots())
            cluster.hub.pause(cluster.peer(slow))
            with trio.move_on_after(1) as scope:
                await node.unpin(result.cid)
            assert scope.cancelled_caught
            (pin,) = await node.pins()
            assert pin.mode == "local"
            assert "held" in states(cluster)
            cluster.hub.resume(cluster.peer(slow))
            assert await node.unpin(result.cid) == 3
            assert "held" not in states(cluster)
            assert await node.pins() == []

    run_deterministic(1, main)


def test_adding_again_what_was_let_go_of_half_way_keeps_it() -> None:
    async def main() -> None:
        async with open_cluster(4) as cluster:
            node = cluster[0]
            result = await node.add_stream(stream())
            cluster.hub.pause(cluster.peer(1))
            with trio.move_on_after(1):
                await node.unpin(result.cid)
            await node.add_stream(stream(), AddOptions(local_only=True))
            (pin,) = await node.pins()
            assert (pin.mode, pin.expires) == ("local", None)

    run_deterministic(1, main)


@pytest.mark.parametrize("behind", [3, 590])
def test_holders_whose_clock_is_behind_let_go_too(behind: int) -> None:
    async def main() -> None:
        async with open_cluster(4) as cluster:
            result = await cluster[0].add_stream(stream())
            holders = [n for n in (1, 2, 3) if cluster[n].stores.catalog.held_slots()]
            for number in (1, 2, 3):
                cluster.nodes[number].clock.ahead = -behind
            assert await cluster[0].unpin(result.cid) == len(holders)
            assert states(cluster) == {"trash"}

    run_deterministic(1, main)


def test_holders_that_refuse_are_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: Leases, segment: CID, slot: int) -> wire.SlotAnswer:
        return wire.SlotAnswer(segment, slot, refusal=wire.Refusal.POLICY)

    monkeypatch.setattr(Leases, "release", refuse)

    async def main() -> None:
        async with open_cluster(4) as cluster:
            result = await cluster[0].add_stream(stream())
            assert await cluster[0].unpin(result.cid) == 0
            assert await cluster[0].pins() == []

    run_deterministic(1, main)


def test_a_segment_that_another_root_wants_is_no_refusal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two directories with the same large file in them: the holders keep its slots."""
    big = random.Random(5).randbytes(2_000_000)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "big").write_bytes(big)
        (tmp_path / name / name).write_bytes(b"x")
    cuts = Cuts(segment_bytes=1 << 30, segment_fragments=64, aligned_file_bytes=1 << 20)
    monkeypatch.setattr(encoding, "plan_dag", partial(plan_dag, cuts=cuts))

    async def main() -> None:
        async with open_cluster(4) as cluster:
            one = await cluster[0].add_path(tmp_path / "one")
            await cluster[0].add_path(tmp_path / "two")
            holders = [n for n in (1, 2, 3) if cluster[n].stores.catalog.held_slots()]
            assert await cluster[0].unpin(one.cid) == len(holders)
            assert "held" in states(cluster)

    run_deterministic(1, main)


def test_a_clock_that_was_ahead_does_not_keep_a_pin() -> None:
    async def main() -> None:
        async with open_cluster(4) as cluster:
            for one in cluster.nodes.values():
                one.clock.ahead = 2 * 86_400
            result = await cluster[0].add_stream(stream())
            for one in cluster.nodes.values():
                one.clock.ahead = 0
            assert await cluster[0].unpin(result.cid) == 3
            assert states(cluster) == {"trash"}

    run_deterministic(1, main)


def test_the_owners_key_on_another_machine_goes_on_above_what_holders_know() -> None:
    async def main() -> None:
        async with open_cluster(5) as cluster:
            options = AddOptions(code=(2, 1))
            first = await cluster[0].add_stream(stream(), options)
            await cluster[0].unpin(first.cid)
            await cluster[0].add_stream(stream(), AddOptions(code=(2, 2)))
            await cluster.kill(0)
            del cluster.stores[0]
            shutil.rmtree(cluster.directory / "node-0")
            await cluster.start(0)
            again = await cluster[0].add_stream(stream(), options)
            assert (again.protected, again.warnings) == (True, ())
            known = cluster[0].stores.catalog.pin_record(node_key(0, "owner").public, again.cid)
            assert known is not None
            record = open_pin_record(known.envelope, math.inf).record
            assert record.seq == 4
            assert len(record.manifests) == 2  # what the first machine wanted is wanted still
            # A third one has signed a newer record since: the holders tell.
            newer = replace(record, seq=20).sign(node_key(0, "owner"))
            for number in range(1, 5):
                if cluster[number].stores.catalog.held_slots():
                    cluster[number].stores.catalog.put_pin_record(
                        record.owner, record.root, 20, float(record.expires), newer.envelope
                    )
            assert await cluster[0].unpin(again.cid) == 3
            ended = cluster[0].stores.catalog.pin_record(record.owner, record.root)
            assert ended is not None
            assert ended.seq == 21

    run_deterministic(1, main)


def test_a_newer_record_that_one_holder_knows_reaches_them_all() -> None:
    """Another machine of the owner reached that one alone."""

    async def main() -> None:
        async with open_cluster(6) as cluster:
            owner = node_key(0, "owner")
            first = await cluster[0].add_stream(stream(), AddOptions(code=(2, 1)))
            holders = [n for n in range(1, 6) if cluster[n].stores.catalog.held_slots()]
            known = cluster[0].stores.catalog.pin_record(owner.public, first.cid)
            assert known is not None
            record = open_pin_record(known.envelope, math.inf).record
            newer = replace(record, seq=20, expires=record.expires + 1000).sign(owner)
            cluster[holders[-1]].stores.catalog.put_pin_record(
                owner.public, record.root, 20, float(newer.record.expires), newer.envelope
            )
            again = await cluster[0].add_stream(stream(), AddOptions(code=(2, 2)))
            assert (again.protected, again.warnings) == (True, ())
            ours = cluster[0].stores.catalog.pin_record(owner.public, first.cid)
            assert ours is not None
            assert ours.seq == 21
            for number in range(1, 6):
                catalog = cluster[number].stores.catalog
                if any(row.manifest == again.manifest for row in catalog.held_slots()):
                    known = catalog.pin_record(owner.public, first.cid)
                    assert known is not None
                    assert known.envelope == ours.envelope

    run_deterministic(1, main)


def test_two_adds_of_a_root_with_different_codes_are_both_protected(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of several segments each: the one names its manifest while the other still places."""
    cuts = Cuts(segment_bytes=2 << 20, segment_fragments=64, aligned_file_bytes=1 << 20)
    monkeypatch.setattr(encoding, "plan_dag", partial(plan_dag, cuts=cuts))

    async def main() -> None:
        async with open_cluster(6) as cluster:
            results: list[AddResult] = []

            async def add(code: tuple[int, int]) -> None:
                added = cluster[0].add_stream(stream(8_000_000), AddOptions(code=code))
                results.append(await added)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(add, (3, 2))
                await trio.sleep(0.02)
                nursery.start_soon(add, (2, 1))
            assert [(one.protected, one.warnings) for one in results] == [(True, ())] * 2
            known = cluster[0].stores.catalog.pin_record(
                node_key(0, "owner").public, results[0].cid
            )
            assert known is not None
            named = open_pin_record(known.envelope, math.inf).record.manifests
            assert set(named) == {one.manifest for one in results}

    run_deterministic(1, main)


def test_what_is_kept_for_a_pin_that_was_never_written_is_let_go_of(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*_: object) -> None:
        raise StorageFull("no room for a record")

    async def main() -> None:
        async with open_cluster(1) as cluster:
            catalog = cluster[0].stores.catalog
            with monkeypatch.context() as patch:
                patch.setattr(RecordFiles, "put", full)
                with pytest.raises(StorageFull):
                    await cluster[0].add_stream(stream())
            stored = list(cluster[0].stores.blocks.multihashes())
            assert stored
            assert not any(catalog.referenced(stored))

    run_deterministic(1, main)


def test_an_add_that_ends_meanwhile_is_not_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    """In another thread, between the references of a local add and its pin."""
    real = Catalog.reference

    async def main() -> None:
        async with open_cluster(1) as cluster:
            catalog = cluster[0].stores.catalog
            root = (await cluster[0].add_stream(stream(), AddOptions(local_only=True))).cid
            catalog.delete_pin(root)
            done = PinRow(root, "protected", "mine", 1.0, 2e9, 4, 2, root)

            def reference(self: Catalog, kind: ReferenceKind, *words: Any, **named: Any) -> None:
                real(self, kind, *words, **named)
                if kind is ReferenceKind.LOCAL_PIN:
                    self.put_pin(done)

            monkeypatch.setattr(Catalog, "reference", reference)
            await cluster[0].add_stream(stream(), AddOptions(local_only=True))
            assert catalog.get_pin(root) == done

    run_deterministic(1, main)
