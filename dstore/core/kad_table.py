"""The routing table of a Kademlia node, without I/O.

Specification: libp2p kad-dht; the limits for each subnet are dstore's own.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from dstore.core.diversity import NOWHERE, Spread, Subnets
from dstore.core.kademlia import closest_of, common_prefix, kad_id
from dstore.core.peerid import PeerId
from dstore.limits import (
    KAD_BUCKET,
    KAD_BUCKET_NARROW_MAX,
    KAD_BUCKET_SOUGHT,
    KAD_BUCKET_WIDE_MAX,
    KAD_FAILURES_MAX,
    KAD_REFRESH_ANSWERS,
    KAD_TABLE_NARROW_MAX,
    KAD_TABLE_WIDE_MAX,
)


@dataclass(slots=True)
class _Entry:
    peer: PeerId
    seen: float
    subnets: Subnets
    failures: int = 0


class _Bucket:
    __slots__ = ("entries", "spread", "waiting")

    def __init__(self) -> None:
        self.entries: dict[PeerId, _Entry] = {}
        self.spread = Spread(KAD_BUCKET_WIDE_MAX, KAD_BUCKET_NARROW_MAX)
        # Peers heard of while there was no place for them, the latest last.
        self.waiting: OrderedDict[PeerId, _Entry] = OrderedDict()


class RoutingTable:
    """The server peers this node knows: up to k for each length of common prefix.

    A newcomer never displaces a peer that answers; it waits, in equally bounded number,
    until one leaves or has failed `failures_max` times in a row.  Of one subnet only a few are
    taken, in each bucket and in all; peers without a public address are not limited so.
    """

    def __init__(
        self,
        own: PeerId,
        *,
        bucket_size: int = KAD_BUCKET,
        failures_max: int = KAD_FAILURES_MAX,
    ) -> None:
        self._own = own
        self._own_id = kad_id(own.binary)
        self._bucket_size = bucket_size
        self._failures_max = failures_max
        self._buckets: dict[int, _Bucket] = {}
        self._size = 0
        self.changes = 0
        """How many peers have come and left so far."""
        self._spread = Spread(KAD_TABLE_WIDE_MAX, KAD_TABLE_NARROW_MAX)

    def __len__(self) -> int:
        return self._size

    def __contains__(self, peer: PeerId) -> bool:
        bucket = self._buckets.get(self._index(peer))
        return bucket is not None and peer in bucket.entries

    def __iter__(self) -> Iterator[PeerId]:
        for bucket in self._buckets.values():
            yield from bucket.entries

    def _index(self, peer: PeerId) -> int:
        return common_prefix(self._own_id, kad_id(peer.binary))

    def heard(self, peer: PeerId, now: float, subnets: Subnets = NOWHERE) -> bool:
        """`peer`, a server in `subnets`, was heard from.  Returns whether it is in the table
        after; where it was already, it stays whatever its subnets are now."""
        if peer == self._own:
            return False
        bucket = self._buckets.setdefault(self._index(peer), _Bucket())
        entry = bucket.entries.get(peer)
        if entry is not None:
            entry.seen, entry.failures = now, 0
            return True
        entry = _Entry(peer, now, subnets)
        if self._has_place(bucket, entry):
            bucket.waiting.pop(peer, None)
            self._admit(bucket, entry)
            return True
        bucket.waiting[peer] = entry
        bucket.waiting.move_to_end(peer)
        if len(bucket.waiting) > self._bucket_size:
            bucket.waiting.popitem(last=False)
        return False

    def lacking(self, peers: Iterable[PeerId]) -> set[PeerId]:
        """Those of `peers` of which each by itself is worth meeting for the table, its subnet
        aside."""
        known = self._known()
        return {peer for peer in peers if self._lacks(peer, known)}

    def _lacks(self, peer: PeerId, known: Mapping[int, int]) -> bool:
        return (
            peer != self._own and peer not in self and self._missing(self._index(peer), known) > 0
        )

    def to_meet(self, peers: Iterable[PeerId]) -> list[PeerId]:
        """Those of `peers` that are worth meeting for the table, subnets aside: the k nearest
        of all that it would then know, and a few with each of the shorter common prefixes,
        where up to k are taken if they come by themselves.  Give the nearest first."""
        known = self._known()
        chosen: list[PeerId] = []
        for peer in peers:
            if self._lacks(peer, known):
                index = self._index(peer)
                known[index] = known.get(index, 0) + 1
                chosen.append(peer)
        return chosen

    def reach(self, nearest: Sequence[PeerId]) -> int:
        """The common prefix from which on `nearest` is all that somebody knows who was asked for
        the k nearest to this node; 0 where that is everybody."""
        if len(nearest) < self._bucket_size:
            return 0
        return 1 + min(map(self._index, nearest))

    def _known(self) -> dict[int, int]:
        """How many peers are in the table with each common prefix."""
        return {index: len(bucket.entries) for index, bucket in self._buckets.items()}

    def _missing(self, index: int, known: Mapping[int, int]) -> int:
        """How many more peers to look for with this common prefix, where so many are known with
        each."""
        nearer = sum(count for i, count in known.items() if i > index)
        few = min(KAD_BUCKET_SOUGHT, self._bucket_size)
        return max(self._bucket_size - nearer, few) - known.get(index, 0)

    def _has_place(self, bucket: _Bucket, entry: _Entry) -> bool:
        return (
            len(bucket.entries) < self._bucket_size
            and bucket.spread.fits(entry.subnets)
            and self._spread.fits(entry.subnets)
        )

    def _admit(self, bucket: _Bucket, entry: _Entry) -> None:
        bucket.entries[entry.peer] = entry
        bucket.spread.add(entry.subnets)
        self._spread.add(entry.subnets)
        self._size += 1
        self.changes += 1

    def failed(self, peer: PeerId) -> None:
        """A request to `peer` went unanswered."""
        bucket = self._buckets.get(self._index(peer))
        if bucket is None:
            return
        bucket.waiting.pop(peer, None)
        entry = bucket.entries.get(peer)
        if entry is not None:
            entry.failures += 1
            if entry.failures >= self._failures_max:
                self.remove(peer)

    def remove(self, peer: PeerId) -> None:
        """`peer` left, or is no server any more; the latest that waits in its bucket and fits
        takes its place."""
        bucket = self._buckets.get(self._index(peer))
        if bucket is None:
            return
        bucket.waiting.pop(peer, None)
        left = bucket.entries.pop(peer, None)
        if left is None:
            return
        bucket.spread.remove(left.subnets)
        self._spread.remove(left.subnets)
        self._size -= 1
        self.changes += 1
        for successor in reversed(bucket.waiting.values()):
            if self._has_place(bucket, successor):
                del bucket.waiting[successor.peer]
                self._admit(bucket, successor)
                break

    def closest(self, target: int, count: int = KAD_BUCKET) -> list[PeerId]:
        """The `count` peers closest to `target`, nearest first; peers whose last request
        failed only where there are not enough others."""
        entries = [e for bucket in self._buckets.values() for e in bucket.entries.values()]
        chosen = closest_of((e.peer for e in entries if not e.failures), target, count)
        if len(chosen) < count:
            failing = (e.peer for e in entries if e.failures)
            chosen += closest_of(failing, target, count - len(chosen))
        return chosen

    def unheard_since(self, instant: float, count: int) -> list[PeerId]:
        """Up to `count` peers last heard from before `instant`, the longest silent first."""
        entries = (
            e
            for bucket in self._buckets.values()
            for e in bucket.entries.values()
            if e.seen < instant
        )
        return [e.peer for e in heapq.nsmallest(count, entries, key=lambda e: e.seen)]

    def sparse_prefixes(self) -> list[int]:
        """Common prefix lengths, up to the longest in use, with which peers are looked for: the
        widest first, and last those in which some wait, since there is no place for their
        subnets."""
        longest = max((i for i, b in self._buckets.items() if b.entries), default=-1)
        sparse: list[int] = []
        crowded: list[int] = []
        known = self._known()
        for index in range(longest + 1):
            bucket = self._buckets.get(index)
            if self._missing(index, known) > 0:
                (crowded if bucket and bucket.waiting else sparse).append(index)
        return sparse + crowded


class LookAround:
    """A look-up that is only to find peers for a table: whether its answers go on telling of
    such that no answer before did."""

    def __init__(self, table: RoutingTable) -> None:
        self._table = table
        self._named: set[PeerId] = set()
        self._reach: int | None = None
        self._fruitless = 0

    def over(self, named: Iterable[PeerId]) -> bool:
        """Whether it is over with an answer that names these: several in a row named nobody new
        whom the table lacks, and the others, who know the same peers, would not."""
        peers = list(named)
        self._reach = max(self._reach or 0, self._table.reach(peers))
        new = self._table.lacking(peers) - self._named
        self._named |= new
        self._fruitless = 0 if new else self._fruitless + 1
        return self._fruitless >= KAD_REFRESH_ANSWERS

    def at_once(self) -> int:
        """How many to ask at the same time: as many answers as could end it."""
        return KAD_REFRESH_ANSWERS - self._fruitless

    def left(self) -> list[int]:
        """After a look-up of the own id: the table's sparse prefixes with which there may be
        peers whom no answer named, since they are not among the nearest.  All of them, where
        nobody answered."""
        sparse = self._table.sparse_prefixes()
        return sparse if self._reach is None else [i for i in sparse if i < self._reach]
