"""Sending a representation: conditions, ranges, the first byte in time, and never a clean
end to content that is not whole.

A response begins only when its first bytes are there, so that what cannot be had is still an
error status; what fails later cuts the connection, which the client sees as a transfer
shorter than its Content-Length.
"""

from __future__ import annotations

import logging
import math
from collections import OrderedDict
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Final

import trio

from dstore.core.cid import CID
from dstore.errors import DstoreError
from dstore.interfaces.gateway.content import Read, Representation
from dstore.interfaces.gateway.content_type import OCTETS, SNIFF_BYTES, type_of_content
from dstore.interfaces.gateway.ranges import ByteRange, not_modified, range_applies, select_range
from dstore.interfaces.http import Send
from dstore.interfaces.metrics import Metrics
from dstore.limits import GATEWAY_SNIFF_SECONDS, GATEWAY_TYPES_KEPT
from dstore.runtime import open_plain_nursery

log = logging.getLogger(__name__)

CORS: Final = {
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Expose-Headers": (
        "Content-Length, Content-Range, ETag, X-Ipfs-Path, X-Ipfs-Roots"
    ),
}


class KnownTypes:
    """Media types that were told from content, by CID, so that ranges of the same file need
    not look at its beginning again."""

    def __init__(self) -> None:
        self._types: OrderedDict[CID, str] = OrderedDict()

    def get(self, cid: CID) -> str | None:
        return self._types.get(cid)

    def put(self, cid: CID, media_type: str) -> None:
        self._types[cid] = media_type
        self._types.move_to_end(cid)
        if len(self._types) > GATEWAY_TYPES_KEPT:
            self._types.popitem(last=False)


@dataclass
class Exchange:
    """One request and how far its answer is; `head` says that no body is wanted."""

    send: Send
    head: bool
    metrics: Metrics
    started: float = field(default_factory=trio.current_time)
    status: int | None = None
    complete: bool = False

    async def start(self, status: int, headers: Mapping[str, str]) -> None:
        """Send the status line and headers."""
        self.status = status
        await self.send(
            {
                "type": "http.response.start",
                "status": status,
                "headers": [
                    (name.lower().encode("ascii"), value.encode("latin-1"))
                    for name, value in headers.items()
                ],
            }
        )

    async def body(self, data: bytes, *, more: bool) -> None:
        """Send a part of the body, waiting until the client takes it."""
        await self.send({"type": "http.response.body", "body": data, "more_body": more})
        self.metrics.sent_bytes.inc(len(data))
        self.complete = not more

    async def whole(self, status: int, headers: Mapping[str, str], body: bytes = b"") -> None:
        """Send a response that is there already."""
        headers = dict(headers)
        if status not in (204, 304):
            headers["Content-Length"] = str(len(body))
        await self.start(status, headers)
        await self.body(b"" if self.head else body, more=False)


async def respond(
    exchange: Exchange,
    found: Representation,
    asked: Mapping[str, str],
    types: KnownTypes,
    deadline: trio.CancelScope,
) -> None:
    """Answer with the representation, or the part of it that the headers `asked` want.

    `deadline` is lifted once the first byte is there.  Raises what reading raises as long as
    nothing has been sent; later failures leave the response incomplete.
    """
    headers = {
        "ETag": found.etag,
        "Cache-Control": found.cache_control,
        "X-Content-Type-Options": "nosniff",
        "Accept-Ranges": "bytes",
        **CORS,
        **found.headers,
    }
    if not_modified(asked.get("if-none-match"), found.etag):
        await exchange.whole(304, headers)
        return
    part: ByteRange | str = "whole"
    # Range is defined for GET alone.
    if not exchange.head and range_applies(asked.get("if-range"), found.etag):
        part = select_range(asked.get("range"), found.size)
    if isinstance(part, ByteRange):
        headers["Content-Range"] = part.content_range(found.size)
        await _send(exchange, found, 206, headers, part, types, deadline)
    elif part == "unsatisfiable":
        headers["Content-Range"] = f"bytes */{found.size}"
        headers["Cache-Control"] = "no-store"
        await exchange.whole(416, headers)
    elif exchange.head:
        # A tree's leaves are not fetched for this.
        media_type = _type_of(found, types)
        if media_type is not None:
            headers["Content-Type"] = media_type
        headers["Content-Length"] = str(found.size)
        await exchange.start(200, headers)
        await exchange.body(b"", more=False)
    else:
        whole = ByteRange(0, found.size)
        await _send(exchange, found, 200, headers, whole, types, deadline)


