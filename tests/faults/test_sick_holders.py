"""Holders that are silent, full, endlessly busy or lying while a slot is brought to them: the
add ends protected on others, and loses less than five seconds by them, exactly measured."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import replace

import pytest
import trio

from dstore.core.wire import PROTOCOL, Refusal, Role
from dstore.errors import InsufficientPeers, Refused
from dstore.limits import (
    KAD_SLOW_SECONDS_MIN,
    SLOT_LAST_SECONDS,
    SLOT_STALL_AGAIN_SECONDS,
    SLOT_STALL_SECONDS,
    SLOT_WATCH_SECONDS,
)
from dstore.network.streams import Stream
from dstore.service.holder import LocalHolder, LocalReception
from dstore.service.node import NodeOptions
from dstore.service.progress import AddOptions, AddResult
from dstore.testing.cluster import Cluster, open_cluster
from dstore.testing.deterministic import run_deterministic

DATA = random.Random(7).randbytes(9_000_000)
STALL_SECONDS = SLOT_STALL_SECONDS + 2 * SLOT_WATCH_SECONDS + KAD_SLOW_SECONDS_MIN
"""What a holder without news may cost, and a look-up that it does not answer; one that says no
costs less."""

Sicken = Callable[[Cluster, int], None]


async def stream() -> AsyncIterator[bytes]:
    for start in range(0, len(DATA), 500_000):
        yield DATA[start : start + 500_000]


async def add(cluster: Cluster) -> tuple[AddResult, float, dict[int, int]]:
    """The result, its seconds, and the node that holds each slot."""
    begun = trio.current_time()
    result = await cluster[0].add_stream(stream(), AddOptions(code=(2, 1)))
    seconds = trio.current_time() - begun
    status = await cluster[0].status(result.cid)
    holders = {
        one.slot: cluster.number_of(peer)
        for one in status.segments[0].slots
        for peer in one.holders
    }
    return result, seconds, holders


def healthy() -> tuple[float, dict[int, int]]:
    """How long the add takes where all are well, and who holds what then."""
    found: list[tuple[float, dict[int, int]]] = []

    async def main() -> None:
        async with open_cluster(6) as cluster:
            result, seconds, holders = await add(cluster)
            assert result.protected
            found.append((seconds, holders))

    run_deterministic(1, main)
    return found[0]


def only(cluster: Cluster, number: int, holder: LocalHolder) -> bool:
    return holder._network.peer_id == cluster.peer(number)


async def garbage(link: Stream) -> None:
    while await link.read_some():
        await link.write(b"\x05nonsense" * 100)


async def deaf(link: Stream) -> None:
    await trio.sleep_forever()


async def closing(link: Stream) -> None:
    await link.read_some()
    await link.close()


@pytest.fixture
def sick(monkeypatch: pytest.MonkeyPatch) -> dict[str, Sicken]:
    """Ways in which one node of the cluster may be sick."""
    offer, store, finish = LocalHolder.offer_slot, LocalReception.store, LocalReception.finish

    def at_offer(act: Callable[[], Awaitable[object]]) -> Sicken:
        def sicken(cluster: Cluster, number: int) -> None:
            async def patched(holder: LocalHolder, *given: object) -> object:
                if only(cluster, number, holder):
                    await act()
                return await offer(holder, *given)  # type: ignore[arg-type]  # handed on

            monkeypatch.setattr(LocalHolder, "offer_slot", patched)

        return sicken

    def at_store(act: Callable[[], Awaitable[object]]) -> Sicken:
        def sicken(cluster: Cluster, number: int) -> None:
            async def patched(
                reception: LocalReception, blocks: Sequence[tuple[int, bytes]]
            ) -> None:
                if only(cluster, number, reception._holder):
                    await act()
                await store(reception, blocks)

            monkeypatch.setattr(LocalReception, "store", patched)

        return sicken

    def at_lease(lie: Callable[[bytes], Awaitable[bytes]]) -> Sicken:
        def sicken(cluster: Cluster, number: int) -> None:
            async def patched(reception: LocalReception) -> bytes:
                lease = await finish(reception)
                return await lie(lease) if only(cluster, number, reception._holder) else lease

            monkeypatch.setattr(LocalReception, "finish", patched)

        return sicken

    def speaks(handler: Callable[[Stream], Awaitable[None]]) -> Sicken:
        return lambda cluster, number: cluster[number].network.set_handler(PROTOCOL, handler)

    async def full() -> None:
        raise Refused("no room", Refusal.FULL)

    async def forged(lease: bytes) -> bytes:
        return lease[:-1] + bytes([lease[-1] ^ 1])

    async def never(_: bytes) -> bytes:
        await trio.sleep_forever()
        raise AssertionError

    return {
        "paused": lambda cluster, number: cluster.hub.pause(cluster.peer(number)),
        "works for ever": at_offer(trio.sleep_forever),
        "full": at_offer(full),
        "never stores": at_store(trio.sleep_forever),
        "full half-way": at_store(full),
        "never leases": at_lease(never),
        "forges its lease": at_lease(forged),
        "speaks nonsense": speaks(garbage),
        "does not read": speaks(deaf),
        "closes": speaks(closing),
    }


KINDS = [
    "paused",
    "works for ever",
    "full",
    "never stores",
    "full half-way",
    "never leases",
    "forges its lease",
    "speaks nonsense",
    "does not read",
    "closes",
]


@pytest.mark.parametrize("kind", KINDS)
def test_the_slot_goes_elsewhere_and_little_time_is_lost(
    kind: str, sick: dict[str, Sicken]
) -> None:
    seconds, holders = healthy()
    victim = holders[0]

    async def main() -> None:
        async with open_cluster(6) as cluster:
            sick[kind](cluster, victim)
            result, longer, now = await add(cluster)
            assert result.protected
            assert victim not in now.values()
            assert len(set(now.values())) == 3
            assert longer - seconds <= STALL_SECONDS

    run_deterministic(1, main)


@pytest.mark.parametrize("kind", KINDS)
def test_where_nobody_else_is_the_answer_is_clear(kind: str, sick: dict[str, Sicken]) -> None:
    """Three nodes for three slots: the add ends, and says what it does not survive."""

    async def main() -> None:
        async with open_cluster(3) as cluster:
            await cluster[0].add_stream(stream(), AddOptions(local_only=True))
            sick[kind](cluster, 2)
            result, seconds, now = await add(cluster)
            assert 2 not in now.values()
            assert result.guarantee is not None
            assert result.guarantee.peers == 0
            assert any("more storage nodes are needed" in warning for warning in result.warnings)
            assert seconds <= STALL_SECONDS + 1

    run_deterministic(1, main)


def test_two_that_never_lease_one_in_the_place_of_the_other_cost_no_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seconds, holders = healthy()
    finish = LocalReception.finish
    victims = {holders[0]}

    def beside_victims() -> tuple[float, dict[int, int]]:
        found: list[tuple[float, dict[int, int]]] = []

        async def main() -> None:
            async with open_cluster(6) as cluster:

                async def patched(reception: LocalReception) -> bytes:
                    if any(only(cluster, number, reception._holder) for number in victims):
                        await trio.sleep_forever()
                    return await finish(reception)

                monkeypatch.setattr(LocalReception, "finish", patched)
                result, longer, now = await add(cluster)
                assert result.protected
                found.append((longer - seconds, now))

        run_deterministic(1, main)
        return found[0]

    victims.add(beside_victims()[1][0])  # whoever took the slot of the first
    lost, now = beside_victims()
    assert len(victims) == 2
    assert not victims & set(now.values())
    assert SLOT_STALL_SECONDS + SLOT_STALL_AGAIN_SECONDS < lost < 5


def test_a_slow_disk_everywhere_is_no_reason_to_move(monkeypatch: pytest.MonkeyPatch) -> None:
    """All holders take ten seconds for each batch: nobody is slower than the others."""
    store = LocalReception.store

    async def slow(reception: LocalReception, blocks: Sequence[tuple[int, bytes]]) -> None:
        await trio.sleep(10)
        await store(reception, blocks)

    _, holders = healthy()
    monkeypatch.setattr(LocalReception, "store", slow)

    async def main() -> None:
        async with open_cluster(6) as cluster:
            result, _, now = await add(cluster)
            assert result.protected
            assert now == holders

    run_deterministic(1, main)


# --- Nobody else has room ----------------------------------------------------------------

SLOT_ROOM = NodeOptions(capacity_bytes=5_000_000, memory_cache_bytes=0)
CLIENT = NodeOptions(role=Role.CLIENT, memory_cache_bytes=0)


async def add_by_a_client(cluster: Cluster) -> tuple[AddResult, float]:
    """What a client's add with 2+1 gives, and its seconds."""
    begun = trio.current_time()
    result = await cluster[0].add_stream(stream(), AddOptions(code=(2, 1)))
    return result, trio.current_time() - begun


