"""Holders, manifests and segments that lie (threats 4, 18, 19): reads go on from elsewhere or
fail clearly, the culprits are named, and no wrong byte is returned."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable, Sequence

import pytest

from dstore.core import wire
from dstore.core.cid import CID, RAW
from dstore.core.manifest import Code, Manifest, Segment, Stripe
from dstore.core.peerid import PeerId
from dstore.core.pinrecord import PinRecord
from dstore.errors import DstoreError, Refused
from dstore.limits import GIB
from dstore.service.holder import HolderOptions, LocalHolder
from dstore.service.progress import AddOptions, AddResult
from dstore.storage.blockstore import Block, BlockStore
from dstore.storage.memory import MemoryStore
from dstore.storage.rows import ManifestRow
from dstore.testing.cluster import Cluster, node_key, open_cluster
from dstore.testing.deterministic import run_deterministic, simulated_runtime

DATA = random.Random(7).randbytes(5_500_000)


class LyingStore(MemoryStore):
    """Answers with bytes that its `lie` makes of the right ones."""

    def __init__(self, honest: BlockStore, lie: Callable[[CID, bytes], bytes]) -> None:
        super().__init__()
        self._honest = honest
        self._lie = lie

    def get(self, cid: CID) -> bytes:
        return self._lie(cid, self._honest.get(cid))

    def has_many(self, cids: Sequence[CID]) -> list[bool]:
        return self._honest.has_many(cids)

    def put_many(self, blocks: Sequence[Block], *, read_soon: bool = True) -> None:
        self._honest.put_many(blocks, read_soon=read_soon)


def flipped(cid: CID, data: bytes) -> bytes:
    """One bit of leaves is wrong; what is small (manifests, segments) is not touched."""
    return data if len(data) < 100_000 else bytes([data[0] ^ 1]) + data[1:]


def truncated(cid: CID, data: bytes) -> bytes:
    return data if len(data) < 100_000 else data[:-1]


def swapped(cid: CID, data: bytes) -> bytes:
    return data if len(data) < 100_000 else bytes(len(data))


async def stream() -> AsyncIterator[bytes]:
    yield DATA


async def add(cluster: Cluster) -> tuple[AddResult, dict[int, int]]:
    """The result, and the node that holds each slot."""
    result = await cluster[0].add_stream(stream(), AddOptions(code=(4, 2)))
    status = await cluster[0].status(result.cid)
    (segment,) = status.segments
    return result, {slot.slot: cluster.number_of(slot.holders[0]) for slot in segment.slots}


async def read(cluster: Cluster, reader: int, root: CID) -> bytes:
    async with cluster[reader].read(root) as chunks:
        return b"".join([chunk async for chunk in chunks])


def outsider(cluster: Cluster, slots: dict[int, int]) -> int:
    return next(n for n in cluster.alive if n != 0 and n not in slots.values())


def make_liars(
    cluster: Cluster, liars: Sequence[int], lie: Callable[[CID, bytes], bytes] = flipped
) -> set[PeerId]:
    """Nodes that lie from now on; their peer ids."""
    for liar in liars:
        cluster.stores[liar].inner = LyingStore(cluster.stores[liar].inner, lie)
    return {cluster.peer(liar) for liar in liars}


def named(cluster: Cluster, reader: int) -> set[PeerId]:
    """Whom the reader holds something against."""
    return {fault.peer for fault in cluster[reader].stores.catalog.faults()}


async def read_until_it_fails(cluster: Cluster, reader: int, root: CID) -> None:
    got = bytearray()
    with pytest.raises(DstoreError):
        async with cluster[reader].read(root) as chunks:
            async for chunk in chunks:
                got += chunk
    assert DATA.startswith(got)


@pytest.mark.parametrize("lie", [flipped, truncated, swapped])
def test_m_lying_holders_are_read_around_and_named(lie: Callable[[CID, bytes], bytes]) -> None:
    async def main() -> None:
        async with open_cluster(9) as cluster:
            result, slots = await add(cluster)
            await cluster.kill(0)
            liars = make_liars(cluster, [slots[0], slots[2]], lie)
            reader = outsider(cluster, slots)
            assert await read(cluster, reader, result.cid) == DATA
            assert named(cluster, reader) == liars
            catalog = cluster[reader].stores.catalog
            assert {fault.kind for fault in catalog.faults()} <= {"HashMismatch", "hash"}

    run_deterministic(3, main)


@pytest.mark.parametrize("lie", [flipped, truncated, swapped, lambda cid, data: data + data[:1]])
def test_lying_parity_is_found_by_what_it_gives_and_its_sender_named(
    lie: Callable[[CID, bytes], bytes],
) -> None:
    """Parity is not hashed when it comes; with a data slot gone, a liar among its holders would
    else go into every block that is decoded."""

    async def main() -> None:
        async with open_cluster(9) as cluster:
            result, slots = await add(cluster)
            await cluster.kill(0)
            await cluster.kill(slots[1])
            liars = make_liars(cluster, [slots[4]], lie)
            reader = outsider(cluster, slots)
            assert await read(cluster, reader, result.cid) == DATA
            assert named(cluster, reader) == liars
            assert cluster[reader].counters.decoded_blocks > 0

    run_deterministic(3, main)


def test_where_all_parity_lies_the_read_fails_and_all_are_named() -> None:
    async def main() -> None:
        async with open_cluster(9) as cluster:
            result, slots = await add(cluster)
            await cluster.kill(0)
            await cluster.kill(slots[1])
            liars = make_liars(cluster, [slots[4], slots[5]])
            reader = outsider(cluster, slots)
            await read_until_it_fails(cluster, reader, result.cid)
            assert named(cluster, reader) == liars

    run_deterministic(3, main)


def test_more_liars_than_parity_is_a_clear_failure() -> None:
    async def main() -> None:
        async with open_cluster(9) as cluster:
            result, slots = await add(cluster)
            await cluster.kill(0)
            make_liars(cluster, [slots[slot] for slot in (0, 1, 2)])
            await read_until_it_fails(cluster, outsider(cluster, slots), result.cid)

    run_deterministic(3, main)


def plant(cluster: Cluster, number: int, manifest: Manifest, segments: Sequence[Segment]) -> None:
    """Make a node believe in a manifest, and tell others of it."""
    stores = cluster[number].stores
    stores.blocks.put_many([(segment.cid, segment.block) for segment in segments])
    stores.blocks.put_many([(manifest.cid, manifest.block)])
    stores.catalog.put_manifest(
        ManifestRow(
            manifest.root,
            manifest.cid,
            manifest.code.k,
            manifest.code.m,
            manifest.bytes,
            manifest.blocks,
            tuple(segment.cid for segment in segments),
        )
    )


def false_protection(root: CID) -> tuple[Manifest, Segment]:
    """A well-formed manifest of the root that lists blocks of something else."""
    code = Code(2, 1)
    wrong = [(CID.of(RAW, bytes([n])), 1) for n in range(2)]
    segment = Segment(2, 1, (Stripe(tuple(wrong), (CID.of(RAW, b"parity"),)),))
    return Manifest.of(root, code, [segment.ref]), segment


def test_a_lying_manifest_does_not_keep_a_read_from_the_true_one() -> None:
    async def main() -> None:
        async with open_cluster(9) as cluster:
            result, slots = await add(cluster)
            await cluster.kill(0)
            manifest, segment = false_protection(result.cid)
            reader = outsider(cluster, slots)
            for liar in cluster.alive:
                if liar not in slots.values() and liar != reader:
                    plant(cluster, liar, manifest, [segment])
            # The reader itself believes the lie first of all.
            plant(cluster, reader, manifest, [segment])
            assert await read(cluster, reader, result.cid) == DATA

    run_deterministic(5, main)


def test_with_nothing_but_a_lying_manifest_the_read_fails_clearly() -> None:
    async def main() -> None:
        async with open_cluster(4) as cluster:
            root = CID.of(RAW, b"never stored anywhere")
            manifest, segment = false_protection(root)
            plant(cluster, 1, manifest, [segment])
            plant(cluster, 2, manifest, [segment])
            with pytest.raises(DstoreError):
                await read(cluster, 3, root)

    run_deterministic(5, main)


def test_a_segment_whose_parity_does_not_decode_never_yields_wrong_bytes() -> None:
    """Parity blocks that are what the segment says, and are not the code's parity."""

    async def main() -> None:
        async with open_cluster(9) as cluster:
            result, slots = await add(cluster)
            honest = cluster[0].stores
            assert result.manifest is not None
            manifest = Manifest.decode(honest.blocks.get(result.manifest))
            segment = Segment.decode(honest.blocks.get(manifest.segments[0].cid))
            draw = random.Random(1)
            blocks: list[Block] = []
            stripes = []
            for stripe in segment.stripes:
                made = [draw.randbytes(stripe.length) for _ in stripe.parity]
                named = [(CID.of(RAW, block), block) for block in made]
                blocks += named
                stripes.append(Stripe(stripe.data, tuple(cid for cid, _ in named)))
            false = Segment(segment.k, segment.m, tuple(stripes))
            lying = Manifest.of(result.cid, manifest.code, [false.ref])
            # The data and the false parity are on node 1 alone, which lacks one data block;
            # everybody else is gone.
            keeper, reader = 1, outsider(cluster, slots)
            lost = segment.stripes[0].data[0][0]
            data = [
                (cid, honest.blocks.get(cid))
                for stripe in segment.stripes
                for cid, _ in stripe.data
                if cid != lost
            ]
            for number in list(cluster.alive):
                if number not in {keeper, reader}:
                    await cluster.kill(number)
            store = MemoryStore()
            store.put_many([*blocks, *data])
            cluster.stores[keeper].inner = store
            catalog = cluster[keeper].stores.catalog
            for row in catalog.held_slots():
                catalog.delete_slot(row.segment, row.slot)
            assert catalog.manifests_of(result.cid) == []
            plant(cluster, keeper, lying, [false])
            got = bytearray()
            with pytest.raises(DstoreError):
                async with cluster[reader].read(result.cid) as chunks:
                    async for chunk in chunks:
                        got += chunk
            assert DATA.startswith(got)

    run_deterministic(5, main)


