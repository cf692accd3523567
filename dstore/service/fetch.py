"""Blocks from named peers: requests to one peer are joined, and each peer's record is kept.

What a peer did lately, as delay and rate, says who is asked first and when somebody else is
asked beside it.  Which peers could have a block, and what to do when none sends it, is the
session's business.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Protocol

import trio

from dstore.core.cid import CID
from dstore.core.estimate import PeerEstimate
from dstore.core.peerid import PeerId
from dstore.errors import (
    DstoreError,
    HashMismatch,
    NotFoundError,
    ProtocolViolation,
)
from dstore.limits import (
    FETCH_BATCH_BLOCKS_MAX,
    FETCH_BATCH_BYTES_MAX,
    FETCH_PEERS_TRACKED_MAX,
    FETCH_STREAM_BYTES,
    FETCH_STREAMS_PER_PEER,
    PEER_COOL_OFF_SECONDS,
    PEER_COOL_OFF_SECONDS_MAX,
)
from dstore.service.counters import Counters


class BlockClient(Protocol):
    """The part of the fragments client that reading needs."""

    def get_blocks(
        self, peer: PeerId, cids: Sequence[CID], *, checked: bool = True
    ) -> AbstractAsyncContextManager[AsyncIterator[tuple[CID, bytes | None]]]:
        """The blocks in order as they come, verified unless `checked` is False; None for those
        the peer lacks."""
        ...


FaultReport = Callable[[PeerId, str, str], None]


@dataclass(frozen=True, slots=True)
class Unchecked:
    """What a peer sent for a block: of no use to anybody but as the input of what is checked."""

    peer: PeerId
    data: bytes


@dataclass(eq=False, slots=True)
class _Want:
    """One block asked of one peer, for all that wait for it."""

    peer: PeerId
    cid: CID
    size: int
    asked_at: float
    patience_seconds: float  # how long the peer is waited for alone
    checked: bool = True
    races: list[Race | Gathering] = field(default_factory=list)


@dataclass(slots=True)
class _PeerQueue:
    """What is wanted of one peer, and how it has done so far."""

    wants: deque[_Want] = field(default_factory=deque)  # not asked for yet
    # By multihash and whether checked, asked for or not.
    pending: dict[tuple[bytes, bool], _Want] = field(default_factory=dict)
    streams: int = 0
    failures: int = 0
    cool_until: float = 0.0
    lied: bool = False
    waiting_bytes: int = 0
    heard_at: float = -math.inf
    estimate: PeerEstimate = field(default_factory=PeerEstimate)


class Race:
    """One block, asked of one peer after another until somebody has sent it.

    A peer that fails is followed by the next at once, a late one, which goes on, after the
    time that its record says.  Nothing runs for a race but the fetcher's own streams.
    """

    def __init__(self, fetcher: BlockFetcher, cid: CID, size: int, *, checked: bool = True) -> None:
        self.winner: PeerId | None = None  # whose block it is
        self._fetcher = fetcher
        self._cid = cid
        self._size = size
        self._checked = checked
        self._pending: list[_Want] = []
        self._news = trio.Event()
        self._data: bytes | None = None
        self._failure: DstoreError | None = None

    @property
    def running(self) -> bool:
        """Whether a peer still may answer."""
        return bool(self._pending)

    async def first(
        self, peers: Iterable[PeerId], within_seconds: float = math.inf
    ) -> bytes | None:
        """The block, from the first of the peers to send it; None where each has failed or is
        late, or the time is over."""
        over_at = trio.current_time() + within_seconds
        for peer in peers:
            now = trio.current_time()
            if now >= over_at:
                break
            want = self._ask(peer)
            with trio.move_on_at(min(now + want.patience_seconds, over_at)):
                while self._data is None and want in self._pending:
                    await self._news.wait()
            if self._data is not None:
                return self._data
        return None

    async def any(self, peers: Iterable[PeerId], seconds: float) -> bytes | None:
        """The block, from whichever of the peers has it, all asked at once; None where none
        has sent it in time."""
        for peer in peers:
            self._ask(peer)
        with trio.move_on_after(seconds):
            while self._data is None and self._pending:
                await self._news.wait()
        return self._data

    def _ask(self, peer: PeerId) -> _Want:
        want = self._fetcher.want(peer, self._cid, self._size, checked=self._checked)
        want.races.append(self)
        self._pending.append(want)
        return want

    async def rest(self) -> bytes:
        """The block, from those that are late.  Raises the last failure where all have failed,
        NotFoundError where nobody was asked."""
        while self._data is None and self._pending:
            await self._news.wait()
        if self._data is not None:
            return self._data
        raise self._failure or NotFoundError("there is nobody to ask")

    def leave(self) -> None:
        """Give up what is under way.  Who was silent all the while, though another way led to
        the block, is remembered for it."""
        for want in self._pending:
            self._fetcher.give_up(want, self)
        self._pending.clear()

    def tell(self, want: _Want, data: bytes | None, failure: DstoreError | None) -> None:
        """What became of a want."""
        self._pending.remove(want)
        if data is None:
            self._failure = failure or NotFoundError(f"{want.peer} has no block {want.cid}")
        elif self._data is None:
            self._data, self.winner = data, want.peer
        self._news.set()
        self._news = trio.Event()


class Gathering:
    """Many blocks, each asked of one peer and taken as it comes; those that do not come are for
    others to fetch.  For each there is a want, and nothing else."""

    def __init__(self, fetcher: BlockFetcher, take: Callable[[CID, bytes], None]) -> None:
        self._fetcher = fetcher
        self._take = take
        self._pending: set[_Want] = set()
        self._news = trio.Event()

    def ask(self, peer: PeerId, cid: CID, size: int) -> None:
        """Ask the peer for a block of about `size` bytes."""
        want = self._fetcher.want(peer, cid, size)
        want.races.append(self)
        self._pending.add(want)

    async def all(self) -> None:
        """Until nothing is under way, or nothing has come for as long as a peer is waited for."""
        while self._pending:
            patience_seconds = max(want.patience_seconds for want in self._pending)
            self._news = trio.Event()
            with trio.move_on_after(patience_seconds) as waiting:
                await self._news.wait()
            if waiting.cancelled_caught:
                return

    def leave(self) -> None:
        """Give up what is under way."""
        for want in self._pending:
            self._fetcher.give_up(want, self)
        self._pending.clear()

    def tell(self, want: _Want, data: bytes | None, failure: DstoreError | None) -> None:
        """What became of a want."""
        self._pending.remove(want)
        if data is not None:
            self._take(want.cid, data)
        self._news.set()


class BlockFetcher:
    """Fetches blocks from peers, verified but for inputs of a decoding; made by `open_fetcher`."""

    def __init__(
        self,
        client: BlockClient,
        nursery: trio.Nursery,
        on_fault: FaultReport,
        counters: Counters | None = None,
    ) -> None:
        self.counters = counters or Counters()
        self._client = client
        self._nursery = nursery
        self._on_fault = on_fault
        self._peers: dict[PeerId, _PeerQueue] = {}

    @contextmanager
    def race(self, cid: CID, size: int, *, checked: bool = True) -> Iterator[Race]:
        """A race for a block of about `size` bytes; what is under way at the end of the block
        is given up."""
        race = Race(self, cid, size, checked=checked)
        try:
            yield race
        finally:
            race.leave()

    @contextmanager
    def gather(self, take: Callable[[CID, bytes], None]) -> Iterator[Gathering]:
        """For many blocks at once, each given to `take` as it comes; what is under way at the
        end of the block is given up."""
        gathering = Gathering(self, take)
        try:
            yield gathering
        finally:
            gathering.leave()

    async def fetch(self, peers: Iterable[PeerId], cid: CID, size: int) -> bytes:
        """The block from one of the peers, the best first; `size` in bytes is about its own.

        Raises what the last of them failed with: NotFoundError where it has not got the block,
        HashMismatch or ProtocolViolation where it answered wrongly, NetworkError where it did
        not answer.
        """
        with self.race(cid, size) as race:
            data = await race.first(self.best_first(peers))
            return await race.rest() if data is None else data

    async def fetch_unchecked(self, peers: Iterable[PeerId], cid: CID, size: int) -> Unchecked:
        """As `fetch`, but what comes is not compared with the CID: whoever asks finds out in
        another way whether it is right, and says so (`lied`) where it is not."""
        with self.race(cid, size, checked=False) as race:
            data = await race.first(self.best_first(peers))
            data = await race.rest() if data is None else data
        assert race.winner is not None
        return Unchecked(race.winner, data)

    def want(self, peer: PeerId, cid: CID, size: int, *, checked: bool = True) -> _Want:
        """For a race: ask the peer for the block, unless that is under way."""
        queue = self._queue(peer)
        want = queue.pending.get((cid.multihash, checked))
        if want is None:
            patience_seconds = self.patience_seconds(peer, size)
            want = _Want(peer, cid, size, trio.current_time(), patience_seconds, checked)
            queue.pending[cid.multihash, checked] = want
            queue.wants.append(want)
            queue.waiting_bytes += size
            # While little is under way, small blocks wait for its end and then travel together.
            busy = queue.streams and queue.waiting_bytes < FETCH_STREAM_BYTES
            if queue.streams < FETCH_STREAMS_PER_PEER and not busy:
                queue.streams += 1
                self._nursery.start_soon(self._serve, peer, queue)
        return want

    def give_up(self, want: _Want, race: Race | Gathering) -> None:
        """For a race: it waits no longer.  A want that nobody waits for is not sent."""
        want.races.remove(race)
        queue = self._queue(want.peer)
        silent = queue.heard_at < want.asked_at
        if silent and trio.current_time() >= want.asked_at + want.patience_seconds:
            self.stalled(want.peer)

    def patience_seconds(self, peer: PeerId, size: int) -> float:
        """How long the peer is waited for alone, should it be asked for `size` bytes now."""
        queue = self._queue(peer)
        return queue.estimate.patience_seconds(queue.waiting_bytes + size)

    def best_first(self, peers: Iterable[PeerId]) -> list[PeerId]:
        """The peers that may be asked, the most promising first: those that never lied, not
        cooling off, soonest done with what they were asked for.  Peers that lied are left
        out."""
        now = trio.current_time()

        def rank(peer: PeerId) -> tuple[bool, int, float, int, bytes]:
            queue = self._peers.get(peer)
            if queue is None:
                return (False, 0, 0.0, 0, peer.binary)
            expected = queue.estimate.expected_seconds(queue.waiting_bytes)
            cooling = queue.cool_until > now
            return (cooling, queue.failures, expected, queue.waiting_bytes, peer.binary)

        return sorted((peer for peer in peers if not self.has_lied(peer)), key=rank)

    def has_lied(self, peer: PeerId) -> bool:
        """Whether the peer has served wrong bytes since this node started."""
        queue = self._peers.get(peer)
        return queue is not None and queue.lied

    def is_cooling(self, peer: PeerId) -> bool:
        """Whether the peer failed or stalled lately: others go first."""
        queue = self._peers.get(peer)
        return queue is not None and queue.cool_until > trio.current_time()

    def lied(self, peer: PeerId, cid: CID) -> None:
        """Note that what the peer sent for the block, unchecked, is something else."""
        self._lied(peer, HashMismatch(f"{peer} sent other bytes than {cid}"))

    def _lied(self, peer: PeerId, error: DstoreError) -> None:
        self._queue(peer).lied = True
        self._on_fault(peer, type(error).__name__, str(error))

    def stalled(self, peer: PeerId) -> None:
        """Note that another way led to a block while this peer was silent."""
        self.counters.late_answers += 1
        queue = self._queue(peer)
        if queue.cool_until <= trio.current_time():  # once for all that waits for the peer
            self._failed(queue)

    def _queue(self, peer: PeerId) -> _PeerQueue:
        queue = self._peers.get(peer)
        if queue is None:
            if len(self._peers) >= FETCH_PEERS_TRACKED_MAX:
                idle = min(
                    (key for key, kept in self._peers.items() if not kept.streams),
                    key=lambda key: self._peers[key].lied,  # what a liar did is worth keeping
                    default=None,
                )
                if idle is not None:
                    del self._peers[idle]
            queue = self._peers[peer] = _PeerQueue()
        return queue

    @staticmethod
    def _failed(queue: _PeerQueue) -> None:
        queue.failures = min(queue.failures + 1, 16)
        pause = min(PEER_COOL_OFF_SECONDS * 2 ** (queue.failures - 1), PEER_COOL_OFF_SECONDS_MAX)
        queue.cool_until = trio.current_time() + pause

    async def _serve(self, peer: PeerId, queue: _PeerQueue) -> None:
        """Ask for what is queued, batch by batch, until nothing is."""
        try:
            while batch := _next_batch(queue):
                await self._ask(peer, queue, batch)
        finally:
            queue.streams -= 1

    async def _ask(self, peer: PeerId, queue: _PeerQueue, batch: list[_Want]) -> None:
        answered = 0
        asked_at = first_at = trio.current_time()
        later_bytes = 0
        failure: DstoreError | None = None
        try:
            cids, checked = [want.cid for want in batch], batch[0].checked
            async with self._client.get_blocks(peer, cids, checked=checked) as blocks:
                async for _, data in blocks:
                    queue.heard_at = now = trio.current_time()
                    if answered == 0:
                        queue.estimate.answered(now - asked_at)
                        first_at = now
                    else:
                        later_bytes += len(data or b"")
                    if data is not None:
                        self.counters.fetched_blocks += 1
                        self.counters.fetched_bytes += len(data)
                    queue.failures = 0
                    answered += 1
                    _end(queue, batch[answered - 1], data)
        except (HashMismatch, ProtocolViolation) as error:
            self._lied(peer, error)
            failure = error
        except DstoreError as error:
            self._failed(queue)
            failure = error
        finally:
            # Of the whole answer: single blocks may have lain in a buffer already.
            queue.estimate.moved(later_bytes, queue.heard_at - first_at)
            # Cancelled, or an answer shorter than the question: nobody waits for ever.
            for want in batch[answered:]:
                _end(queue, want, None, failure)


def _end(
    queue: _PeerQueue, want: _Want, data: bytes | None, failure: DstoreError | None = None
) -> None:
    """A want is over: tell those that wait."""
    key = want.cid.multihash, want.checked
    if queue.pending.get(key) is want:
        del queue.pending[key]
    queue.waiting_bytes -= want.size
    races, want.races = want.races, []
    for race in races:
        race.tell(want, data, failure)


def _next_batch(queue: _PeerQueue) -> list[_Want]:
    """As many queued wants as fit one request, all checked or all not, those given up left
    out."""
    batch: list[_Want] = []
    size = 0
    while queue.wants and len(batch) < FETCH_BATCH_BLOCKS_MAX:
        want = queue.wants[0]
        if batch and size + want.size > FETCH_BATCH_BYTES_MAX:
            break
        if batch and want.checked != batch[0].checked:
            break
        queue.wants.popleft()
        if want.races:
            batch.append(want)
            size += want.size
        else:
            _end(queue, want, None)
    return batch


@asynccontextmanager
async def open_fetcher(
    client: BlockClient, on_fault: FaultReport, counters: Counters | None = None
) -> AsyncIterator[BlockFetcher]:
    """A fetcher whose requests live inside this context."""
    async with trio.open_nursery() as nursery:
        yield BlockFetcher(client, nursery, on_fault, counters)
        nursery.cancel_scope.cancel()
