"""Peers that lie, die or fall silent while a gateway streams from them (threats 4 and 23): the
client gets the right bytes, an error status, or a transfer that is visibly cut."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable, MutableMapping
from typing import Any

import pytest
import trio

from dstore.core.cid import CID, RAW
from dstore.interfaces.gateway.app import GatewayApp, gateway_app
from dstore.limits import MIB, READ_AHEAD_BYTES
from dstore.service.progress import AddOptions
from dstore.testing.cluster import Cluster, open_cluster
from dstore.testing.deterministic import run_deterministic
from tests.unit.interfaces.gateway_client import request

# More than is read ahead, so that much of it is still to be fetched after the first byte.
DATA = random.Random(7).randbytes(40 * MIB)
SMALL = DATA[: 3 * MIB + 5]


async def add(cluster: Cluster, data: bytes) -> tuple[CID, dict[int, int]]:
    """The root, and the node that holds each slot; the adder is killed."""

    async def chunks() -> AsyncIterator[bytes]:
        yield data

    result = await cluster[0].add_stream(chunks(), AddOptions(code=(4, 2)))
    assert result.protected
    status = await cluster[0].status(result.cid)
    (segment,) = status.segments
    slots = {slot.slot: cluster.number_of(slot.holders[0]) for slot in segment.slots}
    await cluster.kill(0)
    return result.cid, slots


def outsider(cluster: Cluster, slots: dict[int, int]) -> int:
    return next(number for number in cluster.alive if number not in slots.values())


class Client:
    """A client that stops reading after its first MiB until it is let go on."""

    def __init__(self) -> None:
        self.status = 0
        self.body = bytearray()
        self.complete = False
        self.started = trio.Event()
        self.go_on = trio.Event()

    async def get(self, app: GatewayApp, path: str) -> None:
        scope = {
            "type": "http",
            "method": "GET",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "headers": [],
        }
        await app(scope, self._receive, self._send)

    async def _receive(self) -> MutableMapping[str, Any]:
        return {"type": "http.disconnect"}

    async def _send(self, message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            return
        self.body += message["body"]
        self.complete = not message.get("more_body", False)
        if len(self.body) >= MIB:
            self.started.set()
            await self.go_on.wait()


def flip(cluster: Cluster, number: int) -> None:
    """From now on, what the node sends has a wrong bit now and then."""
    drawn = random.Random(number)

    def hook(_: object, data: bytes) -> bytes:
        if len(data) < 1000:
            return data
        spoilt = bytearray(data)
        spoilt[drawn.randrange(100, len(spoilt))] ^= 1
        return bytes(spoilt)

    cluster.hub.corrupt(cluster.peer(number), hook)


async def kill(cluster: Cluster, number: int) -> None:
    await cluster.kill(number)


async def pause(cluster: Cluster, number: int) -> None:
    cluster.hub.pause(cluster.peer(number))


async def lie(cluster: Cluster, number: int) -> None:
    flip(cluster, number)


Fault = Callable[[Cluster, int], Any]


@pytest.mark.parametrize("fault", [kill, pause, lie])
@pytest.mark.parametrize("victims", [2, 4])
def test_holders_that_fail_in_the_middle(fault: Fault, victims: int) -> None:
    async def main() -> None:
        async with open_cluster(9) as cluster:
            root, slots = await add(cluster, DATA)
            app = gateway_app(cluster[outsider(cluster, slots)], timeout_seconds=30)
            client = Client()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(client.get, app, f"/ipfs/{root}")
                await client.started.wait()
                for slot in range(victims):
                    await fault(cluster, slots[slot])
                client.go_on.set()
            assert client.status == 200
            assert DATA.startswith(client.body)
            if victims <= 2:
                assert client.complete
                assert len(client.body) == len(DATA)
            else:
                assert not client.complete
                assert len(client.body) < len(DATA)
                text = (await request(app, "/metrics")).text
                assert "dstore_gateway_aborted_total 1.0" in text

    run_deterministic(2, main)


def test_silent_holders_are_a_504_in_time() -> None:
    async def main() -> None:
        async with open_cluster(9) as cluster:
            root, slots = await add(cluster, SMALL)
            reader = outsider(cluster, slots)
            app = gateway_app(cluster[reader], timeout_seconds=7)
            for number in cluster.alive:
                if number != reader:
                    cluster.hub.pause(cluster.peer(number))
            start = trio.current_time()
            answer = await request(app, f"/ipfs/{root}")
            assert answer.status == 504
            assert answer.complete
            assert int(answer.headers["retry-after"]) > 0
            assert answer.headers["cache-control"] == "no-store"
            assert trio.current_time() - start <= 7.01
            for number in cluster.alive:
                cluster.hub.resume(cluster.peer(number))
            await trio.sleep(60)
            answer = await request(app, f"/ipfs/{root}")
            assert (answer.status, answer.complete) == (200, True)
            assert answer.body == SMALL

    run_deterministic(2, main)


def test_too_few_fragments_are_an_error_and_not_half_a_file() -> None:
    async def main() -> None:
        async with open_cluster(9) as cluster:
            root, slots = await add(cluster, SMALL)
            app = gateway_app(cluster[outsider(cluster, slots)], timeout_seconds=30)
            for slot in range(4):
                flip(cluster, slots[slot])
            answer = await request(app, f"/ipfs/{root}")
            assert answer.status in (404, 502, 504)
            assert answer.complete
            assert DATA[:100] not in answer.body

    run_deterministic(2, main)


def test_a_range_needs_no_beginning() -> None:
    """The media type is told from the file's first bytes, and without them all the same."""

    async def main() -> None:
        async with open_cluster(9) as cluster:
            root, slots = await add(cluster, DATA)
            reader = outsider(cluster, slots)
            app = gateway_app(cluster[reader], timeout_seconds=30)
            first_stripe = {CID.of(RAW, DATA[at * MIB : (at + 1) * MIB]) for at in range(4)}
            assert (await request(app, f"/ipfs/{root}?format=raw")).status == 200
            for slot in range(3):
                store = cluster.stores[slots[slot]]
                held = {CID.v1(RAW, multihash) for multihash in store.multihashes()}
                store.delete_many(sorted(held & first_stripe))
            answer = await request(app, f"/ipfs/{root}", range="bytes=30000000-30000099")
            assert (answer.status, answer.body) == (206, DATA[30_000_000:30_000_100])
            assert answer.headers["content-type"] == "application/octet-stream"
            whole = await request(app, f"/ipfs/{root}")
            assert (whole.status, whole.complete) == (504, True)

    run_deterministic(2, main)


def test_a_client_that_goes_away_ends_the_read() -> None:
    async def main() -> None:
        async with open_cluster(9) as cluster:
            root, slots = await add(cluster, DATA)
            reader = outsider(cluster, slots)
            app = gateway_app(cluster[reader], timeout_seconds=30)
            client = Client()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(client.get, app, f"/ipfs/{root}")
                await client.started.wait()
                nursery.cancel_scope.cancel()
            fetched = cluster[reader].counters.fetched_bytes
            await trio.sleep(30)
            assert cluster[reader].counters.fetched_bytes - fetched <= READ_AHEAD_BYTES
            assert fetched < len(DATA)
            text = (await request(app, "/metrics")).text
            assert "dstore_gateway_requests_in_progress 1.0" in text
            assert "dstore_gateway_aborted_total 0.0" in text

    run_deterministic(2, main)
