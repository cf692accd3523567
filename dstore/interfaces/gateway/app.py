"""The HTTP gateway: verified content by hash for browsers and curl, and the node's health.

A plain ASGI application for an origin of its own: no cookies, no API, nothing to log in to.
Specifications: IPFS Path Gateway, and of the Trustless Gateway the raw blocks.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from typing import Final

import trio

from dstore import __version__
from dstore.errors import DstoreError
from dstore.interfaces.gateway.content import IMMUTABLE, Redirect, find
from dstore.interfaces.gateway.reply import CORS, Exchange, KnownTypes, respond
from dstore.interfaces.gateway.request import PREFIX, GatewayRequest, parse_request
from dstore.interfaces.http import Receive, Scope, Send
from dstore.interfaces.metrics import CONTENT_TYPE as METRICS_TYPE
from dstore.interfaces.metrics import Metrics
from dstore.interfaces.text import escape_controls
from dstore.limits import (
    GATEWAY_RETRY_SECONDS,
    HEALTH_SECONDS,
    WORKER_FAILURES_BROKEN,
)
from dstore.service.node import Node

log = logging.getLogger(__name__)

_METHODS: Final = "GET, HEAD, OPTIONS"
_KNOWN_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE"})
_TEXT: Final = {
    "Content-Type": "text/plain; charset=utf-8",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}
_PREFLIGHT: Final = {
    **CORS,
    "Access-Control-Allow-Methods": _METHODS,
    "Access-Control-Allow-Headers": (
        "Cache-Control, Content-Type, If-None-Match, If-Range, Range, User-Agent, X-Requested-With"
    ),
    "Access-Control-Max-Age": "86400",
}


class GatewayApp:
    """The application of one node; made by `gateway_app`."""

    def __init__(
        self,
        node: Node,
        timeout_seconds: float,
        metrics: Metrics,
        stopping: Callable[[], bool],
    ) -> None:
        self._node = node
        self._timeout_seconds = timeout_seconds
        self._metrics = metrics
        self._types = KnownTypes()
        self._stopping = stopping

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        method: str = scope["method"]
        exchange = Exchange(send, method == "HEAD", self._metrics)
        self._metrics.in_progress.inc()
        try:
            if method not in ("GET", "HEAD", "OPTIONS"):
                await _refuse(exchange, 405, f"{method[:16]} is not used here", Allow=_METHODS)
            elif scope["path"].startswith(PREFIX) or scope["path"] == PREFIX.rstrip("/"):
                if method == "OPTIONS":
                    await exchange.whole(204, _PREFLIGHT)
                else:
                    await self._content(exchange, scope)
            elif scope["path"] == "/healthz":
                await self._health(exchange)
            elif scope["path"] == "/metrics":
                body = await self._metrics.scrape()
                await exchange.whole(200, {**_TEXT, "Content-Type": METRICS_TYPE}, body)
            else:
                await _refuse(exchange, 404, "content is at /ipfs/CID")
        finally:
            self._count(exchange, method)

    def _count(self, exchange: Exchange, method: str) -> None:
        self._metrics.in_progress.dec()
        # 499: the client went away, or a fault of this program, before there was a status.
        status = exchange.status or 499
        # Methods are the clients' words: only known ones become labels.
        label = method if method in _KNOWN_METHODS else "other"
        self._metrics.requests.labels(label, str(status)).inc()
        if log.isEnabledFor(logging.DEBUG):
            seconds = trio.current_time() - exchange.started
            log.debug(
                "answered", extra={"method": label, "status": status, "seconds": round(seconds, 4)}
            )

    async def _content(self, exchange: Exchange, scope: Scope) -> None:
        # Lifted with the first byte: a large file may take as long as its reader does.
        with trio.move_on_after(self._timeout_seconds) as deadline:
            try:
                request = parse_request(scope)
                await self._answer(exchange, request, deadline)
            except DstoreError as error:
                await self._fail(exchange, scope, error)
        if deadline.cancelled_caught and exchange.status is None:
            await _refuse(
                exchange,
                504,
                f"nothing came from peers within {self._timeout_seconds:g} s; try again later",
            )

    async def _answer(
        self, exchange: Exchange, request: GatewayRequest, deadline: trio.CancelScope
    ) -> None:
        if request.registers_worker:
            await _refuse(exchange, 400, "service workers belong below a content root: /ipfs/CID/")
            return
        found = await find(self._node, request)
        if isinstance(found, Redirect):
            headers = {"Location": found.location, "Cache-Control": IMMUTABLE, **CORS}
            await exchange.whole(301, {**_TEXT, **headers}, f"{found.location}\n".encode())
            return
        await respond(exchange, found, request.headers, self._types, deadline)

    async def _fail(self, exchange: Exchange, scope: Scope, error: DstoreError) -> None:
        if exchange.status is None:
            if error.http_status == 500:
                log.error("gateway: %s", error, extra={"path": scope["path"]})
            await _refuse(exchange, error.http_status, str(error))
            return
        # Returning without an end makes the server cut the connection: the client must not
        # take what it has for the whole.
        self._metrics.aborted.inc()
        log.warning("cut off after a good start: %s", error, extra={"path": scope["path"]})

    async def _health(self, exchange: Exchange) -> None:
        problems = await self._problems()
        state = "stopping" if self._stopping() else "broken" if problems else "ok"
        answer = {
            "status": state,
            "version": __version__,
            "peer_id": str(self._node.peer_id),
            "peers": len(self._node.network.connected()),
            "problems": problems,
        }
        headers = {**_TEXT, "Content-Type": "application/json"}
        body = json.dumps(answer).encode() + b"\n"
        await exchange.whole(200 if state == "ok" else 503, headers, body)

    async def _problems(self) -> list[str]:
        problems = [
            f"{worker.name} has failed {worker.failures_in_a_row} times in a row"
            for worker in self._node.workers
            if worker.failures_in_a_row >= WORKER_FAILURES_BROKEN
        ]
        try:
            with trio.fail_after(HEALTH_SECONDS):
                await self._node.totals()
                await self._node.summary()
        except DstoreError as error:
            problems.append(f"stores: {error}")
        except trio.TooSlowError:
            problems.append(f"stores: no answer within {HEALTH_SECONDS} s")
        return problems


def gateway_app(
    node: Node,
    timeout_seconds: float,
    metrics: Metrics | None = None,
    *,
    stopping: Callable[[], bool] = lambda: False,
) -> GatewayApp:
    """The ASGI application of the gateway, with /healthz and /metrics.

    A request that has no first byte after `timeout_seconds` is answered with 504; once
    `stopping` is true, /healthz says so and all else is served on.  Serve it with
    `serve_http`, which cancels the handlers of clients that go away.
    """
    return GatewayApp(node, timeout_seconds, metrics or Metrics(node), stopping)


async def _refuse(exchange: Exchange, status: int, message: str, **headers: str) -> None:
    if status in (502, 503, 504):
        headers["Retry-After"] = str(GATEWAY_RETRY_SECONDS)
    body = escape_controls(message).encode("utf-8", "backslashreplace") + b"\n"
    await exchange.whole(status, {**_TEXT, **CORS, **headers}, body)
