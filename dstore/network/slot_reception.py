"""How a holder receives one slot: the PutSlot exchange, seen from the serving side.

Fragments are read as fast as they are stored, verified and made durable some megabytes
together: a batch costs hand-overs, syncs and an answer, however small it is.  This module
decides nothing: whether a slot is taken and what its fragments are, the `SlotReception` says,
which the service implements.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import NoReturn, Protocol

import trio

from dstore.core import wire
from dstore.core.cid import CID
from dstore.core.peerid import PeerId
from dstore.core.wire import Refusal
from dstore.core.wirecodec import decode_upload, encode_answer
from dstore.errors import (
    ConnectionLost,
    DataError,
    DeadlineExceeded,
    HashMismatch,
    NetworkError,
    NodeError,
    ProtocolViolation,
    Refused,
)
from dstore.limits import (
    BLOCK_OVERHEAD_BYTES,
    CLOSE_SECONDS,
    INLINE_HASH_BYTES,
    PROGRESS_SECONDS,
    SLOT_BATCH_BYTES_MAX,
    SLOT_BATCH_SECONDS,
    SLOT_DOCUMENTS_MAX,
    WORKING_SECONDS,
)
from dstore.network.byte_budget import Share
from dstore.network.fragment_stream import FragmentStream, alongside
from dstore.network.refusals import refusing
from dstore.runtime import Workers

FetchBlocks = Callable[[Sequence[CID]], Awaitable[list[bytes]]]


class SlotReception(Protocol):
    """A slot being received, after it was accepted.  Used by one stream at a time."""

    @property
    def wanted(self) -> Sequence[int]:
        """Stripe indices whose fragments are not yet durable here, ascending."""
        ...

    def expected(self, stripe: int) -> tuple[CID, int]:
        """CID and size in bytes of this slot's fragment of the stripe."""
        ...

    async def store(self, blocks: Sequence[tuple[int, bytes]]) -> None:
        """Make the fragments (stripe index, bytes) durable; on return they survive a power
        cut.  Raises StorageFull, and HashMismatch where one is not what is `expected`."""
        ...

    async def finish(self) -> bytes:
        """All wanted fragments were stored: the signed lease envelope.
        Raises Refused where the promise can no longer be given."""
        ...

    async def abandon(self) -> None:
        """The exchange ended early; what is stored stays reserved for a resume."""
        ...


class Offered(Protocol):
    """The one question that a PutSlot exchange asks of the holder."""

    async def offer_slot(
        self, peer: PeerId, offer: wire.PutSlot, fetch_blocks: FetchBlocks
    ) -> SlotReception: ...


Fragment = tuple[int, bytes]  # stripe index, what came
# What has arrived; None where the next has to wait for the memory that those before it take.
Arrived = Fragment | None

_QUEUE_BLOCKS = 1024  # arrived and not yet stored; the byte budget binds earlier for large ones


