"""Servers that break the fragment protocol's rules: threats 1, 4 and 7, seen by our client."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial

import pytest
import trio
import trio.testing

from dstore.core import wire
from dstore.core.cid import CID, RAW
from dstore.errors import (
    ConnectionLost,
    DeadlineExceeded,
    HashMismatch,
    ProtocolViolation,
    Refused,
)
from dstore.limits import (
    PROGRESS_SECONDS,
    REQUEST_SECONDS,
    WORKING_TOTAL_SECONDS,
)
from dstore.network.fragments_client import FragmentsClient, SlotBlock
from dstore.network.streams import PeerAddresses, Stream, frame
from dstore.testing.deterministic import peer_number, simulated_runtime
from dstore.testing.fragment_script import Script
from dstore.testing.memory_network import memory_network

SERVER, CLIENT = peer_number(1), peer_number(2)
SEGMENT, MANIFEST = CID.of(RAW, b"segment"), CID.of(RAW, b"manifest")
OFFER = wire.PutSlot(b"pin record", MANIFEST, SEGMENT, 2)


def block(number: int, size: int = 100_000) -> tuple[CID, bytes]:
    data = number.to_bytes(4, "big") * (size // 4)
    return CID.of(RAW, data), data


# --- Our client and a server by hand --------------------------------------------------------

Play = Callable[[Script], Awaitable[None]]


@asynccontextmanager
async def scripted(play: Play) -> AsyncIterator[FragmentsClient]:
    """A client of ours whose server plays `play` on each stream."""
    async with memory_network(13) as network:
        host, own = network.host(SERVER), network.host(CLIENT)
        own.remember(PeerAddresses(SERVER, tuple(host.addresses())))

        async def handler(stream: Stream) -> None:
            await play(Script(stream))

        host.set_handler(wire.PROTOCOL, handler)
        async with FragmentsClient(own, simulated_runtime(4)) as client:
            yield client
            assert client.idle_streams == 0  # nothing that went wrong is used again


async def no_document(cid: CID) -> bytes:
    return b"manifest" if cid == MANIFEST else b"segment"


async def get(client: FragmentsClient, *cids: CID) -> list[tuple[CID, bytes | None]]:
    async with client.get_blocks(SERVER, cids) as blocks:
        return [answer async for answer in blocks]


async def put(client: FragmentsClient, count: int = 3) -> bytes:
    parts = [block(number) for number in range(count)]
    slot = [SlotBlock(n, cid, len(data)) for n, (cid, data) in enumerate(parts)]

    async def read(part: SlotBlock) -> bytes:
        await trio.lowlevel.checkpoint()
        return parts[part.stripe][1]

    return await client.put_slot(SERVER, OFFER, no_document, slot, read)


GOOD, BAD = block(1, 40_000), block(2, 40_000)


@pytest.mark.parametrize(
    ("answers", "error"),
    [
        ([(wire.BlockHeader(GOOD[0], 40_000), BAD[1])], HashMismatch),
        ([(wire.BlockHeader(BAD[0], 40_000), BAD[1])], ProtocolViolation),
        ([(wire.BlockHeader(GOOD[0], 39_999), GOOD[1])], HashMismatch),
        ([(wire.BlockHeader(GOOD[0], 40_000), GOOD[1][:-1])], DeadlineExceeded),
        ([(wire.Stopped(), b"")], ProtocolViolation),
        ([(wire.Hello("v", wire.Role.STORAGE, 0, 0, 0), b"")], ProtocolViolation),
        ([], DeadlineExceeded),
    ],
)
async def test_client_takes_no_wrong_block(
    answers: list[tuple[wire.Answer, bytes]],
    error: type[Exception],
    autojump_clock: trio.testing.MockClock,
) -> None:
    async def play(script: Script) -> None:
        await script.read_request()
        for answer, data in answers:
            await script.send(answer, data)
        await script.until_reset(2 * PROGRESS_SECONDS)

    async with scripted(play) as client:
        with trio.fail_after(PROGRESS_SECONDS + 1), pytest.raises(error, match=str(SERVER)):
            await get(client, GOOD[0])


@pytest.mark.parametrize(
    "data",
    [
        b"\x80\x80\x80\x80\x10",
        b"\xff" * 9,
        b"\x81\x00",
        frame(b"\xff"),
        frame(b"\x1a\x2c\x0a\x24" + GOOD[0].binary + b"\x10\x80\x80\x80\x80\x10"),  # 4 GiB block
    ],
)
async def test_client_drops_malformed_answers(
    data: bytes, autojump_clock: trio.testing.MockClock
) -> None:
    async def play(script: Script) -> None:
        await script.read_request()
        await script.stream.write(data)
        await script.until_reset(5)

    async with scripted(play) as client:
        for ask in (partial(client.hello, SERVER), partial(get, client, GOOD[0])):
            with pytest.raises(ProtocolViolation, match=str(SERVER)):
                await ask()


async def test_server_that_never_answers(autojump_clock: trio.testing.MockClock) -> None:
    async def play(script: Script) -> None:
        await script.until_reset(60)

    async with scripted(play) as client:
        for ask in (
            partial(client.hello, SERVER),
            partial(get, client, GOOD[0]),
            partial(put, client),
            partial(client.have, SERVER, [SEGMENT]),
        ):
            with trio.fail_after(REQUEST_SECONDS + 1), pytest.raises(DeadlineExceeded):
                await ask()


@pytest.mark.parametrize("heartbeats", [False, True])
async def test_server_that_stops_reading(
    heartbeats: bool, autojump_clock: trio.testing.MockClock
) -> None:
    async def play(script: Script) -> None:
        await script.read_request()
        await script.send(wire.Accepted(tuple(range(40))))
        with pytest.raises(ConnectionLost):
            while True:
                await trio.sleep(5)
                if heartbeats:
                    await script.send(wire.Working())
                elif trio.current_time() > 1000:
                    raise AssertionError("never given up")
                else:
                    await script.stream.write(b"")

    limit_seconds = (WORKING_TOTAL_SECONDS if heartbeats else 0) + 2 * PROGRESS_SECONDS
    async with scripted(play) as client:
        with trio.fail_after(limit_seconds), pytest.raises(DeadlineExceeded):
            await put(client, 40)


@pytest.mark.parametrize(
    "answers",
    [
        [wire.Accepted((0, 3))],  # a fragment that is not in the slot
        [wire.Wanted(GOOD[0])],  # a block that is none of its business
        [wire.Wanted(MANIFEST)] * 10,
        [wire.Stored(1)],
        [wire.Accepted((0, 1, 2)), wire.Stored(4)],
        [wire.Accepted((0, 1, 2)), wire.Stored(0)],
        [wire.Accepted((0, 1, 2)), wire.SlotAnswer(SEGMENT, 3, b"lease")],
        [wire.Accepted((0, 1, 2)), wire.SlotAnswer(SEGMENT, 2)],
        [wire.Accepted(()), wire.Accepted(())],
    ],
)
async def test_client_knows_the_order_of_a_slot(
    answers: list[wire.Answer], autojump_clock: trio.testing.MockClock
) -> None:
    async def play(script: Script) -> None:
        for answer in answers:
            await script.send(answer)
        await script.until_reset(60)

    async with scripted(play) as client:
        with pytest.raises(ProtocolViolation, match=str(SERVER)):
            await put(client)


async def test_lease_before_the_fragments_is_no_lease(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async def play(script: Script) -> None:
        await script.send(wire.Accepted(tuple(range(40))))
        await script.send(wire.SlotAnswer(SEGMENT, 2, b"lease"))
        with pytest.raises(ConnectionLost):
            while True:
                await script.stream.write(b"")
                await trio.sleep(1)

    async with scripted(play) as client:
        with pytest.raises(ProtocolViolation, match="out of turn"):
            await put(client, 40)


async def test_refusal_within_a_slot_names_the_reason(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async def play(script: Script) -> None:
        await script.send(wire.Accepted(tuple(range(40))))
        await script.send(wire.Refusing(wire.Refusal.FULL, "the disk is full"))
        await script.until_reset(5)

    async with scripted(play) as client:
        with pytest.raises(Refused, match="disk") as caught:
            await put(client, 40)
        assert caught.value.reason == wire.Refusal.FULL


async def test_errors_of_the_callers_own_end_the_exchange_bare(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async def play(script: Script) -> None:
        await script.send(wire.Accepted((0,)))
        await script.until_reset(5)

    async def read(part: SlotBlock) -> bytes:
        raise LookupError("gone")

    async with scripted(play) as client:
        with pytest.raises(LookupError, match="gone"):
            await client.put_slot(SERVER, OFFER, no_document, [SlotBlock(0, *GOOD_SIZE)], read)


GOOD_SIZE = (GOOD[0], 40_000)


async def test_cancelled_exchanges_leave_no_stream_in_use(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async def play(script: Script) -> None:
        await script.until_reset(math.inf)

    async with scripted(play) as client:
        for _ in range(40):  # more than may be open to one peer at once
            with trio.move_on_after(1) as scope:
                await client.hello(SERVER)
            assert scope.cancelled_caught
