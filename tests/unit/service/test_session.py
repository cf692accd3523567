"""Reading one root from its holders: hedging, decoding, holder maps that lie or are stale,
segments that are lost, and budgets of what peers may make a reader do."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import pytest
import trio

from dstore.core import wire
from dstore.core.cid import CID, IDENTITY, RAW
from dstore.core.manifest import Code, Manifest, Segment, Stripe
from dstore.core.peerid import PeerId
from dstore.core.stripes import Cuts, SegmentPlan, plan_dag
from dstore.errors import DstoreError, NetworkError, NodeError, NotFoundError, Unrecoverable
from dstore.limits import (
    HEDGE_SECONDS_MIN,
    HOLDERS_PER_SLOT_MAX,
    MANIFESTS_PER_PEER_MAX,
    MIB,
)
from dstore.network.streams import PeerAddresses
from dstore.service import encoding
from dstore.service.holder import LocalHolder
from dstore.service.node import Node
from dstore.service.progress import AddOptions
from dstore.service.restore import manifest_row
from dstore.testing.cluster import Cluster, open_cluster
from dstore.testing.deterministic import peer_number, run_deterministic
from tests.unit.service.readers import DATA, add, meet_all, outsider, read, stream

# --- Slow and dead holders ---------------------------------------------------------------


def test_a_silent_holder_costs_moments_once() -> None:
    async def main() -> None:
        async with open_cluster(9) as cluster:
            result, slots = await add(cluster)
            await cluster.kill(0)
            reader = outsider(cluster, slots)
            await read(cluster, reader, result.cid, 0, 100)
            cluster[reader]._retriever.forget(result.cid)
            cluster.hub.pause(cluster.peer(slots[1]))
            begin = trio.current_time()
            assert await read(cluster, reader, result.cid) == DATA
            assert trio.current_time() - begin < 12

    run_deterministic(4, main)


def test_a_holder_that_would_have_to_be_dialled_is_not_waited_for() -> None:
    async def main() -> None:
        async with open_cluster(9) as cluster:
            result, slots = await add(cluster)
            await cluster.kill(0)
            silent = cluster.peer(slots[1])
            seconds = []
            for reader in (n for n in cluster.alive if n not in slots.values()):
                begin = trio.current_time()
                assert await read(cluster, reader, result.cid) == DATA
                seconds.append(trio.current_time() - begin)
                for other in cluster.alive:
                    await cluster[other].network.disconnect(silent)
                cluster.hub.pause(silent)
            well, sick = seconds
            assert cluster[reader].counters.decoded_blocks > 0
            assert sick - well < HEDGE_SECONDS_MIN

    run_deterministic(4, main)


def test_a_holder_that_is_dialled_beside_decoding_is_read_from_then() -> None:
    async def main() -> None:
        async with open_cluster(9) as cluster:
            result, slots = await add(cluster)
            await cluster.kill(0)
            reader = outsider(cluster, slots)
            holder = cluster.peer(slots[1])
            await cluster[reader].network.disconnect(holder)
            assert await read(cluster, reader, result.cid) == DATA
            assert cluster[reader].network.reached_at(holder) is not None

    run_deterministic(4, main)


def test_with_exactly_k_fragments_left_everything_is_decoded() -> None:
    async def main() -> None:
        async with open_cluster(9) as cluster:
            result, slots = await add(cluster)
            for number in (0, slots[0], slots[3]):
                await cluster.kill(number)
            reader = outsider(cluster, slots)
            assert await read(cluster, reader, result.cid) == DATA
            assert cluster[reader].counters.decoded_blocks > 0
            # One more, and it is said clearly, in bounded time.
            await cluster.kill(slots[1])
            cluster[reader]._retriever.forget(result.cid)
            with trio.fail_after(60), pytest.raises(DstoreError):
                await read(cluster, reader, result.cid)

    run_deterministic(4, main)


def test_peers_that_cool_off_are_still_asked_at_the_end() -> None:
    """Every holder failed a moment ago; they are the only ones there are."""

    async def main() -> None:
        async with open_cluster(9) as cluster:
            result, slots = await add(cluster)
            await cluster.kill(0)
            reader = outsider(cluster, slots)
            session = cluster[reader]._retriever.session(result.cid)
            for number in slots.values():
                for _ in range(6):
                    session._fetcher.stalled(cluster.peer(number))
            assert await read(cluster, reader, result.cid) == DATA

    run_deterministic(4, main)


# --- Holder maps -------------------------------------------------------------------------


def lying_have(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, lie: Callable[[CID], wire.Holding]
) -> None:
    """Holders answer Have with this in place of the truth."""

    async def have(self: LocalHolder, peer: PeerId, segments: Sequence[CID]) -> wire.Haves:
        return wire.Haves(tuple(lie(segment) for segment in segments))

    monkeypatch.setattr(LocalHolder, "have", have)


def test_a_fresh_map_is_asked_of_everybody_when_the_first_one_fails(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each holder knows of itself alone: two of them cannot tell enough."""

    async def main() -> None:
        async with open_cluster(9) as cluster:
            result, slots = await add(cluster)
            await cluster.kill(0)
            for number in cluster.alive:
                with cluster[number].stores.catalog._db.transaction() as connection:
                    connection.execute("DELETE FROM placements")
            reader = outsider(cluster, slots)
            assert await read(cluster, reader, result.cid) == DATA

    run_deterministic(6, main)


