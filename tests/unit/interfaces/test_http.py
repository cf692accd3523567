"""Serving HTTP over real sockets: who comes, who leaves, who is slow, and the way down."""

from __future__ import annotations

import logging
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
import trio

from dstore.errors import NodeError
from dstore.interfaces import http, http_connection
from dstore.interfaces.http import HttpServer, Receive, Scope, Send, serve_http

PATIENCE_SECONDS = 20


class Recorder:
    """An application: answers /hello, streams /endless, waits in /wait, counts /body."""

    def __init__(self) -> None:
        self.entered = trio.Event()
        self.cancelled = trio.Event()
        self.finished = trio.Event()
        self.release = trio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.entered.set()
        try:
            await getattr(self, scope["path"].strip("/"))(receive, send)
        except trio.Cancelled:
            self.cancelled.set()
            raise
        self.finished.set()

    async def hello(self, receive: Receive, send: Send) -> None:
        await answer(send, b"hello")

    async def wait(self, receive: Receive, send: Send) -> None:
        await self.release.wait()
        await answer(send, b"at last")

    async def endless(self, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while True:
            await send({"type": "http.response.body", "body": bytes(65536), "more_body": True})

    async def body(self, receive: Receive, send: Send) -> None:
        size, more = 0, True
        while more:
            message = await receive()
            size += len(message["body"])
            more = message["more_body"]
        await answer(send, str(size).encode())

    async def refuse(self, receive: Receive, send: Send) -> None:
        await receive()
        await answer(send, b"no")


async def answer(send: Send, body: bytes) -> None:
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


@asynccontextmanager
async def connection(server: HttpServer, request: bytes = b"") -> AsyncIterator[trio.SocketStream]:
    stream = await trio.open_tcp_stream("127.0.0.1", server.port)
    async with stream:
        await stream.send_all(request)
        yield stream


async def everything(stream: trio.SocketStream) -> bytes:
    data = b""
    with trio.fail_after(PATIENCE_SECONDS):
        try:
            while piece := await stream.receive_some():
                data += piece
        except trio.BrokenResourceError:
            pass
    return data


def request(path: str, method: str = "GET", *headers: str) -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: x", *headers, "", ""]).encode()


LAST = "Connection: close"


async def test_the_real_port_is_reported_and_serves() -> None:
    async with serve_http(Recorder(), "127.0.0.1", 0) as server:
        assert server.url == f"http://127.0.0.1:{server.port}"
        async with connection(server, request("/hello", "GET", LAST)) as stream:
            reply = await everything(stream)
    assert reply.startswith(b"HTTP/1.1 200")
    assert reply.endswith(b"hello")


async def test_a_taken_port_is_a_clear_error() -> None:
    async with serve_http(Recorder(), "127.0.0.1", 0) as server:
        with pytest.raises(NodeError, match=f"cannot listen on 127.0.0.1:{server.port}"):
            async with serve_http(Recorder(), "127.0.0.1", server.port):
                pass


@pytest.mark.parametrize("path", ["/wait", "/endless"])
async def test_a_client_that_goes_away_cancels_its_handler(path: str) -> None:
    app = Recorder()
    async with serve_http(app, "127.0.0.1", 0) as server:
        async with connection(server, request(path)):
            await app.entered.wait()
        with trio.fail_after(PATIENCE_SECONDS):
            await app.cancelled.wait()
        async with connection(server, request("/hello", "GET", LAST)) as stream:
            assert (await everything(stream)).endswith(b"hello")


async def test_a_client_that_resets_cancels_its_handler_too() -> None:
    app = Recorder()
    async with serve_http(app, "127.0.0.1", 0) as server:
        async with connection(server, request("/endless")) as stream:
            await app.entered.wait()
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        with trio.fail_after(PATIENCE_SECONDS):
            await app.cancelled.wait()


async def test_a_large_body_arrives_whole() -> None:
    size = 5_000_000
    async with serve_http(Recorder(), "127.0.0.1", 0) as server:
        head = request("/body", "POST", f"Content-Length: {size}", LAST)
        async with connection(server, head) as stream:
            await stream.send_all(bytes(size))
            assert (await everything(stream)).endswith(str(size).encode())


async def test_an_answer_before_the_end_of_the_body_leaves_nothing_behind() -> None:
    """The answer arrives though the client still sends, and the connection ends with it."""
    app = Recorder()
    async with serve_http(app, "127.0.0.1", 0) as server:
        head = request("/refuse", "POST", "Content-Length: 50000000")
        async with connection(server, head) as stream, trio.open_nursery() as nursery:

            async def send() -> None:
                try:
                    await stream.send_all(bytes(50_000_000))
                except (trio.BrokenResourceError, trio.ClosedResourceError):
                    return

            nursery.start_soon(send)
            assert (await everything(stream)).endswith(b"no")
            nursery.cancel_scope.cancel()
        with trio.fail_after(PATIENCE_SECONDS):
            await server.drain(PATIENCE_SECONDS)
        assert server.connections == 0
        assert app.finished.is_set()


async def test_draining_lets_requests_end_and_closes_idle_connections() -> None:
    app = Recorder()
    async with serve_http(app, "127.0.0.1", 0) as server:
        async with (
            connection(server, request("/wait")) as busy,
            connection(server, request("/hello")) as idle,
            trio.open_nursery() as nursery,
        ):
            await app.finished.wait()
            nursery.start_soon(server.drain, PATIENCE_SECONDS)
            assert (await everything(idle)).endswith(b"hello")
            with pytest.raises(OSError, match="all attempts to connect"):
                await trio.open_tcp_stream("127.0.0.1", server.port)
            app.release.set()
            assert (await everything(busy)).endswith(b"at last")
        assert server.connections == 0


async def test_draining_ends_with_its_time_and_leaving_cuts_what_is_left() -> None:
    app = Recorder()
    with trio.fail_after(PATIENCE_SECONDS):
        async with trio.open_nursery() as nursery:
            async with serve_http(app, "127.0.0.1", 0) as server:
                nursery.start_soon(_request_and_wait, server)
                await app.entered.wait()
                await server.drain(0.01)
                assert server.connections == 1
            assert app.cancelled.is_set()


async def _request_and_wait(server: HttpServer) -> None:
    async with connection(server, request("/wait")) as stream:
        assert await everything(stream) == b""


async def test_a_client_that_stops_reading_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody could hold its handler, and what that holds, for ever."""
    monkeypatch.setattr(http_connection, "HTTP_WRITE_SECONDS", 0.1)
    app = Recorder()
    with trio.fail_after(PATIENCE_SECONDS):
        async with serve_http(app, "127.0.0.1", 0) as server:
            async with connection(server, request("/endless")):
                await app.cancelled.wait()


async def test_connections_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "HTTP_CONNECTIONS_MAX", 2)
    app = Recorder()
    async with serve_http(app, "127.0.0.1", 0) as server:
        async with connection(server), connection(server, request("/wait")):
            await app.entered.wait()
            async with connection(server, request("/hello")) as third:
                assert await everything(third) == b""
        app.release.set()


async def test_headers_that_never_end_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_connection, "HTTP_IDLE_SECONDS", 0.1)
    async with serve_http(Recorder(), "127.0.0.1", 0) as server:
        async with connection(server, b"GET /hello HTTP/1.1\r\nHost: x\r\nA: ") as stream:
            assert b"200" not in await everything(stream)


async def test_headers_that_trickle_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """What comes meanwhile does not put off the deadline."""
    monkeypatch.setattr(http_connection, "HTTP_IDLE_SECONDS", 0.1)
    async with serve_http(Recorder(), "127.0.0.1", 0) as server:
        async with connection(server, b"GET /hello HTTP/1.1\r\nHost: x\r\nA: ") as stream:
            with trio.fail_after(PATIENCE_SECONDS), pytest.raises(trio.BrokenResourceError):
                while True:
                    await stream.send_all(b"x")
                    await trio.sleep(0.01)  # slow on purpose: the sender under test
        with trio.fail_after(PATIENCE_SECONDS):
            while server.connections:
                await server._changed.wait()


async def test_slow_senders_in_headers_and_bodies_leave_an_honest_client_alone() -> None:
    starts = [
        b"GET /hel",
        b"GET /hello HTTP/1.1\r\nHost: x\r\nA: ",
        request("/body", "POST", "Content-Length: 1000") + b"some",
        request("/refuse", "POST", "Content-Length: 1000") + b"some",
    ]
    async with serve_http(Recorder(), "127.0.0.1", 0) as server, AsyncExitStack() as held:
        for number in range(200):
            start = starts[number % len(starts)]
            await held.enter_async_context(connection(server, start))
        for _ in range(20):
            async with connection(server, request("/hello", "GET", LAST)) as honest:
                assert (await everything(honest)).endswith(b"hello")
        assert server.connections >= 100


async def test_headers_beyond_the_limit_are_refused() -> None:
    async with serve_http(Recorder(), "127.0.0.1", 0) as server:
        async with connection(server, request("/hello", "GET", "A: " + "x" * 70_000)) as stream:
            assert (await everything(stream)).startswith(b"HTTP/1.1 4")


@pytest.mark.parametrize(
    "upgrade",
    [
        request("/hello", "GET", "Upgrade: h2c", "Connection: Upgrade", "HTTP2-Settings: AAAA"),
        request(
            "/hello",
            "GET",
            "Upgrade: websocket",
            "Connection: Upgrade",
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
            "Sec-WebSocket-Version: 13",
        ),
    ],
)
async def test_an_offer_of_another_protocol_is_answered_in_this_one(upgrade: bytes) -> None:
    async with serve_http(Recorder(), "127.0.0.1", 0) as server:
        async with connection(server, upgrade + request("/hello", "GET", LAST)) as stream:
            reply = await everything(stream)
    assert reply.count(b"HTTP/1.1 200") == 2
    assert b"upgrade" not in reply.lower()


async def test_other_protocols_never_reach_the_application() -> None:
    app = Recorder()
    async with serve_http(app, "127.0.0.1", 0) as server:
        async with connection(server, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n") as stream:
            await stream.send_all(b"\0\0\0\4\0\0\0\0\0")
            await stream.receive_some()
            await stream.send_eof()
            await everything(stream)
        assert not app.entered.is_set()


async def test_an_application_that_fails_is_an_error_of_its_own_request(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.ERROR):
        async with serve_http(Recorder(), "127.0.0.1", 0) as server:
            async with connection(server, request("/nothing_here", "GET", LAST)) as stream:
                assert (await everything(stream)).startswith(b"HTTP/1.1 500")
            async with connection(server, request("/hello", "GET", LAST)) as stream:
                assert (await everything(stream)).endswith(b"hello")
    assert "AttributeError" in caplog.text


async def test_an_application_that_fails_as_it_is_cancelled_ends_nothing_else(
    caplog: pytest.LogCaptureFixture,
) -> None:
    entered = trio.Event()

    async def fail() -> None:
        try:
            await trio.sleep_forever()
        finally:
            raise KeyError("while it was cleaning up")

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/hello":
            await answer(send, b"hello")
            return
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fail)
            nursery.start_soon(trio.sleep_forever)
            entered.set()

    with caplog.at_level(logging.ERROR):
        async with serve_http(app, "127.0.0.1", 0) as server:
            async with connection(server, request("/fail")):
                await entered.wait()
            with trio.fail_after(PATIENCE_SECONDS):
                while server.connections:
                    await server._changed.wait()
            async with connection(server, request("/hello", "GET", LAST)) as stream:
                assert (await everything(stream)).endswith(b"hello")
    assert "cleaning up" in caplog.text
