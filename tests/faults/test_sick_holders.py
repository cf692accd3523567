"""Holders that are silent, full, endlessly busy or lying while a slot is brought to them: the
add ends protected on others, and loses less than five seconds by them, exactly measured."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

import pytest
import trio

from dstore.core.wire import PROTOCOL, Refusal
from dstore.errors import Refused
from dstore.limits import SLOT_STALL_AGAIN_SECONDS, SLOT_STALL_SECONDS, SLOT_WATCH_SECONDS
from dstore.network.streams import Stream
from dstore.service.holder import LocalHolder, LocalReception
from dstore.service.progress import AddOptions, AddResult
from dstore.testing.cluster import Cluster, open_cluster
from dstore.testing.deterministic import run_deterministic

DATA = random.Random(7).randbytes(9_000_000)
STALL_SECONDS = SLOT_STALL_SECONDS + 2 * SLOT_WATCH_SECONDS
"""What a holder without news may cost; one that says no costs less."""

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
