"""libp2p signed envelopes around dstore's records, for Ed25519 keys, in one canonical form.

The protobuf of the envelope has a fixed small shape, so it is written and read here without
a library: fields in ascending order, shortest varints, nothing unknown.  Whoever re-encodes
an envelope gets the same bytes, and so its hash can order records.  What a payload means is
`core.pinrecord`'s business.  Specification: libp2p RFC 0002, "Signed Envelopes"; peer-ids
for the key.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from dstore.core.cid import decode_varint, encode_varint
from dstore.core.peerid import PeerId
from dstore.errors import ProtocolViolation
from dstore.limits import RECORD_BYTES_MAX

KEY_BYTES: Final = 32
_SIGNATURE_BYTES: Final = 64
# Envelope fields, all of wire type 2: public_key = 1, payload_type = 2, payload = 3,
# signature = 5.
_PUBLIC_KEY, _PAYLOAD_TYPE, _PAYLOAD, _SIGNATURE = 0x0A, 0x12, 0x1A, 0x2A
_ED25519_KEY: Final = bytes.fromhex("08011220")  # PublicKey { Type: Ed25519, Data: 32 bytes }


class SigningKey:
    """An Ed25519 private key: a node's identity or an owner's key.  Shows only its public
    half when printed."""

    __slots__ = ("_key", "public")

    public: bytes

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self.public = key.public_key().public_bytes_raw()

    @classmethod
    def from_seed(cls, seed: bytes) -> SigningKey:
        """The key of a 32-byte seed.  Raises ValueError for another length."""
        return cls(Ed25519PrivateKey.from_private_bytes(seed))

    @property
    def seed(self) -> bytes:
        """The 32 secret bytes, for the key file."""
        return self._key.private_bytes_raw()

    @property
    def peer_id(self) -> PeerId:
        return PeerId.of_ed25519(self.public)

    def sign(self, message: bytes) -> bytes:
        """The 64-byte signature."""
        return self._key.sign(message)

    def __repr__(self) -> str:
        return f"SigningKey({self.peer_id})"


@dataclass(frozen=True, slots=True)
class Kind:
    """What an envelope is for: its domain string and payload type.  A signature made for
    one kind is worth nothing for another."""

    domain: bytes
    payload_type: bytes


@dataclass(frozen=True, slots=True)
class Envelope:
    """A verified envelope: the raw public key that signed, and what it signed."""

    public_key: bytes
    payload: bytes
    data: bytes = field(repr=False)


def seal(key: SigningKey, kind: Kind, payload: bytes) -> bytes:
    """The signed envelope around the payload."""
    signature = key.sign(_signed_bytes(kind, payload))
    return b"".join(
        (
            _field(_PUBLIC_KEY, _ED25519_KEY + key.public),
            _field(_PAYLOAD_TYPE, kind.payload_type),
            _field(_PAYLOAD, payload),
            _field(_SIGNATURE, signature),
        )
    )


def unseal(data: bytes, kind: Kind, *, bytes_max: int = RECORD_BYTES_MAX) -> Envelope:
    """The envelope, of that kind and with a valid signature.  Raises ProtocolViolation."""
    if len(data) > bytes_max:
        raise ProtocolViolation(f"an envelope of {len(data)} bytes; at most {bytes_max} taken")
    key, position = _take(data, 0, _PUBLIC_KEY)
    payload_type, position = _take(data, position, _PAYLOAD_TYPE)
    payload, position = _take(data, position, _PAYLOAD)
    signature, position = _take(data, position, _SIGNATURE)
    if position != len(data):
        raise ProtocolViolation("bytes after the envelope")
    if len(key) != len(_ED25519_KEY) + KEY_BYTES or not key.startswith(_ED25519_KEY):
        raise ProtocolViolation("the envelope's key is not an Ed25519 key")
    if payload_type != kind.payload_type:
        raise ProtocolViolation(f"an envelope of type {payload_type[:32]!r}, not {kind.domain!r}")
    if len(signature) != _SIGNATURE_BYTES:
        raise ProtocolViolation(f"a signature of {len(signature)} bytes")
    public_key = key[len(_ED25519_KEY) :]
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(
            signature, _signed_bytes(kind, payload)
        )
    # ValueError: bytes that are no point of the curve, where the library looks early.
    except (InvalidSignature, ValueError) as error:
        raise ProtocolViolation("the envelope's signature is wrong") from error
    return Envelope(public_key, payload, data)


def _signed_bytes(kind: Kind, payload: bytes) -> bytes:
    """Domain, payload type and payload, each behind its length."""
    return b"".join(
        encode_varint(len(part)) + part for part in (kind.domain, kind.payload_type, payload)
    )


def _field(tag: int, content: bytes) -> bytes:
    return bytes((tag,)) + encode_varint(len(content)) + content


def _take(data: bytes, position: int, tag: int) -> tuple[bytes, int]:
    """The content of the field that must come next, and the position behind it."""
    if position >= len(data) or data[position] != tag:
        raise ProtocolViolation(f"an envelope without field {tag >> 3} in its place")
    try:
        length, start = decode_varint(data, position + 1)
    except ValueError as error:
        raise ProtocolViolation(f"an envelope that is cut off: {error}") from error
    if length > len(data) - start:
        raise ProtocolViolation("an envelope that is cut off")
    return data[start : start + length], start + length
