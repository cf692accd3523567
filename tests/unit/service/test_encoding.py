"""From a root to its manifest: the same for the same, in small batches, and errors that name
what is missing."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Sequence

import pytest

from dstore.core import erasure
from dstore.core.cid import CID
from dstore.core.manifest import Code, Manifest, Segment
from dstore.core.unixfs import profile_named
from dstore.errors import NotFoundError, StorageFull
from dstore.limits import ENCODE_BATCH_BYTES, MIB
from dstore.runtime import InlineWorkers, ThreadWorkers, Workers
from dstore.service.encoding import Encoded, encode_root
from dstore.service.importing import Importer
from dstore.service.progress import Progress
from dstore.storage.blockstore import Block
from dstore.storage.memory import MemoryStore


async def stored(size: int) -> tuple[MemoryStore, CID]:
    store = MemoryStore()

    async def pieces() -> AsyncIterator[bytes]:
        for number in range(0, size, MIB):
            yield random.Random(number).randbytes(min(MIB, size - number))

    importer = Importer(
        profile_named("unixfs-v1-2025"), store.put_many, InlineWorkers(), lambda progress: None
    )
    return store, (await importer.add_stream(pieces())).cid


async def encode(
    store: MemoryStore, root: CID, code: Code, workers: Workers | None = None
) -> tuple[Encoded, list[Progress]]:
    seen: list[Progress] = []
    encoded = await encode_root(
        root, code, store, store.get, store.put_many, workers or InlineWorkers(), seen.append
    )
    return encoded, seen


@pytest.mark.parametrize("code", [Code(1, 1), Code(4, 2), Code(3, 0), Code(14, 8)])
async def test_every_stripe_is_coded_and_the_documents_are_stored(code: Code) -> None:
    store, root = await stored(7 * MIB + 99)
    encoded, seen = await encode(store, root, code)
    manifest = Manifest.decode(store.get(encoded.manifest.cid))
    assert manifest == encoded.manifest
    assert (manifest.root, manifest.code) == (root, code)
    (segment,) = (Segment.decode(store.get(ref.cid)) for ref in manifest.segments)
    slots = range(segment.n)
    assert encoded.fragment_bytes == sum(segment.slot_bytes(slot) for slot in slots)
    for stripe in segment.stripes:
        data = [store.get(cid) for cid, _ in stripe.data]
        made = erasure.encode(code.k, code.m, data, stripe.length)
        assert all(cid.verify(bytes(block)) for cid, block in zip(stripe.parity, made, strict=True))
    done = [progress.done_bytes for progress in seen]
    assert done == sorted(done)
    assert (seen[-1].done_bytes, seen[-1].total_bytes) == (manifest.bytes, manifest.bytes)


async def test_threads_and_order_make_no_difference() -> None:
    store, root = await stored(3 * ENCODE_BATCH_BYTES)
    inline, _ = await encode(store, root, Code(3, 2))
    threads, seen = await encode(store, root, Code(3, 2), ThreadWorkers())
    assert inline == threads
    assert len(seen) >= 3


async def test_parity_is_not_kept() -> None:
    store, root = await stored(4 * MIB)
    before = store.usage().bytes
    await encode(store, root, Code(2, 2))
    assert store.usage().bytes < before + 10_000


async def test_a_file_of_no_bytes_has_no_segments() -> None:
    store, root = await stored(0)
    encoded, _ = await encode(store, root, Code(2, 1))
    assert encoded.manifest.segments == ()
    assert Manifest.decode(store.get(encoded.manifest.cid)).bytes == 0


async def test_a_missing_block_is_named() -> None:
    store, root = await stored(3 * MIB)
    encoded, _ = await encode(store, root, Code(2, 1))
    segment = Segment.decode(store.get(encoded.manifest.segments[0].cid))
    lost = segment.stripes[0].data[1][0]
    store.delete_many([lost])
    with pytest.raises(NotFoundError, match=str(lost)):
        await encode(store, root, Code(2, 1))


async def test_a_full_store_ends_it() -> None:
    store, root = await stored(MIB)

    def full(blocks: Sequence[Block]) -> None:
        raise StorageFull("no room")

    with pytest.raises(StorageFull):
        await encode_root(
            root, Code(2, 1), store, store.get, full, InlineWorkers(), lambda progress: None
        )
