"""The Noise XX handshake of libp2p: three messages, and what each side says of itself in them.

The `noise` package keeps the protocol's state, py-libp2p's keys check signatures.  Ours is what is said: signed once for the life of the static key, with the muxers
that this side speaks, so that none need be negotiated afterwards, and with who it is, so that
identify need not ask (decision 0022).  Specifications: libp2p noise; libp2p connections, inlined
muxer negotiation.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from libp2p.abc import IRawConnection
from libp2p.crypto.keys import KeyPair, PublicKey
from libp2p.crypto.serialization import deserialize_public_key
from libp2p.crypto.x25519 import create_new_key_pair as create_x25519_key_pair
from libp2p.peer.id import ID
from libp2p.security.exceptions import HandshakeFailure
from noise.backends.default.keypairs import KeyPair25519
from noise.connection import NoiseConnection

from dstore.core.proto.noise_pb2 import NoiseExtensions, NoiseHandshakePayload
from dstore.limits import HANDSHAKE_IDENTIFY_BYTES_MAX

_NAME: Final = b"Noise_XX_25519_ChaChaPoly_SHA256"
_LENGTH_BYTES: Final = 2
_SIGNED_PREFIX: Final = b"noise-libp2p-static-key:"


@dataclass(frozen=True)
class Shaken:
    """What a handshake ended in: who the peer is, the muxer that both named (None where one
    side named none), the identify messages of this side and of the peer (b"" where there was
    none), and the cipher states of the `noise` package."""

    peer: ID
    key: PublicKey
    muxer: str | None
    said: bytes
    told: bytes
    sending: Any
    receiving: Any


class Handshakes:
    """Makes the handshakes of one node, all with one static key."""

    def __init__(
        self, key_pair: KeyPair, muxers: Sequence[str], describe: Callable[[IRawConnection], bytes]
    ) -> None:
        """`describe` makes the identify message for the peer of a connection; one above
        HANDSHAKE_IDENTIFY_BYTES_MAX is left for it to ask for."""
        static = create_x25519_key_pair()
        self._static = KeyPair25519.from_private_bytes(static.private_key.to_bytes())
        self._key: bytes = key_pair.public_key.serialize()
        self._signature: bytes = key_pair.private_key.sign(_signed(static.public_key.to_bytes()))
        self._muxers = tuple(muxers)
        self._describe = describe

    async def initiate(
        self, conn: IRawConnection, peer: ID, agreed: Callable[[], Awaitable[object]] | None
    ) -> Shaken:
        """As the side that dialled `peer`.  `agreed`, where given, is awaited before anything
        is read.  Raises HandshakeFailure, and what the packages underneath raise at nonsense."""
        noise = self._begun(initiator=True)
        state = noise.noise_protocol.handshake_state
        await _send(conn, noise, b"")
        if agreed is not None:
            await agreed()
        theirs = await _receive_payload(conn, noise)
        if theirs.peer != peer:
            raise HandshakeFailure(f"noise: this is not {peer}")
        theirs.check(state)
        said = self._identify_for(conn)
        await _send(conn, noise, self._payload(said))
        return _shaken(noise, theirs, _common(self._muxers, theirs.muxers), said)

    async def respond(self, conn: IRawConnection) -> Shaken:
        """As the side that was dialled.  Raises as `initiate`."""
        noise = self._begun(initiator=False)
        state = noise.noise_protocol.handshake_state
        await _receive(conn, noise)
        said = self._identify_for(conn)
        await _send(conn, noise, self._payload(said))
        theirs = await _receive_payload(conn, noise)
        theirs.check(state)
        return _shaken(noise, theirs, _common(theirs.muxers, self._muxers), said)

    def _identify_for(self, conn: IRawConnection) -> bytes:
        message = self._describe(conn)
        return message if len(message) <= HANDSHAKE_IDENTIFY_BYTES_MAX else b""

    def _payload(self, identify: bytes) -> bytes:
        extensions = NoiseExtensions(stream_muxers=self._muxers, identify=identify)
        return NoiseHandshakePayload(
            identity_key=self._key, identity_sig=self._signature, extensions=extensions
        ).SerializeToString()

    def _begun(self, *, initiator: bool) -> Any:
        noise = NoiseConnection.from_name(_NAME)
        noise.noise_protocol.keypairs["s"] = self._static  # read once for all
        if initiator:
            noise.set_as_initiator()
        else:
            noise.set_as_responder()
        noise.start_handshake()
        return noise


@dataclass(frozen=True)
class _Theirs:
    """What the peer says of itself."""

    payload: NoiseHandshakePayload
    key: PublicKey
    peer: ID

    @classmethod
    def of(cls, data: bytes) -> _Theirs:
        """Raises DecodeError, and what libp2p raises at what is no key."""
        payload = NoiseHandshakePayload.FromString(data)
        key = deserialize_public_key(payload.identity_key)
        return cls(payload, key, ID.from_pubkey(key))

    @property
    def muxers(self) -> Sequence[str]:
        return self.payload.extensions.stream_muxers

    def check(self, state: Any) -> None:
        """That the peer's key signed the static key of this handshake.  Raises
        HandshakeFailure, and what libp2p raises at what is no signature."""
        if not self.key.verify(_signed(state.rs.public_bytes), self.payload.identity_sig):
            raise HandshakeFailure("noise: the static key is not signed by the peer's key")


def _signed(static: bytes) -> bytes:
    """What the signature of an identity covers, which vouches for a static key."""
    return _SIGNED_PREFIX + static


def _shaken(noise: Any, theirs: _Theirs, muxer: str | None, said: bytes) -> Shaken:
    protocol = noise.noise_protocol
    return Shaken(
        theirs.peer,
        theirs.key,
        muxer,
        said,
        theirs.payload.extensions.identify,
        protocol.cipher_state_encrypt,
        protocol.cipher_state_decrypt,
    )


def _common(of_initiator: Sequence[str], of_responder: Sequence[str]) -> str | None:
    """The muxer to use: the first of the initiator's that the responder speaks too.  Raises
    HandshakeFailure where both name some and none is common."""
    if not of_initiator or not of_responder:
        return None
    for muxer in of_initiator:
        if muxer in of_responder:
            return muxer
    raise HandshakeFailure("noise: the other side speaks no muxer of ours")


async def _send(conn: IRawConnection, noise: Any, payload: bytes) -> None:
    message = bytes(noise.write_message(payload))
    await conn.write(len(message).to_bytes(_LENGTH_BYTES, "big") + message)


async def _receive(conn: IRawConnection, noise: Any) -> bytes:
    size = int.from_bytes(await _read_exactly(conn, _LENGTH_BYTES), "big")
    return bytes(noise.read_message(await _read_exactly(conn, size)))


async def _receive_payload(conn: IRawConnection, noise: Any) -> _Theirs:
    return _Theirs.of(await _receive(conn, noise))


async def _read_exactly(conn: IRawConnection, size: int) -> bytes:
    data = b""
    while len(data) < size:
        chunk = await conn.read(size - len(data))
        if not chunk:
            raise HandshakeFailure("noise: the other side left during the handshake")
        data += chunk
    return data
