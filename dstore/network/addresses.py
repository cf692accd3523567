"""Addresses as peers are told and dialled by them: an endpoint, and whose it is.

Specification: multiformats multiaddr.
"""

from __future__ import annotations

from collections.abc import Iterable

from dstore.core.endpoint import parse_endpoint
from dstore.core.peerid import PeerId
from dstore.errors import InvalidCid
from dstore.network.streams import PeerAddresses


def split_peer(address: str) -> tuple[str, PeerId | None]:
    """An address without its /p2p part, and the peer that this part names.
    Raises ValueError where either is malformed."""
    transport, mark, name = address.partition("/p2p/")
    endpoint = str(parse_endpoint(transport))
    if not mark:
        return endpoint, None
    try:
        return endpoint, PeerId.parse(name)
    except InvalidCid as error:
        raise ValueError(f"{address!r}: {error}") from error


def parse_target(address: str) -> PeerAddresses:
    """The peer and address in `<multiaddr>/p2p/<peer id>`.  Raises ValueError."""
    transport, peer = split_peer(address)
    if peer is None:
        raise ValueError(f"{address!r} does not end in /p2p/<peer id>")
    return PeerAddresses(peer, (transport,))


def dialable(addresses: Iterable[str], peer: PeerId | None = None) -> list[str]:
    """Those that this node could dial, in canonical text, each once, order kept.
    An address with the /p2p part of somebody other than `peer` is dropped."""
    found: dict[str, None] = {}
    for address in addresses:
        try:
            transport, named = split_peer(address)
            usable = parse_endpoint(transport).dialable
        except ValueError:
            continue
        if usable and (named is None or peer is None or named == peer):
            found[transport] = None
    return list(found)
