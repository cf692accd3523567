"""What requests to the local API carry: queries and JSON bodies, bounded.

What stands in them is checked by `interfaces.arguments`.
"""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import parse_qsl

from starlette.requests import Request

from dstore.errors import CallerError, ConnectionLost
from dstore.limits import HTTP_JSON_BYTES_MAX

_QUERY_FIELDS_MAX = 32


def query_of(request: Request) -> dict[str, str]:
    """The query; bytes that are no UTF-8 come as surrogates (PEP 383)."""
    text = request.scope["query_string"].decode("utf-8", "surrogateescape")
    try:
        pairs = parse_qsl(
            text,
            keep_blank_values=True,
            errors="surrogateescape",
            max_num_fields=_QUERY_FIELDS_MAX,
        )
    except ValueError as error:
        raise CallerError(f"the query cannot be read: {error}") from error
    return dict(pairs)


async def json_of(request: Request) -> dict[str, Any]:
    """The JSON object that is the body.  Raises CallerError."""
    body = bytearray()
    async for chunk in BodyChunks(request):
        body += chunk
        if len(body) > HTTP_JSON_BYTES_MAX:
            raise CallerError(f"the request is larger than {HTTP_JSON_BYTES_MAX} bytes")
    try:
        value = json.loads(bytes(body))
    except (ValueError, RecursionError) as error:
        raise CallerError(f"the request is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise CallerError("the request is not a JSON object")
    return value


class BodyChunks:
    """The body as it comes.  No generator, so that leaving it in the middle, in whatever
    task, has nothing to clean up.  Raises ConnectionLost where the client goes."""

    def __init__(self, request: Request) -> None:
        self._receive = request.receive
        self._more = True

    def __aiter__(self) -> BodyChunks:
        return self

    async def __anext__(self) -> bytes:
        while self._more:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ConnectionLost("the client went away in the middle of its request")
            self._more = message.get("more_body", False)
            if body := message.get("body", b""):
                return bytes(body)
        raise StopAsyncIteration
