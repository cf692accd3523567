"""What a node remembers of DHT peers: how long answers took, who was silent, who asks much.

Plain memory, bounded, of the latest only; what follows from it is decided elsewhere
(`core/kademlia.py`; whoever serves).  Time comes in as `now`, in seconds of a monotonic clock.
"""

from __future__ import annotations

from collections import OrderedDict, deque

from dstore.core.peerid import PeerId
from dstore.limits import (
    KAD_DELAYS_KEPT,
    KAD_PACED_PEERS_MAX,
    KAD_REQUESTS_BURST,
    KAD_REQUESTS_PER_SECOND,
    KAD_SUSPECT_SECONDS,
    KAD_SUSPECTS_MAX,
)

_HIGH = 0.95


class Delays:
    """The seconds that the latest answers took, of all peers together."""

    __slots__ = ("_latest", "high")

    def __init__(self) -> None:
        self._latest: deque[float] = deque(maxlen=KAD_DELAYS_KEPT)
        self.high = 0.0
        """Most answers come within so many seconds, 95 of 100; 0 where none has come yet."""

    def note(self, seconds: float) -> None:
        """An answer took so long."""
        self._latest.append(seconds)
        ordered = sorted(self._latest)
        self.high = ordered[int(_HIGH * len(ordered))]


class Suspects:
    """Peers that were late or silent within the last KAD_SUSPECT_SECONDS."""

    __slots__ = ("_until",)

    def __init__(self) -> None:
        self._until: OrderedDict[PeerId, float] = OrderedDict()

    def __len__(self) -> int:
        return len(self._until)

    def add(self, peer: PeerId, now: float) -> None:
        """`peer` is late, or silent."""
        self._until[peer] = now + KAD_SUSPECT_SECONDS
        self._until.move_to_end(peer)
        if len(self._until) > KAD_SUSPECTS_MAX:
            self._until.popitem(last=False)

    def discard(self, peer: PeerId) -> None:
        """`peer` answered."""
        self._until.pop(peer, None)

    def has(self, peer: PeerId, now: float) -> bool:
        """Whether `peer` is one at `now`."""
        return self._until.get(peer, 0.0) > now


class Pace:
    """How fast each peer is answered: one that asks faster waits, alone.

    Kept beyond the end of its streams, so that a new one is no way round; the peers that
    asked least lately are forgotten first.
    """

    __slots__ = ("_paid_until",)

    def __init__(self) -> None:
        self._paid_until: OrderedDict[PeerId, float] = OrderedDict()

    def seconds(self, peer: PeerId, now: float) -> float:
        """Count one request of the peer; how long its answer waits."""
        paid = max(self._paid_until.get(peer, now), now) + 1 / KAD_REQUESTS_PER_SECOND
        self._paid_until[peer] = paid
        self._paid_until.move_to_end(peer)
        if len(self._paid_until) > KAD_PACED_PEERS_MAX:
            self._paid_until.popitem(last=False)
        return max(0.0, paid - now - KAD_REQUESTS_BURST / KAD_REQUESTS_PER_SECOND)
