"""The asking side of `/dstore/fragments/1.0.0`: streams pooled per peer and used again.

Every block is checked against its CID before it is handed on.  Errors name the peer and end
only the stream that they happened on; choosing another peer is the caller's business.
docs/reference/wire.md.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from types import TracebackType
from typing import TypeVar

import trio

from dstore.core import wire
from dstore.core.bandwidth import Traffic
from dstore.core.cid import CID
from dstore.core.peerid import PeerId
from dstore.core.wirecodec import decode_answer, digest_of, encode_request
from dstore.errors import (
    BudgetExceeded,
    ConnectionLost,
    DeadlineExceeded,
    HashMismatch,
    ProtocolViolation,
    Refused,
)
from dstore.limits import (
    CHALLENGES_MAX,
    DIAL_SECONDS,
    FRAGMENT_STREAMS_IDLE_MAX,
    FRAGMENT_STREAMS_IDLE_PER_PEER_MAX,
    FRAGMENT_STREAMS_PER_PEER_MAX,
    GET_BLOCKS_MAX,
    HANDSHAKE_SECONDS,
    HAVE_BYTES_MAX,
    IDLE_STREAM_SECONDS,
    INLINE_HASH_BYTES,
    MESSAGE_SECONDS,
    NEGOTIATE_SECONDS,
    PROGRESS_SECONDS,
    REQUEST_SECONDS,
    SLOT_SILENCE_SECONDS,
    VERIFY_BATCH_BYTES,
)
from dstore.network.fragment_stream import FragmentStream
from dstore.network.slot_upload import LoadBlock, PutProgress, ReadFragment, SlotBlock, SlotUpload
from dstore.network.streams import Network
from dstore.runtime import JointWork, Runtime

__all__ = ["Blocks", "FragmentsClient", "PutProgress", "SlotBlock"]

A = TypeVar("A")

Blocks = AsyncGenerator[tuple[CID, bytes | None], None]


_OPEN_SECONDS = DIAL_SECONDS + HANDSHAKE_SECONDS + NEGOTIATE_SECONDS
_HAVE_SEGMENTS = 64  # in one exchange: an answer of the largest holdings stays within bounds


class _Exchange:
    """A request sent on a stream, and its answers."""

    def __init__(self, link: FragmentStream, silence_seconds: float | None = None) -> None:
        """`silence_seconds`: how long the peer may say nothing, where that is less than what
        answers in general may take."""
        self.link = link
        self._first_seconds = silence_seconds or REQUEST_SECONDS
        self._next_seconds = silence_seconds or PROGRESS_SECONDS
        self.first: wire.Answer | None = None  # read while the stream was proved to be alive
        self.finished = False  # and so the stream fit for the next one
        self.answer_bytes = 0

    async def begin(self, request: wire.Request) -> None:
        """Send the request and wait for the first answer."""
        await self.link.send(encode_request(request))
        self.first = await self._read(self._first_seconds)

    async def answer(self) -> wire.Answer:
        """The next answer; a refusal is raised, and ends the exchange."""
        answer, self.first = self.first, None
        if answer is None:
            answer = await self._read(self._next_seconds)
        if isinstance(answer, wire.Refusing):
            self.finished = True
            told = f": {answer.text}" if answer.text else ""
            raise Refused(f"{self.link.peer} refuses ({answer.reason}){told}", answer.reason)
        return answer

    async def expect(self, kind: type[A]) -> A:
        """The next answer, which must be of this kind."""
        answer = await self.answer()
        if not isinstance(answer, kind):
            raise self.violation(f"answered {type(answer).__name__} for {kind.__name__}")
        return answer

    async def _read(self, patience_seconds: float) -> wire.Answer:
        message = await self.link.read_message(patience_seconds)
        self.answer_bytes += len(message)
        try:
            return decode_answer(message)
        except ProtocolViolation as error:
            raise self.violation(str(error)) from error

    def violation(self, what: str) -> ProtocolViolation:
        """The error for a rule that this peer broke."""
        return ProtocolViolation(f"{self.link.peer}: {what}")


class _Pool:
    """The streams to one peer."""

    def __init__(self) -> None:
        self.users = 0
        self.turns = trio.Semaphore(FRAGMENT_STREAMS_PER_PEER_MAX)
        self.idle: deque[tuple[float, FragmentStream]] = deque()  # last used last


class FragmentsClient:
    """One per node and class of traffic, safe for many tasks at once.  All methods raise
    Unreachable, ConnectionLost, DeadlineExceeded, ProtocolViolation and Refused (with a
    `wire.Refusal` as `reason`); all requests may be repeated."""

    def __init__(
        self, network: Network, runtime: Runtime, traffic: Traffic = Traffic.FOREGROUND
    ) -> None:
        """`traffic`: what is asked and sent as repair comes after the foreground, here and at
        the peer; at one that does not know of the difference, here alone."""
        self._network = network
        self._protocols = [wire.PROTOCOL]
        if traffic is Traffic.REPAIR:
            self._protocols.insert(0, wire.REPAIR_PROTOCOL)
        self._verifying = JointWork(runtime.workers, _verify)
        self._pools: dict[PeerId, _Pool] = {}
        self._closed = False

    async def __aenter__(self) -> FragmentsClient:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the idle streams; exchanges under way are the callers' to end."""
        self._closed = True
        for pool in list(self._pools.values()):
            while pool.idle:
                await pool.idle.pop()[1].reset()

    @property
    def idle_streams(self) -> int:
        """Streams kept for the next exchange."""
        return sum(len(pool.idle) for pool in self._pools.values())

    # --- Requests ----------------------------------------------------------------------

    async def hello(self, peer: PeerId) -> wire.Hello:
        """What the peer says of itself."""
        async with self._exchange(peer, wire.HelloRequest()) as exchange:
            hello = await exchange.expect(wire.Hello)
            exchange.finished = True
        return hello

    async def find_manifests(self, peer: PeerId, root: CID) -> wire.Manifests:
        """Manifests that the peer knows for the root, with the newest pin records
        (envelopes, not yet verified)."""
        async with self._exchange(peer, wire.FindManifests(root)) as exchange:
            manifests = await exchange.expect(wire.Manifests)
            exchange.finished = True
        return manifests

    async def have(
        self,
        peer: PeerId,
        segments: Sequence[CID],
        known: Mapping[CID, wire.Holding] | None = None,
    ) -> wire.Haves:
        """One holding per segment, in that order.  Holdings in `known` are compared by digest
        and not sent again.  Any number of segments; raises BudgetExceeded where the answers
        exceed HAVE_BYTES_MAX together: ask for fewer then (64 are always fine)."""
        kept = known or {}
        queries = [
            wire.HaveQuery(cid, digest_of(kept[cid]) if cid in kept else b"") for cid in segments
        ]
        holdings: list[wire.Holding] = []
        answer_bytes = 0
        while len(holdings) < len(queries):
            part = tuple(queries[len(holdings) : len(holdings) + _HAVE_SEGMENTS])
            async with self._exchange(peer, wire.Have(part)) as exchange:
                answered = await _read_holdings(exchange, part, kept)
                exchange.finished = True
                answer_bytes += exchange.answer_bytes
            holdings += answered
            if answer_bytes > HAVE_BYTES_MAX and len(queries) > _HAVE_SEGMENTS:
                raise BudgetExceeded(f"{peer} holds too much of {len(queries)} segments to tell")
        return wire.Haves(tuple(holdings))

    def get_blocks(
        self, peer: PeerId, cids: Sequence[CID], *, checked: bool = True
    ) -> AbstractAsyncContextManager[Blocks]:
        """Blocks in the order asked, as they come, each verified; None for one the peer has
        not.  Any number of CIDs, split as the limits demand; leaving the context early is
        fine, pausing within it for PROGRESS_SECONDS may lose the stream.  While iterating:
        HashMismatch for bytes that are not what their CID names; where `checked` is False, that
        is for the caller to find out.

            async with client.get_blocks(peer, cids) as blocks:
                async for cid, data in blocks: ...
        """

        def request(start: int) -> wire.Request:
            return wire.GetBlocks(tuple(cids[start : start + GET_BLOCKS_MAX]))

        return aclosing(self._blocks(peer, cids, request, GET_BLOCKS_MAX, checked=checked))

    def challenge(
        self, peer: PeerId, items: Sequence[tuple[wire.Challenged, CID]]
    ) -> AbstractAsyncContextManager[Blocks]:
        """The fragments asked for, each with the CID that the segment gives it, as in
        `get_blocks`."""

        def request(start: int) -> wire.Request:
            part = items[start : start + CHALLENGES_MAX]
            return wire.Challenge(tuple(item for item, _ in part))

        cids = [cid for _, cid in items]
        return aclosing(self._blocks(peer, cids, request, CHALLENGES_MAX))

    async def put_slot(
        self,
        peer: PeerId,
        offer: wire.PutSlot,
        load_block: LoadBlock,
        slot_blocks: Sequence[SlotBlock],
        read: ReadFragment,
        progress: Callable[[PutProgress], None] | None = None,
    ) -> bytes:
        """Bring a slot to a holder: the envelope of its lease, not yet verified.

        `load_block` gives the manifest or the segment where the holder asks for it (no other
        block is given away), `read` the bytes of a fragment; only what the holder still lacks
        is read and sent.  Errors of both end the exchange and are passed on.
        """
        upload = SlotUpload(offer, load_block, slot_blocks, read, progress)
        async with self._exchange(peer, upload.request, SLOT_SILENCE_SECONDS) as exchange:
            try:
                lease = await upload.run(exchange.link, exchange.answer)
            except Refused:
                # Half-way through the fragments, the stream is in no state to go on.
                exchange.finished = not upload.sending
                raise
            exchange.finished = True
        return lease

    async def renew(self, peer: PeerId, request: wire.Renew) -> tuple[wire.SlotAnswer, ...]:
        """One answer per slot, in the order asked: a lease envelope or a refusal."""
        return await self._ask_slots(peer, request)

    async def release(self, peer: PeerId, request: wire.Release) -> tuple[wire.SlotAnswer, ...]:
        """One answer per slot, in the order asked: gone (neither set) or a refusal."""
        return await self._ask_slots(peer, request)

    async def _ask_slots(
        self, peer: PeerId, request: wire.Renew | wire.Release
    ) -> tuple[wire.SlotAnswer, ...]:
        answers: list[wire.SlotAnswer] = []
        if request.slots:
            async with self._exchange(peer, request) as exchange:
                for ref in request.slots:
                    answer = await exchange.expect(wire.SlotAnswer)
                    if (answer.segment, answer.slot) != (ref.segment, ref.slot):
                        raise exchange.violation("answered for another slot than asked")
                    answers.append(answer)
                exchange.finished = True
        return tuple(answers)

    async def _blocks(
        self,
        peer: PeerId,
        cids: Sequence[CID],
        request: Callable[[int], wire.Request],
        per_request: int,
        *,
        checked: bool = True,
    ) -> Blocks:
        """All of `cids`, by as many exchanges as it takes; `request(i)` asks for those from
        the i-th on, `per_request` at most."""
        done = 0
        while done < len(cids):
            part = cids[done : done + per_request]
            begun = done
            async with self._exchange(peer, request(done)) as exchange:
                for cid in part:
                    answer = await exchange.answer()
                    if isinstance(answer, wire.Stopped) and done > begun:
                        break
                    data = await _read_block(exchange, answer, cid)
                    if checked and data is not None:
                        await self._check(peer, cid, data)
                    done += 1
                    # Before the yield: who asks for no more has all that was sent.
                    exchange.finished = done == begun + len(part)
                    yield cid, data
                exchange.finished = True

    async def _check(self, peer: PeerId, cid: CID, data: bytes) -> None:
        """Raises HashMismatch for bytes that are not what the CID names."""
        if len(data) <= INLINE_HASH_BYTES:
            right = cid.verify(data)
        else:
            right = await self._verifying.run((cid, data))
        if not right:
            raise HashMismatch(f"{peer} sent other bytes than {cid}")

    # --- Streams -----------------------------------------------------------------------

    @asynccontextmanager
    async def _exchange(
        self, peer: PeerId, request: wire.Request, silence_seconds: float | None = None
    ) -> AsyncIterator[_Exchange]:
        """An exchange begun, on a stream that is kept where it came to its end in order and
        reset where it did not."""
        pool = self._pools.setdefault(peer, _Pool())
        pool.users += 1
        try:
            try:
                pool.turns.acquire_nowait()  # as a rule
            except trio.WouldBlock:
                with trio.move_on_after(MESSAGE_SECONDS) as scope:
                    await pool.turns.acquire()
                if scope.cancelled_caught:
                    raise DeadlineExceeded(f"too many exchanges with {peer} at once") from None
            try:
                exchange = await self._begin(peer, pool, request, silence_seconds)
                try:
                    yield exchange
                finally:
                    await self._end(pool, exchange)
            finally:
                pool.turns.release()
        finally:
            pool.users -= 1
            if not pool.users and not pool.idle and self._pools.get(peer) is pool:
                del self._pools[peer]

    async def _begin(
        self, peer: PeerId, pool: _Pool, request: wire.Request, silence_seconds: float | None
    ) -> _Exchange:
        """Send the request: on an idle stream, and where the peer has meanwhile ended that,
        on a new one."""
        while True:
            link = await _take_idle(pool)
            fresh = link is None
            if link is None:
                open_seconds = silence_seconds or _OPEN_SECONDS
                with trio.move_on_after(open_seconds) as scope:
                    link = FragmentStream(await self._network.open_stream(peer, self._protocols))
                if link is None or scope.cancelled_caught:
                    raise DeadlineExceeded(f"no stream to {peer} within {open_seconds} s")
            exchange = _Exchange(link, silence_seconds)
            begun = False
            try:
                await exchange.begin(request)
                begun = True
                return exchange
            except ConnectionLost:
                if fresh:
                    raise
            finally:
                if not begun:
                    await link.reset()

    async def _end(self, pool: _Pool, exchange: _Exchange) -> None:
        if not exchange.finished or self._closed:
            await exchange.link.reset()
            return
        pool.idle.append((trio.current_time(), exchange.link))
        if len(pool.idle) > FRAGMENT_STREAMS_IDLE_PER_PEER_MAX:
            await pool.idle.popleft()[1].reset()
        elif self.idle_streams > FRAGMENT_STREAMS_IDLE_MAX:
            oldest = min(
                (peer for peer, pool in self._pools.items() if pool.idle),
                key=lambda peer: self._pools[peer].idle[0][0],
            )
            link = self._pools[oldest].idle.popleft()[1]
            if not self._pools[oldest].users and not self._pools[oldest].idle:
                del self._pools[oldest]
            await link.reset()


