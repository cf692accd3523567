"""What peers may do to a DHT node: spam, lies, idling, silence (threats to the DHT, and to
any stream), on a network in memory."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest
import trio
from trio.testing import MockClock

from dstore.core.kad_messages import (
    KadMessage,
    KadPeer,
    MessageType,
    decode_message,
    encode_message,
)
from dstore.core.proto import kad_pb2
from dstore.errors import ConnectionLost
from dstore.limits import (
    KAD_KEY_BYTES_MAX,
    KAD_LOOKUP_SECONDS,
    KAD_MESSAGE_BYTES_MAX,
    KAD_PEERS_PER_REPLY_MAX,
    KAD_REQUEST_SECONDS,
    KAD_REQUESTS_BURST,
    KAD_REQUESTS_PER_SECOND,
    KAD_SERVED_IDLE_SECONDS,
    KAD_STREAMS_PER_PEER_MAX,
)
from dstore.network.routing import RoutingOptions
from dstore.network.streams import BufferedReader, Stream, frame
from dstore.testing.deterministic import peer_number
from dstore.testing.memory_network import MemoryHost
from dstore.testing.routing_cluster import RoutingCluster, routing_cluster

PROTOCOL = RoutingOptions().protocol
KEY = b"\x12\x20" + bytes(32)


class Attacker:
    """A peer that speaks the protocol by hand."""

    def __init__(self, cluster: RoutingCluster, number: int = 1000) -> None:
        self.host: MemoryHost = cluster.hub.host(peer_number(number))
        self._target = cluster.where(0)
        self.claims = KadPeer(self.host.peer_id, tuple(self.host.addresses()))

    async def stream(self) -> Stream:
        await self.host.connect(self._target)
        return await self.host.open_stream(self._target.peer, [PROTOCOL])

    @asynccontextmanager
    async def talk(self) -> AsyncIterator[Conversation]:
        stream = await self.stream()
        yield Conversation(stream)
        await stream.reset()


class Conversation:
    """One stream of it."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self._reader = BufferedReader(stream)

    async def tell(self, message: KadMessage) -> None:
        await self.stream.write(frame(encode_message(message)))

    async def ask(self, message: KadMessage) -> KadMessage:
        await self.tell(message)
        return await self.read()

    async def read(self) -> KadMessage:
        data = await self._reader.read_message(KAD_MESSAGE_BYTES_MAX)
        assert data is not None
        return decode_message(data)

    async def is_refused(self) -> None:
        with trio.fail_after(KAD_REQUEST_SECONDS), pytest.raises(ConnectionLost):
            await self._reader.read_message(KAD_MESSAGE_BYTES_MAX)


async def test_every_request_on_one_stream_is_answered(autojump_clock: MockClock) -> None:
    async with routing_cluster(4) as cluster:
        attacker = Attacker(cluster)
        async with attacker.talk() as talk:
            assert await talk.ask(KadMessage(MessageType.PING)) == KadMessage(MessageType.PING)
            answer = await talk.ask(KadMessage(MessageType.FIND_NODE, cluster.id(2).binary))
            assert answer.closer[0].peer == cluster.id(2), "an exact match stands first"
            assert {each.peer for each in answer.closer} == {cluster.id(n) for n in (1, 2, 3)}
            assert all(each.addresses for each in answer.closer)
            answer = await talk.ask(KadMessage(MessageType.FIND_NODE, cluster.id(0).binary))
            assert answer.closer[0].peer == cluster.id(0), "also of the node itself"
            answer = await talk.ask(KadMessage(MessageType.GET_VALUE, b"/pk/x"))
            assert answer.type is MessageType.GET_VALUE
            assert len(answer.closer) == 3
            await talk.tell(KadMessage(MessageType.ADD_PROVIDER, KEY, (), (attacker.claims,)))
            answer = await talk.ask(KadMessage(MessageType.GET_PROVIDERS, KEY))
            assert answer.type is MessageType.GET_PROVIDERS, "storing is not answered"
            assert [each.peer for each in answer.providers] == [attacker.host.peer_id]
            assert len(answer.closer) == 3


async def test_records_for_others_are_ignored(autojump_clock: MockClock) -> None:
    async with routing_cluster(3) as cluster:
        attacker = Attacker(cluster)
        victims = tuple(KadPeer(cluster.id(n), ("/ip4/6.6.6.6/tcp/6",)) for n in (1, 2))
        async with attacker.talk() as talk:
            await talk.tell(KadMessage(MessageType.ADD_PROVIDER, KEY, (), victims))
            answer = await talk.ask(KadMessage(MessageType.GET_PROVIDERS, KEY))
        assert answer.providers == ()
        assert cluster.routings[0].records == 0


