"""The Noise XX handshake of libp2p: three messages, and what each side says of itself in them.

The messages are `core/noise_xx.py`'s, the identities' signatures py-libp2p's keys check.  What is
said is signed once for the life of the static key, with the muxers that this side speaks, so that
none need be negotiated afterwards, and with who it is, so that identify need not ask (decision
0022).  Specifications: libp2p noise; libp2p connections, inlined muxer negotiation.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from libp2p.abc import IRawConnection
from libp2p.crypto.keys import KeyPair, PublicKey
from libp2p.crypto.serialization import deserialize_public_key
from libp2p.peer.id import ID
from libp2p.security.exceptions import HandshakeFailure

from dstore.core.noise_xx import DhKey, NoiseXX, TransportKeys
from dstore.core.proto.noise_pb2 import NoiseExtensions, NoiseHandshakePayload
from dstore.limits import HANDSHAKE_IDENTIFY_BYTES_MAX

_LENGTH_BYTES: Final = 2
_SIGNED_PREFIX: Final = b"noise-libp2p-static-key:"


@dataclass(frozen=True)
class Shaken:
    """What a handshake ended in: who the peer is, the muxer that both named (None where one
    side named none), the identify messages of this side and of the peer (b"" where there was
    none), and the keys of the session."""

    peer: ID
    key: PublicKey
    muxer: str | None
    said: bytes
    told: bytes
    keys: TransportKeys


class Handshakes:
    """Makes the handshakes of one node, all with one static key."""

    def __init__(
        self, key_pair: KeyPair, muxers: Sequence[str], describe: Callable[[IRawConnection], bytes]
    ) -> None:
        """`describe` makes the identify message for the peer of a connection; one above
        HANDSHAKE_IDENTIFY_BYTES_MAX is left for it to ask for."""
        self._static = _new_key()
        self._key: bytes = key_pair.public_key.serialize()
        self._signature: bytes = key_pair.private_key.sign(_signed(self._static.public))
        self._muxers = tuple(muxers)
        self._describe = describe

    async def initiate(
        self, conn: IRawConnection, peer: ID, agreed: Callable[[], Awaitable[object]] | None
    ) -> Shaken:
        """As the side that dialled `peer`.  `agreed`, where given, is awaited before anything
        is read.  Raises HandshakeFailure; ProtocolViolation and DecodeError at nonsense."""
        noise = NoiseXX(self._static, _new_key(), initiator=True)
        await _send(conn, noise.write_hello())
        if agreed is not None:
            await agreed()
        theirs = _Theirs.of(noise.read_answer(await _receive(conn)), noise.their_static)
        if theirs.peer != peer:
            raise HandshakeFailure(f"noise: this is not {peer}")
        said = self._identify_for(conn)
        await _send(conn, noise.write_end(self._payload(said)))
        return theirs.shaken(noise, _common(self._muxers, theirs.muxers), said)

    async def respond(self, conn: IRawConnection) -> Shaken:
        """As the side that was dialled.  Raises as `initiate`."""
        noise = NoiseXX(self._static, _new_key(), initiator=False)
        noise.read_hello(await _receive(conn))
        said = self._identify_for(conn)
        await _send(conn, noise.write_answer(self._payload(said)))
        theirs = _Theirs.of(noise.read_end(await _receive(conn)), noise.their_static)
        return theirs.shaken(noise, _common(theirs.muxers, self._muxers), said)

    def _identify_for(self, conn: IRawConnection) -> bytes:
        message = self._describe(conn)
        return message if len(message) <= HANDSHAKE_IDENTIFY_BYTES_MAX else b""

    def _payload(self, identify: bytes) -> bytes:
        extensions = NoiseExtensions(stream_muxers=self._muxers, identify=identify)
        return NoiseHandshakePayload(
            identity_key=self._key, identity_sig=self._signature, extensions=extensions
        ).SerializeToString()


@dataclass(frozen=True)
class _Theirs:
    """What the peer says of itself, and that it is the peer who says it."""

    payload: NoiseHandshakePayload
    key: PublicKey
    peer: ID

    @classmethod
    def of(cls, data: bytes, static: bytes) -> _Theirs:
        """The payload `data` of whoever has proved to hold `static`.  Raises DecodeError;
        HandshakeFailure where the key that it names did not sign that one."""
        payload = NoiseHandshakePayload.FromString(data)
        try:
            key = deserialize_public_key(payload.identity_key)
            peer = ID.from_pubkey(key)
            signed = key.verify(_signed(static), payload.identity_sig)
        except Exception as error:  # what three libraries make of a stranger's key
            raise HandshakeFailure(f"noise: no key, or no signature: {error!r}") from error
        if not signed:
            raise HandshakeFailure("noise: the static key is not signed by the peer's key")
        return cls(payload, key, peer)

    @property
    def muxers(self) -> Sequence[str]:
        return self.payload.extensions.stream_muxers

    def shaken(self, noise: NoiseXX, muxer: str | None, said: bytes) -> Shaken:
        """What the handshake ended in."""
        told = self.payload.extensions.identify
        return Shaken(self.peer, self.key, muxer, said, told, noise.split())


def _signed(static: bytes) -> bytes:
    """What the signature of an identity covers, which vouches for a static key."""
    return _SIGNED_PREFIX + static


def _common(of_initiator: Sequence[str], of_responder: Sequence[str]) -> str | None:
    """The muxer to use: the first of the initiator's that the responder speaks too.  Raises
    HandshakeFailure where both name some and none is common."""
    if not of_initiator or not of_responder:
        return None
    for muxer in of_initiator:
        if muxer in of_responder:
            return muxer
    raise HandshakeFailure("noise: the other side speaks no muxer of ours")


def _new_key() -> DhKey:
    return DhKey(X25519PrivateKey.generate())


async def _send(conn: IRawConnection, message: bytes) -> None:
    await conn.write(len(message).to_bytes(_LENGTH_BYTES, "big") + message)


async def _receive(conn: IRawConnection) -> bytes:
    size = int.from_bytes(await _read_exactly(conn, _LENGTH_BYTES), "big")
    return await _read_exactly(conn, size)


async def _read_exactly(conn: IRawConnection, size: int) -> bytes:
    data = b""
    while len(data) < size:
        chunk = await conn.read(size - len(data))
        if not chunk:
            raise HandshakeFailure("noise: the other side left during the handshake")
        data += chunk
    return data
