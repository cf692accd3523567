"""One HTTP/1.1 connection: requests handed to an ASGI application, answers written in time.

One task reads as long as the connection lives, so that a client that goes away is noticed and
its handler cancelled; another one answers the requests, one after the other.  An answer that
is not whole never ends cleanly.  Specification: RFC 9112.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Awaitable, Callable, MutableMapping
from email.utils import formatdate
from functools import lru_cache
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import unquote

import trio

from dstore.interfaces.http_requests import Request, RequestReader
from dstore.limits import (
    HTTP_BODY_BYTES_WAITING,
    HTTP_IDLE_SECONDS,
    HTTP_READ_BYTES,
    HTTP_READ_HEAD_BYTES,
    HTTP_UNSENT_BYTES,
    HTTP_WRITE_BYTES,
    HTTP_WRITE_SECONDS,
)
from dstore.runtime import Clock, open_plain_nursery

log = logging.getLogger(__name__)

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_STATUS_LINES: Final = {
    status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus
}
_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
_BODILESS: Final = frozenset({204, 304})


class Connection:
    """A connection that was accepted; `run` serves it.  `stopping` tells whether no further
    request is wanted."""

    def __init__(
        self, stream: trio.SocketStream, app: App, stopping: Callable[[], bool], clock: Clock
    ) -> None:
        self.socket = stream.socket
        self._app = app
        self._stopping = stopping
        self._clock = clock
        self._reader = RequestReader()
        self._handler: trio.CancelScope | None = None
        self._news = trio.lowlevel.ParkingLot()  # for who answers: something was read
        self._room = trio.lowlevel.ParkingLot()  # for the reader: something was taken
        self._dropping = False  # what comes is of no use any more
        self._gone = False  # the client is; nothing can be sent
        self._broken = False  # an answer is not whole, nothing may follow it
        if hasattr(trio.socket, "TCP_NOTSENT_LOWAT"):
            # Most of a block in one call; there is nothing else that would have to wait for it.
            option = trio.socket.TCP_NOTSENT_LOWAT
            stream.setsockopt(trio.socket.IPPROTO_TCP, option, HTTP_UNSENT_BYTES)

    def wake(self) -> None:
        """Look again whether requests are wanted."""
        self._news.unpark_all()

    async def run(self) -> None:
        """Serve the client until it or this side has enough, and close."""
        try:
            addresses = {
                "client": self.socket.getpeername()[:2],
                "server": self.socket.getsockname()[:2],
            }
        except OSError:
            return  # gone before it was looked at
        async with open_plain_nursery() as nursery:
            nursery.start_soon(self._read)
            while (request := await self._next()) is not None:
                if not await self._serve(request, addresses):
                    break
            if not self._gone:
                await self._part()
            nursery.cancel_scope.cancel()

    # --- Reading -----------------------------------------------------------------------------

    async def _read(self) -> None:
        """Read until the client has gone; never far ahead of who answers."""
        reader = self._reader
        while True:
            in_body = reader.in_body or self._dropping
            try:
                data = await self.socket.recv(HTTP_READ_BYTES if in_body else HTTP_READ_HEAD_BYTES)
            except OSError:
                break
            if not data:
                break
            if self._dropping:
                continue
            reader.feed(data)
            self._news.unpark_all()
            while self._is_ahead() and not self._dropping:
                await self._room.park()
        self._lost()

    def _is_ahead(self) -> bool:
        """Whether reading waits until more was taken."""
        waiting = self._reader.requests
        return len(waiting) > 1 or (
            bool(waiting) and waiting[0].body_bytes >= HTTP_BODY_BYTES_WAITING
        )

    async def _next(self) -> Request | None:
        """The next request, which stays the first of the reader's until it is answered; None
        where there will be none."""
        reader = self._reader
        # One deadline for the whole head, however it trickles in.
        with trio.move_on_after(HTTP_IDLE_SECONDS):
            while not self._gone:
                if reader.requests:
                    return reader.requests[0]
                if reader.refusal is not None:
                    await self._refuse(reader.refusal)
                    return None
                if self._stopping():
                    return None
                await self._news.park()
        return None

    # --- Answering ---------------------------------------------------------------------------

    async def _serve(self, request: Request, addresses: dict[str, Any]) -> bool:
        """Answer the request; tells whether another one may follow."""
        answer = _Answer(self, request)
        path, _, query = request.target.partition(b"?")
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": request.version,
            "method": request.method,
            "scheme": "http",
            "path": unquote(path.decode("ascii")),
            "raw_path": path,
            "query_string": query,
            "root_path": "",
            "headers": request.headers,
            **addresses,
        }
        try:
            with trio.CancelScope() as self._handler:
                await self._app(scope, answer.receive, answer.send)
        except Exception:
            # The boundary between the server and what it serves: an error of one request.
            log.exception("a request failed", extra={"path": scope["path"]})
        self._handler = None
        if self._gone or self._broken:
            return False
        if not answer.begun:
            await self._refuse(self._reader.refusal or 500)
            return False
        if not (answer.complete and request.ended and answer.keeps_alive):
            return False
        self._reader.requests.popleft()
        self._room.unpark_all()
        return True

    async def _refuse(self, status: int) -> None:
        """An answer of the server itself, the last one."""
        await self.write(
            _STATUS_LINES[status],
            self.date_line(),
            b"content-length: 0\r\nconnection: close\r\n\r\n",
        )

    async def _part(self) -> None:
        """Say that nothing more will come.  Were the connection closed while the client still
        sends, the kernel would take the last of the answer back."""
        self._dropping = True
        self._room.unpark_all()
        try:
            self.socket.shutdown(trio.socket.SHUT_WR)
        except OSError:
            return
        waiting = list(self._reader.requests)
        if self._reader.refusal is None and len(waiting) < 2 and all(one.ended for one in waiting):
            return  # all that it sent has been read
        with trio.move_on_after(HTTP_IDLE_SECONDS):
            while not self._gone:
                await self._news.park()

    def date_line(self) -> bytes:
        """The header that says when an answer was made."""
        return _date_line(int(self._clock.now()))

    def may_stay(self, request: Request) -> bool:
        """Whether the connection can be used again after the answer that begins now."""
        return request.keep_alive and request.ended and not self._stopping()

    def answering_ends(self) -> None:
        """The last of an answer is on its way: that the client leaves then, ends nothing."""
        self._handler = None

    async def body_of(self, request: Request) -> bytes:
        """What has come of the body since it was last asked for; b"" at its end.  Whoever asks
        for what cannot be read is cancelled."""
        while not request.body and not request.ended:
            if self._reader.refusal is not None and self._handler is not None:
                self._handler.cancel()
            await self._news.park()
        data = request.take()
        self._room.unpark_all()
        return data

    async def write(self, *pieces: bytes) -> None:
        """Send the bytes.  A client that has gone, or takes less than HTTP_WRITE_BYTES in
        HTTP_WRITE_SECONDS, has its handler cancelled; nothing is raised here."""
        if not self._gone and not self._broken:
            self._broken = True  # should this be cancelled in the middle
            try:
                # Mostly the socket takes all of it, and nobody has to wait.
                sent = os.writev(self.socket.fileno(), pieces)
            except BlockingIOError:
                sent = 0
            except OSError:
                self._lost()
                return
            for piece in pieces:
                if sent < len(piece):
                    await self._write_slowly(memoryview(piece)[sent:])
                sent = max(0, sent - len(piece))
            self._broken = False

    async def _write_slowly(self, view: memoryview) -> None:
        taken = 0
        with trio.move_on_after(HTTP_WRITE_SECONDS) as scope:
            while view and not self._gone:
                # As much at once as the socket takes: one call for most of a block.
                try:
                    sent = await self.socket.send(view)
                except OSError:
                    self._lost()
                    return
                view = view[sent:]
                taken += sent
                if taken >= HTTP_WRITE_BYTES:
                    taken = 0
                    scope.deadline = trio.current_time() + HTTP_WRITE_SECONDS
        if scope.cancelled_caught:
            self._lost()

    def _lost(self) -> None:
        """The client has gone, or has stopped reading."""
        self._gone = True
        if self._handler is not None:
            self._handler.cancel()
        self._news.unpark_all()


class _Answer:
    """The answer to one request, as the application gives it (ASGI)."""

    def __init__(self, connection: Connection, request: Request) -> None:
        self.begun = False
        self.complete = False
        self.keeps_alive = False
        self._connection = connection
        self._request = request
        self._start: Message | None = None
        self._body_told = False
        self._bodiless = False
        self._left: int | None = None  # of a body whose length was said

    async def receive(self) -> Message:
        """A piece of the request's body; after the last one there is nothing to wait for but
        the end, which the handler learns of by being cancelled."""
        request, connection = self._request, self._connection
        if self._body_told:
            await trio.sleep_forever()
        if request.waits and not request.body and not request.ended and not self.begun:
            request.waits = False
            await connection.write(_CONTINUE)
        data = await connection.body_of(request)
        self._body_told = request.ended and not request.body
        return {"type": "http.request", "body": data, "more_body": not self._body_told}

    async def send(self, message: Message) -> None:
        """Take a part of the answer.  Raises RuntimeError where it cannot be sent as HTTP."""
        if message["type"] == "http.response.start":
            if self._start is not None:
                raise RuntimeError("an answer begins twice")
            self._start = message
            return
        if self._start is None or self.complete:
            raise RuntimeError("a body without an answer that it belongs to")
        data, more = message.get("body", b""), message.get("more_body", False)
        pieces = [] if self.begun else [self._head(self._start)]
        pieces += self._framed(data, more=more)
        self.begun = True
        if not more:
            self.complete = True
            self._connection.answering_ends()
        await self._connection.write(*pieces)
        if more:
            await trio.lowlevel.checkpoint()  # an answer without end gives way to others

    def _head(self, start: Message) -> bytes:
        """Status line and headers; from here on it is known where the body ends."""
        status, request = start["status"], self._request
        lines = [_STATUS_LINES[status]]
        for name, value in start["headers"]:
            lines.append(b"%b: %b\r\n" % (name, value))
            if name == b"content-length":
                self._left = int(value)
        self._bodiless = request.method == "HEAD" or status in _BODILESS
        self.keeps_alive = self._connection.may_stay(request)
        if self._left is None and not self._bodiless:
            if request.version == "1.1":
                lines.append(b"transfer-encoding: chunked\r\n")
            else:
                self.keeps_alive = False  # its end is the connection's
        lines.append(self._connection.date_line())
        if not self.keeps_alive:
            lines.append(b"connection: close\r\n")
        head = b"".join(lines)
        if not head.count(b"\r") == head.count(b"\n") == len(lines) or b"\0" in head:
            raise RuntimeError("a header with a line end or NUL in it")
        return head + b"\r\n"

    def _framed(self, data: bytes, *, more: bool) -> list[bytes]:
        if self._bodiless:
            return []
        if self._left is not None:
            self._left -= len(data)
            if self._left < 0 or (self._left and not more):
                raise RuntimeError("a body of another length than was said")
            return [data]
        if self._request.version == "1.0":
            return [data]
        framed = [b"%x\r\n" % len(data), data, b"\r\n"] if data else []
        return framed if more else [*framed, b"0\r\n\r\n"]


@lru_cache(maxsize=1)
def _date_line(second: int) -> bytes:
    return f"date: {formatdate(second, usegmt=True)}\r\n".encode()
