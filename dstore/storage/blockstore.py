"""The block store contract: bytes by multihash, durable before acknowledged, verified on read.

Stores are synchronous and safe to call from several threads at once; the services run them
in `Workers`.  `dstore.testing.blockstore_suite` is the contract as tests: every
implementation passes it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from dstore.core.cid import CID

Block = tuple[CID, bytes]
GetBlock = Callable[[CID], bytes]  # as `BlockStore.get`


@dataclass(frozen=True)
class Usage:
    """What a store holds."""

    blocks: int
    bytes: int


class BlockStore(Protocol):
    """Blocks are keyed by multihash: one copy, whatever the CID version or codec."""

    def put_many(self, blocks: Sequence[Block], *, read_soon: bool = True) -> None:
        """Store all blocks; on return every one of them survives a power cut.  Without
        `read_soon` they need not be kept in memory, too.

        The caller has checked that the bytes match their CIDs.  Blocks already there are
        not written again.  Raises StorageFull; then some of the blocks may be stored, each
        of them whole.
        """
        ...

    def get(self, cid: CID) -> bytes:
        """The block's bytes, checked against the CID, or against a checksum that the store made
        when it last had them and knew them to be the CID's (decision 0019).

        Raises NotFoundError where the block is not here, CorruptStore where its bytes are
        no longer what the CID names.
        """
        ...

    def has_many(self, cids: Sequence[CID]) -> list[bool]:
        """For each CID whether the block is here (its bytes are not read)."""
        ...

    def size(self, cid: CID) -> int | None:
        """The block's length in bytes, None where it is not here."""
        ...

    def delete_many(self, cids: Sequence[CID]) -> None:
        """Forget the blocks; those not here are passed over."""
        ...

    def multihashes(self) -> Iterator[bytes]:
        """All multihashes, in no particular order; blocks that come or go meanwhile may or
        may not appear."""
        ...

    def usage(self) -> Usage:
        """Count and bytes of the blocks held, kept up to date: cheap to ask."""
        ...

    def room(self) -> int | None:
        """About how many bytes fit before `put_many` raises StorageFull, whatever it is that
        ends them: the quota or the disk.  None where nothing does."""
        ...

    def close(self) -> None:
        """Finish what is under way and release files and threads."""
        ...
