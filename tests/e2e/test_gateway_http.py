"""The gateway behind its real HTTP server, asked by ordinary HTTP clients over TCP."""

from __future__ import annotations

import http.client
import random
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TypeVar

import pytest
import trio

from dstore.core.cid import CID, RAW
from dstore.core.unixfs.file import FileBuilder, make_leaf
from dstore.core.unixfs.profile import profile_named
from dstore.interfaces.gateway.app import gateway_app
from dstore.interfaces.http import Receive, Scope, Send, serve_http
from dstore.interfaces.metrics import Metrics
from dstore.limits import MIB
from dstore.service.node import Node
from dstore.testing.cluster import open_cluster

# Twice what is read ahead, and more.
DATA = random.Random(9).randbytes(40 * MIB + 17)

T = TypeVar("T")


@dataclass
class Served:
    """A node whose gateway is served at `port`, with a file of DATA; `ended` is set when the
    handler of a request has ended."""

    node: Node
    metrics: Metrics
    port: int
    cid: CID
    ended: trio.Event

    async def ask(self, work: Callable[[http.client.HTTPConnection], T]) -> T:
        """Run a blocking client's work in a thread, on a connection of its own."""

        def run() -> T:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
            try:
                return work(connection)
            finally:
                connection.close()

        return await trio.to_thread.run_sync(run)

    def value(self, metric: str) -> float | None:
        return self.metrics.registry.get_sample_value(metric)


@asynccontextmanager
async def served() -> AsyncIterator[Served]:
    async with open_cluster(1) as cluster:
        node = cluster[0]
        cid = put_file(node, DATA)
        metrics = Metrics(node)
        app = gateway_app(node, 30, metrics)
        ended = trio.Event()

        async def watched(scope: Scope, receive: Receive, send: Send) -> None:
            try:
                await app(scope, receive, send)
            finally:
                ended.set()

        async with serve_http(watched, "127.0.0.1", 0) as server:
            yield Served(node, metrics, server.port, cid, ended)


def put_file(node: Node, data: bytes) -> CID:
    """Store a file without telling anybody, as an import would make it."""
    profile = profile_named("unixfs-v1-2025")
    builder = FileBuilder(profile)
    blocks = []
    for start in range(0, len(data), profile.chunk_bytes):
        leaf, chunk = make_leaf(profile, data[start : start + profile.chunk_bytes])
        blocks += [(leaf, chunk), *builder.add_leaf(leaf, len(chunk), len(chunk))]
    root, last = builder.finish()
    node.stores.blocks.put_many([*blocks, *last])
    return root.cid


async def test_a_client_reads_the_whole_and_parts_on_one_connection() -> None:
    async with served() as site:
        path = f"/ipfs/{site.cid}"

        def work(connection: http.client.HTTPConnection) -> None:
            connection.request("GET", path)
            response = connection.getresponse()
            assert response.status == 200
            assert int(response.headers["Content-Length"]) == len(DATA)
            assert response.read() == DATA
            etag = response.headers["ETag"]
            connection.request("GET", path, headers={"Range": "bytes=20000000-20999999"})
            response = connection.getresponse()
            assert response.status == 206
            assert response.read() == DATA[20_000_000:21_000_000]
            connection.request("GET", path, headers={"If-None-Match": etag})
            response = connection.getresponse()
            assert (response.status, response.read()) == (304, b"")
            connection.request("HEAD", path)
            response = connection.getresponse()
            assert (response.status, response.read()) == (200, b"")
            assert int(response.headers["Content-Length"]) == len(DATA)
            connection.request("GET", "/ipfs/nothing")
            response = connection.getresponse()
            assert (response.status, response.read()[-1:]) == (400, b"\n")
            connection.request("GET", "/healthz")
            assert connection.getresponse().read().startswith(b'{"status": "ok"')

        await site.ask(work)


async def test_content_that_ends_early_is_a_cut_connection() -> None:
    async with served() as site:
        missing = 30
        leaf = CID.of(RAW, DATA[missing * MIB : (missing + 1) * MIB])
        site.node.stores.blocks.delete_many([leaf])

        def work(connection: http.client.HTTPConnection) -> bytes:
            connection.request("GET", f"/ipfs/{site.cid}")
            response = connection.getresponse()
            assert response.status == 200
            with pytest.raises(http.client.IncompleteRead) as caught:
                response.read()
            return caught.value.partial

        with trio.fail_after(20):
            assert await site.ask(work) == DATA[: missing * MIB]
        assert site.value("dstore_gateway_aborted_total") == 1


async def test_a_client_that_leaves_is_noticed() -> None:
    async with served() as site:

        def work(connection: http.client.HTTPConnection) -> None:
            connection.request("GET", f"/ipfs/{site.cid}")
            assert connection.getresponse().read(1000) == DATA[:1000]

        await site.ask(work)
        with trio.fail_after(10):
            await site.ended.wait()
        assert site.value("dstore_gateway_requests_in_progress") == 0
        assert site.value("dstore_gateway_aborted_total") == 0


async def test_hostile_requests_are_answered_and_bounded() -> None:
    cases = [
        (
            b"GET /ipfs/%s HTTP/1.1\r\nHost: x\r\nRange: bytes=" + b"0-0," * 6000 + b"1-1\r\n",
            b"200",
        ),
        (b"GET /ipfs/%s HTTP/1.1\r\nHost: x\r\nAccept: " + b"a/b;q=1," * 3000 + b"\r\n", b"200"),
        (b"GET /ipfs/%s" + b"/a" * 5000 + b" HTTP/1.1\r\nHost: x\r\n", b"414"),
        (b"GET /ipfs/%s/../../etc/passwd HTTP/1.1\r\nHost: x\r\n", b"400"),
        (b"GET /ipfs/%s HTTP/1.1\r\nHost: x\r\nX: " + b"x" * 200_000 + b"\r\n", b"4"),
        (b"GET /ipfs/%s HTTP/1.1\r\nHost: x\r\nRange: bytes=-0\r\n", b"416"),
    ]
    async with served() as site:
        words = b"words"
        cid = CID.of(RAW, words)
        site.node.stores.blocks.put_many([(cid, words)])

        def ask(request: bytes) -> bytes:
            with socket.create_connection(("127.0.0.1", site.port), timeout=20) as line:
                try:
                    line.sendall(request)
                    return line.recv(4096)
                except ConnectionResetError:
                    return b"HTTP/1.1 4"  # refused before all of it was read

        for head, status in cases:
            request = head.replace(b"%s", str(cid).encode()) + b"Connection: close\r\n\r\n"
            answer = await trio.to_thread.run_sync(ask, request)
            assert answer.startswith(b"HTTP/1.1 " + status), request[:80]
