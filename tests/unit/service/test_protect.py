"""Protection over several adds: guarantees asked for, other codes, shared segments, holders
that fail, records that must reach everybody."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import trio

from dstore.core.cid import CID
from dstore.core.manifest import Manifest
from dstore.core.pinrecord import open_pin_record
from dstore.core.placement import group_key
from dstore.core.stripes import Cuts, SegmentPlan, plan_dag
from dstore.errors import CallerError, InsufficientPeers, StorageFull
from dstore.limits import MIB
from dstore.service import encoding, publish
from dstore.service.progress import AddOptions, Progress
from dstore.testing.cluster import Cluster, node_key, open_cluster
from dstore.testing.deterministic import run_deterministic

OWNER = node_key(0, "owner").public


def content(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


async def stream(data: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(data), 100_000):
        yield data[start : start + 100_000]


async def read(cluster: Cluster, number: int, root: CID) -> bytes:
    async with cluster[number].read(root) as chunks:
        return b"".join([chunk async for chunk in chunks])


def held(cluster: Cluster) -> list[tuple[int, int]]:
    """(node, slot) of every slot under lease."""
    return [
        (number, row.slot)
        for number in cluster.alive
        for row in cluster[number].stores.catalog.held_slots()
        if row.state == "held"
    ]


def record_of(cluster: Cluster, number: int, root: CID) -> bytes | None:
    known = cluster[number].stores.catalog.pin_record(OWNER, root)
    return known.envelope if known else None


# --- Guarantees --------------------------------------------------------------------------


@pytest.mark.parametrize("code", [None, (4, 2), (1, 1)])
def test_a_guarantee_out_of_reach_places_nothing(code: tuple[int, int] | None) -> None:
    async def main() -> None:
        async with open_cluster(4) as cluster:
            with pytest.raises(InsufficientPeers, match="3 were required"):
                await cluster[0].add_stream(
                    stream(content(2_000_000)), AddOptions(code=code, require_guarantee=3)
                )
            assert held(cluster) == []
            for number in (1, 2, 3):
                assert cluster[number].stores.blocks.usage().blocks == 0
                assert cluster[number].stores.catalog.pin_records() == []
            assert cluster[0].stores.catalog.pin_records() == []
            (pin,) = await cluster[0].pins()
            assert pin.mode == "local"
            assert await read(cluster, 0, pin.cid) == content(2_000_000)

    run_deterministic(1, main)


def test_a_guarantee_within_reach_is_given() -> None:
    async def main() -> None:
        async with open_cluster(8) as cluster:
            result = await cluster[0].add_stream(
                stream(content(2_000_000)), AddOptions(require_guarantee=2)
            )
            assert result.protected
            assert result.guarantee is not None
            assert result.guarantee.peers == 2

    run_deterministic(1, main)


def test_a_guarantee_lost_on_the_way_is_an_error_and_what_was_placed_stays() -> None:
    async def main() -> None:
        async with open_cluster(4) as cluster:
            for number in (2, 3):
                cluster.stores[number].fill()
            with pytest.raises(InsufficientPeers, match="add it again"):
                await cluster[0].add_stream(
                    stream(content(900_000)), AddOptions(code=(1, 2), require_guarantee=2)
                )
            for number in (2, 3):
                cluster.stores[number].drain()
            result = await cluster[0].add_stream(
                stream(content(900_000)), AddOptions(code=(1, 2), require_guarantee=2)
            )
            assert result.protected

    run_deterministic(1, main)


def test_codes_that_do_not_exist_are_refused_before_anything_is_read() -> None:
    async def never() -> AsyncIterator[bytes]:
        raise AssertionError("read")
        yield b""

    async def main() -> None:
        async with open_cluster(2) as cluster:
            for code in ((0, 2), (200, 56)):
                with pytest.raises(CallerError):
                    await cluster[0].add_stream(never(), AddOptions(code=code))

    run_deterministic(1, main)


# --- Adding again ------------------------------------------------------------------------


def test_adding_again_after_letting_go_protects_again() -> None:
    data = content(1_200_000)

    async def main() -> None:
        async with open_cluster(8) as cluster:
            first = await cluster[0].add_stream(stream(data))
            places = held(cluster)
            assert await cluster[0].unpin(first.cid) > 0
            assert held(cluster) == []
            again = await cluster[0].add_stream(stream(data))
            assert again.protected
            assert sorted(held(cluster)) == sorted(places)
            await cluster.kill(0)
            assert await read(cluster, 7, first.cid) == data

    run_deterministic(1, main)


def test_a_new_record_reaches_the_holders_without_moving_a_block() -> None:
    """Half of the time has passed: the next add signs a longer wish, which only counts once
    the holders have it."""
    data = content(1_200_000)

    async def main() -> None:
        async with open_cluster(8) as cluster:
            short = AddOptions(pin_seconds=1000)
            first = await cluster[0].add_stream(stream(data), short)
            before = record_of(cluster, 0, first.cid)
            await trio.sleep(600)
            puts = {n: cluster.nodes[n].blocks.usage() for n in range(1, 8)}
            await cluster[0].add_stream(stream(data), short)
            after = record_of(cluster, 0, first.cid)
            assert after is not None
            assert after != before
            assert open_pin_record(after, 2e9).record.seq == 2
            holders = {number for number, _ in held(cluster)}
            assert holders
            assert all(record_of(cluster, number, first.cid) == after for number in holders)
            assert {n: cluster.nodes[n].blocks.usage() for n in range(1, 8)} == puts

    run_deterministic(1, main)


def test_another_code_adds_its_manifest_and_keeps_the_old_one() -> None:
    data = content(2_500_000)

    async def main() -> None:
        async with open_cluster(9) as cluster:
            first = await cluster[0].add_stream(stream(data), AddOptions(code=(2, 1)))
            second = await cluster[0].add_stream(stream(data), AddOptions(code=(3, 2)))
            assert first.manifest is not None
            assert second.manifest not in (None, first.manifest)
            envelope = record_of(cluster, 0, first.cid)
            assert envelope is not None
            assert open_pin_record(envelope, 2e9).record.manifests == (
                second.manifest,
                first.manifest,
            )
            (pin,) = await cluster[0].pins()
            assert pin.code == (3, 2)
            # No holder of the first code may let go yet: nobody told it to.
            assert len(held(cluster)) == 3 + 5
            await cluster.kill(0)
            assert await read(cluster, 8, first.cid) == data

    run_deterministic(1, main)


def test_names_are_kept_until_another_is_given() -> None:
    async def main() -> None:
        async with open_cluster(4) as cluster:

            async def add(name: str | None, *, local: bool = False) -> str | None:
                options = AddOptions(name=name, local_only=local)
                await cluster[0].add_stream(stream(content(1000)), options)
                (pin,) = await cluster[0].pins()
                return pin.name

            assert await add("first") == "first"
            before = (await cluster[0].pins())[0]
            assert await add(None) == "first"
            assert await add(None, local=True) == "first"
            assert await add("second", local=True) == "second"
            (pin,) = await cluster[0].pins()
            assert (pin.mode, pin.created, pin.code) == ("protected", before.created, before.code)

    run_deterministic(1, main)


def test_adding_again_spreads_what_was_crowded() -> None:
    """Few nodes at first: several slots each.  Later there are more."""
    data = content(5_000_000)

    async def main() -> None:
        async with open_cluster(3) as cluster:
            options = AddOptions(code=(4, 2))
            first = await cluster[0].add_stream(stream(data), options)
            assert first.guarantee is not None
            assert first.guarantee.peers < 2
            for number in range(3, 8):
                await cluster.start(number)
            second = await cluster[0].add_stream(stream(data), options)
            assert second.protected
            assert second.guarantee is not None
            assert second.guarantee.peers == 2

    run_deterministic(1, main)


# --- Holders that fail -------------------------------------------------------------------


def test_a_holder_that_fails_is_replaced_and_named() -> None:
    data = content(3_000_000)

    async def main() -> None:
        async with open_cluster(9) as cluster:
            cluster.stores[3].fill()
            cluster.hub.pause(cluster.peer(4))
            seen: list[Progress] = []
            result = await cluster[0].add_stream(stream(data), AddOptions(code=(4, 2)), seen.append)
            assert result.protected
            assert result.guarantee is not None
            assert result.guarantee.peers == 2
            named = [warning for warning in result.warnings if "passed over" in warning]
            assert all(str(cluster.peer(3)) in warning for warning in named)
            assert not {3, 4} & {number for number, _ in held(cluster)}
            uploads = [one for one in seen if one.stage == "upload"]
            done = [one.done_bytes for one in uploads]
            assert done == sorted(done)
            assert done[-1] == uploads[-1].total_bytes

    run_deterministic(1, main)


def test_cancelled_in_the_middle_and_added_again() -> None:
    """Whenever it is cancelled: no operation is left open, and the next add completes."""
    data = content(2_000_000)

    async def main(seconds: float) -> bool:
        async with open_cluster(8) as cluster:
            with trio.move_on_after(seconds) as scope:
                await cluster[0].add_stream(stream(data))
            assert cluster[0].stores.catalog.operations() == []
            result = await cluster[0].add_stream(stream(data))
            assert result.protected
            assert len(held(cluster)) == 5  # two leaves, a node above them, two parities
            await cluster.kill(0)
            assert await read(cluster, 7, result.cid) == data
            return scope.cancelled_caught

    cancelled = [run_deterministic(2, main, seconds) for seconds in (0.02, 0.1, 0.3, 0.35, 0.5)]
    assert any(cancelled)


def test_a_full_disk_at_home_is_an_error_of_this_node() -> None:
    async def main() -> None:
        async with open_cluster(8) as cluster:
            cluster.stores[0].fill()
            with pytest.raises(StorageFull):
                await cluster[0].add_stream(stream(content(1000)))
            assert await cluster[0].pins() == []
            assert cluster[0].stores.catalog.operations() == []
            cluster.stores[0].drain()
            assert (await cluster[0].add_stream(stream(content(1000)))).protected

    run_deterministic(1, main)


# --- Several segments --------------------------------------------------------------------


@pytest.fixture
def small_cuts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Segments of 2 MiB, and files from 3 MiB on with segments of their own; two segments a
    placement group."""
    cuts = Cuts(segment_bytes=2 * MIB, aligned_file_bytes=3 * MIB)
    plan: Callable[..., Iterator[SegmentPlan]] = partial(plan_dag, cuts=cuts)
    monkeypatch.setattr(encoding, "plan_dag", plan)
    monkeypatch.setattr(
        publish, "group_key", lambda root, offset: group_key(root, offset // (4 * MIB) << 36)
    )


@pytest.mark.usefixtures("small_cuts")
def test_segments_share_holders_within_a_group_and_all_are_read() -> None:
    data = content(12_500_000)

    async def main() -> None:
        async with open_cluster(12) as cluster:
            result = await cluster[0].add_stream(stream(data), AddOptions(code=(2, 1)))
            assert result.protected
            status = await cluster[0].status(result.cid)
            sets = [
                frozenset(peer for slot in segment.slots for peer in slot.holders)
                for segment in status.segments
            ]
            assert len(sets) >= 6
            assert {len(one) for one in sets} <= {2, 3}  # the last blocks stand alone
            assert sets[0] == sets[1]
            assert len(set(sets)) > 1
            assert status.state == "healthy"
            await cluster.kill(0)
            reader = next(
                n for n in cluster.alive if all(cluster.peer(n) not in one for one in sets)
            )
            assert await read(cluster, reader, result.cid) == data

    run_deterministic(1, main)


@pytest.mark.usefixtures("small_cuts")
def test_a_dead_holder_is_waited_for_once_not_in_every_segment() -> None:
    data = content(16_000_000)

    async def main() -> None:
        async with open_cluster(5) as cluster:
            await cluster[0].add_stream(stream(content(100)))  # everybody is known
            stalled = cluster.stores[2]
            stalled.fill()
            result = await cluster[0].add_stream(stream(data), AddOptions(code=(2, 1)))
            assert result.protected
            attempts = stalled.calls["put_many"]
            assert 1 <= attempts <= 3

    run_deterministic(1, main)


@pytest.mark.usefixtures("small_cuts")
def test_two_directories_that_share_a_large_file_share_its_slots_and_part(tmp_path: Path) -> None:
    large = content(4 * MIB)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "large").write_bytes(large)
        (tmp_path / name / "own").write_text(name)

    async def main() -> None:
        async with open_cluster(8) as cluster:
            options = AddOptions(code=(2, 1))
            first = await cluster[0].add_path(tmp_path / "one", options)
            slots = len(held(cluster))
            second = await cluster[0].add_path(tmp_path / "two", options)
            blocks = cluster[0].stores.blocks
            assert first.manifest is not None
            assert second.manifest is not None
            lists = [
                {ref.cid for ref in Manifest.decode(blocks.get(one)).segments}
                for one in (first.manifest, second.manifest)
            ]
            assert lists[0] & lists[1]
            assert len(held(cluster)) < 2 * slots
            # The holders of what is shared know the second root, too.
            shared = min(lists[0] & lists[1])
            for number in cluster.alive:
                catalog = cluster[number].stores.catalog
                if number and any(row.state == "held" for row in catalog.held_slots(shared)):
                    assert record_of(cluster, number, second.cid) is not None
            await cluster[0].unpin(first.cid)
            await cluster.kill(0)
            entry = await cluster[6].resolve(second.cid, ["large"])
            async with cluster[6].read(second.cid, entry.cid) as chunks:
                assert b"".join([chunk async for chunk in chunks]) == large
            states = {
                row.state
                for number in cluster.alive
                for row in cluster[number].stores.catalog.held_slots(shared)
            }
            assert states == {"held"}

    run_deterministic(1, main)
