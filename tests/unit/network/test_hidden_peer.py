"""A peer that somebody lies about can still be reached by what others say of it."""

from __future__ import annotations

from dstore.errors import NetworkError
from dstore.network.host import HostOptions, open_host
from dstore.network.kad_peers import KnownPeers
from dstore.network.streams import PeerAddresses
from dstore.runtime import Runtime


async def test_a_liar_cannot_hide_a_peer() -> None:
    async with (
        open_host(HostOptions(), b"\1" * 32, Runtime()) as seeker,
        open_host(HostOptions(), b"\2" * 32, Runtime()) as victim,
    ):
        known = KnownPeers(seeker)
        wrong = tuple(f"/ip4/127.0.0.1/tcp/{port}" for port in range(1, 17))
        right = tuple(victim.addresses())
        seeker.remember(PeerAddresses(victim.peer_id, wrong))
        for _ in range(2):
            where = known.where(victim.peer_id, right)
            assert set(right) & set(where.addresses)
            try:
                await seeker.connect(where)
            except NetworkError:
                continue
        assert victim.peer_id in seeker.connected()
