"""Blocks from one peer: joined requests, what is remembered of the peer, and giving up."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from dstore.core.cid import CID, RAW
from dstore.core.peerid import PeerId
from dstore.errors import (
    BudgetExceeded,
    ConnectionLost,
    DstoreError,
    HashMismatch,
    NotFoundError,
    ProtocolViolation,
    Refused,
)
from dstore.limits import (
    FETCH_BATCH_BLOCKS_MAX,
    FETCH_BATCH_BYTES_MAX,
    FETCH_PEERS_TRACKED_MAX,
    FETCH_STREAMS_PER_PEER,
    HEDGE_FACTOR,
    HEDGE_SECONDS_UNKNOWN,
    MIB,
    PEER_COOL_OFF_SECONDS,
    PEER_COOL_OFF_SECONDS_MAX,
)
from dstore.service.fetch import open_fetcher
from dstore.testing.deterministic import peer_number

PEER = peer_number(1)


def block(number: int) -> tuple[CID, bytes]:
    data = b"block %d" % number
    return CID.of(RAW, data), data


class Client:
    """Answers from a dictionary, when it may; notes what was asked together."""

    def __init__(self, count: int = 0) -> None:
        self.blocks = dict(block(number) for number in range(count))
        self.asked: list[int] = []
        self.unchecked: list[CID] = []
        self.open = 0
        self.may = trio.Event()
        self.may.set()
        self.error: DstoreError | None = None
        self.error_after = 0
        self.short = False

    @asynccontextmanager
    async def get_blocks(
        self, peer: PeerId, cids: Sequence[CID], *, checked: bool = True
    ) -> AsyncIterator[AsyncIterator[tuple[CID, bytes | None]]]:
        self.asked.append(len(cids))
        self.unchecked += [] if checked else cids
        self.open += 1

        async def answers() -> AsyncIterator[tuple[CID, bytes | None]]:
            for number, cid in enumerate(cids):
                await self.may.wait()
                if self.error is not None and number >= self.error_after:
                    raise self.error
                if self.short and number == len(cids) - 1:
                    return
                yield cid, self.blocks.get(cid)

        try:
            yield answers()
        finally:
            self.open -= 1


faults: list[tuple[PeerId, str]] = []


def note(peer: PeerId, kind: str, detail: str) -> None:
    faults.append((peer, kind))


@pytest.fixture(autouse=True)
def _no_faults() -> None:
    faults.clear()


async def test_requests_that_wait_travel_together() -> None:
    client = Client(20)
    client.may = trio.Event()
    got: dict[CID, bytes] = {}
    async with open_fetcher(client, note) as fetcher, trio.open_nursery() as nursery:

        async def fetch(cid: CID) -> None:
            got[cid] = await fetcher.fetch([PEER], cid, 10)

        for cid in client.blocks:
            nursery.start_soon(fetch, cid)
        await wait_all_tasks_blocked()
        client.may.set()
    assert got == client.blocks
    assert len(client.asked) <= FETCH_STREAMS_PER_PEER


@pytest.mark.parametrize(("size", "asked"), [(10, [1, 9]), (MIB, [1, 4, 4, 1])])
async def test_small_blocks_wait_for_the_request_under_way_and_large_ones_do_not(
    size: int, asked: list[int]
) -> None:
    client = Client(10)
    client.may = trio.Event()
    async with open_fetcher(client, note) as fetcher, trio.open_nursery() as nursery:
        first, *others = client.blocks
        nursery.start_soon(fetcher.fetch, [PEER], first, size)
        await wait_all_tasks_blocked()
        for cid in others:
            nursery.start_soon(fetcher.fetch, [PEER], cid, size)
        await wait_all_tasks_blocked()
        assert client.open == len(asked[:2]) - (size < MIB)
        client.may.set()
    assert client.asked == asked


@pytest.mark.parametrize(
    ("count", "size", "largest"),
    [
        (600, 10, FETCH_BATCH_BLOCKS_MAX),
        (20, MIB, FETCH_BATCH_BYTES_MAX // MIB),
        (3, 3 * FETCH_BATCH_BYTES_MAX, 1),
    ],
)
async def test_a_request_is_bounded_in_blocks_and_bytes(
    count: int, size: int, largest: int
) -> None:
    client = Client(count)
    async with open_fetcher(client, note) as fetcher, trio.open_nursery() as nursery:
        for cid in client.blocks:
            nursery.start_soon(fetcher.fetch, [PEER], cid, size)
    assert sum(client.asked) == count
    assert max(client.asked) <= largest


async def test_a_block_that_the_peer_lacks() -> None:
    async with open_fetcher(Client(), note) as fetcher:
        with pytest.raises(NotFoundError, match="has no block"):
            await fetcher.fetch([PEER], block(1)[0], 10)
        assert not fetcher.is_cooling(PEER)


async def test_an_answer_shorter_than_the_question_leaves_nobody_waiting() -> None:
    client = Client(2)
    client.short = True
    async with open_fetcher(client, note) as fetcher:
        with trio.fail_after(5), pytest.raises(NotFoundError):
            await fetcher.fetch([PEER], block(1)[0], 10)


@pytest.mark.parametrize("error", [HashMismatch("wrong"), ProtocolViolation("odd")])
async def test_a_liar_is_named_and_not_asked_again(error: DstoreError) -> None:
    client = Client(2)
    client.error = error
    other = peer_number(2)
    async with open_fetcher(client, note) as fetcher:
        assert set(fetcher.best_first([PEER, other])) == {PEER, other}
        with pytest.raises(type(error)):
            await fetcher.fetch([PEER], block(0)[0], 10)
        assert fetcher.has_lied(PEER)
        assert fetcher.best_first([PEER, other]) == [other]
    assert faults == [(PEER, type(error).__name__)]


@pytest.mark.parametrize(
    "error", [ConnectionLost("gone"), Refused("busy", "busy"), BudgetExceeded("much")]
)
async def test_a_failure_reaches_those_behind_it_and_ends_nothing_else(error: DstoreError) -> None:
    """Also an error that nobody thought of: it must not end the node."""
    client = Client(6)
    client.error, client.error_after = error, 2
    client.may = trio.Event()
    got: list[str] = []
    async with open_fetcher(client, note) as fetcher, trio.open_nursery() as nursery:

        async def fetch(cid: CID) -> None:
            try:
                await fetcher.fetch([PEER], cid, MIB)
                got.append("block")
            except DstoreError as failure:
                got.append(type(failure).__name__)

        for cid in client.blocks:
            nursery.start_soon(fetch, cid)
        await wait_all_tasks_blocked()
        client.may.set()
        with trio.fail_after(5):
            while len(got) < 6:
                await wait_all_tasks_blocked()
        assert fetcher.is_cooling(PEER)
        client.error = None
        assert await fetcher.fetch([PEER], *block(0)[:1], 10) == block(0)[1]
    assert set(got) == {"block", type(error).__name__}
    assert faults == []


async def test_failing_peers_cool_off_for_longer_and_longer(autojump_clock: MockClock) -> None:
    client = Client(1)
    client.error = ConnectionLost("gone")
    async with open_fetcher(client, note) as fetcher:
        pauses = []
        for _ in range(12):
            with pytest.raises(ConnectionLost):
                await fetcher.fetch([PEER], block(0)[0], 10)
            begun = trio.current_time()
            for _ in range(PEER_COOL_OFF_SECONDS_MAX + 1):
                if fetcher.is_cooling(PEER):
                    await trio.sleep(1)
            pauses.append(trio.current_time() - begun)
        assert pauses[:3] == [PEER_COOL_OFF_SECONDS * factor for factor in (1, 2, 4)]
        assert pauses[-1] == PEER_COOL_OFF_SECONDS_MAX
        # One good answer, and the next failure is a first one again.
        client.error = None
        await fetcher.fetch([PEER], block(0)[0], 10)
        fetcher.stalled(PEER)
        await trio.sleep(PEER_COOL_OFF_SECONDS)
        assert not fetcher.is_cooling(PEER)


async def test_the_best_peers_first() -> None:
    good, cooling, busy = (peer_number(n) for n in (3, 4, 5))
    client = Client(1)
    client.may = trio.Event()
    async with open_fetcher(client, note) as fetcher, trio.open_nursery() as nursery:
        fetcher.stalled(cooling)
        nursery.start_soon(fetcher.fetch, [busy], block(0)[0], 10)
        await wait_all_tasks_blocked()
        assert fetcher.best_first([cooling, busy, good]) == [good, busy, cooling]
        client.may.set()


async def test_what_is_given_up_is_not_asked_for() -> None:
    client = Client(40)
    client.may = trio.Event()
    async with open_fetcher(client, note) as fetcher, trio.open_nursery() as nursery:
        for cid in list(client.blocks)[: 2 * FETCH_STREAMS_PER_PEER]:
            nursery.start_soon(fetcher.fetch, [PEER], cid, FETCH_BATCH_BYTES_MAX)
        await wait_all_tasks_blocked()
        before = sum(client.asked)
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as leaving:
                for cid in list(client.blocks)[10:]:
                    leaving.start_soon(fetcher.fetch, [PEER], cid, 10)
                await wait_all_tasks_blocked()
                scope.cancel()
        client.may.set()
        await wait_all_tasks_blocked()
        assert sum(client.asked) == 2 * FETCH_STREAMS_PER_PEER >= before


async def test_what_is_known_of_peers_is_bounded_and_liars_stay_longest() -> None:
    client = Client(1)
    async with open_fetcher(client, note) as fetcher:
        client.error = HashMismatch("wrong")
        with pytest.raises(HashMismatch):
            await fetcher.fetch([PEER], block(0)[0], 10)
        for number in range(10, FETCH_PEERS_TRACKED_MAX + 100):
            fetcher.stalled(peer_number(number))
        assert len(fetcher._peers) == FETCH_PEERS_TRACKED_MAX
        assert fetcher.has_lied(PEER)


async def test_leaving_ends_what_is_under_way() -> None:
    client = Client(1)
    client.may = trio.Event()
    async with trio.open_nursery() as nursery:
        async with open_fetcher(client, note) as fetcher:
            nursery.start_soon(fetcher.fetch, [PEER], block(0)[0], 10)
            await wait_all_tasks_blocked()
            assert client.open == 1
            nursery.cancel_scope.cancel()
    assert client.open == 0


async def test_checked_and_unchecked_blocks_of_one_peer_travel_apart() -> None:
    client = Client(6)
    client.may = trio.Event()
    async with open_fetcher(client, note) as fetcher, trio.open_nursery() as nursery:
        for number, cid in enumerate(client.blocks):
            fetch = fetcher.fetch if number % 2 else fetcher.fetch_unchecked
            nursery.start_soon(fetch, [PEER], cid, 10)
            await wait_all_tasks_blocked()
        client.may.set()
    assert len(client.asked) == 6  # they came in turns
    assert sorted(client.unchecked) == sorted(list(client.blocks)[::2])


async def test_one_block_wanted_checked_and_unchecked_is_checked_for_whom_that_matters() -> None:
    client = Client(1)
    (cid, data), *_ = client.blocks.items()
    async with open_fetcher(client, note) as fetcher, trio.open_nursery() as nursery:
        nursery.start_soon(fetcher.fetch_unchecked, [PEER], cid, 10)
        assert await fetcher.fetch([PEER], cid, 10) == data
    assert client.asked == [1, 1]
    assert client.unchecked == [cid]


async def test_who_sent_something_else_unchecked_is_named_and_not_asked_again() -> None:
    client = Client(2)
    first, second = client.blocks
    async with open_fetcher(client, note) as fetcher:
        sent = await fetcher.fetch_unchecked([PEER], first, 10)
        assert sent.peer == PEER
        fetcher.lied(sent.peer, first)
        assert faults == [(PEER, "HashMismatch")]
        assert fetcher.has_lied(PEER)
        with pytest.raises(NotFoundError):
            await fetcher.fetch_unchecked([PEER], second, 10)


# --- Races -------------------------------------------------------------------------------


class Slow:
    """Peers that answer after a time of their own; None: never."""

    def __init__(self, seconds: dict[PeerId, float | None]) -> None:
        self.seconds = seconds
        self.asked: list[tuple[PeerId, float]] = []

    @asynccontextmanager
    async def get_blocks(
        self, peer: PeerId, cids: Sequence[CID], *, checked: bool = True
    ) -> AsyncIterator[AsyncIterator[tuple[CID, bytes | None]]]:
        self.asked.append((peer, trio.current_time()))

        async def answers() -> AsyncIterator[tuple[CID, bytes | None]]:
            for cid in cids:
                wait = self.seconds[peer]
                await trio.sleep(math.inf if wait is None else wait)
                yield cid, block(1)[1]

        yield answers()


async def test_the_next_peer_is_asked_when_the_first_is_late(autojump_clock: MockClock) -> None:
    silent, good = peer_number(1), peer_number(2)
    client = Slow({silent: None, good: 0.05})
    async with open_fetcher(client, note) as fetcher:
        with fetcher.race(block(1)[0], 10) as race:
            assert await race.first([silent, good]) == block(1)[1]
        assert client.asked == [(silent, 0.0), (good, pytest.approx(HEDGE_SECONDS_UNKNOWN))]
        # It was silent all the while, and so others go first from now on; the other has a record.
        assert fetcher.is_cooling(silent)
        assert fetcher.best_first([silent, good]) == [good, silent]
        assert fetcher.patience_seconds(good, 10) == pytest.approx(HEDGE_FACTOR * 0.05)


async def test_nobody_else_is_asked_once_the_time_is_over(autojump_clock: MockClock) -> None:
    peers = [peer_number(number) for number in (1, 2, 3)]
    client = Slow(dict.fromkeys(peers))
    within_seconds = HEDGE_SECONDS_UNKNOWN + 0.01
    async with open_fetcher(client, note) as fetcher:
        with fetcher.race(block(1)[0], 10) as race:
            assert await race.first(peers, within_seconds) is None
            assert race.running
        assert [peer for peer, _ in client.asked] == peers[:2]
        assert trio.current_time() == pytest.approx(within_seconds)


async def test_a_late_peer_may_still_win(autojump_clock: MockClock) -> None:
    late, silent = peer_number(1), peer_number(2)
    client = Slow({late: 0.3, silent: None})
    async with open_fetcher(client, note) as fetcher:
        with fetcher.race(block(1)[0], 10) as race:
            assert await race.first([late, silent]) == block(1)[1]
        assert trio.current_time() == pytest.approx(0.3)
        assert not fetcher.is_cooling(late)


async def test_all_are_asked_at_once_where_anybody_may_have_it(autojump_clock: MockClock) -> None:
    peers = [peer_number(number) for number in (1, 2, 3)]
    client = Slow({peers[0]: None, peers[1]: 0.02, peers[2]: 9})
    async with open_fetcher(client, note) as fetcher:
        with fetcher.race(block(1)[0], 10) as race:
            assert await race.any(peers, 1) == block(1)[1]
        assert trio.current_time() == pytest.approx(0.02)
        assert {when for _, when in client.asked} == {0.0}
        # Nobody was silent for long enough to be blamed.
        assert not any(fetcher.is_cooling(peer) for peer in peers)
        with fetcher.race(block(1)[0], 10) as race:
            assert await race.any(peers[:1], 0.5) is None
            assert race.running


async def test_two_races_for_one_block_share_the_request(autojump_clock: MockClock) -> None:
    client = Slow({PEER: 0.1})
    got: list[bytes] = []
    async with open_fetcher(client, note) as fetcher, trio.open_nursery() as nursery:

        async def fetch() -> None:
            got.append(await fetcher.fetch([PEER], block(1)[0], 10))

        nursery.start_soon(fetch)
        nursery.start_soon(fetch)
    assert got == [block(1)[1]] * 2
    assert len(client.asked) == 1


async def test_the_faster_peer_is_asked_first(autojump_clock: MockClock) -> None:
    slow, fast = peer_number(1), peer_number(2)
    client = Slow({slow: 0.15, fast: 0.01})
    async with open_fetcher(client, note) as fetcher:
        for peer in (slow, fast):
            await fetcher.fetch([peer], block(1)[0], 10)
        assert fetcher.best_first([slow, fast]) == [fast, slow]


async def test_a_peer_that_falls_silent_is_found_out_once(autojump_clock: MockClock) -> None:
    silent, good = peer_number(1), peer_number(2)
    client = Slow({silent: 0.001, good: 0.04})
    async with open_fetcher(client, note) as fetcher:
        await fetcher.fetch([silent], block(1)[0], 10)
        client.seconds[silent] = None
        waits = []
        for _ in range(10):
            begun = trio.current_time()
            with fetcher.race(block(1)[0], 10) as race:
                assert await race.first(fetcher.best_first([silent, good])) == block(1)[1]
            waits.append(trio.current_time() - begun)
        assert sorted(waits) == pytest.approx([0.04] * 9 + [0.14])


# --- Many at once --------------------------------------------------------------------------


async def test_many_blocks_are_taken_as_they_come_and_the_others_are_left() -> None:
    client, got = Client(5), dict[CID, bytes]()
    missing = block(99)[0]
    async with open_fetcher(client, note) as fetcher:
        with fetcher.gather(got.__setitem__) as gathering:
            for cid in (*client.blocks, missing):
                gathering.ask(PEER, cid, 10)
            await gathering.all()
    assert got == client.blocks
    assert sum(client.asked) == 6
    assert len(client.asked) < 6


async def test_a_silent_peer_is_not_gathered_from_for_long(autojump_clock: MockClock) -> None:
    client, got = Client(2), dict[CID, bytes]()
    client.may = trio.Event()
    async with open_fetcher(client, note) as fetcher:
        begun = trio.current_time()
        with fetcher.gather(got.__setitem__) as gathering:
            for cid in client.blocks:
                gathering.ask(PEER, cid, 10)
            await gathering.all()
        assert trio.current_time() - begun == pytest.approx(HEDGE_SECONDS_UNKNOWN)
        assert fetcher.is_cooling(PEER)
    assert got == {}
