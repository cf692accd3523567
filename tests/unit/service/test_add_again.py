"""Adding again: holders that lost their slots or left, full ones, codes that are not reached."""

from __future__ import annotations

import random
import shutil
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import replace
from functools import partial

import pytest
import trio

from dstore.core.peerid import PeerId
from dstore.core.stripes import Cuts, plan_dag
from dstore.errors import InsufficientPeers
from dstore.limits import HELLO_KEPT_SECONDS, HELLO_SECONDS
from dstore.network.fragments_client import FragmentsClient
from dstore.service import encoding, publish
from dstore.service.encoding import encode_root
from dstore.service.progress import AddOptions, AddResult, Progress
from dstore.testing.cluster import Cluster, open_cluster
from dstore.testing.deterministic import run_deterministic

DATA = random.Random(1).randbytes(3_500_000)  # four blocks
DAY = 86_400


async def stream(data: bytes = DATA) -> AsyncIterator[bytes]:
    for start in range(0, len(data), 100_000):
        yield data[start : start + 100_000]


def holders(cluster: Cluster) -> list[int]:
    """Nodes with a slot under lease, in order."""
    return [
        number
        for number in sorted(cluster.alive)
        if any(row.state == "held" for row in cluster[number].stores.catalog.held_slots())
    ]


def peers_survived(result: AddResult) -> int:
    assert result.guarantee is not None
    return result.guarantee.peers


async def lose_disk(cluster: Cluster, number: int) -> None:
    """The node starts again with its identity and nothing else."""
    await cluster.kill(number)
    cluster.stores.pop(number)
    shutil.rmtree(cluster.directory / f"node-{number}")
    await cluster.start(number)


# --- Whether holders have what they promised ---------------------------------------------


@pytest.mark.parametrize("lost", [1, 3])
def test_what_holders_lost_is_placed_again(lost: int) -> None:
    async def main() -> None:
        async with open_cluster(8) as cluster:
            first = await cluster[0].add_stream(stream())
            for number in holders(cluster)[:lost]:
                await lose_disk(cluster, number)
            assert (await cluster[0].status(first.cid)).state != "healthy"
            again = await cluster[0].add_stream(stream(), AddOptions(require_guarantee=2))
            status = await cluster[0].status(first.cid)
            assert again.protected
            assert status.state == "healthy"
            assert status.guarantee == again.guarantee == first.guarantee

    run_deterministic(1, main)


def test_healthy_holders_are_asked_once_and_brought_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: Counter[str] = Counter()
    have, put = FragmentsClient.have, FragmentsClient.put_slot

    async def counted_have(self: FragmentsClient, peer: PeerId, *words: object) -> object:
        asked["have"] += 1
        return await have(self, peer, *words)  # type: ignore[arg-type]  # passed on as they are

    async def counted_put(self: FragmentsClient, *words: object) -> object:
        asked["put"] += 1
        return await put(self, *words)  # type: ignore[arg-type]  # passed on as they are

    async def main() -> None:
        async with open_cluster(8) as cluster:
            first = await cluster[0].add_stream(stream())
            monkeypatch.setattr(FragmentsClient, "have", counted_have)
            monkeypatch.setattr(FragmentsClient, "put_slot", counted_put)
            assert await cluster[0].add_stream(stream()) == first
            assert asked == {"have": len(holders(cluster))}

    run_deterministic(1, main)


def test_who_left_during_the_encoding_is_not_believed() -> None:
    async def main() -> None:
        async with open_cluster(8) as cluster:
            first = await cluster[0].add_stream(stream())
            left = holders(cluster)[:3]

            def report(news: Progress) -> None:
                if news.stage == "encode" and news.done_bytes == news.total_bytes:
                    for number in left:
                        cluster.hub.kill(cluster.peer(number))

            again = await cluster[0].add_stream(stream(), AddOptions(code=(4, 2)), report)
            status = await cluster[0].status(first.cid)
            assert status.guarantee == again.guarantee
            assert peers_survived(again) == 1  # five nodes for six slots
            assert sum("did not answer" in one for one in again.warnings) == 3

    run_deterministic(1, main)