async def start_client_and_holders(cluster: Cluster, holders: int) -> None:
    """Each of them has room for one slot."""
    await cluster.start(0, CLIENT)
    for number in range(1, holders + 1):
        await cluster.start(number, replace(SLOT_ROOM, label=f"machine-{number}"))


@pytest.mark.parametrize("kind", ["works for ever", "never stores", "never leases"])
def test_a_stuck_holder_that_nobody_can_replace_is_answered_for_in_time(
    kind: str, sick: dict[str, Sicken]
) -> None:
    """Three holders with room for a slot each, one of them stuck: the add says so."""

    async def main() -> None:
        async with open_cluster(0) as cluster:
            await start_client_and_holders(cluster, 3)
            sick[kind](cluster, 2)
            result, seconds = await add_by_a_client(cluster)
            assert not result.protected
            said = [one for one in result.warnings if str(cluster.peer(2)) in one]
            assert ["is busy or hung" in one for one in said] == [True]
            assert any("not protected: 1 slots" in one for one in result.warnings)
            assert seconds < 5
            async with cluster[0].read(result.cid) as chunks:
                assert b"".join([chunk async for chunk in chunks]) == DATA

    run_deterministic(1, main)


def test_so_is_the_only_holder_that_there_is(sick: dict[str, Sicken]) -> None:
    """It would hold every slot, so that there is nobody to compare it with."""

    async def main() -> None:
        async with open_cluster(0) as cluster:
            await cluster.start(0, CLIENT)
            await cluster.start(1)
            sick["works for ever"](cluster, 1)
            begun = trio.current_time()
            with pytest.raises(InsufficientPeers, match=r"busy or hung.* add it again when"):
                await cluster[0].add_stream(stream(), AddOptions(code=(2, 1)))
            assert SLOT_LAST_SECONDS < trio.current_time() - begun < 5
            (pin,) = await cluster[0].pins()
            async with cluster[0].read(pin.cid) as chunks:
                assert b"".join([chunk async for chunk in chunks]) == DATA

    run_deterministic(1, main)


