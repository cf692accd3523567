"""The serving side of `/dstore/fragments/1.0.0`: many exchanges a stream, bounded memory.

It knows framing, order, deadlines, budgets and hashes, and nothing of disks, leases or
quotas: those stand behind `Holder`, which the service implements.  A fault of a peer ends
the stream it came on and is reported; other streams go on.  docs/reference/wire.md.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from typing import Literal, Protocol, TypeAlias

import trio

from dstore.core import wire
from dstore.core.cid import CID
from dstore.core.peerid import PeerId
from dstore.core.wire import Refusal
from dstore.core.wirecodec import decode_request, digest_of, encode_answer, fitted
from dstore.errors import (
    DataError,
    DeadlineExceeded,
    HashMismatch,
    NetworkError,
    NodeError,
    NotFoundError,
    PeerError,
    Refused,
)
from dstore.limits import (
    BLOCK_BYTES_MAX,
    CLOSE_SECONDS,
    GET_BYTES_MAX,
    HAVE_BATCH_SEGMENTS,
    HAVE_BYTES_MAX,
    IDLE_STREAM_SECONDS,
    LARGE_MESSAGE_BYTES,
    PEER_BUDGET_BYTES,
    PEER_LARGE_MESSAGES_MAX,
    PEER_SLOTS_RECEIVED_MAX,
    PEER_STREAMS_SERVED_MAX,
    REQUEST_SECONDS,
    SERVED_MEMORY_BYTES_MAX,
    SERVED_STREAMS_MAX,
    SERVED_WAIT_SECONDS,
    SMALL_WRITES_BYTES,
)
from dstore.network.byte_budget import ByteBudget, Share
from dstore.network.fragment_stream import FragmentStream
from dstore.network.refusals import refusing
from dstore.network.slot_reception import FetchBlocks, SlotExchange, SlotReception
from dstore.network.streams import Network, Stream
from dstore.runtime import Runtime

__all__ = ["FetchBlocks", "FragmentsServer", "Holder", "SlotReception", "serve_fragments"]

FaultKind = Literal["protocol", "hash", "stalled", "flood"]
OnFault = Callable[[PeerId, FaultKind, str], None]
# Blocks read together, None for one that is not here.  Who is given it empties it.
Batch: TypeAlias = deque[tuple[CID, bytes | None]]


class Holder(Protocol):
    """What a node serves.  Any method may raise Refused with a `wire.Refusal` as reason;
    NotFoundError, StorageFull and DataError become the refusals `not found`, `full` and
    `malformed`, any other NodeError `internal`.  Errors of other peers and networks must not
    leave it: they would be taken for faults of the peer that asked."""

    async def hello(self, peer: PeerId) -> wire.Hello:
        """What this node says of itself."""
        ...

    async def find_manifests(self, peer: PeerId, root: CID) -> wire.Manifests:
        """Manifests known for the root, with the newest pin records."""
        ...

    def blocks(self, peer: PeerId, cids: Sequence[CID]) -> AsyncGenerator[Batch, None]:
        """Exactly the blocks asked for, in that order; None for one that is not here or no
        longer sound.  A batch is at most BLOCK_BYTES_MAX, and nothing of it is kept; the next
        one is read when it is asked for, as fast as the peer reads.  May be closed early."""
        ...

    async def have(self, peer: PeerId, segments: Sequence[CID]) -> wire.Haves:
        """One `wire.Holding` per segment, in that order; an empty one where nothing is held
        or known.  At most HAVE_BATCH_SEGMENTS are asked at once."""
        ...

    async def offer_slot(
        self, peer: PeerId, offer: wire.PutSlot, fetch_blocks: FetchBlocks
    ) -> SlotReception:
        """Decide on an offer: returns the reception, with room reserved, or raises Refused.
        `fetch_blocks` asks the offering peer for the manifest and the segment block (verified
        on return; raises Refused where the peer has not all of them)."""
        ...

    async def renew(self, peer: PeerId, request: wire.Renew) -> Sequence[wire.SlotAnswer]:
        """One answer per slot, in the order asked: a lease or a refusal."""
        ...

    async def release(self, peer: PeerId, request: wire.Release) -> Sequence[wire.SlotAnswer]:
        """One answer per slot, in the order asked: gone or a refusal."""
        ...

    def challenge(
        self, peer: PeerId, items: Sequence[wire.Challenged]
    ) -> AsyncGenerator[Batch, None]:
        """The fragments, read from the disk now, in that order and in batches as of `blocks`;
        None for one not here (the CID is then that of the segment)."""
        ...


def serve_fragments(
    network: Network, holder: Holder, runtime: Runtime, on_fault: OnFault | None = None
) -> FragmentsServer:
    """Serve the protocol on the network from now on; streams end with the network.
    `on_fault` hears of every rule that a peer breaks."""
    server = FragmentsServer(holder, runtime, on_fault or (lambda peer, kind, detail: None))
    for protocol in (wire.PROTOCOL, wire.REPAIR_PROTOCOL):
        network.set_handler(protocol, server.serve_stream)
    return server


class _Served:
    """What one peer occupies here."""

    def __init__(self, total: ByteBudget) -> None:
        self.streams = 0
        self.share = total.share(PEER_BUDGET_BYTES)
        self.slots = trio.Semaphore(PEER_SLOTS_RECEIVED_MAX)
        self.large_messages = trio.Semaphore(PEER_LARGE_MESSAGES_MAX)


class FragmentsServer:
    """Counts streams and bytes per peer and in total, and answers one request after another
    on each stream."""

    def __init__(self, holder: Holder, runtime: Runtime, on_fault: OnFault) -> None:
        self._holder = holder
        self._runtime = runtime
        self._on_fault = on_fault
        self._peers: dict[PeerId, _Served] = {}
        self._streams = 0
        self._total = ByteBudget(SERVED_MEMORY_BYTES_MAX)

    @property
    def peers_served(self) -> int:
        """Peers with a stream open at present: nothing is remembered of others."""
        return len(self._peers)

    @property
    def bytes_held(self) -> int:
        """Block bytes under way at present, of all peers."""
        return self._total.taken_bytes

    async def serve_stream(self, stream: Stream) -> None:
        """Answer all exchanges of one stream."""
        peer = stream.peer
        served = self._peers.setdefault(peer, _Served(self._total))
        served.streams += 1
        self._streams += 1
        link = FragmentStream(stream)
        try:
            if served.streams > 2 * PEER_STREAMS_SERVED_MAX:
                await link.reset()
            elif served.streams > PEER_STREAMS_SERVED_MAX or self._streams > SERVED_STREAMS_MAX:
                if served.streams > PEER_STREAMS_SERVED_MAX:
                    self._on_fault(peer, "flood", f"over {PEER_STREAMS_SERVED_MAX} streams")
                await _turn_away(link)
            else:
                await self._serve(link, served)
        except HashMismatch as error:
            await self._fault(link, "hash", error)
        except PeerError as error:
            await self._fault(link, "protocol", error)
        except DeadlineExceeded as error:
            await self._fault(link, "stalled", error)
        except NetworkError:
            await link.reset()
        finally:
            self._streams -= 1
            served.streams -= 1
            if not served.streams:
                del self._peers[peer]

    async def _fault(self, link: FragmentStream, kind: FaultKind, error: Exception) -> None:
        self._on_fault(link.peer, kind, str(error))
        await link.reset()

    async def _serve(self, link: FragmentStream, served: _Served) -> None:
        patience_seconds = REQUEST_SECONDS
        while True:
            try:
                size = await link.read_length(patience_seconds)
            except DeadlineExceeded:
                # Idle between exchanges is no fault; a stream without any request is none
                # worth a name either.
                size = None
            if size is None:
                await link.close()
                return
            if size <= LARGE_MESSAGE_BYTES:
                await self._answer(link, served, await link.read_bytes(size))
            else:
                with trio.move_on_after(REQUEST_SECONDS) as scope:
                    await served.large_messages.acquire()
                if scope.cancelled_caught:
                    await _turn_away(link)
                    return
                try:
                    await self._answer(link, served, await link.read_bytes(size))
                finally:
                    served.large_messages.release()
            patience_seconds = IDLE_STREAM_SECONDS

    async def _answer(self, link: FragmentStream, served: _Served, data: bytes) -> None:
        """One exchange.  A refusal ends it; anything worse ends the stream."""
        request = decode_request(data)
        peer = link.peer
        try:
            match request:
                case None:
                    raise Refused("unknown request", Refusal.UNSUPPORTED)
                case wire.HelloRequest():
                    with _answering_in_time():
                        hello = await self._holder.hello(peer)
                    await link.queue(encode_answer(hello))
                case wire.FindManifests(root):
                    with _answering_in_time():
                        found = await self._holder.find_manifests(peer, root)
                    await link.queue(encode_answer(found))
                case wire.GetBlocks(cids):
                    await _send_blocks(link, served.share, self._holder.blocks(peer, cids))
                case wire.Challenge(items):
                    await _send_blocks(link, served.share, self._holder.challenge(peer, items))
                case wire.Have(queries):
                    await self._have(link, queries)
                case wire.Renew():
                    with _answering_in_time():
                        answers = await self._holder.renew(peer, request)
                    await _send_slots(link, request.slots, answers)
                case wire.Release():
                    with _answering_in_time():
                        answers = await self._holder.release(peer, request)
                    await _send_slots(link, request.slots, answers)
                case wire.PutSlot():
                    reception = SlotExchange(link, served.share, self._runtime.workers)
                    await reception.run(self._holder, request, served.slots)
        except (Refused, NotFoundError, NodeError, DataError) as error:
            await link.queue(encode_answer(refusing(error)))
        await link.flush()

    async def _have(self, link: FragmentStream, queries: Sequence[wire.HaveQuery]) -> None:
        sent_bytes = 0
        for start in range(0, len(queries), HAVE_BATCH_SEGMENTS):
            batch = queries[start : start + HAVE_BATCH_SEGMENTS]
            with _answering_in_time():
                haves = await self._holder.have(link.peer, [query.segment for query in batch])
            for query, holding in zip(batch, haves.holdings, strict=True):
                assert holding.segment == query.segment, "holder answers out of order"
                if sent_bytes > HAVE_BYTES_MAX:
                    await link.queue(encode_answer(wire.Stopped()))
                    return
                whole = fitted(holding)
                known = bool(query.known) and query.known == digest_of(whole)
                message = encode_answer(wire.Unchanged(query.segment) if known else whole)
                sent_bytes += len(message)
                await link.queue(message)


@contextmanager
def _answering_in_time() -> Iterator[None]:
    """What takes this node longer than the peer's patience is refused, not left hanging."""
    with trio.move_on_after(REQUEST_SECONDS * 0.8) as scope:
        yield
    if scope.cancelled_caught:
        raise Refused("this node is too busy to answer in time", Refusal.BUSY)