async def test_spam_is_capped_per_peer_and_per_key_and_seniors_stay(
    autojump_clock: MockClock,
) -> None:
    options = RoutingOptions(keys_per_peer_max=10, providers_per_key_max=5, keys_max=30)
    async with routing_cluster(2, options=options) as cluster:
        assert await cluster.routings[1].provide(KEY) == 1
        for number in range(8):
            attacker = Attacker(cluster, 1000 + number)
            async with attacker.talk() as talk:
                keys = [KEY, *(bytes([number + 1, n]) for n in range(40))]
                for key in keys:
                    claim = KadMessage(MessageType.ADD_PROVIDER, key, (), (attacker.claims,))
                    await talk.tell(claim)
                await talk.ask(KadMessage(MessageType.PING))
        entries = cluster.routings[0].export_providers()
        seniors = [e.provider.peer for e in entries if e.key == KEY]
        assert seniors == [cluster.id(1), *(peer_number(1000 + n) for n in range(4))]
        assert len({e.key for e in entries}) <= 30
        for number in range(8):
            assert sum(e.provider.peer == peer_number(1000 + number) for e in entries) <= 10
        assert await cluster.routings[1].provide(KEY) == 1, "renewing always works"
        assert await cluster.routings[1].provide(b"new key") == 0, "refused, and known to be"
        assert cluster.routings[1].table_size == 1, "nobody is blamed for refusing"


async def test_a_provider_among_many_reads_its_own_record_back(autojump_clock: MockClock) -> None:
    async with routing_cluster(1) as cluster:
        attackers = [Attacker(cluster, 1000 + number) for number in range(30)]
        for attacker in attackers:
            async with attacker.talk() as talk:
                await talk.tell(KadMessage(MessageType.ADD_PROVIDER, KEY, (), (attacker.claims,)))
                answer = await talk.ask(KadMessage(MessageType.GET_PROVIDERS, KEY))
                assert answer.providers[0].peer == attacker.host.peer_id
                assert len(answer.providers) <= KAD_PEERS_PER_REPLY_MAX
        assert cluster.routings[0].records == 30


@pytest.mark.parametrize(
    "data",
    [
        frame(encode_message(KadMessage(MessageType.PUT_VALUE, b"/unknown/key"))),
        frame(encode_message(KadMessage(MessageType.PUT_VALUE, b"/pk/key"))),
        frame(encode_message(KadMessage(MessageType.FIND_NODE))),
        frame(kad_pb2.Message(type=4, key=bytes(KAD_KEY_BYTES_MAX + 1)).SerializeToString()),  # type: ignore[arg-type] # as a number, as on the wire
        frame(b"\xff\xff\xff"),
        frame(b"\x08\x63"),
        b"\xff\xff\xff\xff\x0f",  # a message of 4 GiB
        b"\xff" * 9 + b"\x01",  # of 2 ** 64 bytes
        b"\x80\x00",  # a length that is not minimal
        frame(bytes(KAD_MESSAGE_BYTES_MAX + 1))[:100],
    ],
    ids=lambda data: data[:6].hex(),
)
async def test_bad_messages_end_their_stream_alone(data: bytes, autojump_clock: MockClock) -> None:
    async with routing_cluster(2) as cluster:
        attacker = Attacker(cluster)
        async with attacker.talk() as good, attacker.talk() as bad:
            await bad.stream.write(data)
            await bad.is_refused()
            await good.ask(KadMessage(MessageType.PING))
        assert len(await cluster.routings[1].closest_peers(KEY)) == 1


async def test_idle_streams_block_nobody(autojump_clock: MockClock) -> None:
    async with routing_cluster(3) as cluster:
        attacker = Attacker(cluster)
        streams = [await attacker.stream() for _ in range(KAD_STREAMS_PER_PEER_MAX)]
        for stream in streams[::2]:
            await stream.write(b"\x20half")  # a message that never ends
        async with attacker.talk() as ninth:
            await ninth.is_refused()
        before = trio.current_time()
        assert await cluster.routings[1].provide(KEY) == 2
        assert trio.current_time() - before < 0.1, "others do not notice"
        await trio.sleep(KAD_SERVED_IDLE_SECONDS)
        for stream in streams:
            with trio.fail_after(1), pytest.raises(ConnectionLost):
                await stream.read_some()
        async with attacker.talk() as talk:
            await talk.ask(KadMessage(MessageType.PING))


