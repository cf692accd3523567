"""Pins listed and let go of: at home, at the holders, and after adds that were cut short."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator

import pytest
import trio

from dstore.core.cid import CID, RAW
from dstore.errors import NotFoundError
from dstore.limits import ORPHAN_SECONDS
from dstore.service.progress import AddOptions
from dstore.testing.cluster import Cluster, open_cluster
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
