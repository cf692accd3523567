"""Manifests that somebody invented for the root of another (threat 18): holders go on naming the
true one, and readers lose moments."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
import trio

from dstore.core import wire
from dstore.core.cid import CID, DAG_CBOR, RAW
from dstore.core.manifest import Code, Manifest, Segment, SegmentRef, Stripe
from dstore.core.peerid import PeerId
from dstore.core.pinrecord import PinRecord
from dstore.errors import Refused
from dstore.limits import MANIFESTS_PER_PEER_MAX, MANIFESTS_TRIED_MAX, RESERVATION_SECONDS
from dstore.network.fragments_server import Batch
from dstore.service.holder import LocalHolder
from dstore.service.restore import manifest_row
from dstore.service.sources import RootSources
from dstore.testing.cluster import Cluster, node_key, open_cluster
from dstore.testing.deterministic import peer_number, run_deterministic
from dstore.testing.single_holder import START, SingleHolder, open_single_holder, protect
from tests.unit.service.readers import DATA, add, meet_all, outsider, read

ROOT = CID.of(RAW, b"root")
STRANGER = node_key(77, "stranger")


def invented(root: CID, number: int, missing: int = 0) -> tuple[Manifest, Segment, bytes]:
    """A manifest of one tiny block, after segments that nobody has."""
    data = b"invented %d" % number
    segment = Segment(1, 0, (Stripe(((CID.of(RAW, data), len(data)),), ()),))
    lost = [SegmentRef(CID.of(DAG_CBOR, b"none %d" % n), 1, 1) for n in range(missing)]
    return Manifest.of(root, Code(1, 0), [*lost, segment.ref]), segment, data


def plant(cluster: Cluster, number: int, manifest: Manifest) -> None:
    """Make a node name the manifest to whoever asks."""
    stores = cluster[number].stores
    stores.blocks.put_many([(manifest.cid, manifest.block)])
    stores.catalog.put_manifest(manifest_row(manifest))


async def offer(holder: LocalHolder, root: CID, number: int, *, finish: bool) -> None:
    """A stranger's slot of the root, in his own name; its bytes too where `finish`."""
    manifest, segment, data = invented(root, number)
    documents = {manifest.cid: manifest.block, segment.cid: segment.block}
    begin = int(START)
    record = PinRecord(root, (manifest.cid,), STRANGER.public, number + 1, begin, begin + 86_400)
    envelope = record.sign(STRANGER).envelope

    async def load(cids: Sequence[CID]) -> list[bytes]:
        return [documents[cid] for cid in cids]

    slot = wire.PutSlot(envelope, manifest.cid, segment.cid, 0)
    reception = await holder.offer_slot(STRANGER.peer_id, slot, load)
    if finish:
        await reception.store([(0, data)])
        await reception.finish()


async def names(here: SingleHolder, root: CID) -> tuple[CID, ...]:
    return (await here.holder.find_manifests(peer_number(1), root)).manifests


# --- What a holder names -----------------------------------------------------------------


async def test_an_offer_without_its_slot_names_nothing(tmp_path: Path) -> None:
    root = protect()
    async with open_single_holder(tmp_path) as here:
        await here.put(root, 0)
        for number in range(5):
            await offer(here.holder, root.root, number, finish=False)
        assert await names(here, root.root) == (root.manifest.cid,)
        unfinished = await here.accept(protect(2), 0)
        with pytest.raises(Refused):
            await unfinished.finish()
        here.clock.time += RESERVATION_SECONDS + 1
        here.stores.catalog.expire_reservations(here.clock.now())
        assert await names(here, protect(2).root) == ()


async def test_the_true_manifest_comes_before_those_of_tiny_slots_and_of_later_ones(
    tmp_path: Path,
) -> None:
    root = protect()
    async with open_single_holder(tmp_path) as here:
        for number in range(10):
            await offer(here.holder, root.root, number, finish=True)
        await here.put(root, 0)
        assert (await names(here, root.root))[0] == root.manifest.cid  # most bytes
        greedy = protect(2, stripes=9).under("root 1")
        assert greedy.root == root.root
        await here.put(greedy, 0, greedy.record(STRANGER, seq=99))
        known = await names(here, root.root)
        assert len(known) == 12
        assert root.manifest.cid in known[:3]


async def test_a_manifest_goes_with_its_last_slot_and_not_before(tmp_path: Path) -> None:
    root = protect(segments=2)
    other = root.under("another root of the same segments")
    async with open_single_holder(tmp_path) as here:
        await here.put(root, 0)
        await here.put(root, 1)
        await here.put(other, 1)
        here.restart()
        catalog = here.stores.catalog
        catalog.delete_slot(root.segment.cid, 0)
        assert await names(here, root.root) == (root.manifest.cid,)
        assert await names(here, other.root) == (other.manifest.cid,)
        catalog.delete_slot(root.segment.cid, 1)
        assert await names(here, root.root) == await names(here, other.root) == ()
        assert catalog.roots_with_segment(root.segment.cid) == []


