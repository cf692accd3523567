"""Kademlia without I/O: the metric, the lookup, the provider store.

The routing table is in `core/kad_table.py`.

Peers are names here; where they can be reached and how they are asked is the driver's
business (`network/routing.py`).  Time comes in as `now`, in seconds of a monotonic clock.
Specification: libp2p kad-dht.
"""

from __future__ import annotations

import hashlib
from bisect import insort
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import Enum, auto
from functools import lru_cache
from itertools import islice
from typing import Final

from dstore.core.diversity import NOWHERE, Spread, Subnets
from dstore.core.kad_memory import Delays
from dstore.core.peerid import PeerId
from dstore.limits import (
    KAD_ADDRESSES_PER_PEER_MAX,
    KAD_AROUND_AT_ONCE,
    KAD_AROUND_MAX,
    KAD_BUCKET,
    KAD_CONCURRENCY,
    KAD_KEY_BYTES_MAX,
    KAD_KEYS_MAX,
    KAD_KEYS_PER_PEER_MAX,
    KAD_LOOKUP_NARROW_MAX,
    KAD_LOOKUP_WIDE_MAX,
    KAD_OVERDUE_SECONDS_MIN,
    KAD_PROVIDERS_PER_KEY_MAX,
    KAD_QUERIES_MAX,
    KAD_RECORDS_MAX,
    KAD_SLOW_SECONDS_MAX,
    KAD_SLOW_SECONDS_MIN,
    KAD_SUSPECT_SLOW_SECONDS_MIN,
    PROVIDER_SECONDS,
)

ID_BITS: Final = 256


@lru_cache(maxsize=65_536)
def kad_id(key: bytes) -> int:
    """The place of `key` (a multihash, or a peer id in binary) in the key space."""
    return int.from_bytes(hashlib.sha256(key).digest(), "big")


def distance(a: int, b: int) -> int:
    """How far apart two places are: their XOR, read as a number."""
    return a ^ b


def common_prefix(a: int, b: int) -> int:
    """The number of leading bits that two places share, 0 to 256."""
    return ID_BITS - (a ^ b).bit_length()


def closest_of(peers: Iterable[PeerId], target: int, count: int) -> list[PeerId]:
    """The `count` of `peers` closest to the place `target`, nearest first."""
    return sorted(peers, key=lambda peer: kad_id(peer.binary) ^ target)[:count]


# --- The lookup ------------------------------------------------------------------------


class _State(Enum):
    KNOWN = auto()
    ASKED = auto()
    SLOW = auto()  # asked, and no longer waited for
    ANSWERED = auto()
    FAILED = auto()