async def _take_idle(pool: _Pool) -> FragmentStream | None:
    """The stream used last, unless it is as old as one that the peer gives up."""
    while pool.idle:
        used_at, link = pool.idle.pop()
        if trio.current_time() < used_at + IDLE_STREAM_SECONDS / 2:
            return link
        await link.reset()
    return None


async def _read_holdings(
    exchange: _Exchange, asked: Sequence[wire.HaveQuery], known: Mapping[CID, wire.Holding]
) -> list[wire.Holding]:
    """The answers to one Have, at least one of them."""
    holdings: list[wire.Holding] = []
    for query in asked:
        answer = await exchange.answer()
        if isinstance(answer, wire.Stopped) and holdings:
            break
        if isinstance(answer, wire.Unchanged) and query.known:
            answer = known[answer.segment] if answer.segment == query.segment else answer
        if not isinstance(answer, wire.Holding) or answer.segment != query.segment:
            raise exchange.violation(f"did not tell what it holds of {query.segment}")
        holdings.append(answer)
    return holdings


async def _read_block(exchange: _Exchange, header: wire.Answer, cid: CID) -> bytes | None:
    """What is sent as the block behind its header; None where the peer has it not."""
    if not isinstance(header, wire.BlockHeader):
        raise exchange.violation(f"answered {type(header).__name__} for a block")
    if header.size is None:
        return None
    if header.cid != cid:
        raise exchange.violation(f"sent {header.cid}, which was not asked for, in place of {cid}")
    return await exchange.link.read_bytes(header.size)


def _verify(blocks: Sequence[tuple[CID, bytes]]) -> list[bool]:
    """In a worker: whether the first of the blocks are what their CIDs name."""
    right: list[bool] = []
    size = 0
    for cid, data in blocks:
        right.append(cid.verify(data))
        size += len(data)
        if size >= VERIFY_BATCH_BYTES:
            break
    return right
