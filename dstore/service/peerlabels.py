"""Asking connected peers for their labels, where limits of bandwidth depend on them.

What a peer is called is what it says (its Hello); what comes of that is the shaper's business
(`network/shaping.py`).  Labels said before this node started are known from the catalog.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import trio

from dstore.core.peerid import PeerId
from dstore.limits import (
    BANDWIDTH_CLAIMS_MAX,
    CANDIDATES_MAX,
    LABELS_AGAIN_SECONDS,
    LABELS_LOOK_SECONDS,
    LABELS_RETRY_SECONDS,
)
from dstore.network.streams import Network
from dstore.runtime import Runtime
from dstore.service.candidates import CandidateFinder, labels_of
from dstore.service.stores import Stores
from dstore.service.worker import Worker

Claims = Callable[[PeerId, Sequence[str]], None]
"""Told that a peer says that it has these labels."""


async def label_workers(
    network: Network,
    candidates: CandidateFinder,
    stores: Stores,
    runtime: Runtime,
    claims: Claims | None,
) -> list[Worker]:
    """The background work that has every connected peer asked, where somebody wants to know.
    Tells `claims` first what peers said before this node started."""
    if claims is None:
        return []
    labels = PeerLabels(network, candidates, claims)
    for row in reversed(await runtime.workers.run(stores.catalog.peers, BANDWIDTH_CLAIMS_MAX)):
        claims(row.peer, labels_of(row.domains))
    return [Worker("labels", labels.step)]


class PeerLabels:
    """Has connected peers asked, and hands on what they say."""

    def __init__(self, network: Network, candidates: CandidateFinder, claims: Claims) -> None:
        self._network = network
        self._candidates = candidates
        self._claims = claims
        self._ask_at: dict[PeerId, float] = {}  # of those connected
        candidates.on_hello = self._heard

    async def step(self) -> float:
        """Ask those whose turn it is; returns the seconds until the next look."""
        now = trio.current_time()
        connected = self._network.connected()
        self._ask_at = {peer: self._ask_at.get(peer, now) for peer in connected}
        due = [peer for peer, at in self._ask_at.items() if at <= now][:CANDIDATES_MAX]
        self._ask_at.update(dict.fromkeys(due, now + LABELS_RETRY_SECONDS))
        if due:
            await self._candidates.introduce(due)
        return LABELS_LOOK_SECONDS

    def _heard(self, peer: PeerId, announced: Sequence[str]) -> None:
        if peer in self._ask_at:
            self._ask_at[peer] = trio.current_time() + LABELS_AGAIN_SECONDS
        self._claims(peer, labels_of(announced))