class SlotExchange:
    """One PutSlot exchange."""

    def __init__(self, link: FragmentStream, share: Share, workers: Workers) -> None:
        self._link = link
        self._share = share
        self._workers = workers
        self._documents = 0
        self._unstored_bytes = 0  # taken of the share by blocks not yet stored
        self._lost: NetworkError | None = None  # why no more comes

    async def run(self, holder: Offered, offer: wire.PutSlot, turns: trio.Semaphore) -> None:
        """From the offer to the lease.  Raises what refuses the slot before it is accepted,
        and what ends the stream."""

        async def waiting_turn() -> None:
            async with turns:
                await self._exchange(holder, offer)

        # The client hears something even while a disk or a check takes its time.
        await alongside(self._signs_of_life, waiting_turn)

    async def _signs_of_life(self) -> None:
        while True:
            await trio.sleep(WORKING_SECONDS)
            await self._link.send(encode_answer(wire.Working()))

    async def _exchange(self, holder: Offered, offer: wire.PutSlot) -> None:
        reception = await holder.offer_slot(self._link.peer, offer, self._fetch_blocks)
        finished = False
        try:
            wanted = tuple(reception.wanted)
            await self._link.send(encode_answer(wire.Accepted(wanted)))
            if wanted:
                await self._receive_all(reception, wanted)
            lease = await reception.finish()
            finished = True
            answer = wire.SlotAnswer(offer.segment, offer.slot, lease=lease)
            await self._link.send(encode_answer(answer))
        finally:
            self._give_back_unstored()
            if not finished:
                deadline = trio.current_time() + CLOSE_SECONDS
                with trio.CancelScope(deadline=deadline, shield=True):
                    await reception.abandon()

    async def _fetch_blocks(self, cids: Sequence[CID]) -> list[bytes]:
        """Ask the client for documents of its offer, all at once; they come in that order."""
        self._documents += len(cids)
        if self._documents > SLOT_DOCUMENTS_MAX:
            raise Refused(f"over {SLOT_DOCUMENTS_MAX} blocks needed to check", Refusal.OTHER)
        for cid in cids:
            await self._link.queue(encode_answer(wire.Wanted(cid)))
        await self._link.flush()
        found = [await self._read_document(cid) for cid in cids]
        for cid, data in zip(cids, found, strict=True):
            if data is None:  # only now: what else was asked for has come
                raise Refused(f"you offer a slot without having {cid}", Refusal.NOT_FOUND)
        return [data for data in found if data is not None]

    async def _read_document(self, cid: CID) -> bytes | None:
        upload = decode_upload(await self._link.read_message(PROGRESS_SECONDS))
        if not isinstance(upload, wire.Document) or upload.cid != cid:
            raise ProtocolViolation(f"{self._link.peer} sent something else than {cid}")
        if upload.size is None:
            return None
        await self._share.take(upload.size)
        try:
            data = await self._link.read_bytes(upload.size)
        finally:
            self._share.give_back(upload.size)
        if len(data) <= INLINE_HASH_BYTES:
            right = cid.verify(data)
        else:
            right = await self._workers.run(cid.verify, data)
        if not right:
            raise HashMismatch(f"{self._link.peer} sent other bytes than {cid}")
        return data

    async def _receive_all(self, reception: SlotReception, wanted: Sequence[int]) -> None:
        to_store: trio.MemorySendChannel[Arrived]
        to_store, arrived = trio.open_memory_channel[Arrived](_QUEUE_BLOCKS)

        async def receive() -> None:
            with to_store:
                try:
                    await self._receive(reception, wanted, to_store)
                except (ConnectionLost, DeadlineExceeded) as error:
                    self._lost = error  # what came before is stored first

        await alongside(receive, partial(self._store, reception, len(wanted), arrived))

    async def _receive(
        self,
        reception: SlotReception,
        wanted: Sequence[int],
        to_store: trio.MemorySendChannel[Arrived],
    ) -> None:
        """Read the fragments in the order wanted; each needs its memory granted first."""
        peer = self._link.peer
        for stripe in wanted:
            upload = decode_upload(await self._link.read_message(PROGRESS_SECONDS))
            if not isinstance(upload, wire.Fragment) or upload.stripe != stripe:
                raise ProtocolViolation(f"{peer} did not send the fragment of stripe {stripe}")
            cid, size = reception.expected(stripe)
            if upload.size != size:
                raise ProtocolViolation(f"{peer} sent {upload.size} bytes for {cid} of {size}")
            taken = size + BLOCK_OVERHEAD_BYTES
            if not self._share.may_take(taken):
                await to_store.send(None)
            await self._share.take(taken)
            self._unstored_bytes += taken
            fragment = (stripe, await self._link.read_bytes(size))
            # Small ones that came in one read go on in one batch.
            try:
                to_store.send_nowait(fragment)
            except trio.WouldBlock:
                await to_store.send(fragment)

    async def _store(
        self,
        reception: SlotReception,
        count: int,
        arrived: trio.MemoryReceiveChannel[Arrived],
    ) -> None:
        """Store what has arrived, and say so, until all is stored."""
        stored = 0
        while stored < count:
            batch = await self._gather(count - stored, arrived)
            if not batch:
                assert self._lost is not None
                raise self._lost
            try:
                await reception.store(batch)
            except HashMismatch as error:
                raise HashMismatch(f"{self._link.peer} sent {error}") from error
            except (Refused, NodeError, DataError) as error:
                await self._refuse_halfway(refusing(error), arrived)
            stored += len(batch)
            taken = sum(len(data) + BLOCK_OVERHEAD_BYTES for _, data in batch)
            batch.clear()
            self._unstored_bytes -= taken
            self._share.give_back(taken)
            await self._link.send(encode_answer(wire.Stored(stored)))

    async def _gather(
        self, left: int, arrived: trio.MemoryReceiveChannel[Arrived]
    ) -> list[Fragment]:
        """What to store together, at most `left`: a whole batch, or what comes within a moment,
        or what there is memory for, or what came last; none where nothing comes any more."""
        batch: list[Fragment] = []
        size = 0
        with trio.move_on_after(math.inf) as scope:
            while len(batch) < left and size < SLOT_BATCH_BYTES_MAX:
                try:
                    fragment = await _next(arrived)
                except trio.EndOfChannel:
                    break
                if fragment is not None:
                    batch.append(fragment)
                    size += len(fragment[1])
                elif batch:
                    break
                if len(batch) == 1:
                    scope.deadline = trio.current_time() + SLOT_BATCH_SECONDS
        return batch

    def _give_back_unstored(self) -> None:
        self._share.give_back(self._unstored_bytes)
        self._unstored_bytes = 0

    async def _refuse_halfway(
        self, refusal: wire.Refusing, arrived: trio.MemoryReceiveChannel[Arrived]
    ) -> NoReturn:
        """Say no while the client sends: it hears that and resets the stream, until when
        what comes is dropped; a reset from here could overtake the answer."""
        await self._link.send(encode_answer(refusal))
        with trio.move_on_after(CLOSE_SECONDS):
            self._give_back_unstored()
            async for _ in arrived:
                self._give_back_unstored()
        raise ConnectionLost(f"slot refused half-way: {refusal.reason}")


async def _next(arrived: trio.MemoryReceiveChannel[Arrived]) -> Arrived:
    """What has arrived, without a turn of the loop where it is there: small ones come many at
    once."""
    try:
        return arrived.receive_nowait()
    except trio.WouldBlock:
        return await arrived.receive()
