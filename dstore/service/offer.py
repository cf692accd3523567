"""What is offered to holders for one segment: its slots, for whom, and who may take them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from dstore.core.cid import CID
from dstore.core.guarantee import Guarantee, guarantee, shapes_of
from dstore.core.manifest import Segment
from dstore.core.peerid import PeerId
from dstore.core.placement import (
    UNVERIFIED,
    Assignment,
    Candidate,
    assign,
    domain_components,
    less_room,
    needs_of,
)
from dstore.service.pinrecords import Wish


@dataclass(frozen=True)
class Offer:
    """What is offered with every slot of one segment; `documents` are the blocks of the
    manifest and the segment, `stored` the peers that have slots of it already, as far as is
    known."""

    wish: Wish
    manifest: CID
    segment: Segment
    documents: Mapping[CID, bytes]
    candidates: Sequence[Candidate]
    group: bytes
    stored: Mapping[int, Collection[PeerId]] = field(default_factory=dict)

    async def load(self, cid: CID) -> bytes:
        """One of the documents, as a holder asks for it."""
        return self.documents[cid]

    async def load_all(self, cids: Sequence[CID]) -> list[bytes]:
        """Some of the documents."""
        return [self.documents[cid] for cid in cids]

    def assign(
        self,
        holders: Mapping[int, Collection[PeerId]],
        avoid: Collection[PeerId] = (),
        brought: Mapping[int, Collection[PeerId]] | None = None,
    ) -> Assignment:
        """Who is to hold what, given who holds some of it already; of what the candidates said
        to have free, the slots `brought` to them since take their part."""
        return assign(
            self.segment.cid,
            needs_of(self.segment),
            less_room(self.candidates, self.bytes_of(brought or {})),
            self.segment.code,
            placed=holders,
            avoid=avoid,
            group=self.group,
            stored=self.stored,
        )

    def bytes_of(self, slots: Mapping[int, Collection[PeerId]]) -> Counter[PeerId]:
        """How much each peer stores for the slots that it has of these."""
        found: Counter[PeerId] = Counter()
        for slot, peers in slots.items():
            for peer in peers:
                found[peer] += self.segment.slot_bytes(slot)
        return found

    def guarantee(self, holders: Mapping[int, Collection[PeerId]]) -> Guarantee:
        """What may be lost once the slots have these holders."""
        return guarantee(shapes_of(self.segment), holders, domain_components(self.candidates))

    def crowds(
        self, others: Mapping[int, Collection[PeerId]], peer: PeerId, instead: Collection[PeerId]
    ) -> bool:
        """Whether a slot lies with more of the `others` in one failure domain where those of
        `instead` hold it than where `peer` does."""
        domain_of = domain_components(self.candidates)
        everybody = (one for peers in others.values() for one in peers)
        held_in = Counter(domain_of.get(one, UNVERIFIED) for one in everybody)
        least = held_in[domain_of.get(peer, UNVERIFIED)]
        return any(held_in[domain_of[one]] > least for one in instead)

    def worth_keeping(self) -> dict[int, tuple[PeerId, ...]]:
        """Of what is stored already, what leaves the slots as well spread as they could be now:
        peers that took many slots when there were few peers keep their fair share."""
        fresh = self.assign({}).holders
        domain_of = domain_components(self.candidates)
        everybody = [peer for peers in fresh.values() for peer in peers]
        per_peer = max(Counter(everybody).values(), default=0)
        per_domain = max(Counter(domain_of[peer] for peer in everybody).values(), default=0)
        in_peer: Counter[PeerId] = Counter()
        in_domain: Counter[str] = Counter()
        kept: dict[int, tuple[PeerId, ...]] = {}
        for slot, peers in sorted(self.stored.items()):
            for peer in sorted(peers):
                domain = domain_of[peer]
                if in_peer[peer] < per_peer and in_domain[domain] < per_domain:
                    in_peer[peer] += 1
                    in_domain[domain] += 1
                    kept[slot] = (*kept.get(slot, ()), peer)
        return kept
