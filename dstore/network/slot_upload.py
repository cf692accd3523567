"""How a slot is brought to a holder: the PutSlot exchange, seen from the asking side.

Fragments are sent without waiting for answers, while another task hears what the holder has
made durable, whether it refuses after all, and at last its lease.  It opens no stream and
verifies no signature.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial

import trio

from dstore.core import wire
from dstore.core.cid import CID
from dstore.core.wirecodec import encode_upload, fitted
from dstore.errors import CorruptStore, DeadlineExceeded, ProtocolViolation, Refused
from dstore.limits import SLOT_DOCUMENTS_MAX, WORKING_TOTAL_SECONDS
from dstore.network.fragment_stream import FragmentStream, alongside


@dataclass(frozen=True, slots=True)
class SlotBlock:
    """One fragment of the slot to be put: its stripe index, CID and size in bytes."""

    stripe: int
    cid: CID
    size: int


@dataclass(frozen=True, slots=True)
class PutProgress:
    """How far a slot is, in bytes of its fragments: `stored` are durable at the holder
    (those it had before included).  Told also when the holder took a fragment."""

    stored: int
    total: int


LoadBlock = Callable[[CID], Awaitable[bytes]]
ReadFragment = Callable[[SlotBlock], Awaitable[bytes]]
NextAnswer = Callable[[], Awaitable[wire.Answer]]


class SlotUpload:
    """One slot on its way; used once."""

    def __init__(
        self,
        offer: wire.PutSlot,
        load_block: LoadBlock,
        slot_blocks: Sequence[SlotBlock],
        read: ReadFragment,
        progress: Callable[[PutProgress], None] | None,
    ) -> None:
        self.request = fitted(offer)
        self._load_block = load_block
        self._blocks = {block.stripe: block for block in slot_blocks}
        self._read = read
        self._progress = progress or (lambda progress: None)
        self._total_bytes = sum(block.size for block in slot_blocks)
        self._stored_bytes = 0
        self._told_at = 0.0  # when the holder last said more than that it is alive
        self._unsent = 0
        self._sent = trio.Event()
        self.sending = False  # whether fragments may be under way

    async def run(self, link: FragmentStream, next_answer: NextAnswer) -> bytes:
        """From the holder's first answer to its lease."""
        wanted = await self._until_accepted(link, next_answer)
        self.sending = bool(wanted)
        self._unsent = len(wanted)
        self._stored_bytes = self._total_bytes - sum(block.size for block in wanted)
        self._tell()
        return await alongside(
            partial(self._send, link, wanted), partial(self._hear, link, next_answer, wanted)
        )

    def _tell(self) -> None:
        self._progress(PutProgress(self._stored_bytes, self._total_bytes))

    async def _next(self, link: FragmentStream, next_answer: NextAnswer) -> wire.Answer:
        """The next answer that tells something.  Signs of life alone are believed for
        WORKING_TOTAL_SECONDS from the last news or the last bytes taken."""
        while True:
            answer = await next_answer()
            now = trio.current_time()
            if not isinstance(answer, wire.Working):
                self._told_at = now
                return answer
            if now > max(self._told_at, link.written_at) + WORKING_TOTAL_SECONDS:
                raise DeadlineExceeded(f"{link.peer} works without end on a slot")

    async def _until_accepted(
        self, link: FragmentStream, next_answer: NextAnswer
    ) -> list[SlotBlock]:
        """Give the documents that the holder asks for; then what fragments it wants."""
        self._told_at = trio.current_time()
        for _ in range(SLOT_DOCUMENTS_MAX + 1):
            answer = await self._next(link, next_answer)
            match answer:
                case wire.Accepted(stripes):
                    if not set(stripes) <= self._blocks.keys():
                        raise ProtocolViolation(f"{link.peer} wants fragments not in the slot")
                    return [self._blocks[stripe] for stripe in stripes]
                case wire.Wanted(cid) if cid in (self.request.manifest, self.request.segment):
                    data = await self._load_block(cid)
                    await link.queue(encode_upload(wire.Document(cid, len(data))), data)
                    await link.flush()
                case _:
                    raise ProtocolViolation(f"{link.peer} answered an offer with {answer}")
        raise ProtocolViolation(f"{link.peer} asks for over {SLOT_DOCUMENTS_MAX} documents")

    async def _send(self, link: FragmentStream, wanted: Sequence[SlotBlock]) -> None:
        for block in wanted:
            data = await self._read(block)
            if len(data) != block.size:
                raise CorruptStore(f"{block.cid} has {len(data)} bytes in place of {block.size}")
            self._unsent -= 1  # the answer may be here before this task goes on
            await link.queue(encode_upload(wire.Fragment(block.stripe, block.size)), data)
            self._tell()
        await link.flush()
        self._sent.set()

    async def _hear(
        self, link: FragmentStream, next_answer: NextAnswer, wanted: Sequence[SlotBlock]
    ) -> bytes:
        """What the holder says while fragments are sent, until its lease."""
        stored_before = 0
        while True:
            answer = await self._next(link, next_answer)
            match answer:
                case wire.Stored(stored) if stored_before < stored <= len(wanted):
                    newly = wanted[stored_before:stored]
                    self._stored_bytes += sum(block.size for block in newly)
                    stored_before = stored
                    self._tell()
                case wire.SlotAnswer(segment, slot, lease, refusal):
                    if (segment, slot) != (self.request.segment, self.request.slot):
                        raise ProtocolViolation(f"{link.peer} answered for another slot")
                    if refusal is not None:
                        raise Refused(f"{link.peer} gives no lease ({refusal})", refusal)
                    if lease is None or self._unsent:
                        raise ProtocolViolation(f"{link.peer} gave a lease out of turn")
                    await self._sent.wait()
                    return lease
                case _:
                    raise ProtocolViolation(f"{link.peer} answered an upload with {answer}")
