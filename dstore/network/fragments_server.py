"""The serving side of `/dstore/fragments/1.0.0`: many exchanges a stream, bounded memory.

It knows framing, order, deadlines, budgets and hashes, and nothing of disks, leases or
quotas: those stand behind `Holder`, which the service implements.  A fault of a peer ends
the stream it came on and is reported; other streams go on.  docs/reference/wire.md.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from typing import Literal, Protocol

from dstore.core import wire
from dstore.core.cid import CID
from dstore.core.peerid import PeerId
from dstore.network.streams import Network
from dstore.runtime import Runtime

FetchBlock = Callable[[CID], Awaitable[bytes]]
FaultKind = Literal["protocol", "hash", "stalled", "flood"]
OnFault = Callable[[PeerId, FaultKind, str], None]


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
        cut.  The caller has checked bytes against `expected`.  Raises StorageFull."""
        ...

    async def finish(self) -> bytes:
        """All wanted fragments were stored: the signed lease envelope.
        Raises Refused where the promise can no longer be given."""
        ...

    async def abandon(self) -> None:
        """The exchange ended early; what is stored stays reserved for a resume."""
        ...


class Holder(Protocol):
    """What a node serves.  Any method may raise Refused with a `wire.Refusal` as reason;
    NotFoundError, StorageFull and DataError become the refusals `not found`, `full` and
    `malformed`, any other NodeError `internal`."""

    async def hello(self, peer: PeerId) -> wire.Hello:
        """What this node says of itself."""
        ...

    async def find_manifests(self, peer: PeerId, root: CID) -> wire.Manifests:
        """Manifests known for the root, with the newest pin records."""
        ...

    def blocks(
        self, peer: PeerId, cids: Sequence[CID]
    ) -> AsyncGenerator[tuple[CID, bytes | None], None]:
        """Exactly the blocks asked for, in that order; None for one that is not here.  Reads
        ahead a few at most: it is advanced as fast as the peer reads, and may be closed early."""
        ...

    async def have(self, peer: PeerId, segments: Sequence[CID]) -> wire.Haves:
        """One `wire.Holding` per segment, in that order; an empty one where nothing is held
        or known.  At most HAVE_BATCH_SEGMENTS are asked at once."""
        ...

    async def offer_slot(
        self, peer: PeerId, offer: wire.PutSlot, fetch_block: FetchBlock
    ) -> SlotReception:
        """Decide on an offer: returns the reception, with room reserved, or raises Refused.
        `fetch_block` asks the offering peer for the manifest or segment block (verified on
        return; raises Refused where the peer has it not)."""
        ...

    async def renew(self, peer: PeerId, request: wire.Renew) -> Sequence[wire.SlotAnswer]:
        """One answer per slot, in the order asked: a lease or a refusal."""
        ...

    async def release(self, peer: PeerId, request: wire.Release) -> Sequence[wire.SlotAnswer]:
        """One answer per slot, in the order asked: gone or a refusal."""
        ...

    def challenge(
        self, peer: PeerId, items: Sequence[wire.Challenged]
    ) -> AsyncGenerator[tuple[CID, bytes | None], None]:
        """The fragments, read from the disk now, in that order; None for one not here (the
        CID is then that of the segment)."""
        ...


def serve_fragments(
    network: Network, holder: Holder, runtime: Runtime, on_fault: OnFault | None = None
) -> None:
    """Serve the protocol on the network from now on; streams end with the network."""
    raise NotImplementedError