class Lookup:
    """One iterative search for the peers closest to a place in the key space.

    The driver asks whom `ask` names, reports `answered` or `failed`, and calls `tick` when
    `next_tick` comes.  Two limits, from how long answers take, keep silent peers from holding
    it up.  A peer that has not answered within the first, when most have, is overdue: another
    is asked in its stead, beside the concurrency.  One later than the search's patience is
    slow: the end of the search does not wait for it either.  An answer is taken whenever it
    comes.  The search has ended when the `count` closest peers that are neither failed nor
    slow have all answered.  Where it has left peers near the target behind, answers were full
    of names that are good for nothing; with `widen`, the farthest few that it found are then
    asked about their own surroundings (`ask_around`), which show who stands behind the gaps.
    Of one subnet only a few count as close, unless there are no others: ids ground next to
    the target from few subnets do not keep the search from the others near it.
    """

    def __init__(
        self,
        target: int,
        own: PeerId,
        *,
        count: int = KAD_BUCKET,
        concurrency: Callable[[], int] = lambda: KAD_CONCURRENCY,
        widen: bool = False,
        delays: Delays | None = None,
        suspect: Callable[[PeerId], bool] = lambda _: False,
        subnets: Callable[[PeerId], Subnets] = lambda _: NOWHERE,
    ) -> None:
        """`concurrency` tells how many may be asked at once, whenever somebody could be.
        `delays` is the node's memory of how long answers take, added to here.  `suspect`
        tells peers that were silent lately: they are waited for less.  `subnets` tells where
        a peer is, as far as is known when it is learnt of or answers."""
        self.target = target
        self._own = own
        self._count = count
        self._concurrency = concurrency
        self._widen = widen
        self._delays = Delays() if delays is None else delays
        self._suspect = suspect
        self._where = subnets
        self._subnets: dict[PeerId, Subnets] = {}
        self._states: dict[PeerId, _State] = {}
        self._order: list[tuple[int, PeerId]] = []
        self._first: list[PeerId] = []
        self._asked_at: dict[PeerId, float] = {}  # those whose answer may still come
        self._waiting: set[PeerId] = set()  # those in ASKED
        self._overdue: set[PeerId] = set()  # of these
        self._around: dict[PeerId, float | None] = {}  # asked around when; None where over
        self._edge_around = -1
        self._slowest_answer = 0.0
        self._queries = 0

    def learn(self, peers: Iterable[PeerId]) -> None:
        """Candidates, from the table or from an answer."""
        for peer in peers:
            if peer != self._own and peer not in self._states:
                self._states[peer] = _State.KNOWN
                self._subnets[peer] = self._where(peer)
                insort(self._order, (kad_id(peer.binary) ^ self.target, peer))

    def start_from(self, peers: Iterable[PeerId]) -> None:
        """Peers known for other reasons than being near: asked before all others, however far
        they are, so that those who surround the target are not the only ones to name others."""
        chosen = [peer for peer in peers if peer != self._own and peer not in self._states]
        self.learn(chosen)
        self._first += chosen

    def ask(self, now: float) -> list[PeerId]:
        """Peers to ask now; they count as asked from here on."""
        chosen: list[PeerId] = []
        at_once = self._concurrency()
        while self._first and self._in_flight < at_once:
            self._note_asked(peer := self._first.pop(0), now)
            chosen.append(peer)
        places = self._count
        for peer in self._ranked():
            if places <= 0 or self._queries >= KAD_QUERIES_MAX:
                break
            if self._states[peer] is _State.KNOWN:
                if self._in_flight >= at_once:
                    break
                chosen.append(peer)
                self._note_asked(peer, now)
            if peer not in self._overdue:
                places -= 1
        return chosen

    @property
    def _in_flight(self) -> int:
        return len(self._waiting) - len(self._overdue)

    def _note_asked(self, peer: PeerId, now: float) -> None:
        self._queries += 1
        self._states[peer] = _State.ASKED
        self._asked_at[peer] = now
        self._waiting.add(peer)

    def answered(self, peer: PeerId, closer: Iterable[PeerId], now: float) -> None:
        """`peer` answered, naming `closer` (at most as many as one message may hold)."""
        self.timed(peer, now)
        self._states[peer] = _State.ANSWERED
        self._subnets[peer] = self._where(peer)
        self.learn(closer)

    def timed(self, peer: PeerId, now: float) -> None:
        """`peer` answered, perhaps after the end of the search: so long do answers take."""
        self._not_waiting(peer)
        asked_at = self._asked_at.pop(peer, None)
        if asked_at is not None:
            self._slowest_answer = max(self._slowest_answer, now - asked_at)
            self._delays.note(now - asked_at)

    def failed(self, peer: PeerId) -> None:
        """`peer` cannot be had or broke the protocol."""
        self._asked_at.pop(peer, None)
        self._not_waiting(peer)
        self._states[peer] = _State.FAILED

    def _not_waiting(self, peer: PeerId) -> None:
        self._waiting.discard(peer)
        self._overdue.discard(peer)

    def ask_around(self, now: float) -> list[PeerId]:
        """Peers to ask now for those closest to themselves.  What comes of it is reported
        by `answered_around`, also where that is nothing."""
        if not (self._widen and self._window_answered()) or self._around_in_flight:
            return []
        window = [peer for peer, _ in zip(self._ranked(), range(self._count), strict=False)]
        if len(self._around) >= KAD_AROUND_MAX or len(window) < self._count:
            return []
        edge = kad_id(window[-1].binary) ^ self.target
        inside = (peer for place, peer in self._order if place < edge)
        gaps = any(self._states[peer] in (_State.FAILED, _State.SLOW) for peer in inside)
        if not gaps or edge == self._edge_around:
            return []  # or those asked last named nobody nearer
        self._edge_around = edge
        chosen = [peer for peer in reversed(window) if peer not in self._around]
        chosen = chosen[: min(KAD_AROUND_AT_ONCE, KAD_AROUND_MAX - len(self._around))]
        self._around.update(dict.fromkeys(chosen, now))
        return chosen

    def answered_around(self, peer: PeerId, closer: Iterable[PeerId]) -> None:
        """`peer`, asked around, named `closer`."""
        self._around[peer] = None
        self.learn(closer)

    @property
    def _around_in_flight(self) -> bool:
        return any(asked is not None for asked in self._around.values())

    def patience(self, peer: PeerId) -> float:
        """Seconds for which an answer of `peer` is waited for."""
        if self._suspect(peer):
            return min(max(self._delays.high, KAD_SUSPECT_SLOW_SECONDS_MIN), KAD_SLOW_SECONDS_MAX)
        usual = max(2 * self._delays.high, 1.5 * self._slowest_answer)
        return min(max(usual, KAD_SLOW_SECONDS_MIN), KAD_SLOW_SECONDS_MAX)

    def _prompt(self, peer: PeerId) -> float:
        """Seconds after which `peer` is overdue, and another is asked."""
        most = max(self._delays.high, KAD_OVERDUE_SECONDS_MIN)
        return min(most, self.patience(peer))

    @property
    def next_tick(self) -> float:
        """The instant at which `tick` has something to do; infinity where nobody is asked."""
        ends = [
            self._asked_at[peer]
            + (self.patience(peer) if peer in self._overdue else self._prompt(peer))
            for peer in self._waiting
        ]
        ends += [at + self.patience(p) for p, at in self._around.items() if at is not None]
        return min(ends, default=float("inf"))

    def tick(self, now: float) -> None:
        """Stop waiting for those that are late."""
        for peer in list(self._waiting):
            asked = self._asked_at[peer]
            if now >= asked + self.patience(peer):
                self._not_waiting(peer)
                self._states[peer] = _State.SLOW
            elif now >= asked + self._prompt(peer):
                self._overdue.add(peer)
        for peer, at in self._around.items():
            if at is not None and now >= at + self.patience(peer):
                self._around[peer] = None

    @property
    def finished(self) -> bool:
        """Whether asking or waiting on brings nothing better.  While nobody answered at all,
        the slow are waited for too."""
        if self._around_in_flight:
            return False
        if self._waiting:
            return self._window_answered()
        exhausted = self._queries >= KAD_QUERIES_MAX
        if not exhausted and not self._window_answered():
            return False
        states = self._states.values()
        return _State.ANSWERED in states or _State.SLOW not in states

    def _ranked(self) -> Iterator[PeerId]:
        """Those that are neither failed nor slow, nearest first; after all others those of
        which the subnet has nearer peers enough already."""
        spread = Spread(KAD_LOOKUP_WIDE_MAX, KAD_LOOKUP_NARROW_MAX)
        crowded: list[PeerId] = []
        for _, peer in self._order:
            if self._states[peer] in (_State.FAILED, _State.SLOW):
                continue
            subnets = self._subnets[peer]
            if not subnets:
                yield peer
            elif spread.fits(subnets):
                spread.add(subnets)
                yield peer
            else:
                crowded.append(peer)
        yield from crowded

    def _window_answered(self) -> bool:
        places = self._count
        for peer in self._ranked():
            state = self._states[peer]
            if state is _State.ANSWERED:
                places -= 1
                if not places:
                    return True
            else:
                return False
        return True

    def closest(self) -> list[PeerId]:
        """Up to `count` peers that answered, nearest first; few of one subnet while there are
        others."""
        answered = (p for p in self._ranked() if self._states[p] is _State.ANSWERED)
        chosen = [peer for peer, _ in zip(answered, range(self._count), strict=False)]
        return closest_of(chosen, self.target, self._count)

    def unheard(self) -> list[PeerId]:
        """Those of the `count` closest who have not answered, where the search was ended before
        they did or were asked."""
        nearest = islice(self._ranked(), self._count)
        return [peer for peer in nearest if self._states[peer] is not _State.ANSWERED]

    def late(self) -> list[PeerId]:
        """Peers that are no longer waited for, and have not answered since."""
        return [peer for peer, state in self._states.items() if state is _State.SLOW]


