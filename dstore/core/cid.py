"""Content identifiers, versions 0 and 1, over their binary form.

A `CID` is a value: immutable, hashable, cheap to make by the hundred thousand; its text is
made when a person looks.  Which hashes are trusted is decided here and nowhere else.
Specifications: multiformats CID, multihash, unsigned-varint.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import lru_cache
from typing import Final

import base58
import libipld
import multibase

from dstore.errors import InvalidCid
from dstore.limits import (
    CID_TEXT_CHARS_MAX,
    DIGEST_BYTES_MAX,
    DIGEST_BYTES_MIN,
    IDENTITY_BYTES_MAX,
)

RAW: Final = 0x55
DAG_PB: Final = 0x70
DAG_CBOR: Final = 0x71
DAG_JSON: Final = 0x0129

IDENTITY: Final = 0x00
SHA2_256: Final = 0x12
SHA2_512: Final = 0x13
SHA3_256: Final = 0x16
BLAKE2B_256: Final = 0xB220

_SHA2_256_PREFIX: Final = b"\x12\x20"
# CIDv1, sha2-256: all but the digest, and the codec.
_V1_SHA2_256_PREFIXES: Final = {
    b"\x01\x55\x12\x20": RAW,
    b"\x01\x70\x12\x20": DAG_PB,
    b"\x01\x71\x12\x20": DAG_CBOR,
}

_CASELESS_BASES: Final = frozenset("fFbBkKvVtTcC")  # multibase prefixes: bases 16, 32, 36

# The allow-list.  Weak or unkeyed-length hashes (murmur3, md5, sha1, short digests) would
# let a peer serve other bytes under the same name.
_HASHERS: Final[dict[int, Callable[[bytes], bytes]]] = {
    IDENTITY: bytes,
    SHA2_256: lambda data: hashlib.sha256(data).digest(),
    SHA2_512: lambda data: hashlib.sha512(data).digest(),
    SHA3_256: lambda data: hashlib.sha3_256(data).digest(),
    BLAKE2B_256: lambda data: hashlib.blake2b(data, digest_size=32).digest(),
}


# The same few lengths and sizes are written over and over in any one tree.
@lru_cache(maxsize=4096)
def encode_varint(value: int) -> bytes:
    """Minimal unsigned LEB128 of a number below 2**63."""
    if value < 0 or value >= 1 << 63:
        raise ValueError(f"not an unsigned varint: {value}")
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def decode_varint(data: bytes | bytearray | memoryview, start: int = 0) -> tuple[int, int]:
    """The number at `start` and the position behind it.

    Raises ValueError where it is cut off, longer than nine bytes, or not minimal.
    """
    value = shift = 0
    for position in range(start, min(start + 9, len(data))):
        byte = data[position]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            if byte == 0 and position > start:
                raise ValueError("varint is not minimal")
            return value, position + 1
        shift += 7
    raise ValueError("varint is cut off or too long")


class CID:
    """One content identifier; equal when the binary forms are equal."""

    __slots__ = ("_codec", "_hash", "binary", "hash_start")

    binary: bytes
    hash_start: int

    def __init__(self, binary: bytes, codec: int, hash_start: int) -> None:
        """For this module: callers use `from_bytes`, `parse`, `v1` or `of`."""
        self.binary = binary
        self._codec = codec
        self.hash_start = hash_start
        self._hash = hash(binary)

    @classmethod
    def from_bytes(cls, data: bytes | memoryview) -> CID:
        """The CID whose binary form is exactly `data`.  Raises InvalidCid."""
        binary = bytes(data)
        # The forms that nearly all blocks have, without a parser.
        if len(binary) == 36:
            known = _V1_SHA2_256_PREFIXES.get(binary[:4])
            if known is not None:
                return cls(binary, known, 2)
        elif len(binary) == 34 and binary.startswith(_SHA2_256_PREFIX):
            return cls(binary, DAG_PB, 0)
        try:
            version, codec_start = decode_varint(binary)
            if version != 1:
                raise InvalidCid(f"CID version {version} is not supported: {binary[:16].hex()}…")
            codec, hash_start = decode_varint(binary, codec_start)
            hash_code, size_start = decode_varint(binary, hash_start)
            size, digest_start = decode_varint(binary, size_start)
        except ValueError as error:
            raise InvalidCid(f"not a CID: {error}: {binary[:16].hex()}…") from error
        if size != len(binary) - digest_start:
            raise InvalidCid(
                f"CID digest has {len(binary) - digest_start} bytes and declares {size}"
            )
        _check_digest(hash_code, size)
        return cls(binary, codec, hash_start)

    @classmethod
    def parse(cls, text: str) -> CID:
        """The CID written as `text` in any registered multibase.

        One CID has one text per base: digits are taken in either case where the base has no
        cases of its own, but left-over bits and characters are refused.  Raises InvalidCid.
        """
        if len(text) > CID_TEXT_CHARS_MAX or not (text.isascii() and text.isprintable()):
            raise InvalidCid(f"a CID is at most {CID_TEXT_CHARS_MAX} printable ASCII characters")
        try:
            if len(text) == 46 and text.startswith("Qm"):
                return cls.from_bytes(base58.b58decode(text))
            binary = _decode_multibase(text)
        except InvalidCid:
            raise
        # py-multibase and base58 raise ValueError, KeyError and their own types by encoding.
        except (ValueError, KeyError, TypeError, IndexError) as error:
            why = f": {error}" if type(error) is ValueError else ""
            raise InvalidCid(f"not a CID: {text!r}{why}") from error
        cid = cls.from_bytes(binary)
        if cid.version == 0:
            raise InvalidCid("a CIDv0 is written in bare base58btc, without a multibase prefix")
        return cid

    @classmethod
    def v1(cls, codec: int, multihash: bytes) -> CID:
        """CIDv1 of `codec` over the multihash.  Raises InvalidCid."""
        return cls.from_bytes(b"\x01" + encode_varint(codec) + multihash)

    @classmethod
    def of(cls, codec: int, data: bytes | memoryview, *, version: int = 1) -> CID:
        """The sha2-256 CID of `data`."""
        multihash = _SHA2_256_PREFIX + hashlib.sha256(data).digest()
        if version == 0:
            return cls(multihash, DAG_PB, 0)
        prefix = b"\x01" + encode_varint(codec)
        return cls(prefix + multihash, codec, len(prefix))

    @property
    def version(self) -> int:
        return 0 if self.hash_start == 0 else 1

    @property
    def codec(self) -> int:
        """The multicodec of the content: RAW, DAG_PB, DAG_CBOR, …"""
        return self._codec

    @property
    def multihash(self) -> bytes:
        """Hash code, digest length and digest: what names the bytes whatever the codec."""
        return self.binary[self.hash_start :]

    @property
    def hash_code(self) -> int:
        return decode_varint(self.binary, self.hash_start)[0]

    @property
    def digest(self) -> bytes:
        _, size_start = decode_varint(self.binary, self.hash_start)
        _, digest_start = decode_varint(self.binary, size_start)
        return self.binary[digest_start:]

    @property
    def is_identity(self) -> bool:
        """Whether the CID carries its own content."""
        return self.binary[self.hash_start] == IDENTITY

    def verify(self, data: bytes | memoryview) -> bool:
        """Whether `data` is what this CID names."""
        if self.binary.startswith(_SHA2_256_PREFIX, self.hash_start):
            return hashlib.sha256(data).digest() == self.binary[self.hash_start + 2 :]
        return _HASHERS[self.hash_code](bytes(data)) == self.digest

    def __str__(self) -> str:
        if self.version == 0:
            return base58.b58encode(self.binary).decode()
        return _base32(self.binary)

    def __repr__(self) -> str:
        return f"CID({self})"

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return isinstance(other, CID) and self.binary == other.binary

    def __lt__(self, other: CID) -> bool:
        return self.binary < other.binary

    def __reduce__(self) -> tuple[object, ...]:
        return CID.from_bytes, (self.binary,)


def _base32(binary: bytes) -> str:
    """Multibase base32: RFC 4648, lower case, without padding."""
    # base64's takes forty times as long, and one answer of a gateway names three CIDs.
    text: str = libipld.encode_multibase("b", binary)
    return text


def _decode_multibase(text: str) -> bytes:
    if len(text) < 2:
        raise ValueError("too short")
    if text[0] in _CASELESS_BASES:
        text = text.lower()
    if text[0] == "b":  # nearly all CIDs, and py-multibase takes fifty times as long
        binary = libipld.decode_multibase(text)[1]
        canonical = _base32(binary)
    else:
        binary = multibase.decode(text)
        canonical = multibase.encode(multibase.get_codec(text).encoding, binary).decode()
    if canonical != text:
        raise ValueError("left-over bits or characters")
    return binary


def _check_digest(hash_code: int, size: int) -> None:
    """Refuse hashes and digest lengths that do not protect what they name."""
    if hash_code not in _HASHERS:
        raise InvalidCid(f"hash function 0x{hash_code:x} is not on dstore's allow-list")
    if hash_code == IDENTITY:
        if size > IDENTITY_BYTES_MAX:
            raise InvalidCid(f"identity CID of {size} bytes; at most {IDENTITY_BYTES_MAX}")
        return
    if not DIGEST_BYTES_MIN <= size <= DIGEST_BYTES_MAX:
        raise InvalidCid(f"digest of {size} bytes; {DIGEST_BYTES_MIN} to {DIGEST_BYTES_MAX} taken")
    if size != len(_HASHERS[hash_code](b"")):
        raise InvalidCid(f"digest of {size} bytes is not a whole 0x{hash_code:x} digest")
