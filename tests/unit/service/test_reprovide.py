"""Announcements: at once, again in time, bounded, and in spite of odd keys."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import cast

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from dstore.core.cid import CID, IDENTITY, RAW
from dstore.core.kad_provision import Provided
from dstore.core.kademlia import kad_id
from dstore.limits import (
    KAD_BUCKET,
    KAD_KEY_BYTES_MAX,
    KAD_REPLICAS_WANTED,
    PROVIDE_BATCH_KEYS,
    PROVIDE_RETRY_SECONDS,
    PROVIDE_RETRY_SECONDS_MAX,
    REPROVIDE_SECONDS,
)
from dstore.network.routing import Routing
from dstore.runtime import InlineWorkers, Runtime
from dstore.service.reprovide import Reprovider
from dstore.service.stores import Stores
from dstore.storage.catalog import Catalog, open_catalog
from dstore.storage.memory import MemoryStore
from dstore.storage.rows import HeldSlot, ManifestRow, PinRow


class Told:
    """A DHT of as many peers as `told` says, of whom `confirms` store what they are told."""

    def __init__(self) -> None:
        self.keys: list[tuple[float, bytes]] = []
        self.batches: list[list[bytes]] = []
        self.told = self.confirms = 1
        self.late_seconds = 0.0  # of the last peer, after another has confirmed

    async def provide_many(
        self, keys: Sequence[bytes], on_confirmed: Callable[[bytes], None]
    ) -> dict[bytes, Provided]:
        assert all(0 < len(key) <= KAD_KEY_BYTES_MAX for key in keys)
        self.keys += [(trio.current_time(), key) for key in keys]
        self.batches.append(list(keys))
        await trio.sleep(0.01 * len(keys))
        if self.confirms:
            for key in keys:
                on_confirmed(key)
        await trio.sleep(self.late_seconds)
        return dict.fromkeys(keys, Provided(self.told, self.confirms))


def cid(number: int) -> CID:
    return CID.of(RAW, b"%d" % number)


class Bench:
    def __init__(self, catalog: Catalog) -> None:
        self.catalog = catalog
        self.dht = Told()
        runtime = Runtime(workers=InlineWorkers())
        self.reprovider = Reprovider(
            cast("Routing", self.dht), Stores(MemoryStore(), catalog), runtime
        )

    def pin(self, root: CID) -> None:
        self.catalog.put_pin(PinRow(root, "local", None, 0.0, None))

    def hold(self, root: CID, segment: CID) -> None:
        row = HeldSlot(segment, 0, b"o" * 32, root, cid(0), 1, "reserved", None, 9e9, 0.0)
        self.catalog.reserve_slot(row)
        self.catalog.hold_slot(segment, 0, b"lease", 9e9, 1.0)

    def told(self) -> list[bytes]:
        return [key for _, key in self.dht.keys]


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(open_catalog(tmp_path / "catalog.sqlite3"))


async def test_all_that_is_here_every_22_hours(bench: Bench, autojump_clock: MockClock) -> None:
    bench.pin(cid(1))
    bench.hold(cid(2), cid(3))
    other = ManifestRow(cid(4), cid(5), 1, 1, 1, 1, (cid(3),))
    bench.catalog.put_manifest(other)  # another root that shares the segment
    with trio.move_on_after(REPROVIDE_SECONDS * 2.5):
        await bench.reprovider.worker.run()
    expected = {cid(number).multihash for number in (1, 2, 3, 4)}
    assert len(bench.told()) == 3 * len(expected)
    assert set(bench.told()) == expected
    assert {round(time / REPROVIDE_SECONDS) for time, _ in bench.dht.keys} == {0, 1, 2}
    assert bench.reprovider.due == 0


async def test_what_is_new_is_told_at_once(bench: Bench, autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bench.reprovider.worker.run)
        await trio.sleep(100)
        assert bench.told() == []
        bench.reprovider.provide_soon(cid(7), cid(8))
        await trio.sleep(1)
        assert set(bench.told()) == {cid(7).multihash, cid(8).multihash}
        # And again where it is asked for again: another slot of the same segment, say.
        bench.reprovider.provide_soon(cid(7))
        await trio.sleep(1)
        assert len(bench.told()) == 3
        nursery.cancel_scope.cancel()


async def test_announcing_waits_for_a_confirmation(bench: Bench, autojump_clock: MockClock) -> None:
    bench.dht.confirms = 0
    announced = trio.Event()
    async with trio.open_nursery() as nursery:

        async def announce() -> None:
            await bench.reprovider.announce(cid(1))
            announced.set()

        nursery.start_soon(bench.reprovider.worker.run)
        nursery.start_soon(announce)
        await trio.sleep(PROVIDE_RETRY_SECONDS * 1.5)
        assert not announced.is_set()
        assert len(bench.told()) == 2
        bench.dht.confirms = 1
        await announced.wait()
        assert len(bench.told()) == 3
        nursery.cancel_scope.cancel()


async def test_announcing_ends_with_the_first_peer_that_confirms(
    bench: Bench, autojump_clock: MockClock
) -> None:
    bench.dht.late_seconds = 4.0
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bench.reprovider.worker.run)
        begun = trio.current_time()
        await bench.reprovider.announce(cid(1))
        assert trio.current_time() - begun < 1
        # It is being told: to ask for it again is to wait for no other turn.
        await bench.reprovider.announce(cid(1))
        assert trio.current_time() - begun < 1
        await trio.sleep(5)
        assert len(bench.told()) == 1
        assert bench.reprovider.due == 0
        nursery.cancel_scope.cancel()


async def test_what_carries_its_bytes_is_announced_by_nobody(bench: Bench) -> None:
    await bench.reprovider.announce(CID.v1(RAW, b"\0\x01x"))
    assert bench.reprovider.due == 0


async def test_a_root_whose_hash_is_too_long_for_the_dht_stops_nothing(
    bench: Bench, autojump_clock: MockClock
) -> None:
    """A peer that offers a slot names the root: it must not be able to end announcements."""
    long = CID.v1(RAW, bytes([IDENTITY, 0x80, 1]) + bytes(128))
    identity = CID.v1(RAW, bytes([IDENTITY, 3]) + b"abc")
    assert len(long.multihash) > KAD_KEY_BYTES_MAX
    bench.hold(long, cid(3))
    bench.pin(identity)
    bench.reprovider.provide_soon(long)
    with trio.move_on_after(10):
        await bench.reprovider.worker.run()
    assert bench.told() == [cid(3).multihash]
    assert bench.reprovider.worker.failures == 0


async def test_few_at_once_and_neighbours_together(bench: Bench, autojump_clock: MockClock) -> None:
    for number in range(500):
        bench.pin(cid(number))
    with trio.move_on_after(60):
        await bench.reprovider.worker.run()
    assert len(bench.told()) == len(set(bench.told())) == 500
    assert max(len(batch) for batch in bench.dht.batches) == PROVIDE_BATCH_KEYS
    assert bench.told() == sorted(bench.told(), key=kad_id)
    # The great round takes no more than half of the time.
    assert bench.dht.keys[-1][0] >= 2 * 0.01 * (500 - 128) - 0.01


async def test_what_is_new_does_not_wait_for_the_great_round(
    bench: Bench, autojump_clock: MockClock
) -> None:
    for number in range(1000):
        bench.pin(cid(number))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bench.reprovider.worker.run)
        await trio.sleep(0.5)
        before = trio.current_time()
        await bench.reprovider.announce(cid(5000))
        assert trio.current_time() - before < 0.01 * (PROVIDE_BATCH_KEYS + 2)
        assert bench.reprovider.due > 500
        nursery.cancel_scope.cancel()


async def test_a_key_with_too_few_replicas_is_told_again_ever_less_often(
    bench: Bench, autojump_clock: MockClock
) -> None:
    bench.dht.told, bench.dht.confirms = KAD_BUCKET, KAD_REPLICAS_WANTED - 1
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bench.reprovider.worker.run)
        await bench.reprovider.announce(cid(1))  # one confirmation is enough for that
        assert bench.reprovider.due == 1
        await trio.sleep(5 * PROVIDE_RETRY_SECONDS_MAX)
        times = [time for time, _ in bench.dht.keys]
        pauses = [later - time for time, later in pairwise(times)]
        assert pauses == sorted(pauses)
        assert pauses[0] == pytest.approx(PROVIDE_RETRY_SECONDS, abs=1)
        assert pauses[1] == pytest.approx(2 * PROVIDE_RETRY_SECONDS, abs=1)
        assert pauses[-1] <= PROVIDE_RETRY_SECONDS + PROVIDE_RETRY_SECONDS_MAX + 1
        assert 8 < len(times) < 14
        bench.dht.confirms += 1
        await trio.sleep(2 * PROVIDE_RETRY_SECONDS_MAX)
        assert bench.reprovider.due == 0
        nursery.cancel_scope.cancel()


async def test_all_of_a_small_network_is_enough(bench: Bench, autojump_clock: MockClock) -> None:
    bench.dht.told = bench.dht.confirms = 4
    bench.reprovider.provide_soon(cid(1))
    with trio.move_on_after(10):
        await bench.reprovider.worker.run()
    assert bench.reprovider.due == 0


async def test_a_node_alone_does_not_try_them_all(bench: Bench, autojump_clock: MockClock) -> None:
    bench.dht.told = bench.dht.confirms = 0
    for number in range(500):
        bench.pin(cid(number))
    with trio.move_on_after(PROVIDE_RETRY_SECONDS * 2.5):
        await bench.reprovider.worker.run()
    assert len(bench.told()) <= 3 * PROVIDE_BATCH_KEYS
    assert bench.reprovider.due == 500
    # What is asked for by name comes before the great round.
    bench.dht.told = bench.dht.confirms = 1
    bench.dht.keys.clear()
    bench.reprovider.provide_soon(cid(999))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bench.reprovider.worker.run)
        await wait_all_tasks_blocked()
        assert bench.told()[0] == cid(999).multihash
        nursery.cancel_scope.cancel()
