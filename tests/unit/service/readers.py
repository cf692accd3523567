"""A file on a simulated network, and those who read it."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator

from dstore.core.cid import CID
from dstore.network.streams import PeerAddresses
from dstore.service.progress import AddOptions, AddResult
from dstore.testing.cluster import Cluster

DATA = random.Random(5).randbytes(6_500_000)


async def stream(data: bytes = DATA) -> AsyncIterator[bytes]:
    for start in range(0, len(data), 500_000):
        yield data[start : start + 500_000]


async def read(
    cluster: Cluster, number: int, root: CID, offset: int = 0, length: int | None = None
) -> bytes:
    async with cluster[number].read(root, None, offset, length) as chunks:
        return b"".join([chunk async for chunk in chunks])


async def add(cluster: Cluster, code: tuple[int, int] = (4, 2)) -> tuple[AddResult, dict[int, int]]:
    """The result, and the node that holds each slot of the first segment."""
    result = await cluster[0].add_stream(stream(), AddOptions(code=code))
    assert result.protected
    status = await cluster[0].status(result.cid)
    slots = status.segments[0].slots
    return result, {slot.slot: cluster.number_of(slot.holders[0]) for slot in slots}


def outsider(cluster: Cluster, slots: dict[int, int]) -> int:
    return next(n for n in cluster.alive if n and n not in slots.values())


async def meet_all(cluster: Cluster, reader: int) -> None:
    """Connect the reader to everybody."""
    for number in cluster.alive:
        if number != reader:
            addresses = tuple(cluster[number].network.addresses())
            await cluster[reader].connect(PeerAddresses(cluster.peer(number), addresses))
