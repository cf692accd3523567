"""Driving one lookup: requests in flight, answers read, the late ones left behind.

Who is asked when is the core's decision (`core.kademlia.Lookup`); what an answer is good for
is the caller's.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

import trio

from dstore.core.kad_messages import KadMessage, MessageType
from dstore.core.kademlia import Lookup, kad_id
from dstore.core.neighbourhood import Neighbourhood
from dstore.core.peerid import PeerId
from dstore.errors import NetworkError, PeerError
from dstore.limits import (
    KAD_ADDRESSES_PER_PEER_MAX,
    KAD_CONCURRENCY,
    KAD_FOUND_KEPT,
    KAD_FOUND_SECONDS,
)
from dstore.network.kad_peers import KnownPeers
from dstore.network.kad_requests import RequestStreams
from dstore.network.peers import with_room_for
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
        *,
        concurrency: Callable[[], int] = lambda: KAD_CONCURRENCY,
    ) -> None:
        """`on_answer` sees every answer; the search stops where it returns True.  For
        `concurrency` see `Lookup`."""
        self._peers = peers
        self._requests = requests
        self._request = request
        self._on_answer = on_answer
        self._count = count
        self._hints: dict[PeerId, tuple[str, ...]] = {}
        self._ended = False
        self._changed = trio.Event()
        self.lookup = Lookup(
            kad_id(request.key),
            peers.own,
            count=count,
            concurrency=concurrency,
            widen=request.type is MessageType.FIND_NODE,
            delays=peers.delays,
            suspect=peers.is_suspect,
            subnets=lambda peer: peers.subnets(peer, self._hints.get(peer, ())),
        )

    def hint(self, peer: PeerId, addresses: Sequence[str]) -> None:
        """Somebody said that `peer` can be reached at `addresses`."""
        if addresses:
            before = self._hints.get(peer, ())
            self._hints[peer] = with_room_for(before, addresses, KAD_ADDRESSES_PER_PEER_MAX)

    def where(self, peer: PeerId) -> PeerAddresses:
        """What is known of where `peer` can be reached."""
        return self._peers.where(peer, self._hints.get(peer, ()))

    def around(self) -> Neighbourhood:
        """Whom the search found, once it is done."""
        lookup = self.lookup
        return Neighbourhood(lookup.target, lookup.closest(), self._count, ended=lookup.finished)

    async def run(self, deadline: float, nursery: trio.Nursery) -> None:
        """Search to the end, or to `deadline`, from the peers known now.

        Requests run in `nursery` and outlive the search by at most their own deadline: an
        answer that comes late clears its peer of suspicion, and its stream can be re-used.
        """
        lookup = self.lookup
        lookup.start_from(self._peers.trusted_starts(lookup.target))
        lookup.learn(self._peers.starts(lookup.target))
        with trio.move_on_at(deadline):
            while not self._ended:
                for peer in lookup.ask(trio.current_time()):
                    nursery.start_soon(self._ask, peer)
                for peer in lookup.ask_around(trio.current_time()):
                    nursery.start_soon(self._ask_around, peer)
                if lookup.finished:
                    break
                self._changed = trio.Event()
                with trio.move_on_at(lookup.next_tick):
                    await self._changed.wait()
                lookup.tick(trio.current_time())
        self._ended = True
        for peer in lookup.late():
            self._peers.late(peer)

    async def _ask(self, peer: PeerId) -> None:
        try:
            answer = await self._requests.exchange(self.where(peer), self._request)
        except (NetworkError, PeerError):
            self._peers.unanswered(peer)
            self.lookup.failed(peer)
        except trio.Cancelled:
            self.lookup.failed(peer)
            raise
        else:
            self._peers.heard(peer)
            if self._ended:
                self.lookup.timed(peer, trio.current_time())
            else:
                self._take(peer, answer)
        finally:
            self._changed.set()

    async def _ask_around(self, peer: PeerId) -> None:
        closer: list[PeerId] = []
        try:
            request = KadMessage(MessageType.FIND_NODE, peer.binary)
            answer = await self._requests.exchange(self.where(peer), request)
            closer = self._named(answer)
        except (NetworkError, PeerError):
            self._peers.unanswered(peer)
        finally:
            if not self._ended:
                self.lookup.answered_around(peer, closer)
            self._changed.set()

    def _named(self, answer: KadMessage) -> list[PeerId]:
        for each in answer.closer:
            self.hint(each.peer, each.addresses)
        return [each.peer for each in answer.closer]

    def _take(self, peer: PeerId, answer: KadMessage) -> None:
        self.lookup.answered(peer, self._named(answer), trio.current_time())
        self._ended = self._on_answer(answer)


class RecentSearches:
    """Searches done a moment ago, for the other keys that what they found is an answer to."""

    def __init__(self, peers: KnownPeers) -> None:
        self._peers = peers
        self._table_changes = 0
        self._found: deque[tuple[float, Search, Neighbourhood]] = deque(maxlen=KAD_FOUND_KEPT)

    def note(self, search: Search) -> None:
        """A search for the peers closest to a key is done.  One that left peers behind is not
        kept: another may find them."""
        self._drop_outdated()
        around = search.around()
        if around.ended and around.peers and not search.lookup.late():
            self._found.append((trio.current_time(), search, around))

    def answering(self, key: bytes, count: int) -> Search | None:
        """One that knows the `count` peers closest to `key` for certain, none of them silent
        since; None where none does."""
        self._drop_outdated()
        for _, search, around in reversed(self._found):
            closest = around.closest(kad_id(key), count)
            if closest is not None and not any(map(self._peers.is_suspect, closest)):
                return search
        return None

    def _drop_outdated(self) -> None:
        if self._table_changes != self._peers.table.changes:  # somebody has come or left
            self._table_changes = self._peers.table.changes
            self._found.clear()
        horizon = trio.current_time() - KAD_FOUND_SECONDS
        while self._found and self._found[0][0] <= horizon:
            self._found.popleft()


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
