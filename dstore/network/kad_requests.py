"""Asking peers of the DHT: requests out, answers in, over streams that are re-used.

What the messages mean is not known here (`network/routing.py`).  Several requests on one
stream are allowed by the libp2p kad-dht specification, and save the two round trips that
negotiating a new stream costs.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import trio

from dstore.core.kad_messages import KadMessage, MessageType, decode_message, encode_message
from dstore.core.peerid import PeerId
from dstore.errors import ConnectionLost, DeadlineExceeded, ProtocolViolation
from dstore.limits import (
    KAD_MESSAGE_BYTES_MAX,
    KAD_POOLED_IDLE_SECONDS,
    KAD_POOLED_MAX,
    KAD_POOLED_PER_PEER_MAX,
    KAD_REQUEST_SECONDS,
)
from dstore.network.streams import BufferedReader, Network, PeerAddresses, Stream, frame


async def reset_shielded(stream: Stream) -> None:
    """Reset `stream`, also while the caller is being cancelled: it never waits for the peer."""
    with trio.CancelScope(shield=True):
        await stream.reset()


@dataclass
class _Pooled:
    stream: Stream
    reader: BufferedReader
    since: float = 0.0


class RequestStreams:
    """Asks peers, keeping a few idle streams to each for the next request."""

    def __init__(self, network: Network, protocol: str) -> None:
        self._network = network
        self._protocol = protocol
        self._idle: OrderedDict[PeerId, list[_Pooled]] = OrderedDict()  # latest use last

    @property
    def idle(self) -> int:
        """The number of idle streams kept."""
        return sum(len(streams) for streams in self._idle.values())

    async def exchange(self, target: PeerAddresses, request: KadMessage) -> KadMessage:
        """Send `request` and return its answer, as `exchange_all` does."""
        return (await self.exchange_all(target, [request]))[0]

    async def exchange_all(
        self, target: PeerAddresses, requests: Sequence[KadMessage]
    ) -> list[KadMessage]:
        """Send `requests` in one go and return the answers, in order, to all but
        ADD_PROVIDER, within KAD_REQUEST_SECONDS.  Answers to that are skipped: some
        implementations send them and some do not.  Raises NetworkError or PeerError."""
        try:
            with trio.fail_after(KAD_REQUEST_SECONDS):
                pooled = self._take(target.peer)
                while pooled is not None:
                    try:
                        return await self._over(pooled, requests)
                    except ConnectionLost:
                        # The peer ended the idle stream; that says nothing about the peer.
                        pooled = self._take(target.peer)
                await self._network.connect(target)
                stream = await self._network.open_stream(target.peer, [self._protocol])
                return await self._over(_Pooled(stream, BufferedReader(stream)), requests)
        except trio.TooSlowError:
            raise DeadlineExceeded(
                f"{target.peer} did not answer a DHT request in {KAD_REQUEST_SECONDS} s"
            ) from None

    def _take(self, peer: PeerId) -> _Pooled | None:
        streams = self._idle.get(peer)
        if not streams:
            return None
        pooled = streams.pop()
        if not streams:
            del self._idle[peer]
        return pooled

    async def _over(self, pooled: _Pooled, requests: Sequence[KadMessage]) -> list[KadMessage]:
        finished = False
        answers: list[KadMessage] = []
        expected = [r.type for r in requests if r.type is not MessageType.ADD_PROVIDER]
        try:
            await pooled.stream.write(b"".join(frame(encode_message(r)) for r in requests))
            for _ in requests:
                if len(answers) == len(expected):
                    break
                data = await pooled.reader.read_message(KAD_MESSAGE_BYTES_MAX)
                if data is None:
                    raise ConnectionLost(f"{pooled.stream.peer} ended a DHT stream unasked")
                answer = decode_message(data)
                if answer.type is expected[len(answers)]:
                    answers.append(answer)
            if len(answers) < len(expected):
                raise ProtocolViolation(f"{pooled.stream.peer} answered something else")
            finished = True
        finally:
            if not finished:
                await reset_shielded(pooled.stream)
        await self._keep(pooled)
        return answers

    async def _keep(self, pooled: _Pooled) -> None:
        peer = pooled.stream.peer
        streams = self._idle.setdefault(peer, [])
        self._idle.move_to_end(peer)
        pooled.since = trio.current_time()
        streams.append(pooled)
        surplus: list[_Pooled] = []
        if len(streams) > KAD_POOLED_PER_PEER_MAX:
            surplus.append(streams.pop(0))
        if len(self._idle) > KAD_POOLED_MAX // KAD_POOLED_PER_PEER_MAX:
            _, dropped = self._idle.popitem(last=False)
            surplus += dropped
        for each in surplus:
            await reset_shielded(each.stream)

    async def sweep(self) -> None:
        """Give up streams that were idle for long; the peer would soon."""
        horizon = trio.current_time() - KAD_POOLED_IDLE_SECONDS
        old: list[_Pooled] = []
        for peer, streams in list(self._idle.items()):
            old += [pooled for pooled in streams if pooled.since <= horizon]
            streams[:] = [pooled for pooled in streams if pooled.since > horizon]
            if not streams:
                del self._idle[peer]
        for pooled in old:
            await reset_shielded(pooled.stream)

    async def close(self) -> None:
        """Give up every idle stream."""
        while self._idle:
            _, streams = self._idle.popitem()
            for pooled in streams:
                await reset_shielded(pooled.stream)
