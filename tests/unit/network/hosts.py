"""What tests of real hosts share: their names, an echo, waiting, and visitors of our own making."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import trio
from libp2p.abc import IRawConnection

from dstore.core.endpoint import parse_endpoint
from dstore.network.connection import Connection, HostStream, upgrade
from dstore.network.host import Libp2pHost
from dstore.network.identity import key_pair_of
from dstore.network.noise import NoiseTransport
from dstore.network.streams import PeerAddresses, Stream
from dstore.network.tcp import TcpConnection, dial_tcp
from dstore.network.yamux import YAMUX_PROTOCOL

ECHO = "/test/echo/1"
SEEDS = [bytes([number]) * 32 for number in range(1, 9)]


def where(node: Libp2pHost) -> PeerAddresses:
    return PeerAddresses(node.peer_id, tuple(node.addresses()))


async def until(condition: Callable[[], object]) -> None:
    with trio.fail_after(20):
        while not condition():  # noqa: ASYNC110  # counters and tables have no event
            await trio.sleep(0.001)


async def echo(stream: Stream) -> None:
    while data := await stream.read_some():
        await stream.write(data)


async def raw_to(node: Libp2pHost, *, initiator: bool = True) -> TcpConnection:
    dialled = await dial_tcp(parse_endpoint(node.addresses()[0]))
    return TcpConnection(dialled, is_initiator=initiator)


def descriptors() -> int:
    """How many this process has open."""
    return len(list(Path("/proc/self/fd").iterdir()))


async def next_stream(connection: Connection) -> HostStream:
    """What the peer opens next, on a connection whose streams nobody serves."""
    return HostStream(connection, await connection._session.accept_stream())


@asynccontextmanager
async def visitor(
    node: Libp2pHost, seed: bytes, describes: Callable[[IRawConnection], bytes] = lambda _: b""
) -> AsyncIterator[Connection]:
    """A connection to `node` from somebody with `seed`, beside our own host of that name perhaps,
    who says of itself in the handshake what `describes` makes."""
    noise = NoiseTransport(key_pair_of(seed), [YAMUX_PROTOCOL], describes)
    connection = await upgrade(await raw_to(node), noise, 5, node.peer_id)
    with trio.fail_after(20):  # where it waits for what does not come
        async with trio.open_nursery() as nursery:
            nursery.start_soon(connection.run)
            yield connection
            await connection.close()