# --- The provider store ----------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ProviderRecord:
    """`peer`, at `addresses`, said that it provides a key; good until `expires`."""

    peer: PeerId
    addresses: tuple[str, ...]
    expires: float


class ProviderStore:
    """Who provides what, as providers themselves said; bounded in every direction.

    Where a bound is reached, what is there stays and what is new is refused: a flood of
    newcomers displaces nobody.
    """

    def __init__(
        self,
        *,
        keys_max: int = KAD_KEYS_MAX,
        keys_per_peer_max: int = KAD_KEYS_PER_PEER_MAX,
        records_max: int = KAD_RECORDS_MAX,
        providers_per_key_max: int = KAD_PROVIDERS_PER_KEY_MAX,
        seconds: float = PROVIDER_SECONDS,
    ) -> None:
        self._keys_max = keys_max
        self._keys_per_peer_max = keys_per_peer_max
        self._records_max = records_max
        self._providers_per_key_max = providers_per_key_max
        self._seconds = seconds
        self._keys: dict[bytes, dict[PeerId, ProviderRecord]] = {}
        self._keys_of: Counter[PeerId] = Counter()
        # What each provider said last: its other records share the id and, mostly, addresses.
        self._said: dict[PeerId, ProviderRecord] = {}
        # Every record lives equally long, so the order of saying is the order of expiry.
        self._order: OrderedDict[tuple[bytes, PeerId], None] = OrderedDict()

    def __len__(self) -> int:
        """The number of records."""
        return len(self._order)

    @property
    def keys(self) -> int:
        """The number of keys that have a record."""
        return len(self._keys)

    def add(
        self,
        key: bytes,
        peer: PeerId,
        addresses: tuple[str, ...],
        now: float,
        seconds: float | None = None,
    ) -> bool:
        """`peer` says it provides `key`; returns whether the store took it.  `seconds` is
        what is left of a record that was saved: it replaces none, and goes before all others
        in the order of expiry, so that those saved are to be added last to expire first."""
        self.expire(now)
        if not 0 < len(key) <= KAD_KEY_BYTES_MAX:
            return False
        records = self._keys.get(key, {})
        if seconds is not None and peer in records:
            return False
        if peer not in records and (
            len(records) >= self._providers_per_key_max
            or self._keys_of[peer] >= self._keys_per_peer_max
            or (not records and len(self._keys) >= self._keys_max)
            or len(self._order) >= self._records_max
        ):
            if not self._keys_of[peer]:
                del self._keys_of[peer]
            return False
        lives = self._seconds if seconds is None else min(seconds, self._seconds)
        if lives <= 0:
            return False
        if peer not in records:
            self._keys_of[peer] += 1
        addresses = addresses[:KAD_ADDRESSES_PER_PEER_MAX]
        said = self._said.get(peer)
        if said is not None:
            peer = said.peer
            addresses = said.addresses if said.addresses == addresses else addresses
        record = self._said[peer] = ProviderRecord(peer, addresses, now + lives)
        self._keys.setdefault(key, {})[peer] = record
        self._order[key, peer] = None
        self._order.move_to_end((key, peer), last=seconds is None)
        return True

    def providers(self, key: bytes, now: float) -> list[ProviderRecord]:
        """The providers of `key`, the longest known first."""
        return [r for r in self._keys.get(key, {}).values() if r.expires > now]

    def expire(self, now: float) -> int:
        """Drop what has expired; returns the number of records dropped."""
        dropped = 0
        while self._order:
            key, peer = next(iter(self._order))
            if self._keys[key][peer].expires > now:
                break
            self._drop(key, peer)
            dropped += 1
        return dropped

    def discard(self, key: bytes, peer: PeerId) -> None:
        """Forget one record, if it is there."""
        if (key, peer) in self._order:
            self._drop(key, peer)

    def _drop(self, key: bytes, peer: PeerId) -> None:
        del self._order[key, peer]
        records = self._keys[key]
        del records[peer]
        if not records:
            del self._keys[key]
        self._keys_of[peer] -= 1
        if not self._keys_of[peer]:
            del self._keys_of[peer], self._said[peer]

    def records(self, now: float) -> Iterator[tuple[bytes, ProviderRecord]]:
        """Every live record, the first to expire first."""
        for key, peer in self._order:
            record = self._keys[key][peer]
            if record.expires > now:
                yield key, record

    def said_since(self, instant: float, now: float) -> Iterator[tuple[bytes, ProviderRecord]]:
        """The live records that were said at `instant` or later, the latest first."""
        for key, peer in reversed(self._order):
            record = self._keys[key][peer]
            if record.expires < instant + self._seconds:
                return
            if record.expires > now:
                yield key, record