def test_a_slot_is_refused_unless_record_manifest_and_segment_form_a_chain() -> None:
    """PutSlot with each link of the chain broken in turn: nothing is stored, no lease."""

    async def main() -> None:
        async with open_cluster(3) as cluster:
            data = b"x" * 1000
            cid = CID.of(RAW, data)
            segment = Segment(1, 1, (Stripe(((cid, 1000),), (cid,)),))
            manifest = Manifest.of(cid, Code(1, 1), [segment.ref])
            other, other_segment = false_protection(CID.of(RAW, b"other"))
            documents = {one.cid: one.block for one in (segment, manifest, other, other_segment)}
            owner = node_key(0, "owner")
            now = 1_800_000_000

            def record(root: CID, named: CID, *, expires: int = now + 10_000) -> bytes:
                signed = PinRecord(root, (named,), owner.public, 1, now - 100, expires)
                return signed.sign(owner).envelope

            good = record(cid, manifest.cid)
            offers = {
                "forged": wire.PutSlot(good[:-1] + b"\0", manifest.cid, segment.cid, 0),
                "expired": wire.PutSlot(
                    record(cid, manifest.cid, expires=now - 50), manifest.cid, segment.cid, 0
                ),
                "other manifest": wire.PutSlot(good, other.cid, segment.cid, 0),
                "other segment": wire.PutSlot(good, manifest.cid, other_segment.cid, 0),
                "other root": wire.PutSlot(
                    record(CID.of(RAW, b"root"), manifest.cid), manifest.cid, segment.cid, 0
                ),
                "no such slot": wire.PutSlot(good, manifest.cid, segment.cid, 2),
            }

            async def load(wanted: Sequence[CID]) -> list[bytes]:
                return [documents[cid] for cid in wanted]

            holder = holder_of(cluster, 1)
            for name, offer in offers.items():
                with pytest.raises(Refused):
                    await holder.offer_slot(cluster.peer(0), offer, load)
                assert cluster[1].stores.catalog.held_slots() == [], name
            accepted = wire.PutSlot(good, manifest.cid, segment.cid, 0)
            reception = await holder.offer_slot(cluster.peer(0), accepted, load)
            assert list(reception.wanted) == [0]
            with pytest.raises(Refused, match="missing"):
                await reception.finish()
            await reception.store([(0, data)])
            assert await reception.finish()

    run_deterministic(2, main)


def holder_of(cluster: Cluster, number: int) -> LocalHolder:
    """A holder over the node's own stores, as the node has it."""
    node = cluster[number]
    return LocalHolder(
        node.stores,
        node.network,
        node_key(number),
        simulated_runtime(number),
        HolderOptions(capacity_bytes=GIB),
        lambda root, segment: None,
    )