async def _turn_away(link: FragmentStream) -> None:
    """Say that this peer has enough streams here, without reading what it wants."""
    with trio.move_on_after(CLOSE_SECONDS):
        too_many = wire.Refusing(Refusal.BUSY, "too many streams")
        await link.send(encode_answer(too_many))
    await link.close()


async def _send_blocks(
    link: FragmentStream, share: Share, batches: AsyncGenerator[Batch, None]
) -> None:
    """Blocks as the holder reads them, until all are sent or the answer is full."""
    left_bytes = GET_BYTES_MAX
    async with aclosing(batches):
        while left_bytes >= 0:
            # Before anything is read: the memory that it will need is granted first.
            await share.take(BLOCK_BYTES_MAX, SERVED_WAIT_SECONDS)
            left_bytes = await _send_batch(link, share, batches, left_bytes)


async def _send_batch(
    link: FragmentStream, share: Share, batches: AsyncGenerator[Batch, None], left_bytes: int
) -> int:
    """The next batch, into what was granted for it and is given back as the blocks go out: how
    many bytes the answer may still have then, less than 0 where it has come to its end."""
    granted = BLOCK_BYTES_MAX
    try:
        batch = await anext(batches, None)
        if batch is None:
            return -1
        size = sum(len(data or b"") for _, data in batch)
        assert size <= granted, "a holder read more than was granted"
        # What small blocks do not need is for others while these are sent.
        share.give_back(granted - size)
        granted = size
        sent = 0
        while batch:
            cid, data = batch.popleft()
            size = len(data or b"")
            if size > left_bytes:
                await link.queue(encode_answer(wire.Stopped()))
                return -1
            header = encode_answer(wire.BlockHeader(cid, None if data is None else size))
            await link.queue(header, data or b"")
            left_bytes -= size
            sent += size
            if sent >= SMALL_WRITES_BYTES:  # many small ones at once: whoever waits is looked for
                share.give_back(sent)
                granted, sent = granted - sent, 0
        return left_bytes
    finally:
        share.give_back(granted)


async def _send_slots(
    link: FragmentStream, asked: Sequence[wire.SlotRef], answers: Sequence[wire.SlotAnswer]
) -> None:
    for ref, answer in zip(asked, answers, strict=True):
        assert (ref.segment, ref.slot) == (answer.segment, answer.slot), "holder out of order"
        await link.queue(encode_answer(answer))
