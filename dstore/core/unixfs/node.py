"""UnixFS nodes as values: what one block says it is, checked, and nothing of its children.

The message inside the dag-pb node is read by a bounded reader of its own and written in the
one form that Kubo writes.  Fetching children, and checking that they keep what their parent
says of them, is for the caller (`parse_child`).  Specification: UnixFS v1.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Final, NamedTuple

from dstore.core import dagpb
from dstore.core.cid import CID, DAG_PB, RAW, decode_varint, encode_varint
from dstore.core.dagpb import PBLink, PBNode
from dstore.errors import MalformedBlock
from dstore.limits import DAGPB_LINKS_MAX, HAMT_FANOUT_MAX, SYMLINK_BYTES_MAX

MURMUR3_X64_64: Final = 0x22

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # protobuf wire types
_BYTES_TOTAL_MAX: Final = (1 << 63) - 1


class DataType(IntEnum):
    """The Type field."""

    RAW = 0
    DIRECTORY = 1
    FILE = 2
    METADATA = 3
    SYMLINK = 4
    HAMT_SHARD = 5


@dataclass(frozen=True, slots=True)
class Mtime:
    """A time of last change: unix seconds (negative before 1970) and nanoseconds."""

    seconds: int
    nanoseconds: int | None = None


@dataclass(frozen=True, slots=True)
class UnixfsData:
    """The UnixFS message, field by field; None where a field is absent."""

    type: DataType
    data: bytes | None = None
    filesize: int | None = None
    blocksizes: tuple[int, ...] = ()
    hash_type: int | None = None
    fanout: int | None = None
    mode: int | None = None
    mtime: Mtime | None = None


class FileChild(NamedTuple):
    """A part of a file: the node that holds it and how many bytes of the file it holds."""

    cid: CID
    size: int


class Entry(NamedTuple):
    """A directory entry.  `dag_bytes` is the writer's claim (Tsize); None where it made none."""

    name: str
    cid: CID
    dag_bytes: int | None


@dataclass(frozen=True, slots=True)
class File:
    """A file, or a part of one: `data`, then the children in order; `size` bytes in all."""

    size: int
    data: bytes = b""
    children: tuple[FileChild, ...] = ()
    mode: int | None = None
    mtime: Mtime | None = None


@dataclass(frozen=True, slots=True)
class Directory:
    """A directory in one block; entries in encoded order, names distinct and legal."""

    entries: tuple[Entry, ...]
    mode: int | None = None
    mtime: Mtime | None = None


@dataclass(frozen=True, slots=True)
class HamtShard:
    """One block of a sharded directory.

    `slots` are the occupied slots in ascending order.  `entries[i]` is the entry in
    `slots[i]`, or the CID of the shard below it.
    """

    fanout: int
    slots: tuple[int, ...]
    entries: tuple[Entry | CID, ...]
    mode: int | None = None
    mtime: Mtime | None = None


@dataclass(frozen=True, slots=True)
class Symlink:
    """A symbolic link; `target` as it stands, checked for nothing but its length."""

    target: str
    mode: int | None = None
    mtime: Mtime | None = None


Node = File | Directory | HamtShard | Symlink


def parse(cid: CID, data: bytes | None = None) -> Node:
    """What the block `data`, which the caller has checked against `cid`, is.

    An identity CID carries its own bytes and needs no `data`.  Raises MalformedBlock where
    the block is not UnixFS, contradicts itself, or has a name that no directory may have.
    """
    if cid.is_identity:
        data = cid.digest
    if data is None:
        raise ValueError("only an identity CID can be parsed without its block")
    if cid.codec == RAW:
        return File(len(data), data)
    if cid.codec != DAG_PB:
        raise MalformedBlock(f"{cid} is not UnixFS: its codec is 0x{cid.codec:x}")
    node = dagpb.decode(data)
    if node.data is None:
        raise MalformedBlock(f"{cid} is a dag-pb node without UnixFS data")
    message = decode_data(node.data)
    if message.type in (DataType.FILE, DataType.RAW):
        return _file(cid, message, node.links)
    if message.type is DataType.DIRECTORY:
        return _directory(cid, message, node.links)
    if message.type is DataType.HAMT_SHARD:
        return _shard(cid, message, node.links)
    if message.type is DataType.SYMLINK:
        return _symlink(cid, message, node.links)
    raise MalformedBlock(f"{cid} is of UnixFS type {message.type.name}, which holds no content")


def parse_child(child: FileChild, data: bytes | None = None) -> File:
    """The part of a file that its parent announced.

    Raises MalformedBlock where it is no file or of another size than the parent said.
    """
    node = parse(child.cid, data)
    if not isinstance(node, File):
        raise MalformedBlock(f"{child.cid} is part of a file and is a {type(node).__name__}")
    if node.size != child.size:
        raise MalformedBlock(
            f"{child.cid} holds {node.size} bytes of a file; its parent says {child.size}"
        )
    return node


