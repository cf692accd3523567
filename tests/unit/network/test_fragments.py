"""The fragment protocol between two honest sides, on a network in memory."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from dstore.core import wire
from dstore.core.cid import CID, RAW
from dstore.core.peerid import PeerId
from dstore.core.wire import Refusal
from dstore.errors import CorruptStore, NotFoundError, ProtocolViolation, Refused, StorageFull
from dstore.limits import (
    FRAGMENT_STREAMS_IDLE_PER_PEER_MAX,
    GET_BLOCKS_MAX,
    IDLE_STREAM_SECONDS,
    MIB,
    PEER_BUDGET_BYTES,
    SLOT_BATCH_BYTES_MAX,
    SLOT_BATCH_SECONDS,
    WORKING_SECONDS,
)
from dstore.network.fragments_client import FragmentsClient, PutProgress, SlotBlock
from dstore.network.fragments_server import FragmentsServer, serve_fragments
from dstore.network.streams import PeerAddresses
from dstore.testing.deterministic import peer_number, simulated_runtime
from dstore.testing.memory_holder import MemoryHolder
from dstore.testing.memory_network import MemoryHost, MemoryNetwork, NetworkOptions, memory_network

SERVER = peer_number(1)
CLIENT = peer_number(2)


def block(number: int, size: int = 1000) -> tuple[CID, bytes]:
    data = number.to_bytes(4, "big") * (size // 4)
    return CID.of(RAW, data), data


ROOT, SEGMENT, MANIFEST = (block(number)[0] for number in (1_000_001, 1_000_002, 1_000_003))
OFFER = wire.PutSlot(b"pin record", MANIFEST, SEGMENT, 2)


class Pair:
    """A client, a server, and what a test may look at."""

    def __init__(self, network: MemoryNetwork) -> None:
        self.network = network
        self.server_host: MemoryHost = network.host(SERVER)
        self.client_host: MemoryHost = network.host(CLIENT)
        self.client_host.remember(PeerAddresses(SERVER, tuple(self.server_host.addresses())))
        self.holder = MemoryHolder()
        self.faults: list[tuple[str, str]] = []
        self.server: FragmentsServer = serve_fragments(
            self.server_host,
            self.holder,
            simulated_runtime(1),
            lambda peer, kind, detail: self.faults.append((kind, detail)),
        )
        self.client = FragmentsClient(self.client_host, simulated_runtime(2))

    def slot(self, count: int, size: int = 1000) -> tuple[list[SlotBlock], dict[CID, bytes]]:
        """A slot of `count` fragments that the holder expects, every second stripe."""
        made = [block(number, size) for number in range(count)]
        parts = [SlotBlock(2 * i, cid, len(data)) for i, (cid, data) in enumerate(made)]
        self.holder.expected[SEGMENT, 2] = {part.stripe: (part.cid, part.size) for part in parts}
        return parts, dict(made)


@asynccontextmanager
async def pair(options: NetworkOptions | None = None) -> AsyncIterator[Pair]:
    async with memory_network(7, options) as network:
        made = Pair(network)
        async with made.client:
            yield made
        assert made.server.bytes_held == 0


async def no_document(cid: CID) -> bytes:
    raise AssertionError(f"{cid} was asked for")


async def all_of(pair: Pair, cids: list[CID]) -> list[tuple[CID, bytes | None]]:
    async with pair.client.get_blocks(SERVER, cids) as blocks:
        return [answer async for answer in blocks]


async def put(pair: Pair, parts: list[SlotBlock], data: dict[CID, bytes]) -> bytes:
    async def read(part: SlotBlock) -> bytes:
        await trio.lowlevel.checkpoint()
        return data[part.cid]

    return await pair.client.put_slot(SERVER, OFFER, no_document, parts, read)


async def test_hello_and_manifests(autojump_clock: trio.testing.MockClock) -> None:
    async with pair() as both:
        hello = await both.client.hello(SERVER)
        assert (hello.role, hello.domains) == (wire.Role.STORAGE, ("rack1",))
        both.holder.manifests[ROOT] = wire.Manifests((MANIFEST,), (b"envelope",))
        assert await both.client.find_manifests(SERVER, ROOT) == both.holder.manifests[ROOT]
        assert await both.client.find_manifests(SERVER, MANIFEST) == wire.Manifests()
        assert both.network.streams_opened == 1  # one stream for all of them


async def test_blocks_come_in_order_and_missing_ones_as_none(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with pair() as both:
        made = [block(number, size) for number, size in enumerate([4, 2 * MIB, 40_000, 70_000])]
        both.holder.kept.update(made)
        absent = block(99)[0]
        asked = [made[1][0], absent, made[0][0], made[3][0], made[1][0], made[2][0]]
        expected = [(cid, both.holder.kept.get(cid)) for cid in asked]
        assert await all_of(both, asked) == expected
        assert await all_of(both, []) == []


async def test_blocks_are_asked_for_in_parts(autojump_clock: trio.testing.MockClock) -> None:
    async with pair() as both:
        made = [block(number, 8) for number in range(GET_BLOCKS_MAX + 5)]
        both.holder.kept.update(made)
        assert await all_of(both, [cid for cid, _ in made]) == made
        assert both.holder.asked == ["blocks", "blocks"]


async def test_answer_stops_at_its_size_limit_and_goes_on(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with pair() as both:
        cid, data = block(5, 2 * MIB)
        both.holder.kept[cid] = data
        async with both.client.get_blocks(SERVER, [cid] * 40) as blocks:
            count = 0
            async for _ in blocks:
                count += 1
        assert count == 40
        assert both.holder.asked == ["blocks", "blocks"]  # 32 of them are 64 MiB
        assert both.network.streams_opened == 1


async def test_leaving_early_costs_only_that_stream(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with pair() as both:
        made = [block(number, MIB) for number in range(4)]
        both.holder.kept.update(made)
        async with both.client.get_blocks(SERVER, [cid for cid, _ in made]) as blocks:
            assert await anext(blocks) == made[0]
        assert await all_of(both, [made[3][0]]) == [made[3]]
        assert both.network.streams_opened == 2
        await trio.testing.wait_all_tasks_blocked()
        assert both.faults == []


async def test_have_tells_only_what_changed(autojump_clock: trio.testing.MockClock) -> None:
    async with pair() as both:
        entry = wire.HolderEntry(SERVER, 3, 1_900_000_000, ("/ip4/10.0.0.1/tcp/4001",))
        partial = wire.HeldSlot(3, whole=False, stripes=wire.bitmap_of([0, 9]))
        both.holder.holdings[SEGMENT] = wire.Holding(SEGMENT, (partial,), (entry,))
        cids = [block(number)[0] for number in range(70)]
        asked = [*cids, SEGMENT]
        first = await both.client.have(SERVER, asked)
        assert first.holdings == (*(wire.Holding(c) for c in cids), both.holder.holdings[SEGMENT])
        both.holder.holdings[cids[0]] = wire.Holding(cids[0], (wire.HeldSlot(1, whole=True),))
        known = {holding.segment: holding for holding in first.holdings}
        sizes: list[int] = []

        def count(peer: PeerId, data: bytes) -> bytes:
            sizes.append(len(data))
            return data

        both.network.corrupt(SERVER, count)
        second = await both.client.have(SERVER, asked, known)
        assert second.holdings[0] == both.holder.holdings[cids[0]]
        assert second.holdings[1:] == first.holdings[1:]
        assert sum(sizes) < 71 * 50


async def test_slot_is_stored_and_answered_with_a_lease(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with pair() as both:
        parts, data = both.slot(50, 100_000)
        seen: list[PutProgress] = []

        async def read(part: SlotBlock) -> bytes:
            return data[part.cid]

        lease = await both.client.put_slot(SERVER, OFFER, no_document, parts, read, seen.append)
        assert lease == b"lease 2"
        stored = both.holder.slots[SEGMENT, 2]
        assert stored == {part.stripe: data[part.cid] for part in parts}
        assert both.holder.receptions[0].finished
        assert not both.holder.receptions[0].abandoned.is_set()
        assert seen[0] == PutProgress(0, 5_000_000)
        assert seen[-1] == PutProgress(5_000_000, 5_000_000)
        # Offered again, nothing is sent but the lease.
        assert await put(both, parts, {}) == b"lease 2"
        assert both.network.streams_opened == 1


async def test_resume_sends_only_what_is_wanted(autojump_clock: trio.testing.MockClock) -> None:
    async with pair() as both:
        parts, data = both.slot(10)
        both.holder.slots[SEGMENT, 2] = {part.stripe: data[part.cid] for part in parts[:7]}
        lacking = {part.cid: data[part.cid] for part in parts[7:]}
        assert await put(both, parts, lacking) == b"lease 2"


async def test_holder_fetches_the_documents_of_the_offer_only(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with pair() as both:
        parts, data = both.slot(3)
        manifest, segment = block(1_000_003)[1], block(1_000_002)[1]
        documents = {MANIFEST: manifest, SEGMENT: segment}
        both.holder.documents = [MANIFEST, SEGMENT]

        async def load(cid: CID) -> bytes:
            return documents[cid]

        async def read(part: SlotBlock) -> bytes:
            return data[part.cid]

        assert await both.client.put_slot(SERVER, OFFER, load, parts, read) == b"lease 2"
        assert both.holder.fetched == documents
        both.holder.documents = [ROOT]
        with pytest.raises(ProtocolViolation, match="Wanted"):
            await both.client.put_slot(SERVER, OFFER, load, parts, read)


async def test_refusals_keep_the_stream(autojump_clock: trio.testing.MockClock) -> None:
    async with pair() as both:
        for error, reason in [
            (Refused("no more", Refusal.QUOTA), "quota"),
            (Refused("odd", "a word of its own"), "other"),
            (NotFoundError("/secret/path"), "not found"),
            (StorageFull("/secret/path"), "full"),
            (CorruptStore("/secret/path"), "internal"),
        ]:
            both.holder.error = error
            for ask in (
                lambda: both.client.hello(SERVER),
                lambda: both.client.find_manifests(SERVER, ROOT),
                lambda: all_of(both, [ROOT]),
                lambda: put(both, [], {}),
            ):
                with pytest.raises(Refused) as caught:
                    await ask()
                assert caught.value.reason == reason
                assert "secret" not in str(caught.value)
        both.holder.error = None
        await both.client.hello(SERVER)
        assert both.network.streams_opened == 1
        assert both.faults == []


async def test_refusal_while_fragments_are_sent(autojump_clock: trio.testing.MockClock) -> None:
    async with pair() as both:
        parts, data = both.slot(40, 500_000)
        room = 1

        async def storing(blocks: object) -> None:
            nonlocal room
            await trio.sleep(0.01)
            room -= 1
            if room < 0:
                raise StorageFull("disk full")

        both.holder.storing = storing
        with pytest.raises(Refused) as caught:
            await put(both, parts, data)
        assert caught.value.reason == Refusal.FULL
        with trio.fail_after(5):
            await both.holder.receptions[0].abandoned.wait()
        assert both.faults == []
        await both.client.hello(SERVER)  # on a stream of its own


async def test_fragments_are_stored_in_whole_batches(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with pair() as both:
        parts, data = both.slot(20, MIB)
        assert await put(both, parts, data) == b"lease 2"
        assert [len(batch) for batch in both.holder.batches] == [8, 8, 4]


async def test_what_came_first_waits_a_moment_for_the_rest(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with pair() as both:
        parts, data = both.slot(4, MIB)
        begun, stored = trio.current_time(), list[float]()

        async def slowly(part: SlotBlock) -> bytes:
            await trio.sleep(10)
            return data[part.cid]

        async def storing(_: object) -> None:
            await trio.lowlevel.checkpoint()
            stored.append(trio.current_time() - begun)

        both.holder.storing = storing
        await both.client.put_slot(SERVER, OFFER, no_document, parts, slowly)
        waits = [SLOT_BATCH_SECONDS] * 3 + [0]  # after the last there is nothing to wait for
        expected = [10 * (i + 1) + wait for i, wait in enumerate(waits)]
        assert stored == pytest.approx(expected, abs=0.2)


async def test_slots_that_share_little_memory_do_not_wait_for_whole_batches(
    autojump_clock: trio.testing.MockClock,
) -> None:
    assert 4 * SLOT_BATCH_BYTES_MAX > PEER_BUDGET_BYTES
    async with pair() as both:
        made = [block(number, MIB) for number in range(24)]
        parts = [SlotBlock(i, cid, len(data)) for i, (cid, data) in enumerate(made)]
        for slot in range(4):
            expected = {part.stripe: (part.cid, part.size) for part in parts}
            both.holder.expected[SEGMENT, slot] = expected

        async def read(part: SlotBlock) -> bytes:
            await trio.lowlevel.checkpoint()
            return dict(made)[part.cid]

        begun = trio.current_time()
        async with trio.open_nursery() as nursery:
            for slot in range(4):
                offer = wire.PutSlot(b"pin record", MANIFEST, SEGMENT, slot)
                nursery.start_soon(both.client.put_slot, SERVER, offer, no_document, parts, read)
        assert trio.current_time() - begun < SLOT_BATCH_SECONDS


async def test_slow_holder_is_heard_of_while_it_works(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with pair() as both:
        parts, data = both.slot(5)

        async def slowly(*_: object) -> None:
            await trio.sleep(WORKING_SECONDS * 20)

        both.holder.deciding = slowly
        both.holder.storing = slowly
        assert await put(both, parts, data) == b"lease 2"


async def test_offers_beyond_the_turn_wait(autojump_clock: trio.testing.MockClock) -> None:
    async with pair() as both:
        parts, data = both.slot(2)
        deciding = peak = 0

        async def decide() -> None:
            nonlocal deciding, peak
            deciding += 1
            peak = max(peak, deciding)
            await trio.sleep(10)
            deciding -= 1

        both.holder.deciding = decide
        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(put, both, parts, data)
        assert len(both.holder.receptions) == 10
        assert peak == 4


async def test_renew_and_release(autojump_clock: trio.testing.MockClock) -> None:
    async with pair() as both:
        both.holder.slots[SEGMENT, 2] = {}
        refs = (wire.SlotRef(SEGMENT, 2), wire.SlotRef(SEGMENT, 3))
        answers = await both.client.renew(SERVER, wire.Renew(refs, (b"record",)))
        assert answers[0].lease == b"renewed"
        assert answers[1].refusal == Refusal.NOT_FOUND
        released = await both.client.release(SERVER, wire.Release(refs[:1]))
        assert released == (wire.SlotAnswer(SEGMENT, 2),)
        assert not both.holder.slots
        assert await both.client.renew(SERVER, wire.Renew(())) == ()


async def test_challenge_brings_the_fragments(autojump_clock: trio.testing.MockClock) -> None:
    async with pair() as both:
        parts, data = both.slot(100)
        await put(both, parts, data)
        items = [(wire.Challenged(SEGMENT, 2, part.stripe, b"n" * 16), part.cid) for part in parts]
        del both.holder.slots[SEGMENT, 2][parts[1].stripe]
        async with both.client.challenge(SERVER, items) as shown:
            got = [answer async for answer in shown]
        assert got[1] == (parts[1].cid, None)
        assert [answer for i, answer in enumerate(got) if i != 1] == [
            (part.cid, data[part.cid]) for i, part in enumerate(parts) if i != 1
        ]
        assert both.holder.asked.count("challenge") == 2  # 64 at a time


async def test_idle_streams_are_bounded_and_replaced_when_stale(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with pair() as both:
        async with trio.open_nursery() as nursery:
            for _ in range(30):
                nursery.start_soon(both.client.hello, SERVER)
        assert both.network.streams_opened == 16
        assert both.client.idle_streams == FRAGMENT_STREAMS_IDLE_PER_PEER_MAX
        await trio.sleep(IDLE_STREAM_SECONDS + 1)
        assert both.server.peers_served == 0  # the server gave all of them up
        await both.client.hello(SERVER)
        assert both.client.idle_streams == 1
        assert both.faults == []


async def test_stream_that_the_peer_ended_is_replaced_unnoticed(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with pair() as both:
        await both.client.hello(SERVER)
        both.network.sever(CLIENT, SERVER)
        await both.client.hello(SERVER)
        assert both.network.streams_opened == 2
        await both.client.aclose()
        assert both.client.idle_streams == 0


async def test_messages_may_be_cut_anywhere(autojump_clock: trio.testing.MockClock) -> None:
    async with pair(NetworkOptions(ragged=True, window_bytes=4096)) as both:
        parts, data = both.slot(20, 5000)
        assert await put(both, parts, data) == b"lease 2"
        both.holder.kept.update(data)
        asked = [part.cid for part in parts] + [ROOT]
        assert await all_of(both, asked) == [(cid, data.get(cid)) for cid in asked]
        assert both.faults == []
