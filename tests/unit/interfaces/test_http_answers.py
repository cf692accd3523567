"""What stands on the wire when an ASGI application is served: framing, order, and its faults."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from dstore.interfaces import http_connection
from dstore.interfaces.http import HttpServer, Receive, Scope, Send, serve_http
from dstore.limits import HTTP_READ_BYTES

PATIENCE_SECONDS = 20
CLOSE = "Connection: close"


class Epoch:
    """The clock of a machine that was never told the time."""

    def now(self) -> float:
        return 0.0


Handler = Callable[[Scope, Receive, Send], Awaitable[None]]


def head(*lines: str) -> bytes:
    return "\r\n".join([*lines, "", ""]).encode()


def get(path: str = "/", *lines: str) -> bytes:
    return head(f"GET {path} HTTP/1.1", "Host: x", *lines)


async def start(send: Send, status: int = 200, **headers: str) -> None:
    named = [(name.replace("_", "-").encode(), text.encode()) for name, text in headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": named})


async def body(send: Send, data: bytes, *, more: bool = False) -> None:
    await send({"type": "http.response.body", "body": data, "more_body": more})


async def whole_body(receive: Receive) -> bytes:
    data, more = b"", True
    while more:
        message = await receive()
        data += message["body"]
        more = message["more_body"]
    return data


async def told(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers with the method, the target and the body of the request."""
    data = await whole_body(receive)
    text = b"%b %b %b" % (scope["method"].encode(), scope["raw_path"], data)
    await start(send, content_length=str(len(text)))
    await body(send, text)


@asynccontextmanager
async def asking(app: Handler, request: bytes) -> AsyncIterator[trio.SocketStream]:
    """A connection to a server of the application, the request sent."""
    async with serve_http(app, "127.0.0.1", 0, Epoch()) as server:
        async with await trio.open_tcp_stream("127.0.0.1", server.port) as stream:
            await stream.send_all(request)
            with trio.fail_after(PATIENCE_SECONDS):
                yield stream


async def everything(stream: trio.SocketStream) -> bytes:
    return b"".join([piece async for piece in stream])


async def until(stream: trio.SocketStream, end: bytes) -> bytes:
    data = b""
    while not data.endswith(end):
        piece = await stream.receive_some()
        assert piece, data
        data += piece
    return data


async def test_an_answer_of_a_known_length() -> None:
    async with asking(told, get("/a?b", CLOSE)) as stream:
        lines = (await everything(stream)).split(b"\r\n")
    assert lines[0] == b"HTTP/1.1 200 OK"
    assert lines[1] == b"content-length: 7"
    assert lines[2].startswith(b"date: Thu, 01 Jan 1970 ")
    assert lines[3:] == [b"connection: close", b"", b"GET /a "]


async def test_requests_sent_together_are_answered_in_order() -> None:
    first = head("POST /1 HTTP/1.1", "Host: x", "Content-Length: 3") + b"one"
    chunked = head("POST /2 HTTP/1.1", "Host: x", "Transfer-Encoding: chunked")
    second = chunked + b"1\r\nt\r\n2\r\nwo\r\n0\r\nA: b\r\n\r\n"
    async with asking(told, first + second + get("/3", CLOSE)) as stream:
        data = await everything(stream)
    assert data.count(b"HTTP/1.1 200") == 3
    places = [data.index(text) for text in (b"POST /1 one", b"POST /2 two", b"GET /3 ")]
    assert places == sorted(places)


async def test_a_hundred_requests_on_one_connection() -> None:
    async with asking(told, b"") as stream:
        for number in range(100):
            await stream.send_all(get(f"/{number}"))
            assert b"connection" not in await until(stream, b"GET /%d " % number)


@pytest.mark.parametrize(
    ("version", "wire"),
    [
        ("1.1", b"\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"),
        ("1.0", b"connection: close\r\n\r\nabcde"),
    ],
)
async def test_an_answer_of_unknown_length(version: str, wire: bytes) -> None:
    async def app(_: Scope, receive: Receive, send: Send) -> None:
        await start(send)
        await body(send, b"abc", more=True)
        await body(send, b"", more=True)
        await body(send, b"de", more=True)
        await body(send, b"")

    async with asking(app, head(f"GET / HTTP/{version}", "Host: x")) as stream:
        data = await until(stream, wire)
        assert (b"transfer-encoding: chunked" in data) == (version == "1.1")


@pytest.mark.parametrize(("method", "status"), [("HEAD", 200), ("GET", 204), ("GET", 304)])
async def test_an_answer_without_a_body(method: str, status: int) -> None:
    async def app(_: Scope, receive: Receive, send: Send) -> None:
        await start(send, status, etag="x")
        await body(send, b"not for the wire")

    request = head(f"{method} / HTTP/1.1", "Host: x")
    last = head(f"{method} / HTTP/1.1", "Host: x", CLOSE)
    async with asking(app, request + last) as stream:
        data = await everything(stream)
    assert data.count(b"HTTP/1.1 %d" % status) == 2
    assert data.endswith(b"connection: close\r\n\r\n")
    assert b"wire" not in data
    assert b"transfer-encoding" not in data