def name_fault(name: str) -> str | None:
    """Why `name` cannot name a directory entry; None where it can."""
    if name in ("", ".", ".."):
        return "is not a name"
    if "/" in name or "\0" in name:
        return "contains a slash or a NUL"
    return None


def slot_digits(fanout: int) -> int:
    """How many hexadecimal digits stand before the names of a shard."""
    return len(f"{fanout - 1:X}")


def _file(cid: CID, message: UnixfsData, links: tuple[PBLink, ...]) -> File:
    if len(message.blocksizes) != len(links):
        raise MalformedBlock(f"{cid} has {len(links)} links and {len(message.blocksizes)} sizes")
    inline = message.data or b""
    size = len(inline) + sum(message.blocksizes)
    if size > _BYTES_TOTAL_MAX or (message.filesize is not None and message.filesize != size):
        raise MalformedBlock(f"{cid} declares {message.filesize} bytes; its parts are {size}")
    for link in links:
        if link.cid.codec not in (RAW, DAG_PB):
            raise MalformedBlock(f"{cid}: part {link.cid} of a file has codec 0x{link.cid.codec:x}")
    children = tuple(
        FileChild(link.cid, part) for link, part in zip(links, message.blocksizes, strict=True)
    )
    return File(size, inline, children, message.mode, message.mtime)


def _entry(cid: CID, link: PBLink, name: str) -> Entry:
    fault = name_fault(name)
    if fault is not None:
        raise MalformedBlock(f"directory {cid}: entry name {name[:64]!r} {fault}")
    return Entry(name, link.cid, link.tsize)


def _directory(cid: CID, message: UnixfsData, links: tuple[PBLink, ...]) -> Directory:
    entries = tuple(_entry(cid, link, link.name or "") for link in links)
    if len({entry.name for entry in entries}) != len(entries):
        raise MalformedBlock(f"directory {cid} has two entries of one name")
    return Directory(entries, message.mode, message.mtime)


def _shard(cid: CID, message: UnixfsData, links: tuple[PBLink, ...]) -> HamtShard:
    fanout = message.fanout or 0
    if not 8 <= fanout <= HAMT_FANOUT_MAX or fanout & (fanout - 1):
        raise MalformedBlock(f"shard {cid}: a fan-out of {fanout}")
    if message.hash_type != MURMUR3_X64_64:
        raise MalformedBlock(f"shard {cid}: hash function {message.hash_type} is not murmur3")
    field = message.data or b""
    if len(field) > fanout // 8:
        raise MalformedBlock(f"shard {cid}: a bit field of {len(field)} bytes")
    bits = int.from_bytes(field, "big")
    slots = tuple(slot for slot in range(fanout) if bits >> slot & 1)
    if len(slots) != len(links):
        raise MalformedBlock(f"shard {cid}: {len(slots)} occupied slots and {len(links)} links")
    digits = slot_digits(fanout)
    entries: list[Entry | CID] = []
    for slot, link in zip(slots, links, strict=True):
        label = link.name or ""
        if label[:digits] != f"{slot:0{digits}X}":
            raise MalformedBlock(f"shard {cid}: link {label[:64]!r} is not of slot {slot}")
        entries.append(_entry(cid, link, label[digits:]) if len(label) > digits else link.cid)
    return HamtShard(fanout, slots, tuple(entries), message.mode, message.mtime)


def _symlink(cid: CID, message: UnixfsData, links: tuple[PBLink, ...]) -> Symlink:
    target = message.data or b""
    if links or not 0 < len(target) <= SYMLINK_BYTES_MAX or b"\0" in target:
        raise MalformedBlock(f"{cid} is not a symbolic link: {len(target)} bytes of target")
    return Symlink(target.decode("utf-8", "surrogateescape"), message.mode, message.mtime)


def encode_data(message: UnixfsData) -> bytes:
    """The UnixFS message in Kubo's form: fields by number, block sizes unpacked."""
    parts = [b"\x08", encode_varint(message.type)]
    if message.data is not None:
        parts += (b"\x12", encode_varint(len(message.data)), message.data)
    if message.filesize is not None:
        parts += (b"\x18", encode_varint(message.filesize))
    for size in message.blocksizes:
        parts += (b"\x20", encode_varint(size))
    if message.hash_type is not None:
        parts += (b"\x28", encode_varint(message.hash_type))
    if message.fanout is not None:
        parts += (b"\x30", encode_varint(message.fanout))
    if message.mode is not None:
        parts += (b"\x38", encode_varint(message.mode))
    if message.mtime is not None:
        mtime = _encode_mtime(message.mtime)
        parts += (b"\x42", encode_varint(len(mtime)), mtime)
    return b"".join(parts)


def encode_node(links: tuple[PBLink, ...], message: UnixfsData) -> bytes:
    """The dag-pb block of a UnixFS node."""
    return dagpb.encode(PBNode(links, encode_data(message)))