async def test_a_greedy_peer_waits_alone(autojump_clock: MockClock) -> None:
    """Eight streams ask as fast as they can, one after the other, for a minute, and open new
    ones; an honest node goes on at once."""
    async with routing_cluster(3) as cluster:
        attacker = Attacker(cluster)
        answered = 0

        async def ask() -> None:
            nonlocal answered
            while True:
                # A new stream may come before the end of the old one, and be one too many.
                with suppress(ConnectionLost):
                    async with attacker.talk() as talk:
                        for _ in range(1000):
                            await talk.ask(KadMessage(MessageType.PING))
                            answered += 1

        with trio.move_on_after(60):
            async with trio.open_nursery() as nursery:
                for _ in range(KAD_STREAMS_PER_PEER_MAX):
                    nursery.start_soon(ask)
                await trio.sleep(30)
                before = trio.current_time()
                assert await cluster.routings[1].provide(KEY) == 2
                assert trio.current_time() - before < 0.1
        assert answered >= 60 * KAD_REQUESTS_PER_SECOND
        assert answered <= KAD_REQUESTS_BURST + 61 * KAD_REQUESTS_PER_SECOND


async def test_a_peer_that_never_reads_is_given_up(autojump_clock: MockClock) -> None:
    async with routing_cluster(3) as cluster:
        attacker = Attacker(cluster)
        stream = await attacker.stream()
        request = frame(encode_message(KadMessage(MessageType.GET_VALUE, b"k" * 100)))
        with trio.fail_after(60), pytest.raises(ConnectionLost):
            while True:
                await stream.write(request * 200)
                await trio.sleep(0.01)  # its pace: mock time stands still for the busy


async def answer_with(stream: Stream, *answers: KadMessage | bytes) -> None:
    """Serve one stream with the same answers to every request."""
    reader = BufferedReader(stream)
    while await reader.read_message(KAD_MESSAGE_BYTES_MAX) is not None:
        for answer in answers:
            await stream.write(
                answer if isinstance(answer, bytes) else frame(encode_message(answer))
            )


async def test_lying_servers_do_not_stop_a_lookup(autojump_clock: MockClock) -> None:
    nobody = tuple(KadPeer(peer_number(2000 + n), ("/ip4/6.6.6.6/tcp/6",)) for n in range(20))
    lies: list[tuple[KadMessage | bytes, ...]] = [
        (KadMessage(MessageType.FIND_NODE, KEY, nobody),),
        (KadMessage(MessageType.PING),),
        (b"\xff\xff\xff\xff\x7f",),
        (frame(b"\xff\xff"),),
        (b"\x10short",),
        (),
    ]
    async with routing_cluster(6) as cluster:
        for number, lie in enumerate(lies):

            async def serve(stream: Stream, lie: tuple[KadMessage | bytes, ...] = lie) -> None:
                await answer_with(stream, *lie)

            attacker = Attacker(cluster, 1000 + number)
            attacker.host.set_handler(PROTOCOL, serve)
            for honest in range(6):
                await attacker.host.connect(cluster.where(honest))
        await trio.sleep(10)
        honest_ids = {cluster.id(number) for number in range(6)}
        for number in range(6):
            before = trio.current_time()
            found = await cluster.routings[number].closest_peers(KEY)
            assert trio.current_time() - before < KAD_LOOKUP_SECONDS / 2
            assert {each.peer for each in found} >= honest_ids - {cluster.id(number)}
            assert {each.peer for each in found} <= honest_ids | {peer_number(1000)}


async def test_a_server_that_confirms_what_it_stores_is_understood(
    autojump_clock: MockClock,
) -> None:
    # Some implementations answer ADD_PROVIDER, most do not.
    stored: list[KadMessage] = []

    async def serve(stream: Stream) -> None:
        reader = BufferedReader(stream)
        while (data := await reader.read_message(KAD_MESSAGE_BYTES_MAX)) is not None:
            request = decode_message(data)
            if request.type is MessageType.ADD_PROVIDER:
                stored.append(request)
            providers = stored[-1].providers if stored else ()
            answer = KadMessage(request.type, request.key, (), providers)
            await stream.write(frame(encode_message(answer)))

    async with routing_cluster(1) as cluster:
        other = Attacker(cluster)
        other.host.set_handler(PROTOCOL, serve)
        await other.host.connect(cluster.where(0))
        for _ in range(3):
            assert await cluster.routings[0].provide(KEY) == 1
        assert len(stored) == 3


async def test_a_server_that_drops_records_is_not_counted(autojump_clock: MockClock) -> None:
    async def serve(stream: Stream) -> None:
        reader = BufferedReader(stream)
        while (data := await reader.read_message(KAD_MESSAGE_BYTES_MAX)) is not None:
            request = decode_message(data)
            if request.type is not MessageType.ADD_PROVIDER:
                await stream.write(frame(encode_message(KadMessage(request.type, request.key))))

    async with routing_cluster(3) as cluster:
        other = Attacker(cluster)
        other.host.set_handler(PROTOCOL, serve)
        await other.host.connect(cluster.where(0))
        assert len(await cluster.routings[0].closest_peers(KEY)) == 3
        assert await cluster.routings[0].provide(KEY) == 2
