"""The local API, `/v1/…`: what the command line asks of a running daemon.

A thin Starlette application: requests into calls of `Node`, values into JSON forms, errors
into JSON with the status of `errors.py`.  Who may call is decided by `guard`.  Reference:
docs/reference/api.md.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Callable
from functools import partial
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from dstore.errors import CallerError, ConfigError, DstoreError, InvalidPath, NodeError
from dstore.interfaces.api.bandwidth import override
from dstore.interfaces.api.guard import Guard
from dstore.interfaces.api.requests import BodyChunks, json_of, query_of
from dstore.interfaces.api.streams import BYTES, LINES, Progressing, Streamed, listing, tree
from dstore.interfaces.arguments import (
    add_options,
    flag,
    local_path,
    natural,
    parse_root,
    split_path,
)
from dstore.interfaces.forms import (
    Form,
    add_form,
    bandwidth_form,
    dump,
    entry_form,
    error_form,
    node_form,
    peer_form,
    pin_form,
    root_form,
)
from dstore.interfaces.http import App
from dstore.network.bootstrap import bootstrap_targets
from dstore.service.node import Node
from dstore.service.progress import Progress, Report

log = logging.getLogger(__name__)


def api_app(node: Node, port: int, token: str, stop: Callable[[], None], info: Form) -> App:
    """The API of `node` as an ASGI application, served on the loopback `port`.

    `stop` makes the daemon end; `info` is told by GET /v1/id beside the node's own state.
    """
    routes = _Routes(node, stop, info)
    application = Starlette(
        routes=[
            Route("/v1/id", routes.identity),
            Route("/v1/version", routes.version),
            Route("/v1/add", routes.add, methods=["POST"]),
            Route("/v1/status/{cid:path}", routes.status),
            Route("/v1/entry", routes.entry),
            Route("/v1/ls", routes.ls),
            Route("/v1/cat", routes.cat),
            Route("/v1/get", routes.get),
            Route("/v1/pins", routes.pins),
            Route("/v1/pins/rm", routes.remove_pin, methods=["POST"]),
            Route("/v1/peers", routes.peers),
            Route("/v1/peers/connect", routes.connect, methods=["POST"]),
            Route("/v1/bandwidth", routes.bandwidth, methods=["GET", "POST"]),
            Route("/v1/shutdown", routes.shutdown, methods=["POST"]),
        ],
        exception_handlers={DstoreError: _failed, HTTPException: _unroutable},
    )
    return Guard(application, port, token)


def _json(form: object, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(
        dump(form),
        status,
        {"cache-control": "no-store", **(headers or {})},
        media_type="application/json",
    )


async def _failed(request: Request, error: Exception) -> Response:
    assert isinstance(error, DstoreError)
    if error.http_status == 500:
        log.error("a request failed", exc_info=error, extra={"path": request.url.path})
    return _json(error_form(error), error.http_status)


async def _unroutable(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    form = error_form(CallerError(f"{request.method} {request.url.path}: {error.detail}"))
    return _json(form, error.status_code, dict(error.headers or {}))


class _Routes:
    """The endpoints."""

    def __init__(self, node: Node, stop: Callable[[], None], info: Form) -> None:
        self._node = node
        self._stop = stop
        self._info = info

    async def identity(self, _: Request) -> Response:
        return _json({**node_form(await self._node.summary()), **self._info})

    async def version(self, _: Request) -> Response:
        return _json({"version": (await self._node.summary()).version})

    async def shutdown(self, _: Request) -> Response:
        self._stop()
        return _json({"stopping": True})

    # --- Adding --------------------------------------------------------------------------

    async def add(self, request: Request) -> Any:
        """A JSON body names a path of this machine; any other body is the file itself, its
        options in the query."""
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind == "application/json":
            return await self._add_path(await json_of(request))
        if kind != BYTES:
            raise CallerError(f"content-type: application/json or {BYTES}, not {kind!r}")
        given = query_of(request)
        options = add_options(given)

        async def work(report: Report) -> Form:
            def later(progress: Progress) -> None:
                # A client that still sends takes an answer for a refusal, and stops.
                if progress.stage != "import":
                    report(progress)

            result = await self._node.add_stream(BodyChunks(request), options, later)
            return add_form(result, options.name)

        return Progressing(work)

    async def _add_path(self, given: Form) -> Any:
        path, options, hidden = local_path(given), add_options(given), flag(given, "hidden")

        async def work(report: Report) -> Form:
            result = await self._node.add_path(path, options, report, hidden=hidden)
            return add_form(result, options.name or path.name)

        return Progressing(work)

    # --- Reading -------------------------------------------------------------------------

    async def status(self, request: Request) -> Response:
        cid = parse_root(request.path_params["cid"])
        return _json(root_form(await self._node.status(cid)))

    async def entry(self, request: Request) -> Response:
        root, names = split_path(query_of(request).get("path", ""))
        return _json(entry_form(await self._node.resolve(root, names)))

    async def ls(self, request: Request) -> Any:
        root, names = split_path(query_of(request).get("path", ""))
        entry = await self._node.resolve(root, names)
        if entry.kind != "directory":
            raise InvalidPath(f"{'/'.join((str(root), *names))} is a {entry.kind}, no directory")
        return Streamed(partial(listing, self._node, root, entry.cid), LINES)

    async def cat(self, request: Request) -> Any:
        given = query_of(request)
        root, names = split_path(given.get("path", ""))
        offset, length = natural(given, "offset") or 0, natural(given, "length")
        entry = await self._node.resolve(root, names)
        if entry.kind != "file":
            raise InvalidPath(f"{'/'.join((str(root), *names))} is a {entry.kind}, no file")
        size = max(0, (entry.size or 0) - offset)
        length = size if length is None else min(length, size)

        async def produce() -> AsyncGenerator[bytes, None]:
            async with self._node.read(root, entry.cid, offset, length) as chunks:
                async for chunk in chunks:
                    yield chunk

        return Streamed(produce, BYTES, length)

    async def get(self, request: Request) -> Any:
        root, names = split_path(query_of(request).get("path", ""))
        entry = await self._node.resolve(root, names)
        return Streamed(partial(tree, self._node, root, entry), BYTES)

    # --- Pins and peers ------------------------------------------------------------------

    async def pins(self, _: Request) -> Response:
        return _json({"pins": [pin_form(pin) for pin in await self._node.pins()]})

    async def remove_pin(self, request: Request) -> Response:
        cid = parse_root(_text(await json_of(request), "cid"))
        return _json({"cid": str(cid), "holders_told": await self._node.unpin(cid)})

    async def peers(self, request: Request) -> Response:
        peers = await self._node.peers(ask=not flag(query_of(request), "known"))
        return _json({"peers": [peer_form(peer) for peer in peers]})

    async def connect(self, request: Request) -> Response:
        address = _text(await json_of(request), "address")
        try:
            (target,) = bootstrap_targets([address])
        except ConfigError as error:
            raise CallerError(f"{address!r} is no multiaddr that ends in /p2p/PEER-ID") from error
        await self._node.connect(target)
        return _json({"peer_id": str(target.peer)})

    async def bandwidth(self, request: Request) -> Response:
        """The limits; a POST sets those that it names, or (`reset`) those configured."""
        bandwidth = self._node.bandwidth
        if bandwidth is None:
            raise NodeError("this node has no connections to limit")
        if request.method == "POST":
            given = await json_of(request)
            if flag(given, "reset"):
                bandwidth.reset()
            else:
                override(bandwidth, given)
        return _json(bandwidth_form(bandwidth))


def _text(given: Form, name: str) -> str:
    value = given.get(name)
    if not isinstance(value, str):
        raise CallerError(f"{name}: a text is needed")
    return value