def test_invented_holders_do_not_stop_a_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Thousands of peers that do not exist are named for every slot, the true ones after."""
    have = LocalHolder.have

    async def inflated(self: LocalHolder, peer: PeerId, segments: Sequence[CID]) -> wire.Haves:
        answer = await have(self, peer, segments)
        made = []
        for holding in answer.holdings:
            false = tuple(
                wire.HolderEntry(peer_number(1000 + 10 * n + slot), slot, 0, ("/memory/9",))
                for slot in range(6)
                for n in range(100)
            )
            made.append(wire.Holding(holding.segment, holding.slots, (*false, *holding.holders)))
        return wire.Haves(tuple(made))

    async def main() -> None:
        async with open_cluster(9) as cluster:
            result, slots = await add(cluster)
            liar = cluster[slots[0]]
            reader = outsider(cluster, slots)
            monkeypatch.setattr(
                LocalHolder,
                "have",
                lambda self, peer, segments: (
                    inflated(self, peer, segments)
                    if self._network is liar.network
                    else have(self, peer, segments)
                ),
            )
            session = cluster[reader]._retriever.session(result.cid)
            assert await read(cluster, reader, result.cid) == DATA
            for _, holders in session.segments._loaded.values():
                assert all(len(peers) <= HOLDERS_PER_SLOT_MAX + 4 for peers in holders.values())

    run_deterministic(4, main)


# --- Manifests ---------------------------------------------------------------------------


def invented(root: CID, number: int) -> tuple[Manifest, Segment]:
    wrong = [(CID.of(RAW, b"%d %d" % (number, n)), 3) for n in range(2)]
    segment = Segment(2, 1, (Stripe(tuple(wrong), (CID.of(RAW, b"parity"),)),))
    return Manifest.of(root, Code(2, 1), [segment.ref]), segment


def test_invented_manifests_do_not_crowd_out_the_true_one() -> None:
    """A peer that is asked first names more manifests than would be looked at in all."""

    async def main() -> None:
        async with open_cluster(9) as cluster:
            result, slots = await add(cluster)
            await cluster.kill(0)
            reader = outsider(cluster, slots)
            liar = cluster[slots[0]].stores
            for number in range(100):
                manifest, segment = invented(result.cid, number)
                liar.blocks.put_many([(segment.cid, segment.block)])
                liar.blocks.put_many([(manifest.cid, manifest.block)])
                liar.catalog.put_manifest(manifest_row(manifest))
            session = cluster[reader]._retriever.session(result.cid)
            assert await read(cluster, reader, result.cid) == DATA
            assert len(session.sources.manifests) <= 1 + MANIFESTS_PER_PEER_MAX
            # With everybody heard, the one that most name comes first.
            everything = await session._discovery.everything(session.sources)
            assert everything[0].cid == result.manifest

    run_deterministic(4, main)


# --- Many segments -----------------------------------------------------------------------


@pytest.fixture
def small_cuts(monkeypatch: pytest.MonkeyPatch) -> None:
    cuts = Cuts(segment_bytes=2 * MIB, aligned_file_bytes=3 * MIB)
    plan: Callable[..., Iterator[SegmentPlan]] = partial(plan_dag, cuts=cuts)
    monkeypatch.setattr(encoding, "plan_dag", plan)


@pytest.mark.usefixtures("small_cuts")
def test_a_range_loads_only_the_segment_it_lies_in() -> None:
    async def main() -> None:
        async with open_cluster(6) as cluster:
            result, slots = await add(cluster, (2, 1))
            assert result.manifest is not None
            await cluster.kill(0)
            reader = outsider(cluster, slots)
            session = cluster[reader]._retriever.session(result.cid)
            offset = 4_800_000
            assert await read(cluster, reader, result.cid, offset, 50) == DATA[offset : offset + 50]
            # The one in the middle; the root's node was had from a peer without any.
            assert len(session.segments) == 1
            (manifest,) = await session.manifests()
            assert len(manifest.segments) >= 4

    run_deterministic(4, main)


@pytest.mark.usefixtures("small_cuts")
def test_a_lost_segment_does_not_take_the_others_with_it() -> None:
    async def main() -> None:
        async with open_cluster(6) as cluster:
            result, slots = await add(cluster, (2, 1))
            await cluster.kill(0)
            reader = outsider(cluster, slots)
            (manifest,) = await cluster[reader]._retriever.session(result.cid).manifests()
            segment, _ = (
                await cluster[reader]
                ._retriever.session(result.cid)
                .segments.load(manifest, manifest.segments[1])
            )
            for number in cluster.alive:
                cluster[number].stores.blocks.delete_many([segment.cid])
            # Without the list of its stripes, its blocks are still found where they are.
            cluster[reader]._retriever.forget(result.cid)
            assert await read(cluster, reader, result.cid) == DATA
            for number in cluster.alive:
                data = [cid for stripe in segment.stripes for cid, _ in stripe.data]
                cluster[number].stores.blocks.delete_many(data)
            cluster[reader]._retriever.forget(result.cid)
            assert await read(cluster, reader, result.cid, 0, 200_000) == DATA[:200_000]
            assert await read(cluster, reader, result.cid, 5_500_000) == DATA[5_500_000:]
            with trio.fail_after(100), pytest.raises((NetworkError, Unrecoverable)):
                await read(cluster, reader, result.cid)

    run_deterministic(4, main)


# --- What must not end a node ------------------------------------------------------------


def test_a_root_too_long_for_the_dht_is_not_found_and_harms_nobody() -> None:
    """An identity CID of 128 bytes has a multihash longer than any DHT key."""
    long = CID.v1(RAW, bytes([IDENTITY, 0x80, 1]) + bytes(128))

    async def main() -> None:
        async with open_cluster(3) as cluster:
            with pytest.raises(NotFoundError):
                await cluster[1].status(long)
            assert await read(cluster, 1, long) == bytes(128)
            result = await cluster[1].add_stream(stream(b"fine"))
            assert await read(cluster, 2, result.cid) == b"fine"

    run_deterministic(1, main)


def test_a_catalog_that_fails_ends_the_search_and_not_the_node(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def main() -> None:
        async with open_cluster(4) as cluster:
            result = await cluster[0].add_stream(stream(b"x" * 1000))
            catalog = cluster[3].stores.catalog

            def fail(root: CID, count: int) -> None:
                raise NodeError("the disk is gone")

            with monkeypatch.context() as patch:
                patch.setattr(catalog, "manifests_named", fail)
                with trio.fail_after(60), pytest.raises(DstoreError):
                    await read(cluster, 3, CID.of(RAW, b"nobody has this"))
            cluster[3]._retriever.forget(result.cid)
            await trio.sleep(10)
            assert await read(cluster, 3, result.cid) == b"x" * 1000

    run_deterministic(1, main)


# --- Many peers that know nothing --------------------------------------------------------


def test_those_who_know_the_root_are_asked_before_the_many_who_do_not() -> None:
    async def main() -> None:
        async with open_cluster(30) as cluster:
            result, slots = await add(cluster, (2, 1))
            await cluster.kill(0)
            reader = outsider(cluster, slots)
            await meet_all(cluster, reader)
            assert len(cluster[reader].network.connected()) == 28
            assert await read(cluster, reader, result.cid) == DATA

    run_deterministic(4, main)


def test_the_block_of_a_small_root_is_asked_of_its_likely_holder(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One request among eleven connected peers, and no search."""
    asked: list[PeerId] = []
    honest = LocalHolder.blocks

    def noted(holder: LocalHolder, peer: PeerId, cids: Sequence[CID]) -> object:
        asked.append(holder._network.peer_id)
        return honest(holder, peer, cids)

    async def main() -> None:
        async with open_cluster(12) as cluster:
            roots = []
            for number in range(8):
                data = b"small %d" % number
                result = await cluster[0].add_stream(stream(data), AddOptions(code=(3, 2)))
                roots.append((result.cid, data))
            for number in cluster.alive[2:]:
                await cluster[1].connect(PeerAddresses(cluster.peer(number)))
            await cluster.kill(0)
            monkeypatch.setattr(LocalHolder, "blocks", noted)
            for root, data in roots:
                assert await read(cluster, 1, root) == data
            assert len(asked) <= len(roots)

    run_deterministic(4, main)


