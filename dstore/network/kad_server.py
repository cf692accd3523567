"""Answering peers of the DHT: what to say, and under which bounds streams are served.

Values are not kept: a GET_VALUE is answered with closer peers alone, a PUT_VALUE, whatever
its namespace, is refused by a reset.  Specification: libp2p kad-dht, "RPC messages".
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator
from random import Random

import trio

from dstore.core.kad_memory import Pace
from dstore.core.kad_messages import (
    KadMessage,
    KadPeer,
    MessageType,
    decode_message,
    encode_message,
)
from dstore.core.kad_table import RoutingTable
from dstore.core.kademlia import ProviderStore, kad_id
from dstore.core.peerid import PeerId
from dstore.errors import ConnectionLost, InvalidCid, ProtocolViolation
from dstore.limits import (
    KAD_MESSAGE_BYTES_MAX,
    KAD_PEERS_PER_REPLY_MAX,
    KAD_REQUEST_SECONDS,
    KAD_SERVED_IDLE_SECONDS,
    KAD_STREAMS_MAX,
    KAD_STREAMS_PER_PEER_MAX,
)
from dstore.network.kad_requests import reset_shielded
from dstore.network.streams import BufferedReader, Network, Stream, frame


class Answers:
    """What a server says to each request, from its table and its provider store."""

    def __init__(
        self, network: Network, table: RoutingTable, store: ProviderStore, random: Random
    ) -> None:
        self._network = network
        self._table = table
        self._store = store
        self._random = random

    def answer(self, sender: PeerId, request: KadMessage) -> KadMessage | None:
        """The answer to `request`, None where none is sent.  Raises ProtocolViolation for
        what is refused."""
        key, kind = request.key, request.type
        if kind is MessageType.PING:
            return KadMessage(kind)
        if not key:
            raise ProtocolViolation(f"{sender} sent a DHT {kind.name} without a key")
        if kind is MessageType.FIND_NODE:
            return KadMessage(kind, key, closer=self._closer(key, sender, exact=True))
        if kind is MessageType.GET_PROVIDERS:
            providers = self._providers(key, sender)
            return KadMessage(kind, key, self._closer(key, sender), providers)
        if kind is MessageType.GET_VALUE:
            return KadMessage(kind, key, closer=self._closer(key, sender))
        if kind is MessageType.ADD_PROVIDER:
            self._add_provider(sender, request)
            # Unanswered, as in most implementations: some that re-use the stream would take
            # an answer for that to their next request.
            return None
        raise ProtocolViolation(f"{sender} put a value; this DHT keeps no values")

    def _named(self, peers: Iterable[tuple[PeerId, tuple[str, ...]]]) -> Iterator[KadPeer]:
        """Peers as a message names them: with the addresses given, else those known."""
        network = self._network
        for peer, addresses in peers:
            if peer == network.peer_id:
                yield KadPeer(peer, tuple(network.addresses()), connected=True)
            else:
                known = addresses or tuple(network.known_addresses(peer))
                yield KadPeer(peer, known, connected=network.reached_at(peer) is not None)

    def _closer(self, key: bytes, sender: PeerId, *, exact: bool = False) -> tuple[KadPeer, ...]:
        """The closest peers that can be reached; with `exact`, the peer whose id is `key`
        first, server or not."""
        # One more, since the sender is left out.
        peers = self._table.closest(kad_id(key), KAD_PEERS_PER_REPLY_MAX + 1)
        if exact:
            try:
                peers.insert(0, PeerId(key))
            except InvalidCid:
                pass
        named = self._named((peer, ()) for peer in dict.fromkeys(peers) if peer != sender)
        return tuple(peer for peer in named if peer.addresses)[:KAD_PEERS_PER_REPLY_MAX]

    def _providers(self, key: bytes, sender: PeerId) -> tuple[KadPeer, ...]:
        records = self._store.providers(key, trio.current_time())
        # A peer that reads its own record back must see it among however many.
        own = [record for record in records if record.peer == sender]
        others = [record for record in records if record.peer != sender]
        places = KAD_PEERS_PER_REPLY_MAX - len(own)
        if len(others) > places:
            others = self._random.sample(others, places)
        return tuple(self._named((record.peer, record.addresses) for record in own + others))

    def _add_provider(self, sender: PeerId, request: KadMessage) -> None:
        for provider in request.providers:
            if provider.peer == sender:  # nobody speaks for others
                known = provider.addresses or tuple(self._network.known_addresses(sender))
                self._store.add(request.key, sender, known, trio.current_time())


class ServedStreams:
    """Answers peers: few streams each, every one with a deadline for its next request, and
    only so many requests a second."""

    def __init__(self, answer: Callable[[PeerId, KadMessage], KadMessage | None]) -> None:
        """`answer` is given the sender and its request, and returns what to send back, if
        anything; a ProtocolViolation that it raises resets the stream."""
        self._answer = answer
        self._of_peer: Counter[PeerId] = Counter()
        self._waiting: OrderedDict[Stream, trio.CancelScope] = OrderedDict()  # latest last
        self._pace = Pace()
        self._closed = False

    @property
    def streams(self) -> int:
        """The number of streams being served."""
        return len(self._waiting)

    async def serve(self, stream: Stream) -> None:
        """Serve `stream` to its end.  Raises ProtocolViolation."""
        peer = stream.peer
        if self._closed or self._of_peer[peer] >= KAD_STREAMS_PER_PEER_MAX:
            await reset_shielded(stream)
            return
        if len(self._waiting) >= KAD_STREAMS_MAX:
            _, longest_idle = self._waiting.popitem(last=False)
            longest_idle.cancel()
        self._of_peer[peer] += 1
        try:
            with trio.CancelScope() as scope:
                self._waiting[stream] = scope
                await self._serve(stream, scope)
            if scope.cancelled_caught:
                await reset_shielded(stream)
        finally:
            self._waiting.pop(stream, None)
            self._of_peer[peer] -= 1
            if not self._of_peer[peer]:
                del self._of_peer[peer]

    async def _serve(self, stream: Stream, scope: trio.CancelScope) -> None:
        """Serve `stream` within `scope`, whose deadline is set for each step."""
        reader = BufferedReader(stream)
        try:
            while True:
                scope.deadline = trio.current_time() + KAD_SERVED_IDLE_SECONDS
                data = await reader.read_message(KAD_MESSAGE_BYTES_MAX)
                if data is None:
                    return
                # Nothing more is read of this stream meanwhile: its sender is held back.
                now = trio.current_time()
                pause = self._pace.seconds(stream.peer, now)
                scope.deadline = now + pause + KAD_REQUEST_SECONDS
                if pause:
                    await trio.sleep(pause)
                if stream in self._waiting:
                    self._waiting.move_to_end(stream)
                answer = self._answer(stream.peer, decode_message(data))
                if answer is not None:
                    await stream.write(frame(encode_message(answer)))
        except ConnectionLost:
            await reset_shielded(stream)

    def close(self) -> None:
        """End every stream, and refuse new ones."""
        self._closed = True
        for scope in self._waiting.values():
            scope.cancel()
