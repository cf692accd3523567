"""Fuzz targets: the Noise handshake, what is said in it, and the session after it.

The peer here speaks Noise correctly as far as a target needs, so that what is behind the
encryption is reached too.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import trio
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.secp256k1 import create_new_key_pair as create_secp256k1_key_pair
from libp2p.crypto.x25519 import X25519PrivateKey
from libp2p.peer.id import ID
from libp2p.peer.pb import crypto_pb2
from libp2p.security.exceptions import HandshakeFailure
from libp2p.security.noise.messages import NoiseHandshakePayload, make_handshake_payload_sig
from noise.connection import Keypair, NoiseConnection

from dstore.core.proto import noise_pb2
from dstore.errors import ConnectionLost, ProtocolViolation
from dstore.network.noise import NoiseSession, NoiseTransport
from tests.fuzz.script import Script, run
from tests.fuzz.target import Target

_OUR_KEYS = create_new_key_pair(bytes(range(32)))
_US = NoiseTransport(_OUR_KEYS, ["/yamux"])
_THEM = create_new_key_pair(bytes(range(1, 33)))
_THEIR_ID = ID.from_pubkey(_THEM.public_key)
_STATIC = bytes(range(2, 34))
_SIGNATURE = make_handshake_payload_sig(
    _THEM.private_key, X25519PrivateKey.from_bytes(_STATIC).get_public_key()
)
_HONEST = NoiseHandshakePayload(_THEM.public_key, _SIGNATURE).serialize()
KEYS_OF_NOBODY = (
    # An RSA private key of which a prime is zero: pycryptodome divides by it.
    bytes.fromhex("301b02010002010f020103020103020103020100020101020101020101"),
    # A public key of an algorithm that nobody knows.
    bytes.fromhex("300b300506032a030403020000"),
)
_PREFIX = b"\x00\x20"  # the length of a first message


class _Wire:
    """A raw connection whose other end answers each write through `peer`."""

    def __init__(self, first: bytes, peer: Callable[[bytes], bytes], *, initiator: bool) -> None:
        self.is_initiator = initiator
        self._coming = bytearray(first)
        self._peer = peer

    async def read(self, n: int | None = None) -> bytes:
        size = len(self._coming) if n is None else n
        data = bytes(self._coming[:size])
        del self._coming[:size]
        return data

    async def write(self, data: bytes) -> None:
        self._coming += self._peer(bytes(data))

    async def close(self) -> None:
        pass

    def get_remote_address(self) -> tuple[str, int]:
        return "192.0.2.1", 4001


def _secure(wire: _Wire) -> NoiseSession | None:
    """The session, or None where the handshake failed as it may."""

    async def main() -> Any:
        raw: Any = wire
        if wire.is_initiator:
            return await _US.secure_outbound(raw, _THEIR_ID)
        return await _US.secure_inbound(raw)

    try:
        session: NoiseSession = trio.run(main)
    except HandshakeFailure:
        return None
    return session


def handshake(data: bytes) -> None:
    """Bytes that are no handshake fail as one, whichever side sends them when."""
    script = Script(data)
    outbound, first = script.number() & 1, script.take(script.number())
    parts = iter((script.take(script.number()), script.rest()))
    wire = _Wire(first, lambda _: next(parts, b""), initiator=bool(outbound))
    assert _secure(wire) is None


def payload(data: bytes) -> None:
    """A payload behind a correct handshake: whoever is let in is who signed."""
    for outbound, content in ((True, data), (False, data), (True, _HONEST + data)):
        session = _secure(_correct(content, outbound=outbound))
        if session is not None:
            assert session.remote_peer == _THEIR_ID


def _correct(content: bytes, *, outbound: bool) -> _Wire:
    """A peer that does the handshake right, and has `content` for a payload."""
    theirs = NoiseConnection.from_name(b"Noise_XX_25519_ChaChaPoly_SHA256")
    theirs.set_keypair_from_private_bytes(Keypair.STATIC, _STATIC)
    if outbound:
        theirs.set_as_responder()
    else:
        theirs.set_as_initiator()
    theirs.start_handshake()

    def message(body: bytes) -> bytes:
        sealed = bytes(theirs.write_message(body))
        return len(sealed).to_bytes(2, "big") + sealed

    def answer(data: bytes) -> bytes:
        if theirs.handshake_finished:
            return b""
        theirs.read_message(data[2:])
        return b"" if theirs.handshake_finished else message(content)

    return _Wire(b"" if outbound else message(b""), answer, initiator=outbound)


@cache
def _established() -> tuple[Any, bytes]:
    """A handshake done once: what a session is made from, and the key of what we receive."""
    session = _secure(_correct(_HONEST, outbound=True))
    assert session is not None
    cipher = bytes(range(3, 35))
    return session, cipher


def session(data: bytes) -> None:
    """Messages sealed, cut, mangled, repeated: what comes out is a beginning of what an
    honest peer sealed, and anything else ends the session with one of two errors."""
    made, key = _established()
    seal = ChaCha20Poly1305(key)
    script = Script(data)
    mangled, piece = script.number(), script.number()
    sealed: list[bytes] = []
    plain, honest = b"", True
    while script.more:
        how, size = script.number(), script.number(2) % 700
        if how < 200:
            body = script.take(size % 32) or bytes(size)
            number = len(sealed) if how < 190 else 0  # a nonce again
            message = seal.encrypt(bytes(4) + number.to_bytes(8, "little"), body, None)
            honest = honest and number == len(sealed)
            sealed.append(len(message).to_bytes(2, "big") + message)
            plain += body if honest else b""
        elif junk := script.take(size % 64):
            sealed.append(junk)
            honest = False
    stream = bytearray(b"".join(sealed))
    if mangled > 200 and stream:
        stream[mangled * len(stream) // 256 % len(stream)] ^= 1
        honest = False
    got = _read_all(made, key, bytes(stream), max(1, piece * 8))
    assert plain.startswith(got)
    assert got == plain or not honest


def _read_all(made: Any, key: bytes, stream: bytes, piece: int) -> bytes:
    reader = object.__new__(NoiseSession)
    reader.__dict__.update(made.__dict__)
    wire: Any = _Wire(stream, lambda _: b"", initiator=True)
    pieces = iter([stream[at : at + piece] for at in range(0, len(stream), piece)])

    async def read(n: int | None = None) -> bytes:
        return next(pieces, b"")

    wire.read = read
    reader._connection = wire
    reader._receive_cipher = ChaCha20Poly1305(key)
    reader._receive_nonce = 0
    reader._cut, reader._plain = bytearray(), b""
    got = bytearray()
    try:
        while True:
            messages = run(reader.read_messages())
            assert all(messages)
            got += b"".join(messages)
    except (ConnectionLost, ProtocolViolation):
        pass
    return bytes(got)


def handshakes() -> Iterator[bytes]:
    ephemeral = random.Random(0).randbytes(32)
    yield bytes((0, 34)) + _PREFIX + ephemeral + bytes((2,)) + b"\x00\x00"
    yield bytes((1, 0, 98)) + b"\x00\x60" + ephemeral * 3
    yield bytes((0, 34)) + _PREFIX + bytes(32) + bytes((66,)) + b"\x00\x40" + bytes(64)


def payloads() -> Iterator[bytes]:
    yield _HONEST
    yield NoiseHandshakePayload(_OUR_KEYS.public_key, bytes(64)).serialize()
    other = create_secp256k1_key_pair(bytes(range(1, 33))).public_key
    yield NoiseHandshakePayload(other, bytes(70)).serialize()
    for der in KEYS_OF_NOBODY:
        key = crypto_pb2.PublicKey(Type=crypto_pb2.KeyType.RSA, Data=der).SerializeToString()
        yield noise_pb2.NoiseHandshakePayload(
            identity_key=key, identity_sig=bytes(256)
        ).SerializeToString()
    yield b"\x22\x08\x12\x06/yamux"  # extensions: the muxers
    yield b"\x22\x08\x12\x06/mplex"
    extensions = noise_pb2.NoiseExtensions(stream_muxers=["/yamux"], identify=b"\x32\x04peer")
    yield noise_pb2.NoiseHandshakePayload(extensions=extensions).SerializeToString()


def sessions() -> Iterator[bytes]:
    yield bytes((0, 1)) + bytes((0, 0, 3)) + b"abc" + bytes((0, 2, 64, 0, 0, 5)) + b"hello"
    yield bytes((250, 30)) + bytes((0, 0, 3)) + b"abc" + bytes((195, 0, 3)) + b"abc"
    yield bytes((0, 255)) + bytes((255, 0, 3)) + b"\x00\x05x"


TARGETS = {
    "noise-handshake": Target(handshake, handshakes, bytes_max=512),
    "noise-payload": Target(payload, payloads, bytes_max=1024, protobuf=True),
    "noise-session": Target(session, sessions, bytes_max=1024),
}
