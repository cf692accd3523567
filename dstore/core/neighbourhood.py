"""The peers around a place in the key space, as one lookup found them.

It tells for which other places the same lookup is an answer too, so that keys near each other
can share one.  As far as the lookup met everybody who is as near as its farthest peer, such an
answer is exact.  How peers are found, and what for, is not known here.
"""

from __future__ import annotations

from collections.abc import Sequence

from dstore.core.kademlia import ID_BITS, closest_of, common_prefix, kad_id
from dstore.core.peerid import PeerId


class Neighbourhood:
    """What a lookup towards `centre` found: its closest peers, nearest first.

    `depth` bits of prefix bound the region in which the lookup knows every peer: 0 is the
    whole key space, above 256 only the centre itself.
    """

    def __init__(self, centre: int, peers: Sequence[PeerId], wanted: int, *, ended: bool) -> None:
        """`wanted` peers were looked for; `ended` is False where time ran out first."""
        self._centre = centre
        self.peers = list(peers)
        self.wanted = wanted
        self.ended = ended
        if not ended:
            self.depth = ID_BITS + 1
        elif len(self.peers) < wanted:
            self.depth = 0  # there are no others
        else:
            # Peers that share more bits than the farthest one found are all nearer than it.
            self.depth = common_prefix(centre, kad_id(self.peers[-1].binary)) + 1

    def closest(self, place: int, count: int) -> list[PeerId] | None:
        """The `count` peers closest to `place`, nearest first; None where this lookup cannot
        know them for certain."""
        if place == self._centre:
            return self.peers[:count]
        chosen = closest_of(self.peers, place, count)
        if self.depth == 0:
            return chosen
        if (
            len(chosen) == count
            and common_prefix(place, self._centre) >= self.depth
            and common_prefix(place, kad_id(chosen[-1].binary)) >= self.depth
        ):
            return chosen  # outside the region nobody is as near
        return None
