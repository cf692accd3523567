"""The address book: which peers this node has heard of, and where.

Bounded in peers and in addresses per peer; whom we have heard of least recently goes first,
peers that we are connected to stay.  libp2p's own store evicts the node's own key and is
not asked.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator

from dstore.core.peerid import PeerId
from dstore.limits import ADDRESSES_PER_PEER_MAX, PEERS_KNOWN_MAX
from dstore.network.addresses import dialable


class AddressBook:
    """Addresses by peer, most recently useful first."""

    def __init__(
        self,
        keep: Callable[[PeerId], bool] = lambda peer: False,
        peers_max: int = PEERS_KNOWN_MAX,
        addresses_max: int = ADDRESSES_PER_PEER_MAX,
    ) -> None:
        """`keep` says which peers are not to be forgotten for room."""
        self._keep = keep
        self._peers_max = peers_max
        self._addresses_max = addresses_max
        self._by_peer: OrderedDict[PeerId, tuple[str, ...]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._by_peer)

    def __iter__(self) -> Iterator[PeerId]:
        return iter(list(self._by_peer))

    def known(self, peer: PeerId) -> tuple[str, ...]:
        return self._by_peer.get(peer, ())

    def remember(self, peer: PeerId, addresses: Iterable[str]) -> None:
        """Note what somebody says; addresses known already keep their place before it."""
        self._store(peer, (*self.known(peer), *dialable(addresses, peer)))

    def announced(self, peer: PeerId, addresses: Iterable[str]) -> None:
        """Note what the peer itself says, before what others said."""
        self._store(peer, (*dialable(addresses, peer), *self.known(peer)))

    def reached(self, peer: PeerId, address: str) -> None:
        """Note that the address worked: it is tried first next time."""
        self._store(peer, (address, *self.known(peer)))

    def failed(self, peer: PeerId, address: str) -> None:
        """Note that the address did not work: it is tried last, and goes first for room."""
        others = [known for known in self.known(peer) if known != address]
        if len(others) < len(self.known(peer)):
            self._by_peer[peer] = (*others, address)

    def forget(self, peer: PeerId) -> None:
        self._by_peer.pop(peer, None)

    def _store(self, peer: PeerId, addresses: Iterable[str]) -> None:
        kept = tuple(dict.fromkeys(addresses))[: self._addresses_max]
        if not kept:
            return
        self._by_peer[peer] = kept
        self._by_peer.move_to_end(peer)
        if len(self._by_peer) > self._peers_max:
            self._evict(newcomer=peer)

    def _evict(self, newcomer: PeerId) -> None:
        for peer in self._by_peer:
            if peer != newcomer and not self._keep(peer):
                break
        else:
            peer = newcomer
        del self._by_peer[peer]
