"""Serving an ASGI application over HTTP/1.1 on trio: sockets, connections counted, the way down.

What happens on a connection is `http_connection`'s, how requests are read `http_requests`'s.
Stopping drains what is under way before it is cut.  It knows nothing of what is served.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from dstore.errors import NodeError
from dstore.interfaces.http_connection import App, Connection, Message, Receive, Scope, Send
from dstore.limits import HTTP_CONNECTIONS_MAX
from dstore.runtime import Clock, SystemClock, open_plain_nursery

__all__ = ["App", "HttpServer", "Message", "Receive", "Scope", "Send", "serve_http"]

_LOOPBACK_OF = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - how to reach "everywhere"


class HttpServer:
    """A running server."""

    def __init__(self, host: str, port: int, app: App, clock: Clock) -> None:
        self._host = _LOOPBACK_OF.get(host, host)
        self.port = port
        self._app = app
        self._clock = clock
        self._accepting = trio.CancelScope()
        self._stopping = False
        self._open: set[Connection] = set()
        self._changed = trio.Event()

    @property
    def url(self) -> str:
        """Where a program on this machine reaches it, without a slash at the end."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"http://{host}:{self.port}"

    @property
    def connections(self) -> int:
        """How many are open."""
        return len(self._open)

    async def drain(self, seconds: float) -> None:
        """Stop accepting, close idle connections, and wait until the others have ended or
        `seconds` are over."""
        self._accepting.cancel()
        self._stopping = True
        for connection in self._open:
            connection.wake()
        with trio.move_on_after(seconds):
            while self.connections:
                await self._changed.wait()

    async def _handle(self, stream: trio.SocketStream) -> None:
        """Serve one client."""
        if self.connections < HTTP_CONNECTIONS_MAX:
            connection = Connection(stream, self._app, lambda: self._stopping, self._clock)
            self._open.add(connection)
            self._tell()
            try:
                await connection.run()
            finally:
                self._open.discard(connection)
                self._tell()
                await trio.aclose_forcefully(stream)
        else:
            await trio.aclose_forcefully(stream)

    def _tell(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    async def _accept(self, listeners: list[trio.SocketListener], nursery: trio.Nursery) -> None:
        with self._accepting:
            await trio.serve_listeners(self._handle, listeners, handler_nursery=nursery)


@asynccontextmanager
async def serve_http(
    app: App, host: str, port: int, clock: Clock | None = None
) -> AsyncIterator[HttpServer]:
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
    port = listeners[0].socket.getsockname()[1]
    server = HttpServer(host, port, app, clock or SystemClock())
    async with open_plain_nursery() as nursery:
        nursery.start_soon(server._accept, listeners, nursery)
        try:
            yield server
        finally:
            server._accepting.cancel()
            nursery.cancel_scope.cancel()
