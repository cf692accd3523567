"""What a node remembers of how DHT peers answered: how long answers took, who was silent.

Plain memory, bounded, of the latest only; what follows from it is the lookup's decision
(`core/kademlia.py`).  Time comes in as `now`, in seconds of a monotonic clock.
"""

from __future__ import annotations

from collections import OrderedDict, deque

from dstore.core.peerid import PeerId
from dstore.limits import KAD_DELAYS_KEPT, KAD_SUSPECT_SECONDS, KAD_SUSPECTS_MAX

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
