"""The DHT peers a node knows: its routing table, peers known from elsewhere, the silent.

Addresses are the network's (`Network.known_addresses`); here stand only those of peers that
it has not met.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import trio

from dstore.core.diversity import NOWHERE, Subnets, subnets_of
from dstore.core.kad_memory import Delays, Suspects
from dstore.core.kad_table import RoutingTable
from dstore.core.kademlia import closest_of
from dstore.core.peerid import PeerId
from dstore.limits import (
    KAD_ADDRESSES_PER_PEER_MAX,
    KAD_BUCKET,
    KAD_EXTRA_PEERS_MAX,
    KAD_TRUSTED_STARTS,
)
from dstore.network.peers import with_room_for
from dstore.network.streams import Network, PeerAddresses


class KnownPeers:
    """Whom to ask, where they are, and how they behaved lately."""

    def __init__(self, network: Network) -> None:
        self.own = network.peer_id
        self.table = RoutingTable(network.peer_id)
        self.delays = Delays()
        self._network = network
        self._extra: OrderedDict[PeerId, tuple[str, ...]] = OrderedDict()
        self._suspects = Suspects()

    def where(self, peer: PeerId, hints: Sequence[str] = ()) -> PeerAddresses:
        """Where `peer` can be reached: what the network knows, then `hints`."""
        known = (*self._network.known_addresses(peer), *self._extra.get(peer, ()))
        return PeerAddresses(peer, with_room_for(known, hints, KAD_ADDRESSES_PER_PEER_MAX))

    def subnets(self, peer: PeerId, hints: Sequence[str] = ()) -> Subnets:
        """Where `peer` is: where it is connected, whatever is said of it; for one that is not,
        what is known, and only where nothing is, what others say (`hints`)."""
        if (reached := self._network.reached_at(peer)) is not None:
            return subnets_of([reached])
        known = self._network.known_addresses(peer) or self._extra.get(peer, ())
        return subnets_of(known or hints)

    def add_extra(self, target: PeerAddresses) -> None:
        """A peer known from elsewhere, for lookups to start from."""
        if target.peer == self.own:
            return
        self._extra[target.peer] = target.addresses[:KAD_ADDRESSES_PER_PEER_MAX]
        self._extra.move_to_end(target.peer)
        if len(self._extra) > KAD_EXTRA_PEERS_MAX:
            self._extra.popitem(last=False)

    def starts(self, target: int) -> list[PeerId]:
        """Peers from which to search for the place `target`."""
        return self.table.closest(target, 3 * KAD_BUCKET) + closest_of(
            self._extra, target, KAD_BUCKET
        )

    def trusted_starts(self, target: int) -> list[PeerId]:
        """A few peers known from elsewhere, to ask first; none that was silent lately."""
        able = (peer for peer in self._extra if not self.is_suspect(peer))
        return closest_of(able, target, KAD_TRUSTED_STARTS)

    def heard(self, peer: PeerId) -> None:
        """`peer` speaks the protocol as a server."""
        self._suspects.discard(peer)
        # Where it is counts when it comes only.
        subnets = NOWHERE if peer in self.table else self.subnets(peer)
        self.table.heard(peer, trio.current_time(), subnets)

    def late(self, peer: PeerId) -> None:
        """`peer` has not answered yet, later than others do."""
        self._suspects.add(peer, trio.current_time())

    def unanswered(self, peer: PeerId) -> None:
        """`peer` did not answer a request."""
        self.table.failed(peer)
        self.late(peer)

    def is_suspect(self, peer: PeerId) -> bool:
        """Whether `peer` was late or silent a short while ago."""
        return self._suspects.has(peer, trio.current_time())