def test_two_of_which_one_takes_the_place_of_the_other_add_up_to_no_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Four holders for three slots: two that work for ever have the third slot in turn."""
    offer = LocalHolder.offer_slot

    async def main() -> None:
        async with open_cluster(0) as cluster:
            await start_client_and_holders(cluster, 4)
            well = await add_by_a_client(cluster)
            status = await cluster[0].status(well[0].cid)
            holders = {p for s in status.segments[0].slots for p in s.holders}
            spare = ({cluster.peer(n) for n in (1, 2, 3, 4)} - holders).pop()
            stuck = {spare, max(holders)}

        async with open_cluster(0) as cluster:
            await start_client_and_holders(cluster, 4)

            async def patched(holder: LocalHolder, *given: object) -> object:
                if holder._network.peer_id in stuck:
                    await trio.sleep_forever()
                return await offer(holder, *given)  # type: ignore[arg-type]  # handed on

            monkeypatch.setattr(LocalHolder, "offer_slot", patched)
            result, seconds = await add_by_a_client(cluster)
            assert not result.protected
            passed_over = [one for one in result.warnings if one.startswith("passed over")]
            assert {str(peer) in " ".join(passed_over) for peer in stuck} == {True}
            assert seconds < 5

    run_deterministic(1, main)


@pytest.mark.parametrize(("holders", "pause_seconds"), [(3, 10), (1, 3.75)])
def test_one_that_nobody_can_replace_may_be_slow(
    holders: int, pause_seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten seconds for each batch where all take as long, nearly four where there is one."""
    store = LocalReception.store

    async def slow(reception: LocalReception, blocks: Sequence[tuple[int, bytes]]) -> None:
        await trio.sleep(pause_seconds)
        await store(reception, blocks)

    monkeypatch.setattr(LocalReception, "store", slow)

    async def main() -> None:
        async with open_cluster(0) as cluster:
            await cluster.start(0, CLIENT)
            for _ in range(holders):
                await cluster.start(len(cluster.nodes))
            result, seconds = await add_by_a_client(cluster)
            assert result.protected
            assert seconds > pause_seconds

    run_deterministic(1, main)


def test_the_only_holder_may_take_its_many_slots_one_after_the_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A holder takes four slots of one peer at a time: the fifth has no news while the others
    get on, however long that is."""
    store = LocalReception.store

    async def slow(reception: LocalReception, blocks: Sequence[tuple[int, bytes]]) -> None:
        await trio.sleep(3.5)
        await store(reception, blocks)

    monkeypatch.setattr(LocalReception, "store", slow)

    async def main() -> None:
        async with open_cluster(0) as cluster:
            await cluster.start(0, CLIENT)
            await cluster.start(1)
            result = await cluster[0].add_stream(stream(), AddOptions(code=(4, 2)))
            assert result.protected

    run_deterministic(1, main)
