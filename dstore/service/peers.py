"""The peers that this node knows, as the interfaces show them."""

from __future__ import annotations

from dstore.limits import PEERS_LISTED_MAX
from dstore.network.streams import Network
from dstore.runtime import Runtime
from dstore.service.candidates import CandidateFinder
from dstore.service.progress import PeerStatus
from dstore.service.stores import Stores


class PeerList:
    """Connections and catalog in one list."""

    def __init__(
        self, network: Network, candidates: CandidateFinder, stores: Stores, runtime: Runtime
    ) -> None:
        self._network = network
        self._candidates = candidates
        self._stores = stores
        self._runtime = runtime

    async def all(self, *, ask: bool = True) -> list[PeerStatus]:
        """Peers connected or known, the connected ones first; with `ask`, connected ones of
        which nothing is known yet are asked."""
        connected = set(self._network.connected())
        run = self._runtime.workers.run
        rows = {row.peer: row for row in await run(self._stores.catalog.peers, PEERS_LISTED_MAX)}
        if ask and (unknown := connected - rows.keys()):
            await self._candidates.introduce(unknown)
            found = await run(self._stores.catalog.peers, PEERS_LISTED_MAX)
            rows = {row.peer: row for row in found}
        listed = []
        for peer in sorted(rows.keys() | connected, key=lambda one: (one not in connected, one)):
            row = rows.get(peer)
            addresses = tuple(self._network.known_addresses(peer)) or (row.addresses if row else ())
            listed.append(
                PeerStatus(
                    peer=peer,
                    addresses=addresses,
                    connected=peer in connected,
                    role=row.role if row else None,
                    free_bytes=row.free_bytes if row else None,
                    domains=row.domains if row else (),
                    faults=row.faults if row else 0,
                    last_seen=row.last_seen if row else None,
                )
            )
        return listed[:PEERS_LISTED_MAX]
