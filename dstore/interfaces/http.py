"""Serving an ASGI application over HTTP/1.1 on trio: sockets, deadlines, caps, the way down.

hypercorn reads and writes HTTP; what it leaves out is here: a client that goes away cancels
its handler, one that stops reading is given up, connections are counted, and stopping drains
what is under way before it is cut.  It knows nothing of what is served.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import asynccontextmanager
from typing import Any

import trio
from hypercorn.config import Config as HypercornConfig
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.utils import wrap_app

from dstore.errors import NodeError
from dstore.limits import (
    HTTP_CONNECTIONS_MAX,
    HTTP_HEADER_BYTES_MAX,
    HTTP_IDLE_SECONDS,
    HTTP_UNSENT_BYTES,
    HTTP_WRITE_BYTES,
    HTTP_WRITE_SECONDS,
)
from dstore.runtime import open_plain_nursery

log = logging.getLogger(__name__)

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_LOOPBACK_OF = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - how to reach "everywhere"


class HttpServer:
    """A running server."""

    def __init__(self, host: str, port: int) -> None:
        self._host = _LOOPBACK_OF.get(host, host)
        self.port = port
        self.connections = 0
        self._accepting = trio.CancelScope()
        self._context = WorkerContext(None)
        self._changed = trio.Event()

    @property
    def url(self) -> str:
        """Where a program on this machine reaches it, without a slash at the end."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"http://{host}:{self.port}"

    async def drain(self, seconds: float) -> None:
        """Stop accepting, close idle connections, and wait until the others have ended or
        `seconds` are over."""
        self._accepting.cancel()
        await self._context.terminated.set()
        with trio.move_on_after(seconds):
            while self.connections:
                await self._changed.wait()

    def _count(self, change: int) -> None:
        self.connections += change
        self._changed.set()
        self._changed = trio.Event()


@asynccontextmanager
async def serve_http(app: App, host: str, port: int) -> AsyncIterator[HttpServer]:
    """Serve `app` on `host` and `port` (0: any free one) until the block ends; what is still
    under way then is cut.  Raises NodeError where the address cannot be listened on."""
    try:
        listeners = await trio.open_tcp_listeners(port, host=host)
    except OSError as error:
        raise NodeError(f"cannot listen on {host}:{port}: {error.strerror or error}") from error
    if port == 0:
        # Each address of a name would get another port.
        for listener in listeners[1:]:
            await listener.aclose()
        listeners = listeners[:1]
    server = HttpServer(host, listeners[0].socket.getsockname()[1])
    config = _hypercorn_config()
    # hypercorn types messages as closed sets of TypedDicts, which no two frameworks share.
    framework: Any = cancel_on_disconnect(app)
    wrapped = wrap_app(framework, config.wsgi_max_body_size, "asgi")

    async def handle(stream: trio.SocketStream) -> None:
        if server.connections >= HTTP_CONNECTIONS_MAX:
            await trio.aclose_forcefully(stream)
            return
        server._count(1)
        paced: Any = _PacedStream(stream)  # has what hypercorn uses of a stream
        try:
            await TCPServer(wrapped, config, server._context, {}, paced)
        finally:
            server._count(-1)
            await trio.aclose_forcefully(stream)

    async def accept(nursery: trio.Nursery) -> None:
        with server._accepting:
            await trio.serve_listeners(handle, listeners, handler_nursery=nursery)

    async with open_plain_nursery() as nursery:
        nursery.start_soon(accept, nursery)
        try:
            yield server
        finally:
            server._accepting.cancel()
            nursery.cancel_scope.cancel()


def _hypercorn_config() -> HypercornConfig:
    config = HypercornConfig()
    config.errorlog = log
    config.accesslog = None
    config.include_server_header = False
    config.keep_alive_timeout = HTTP_IDLE_SECONDS
    config.h11_max_incomplete_size = HTTP_HEADER_BYTES_MAX
    return config


class _PacedStream:
    """A socket stream whose reader must keep reading: hypercorn shields its writes from
    cancellation, so that one stalled client would keep the process from ending."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self.socket = stream.socket
        if hasattr(trio.socket, "TCP_NOTSENT_LOWAT"):
            # Most of a block in one call; there is nothing else that would have to wait for it.
            option = trio.socket.TCP_NOTSENT_LOWAT
            stream.setsockopt(trio.socket.IPPROTO_TCP, option, HTTP_UNSENT_BYTES)

    async def send_all(self, data: bytes) -> None:
        view, taken = memoryview(data), 0
        with trio.move_on_after(HTTP_WRITE_SECONDS) as scope:
            while view:
                # As much at once as the socket takes: one call for most of a block.
                try:
                    sent = await self.socket.send(view)
                except OSError as error:
                    raise trio.BrokenResourceError("the client has gone") from error
                view = view[sent:]
                taken += sent
                if taken >= HTTP_WRITE_BYTES:
                    taken = 0
                    scope.deadline = trio.current_time() + HTTP_WRITE_SECONDS
        if scope.cancelled_caught:
            await trio.aclose_forcefully(self._stream)
            raise trio.BrokenResourceError("the client stopped reading")

    async def receive_some(self, max_bytes: int) -> bytes:
        return await self._stream.receive_some(max_bytes)

    async def send_eof(self) -> None:
        await self._stream.send_eof()

    async def aclose(self) -> None:
        await self._stream.aclose()


def cancel_on_disconnect(app: App) -> App:
    """The application, its handlers cancelled when their client has gone."""

    async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["http_version"] not in ("1.0", "1.1"):
            await _refuse_protocol(scope, send)
            return
        await _Exchange(receive, send).run(app, scope)

    return guarded


class _Exchange:
    """One request and its answer; a task reads ahead so that the client's end is noticed."""

    def __init__(self, receive: Receive, send: Send) -> None:
        self._receive = receive
        self._send = send
        self._to_app, self._from_client = trio.open_memory_channel[Message](1)
        self._complete = False  # the request's body has been read to its end
        self._answered = False  # the last of the answer is on its way
        self._gone = trio.Event()

    async def run(self, app: App, scope: Scope) -> None:
        async with open_plain_nursery() as nursery:
            with trio.CancelScope() as handler:
                nursery.start_soon(self._read, handler)
                await app(scope, self._from_client.receive, self._pass_on)
            self._from_client.close()
            if not self._complete and not self._gone.is_set():
                # hypercorn is still putting pieces of the body into its queue; they are
                # dropped until it has closed the connection.
                with trio.move_on_after(HTTP_IDLE_SECONDS):
                    await self._gone.wait()
            nursery.cancel_scope.cancel()

    async def _read(self, handler: trio.CancelScope) -> None:
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                self._gone.set()
                # hypercorn says the same when an answer is complete, while it still sends it.
                if not self._answered:
                    handler.cancel()
                return
            self._complete = not message.get("more_body", False)
            try:
                await self._to_app.send(message)
            except trio.BrokenResourceError:
                continue

    async def _pass_on(self, message: Message) -> None:
        if message["type"] == "http.response.body" and not message.get("more_body", False):
            self._answered = True
            # Nobody wants the rest of the request.
            self._from_client.close()
        await self._send(message)


async def _refuse_protocol(scope: Scope, send: Send) -> None:
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 505, "headers": []})
        await send({"type": "http.response.body", "body": b""})
    elif scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1002})