def _type_of(found: Representation, types: KnownTypes) -> str | None:
    """The media type, as far as nothing must be fetched to tell it."""
    media_type = found.media_type or types.get(found.cid)
    if media_type is None and isinstance(found.content, bytes):
        media_type = type_of_content(found.content)
        types.put(found.cid, media_type)
    return media_type


async def _send(
    exchange: Exchange,
    found: Representation,
    status: int,
    headers: dict[str, str],
    part: ByteRange,
    types: KnownTypes,
    deadline: trio.CancelScope,
) -> None:
    headers["Content-Length"] = str(part.length)
    media_type = _type_of(found, types)
    content = found.content
    if not isinstance(content, bytes):
        await _stream(exchange, found, content, status, headers, part, types, deadline)
        return
    assert media_type is not None
    headers["Content-Type"] = media_type
    deadline.deadline = math.inf
    exchange.metrics.first_byte_seconds.observe(trio.current_time() - exchange.started)
    await exchange.start(status, headers)
    whole = part.length == len(content)
    data = content if whole else content[part.start : part.start + part.length]
    await exchange.body(data, more=False)


async def _beginning(chunks: AsyncIterator[bytes]) -> bytes:
    """At least SNIFF_BYTES from the front, or all there are."""
    got = b""
    while len(got) < SNIFF_BYTES:
        chunk = await anext(chunks, b"")
        if not chunk:
            break
        got = got + chunk if got else chunk
    return got


async def _stream(
    exchange: Exchange,
    found: Representation,
    read: Read,
    status: int,
    headers: dict[str, str],
    part: ByteRange,
    types: KnownTypes,
    deadline: trio.CancelScope,
) -> None:
    async with read(part.start, part.length) as chunks:
        iterator = aiter(chunks)
        first, media_type = await _first(found, read, iterator, part, types)
        deadline.deadline = math.inf
        exchange.metrics.first_byte_seconds.observe(trio.current_time() - exchange.started)
        headers["Content-Type"] = media_type
        await exchange.start(status, headers)
        sent, data = 0, first
        while True:
            sent += len(data)
            if sent > part.length:
                break  # more than the file's root says: nothing of it can be trusted
            await exchange.body(data, more=sent < part.length)
            if sent == part.length:
                return
            data = await anext(iterator, b"")
            if not data:
                break
    log.error("a read of %d bytes gave %d", part.length, sent, extra={"cid": str(found.cid)})


async def _first(
    found: Representation,
    read: Read,
    chunks: AsyncIterator[bytes],
    part: ByteRange,
    types: KnownTypes,
) -> tuple[bytes, str]:
    """The first bytes of the part, and the media type of the whole."""
    media_type = found.media_type or types.get(found.cid)
    if media_type is not None:
        return await anext(chunks, b""), media_type
    needed = min(SNIFF_BYTES, found.size)
    sniffed: list[str] = []
    if part.start == 0 and part.length >= needed:
        first = await _beginning(chunks)
        if len(first) >= needed:
            sniffed.append(type_of_content(first))
    else:
        # The beginning is fetched beside the range; without it, the range still counts.
        async with open_plain_nursery() as nursery:
            nursery.start_soon(_sniff_beside, read, sniffed)
            first = await anext(chunks, b"")
    if not sniffed:
        return first, OCTETS
    types.put(found.cid, sniffed[0])
    return first, sniffed[0]


async def _sniff_beside(read: Read, sniffed: list[str]) -> None:
    with trio.move_on_after(GATEWAY_SNIFF_SECONDS):
        try:
            async with read(0, SNIFF_BYTES) as chunks:
                sniffed.append(type_of_content(await _beginning(chunks)))
        except DstoreError:
            return
