"""The values that go into the catalog and come out of it: one frozen row type per table.

They know nothing of SQL.  Times are unix seconds, handed in by the caller; CIDs and peer ids
are dstore's own values; a `lease` or `envelope` is the signed envelope, verbatim.
"""

from __future__ import annotations

import builtins
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, Literal

from dstore.core.cid import CID
from dstore.core.peerid import PeerId

PinMode = Literal["local", "protected"]
SlotState = Literal["reserved", "held", "trash"]


class ReferenceKind(IntEnum):
    """Why a block is kept; the numbers are stored and never change their meaning."""

    LOCAL_PIN = 1  # key: `pin_key(root)`
    SLOT = 2  # key: `slot_key(segment, slot)`
    OPERATION = 3  # key: `operation_key(operation)`
    CACHE = 4  # key: the caller's choice; the first to go when room is short


SLOT_KEY_BYTES: Final = 2


def pin_key(root: CID) -> bytes:
    """The reference key of a local pin: the root's multihash."""
    return root.multihash


def slot_key(segment: CID, slot: int) -> bytes:
    """The reference key of a slot: the segment's multihash and the slot number."""
    return segment.multihash + slot.to_bytes(SLOT_KEY_BYTES, "big")


def operation_key(operation: int) -> bytes:
    """The reference key of a running operation."""
    return operation.to_bytes(8, "big")


@dataclass(frozen=True)
class Operation:
    """A running piece of work whose blocks must not be collected under it."""

    id: int
    kind: str
    started: float


@dataclass(frozen=True)
class PinRow:
    """A root that this node's user asked to keep."""

    root: CID
    mode: PinMode
    name: str | None
    created: float
    expires: float | None
    k: int | None = None
    m: int | None = None
    manifest: CID | None = None


@dataclass(frozen=True)
class ManifestRow:
    """A manifest known for a root: what `core.manifest` says, without the per-segment counts."""

    root: CID
    manifest: CID
    k: int
    m: int
    bytes: int
    blocks: int
    segments: tuple[CID, ...]


@dataclass(frozen=True)
class Placement:
    """A peer that holds (or says it holds) a slot: one entry of a segment's holder map."""

    segment: CID
    slot: int
    peer: PeerId
    expires: float
    lease: bytes | None = None
    last_answered: float | None = None


@dataclass(frozen=True)
class HeldSlot:
    """A slot that this node holds, is receiving, or keeps in the trash, for one owner.
    `missing` of its bytes are still to come while it is reserved."""

    segment: CID
    slot: int
    owner: bytes
    root: CID
    manifest: CID
    bytes: int
    state: SlotState
    lease: builtins.bytes | None
    expires: float
    updated: float
    missing: int = 0


@dataclass(frozen=True)
class SlotTotal:
    """How many slots are in a state, and their bytes."""

    state: SlotState
    slots: int
    bytes: int


@dataclass(frozen=True)
class PinRecordRow:
    """The newest pin record seen for (owner, root); past its expiry it is a tombstone.

    `keep_until` is the latest expiry of any record seen for the pair: until then (plus the
    allowed clock skew) the row must stay, so that an older record cannot rise again.
    """

    owner: bytes
    root: CID
    seq: int
    expires: float
    envelope: bytes
    keep_until: float


@dataclass(frozen=True)
class PeerRow:
    """A peer seen, with its history.  `failures` counts since it last answered."""

    peer: PeerId
    addresses: tuple[str, ...]
    role: str | None
    free_bytes: int | None
    domains: tuple[str, ...]
    first_seen: float
    last_seen: float
    failures: int
    last_failed: float | None
    faults: int


@dataclass(frozen=True)
class Fault:
    """One recorded misdeed of a peer: wrong bytes, a broken rule, a lost slot."""

    peer: PeerId
    kind: str
    detail: str
    time: float
