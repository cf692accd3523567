"""Blocks from named peers: requests to one peer are joined, and each peer's record is kept.

This file decides how to ask one peer and how good a peer has been; which peers to ask, and
what to do when they fail, is `retrieve`'s.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from typing import Protocol

import trio

from dstore.core.cid import CID
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
    FETCH_STREAMS_PER_PEER,
    PEER_COOL_OFF_SECONDS,
    PEER_COOL_OFF_SECONDS_MAX,
)
from dstore.service.counters import Counters


class BlockClient(Protocol):
    """The part of the fragments client that reading needs."""

    def get_blocks(
        self, peer: PeerId, cids: Sequence[CID]
    ) -> AbstractAsyncContextManager[AsyncIterator[tuple[CID, bytes | None]]]:
        """The blocks in order as they come, verified; None for those the peer lacks."""
        ...


FaultReport = Callable[[PeerId, str, str], None]


@dataclass(slots=True)
class _Want:
    """One block that somebody waits for."""

    cid: CID
    size: int
    done: trio.Event = field(default_factory=trio.Event)
    data: bytes | None = None
    error: DstoreError | None = None
    abandoned: bool = False


@dataclass(slots=True)
class _PeerQueue:
    """What is wanted of one peer, and how it has done so far."""

    wants: deque[_Want] = field(default_factory=deque)
    streams: int = 0
    failures: int = 0
    cool_until: float = 0.0
    lied: bool = False
    waiting_bytes: int = 0


class BlockFetcher:
    """Fetches verified blocks from peers; made by `open_fetcher`."""

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

    async def fetch(self, peer: PeerId, cid: CID, size: int) -> bytes:
        """The block from `peer`; `size` in bytes is a hint for how much to ask at a time.

        Raises NotFoundError where the peer has not got it, HashMismatch or ProtocolViolation
        where it answers wrongly, NetworkError where it does not answer.
        """
        queue = self._queue(peer)
        want = _Want(cid, size)
        queue.wants.append(want)
        queue.waiting_bytes += size
        if queue.streams < FETCH_STREAMS_PER_PEER:
            queue.streams += 1
            self._nursery.start_soon(self._serve, peer, queue)
        try:
            await want.done.wait()
        finally:
            want.abandoned = True
            queue.waiting_bytes -= size
        if want.error is not None:
            raise want.error
        if want.data is None:
            raise NotFoundError(f"{peer} has no block {cid}")
        return want.data

    def best_first(self, peers: Iterable[PeerId]) -> list[PeerId]:
        """The peers that may be asked, the most promising first: those that never lied, not
        cooling off, least queued.  Peers that lied are left out."""
        now = trio.current_time()

        def rank(peer: PeerId) -> tuple[bool, int, int, bytes]:
            queue = self._peers.get(peer)
            if queue is None:
                return (False, 0, 0, peer.binary)
            return (queue.cool_until > now, queue.failures, queue.waiting_bytes, peer.binary)

        return sorted((peer for peer in peers if not self.has_lied(peer)), key=rank)

    def has_lied(self, peer: PeerId) -> bool:
        """Whether the peer has served wrong bytes since this node started."""
        queue = self._peers.get(peer)
        return queue is not None and queue.lied

    def is_cooling(self, peer: PeerId) -> bool:
        """Whether the peer failed or stalled lately: others go first."""
        queue = self._peers.get(peer)
        return queue is not None and queue.cool_until > trio.current_time()

    def stalled(self, peer: PeerId) -> None:
        """Note that somebody else answered while this peer was still silent."""
        self.counters.late_answers += 1
        self._failed(self._queue(peer))

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
        try:
            async with self._client.get_blocks(peer, [want.cid for want in batch]) as blocks:
                async for _, data in blocks:
                    want = batch[answered]
                    answered += 1
                    want.data = data
                    if data is not None:
                        self.counters.fetched_blocks += 1
                        self.counters.fetched_bytes += len(data)
                    want.done.set()
                    queue.failures = 0
        except (HashMismatch, ProtocolViolation) as error:
            queue.lied = True
            self._on_fault(peer, type(error).__name__, str(error))
            self._fail(batch[answered:], error)
        except DstoreError as error:
            self._failed(queue)
            self._fail(batch[answered:], error)
        finally:
            # Cancelled, or an answer shorter than the question: nobody waits for ever.
            for want in batch[answered:]:
                want.done.set()

    @staticmethod
    def _fail(wants: Iterable[_Want], error: DstoreError) -> None:
        for want in wants:
            want.error = error
            want.done.set()


def _next_batch(queue: _PeerQueue) -> list[_Want]:
    """As many queued wants as fit one request, those given up left out."""
    batch: list[_Want] = []
    size = 0
    while queue.wants and len(batch) < FETCH_BATCH_BLOCKS_MAX:
        want = queue.wants[0]
        if batch and size + want.size > FETCH_BATCH_BYTES_MAX:
            break
        queue.wants.popleft()
        if not want.abandoned:
            batch.append(want)
            size += want.size
    return batch


@asynccontextmanager
async def open_fetcher(
    client: BlockClient, on_fault: FaultReport, counters: Counters | None = None
) -> AsyncIterator[BlockFetcher]:
    """A fetcher whose requests live inside this context."""
    async with trio.open_nursery() as nursery:
        yield BlockFetcher(client, nursery, on_fault, counters)
        nursery.cancel_scope.cancel()
