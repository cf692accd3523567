"""One side of the Noise handshake XX, without I/O and randomness.

    -> e
    <- e, ee, s, es
    -> s, se

The curve, the cipher and the hash are the libraries'; ours is the order of their use.
Specification: The Noise Protocol Framework, revision 34, sections 5 and 7;
`Noise_XX_25519_ChaChaPoly_SHA256`.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from dstore.errors import ProtocolViolation

_NAME: Final = b"Noise_XX_25519_ChaChaPoly_SHA256"  # 32 bytes, the first hash as they are
_SHA256: Final = SHA256()
_KEY_BYTES: Final = 32
_TAG_BYTES: Final = 16
_SEALED_KEY_BYTES: Final = _KEY_BYTES + _TAG_BYTES


class DhKey:
    """A key pair on Curve25519."""

    __slots__ = ("_private", "public")

    def __init__(self, private: X25519PrivateKey) -> None:
        self._private = private
        self.public = private.public_key().public_bytes_raw()

    def shared_with(self, public: bytes) -> bytes:
        """What both sides can compute.  Raises ProtocolViolation for a point that makes it zero
        whatever the key is."""
        try:
            return self._private.exchange(X25519PublicKey.from_public_bytes(public))
        except ValueError as error:
            raise ProtocolViolation("noise: no usable key") from error


@dataclass(frozen=True, slots=True)
class TransportKeys:
    """The keys of both directions once the handshake is over."""

    sending: bytes
    receiving: bytes


class NoiseXX:
    """The messages of one handshake, to be written and read in the pattern's order."""

    def __init__(self, static: DhKey, ephemeral: DhKey, *, initiator: bool) -> None:
        """`ephemeral` is used for this handshake only."""
        self._initiator = initiator
        self._static = static
        self._ephemeral = ephemeral
        self._their_ephemeral = b""
        self.their_static = b""
        """The other side's static key, once the message with it was read."""
        self._chaining_key = _NAME
        self._cipher: ChaCha20Poly1305 | None = None
        self._sealed = 0  # under the cipher so far
        self._hash = hashlib.sha256(_NAME).digest()  # with an empty prologue

    # --- The three messages ----------------------------------------------------------------

    def write_hello(self, payload: bytes = b"") -> bytes:
        """The first, by the initiator; anybody can read its payload."""
        return self._send_ephemeral() + self._seal(payload)

    def read_hello(self, message: bytes) -> bytes:
        """Its payload.  Raises ProtocolViolation, as all that read."""
        return self._open(self._take_ephemeral(message))

    def write_answer(self, payload: bytes) -> bytes:
        """The second, by the other side.  Raises ProtocolViolation where the first had no usable
        key."""
        ephemeral = self._send_ephemeral()
        self._mix_key(self._ephemeral.shared_with(self._their_ephemeral))
        static = self._seal(self._static.public)
        self._mix_key(self._static.shared_with(self._their_ephemeral))
        return ephemeral + static + self._seal(payload)

    def read_answer(self, message: bytes) -> bytes:
        """Its payload."""
        rest = self._take_ephemeral(message)
        self._mix_key(self._ephemeral.shared_with(self._their_ephemeral))
        rest = self._take_static(rest)
        self._mix_key(self._ephemeral.shared_with(self.their_static))
        return self._open(rest)

    def write_end(self, payload: bytes) -> bytes:
        """The third, by the initiator."""
        static = self._seal(self._static.public)
        self._mix_key(self._static.shared_with(self._their_ephemeral))
        return static + self._seal(payload)

    def read_end(self, message: bytes) -> bytes:
        """Its payload; the handshake is over."""
        rest = self._take_static(message)
        self._mix_key(self._ephemeral.shared_with(self.their_static))
        return self._open(rest)

    def split(self) -> TransportKeys:
        """The keys for what comes after the third message."""
        by_initiator, by_responder = self._derive(b"")
        if self._initiator:
            return TransportKeys(by_initiator, by_responder)
        return TransportKeys(by_responder, by_initiator)

    # --- What they are made of -------------------------------------------------------------

    def _send_ephemeral(self) -> bytes:
        self._mix_hash(self._ephemeral.public)
        return self._ephemeral.public

    def _take_ephemeral(self, message: bytes) -> bytes:
        self._their_ephemeral, rest = _cut(message, _KEY_BYTES)
        self._mix_hash(self._their_ephemeral)
        return rest

    def _take_static(self, message: bytes) -> bytes:
        sealed, rest = _cut(message, _SEALED_KEY_BYTES)
        self.their_static = self._open(sealed)
        return rest

    def _mix_hash(self, data: bytes) -> None:
        self._hash = hashlib.sha256(self._hash + data).digest()

    def _mix_key(self, secret: bytes) -> None:
        self._chaining_key, key = self._derive(secret)
        self._cipher = ChaCha20Poly1305(key)
        self._sealed = 0

    def _derive(self, secret: bytes) -> tuple[bytes, bytes]:
        """HKDF with two outputs."""
        size = 2 * _KEY_BYTES
        both = HKDF(_SHA256, length=size, salt=self._chaining_key, info=b"").derive(secret)
        return both[:_KEY_BYTES], both[_KEY_BYTES:]

    def _seal(self, plain: bytes) -> bytes:
        sealed = plain
        if self._cipher is not None:
            sealed = self._cipher.encrypt(self._next_nonce(), plain, self._hash)
        self._mix_hash(sealed)
        return sealed

    def _open(self, sealed: bytes) -> bytes:
        plain = sealed
        if self._cipher is not None:
            try:
                plain = self._cipher.decrypt(self._next_nonce(), sealed, self._hash)
            except InvalidTag as error:
                raise ProtocolViolation("noise: a message that was not sealed so") from error
        self._mix_hash(sealed)
        return plain

    def _next_nonce(self) -> bytes:
        nonce = bytes(4) + self._sealed.to_bytes(8, "little")
        self._sealed += 1
        return nonce


def _cut(message: bytes, size: int) -> tuple[bytes, bytes]:
    if len(message) < size:
        raise ProtocolViolation(f"noise: a message of {len(message)} bytes")
    return message[:size], message[size:]
