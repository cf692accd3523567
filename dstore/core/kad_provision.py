"""How many keys are provided: which lookups they share, whom to tell which, what came back.

Keys are taken in the order of their places in the key space, so that neighbours share the
lookup and the peers; each peer is told several keys in one exchange.  A lookup finds the 20
peers closest to its own key for certain, and most of those beyond; whom it missed of another
key's closest, the answers to that key name, and they are told then.  How a lookup runs and how
messages travel is the driver's business (`network/kad_provide.py`; in the simulation,
`testing/dht_burst.py`); when a key is due, that of `core/provide_queue.py`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import takewhile

from dstore.core.kad_messages import KadMessage, KadPeer, MessageType
from dstore.core.kademlia import closest_of, common_prefix, kad_id
from dstore.core.neighbourhood import Neighbourhood
from dstore.core.peerid import PeerId
from dstore.limits import (
    KAD_BUCKET,
    KAD_PROVIDE_ATTEMPTS,
    KAD_PROVIDE_KEYS_PER_EXCHANGE,
    KAD_PROVIDE_LOOKUP_PEERS,
    KAD_PROVIDE_LOOKUPS_MAX,
    KAD_PROVIDE_ROUNDS_MAX,
    KAD_REPLICAS_WANTED,
)


@dataclass(frozen=True, slots=True)
class Provided:
    """How far a key was told: `told` peers were, and `confirmed` of them have its record."""

    told: int
    confirmed: int

    @property
    def enough(self) -> bool:
        """Whether as many have it as are wanted, or all of a smaller network."""
        return 0 < min(KAD_REPLICAS_WANTED, self.told) <= self.confirmed


def parts_of(keys: Iterable[bytes]) -> list[list[bytes]]:
    """`keys`, each once, in runs of neighbours to be told beside each other, one lookup of
    each run at a time."""
    ordered = sorted(set(keys), key=kad_id)
    size = max(-(-len(ordered) // KAD_PROVIDE_LOOKUPS_MAX), 1)
    return [ordered[start : start + size] for start in range(0, len(ordered), size)]


class SharedLookups:
    """For how many peers to look, and which keys the answer is good for."""

    def __init__(self) -> None:
        # How deep the region was that the last wide lookup knew: keys that share so many
        # bits are worth one.
        self._depth = 0

    def wanted(self, keys: Sequence[bytes]) -> int:
        """For how many peers closest to the first of `keys` to look."""
        shared = len(keys) > 1 and common_prefix(kad_id(keys[0]), kad_id(keys[1])) >= self._depth
        return KAD_PROVIDE_LOOKUP_PEERS if shared else KAD_BUCKET

    def served(self, keys: Sequence[bytes], around: Neighbourhood) -> list[bytes]:
        """The first of `keys`, and those after it, that are answered by a lookup towards the
        first which found `around`."""
        if around.ended and around.wanted > KAD_BUCKET:
            self._depth = around.depth
        return list(
            takewhile(lambda key: around.closest(kad_id(key), KAD_BUCKET) is not None, keys)
        )


class Telling:
    """Keys near each other being told, from the peers that one lookup found."""

    def __init__(
        self,
        own: PeerId,
        keys: Sequence[bytes],
        found: Sequence[PeerId],
        suspect: Callable[[PeerId], bool],
    ) -> None:
        """`suspect` tells peers that were silent lately."""
        self.keys = list(keys)
        self._own = own
        self._found = list(found)
        self._suspect = suspect
        self._failed: set[PeerId] = set()
        self._rounds = 0
        self._named: dict[bytes, Counter[PeerId]] = {key: Counter() for key in keys}
        self._told: dict[bytes, set[PeerId]] = {key: set() for key in keys}
        self._confirmed = dict.fromkeys(keys, 0)

    def closest(self, key: bytes) -> list[PeerId]:
        """The closest peers to `key` that are known and did not fail.  One peer's word is
        not enough: a liar could have any number of peers asked that do not exist.  Nor is
        anybody's where the peer was silent just now: the others have yet to notice."""
        named = (
            peer
            for peer, count in self._named[key].items()
            if count >= 2 and not self._suspect(peer)
        )
        known = {*self._found, *named} - self._failed - {self._own}
        return closest_of(known, kad_id(key), KAD_BUCKET)

    def result(self, key: bytes) -> Provided:
        """How far `key` has come."""
        return Provided(len(self._told[key]), self._confirmed[key])

    def next_round(self) -> dict[PeerId, list[Exchange]]:
        """Whom to tell now, in exchanges one after the other, once the last round is through:
        each key's closest, then whom those named that are closer.  Empty at the end."""
        keys_of: dict[PeerId, list[bytes]] = {}
        if self._rounds == KAD_PROVIDE_ROUNDS_MAX:
            return {}
        self._rounds += 1
        for key in self.keys:
            for peer in self.closest(key):
                if peer not in self._told[key]:
                    self._told[key].add(peer)
                    keys_of.setdefault(peer, []).append(key)
        size = KAD_PROVIDE_KEYS_PER_EXCHANGE
        return {
            peer: [Exchange(self, keys[i : i + size]) for i in range(0, len(keys), size)]
            for peer, keys in keys_of.items()
        }

    def failed(self, peer: PeerId) -> None:
        """`peer` does not answer: its other exchanges are not worth a try."""
        self._failed.add(peer)

    def took(self, key: bytes, answer: KadMessage, *, first: bool) -> bool:
        """The read-back of `key` by one peer, the `first` or a later one; returns whether it
        has the record."""
        if first:
            self._named[key].update(each.peer for each in answer.closer)
        confirmed = any(each.peer == self._own for each in answer.providers)
        self._confirmed[key] += confirmed
        return confirmed


class Exchange:
    """One peer being told some keys and asked for them, once more where that fails."""

    def __init__(self, telling: Telling, keys: Sequence[bytes]) -> None:
        self.keys = list(keys)
        """What is still to be told; empty at the end."""
        self.answered = False
        """Whether the peer answered at last.  One that refuses is none the worse for it."""
        self._telling = telling
        self._attempts = 0

    def requests(self, me: KadPeer) -> list[KadMessage]:
        """What to send in one go, `me` being the provider; GET_PROVIDERS alone is answered."""
        return [
            request
            for key in self.keys
            for request in (
                KadMessage(MessageType.ADD_PROVIDER, key, providers=(me,)),
                KadMessage(MessageType.GET_PROVIDERS, key),
            )
        ]

    def took(self, answers: Sequence[KadMessage]) -> None:
        """The peer answered, one answer for each of `keys`."""
        first = not self.answered
        self.answered = True
        self._again(
            [
                key
                for key, answer in zip(self.keys, answers, strict=True)
                if not self._telling.took(key, answer, first=first)
            ]
        )

    def lost(self) -> None:
        """Nothing came back, or nonsense."""
        self.answered = False
        self._again(self.keys)

    def _again(self, keys: list[bytes]) -> None:
        self._attempts += 1
        self.keys = keys if self._attempts < KAD_PROVIDE_ATTEMPTS else []