def test_two_who_want_a_small_root_at_once_cost_one_request(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One of them may leave, whichever it is, and the other has it all the same."""
    asked: list[PeerId] = []
    first = trio.Event()
    honest = LocalHolder.blocks

    def noted(holder: LocalHolder, peer: PeerId, cids: Sequence[CID]) -> object:
        asked.append(holder._network.peer_id)
        first.set()
        return honest(holder, peer, cids)

    async def both(node: Node, root: CID, leaver: int | None) -> dict[int, bytes]:
        had: dict[int, bytes] = {}
        scopes = [trio.CancelScope(), trio.CancelScope()]

        async def want(number: int) -> None:
            with scopes[number]:
                had[number] = await node.block(root)

        async with trio.open_nursery() as nursery:
            for number in range(2):
                nursery.start_soon(want, number)
            await first.wait()
            if leaver is not None:
                scopes[leaver].cancel()
        return had

    async def main() -> None:
        nonlocal first
        async with open_cluster(7) as cluster:
            monkeypatch.setattr(LocalHolder, "blocks", noted)
            for leaver in (None, 0, 1):
                data = b"wanted twice, %r" % leaver
                added = await cluster[0].add_stream(stream(data), AddOptions(code=(3, 2)))
                status = await cluster[0].status(added.cid)
                slots = status.segments[0].slots
                held = {one.slot: cluster.number_of(one.holders[0]) for one in slots if one.holders}
                reader = outsider(cluster, held)
                await meet_all(cluster, reader)
                await cluster[reader].network.disconnect(cluster.peer(0))
                asked.clear()
                first = trio.Event()
                had = await both(cluster[reader], added.cid, leaver)
                assert had == dict.fromkeys({0, 1} - {leaver}, data)
                assert len(asked) == 1

    run_deterministic(4, main)