def test_candidates_are_looked_for_again_after_a_long_encoding(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def main() -> None:
        async with open_cluster(8) as cluster:

            async def slowly(*words: object) -> object:
                encoded = await encode_root(*words)  # type: ignore[arg-type]  # passed on as they are
                await cluster.kill(3)
                await trio.sleep(HELLO_KEPT_SECONDS + 1)
                return encoded

            monkeypatch.setattr(publish, "encode_root", slowly)
            result = await cluster[0].add_stream(stream(), AddOptions(code=(5, 2)))
            assert peers_survived(result) == 2
            assert result.warnings == ()  # nothing was offered to the one that left

    run_deterministic(1, main)


def test_hung_holders_are_waited_for_once_not_in_every_segment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(encoding, "plan_dag", partial(plan_dag, cuts=Cuts(segment_fragments=4)))

    async def main() -> None:
        async with open_cluster(9) as cluster:
            options = AddOptions(code=(2, 2))
            first = await cluster[0].add_stream(stream(), options)
            (row,) = cluster[0].stores.catalog.manifests_of(first.cid)
            assert len(row.segments) == 3
            hung_at = 0.0

            def report(news: Progress) -> None:
                nonlocal hung_at
                if news.stage == "encode" and news.done_bytes == news.total_bytes and not hung_at:
                    hung_at = trio.current_time()
                    for number in holders(cluster)[:2]:
                        cluster.hub.pause(cluster.peer(number))

            again = await cluster[0].add_stream(stream(), options, report)
            assert trio.current_time() - hung_at < 2 * HELLO_SECONDS
            assert again.protected
            assert peers_survived(again) == 2

    run_deterministic(1, main)


# --- Full holders ------------------------------------------------------------------------


@pytest.mark.parametrize("code", [None, (4, 2)])
@pytest.mark.parametrize("spare_bytes", [-1_000_000, 1000])
def test_full_holders_keep_what_they_have(code: tuple[int, int] | None, spare_bytes: int) -> None:
    async def main() -> None:
        async with open_cluster(7) as cluster:
            options = AddOptions(code=code)
            first = await cluster[0].add_stream(stream(), options)
            assert first.code == (4, 2)
            for number in range(1, 7):
                capacity = cluster.nodes[number].blocks.usage().bytes + spare_bytes
                full = replace(cluster.options, capacity_bytes=max(1, capacity))
                await cluster.kill(number)
                await cluster.start(number, replace(full, label=f"machine-{number}"))
            assert await cluster[0].add_stream(stream(), options) == first
            # Nor do they need room to keep it for longer.
            for number in cluster.nodes:
                cluster.nodes[number].clock.ahead = 200 * DAY
            assert await cluster[0].add_stream(stream(), options) == first
            (pin,) = await cluster[0].pins()
            ends = {
                row.expires
                for number in range(1, 7)
                for row in cluster[number].stores.catalog.pin_records_named(first.cid, 9)
            }
            assert ends == {pin.expires}

    run_deterministic(1, main)


# --- What counts as protected ------------------------------------------------------------


def test_slots_of_the_adder_alone_protect_nothing() -> None:
    async def main() -> None:
        async with open_cluster(3) as cluster:
            for number in (1, 2):
                cluster.stores[number].fill()
            result = await cluster[0].add_stream(stream())
            assert holders(cluster) == [0]
            assert not result.protected
            assert "without this node" in result.warnings[-1]
            (pin,) = await cluster[0].pins()
            assert pin.mode == "local"

    run_deterministic(1, main)


def test_where_nobody_has_room_the_answer_says_so() -> None:
    async def main() -> None:
        async with open_cluster(1) as cluster:
            for number in (1, 2):
                full = replace(cluster.options, capacity_bytes=1, label=f"machine-{number}")
                node = await cluster.start(number, full)
                await node.add_stream(stream(b"more than one byte"), AddOptions(local_only=True))
            result = await cluster[0].add_stream(stream())
            assert not result.protected
            assert result.warnings == ("no other storage node has room: stored here only",)
            with pytest.raises(InsufficientPeers, match="has room"):
                await cluster[0].add_stream(stream(), AddOptions(require_guarantee=1))

    run_deterministic(1, main)


@pytest.mark.parametrize("code", [(3, 1), None])
def test_a_code_that_is_not_reached_leaves_the_pin_with_the_one_before(
    code: tuple[int, int] | None,
) -> None:
    """Asked for, or chosen because few others are there for the moment."""

    async def main() -> None:
        async with open_cluster(8) as cluster:
            first = await cluster[0].add_stream(stream(), AddOptions(code=(2, 2)))
            (before,) = await cluster[0].pins()
            for number in range(1, 8):
                cluster.stores[number].fill()
            again = await cluster[0].add_stream(stream(), AddOptions(code=code))
            assert replace(again, warnings=()) == first
            assert "too few holders: as before, with 2+2, the file survives" in again.warnings[-1]
            assert await cluster[0].pins() == [before]
            status = await cluster[0].status(first.cid)
            assert (status.state, status.code) == ("healthy", (2, 2))

    run_deterministic(1, main)


def test_a_weaker_code_that_is_asked_for_and_reached_is_the_pins() -> None:
    async def main() -> None:
        async with open_cluster(8) as cluster:
            await cluster[0].add_stream(stream(), AddOptions(code=(4, 2)))
            weaker = await cluster[0].add_stream(stream(), AddOptions(code=(2, 1)))
            assert weaker.protected
            (pin,) = await cluster[0].pins()
            assert pin.code == weaker.code == (2, 1)

    run_deterministic(1, main)