def decode_data(data: bytes) -> UnixfsData:
    """The UnixFS message that `data` encodes.

    Fields may come in any order, block sizes packed or not, and unknown fields are skipped,
    as protobuf has it; repeated single fields and wrong wire types are refused.  Raises
    MalformedBlock.
    """
    try:
        return _decode_data(data)
    except (ValueError, IndexError) as error:
        raise MalformedBlock(f"not a UnixFS message: {error}") from error


def _decode_data(data: bytes) -> UnixfsData:
    single: dict[int, int | bytes] = {}
    sizes: list[int] = []
    last_size = b""  # the field as it stands: in most files nearly all are the same
    position = 0
    while position < len(data):
        if last_size and data.startswith(last_size, position):
            _add_sizes(sizes, _VARINT, sizes[-1])
            position += len(last_size)
            continue
        start = position
        key, position = decode_varint(data, position)
        field, wire = key >> 3, key & 7
        value: int | bytes
        if wire == _VARINT:
            value, position = decode_varint(data, position)
        elif wire in (_BYTES, _FIXED32, _FIXED64):
            length = 4 if wire == _FIXED32 else 8
            if wire == _BYTES:
                length, position = decode_varint(data, position)
            if length > len(data) - position:
                raise ValueError(f"field {field} of {length} bytes is cut off")
            value = data[position : position + length]
            position += length
        else:
            raise ValueError(f"wire type {wire}")
        if field == 4:
            _add_sizes(sizes, wire, value)
            last_size = data[start:position] if wire == _VARINT else b""
        elif 1 <= field <= 8:
            if wire != (_BYTES if field in (2, 8) else _VARINT):
                raise ValueError(f"field {field} has wire type {wire}")
            if field in single:
                raise ValueError(f"field {field} twice")
            single[field] = value
        elif field == 0:
            raise ValueError("field number 0")
    return _message(single, tuple(sizes))


def _add_sizes(sizes: list[int], wire: int, value: int | bytes) -> None:
    if wire == _VARINT and isinstance(value, int):
        sizes.append(value)
    elif wire == _BYTES and isinstance(value, bytes):
        position = 0
        while position < len(value):
            size, position = decode_varint(value, position)
            sizes.append(size)
            if len(sizes) > DAGPB_LINKS_MAX:
                break
    else:
        raise ValueError(f"block size of wire type {wire}")
    if len(sizes) > DAGPB_LINKS_MAX:
        raise ValueError(f"more than {DAGPB_LINKS_MAX} block sizes")


def _message(single: dict[int, int | bytes], sizes: tuple[int, ...]) -> UnixfsData:
    def number(field: int) -> int | None:
        value = single.get(field)
        return value if isinstance(value, int) else None

    kind, mode, payload, mtime = number(1), number(7), single.get(2), single.get(8)
    if kind is None:
        raise ValueError("no type")
    if mode is not None and mode >= 1 << 32:
        raise ValueError("a mode of more than 32 bits")
    return UnixfsData(
        type=DataType(kind),
        data=payload if isinstance(payload, bytes) else None,
        filesize=number(3),
        blocksizes=sizes,
        hash_type=number(5),
        fanout=number(6),
        mode=mode,
        mtime=_decode_mtime(mtime) if isinstance(mtime, bytes) else None,
    )


def _encode_mtime(mtime: Mtime) -> bytes:
    out = b"\x08" + _encode_int64(mtime.seconds)
    if mtime.nanoseconds is not None:
        out += b"\x15" + mtime.nanoseconds.to_bytes(4, "little")
    return out


def _decode_mtime(data: bytes) -> Mtime:
    if not data.startswith(b"\x08"):
        raise ValueError("a modification time without seconds")
    seconds, position = _decode_int64(data, 1)
    rest = data[position:]
    nanoseconds: int | None = None
    if rest:
        if len(rest) != 5 or rest[0] != 0x15:
            raise ValueError("a modification time with unknown fields")
        nanoseconds = int.from_bytes(rest[1:], "little")
        if nanoseconds > 999_999_999:
            raise ValueError(f"{nanoseconds} nanoseconds")
    return Mtime(seconds, nanoseconds)


def _encode_int64(value: int) -> bytes:
    """Protobuf's int64: a negative number is its two's complement, always ten bytes."""
    if value >= 0:
        return encode_varint(value)
    value += 1 << 64
    return bytes([value >> shift & 0x7F | 0x80 for shift in range(0, 63, 7)]) + b"\x01"


def _decode_int64(data: bytes, position: int) -> tuple[int, int]:
    negative = data[position : position + 10]
    if len(negative) == 10 and negative[9] == 1 and min(negative[:9]) >= 0x80:
        low = sum((byte & 0x7F) << 7 * place for place, byte in enumerate(negative[:9]))
        return low - (1 << 63), position + 10
    return decode_varint(data, position)
