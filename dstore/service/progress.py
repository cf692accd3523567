"""What the services tell of their work, and what they give back: plain values.

The interfaces turn these into JSON, tables and progress bars; the stable forms that scripts
rely on are in docs/reference/cli.md.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from dstore.core.cid import CID
from dstore.core.peerid import PeerId
from dstore.storage.rows import SlotTotal

Stage = Literal["import", "encode", "upload", "announce", "read"]


@dataclass(frozen=True)
class Progress:
    """How far a long operation is; counts only grow within a stage."""

    stage: Stage
    done_bytes: int
    total_bytes: int | None = None


Report = Callable[[Progress], None]


@dataclass(frozen=True)
class AddOptions:
    """How to add: `code` None lets dstore choose for the failure domains it sees."""

    code: tuple[int, int] | None = None
    profile: str = "unixfs-v1-2025"
    local_only: bool = False
    require_guarantee: int = 0
    pin_seconds: int | None = None
    name: str | None = None


@dataclass(frozen=True)
class GuaranteeStatus:
    """The largest number of peers, and of failure domains, any of which may be lost."""

    peers: int
    domains: int
    text: str


@dataclass(frozen=True)
class AddResult:
    """What an add achieved; `size` counts the bytes of files."""

    cid: CID
    size: int
    manifest: CID | None = None
    code: tuple[int, int] | None = None
    protected: bool = False
    guarantee: GuaranteeStatus | None = None
    warnings: tuple[str, ...] = ()


Kind = Literal["file", "directory", "symlink"]


@dataclass(frozen=True)
class Entry:
    """What a path resolves to. `size` is the file's length in bytes (None for directories).
    `path` has the CID of each element of the path, the root's first, its own last; `content` all
    of a small file that is one block, which had to be read anyway."""

    cid: CID
    kind: Kind
    size: int | None = None
    target: str | None = None  # of a symlink
    path: tuple[CID, ...] = ()
    content: bytes | None = field(default=None, repr=False)


@dataclass(frozen=True)
class DirectoryEntry:
    """One name of a directory; `tsize` is the cumulative DAG size its link states, and `held`
    whether this node may have its block."""

    name: str
    cid: CID
    tsize: int
    held: bool = True


@dataclass(frozen=True)
class SlotStatus:
    """One slot of a segment: who holds it.  `empty` slots have no real fragment."""

    slot: int
    holders: tuple[PeerId, ...]
    state: Literal["live", "away", "missing", "empty"]


@dataclass(frozen=True)
class SegmentStatus:
    """The health of one segment."""

    segment: CID
    state: Literal["healthy", "degraded", "at risk", "unreachable"]
    bytes: int
    slots: tuple[SlotStatus, ...]


@dataclass(frozen=True)
class RootStatus:
    """The health of one root: as good as its worst segment.  `dag_bytes` are those of its blocks,
    each counted once where it is protected, and as the links of the root say where it is not."""

    cid: CID
    manifest: CID | None
    code: tuple[int, int] | None
    state: Literal["healthy", "degraded", "at risk", "unreachable", "local"]
    dag_bytes: int
    guarantee: GuaranteeStatus | None
    segments: tuple[SegmentStatus, ...] = ()
    expires: float | None = None


@dataclass(frozen=True)
class Pin:
    """One pin of this node's owner."""

    cid: CID
    mode: Literal["local", "protected"]
    name: str | None
    created: float
    expires: float | None
    code: tuple[int, int] | None = None


@dataclass(frozen=True)
class PeerStatus:
    """One peer as this node knows it."""

    peer: PeerId
    addresses: tuple[str, ...]
    connected: bool
    role: str | None = None
    free_bytes: int | None = None
    domains: tuple[str, ...] = ()
    faults: int = 0
    last_seen: float | None = None


@dataclass(frozen=True)
class Totals:
    """How much a node's catalog knows of: slots kept for owners, pins of this node's owner,
    slots that other peers hold."""

    slots: tuple[SlotTotal, ...]
    pins: int
    placements: int


@dataclass(frozen=True)
class NodeStatus:
    """The node itself."""

    peer_id: PeerId
    addresses: tuple[str, ...]
    version: str
    peers: int
    blocks: int
    bytes: int
    capacity_bytes: int
    uptime_seconds: float
    erasure_engine: str
    warnings: tuple[str, ...] = field(default=())