def test_a_stranger_cannot_take_the_owners_own_manifest_away() -> None:
    """His slot of it ends; the pin, or the add that is under way, still needs the manifest."""

    async def main() -> None:
        async with open_cluster(6) as cluster:
            result, _ = await add(cluster, (2, 1))
            catalog = cluster[0].stores.catalog
            (row,) = catalog.manifests_of(result.cid)
            catalog.delete_slot(row.segments[0], 0)
            catalog.forget_manifests(result.cid)
            assert catalog.manifests_named(result.cid, 9) == [result.manifest]
            await cluster[0].unpin(result.cid)
            assert catalog.manifests_of(result.cid) == []

    run_deterministic(4, main)


# --- What a reader takes -----------------------------------------------------------------


def test_peers_that_name_many_manifests_make_room_for_one_that_names_one() -> None:
    sources = RootSources(ROOT)
    for number in range(16):
        for one in range(MANIFESTS_PER_PEER_MAX):
            manifest, _, _ = invented(ROOT, 100 * number + one)
            sources.add(peer_number(number + 1), manifest)
    assert len(sources.manifests) == MANIFESTS_TRIED_MAX
    assert set(sources.brought.values()) == {peer_number(number + 1) for number in range(16)}
    true, _, _ = invented(ROOT, 7777)
    assert sources.has_room(peer_number(99))
    assert sources.add(peer_number(99), true)
    assert len(sources.manifests) == len(sources.brought) == MANIFESTS_TRIED_MAX
    # It stays: who has the fewest is not asked to make room.
    for number in range(200, 240):
        assert sources.add(peer_number(number), invented(ROOT, 100 * number)[0])
    assert true.cid in sources.manifests


async def among_liars(cluster: Cluster) -> tuple[int, CID, CID, list[int]]:
    """Adds a file, whose holders answer late.  Who reads it, its root, a manifest of segments that
    nobody has, and who names that: more peers than name the true one."""
    result, slots = await add(cluster, (2, 1))
    await cluster.kill(0)
    reader = outsider(cluster, slots)
    manifest, _, _ = invented(result.cid, 0, missing=3000)
    liars = [n for n in cluster.alive if n not in slots.values() and n != reader]
    for number in liars:
        plant(cluster, number, manifest)
    for number in slots.values():
        cluster.hub.delay(cluster.peer(number), 0.03)
    return reader, result.cid, manifest.cid, liars


def test_a_manifest_of_segments_that_nobody_has_costs_moments() -> None:
    """Named by more peers than the true one, and by those who answer first."""

    async def main() -> None:
        async with open_cluster(9) as cluster:
            reader, root, _, _ = await among_liars(cluster)
            for seconds in (4, 2):
                begin = trio.current_time()
                assert await read(cluster, reader, root) == DATA
                assert trio.current_time() - begin < seconds
                cluster[reader]._retriever.forget(root)
                await trio.sleep(10)

    run_deterministic(5, main)


def test_a_manifest_of_which_the_holders_are_silent_costs_moments() -> None:
    """Its segments are asked of peers that accept the question and never answer."""

    async def main() -> None:
        async with open_cluster(9) as cluster:
            reader, root, manifest, liars = await among_liars(cluster)
            for number in liars:
                _make_mute(cluster, number, {manifest, root})
            begin = trio.current_time()
            assert await read(cluster, reader, root) == DATA
            assert trio.current_time() - begin < 6

    run_deterministic(5, main)


def test_peers_that_say_nothing_do_not_keep_the_next_from_being_asked() -> None:
    async def main() -> None:
        async with open_cluster(23) as cluster:
            result, slots = await add(cluster, (2, 1))
            assert result.manifest is not None
            manifest = Manifest.decode(cluster[0].stores.blocks.get(result.manifest))
            await cluster.kill(0)
            reader = outsider(cluster, slots)
            for number in cluster.alive:
                if number not in slots.values() and number != reader:
                    plant(cluster, number, manifest)
                    _make_mute(cluster, number)
            await meet_all(cluster, reader)
            session = cluster[reader]._retriever.session(result.cid)
            await session._discovery.everything(session.sources)
            for number in slots.values():  # they are asked last
                session._fetcher.stalled(cluster.peer(number))
            begin = trio.current_time()
            await session.segments.from_sources(manifest.segments[0].cid)
            assert trio.current_time() - begin < 10

    run_deterministic(5, main)


class Mute:
    """A holder that answers everything but for blocks, of which it sends `but` alone."""

    def __init__(self, inner: LocalHolder, but: set[CID]) -> None:
        self._inner = inner
        self._but = but

    def __getattr__(self, name: str) -> object:
        return getattr(self._inner, name)

    async def blocks(self, peer: PeerId, cids: Sequence[CID]) -> AsyncIterator[Batch]:
        if not self._but.issuperset(cids):
            await trio.sleep_forever()
        async for batch in self._inner.blocks(peer, cids):
            yield batch


def _make_mute(cluster: Cluster, number: int, but: set[CID] | None = None) -> None:
    handler = cluster[number].network.handler_of(wire.PROTOCOL)  # type: ignore[attr-defined]  # in memory
    server = handler.__self__
    server._holder = Mute(server._holder, but or set())
