"""Driving one lookup: requests in flight, answers read, the late ones left behind.

Who is asked when is the core's decision (`core.kademlia.Lookup`); what an answer is good for
is the caller's.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

import trio

from dstore.core.kad_messages import KadMessage
from dstore.core.kademlia import Lookup, kad_id
from dstore.core.peerid import PeerId
from dstore.errors import NetworkError, PeerError
from dstore.limits import KAD_ADDRESSES_PER_PEER_MAX
from dstore.network.kad_peers import KnownPeers
from dstore.network.kad_requests import RequestStreams
from dstore.network.streams import PeerAddresses


class Search:
    """One lookup being driven: its requests, and where the peers it met can be reached."""

    def __init__(
        self,
        peers: KnownPeers,
        requests: RequestStreams,
        request: KadMessage,
        count: int,
        on_answer: Callable[[KadMessage], bool] = lambda _: False,
    ) -> None:
        """`on_answer` sees every answer; the search stops where it returns True."""
        self._peers = peers
        self._requests = requests
        self._request = request
        self._on_answer = on_answer
        self._hints: dict[PeerId, tuple[str, ...]] = {}
        self._stopped = False
        self._changed = trio.Event()
        self.lookup = Lookup(kad_id(request.key), peers.own, count=count, suspect=peers.is_suspect)

    def _hint(self, peer: PeerId, addresses: Sequence[str]) -> None:
        if addresses:
            union = dict.fromkeys((*self._hints.get(peer, ()), *addresses))
            self._hints[peer] = tuple(union)[:KAD_ADDRESSES_PER_PEER_MAX]

    def where(self, peer: PeerId) -> PeerAddresses:
        """What is known of where `peer` can be reached."""
        return self._peers.where(peer, self._hints.get(peer, ()))

    async def run(self, deadline: float) -> None:
        """Search to the end, or to `deadline`, from the peers known now."""
        lookup = self.lookup
        lookup.learn(self._peers.starts(lookup.target))
        with trio.move_on_at(deadline):
            async with trio.open_nursery() as nursery:
                while not (self._stopped or lookup.finished):
                    for peer in lookup.ask(trio.current_time()):
                        nursery.start_soon(self._ask, peer)
                    if lookup.finished:
                        break  # only suspects were left to ask: nobody waits for them
                    self._changed = trio.Event()
                    with trio.move_on_at(lookup.next_tick):
                        await self._changed.wait()
                    lookup.tick(trio.current_time())
                nursery.cancel_scope.cancel()
        for peer in lookup.late(trio.current_time()):
            self._peers.unanswered(peer)

    async def _ask(self, peer: PeerId) -> None:
        try:
            answer = await self._requests.exchange(self.where(peer), self._request)
        except (NetworkError, PeerError):
            self.lookup.failed(peer)
            self._peers.unanswered(peer)
        else:
            self._peers.heard(peer)
            for each in answer.closer:
                self._hint(each.peer, each.addresses)
            now = trio.current_time()
            self.lookup.answered(peer, (each.peer for each in answer.closer), now)
            if self._on_answer(answer):
                self._stopped = True
        self._changed.set()


class ProviderSearch:
    """Providers as they are found: `async for provider in search`.

    The search runs by itself until it has found enough, has asked everybody or its deadline
    has come.  Leaving the loop early needs no care; `close()` saves the rest of the work.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._seen: set[PeerId] = set()
        self._found: deque[PeerAddresses] = deque()
        self._ended = False
        self._changed = trio.Event()
        self.scope = trio.CancelScope()

    def __aiter__(self) -> ProviderSearch:
        return self

    async def __anext__(self) -> PeerAddresses:
        while not self._found:
            if self._ended:
                raise StopAsyncIteration
            self._changed = trio.Event()
            await self._changed.wait()
        return self._found.popleft()

    def close(self) -> None:
        """Stop searching; what was found can still be read."""
        self.scope.cancel()

    @property
    def enough(self) -> bool:
        """Whether as many were found as were asked for."""
        return len(self._seen) >= self._count

    def offer(self, provider: PeerAddresses) -> None:
        """A provider was found; one found before is not found again."""
        if provider.peer not in self._seen and not self.enough:
            self._seen.add(provider.peer)
            self._found.append(provider)
            self._changed.set()

    def end(self) -> None:
        """Nothing more comes."""
        self._ended = True
        self._changed.set()