@pytest.mark.parametrize("asks", [True, False])
async def test_who_waits_is_told_to_send_the_body_if_it_is_wanted(asks: bool) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if asks:
            await told(scope, receive, send)
        else:
            await start(send, 413, content_length="0")
            await body(send, b"")

    expecting = head("POST /x HTTP/1.1", "Host: x", "Content-Length: 4", "Expect: 100-continue")
    async with asking(app, expecting) as stream:
        if asks:
            assert await until(stream, b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
            await stream.send_all(b"body")
            assert (await until(stream, b"POST /x body")).startswith(b"HTTP/1.1 200")
        else:
            data = await until(stream, b"connection: close\r\n\r\n")
            assert data.startswith(b"HTTP/1.1 413")
            assert await stream.receive_some() == b""


async def test_an_answer_that_stops_short_is_cut() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/known":
            await start(send, content_length="10")
        else:
            await start(send)
        await body(send, b"abc", more=True)

    async with asking(app, get("/known") + get("/next")) as stream:
        assert (await everything(stream)).endswith(b"\r\n\r\nabc")
    async with asking(app, get("/chunks") + get("/next")) as stream:
        assert (await everything(stream)).endswith(b"\r\n\r\n3\r\nabc\r\n")


@pytest.mark.parametrize(
    ("length", "pieces", "sent"),
    [
        ("2", [b"abc"], b"HTTP/1.1 500"),
        ("4", [b"abc"], b"HTTP/1.1 500"),
        ("4", [b"abc", b"de"], b"abc"),
    ],
)
async def test_a_body_of_another_length_than_said_is_never_whole(
    length: str, pieces: list[bytes], sent: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async def app(_: Scope, receive: Receive, send: Send) -> None:
        await start(send, content_length=length)
        for number, piece in enumerate(pieces, 1):
            await body(send, piece, more=number < len(pieces))

    with caplog.at_level(logging.ERROR):
        async with asking(app, get()) as stream:
            data = await everything(stream)
    assert data.startswith(sent) or data.endswith(b"\r\n\r\n" + sent)
    assert "another length" in caplog.text


@pytest.mark.parametrize("text", ["a\r\nset-cookie: b", "a\n", "a\r", "a\0"])
async def test_a_header_cannot_bring_another_one(
    text: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def app(_: Scope, receive: Receive, send: Send) -> None:
        await start(send, x_ipfs_path=text, content_length="0")
        await body(send, b"")

    with caplog.at_level(logging.ERROR):
        async with asking(app, get()) as stream:
            data = await everything(stream)
    assert data.startswith(b"HTTP/1.1 500")
    assert b"cookie" not in data
    assert "a line end or NUL" in caplog.text


async def test_no_answer_is_an_error_of_the_server() -> None:
    async def app(_: Scope, receive: Receive, send: Send) -> None:
        return

    async with asking(app, get() + get()) as stream:
        assert (await everything(stream)).count(b"HTTP/1.1 500 Internal Server Error") == 1


async def test_what_cannot_be_read_is_answered_behind_what_can() -> None:
    async with asking(told, get("/1") + b"nonsense\r\n\r\n") as stream:
        data = await everything(stream)
    assert data.startswith(b"HTTP/1.1 200")
    assert data.endswith(b"content-length: 0\r\nconnection: close\r\n\r\n")
    assert b"HTTP/1.1 400 Bad Request" in data


async def test_a_body_that_breaks_off_cancels_who_reads_it() -> None:
    cancelled = trio.Event()

    async def app(_: Scope, receive: Receive, send: Send) -> None:
        try:
            await whole_body(receive)
        except trio.Cancelled:
            cancelled.set()
            raise

    chunked = head("POST / HTTP/1.1", "Host: x", "Transfer-Encoding: chunked")
    async with asking(app, chunked + b"3\r\nabc\r\nnonsense\r\n") as stream:
        assert (await everything(stream)).startswith(b"HTTP/1.1 400")
        assert cancelled.is_set()


async def test_a_body_is_read_no_further_than_it_is_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And then as far as it goes."""
    monkeypatch.setattr(http_connection, "HTTP_BODY_BYTES_WAITING", 1000)
    size, go, seen = 20_000_000, trio.Event(), list[int]()

    async def app(_: Scope, receive: Receive, send: Send) -> None:
        await go.wait()
        more = True
        while more:
            message = await receive()
            seen.append(len(message["body"]))
            more = message["more_body"]
        await start(send, content_length="0")
        await body(send, b"")

    request = head("POST / HTTP/1.1", "Host: x", f"Content-Length: {size}", CLOSE)
    async with asking(app, request) as stream, trio.open_nursery() as nursery:
        nursery.start_soon(stream.send_all, bytes(size))
        await trio.testing.wait_all_tasks_blocked()
        go.set()
        assert (await everything(stream)).startswith(b"HTTP/1.1 200")
    assert sum(seen) == size
    assert max(seen) <= HTTP_READ_BYTES + 1000


async def test_draining_closes_a_connection_whose_request_is_not_whole() -> None:
    async with serve_http(told, "127.0.0.1", 0) as server:
        async with await trio.open_tcp_stream("127.0.0.1", server.port) as stream:
            await stream.send_all(b"GET / HTTP/1.1\r\nHos")
            await connected(server)
            with trio.fail_after(PATIENCE_SECONDS):
                await server.drain(PATIENCE_SECONDS)
                assert await stream.receive_some() == b""


async def connected(server: HttpServer) -> None:
    with trio.fail_after(PATIENCE_SECONDS):
        while not server.connections:
            await server._changed.wait()
