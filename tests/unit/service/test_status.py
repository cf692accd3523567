"""What status says of a root: every state, empty slots, absent holders, other people's roots."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from dstore.core.cid import CID, RAW
from dstore.errors import NotFoundError
from dstore.limits import KEEPER_SECONDS
from dstore.service.progress import AddOptions, RootStatus
from dstore.testing.cluster import Cluster, open_cluster
from dstore.testing.deterministic import run_deterministic


async def stream(size: int) -> AsyncIterator[bytes]:
    yield random.Random(size).randbytes(size)


async def add(cluster: Cluster, size: int = 5_000_000) -> tuple[CID, dict[int, int]]:
    result = await cluster[0].add_stream(stream(size), AddOptions(code=(4, 2)))
    status = await cluster[0].status(result.cid)
    assert status.state == "healthy"
    placed = {
        slot.slot: cluster.number_of(slot.holders[0])
        for slot in status.segments[0].slots
        if slot.holders
    }
    return result.cid, placed


def slot_states(status: RootStatus) -> list[str]:
    (segment,) = status.segments
    return [slot.state for slot in segment.slots]


async def extend_leases(cluster: Cluster) -> None:
    """As holders do every few minutes."""
    for node in cluster.nodes.values():
        for worker in node.node.workers:
            if worker.name == "keeper":
                await worker.step()


def test_from_healthy_to_unreachable() -> None:
    async def main() -> None:
        async with open_cluster(9) as cluster:
            root, placed = await add(cluster)
            seen = []
            for slot in range(4):
                status = await cluster[0].status(root)
                assert status.guarantee is not None
                seen.append((status.state, status.guarantee.peers, slot_states(status)[:slot]))
                await cluster.kill(placed[slot])
            assert seen == [
                ("healthy", 2, []),
                # The owner has their leases: they may come back.
                ("degraded", 1, ["away"]),
                ("degraded", 0, ["away", "away"]),
                ("unreachable", 0, ["away", "away", "away"]),
            ]
            # Another node has no promise of the dead ones.
            outsider = next(n for n in cluster.alive if n and n not in placed.values())
            status = await cluster[outsider].status(root)
            assert slot_states(status)[:4] == ["missing"] * 4

    run_deterministic(1, main)


def test_what_a_holder_let_go_is_missing_whatever_it_promised() -> None:
    """A lease says nothing against a holder's own word."""

    async def main() -> None:
        async with open_cluster(9) as cluster:
            root, placed = await add(cluster)
            holder = cluster[placed[2]].stores
            (row,) = holder.catalog.held_slots()
            holder.catalog.delete_slot(row.segment, row.slot)
            status = await cluster[0].status(root)
            assert slot_states(status)[2] == "missing"
            assert status.state == "at risk"
            assert status.guarantee is not None
            assert status.guarantee.peers == 1

    run_deterministic(1, main)


def test_at_risk_is_what_has_lost_half_of_its_parity_for_good() -> None:
    async def main() -> None:
        async with open_cluster(9) as cluster:
            root, placed = await add(cluster)
            await cluster.kill(placed[1])
            outsider = next(n for n in cluster.alive if n and n not in placed.values())
            status = await cluster[outsider].status(root)
            assert status.state == "at risk"
            assert slot_states(status).count("missing") == 1

    run_deterministic(1, main)


def test_slots_without_a_fragment_are_empty() -> None:
    async def main() -> None:
        async with open_cluster(9) as cluster:
            root, placed = await add(cluster, 1000)
            status = await cluster[0].status(root)
            assert slot_states(status) == ["live", "empty", "empty", "empty", "live", "live"]
            assert set(placed) == {0, 4, 5}
            assert status.guarantee is not None
            assert status.guarantee.peers == 2
            assert status.dag_bytes == 1000

    run_deterministic(1, main)


def test_a_silent_holder_is_waited_for_once() -> None:
    async def main() -> None:
        async with open_cluster(9) as cluster:
            root, placed = await add(cluster)
            cluster.hub.pause(cluster.peer(placed[2]))
            begin = trio.current_time()
            status = await cluster[0].status(root)
            assert trio.current_time() - begin < 20
            assert slot_states(status)[2] == "away"

    run_deterministic(1, main)


@pytest.mark.parametrize("by", ["status", "adding again", "background"])
def test_longer_leases_are_noted(by: str) -> None:
    """Holders extend them without telling; a month later, silence is still no loss."""

    async def main() -> None:
        async with open_cluster(7) as cluster:
            root, placed = await add(cluster)
            for worker in cluster[0].workers:
                worker.paused = by != "background"
            for day in (16, 32):
                for one in cluster.nodes.values():
                    one.clock.ahead = day * 86_400
                if by == "background":
                    await trio.sleep(2 * KEEPER_SECONDS)
                else:
                    await extend_leases(cluster)
            if by == "status":
                assert (await cluster[0].status(root)).state == "healthy"
            elif by == "adding again":
                await cluster[0].add_stream(stream(5_000_000), AddOptions(code=(4, 2)))
            cluster.hub.pause(cluster.peer(placed[2]))
            assert slot_states(await cluster[0].status(root))[2] == "away"

    run_deterministic(1, main)


def test_a_note_ends_with_the_pin_record_whatever_the_holder_says() -> None:
    async def main() -> None:
        async with open_cluster(7) as cluster:
            options = AddOptions(code=(4, 2), pin_seconds=20 * 86_400)
            result = await cluster[0].add_stream(stream(5_000_000), options)
            (pin,) = await cluster[0].pins()
            segment = (await cluster[0].status(result.cid)).segments[0].segment
            for number in range(1, 7):
                catalog = cluster[number].stores.catalog
                for row in catalog.held_slots():
                    assert row.lease is not None
                    far = row.expires + 10**9
                    catalog.hold_slot(segment, row.slot, row.lease, far, row.updated, row.owner)
            await cluster[0].status(result.cid)
            notes = cluster[0].stores.catalog.placements(segment)
            assert {one.expires for one in notes} == {pin.expires}

    run_deterministic(1, main)


@pytest.mark.parametrize("kind", ["file", "directory"])
def test_what_is_counted_is_the_same_before_and_after_protection(kind: str, tmp_path: Path) -> None:
    path = tmp_path / kind
    if kind == "directory":
        (path / "below").mkdir(parents=True)
        (path / "small").write_bytes(b"12345")
        (path / "below" / "large").write_bytes(random.Random(1).randbytes(3_000_000))
    else:
        path.write_bytes(random.Random(1).randbytes(3_000_000))

    async def main() -> None:
        async with open_cluster(7) as cluster:
            stores = cluster[0].stores
            before = stores.blocks.usage().bytes
            added = await cluster[0].add_path(path, AddOptions(local_only=True))
            status = await cluster[0].status(added.cid)
            stored = stores.blocks.usage().bytes - before
            assert (status.manifest, status.dag_bytes) == (None, stored)
            assert stored > added.size
            await cluster[0].add_path(path, AddOptions(code=(4, 2)))
            status = await cluster[0].status(added.cid)
            assert status.manifest is not None
            assert status.dag_bytes == stored

    run_deterministic(1, main)


def test_local_files_and_unknown_roots() -> None:
    async def main() -> None:
        async with open_cluster(4) as cluster:
            result = await cluster[0].add_stream(stream(3_000_000), AddOptions(local_only=True))
            status = await cluster[0].status(result.cid)
            assert (status.state, status.manifest) == ("local", None)
            with pytest.raises(NotFoundError):
                await cluster[1].status(CID.of(RAW, b"nobody has this"))

    run_deterministic(1, main)
