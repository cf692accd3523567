"""The address book: which peers this node has heard of, and where.

Bounded in peers and in addresses per peer; whom we have heard of least recently goes first,
peers that we are connected to stay.  libp2p's own store evicts the node's own key and is
not asked.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from typing import Final, NamedTuple

from dstore.core.peerid import PeerId
from dstore.limits import ADDRESSES_PER_PEER_MAX, PEERS_KNOWN_MAX
from dstore.network.addresses import dialable


class _Addresses(NamedTuple):
    """Of one peer: those that may work, the most promising first, and those that did not."""

    hopeful: tuple[str, ...] = ()
    failed: tuple[str, ...] = ()


_NONE: Final = _Addresses()


def with_room_for(known: Iterable[str], told: Iterable[str], count: int) -> tuple[str, ...]:
    """At most `count` addresses of those known and those told now: half of the room is not for
    whoever spoke first, or one lie would keep every truth out."""
    first = tuple(known)
    half = count // 2
    return tuple(dict.fromkeys((*first[:half], *told, *first[half:])))[:count]


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
        self._by_peer: OrderedDict[PeerId, _Addresses] = OrderedDict()

    def __len__(self) -> int:
        return len(self._by_peer)

    def __iter__(self) -> Iterator[PeerId]:
        return iter(list(self._by_peer))

    def known(self, peer: PeerId) -> tuple[str, ...]:
        hopeful, failed = self._of(peer)
        return hopeful + failed

    def remember(self, peer: PeerId, addresses: Iterable[str]) -> None:
        """Note what somebody says; the most promising of those known keep their place before
        it, and what failed before stays so."""
        hopeful, failed = self._of(peer)
        told = [address for address in dialable(addresses, peer) if address not in failed]
        self._store(peer, with_room_for(hopeful, told, self._addresses_max))

    def announced(self, peer: PeerId, addresses: Iterable[str]) -> None:
        """Note what the peer itself says, before what others said."""
        self._store_first(peer, dialable(addresses, peer))

    def reached(self, peer: PeerId, address: str) -> None:
        """Note that the address worked: it is tried first next time."""
        self._store_first(peer, [address])

    def failed(self, peer: PeerId, address: str) -> None:
        """Note that the address did not work: it is tried last, and goes first for room."""
        hopeful, failed = self._of(peer)
        if address in hopeful + failed:
            self._by_peer[peer] = _Addresses(
                tuple(one for one in hopeful if one != address),
                (*(one for one in failed if one != address), address),
            )

    def forget(self, peer: PeerId) -> None:
        self._by_peer.pop(peer, None)

    def _of(self, peer: PeerId) -> _Addresses:
        return self._by_peer.get(peer, _NONE)

    def _store_first(self, peer: PeerId, addresses: Iterable[str]) -> None:
        hopeful = (*addresses, *self._of(peer).hopeful)
        self._store(peer, tuple(dict.fromkeys(hopeful))[: self._addresses_max])

    def _store(self, peer: PeerId, hopeful: tuple[str, ...]) -> None:
        failed = tuple(one for one in self._of(peer).failed if one not in hopeful)
        if not hopeful and not failed:
            return
        self._by_peer[peer] = _Addresses(hopeful, failed[: self._addresses_max - len(hopeful)])
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
