"""Adds and gets on a cluster of real node objects on the network in memory."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from dstore.core.cid import CID
from dstore.errors import InsufficientPeers, NotFoundError, Unreachable
from dstore.network.fragments_client import FragmentsClient
from dstore.network.kad_requests import RequestStreams
from dstore.network.kad_search import Search
from dstore.service.node import Node
from dstore.service.progress import AddOptions, Progress
from dstore.testing.cluster import Cluster, open_cluster
from dstore.testing.deterministic import run_deterministic


def content(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


async def stream(data: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(data), 100_000):
        yield data[start : start + 100_000]


async def read(node: Node, root: CID, offset: int = 0, length: int | None = None) -> bytes:
    async with node.read(root, None, offset, length) as chunks:
        return b"".join([chunk async for chunk in chunks])


async def holders(cluster: Cluster, node: Node, root: CID) -> dict[int, list[int]]:
    status = await node.status(root)
    return {
        slot.slot: [cluster.number_of(peer) for peer in slot.holders]
        for segment in status.segments
        for slot in segment.slots
    }


def test_an_added_file_is_protected_and_read_back_anywhere() -> None:
    data = content(5_000_000)

    async def main() -> None:
        async with open_cluster(8) as cluster:
            seen: list[Progress] = []
            result = await cluster[0].add_stream(stream(data), AddOptions(), seen.append)
            assert result.protected
            assert result.code == (4, 2)
            assert result.guarantee is not None
            assert (result.guarantee.peers, result.guarantee.domains) == (2, 2)
            assert result.warnings == ()
            assert {progress.stage for progress in seen} == {
                "import",
                "encode",
                "upload",
                "announce",
            }
            for number in (0, 3, 7):
                assert await read(cluster[number], result.cid) == data
            assert await read(cluster[5], result.cid, 1_500_000, 100) == data[1_500_000:1_500_100]
            placed = await holders(cluster, cluster[0], result.cid)
            assert len({peer for peers in placed.values() for peer in peers}) == 6
            assert all(0 not in peers for peers in placed.values())

    run_deterministic(1, main)


@pytest.mark.parametrize("seed", range(4))
def test_the_file_survives_the_adder_and_m_holders(seed: int) -> None:
    data = content(3_000_000, seed)

    async def main() -> None:
        async with open_cluster(8, seed) as cluster:
            result = await cluster[0].add_stream(stream(data))
            placed = await holders(cluster, cluster[0], result.cid)
            victims = random.Random(seed).sample(sorted({p[0] for p in placed.values()}), 2)
            for victim in (0, *victims):
                await cluster.kill(victim)
            reader = next(n for n in cluster.alive if all(n not in p for p in placed.values()))
            assert await read(cluster[reader], result.cid) == data
            status = await cluster[reader].status(result.cid)
            assert status.guarantee is not None
            assert status.guarantee.peers == 0
            assert status.state == "at risk"

    run_deterministic(seed, main)


def test_three_machines_work_and_say_what_they_can_promise() -> None:
    data = content(2_500_000)

    async def main() -> None:
        async with open_cluster(3) as cluster:
            result = await cluster[0].add_stream(stream(data))
            assert result.protected
            assert result.code == (2, 1)
            assert result.guarantee is not None
            assert result.guarantee.peers == 1
            await cluster.kill(0)
            assert await read(cluster[1], result.cid) == data

    run_deterministic(1, main)


def test_a_node_alone_stores_locally_and_says_so() -> None:
    async def main() -> None:
        async with open_cluster(1) as cluster:
            result = await cluster[0].add_stream(stream(b"alone"))
            assert not result.protected
            assert result.manifest is None
            assert any("stored here only" in warning for warning in result.warnings)
            assert await read(cluster[0], result.cid) == b"alone"
            with pytest.raises(InsufficientPeers):
                await cluster[0].add_stream(stream(b"alone"), AddOptions(require_guarantee=1))

    run_deterministic(1, main)


def test_adding_again_uploads_nothing_and_gives_the_same() -> None:
    data = content(1_200_000)

    async def main() -> None:
        async with open_cluster(8) as cluster:
            first = await cluster[0].add_stream(stream(data))
            opened = cluster.hub.streams_opened
            before = [cluster.nodes[n].blocks.calls["put_many"] for n in range(1, 8)]
            again = await cluster[0].add_stream(stream(data))
            assert (again.cid, again.manifest, again.protected) == (
                first.cid,
                first.manifest,
                True,
            )
            assert [cluster.nodes[n].blocks.calls["put_many"] for n in range(1, 8)] == before
            assert cluster.hub.streams_opened - opened < 60

    run_deterministic(1, main)


def test_parity_does_not_stay_with_the_adder() -> None:
    data = content(4_000_000)

    async def main() -> None:
        async with open_cluster(8) as cluster:
            await cluster[0].add_stream(stream(data))
            # The data, a root node, the manifest and the segment.
            assert cluster.nodes[0].blocks.usage().bytes < len(data) * 1.01

    run_deterministic(1, main)


def test_an_unknown_root_is_not_found_and_does_not_hang() -> None:
    async def main() -> None:
        async with open_cluster(4) as cluster:
            with pytest.raises(NotFoundError):
                await cluster[1].resolve(CID.of(0x55, b"nobody has this"))

    run_deterministic(1, main)


def test_a_local_only_file_is_readable_elsewhere_while_its_node_lives() -> None:
    async def main() -> None:
        async with open_cluster(4) as cluster:
            result = await cluster[0].add_stream(stream(b"local"), AddOptions(local_only=True))
            assert result.manifest is None
            assert await read(cluster[2], result.cid) == b"local"

    run_deterministic(1, main)


def test_unpinning_tells_the_holders() -> None:
    data = content(100_000)

    async def main() -> None:
        async with open_cluster(8) as cluster:
            result = await cluster[0].add_stream(stream(data))
            assert [pin.cid for pin in await cluster[0].pins()] == [result.cid]
            # A file of one block: the data block and two parity blocks, three holders.
            assert await cluster[0].unpin(result.cid) == 3
            assert await cluster[0].pins() == []
            states = {
                row.state
                for number in range(1, 8)
                for row in cluster[number].stores.catalog.held_slots()
            }
            assert states == {"trash"}
            with pytest.raises(NotFoundError):
                await cluster[0].unpin(result.cid)

    run_deterministic(1, main)


def test_empty_files_are_read_although_nobody_stores_the_empty_block(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    (tmp_path / "full").write_bytes(content(2000))

    async def main() -> None:
        async with open_cluster(8) as cluster:
            result = await cluster[0].add_path(tmp_path)
            await cluster.kill(0)
            entry = await cluster[4].resolve(result.cid, ["empty"])
            assert entry.size == 0
            async with cluster[4].read(result.cid, entry.cid) as chunks:
                assert [chunk async for chunk in chunks] in ([], [b""])
            names = [entry.name async for entry in cluster[4].entries(result.cid)]
            assert sorted(names) == ["empty", "full"]

    run_deterministic(1, main)


def test_listing_peers_asks_them_what_they_offer_unless_told_not_to() -> None:
    async def main() -> None:
        async with open_cluster(4) as cluster:
            for _ in range(2):
                peers = await cluster[1].peers(ask=False)
                assert [(peer.connected, peer.role) for peer in peers] == [(True, None)] * 3
            assert {peer.role for peer in await cluster[1].peers()} == {"storage"}
            assert {peer.role for peer in await cluster[1].peers(ask=False)} == {"storage"}

    run_deterministic(1, main)


def test_any_node_can_tell_the_failure_domains() -> None:
    async def main() -> None:
        async with open_cluster(8) as cluster:
            result = await cluster[0].add_stream(stream(content(10_000)))
            status = await cluster[5].status(result.cid)
            assert status.guarantee is not None
            assert (status.guarantee.peers, status.guarantee.domains) == (2, 2)
            peers = await cluster[5].peers()
            assert {peer.role for peer in peers} == {"storage"}
            assert len({peer.domains for peer in peers}) == 7

    run_deterministic(1, main)


def test_the_adder_takes_a_slot_where_no_other_domain_is_left() -> None:
    """Six others, three of them full: 2+2 has a home in three domains and here."""

    async def main() -> None:
        async with open_cluster(7) as cluster:
            for number in (4, 5, 6):
                cluster.stores[number].fill()
            result = await cluster[0].add_stream(
                stream(content(3_000_000)), AddOptions(code=(2, 2))
            )
            assert result.protected
            assert result.guarantee is not None
            assert result.guarantee.peers == 2
            placed = await holders(cluster, cluster[0], result.cid)
            assert sorted(peer for peers in placed.values() for peer in peers) == [0, 1, 2, 3]

    run_deterministic(1, main)


def test_silence_of_all_peers_is_no_evidence_of_absence() -> None:
    async def main() -> None:
        async with open_cluster(4) as cluster:
            for number in (0, 1, 2):
                cluster.hub.pause(cluster.peer(number))
            with pytest.raises(Unreachable, match="answered"):
                await cluster[3].resolve(CID.of(0x55, b"who knows"))

    run_deterministic(1, main)


def test_roots_added_one_after_the_other_ask_nothing_twice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Six nodes, files of a block: the peers are told of each root, and asked nothing anew."""
    done: Counter[str] = Counter()

    def count(owner: type, name: str) -> None:
        whole = getattr(owner, name)

        def counted(*words: object, **named: object) -> object:
            done[name] += 1
            return whole(*words, **named)

        monkeypatch.setattr(owner, name, counted)

    async def main() -> None:
        async with open_cluster(6) as cluster:
            for number in range(12):
                if number == 2:
                    for owner, name in (
                        (FragmentsClient, "hello"),
                        (Search, "run"),
                        (RequestStreams, "exchange_all"),
                    ):
                        count(owner, name)
                added = cluster[0].add_stream(
                    stream(content(4096, number)), AddOptions(code=(3, 2))
                )
                assert (await added).protected
            # The adder and three holders, each to five others, root and segment together;
            # twice where the adder is a holder too.
            assert done["exchange_all"] <= 10 * 5 * 5
            assert done["run"] <= 6  # the first of each node
            assert done["hello"] == 0

    run_deterministic(1, main)
