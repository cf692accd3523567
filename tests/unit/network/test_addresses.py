"""Addresses and whose they are, and which of them mean something."""

from __future__ import annotations

import pytest

from dstore.core.peerid import PeerId
from dstore.network.addresses import dialable, parse_target, split_peer

PEER = PeerId.of_ed25519(bytes(range(32)))
OTHER = PeerId.of_ed25519(bytes(32))


def test_the_peer_part() -> None:
    address = "/ip4/10.0.0.1/tcp/4001"
    assert split_peer(address) == (address, None)
    assert split_peer(f"{address}/p2p/{PEER}") == (address, PEER)
    assert parse_target(f"{address}/p2p/{PEER}").addresses == (address,)
    for bad in (address, f"{address}/p2p/", f"{address}/p2p/Qm", f"/p2p/{PEER}"):
        with pytest.raises(ValueError):
            parse_target(bad)


def test_dialable_keeps_order_and_drops_what_cannot_be_meant() -> None:
    good = "/ip4/10.0.0.1/tcp/4001"
    assert dialable(
        [
            good,
            "/ip4/0.0.0.0/tcp/4001",
            "/ip4/224.0.0.1/tcp/4001",
            "/ip6/::/tcp/1",
            "/ip4/10.0.0.2/tcp/0",
            "/ip4/10.0.0.3/udp/1/quic-v1",
            f"/ip4/10.0.0.4/tcp/1/p2p/{OTHER}",
            f"/ip4/10.0.0.5/tcp/1/p2p/{PEER}",
            good,
        ],
        PEER,
    ) == [good, "/ip4/10.0.0.5/tcp/1"]
