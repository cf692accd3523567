"""What is served at a content path: a file, a block, a directory's page, or a way elsewhere.

It finds out what there is and says how to read it; sending it is `reply`'s.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, aclosing
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Final
from urllib.parse import quote

from dstore import __version__
from dstore.core.cid import CID, DAG_PB, RAW
from dstore.errors import InvalidPath, NotFoundError
from dstore.interfaces.gateway.content_type import (
    RAW_BLOCK,
    SYMLINK,
    type_of_codec,
    type_of_name,
)
from dstore.interfaces.gateway.listing import SECURITY_POLICY, render_listing
from dstore.interfaces.gateway.request import GatewayRequest, NotCached, redirect_target
from dstore.limits import GATEWAY_LISTING_ENTRIES_MAX
from dstore.service.node import Node
from dstore.service.progress import DirectoryEntry, Entry

IMMUTABLE: Final = "public, max-age=29030400, immutable"
# A page that a newer dstore may render otherwise: shown again at once, refreshed behind.
GENERATED: Final = "public, max-age=604800, stale-while-revalidate=2678400"

_INDEX: Final = "index.html"

Read = Callable[[int, int], AbstractAsyncContextManager[AsyncIterator[bytes]]]


@dataclass(frozen=True)
class Redirect:
    """The content is at another URL of this gateway."""

    location: str


@dataclass(frozen=True)
class Representation:
    """Bytes to serve: `content` itself where it is in memory, else `content(offset, length)`
    streams a part of it.

    `media_type` None: to be told from the first bytes.
    """

    cid: CID
    etag: str
    size: int
    content: bytes | Read
    media_type: str | None
    cache_control: str = IMMUTABLE
    headers: dict[str, str] = field(default_factory=dict)


async def find(node: Node, request: GatewayRequest) -> Representation | Redirect:
    """What the request's path leads to, in the format it asks for.

    Raises NotFoundError, InvalidPath, MalformedBlock, NetworkError and their kin, NotCached,
    NotAcceptable.
    """
    if request.only_if_cached and not await node.holds(request.root):
        raise NotCached(f"{request.root} is not stored here, and peers were not to be asked")
    if not request.names and (request.format == "raw" or request.root.codec not in (RAW, DAG_PB)):
        # A block that need not be UnixFS.
        entry = Entry(request.root, "file", path=(request.root,))
    else:
        entry = await _resolve(node, request)
    request.check_format(entry.cid)
    if request.format == "raw":
        found = await _block(node, request, entry.cid, RAW_BLOCK)
    elif (media_type := type_of_codec(entry.cid.codec)) is not None:
        found = await _block(node, request, entry.cid, media_type)
    elif entry.kind == "directory":
        if not request.slash:
            return Redirect(redirect_target(request))
        found, entry = await _directory(node, request, entry)
    else:
        found = await _file(node, request, entry, _name(request))
    return replace(found, headers={**_common(request, entry), **found.headers})


async def _resolve(node: Node, request: GatewayRequest) -> Entry:
    try:
        return await node.resolve(request.root, request.names)
    except InvalidPath as error:
        # The path is well-formed; what it names does not exist below a file.
        raise NotFoundError(str(error)) from error


def _common(request: GatewayRequest, entry: Entry) -> dict[str, str]:
    headers = {
        "X-Ipfs-Path": request.path,
        "X-Ipfs-Roots": ",".join(map(str, entry.path)),
        "Vary": "Accept",
    }
    if request.filename is not None or request.download:
        kind = "attachment" if request.download else "inline"
        name = request.filename or _name(request) or str(entry.cid)
        headers["Content-Disposition"] = disposition(kind, name)
    return headers


def _name(request: GatewayRequest) -> str:
    """The file name by which its type is told."""
    return request.filename or (request.names[-1] if request.names else "")


async def _file(node: Node, request: GatewayRequest, entry: Entry, name: str) -> Representation:
    if entry.target is not None:
        target = entry.target.encode("utf-8", "surrogateescape")
        return _in_memory(entry.cid, f'"{entry.cid}"', target, SYMLINK)
    etag, media_type = f'"{entry.cid}"', type_of_name(name)
    if entry.content is not None:
        return _in_memory(entry.cid, etag, entry.content, media_type)
    if entry.cid.codec == RAW:
        # One block, which its entry was read from a moment ago.
        data = await node.block(request.root, entry.cid)
        return _in_memory(entry.cid, etag, data, media_type)
    read = partial(node.read, request.root, entry.cid)
    return Representation(entry.cid, etag, entry.size or 0, read, media_type)


async def _block(node: Node, request: GatewayRequest, cid: CID, media_type: str) -> Representation:
    data = await node.block(request.root, cid)
    if media_type != RAW_BLOCK:
        found = _in_memory(cid, f'"{cid}"', data, media_type)
        name = f"{cid}.{media_type.rpartition('.')[2].rpartition('/')[2].rpartition('-')[2]}"
        kind = "inline" if media_type.endswith("json") else "attachment"
    else:
        found = _in_memory(cid, f'"{cid}.raw"', data, media_type)
        name, kind = f"{cid}.bin", "attachment"
    # What is no document must not be shown as one, whatever the query says.
    headers = {"Content-Disposition": disposition(kind, request.filename or name)}
    if request.negotiated:
        headers["Content-Location"] = f"{request.path}?format={request.format}"
    return replace(found, headers=headers)


async def _directory(
    node: Node, request: GatewayRequest, entry: Entry
) -> tuple[Representation, Entry]:
    """The directory's index.html, or else its listing."""
    missing: NotFoundError | None = None
    try:
        index = await node.resolve(request.root, (*request.names, _INDEX))
    except NotFoundError as error:
        missing = error
    else:
        if index.kind == "file":
            return await _file(node, request, index, request.filename or _INDEX), index
    entries: list[DirectoryEntry] = []
    more = False
    async with aclosing(node.entries(request.root, entry.cid)) as listed:
        async for one in listed:
            if one.name == _INDEX and missing is not None:
                raise missing  # it exists, and cannot be had now
            if len(entries) == GATEWAY_LISTING_ENTRIES_MAX:
                more = True
                break
            entries.append(one)
    page = render_listing(request.root, request.names, entry.cid, entries, more=more)
    listing = _in_memory(
        entry.cid, f'"dir-{__version__}-{entry.cid}"', page, "text/html; charset=utf-8"
    )
    headers = {"Content-Security-Policy": SECURITY_POLICY, "Referrer-Policy": "no-referrer"}
    return replace(listing, cache_control=GENERATED, headers=headers), entry


def _in_memory(cid: CID, etag: str, data: bytes, media_type: str | None) -> Representation:
    return Representation(cid, etag, len(data), data, media_type)


def disposition(kind: str, name: str) -> str:
    """A Content-Disposition header: the name in ASCII, and in UTF-8 where it has more."""
    plain = "".join(
        character if character.isascii() and character.isprintable() and character not in '"\\/%'
        else "_"
        for character in name
    )  # fmt: skip
    header = f'{kind}; filename="{plain}"'
    if plain != name:
        header += f"; filename*=UTF-8''{quote(name, safe='', errors='replace')}"
    return header
