"""What holders say right now that they have of a segment.

They are asked, not believed from memory: a peer that is well may have lost its disk.  What
they say of their leases is noted, for they extend them without telling anybody.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import trio

from dstore.core.cid import CID
from dstore.core.peerid import PeerId
from dstore.errors import NetworkError, PeerError
from dstore.limits import CLOCK_SKEW_SECONDS_MAX, HELLO_SECONDS, LEASE_SECONDS_MIN
from dstore.network.fragments_client import FragmentsClient
from dstore.network.streams import Network
from dstore.runtime import Runtime, open_plain_nursery
from dstore.service.offer import Offer
from dstore.service.stores import Stores

Holding = dict[int, dict[PeerId, float]]
"""Slot → the peers that have it whole, each with the end of its lease in unix seconds."""


class Holdings:
    """Asks holders, all of a segment at once."""

    def __init__(
        self, network: Network, client: FragmentsClient, stores: Stores, runtime: Runtime
    ) -> None:
        self._network = network
        self._client = client
        self._stores = stores
        self._runtime = runtime

    async def ask(
        self, segment: CID, peers: Collection[PeerId], silent: set[PeerId], wanted_until: float
    ) -> Holding:
        """What this node and those of the peers that answer within HELLO_SECONDS have of the
        segment.  Peers of `silent` are not asked again; those that do not answer join them.
        No lease is taken for one beyond `wanted_until`, the end of the pin record."""
        found: Holding = {}
        asked = set(peers) - silent - {self._network.peer_id}
        silent |= asked  # until they answer
        with trio.move_on_after(HELLO_SECONDS):
            async with open_plain_nursery() as nursery:
                for peer in sorted(asked):
                    nursery.start_soon(self._ask, peer, segment, found, silent)
        for peers_of_slot in found.values():
            for peer, expires in peers_of_slot.items():
                peers_of_slot[peer] = min(expires, wanted_until)
        await self._runtime.workers.run(self._note, segment, found)
        return found

    async def confirmed(self, offer: Offer, silent: set[PeerId], wanted_until: float) -> Offer:
        """The offer, of those who have slots of it only who says so now and that a lease runs
        for a day yet, or as long as it is wanted; as `ask`.  What a peer says proves no lease of
        this owner: another one may want the same slot."""
        believed, segment = offer.stored, offer.segment.cid
        peers = {peer for peers in believed.values() for peer in peers}
        found = await self.ask(segment, peers, silent, wanted_until)
        a_day = self._runtime.clock.now() + LEASE_SECONDS_MIN - CLOCK_SKEW_SECONDS_MAX
        enough = min(wanted_until, a_day)
        leased = {
            slot: {peer for peer, expires in peers_of_slot.items() if expires >= enough}
            for slot, peers_of_slot in found.items()
        }
        kept = {
            slot: leased.get(slot, set()).intersection(peers) for slot, peers in believed.items()
        }
        return replace(offer, stored={slot: peers for slot, peers in kept.items() if peers})

    async def _ask(self, peer: PeerId, segment: CID, found: Holding, silent: set[PeerId]) -> None:
        try:
            answer = await self._client.have(peer, [segment])
        except (NetworkError, PeerError):
            return
        silent.discard(peer)
        for holding in answer.holdings:
            for held in holding.slots:
                if held.whole:
                    found.setdefault(held.slot, {})[peer] = float(held.lease_expires)

    def _note(self, segment: CID, found: Holding) -> None:
        """In a worker: the leases of slots that were known to be with these peers; then what
        this node has itself joins `found`."""
        catalog, now = self._stores.catalog, self._runtime.clock.now()
        news = [
            replace(row, expires=found[row.slot][row.peer], last_answered=now)
            for row in catalog.placements(segment)
            if found.get(row.slot, {}).get(row.peer, 0.0) > now
        ]
        if news:
            catalog.put_placements(news)
        for own in catalog.held_slots(segment):
            if own.state == "held" and own.expires > now:
                found.setdefault(own.slot, {})[self._network.peer_id] = own.expires
