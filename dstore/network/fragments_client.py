"""The asking side of `/dstore/fragments/1.0.0`: streams pooled per peer and used again.

Every block is checked against its CID before it is handed on.  Errors name the peer and end
only the stream that they happened on; choosing another peer is the caller's business.
docs/reference/wire.md.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from types import TracebackType

from dstore.core import wire
from dstore.core.cid import CID
from dstore.core.peerid import PeerId
from dstore.network.streams import Network
from dstore.runtime import Runtime

Blocks = AsyncGenerator[tuple[CID, bytes | None], None]


@dataclass(frozen=True, slots=True)
class SlotBlock:
    """One fragment of the slot to be put: its stripe index, CID and size in bytes."""

    stripe: int
    cid: CID
    size: int


@dataclass(frozen=True, slots=True)
class PutProgress:
    """How far a slot is, in bytes of its fragments: `stored` are durable at the holder
    (those it had before included)."""

    stored: int
    total: int


class FragmentsClient:
    """One per node, safe for many tasks at once.  All methods raise Unreachable,
    ConnectionLost, DeadlineExceeded, ProtocolViolation and Refused (with a `wire.Refusal` as
    `reason`); all requests may be repeated."""

    def __init__(self, network: Network, runtime: Runtime) -> None: ...

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
        raise NotImplementedError

    async def hello(self, peer: PeerId) -> wire.Hello:
        """What the peer says of itself."""
        raise NotImplementedError

    async def find_manifests(self, peer: PeerId, root: CID) -> wire.Manifests:
        """Manifests that the peer knows for the root, with the newest pin records
        (envelopes, not yet verified)."""
        raise NotImplementedError

    async def have(
        self,
        peer: PeerId,
        segments: Sequence[CID],
        known: Mapping[CID, wire.Holding] | None = None,
    ) -> wire.Haves:
        """One holding per segment, in that order.  Holdings in `known` are compared by digest
        and not sent again.  Any number of segments, but an answer above HAVE_BYTES_MAX is
        refused: ask for fewer."""
        raise NotImplementedError

    def get_blocks(self, peer: PeerId, cids: Sequence[CID]) -> AbstractAsyncContextManager[Blocks]:
        """Blocks in the order asked, as they come, each verified; None for one the peer has
        not.  Any number of CIDs, split as the limits demand; leaving the context early is
        fine.  While iterating: HashMismatch for bytes that are not what their CID names.

            async with client.get_blocks(peer, cids) as blocks:
                async for cid, data in blocks: ...
        """
        raise NotImplementedError

    async def put_slot(
        self,
        peer: PeerId,
        offer: wire.PutSlot,
        load_block: Callable[[CID], Awaitable[bytes]],
        slot_blocks: Sequence[SlotBlock],
        read: Callable[[SlotBlock], Awaitable[bytes]],
        progress: Callable[[PutProgress], None] | None = None,
    ) -> bytes:
        """Bring a slot to a holder: the envelope of its lease, not yet verified.

        `load_block` gives the manifest or the segment where the holder asks for it (no other
        block is given away), `read` the bytes of a fragment; only what the holder still lacks
        is read and sent.  Errors of both end the exchange and are passed on.
        """
        raise NotImplementedError

    async def renew(self, peer: PeerId, request: wire.Renew) -> tuple[wire.SlotAnswer, ...]:
        """One answer per slot, in the order asked: a lease envelope or a refusal."""
        raise NotImplementedError

    async def release(self, peer: PeerId, request: wire.Release) -> tuple[wire.SlotAnswer, ...]:
        """One answer per slot, in the order asked: gone (neither set) or a refusal."""
        raise NotImplementedError

    def challenge(
        self, peer: PeerId, items: Sequence[tuple[wire.Challenged, CID]]
    ) -> AbstractAsyncContextManager[Blocks]:
        """The fragments asked for, each with the CID that the segment gives it, as in
        `get_blocks`."""
        raise NotImplementedError
