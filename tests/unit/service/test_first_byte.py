"""What the first bytes of a root wait for."""

from __future__ import annotations

import pytest
import trio

from dstore.core import wire
from dstore.core.cid import CID
from dstore.core.peerid import PeerId
from dstore.limits import DHT_BESIDE_SECONDS, MANIFESTS_ASKED_FIRST
from dstore.service.holder import LocalHolder
from dstore.testing.cluster import open_cluster
from dstore.testing.deterministic import run_deterministic
from tests.unit.service.readers import DATA, add, meet_all, outsider, read


def test_reading_begins_with_what_two_neighbours_say(monkeypatch: pytest.MonkeyPatch) -> None:
    """No search and no other neighbour gets into the way of the first bytes; both come after."""
    asked: list[PeerId] = []
    honest = LocalHolder.find_manifests

    async def noted(holder: LocalHolder, peer: PeerId, root: CID) -> wire.Manifests:
        asked.append(holder._network.peer_id)
        return await honest(holder, peer, root)

    async def main() -> None:
        async with open_cluster(9) as cluster:
            result, slots = await add(cluster, (3, 2))
            await cluster.kill(0)
            reader = outsider(cluster, slots)
            await meet_all(cluster, reader)
            monkeypatch.setattr(LocalHolder, "find_manifests", noted)
            session = cluster[reader]._retriever.session(result.cid)
            assert await read(cluster, reader, result.cid, 0, 100) == DATA[:100]
            assert len(asked) == MANIFESTS_ASKED_FIRST
            assert session.sources.discovering
            await session._discovery.everything(session.sources)
            assert set(asked) == set(cluster[reader].network.connected())

    run_deterministic(4, main)


def test_where_those_two_are_of_no_use_the_others_are_asked_at_once() -> None:
    async def main() -> None:
        async with open_cluster(9) as cluster:
            result, slots = await add(cluster, (3, 2))
            await cluster.kill(0)
            reader = outsider(cluster, slots)
            (manifest,) = await cluster[reader]._retriever.session(result.cid).manifests()
            cluster[reader]._retriever.forget(result.cid)
            await meet_all(cluster, reader)
            session = cluster[reader]._retriever.session(result.cid)
            for first in session._discovery.likely_first(result.cid)[:MANIFESTS_ASKED_FIRST]:
                store = cluster[cluster.number_of(first)].stores.blocks
                store.delete_many([manifest.segments[0].cid])
            begin = trio.current_time()
            assert await read(cluster, reader, result.cid, 0, 100) == DATA[:100]
            assert trio.current_time() - begin < DHT_BESIDE_SECONDS

    run_deterministic(4, main)


def test_the_only_segment_comes_beside_the_root() -> None:
    async def main() -> None:
        async with open_cluster(9) as cluster:
            result, slots = await add(cluster)
            await cluster.kill(0)
            session = cluster[outsider(cluster, slots)]._retriever.session(result.cid)
            await session.block(result.cid)
            await session._discovery.everything(session.sources)
            assert len(session.segments) == 1

    run_deterministic(4, main)
