"""DAG-PB: the node format of UnixFS, links and opaque data in one protobuf message.

This is a writer and a reader of exactly that message, not a protobuf library: the writer
gives the one canonical form (links before data), the reader refuses whatever no DAG-PB
writer makes.  What the data means is for `dstore.core.unixfs`.  Specification: IPLD DAG-PB.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, NamedTuple

from dstore.core.cid import CID, decode_varint, encode_varint
from dstore.errors import InvalidCid, MalformedBlock
from dstore.limits import BLOCK_BYTES_MAX, DAGPB_LINKS_MAX

# Field number << 3 | wire type.  Message PBNode: Data = 1, Links = 2; PBLink: Hash = 1,
# Name = 2, Tsize = 3.
_NODE_DATA: Final = 0x0A
_NODE_LINK: Final = 0x12
_LINK_HASH: Final = 0x0A
_LINK_NAME: Final = 0x12
_LINK_TSIZE: Final = 0x18


class PBLink(NamedTuple):
    """A link to another block.

    `name` and `tsize` are None where the field is absent; an empty name that is present is
    another encoding, and so another CID.  Names that are not UTF-8 (Linux allows them, and
    Kubo writes them as they are) are held in Python's `surrogateescape` form.  `tsize` is the
    writer's claim of the bytes of the linked block and everything below it.
    """

    cid: CID
    name: str | None = None
    tsize: int | None = None


@dataclass(frozen=True, slots=True)
class PBNode:
    """A node: its links in encoded order, and its data (None where the field is absent)."""

    links: tuple[PBLink, ...] = ()
    data: bytes | None = None


def encode(node: PBNode) -> bytes:
    """The canonical bytes of `node`: links in the order given, then data.

    Raises ValueError where a name or a Tsize has no encoding.  The order of named links is
    the caller's business (`unixfs.directory` sorts).
    """
    return join(map(encode_link, node.links), node.data)


def join(links: Iterable[bytes], data: bytes | None) -> bytes:
    """The node of links already encoded by `encode_link`, and data."""
    parts = list(links)
    if data is not None:
        parts += (b"\x0a", encode_varint(len(data)), data)
    return b"".join(parts)


def encode_link(link: PBLink) -> bytes:
    """One link as it stands in its node, tag and length included."""
    binary = link.cid.binary
    body = b"\x0a" + encode_varint(len(binary)) + binary
    if link.name is not None:
        name = link.name.encode("utf-8", "surrogateescape")
        body += b"\x12" + encode_varint(len(name)) + name
    if link.tsize is not None:
        body += b"\x18" + encode_varint(link.tsize)
    return b"\x12" + encode_varint(len(body)) + body


def decode(data: bytes | memoryview) -> PBNode:
    """The node that `data` encodes.

    Accepts data before or after the links, since both exist, but neither links on both sides
    of the data, unknown, repeated or misplaced fields, non-minimal lengths, nor links without
    a CID that dstore takes.  Raises MalformedBlock; holds at most DAGPB_LINKS_MAX links.
    """
    if len(data) > BLOCK_BYTES_MAX:
        raise MalformedBlock(f"dag-pb block of {len(data)} bytes; at most {BLOCK_BYTES_MAX}")
    block = bytes(data)
    try:
        return _decode_node(block)
    except (ValueError, IndexError, InvalidCid) as error:
        raise MalformedBlock(f"not a dag-pb node: {error}") from error


def _decode_node(block: bytes) -> PBNode:
    links: list[PBLink] = []
    payload: bytes | None = None
    links_closed = False
    position, end = 0, len(block)
    while position < end:
        tag = block[position]
        start, stop = _span(block, position + 1, end)
        if tag == _NODE_LINK:
            if links_closed:
                raise ValueError("links on both sides of the data")
            if len(links) == DAGPB_LINKS_MAX:
                raise ValueError(f"more than {DAGPB_LINKS_MAX} links")
            links.append(_decode_link(block, start, stop))
        elif tag == _NODE_DATA:
            if payload is not None:
                raise ValueError("data twice")
            payload = block[start:stop]
            links_closed = bool(links)
        else:
            raise ValueError(f"unknown field tag 0x{tag:02x} in the node")
        position = stop
    return PBNode(tuple(links), payload)


def _decode_link(block: bytes, position: int, end: int) -> PBLink:
    if position == end or block[position] != _LINK_HASH:
        raise ValueError("a link that does not begin with its CID")
    start, position = _span(block, position + 1, end)
    cid = CID.from_bytes(block[start:position])
    name: str | None = None
    tsize: int | None = None
    if position < end and block[position] == _LINK_NAME:
        start, position = _span(block, position + 1, end)
        name = block[start:position].decode("utf-8", "surrogateescape")
    if position < end and block[position] == _LINK_TSIZE:
        tsize, position = decode_varint(block, position + 1)
    if position != end:
        raise ValueError("a link with an unknown, repeated or misplaced field")
    return PBLink(cid, name, tsize)


def _span(block: bytes, position: int, end: int) -> tuple[int, int]:
    """Begin and end of the length-prefixed bytes at `position`, inside `end`."""
    length = block[position]
    position += 1
    if length >= 0x80:
        length, position = decode_varint(block, position - 1)
    stop = position + length
    if stop > end:
        raise ValueError(f"a field of {length} bytes where {end - position} are left")
    return position, stop
