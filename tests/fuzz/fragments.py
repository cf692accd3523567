"""Fuzz targets: both sides of the fragment protocol, with a peer that says anything in any order.

A script is a list of messages: legal ones of all kinds by number, or bytes of its own.  The
side under test is whole: streams, deadlines and budgets over the network in memory, on a clock
that jumps.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator

import trio
import trio.testing

from dstore.core import wire
from dstore.core.cid import CID, RAW
from dstore.core.wire import Refusal
from dstore.core.wirecodec import encode_answer, encode_request, encode_upload
from dstore.errors import BudgetExceeded, ConnectionLost, NetworkError, PeerError
from dstore.network.fragments_client import FragmentsClient, SlotBlock
from dstore.network.fragments_server import serve_fragments
from dstore.network.streams import PeerAddresses, Stream, frame
from dstore.testing.deterministic import peer_number, simulated_runtime
from dstore.testing.memory_holder import MemoryHolder
from dstore.testing.memory_network import memory_network
from tests.fuzz.script import Script
from tests.fuzz.target import Target

_SERVER, _CLIENT = peer_number(1), peer_number(2)
_BLOCKS = [(CID.of(RAW, data), data) for data in (b"zero", b"one" * 50, b"two" * 500)]
_SEGMENT, _MANIFEST = CID.of(RAW, b"segment"), CID.of(RAW, b"manifest")
_REF = wire.SlotRef(_SEGMENT, 2)
_OFFER = wire.PutSlot(b"pin record", _MANIFEST, _SEGMENT, 2)
_LEGAL_SECONDS = 3600  # on the mock clock: whatever a peer does, an exchange has ended

# What a client may send; each is a whole message, raw bytes behind its length where it has any.
_SENT = [
    frame(encode_request(wire.HelloRequest())),
    frame(encode_request(wire.FindManifests(_SEGMENT))),
    frame(encode_request(wire.GetBlocks(tuple(cid for cid, _ in _BLOCKS)))),
    frame(encode_request(wire.Have((wire.HaveQuery(_SEGMENT),)))),
    frame(encode_request(_OFFER)),
    frame(encode_request(wire.PutSlot(b"", _MANIFEST, _SEGMENT, 3))),
    frame(encode_request(wire.Renew((_REF,)))),
    frame(encode_request(wire.Release((_REF,)))),
    frame(encode_request(wire.Challenge((wire.Challenged(_SEGMENT, 2, 1, b"n"),)))),
    frame(encode_upload(wire.Document(_MANIFEST, 8))) + b"manifest",
    frame(encode_upload(wire.Document(_MANIFEST, None))),
    *(
        frame(encode_upload(wire.Fragment(stripe, len(data)))) + data
        for stripe, (_, data) in enumerate(_BLOCKS)
    ),
    frame(encode_upload(wire.Fragment(1, 4))) + b"zero",
]
# What a server may answer.
_ANSWERS: list[wire.Answer] = [
    wire.Hello("x", wire.Role.STORAGE, 1, 1, 1),
    wire.Manifests((_MANIFEST,), (b"record",)),
    wire.Holding(_SEGMENT, (wire.HeldSlot(2, True),)),
    wire.Unchanged(_SEGMENT),
    wire.Wanted(_MANIFEST),
    wire.Wanted(_BLOCKS[0][0]),
    wire.Accepted((0, 1, 2)),
    wire.Accepted(()),
    wire.Accepted((1, 9)),
    wire.Stored(1),
    wire.Stored(3),
    wire.SlotAnswer(_SEGMENT, 2, lease=b"lease"),
    wire.SlotAnswer(_SEGMENT, 2, refusal=Refusal.FULL),
    wire.SlotAnswer(_SEGMENT, 2),
    wire.Stopped(),
    wire.Working(),
    wire.Refusing(Refusal.BUSY, "busy"),
    *(wire.BlockHeader(cid, None) for cid, _ in _BLOCKS),
]
_ANSWERED = [
    *(frame(encode_answer(answer)) for answer in _ANSWERS),
    *(frame(encode_answer(wire.BlockHeader(cid, len(data)))) + data for cid, data in _BLOCKS),
]


def _messages(script: Script, legal: list[bytes]) -> Iterator[bytes]:
    while script.more:
        how = script.number()
        if how < 200:
            yield legal[how % len(legal)]
        elif how < 240:
            yield frame(script.take(script.number()))
        else:
            yield script.take(script.number())


def server(data: bytes) -> None:
    """Whatever a client sends, only what was offered is stored, and nothing is left behind."""
    script = Script(data)
    documents = script.number() & 1

    async def main() -> None:
        async with memory_network(1) as network:
            host, other = network.host(_SERVER), network.host(_CLIENT)
            holder = MemoryHolder()
            holder.kept = dict(_BLOCKS[:2])
            holder.documents = [_MANIFEST] if documents else []
            slot = {stripe: (cid, len(data)) for stripe, (cid, data) in enumerate(_BLOCKS)}
            holder.expected[_SEGMENT, 2] = slot
            runtime = simulated_runtime(1)
            served = serve_fragments(host, holder, runtime)
            other.remember(PeerAddresses(_SERVER, tuple(host.addresses())))
            stream = await other.open_stream(_SERVER, [wire.PROTOCOL])
            with trio.fail_after(_LEGAL_SECONDS):
                await _play(stream, _messages(script, _SENT))
            assert served.bytes_held == 0
            assert served.peers_served == 0
            for stored in holder.slots.values():
                assert all(_BLOCKS[stripe][1] == data for stripe, data in stored.items())
            assert all(cid.verify(block) for cid, block in holder.fetched.items())

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


async def _play(stream: Stream, messages: Iterator[bytes]) -> None:
    """Send everything, then read until the other side ends."""

    async def send() -> None:
        try:
            for message in messages:
                await stream.write(message)
            await stream.close_write()
        except ConnectionLost:
            pass

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        try:
            while await stream.read_some():
                pass
        except ConnectionLost:
            pass
    await stream.close()


def client(data: bytes) -> None:
    """Whatever a server answers, each call ends in time with a value or a documented error,
    and no block is taken that is not what its CID says."""
    script = Script(data)
    call = _CALLS[script.number() % len(_CALLS)]

    async def main() -> None:
        async with memory_network(1) as network:
            host, other = network.host(_SERVER), network.host(_CLIENT)

            async def handler(stream: Stream) -> None:
                await _play(stream, _messages(script, _ANSWERED))

            host.set_handler(wire.PROTOCOL, handler)
            other.remember(PeerAddresses(_SERVER, tuple(host.addresses())))
            async with FragmentsClient(other, simulated_runtime(1)) as made:
                try:
                    with trio.fail_after(_LEGAL_SECONDS):
                        await call(made)
                except (PeerError, NetworkError, BudgetExceeded):
                    pass

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


async def _get(made: FragmentsClient) -> None:
    async with made.get_blocks(_SERVER, [cid for cid, _ in _BLOCKS]) as blocks:
        position = 0
        async for cid, data in blocks:
            assert cid == _BLOCKS[position][0]
            assert data is None or cid.verify(data)
            position += 1
        assert position == len(_BLOCKS)


async def _put(made: FragmentsClient) -> None:
    parts = [SlotBlock(stripe, cid, len(data)) for stripe, (cid, data) in enumerate(_BLOCKS)]

    async def document(cid: CID) -> bytes:
        assert cid in (_MANIFEST, _SEGMENT), "a document that is not of the offer"
        return b"manifest" if cid == _MANIFEST else b"segment"

    async def read(part: SlotBlock) -> bytes:
        await trio.lowlevel.checkpoint()
        return _BLOCKS[part.stripe][1]

    assert await made.put_slot(_SERVER, _OFFER, document, parts, read) == b"lease"


async def _have(made: FragmentsClient) -> None:
    (holding,) = (await made.have(_SERVER, [_SEGMENT])).holdings
    assert holding.segment == _SEGMENT


async def _hello(made: FragmentsClient) -> None:
    assert (await made.hello(_SERVER)).version.isprintable()


async def _manifests(made: FragmentsClient) -> None:
    await made.find_manifests(_SERVER, _SEGMENT)


_CALLS: list[Callable[[FragmentsClient], Awaitable[None]]] = [_get, _put, _have, _hello, _manifests]


def sent() -> Iterator[bytes]:
    yield bytes((0, 0, 1, 2, 3))
    yield bytes((0, 4, 11, 12, 13, 6, 8, 7))
    yield bytes((1, 4, 9, 11, 12, 13))
    yield bytes((1, 4, 10)) + bytes((0, 4, 12, 11, 13))
    yield bytes((0, 4, 14, 200, 3)) + b"\x0a\x00\x00" + bytes((250, 4)) + b"\xff\xff\xff\x7f"


def answered() -> Iterator[bytes]:
    blocks = len(_ANSWERED) - 3
    yield bytes((0, blocks, blocks + 1, blocks + 2))
    yield bytes((0, blocks, 18, 15, 19, 14))
    yield bytes((1, 4, 6, 9, 10, 11))
    yield bytes((1, 7, 15, 11))
    yield bytes((2, 2))
    yield bytes((3, 0))
    yield bytes((4, 1))
    yield bytes((4, 16, 220, 2)) + b"\xff\xff"


TARGETS = {
    "fragments-server": Target(server, sent, bytes_max=200),
    "fragments-client": Target(client, answered, bytes_max=200),
}
