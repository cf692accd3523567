"""Noise for libp2p connections: the sessions that handshakes (`noise_handshake.py`) end in.

A session reads in large pieces, decrypting every complete message in them, and seals
whole frames into as few messages and writes as they fill; specification:
https://github.com/libp2p/specs/blob/master/noise/README.md.
"""

from __future__ import annotations

import struct
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Final

import trio
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from google.protobuf.message import DecodeError
from libp2p.abc import IRawConnection
from libp2p.connection_types import ConnectionType
from libp2p.crypto.keys import KeyPair
from libp2p.exceptions import BaseLibp2pError
from libp2p.io.exceptions import ConnectionClosedError, DecryptionFailedException
from libp2p.peer.id import ID
from libp2p.security.base_session import BaseSession
from libp2p.security.exceptions import HandshakeFailure
from multiaddr import Multiaddr

from dstore.errors import ConnectionLost, ProtocolViolation
from dstore.limits import KIB, NOISE_PLAINTEXT_BYTES_MAX, RAW_READ_BYTES
from dstore.network.noise_handshake import Handshakes, Shaken
from dstore.network.tcp import TcpConnection

NOISE_PROTOCOL: Final = "/noise"

_TAG_BYTES: Final = 16
_LENGTH_BYTES: Final = 2
_OVERHEAD_BYTES: Final = _LENGTH_BYTES + _TAG_BYTES
# The Noise specification reserves the last nonce; no message may use it.
_NONCE_END: Final = 2**64 - 1
# One write: four full messages, and the small ones before them.  A buffer used again costs a
# third of fresh memory, and being this small, a thousand busy connections may each have one.
_SEAL_BYTES: Final = 4 * (NOISE_PLAINTEXT_BYTES_MAX + _OVERHEAD_BYTES) + KIB
_NONCE = struct.Struct("<4xQ")
_LENGTH = struct.Struct("!H")

# What reading from or writing to a connection under us raises when it breaks.
_BROKEN = (
    ConnectionLost,
    BaseLibp2pError,
    OSError,
    trio.BrokenResourceError,
    trio.ClosedResourceError,
)
# What the handshake raises, beside HandshakeFailure, at bytes that are no handshake.
_MALFORMED = (
    BaseLibp2pError,
    DecodeError,
    OSError,
    ProtocolViolation,
)


class SessionLost(ConnectionLost, ConnectionClosedError):  # type: ignore[misc] # libp2p is untyped
    """The connection under the session ended or broke."""


class SessionViolation(ProtocolViolation, DecryptionFailedException):  # type: ignore[misc] # same
    """The peer sent what is no Noise message, or one that fails its authentication."""


class NoiseSession(BaseSession):  # type: ignore[misc] # libp2p is untyped
    """A secured connection.

    One task may read while another writes; two may not do the same.  A cancelled read loses
    nothing; a cancelled write leaves half a message behind and the session good only for
    `close`, so the muxer writes from a task of its own.
    """

    def __init__(
        self,
        own: ID,
        key_pair: KeyPair,
        shaken: Shaken,
        connection: IRawConnection,
        *,
        is_initiator: bool,
    ) -> None:
        """`shaken` is what the handshake over `connection` ended in, `own` whose the key is."""
        super().__init__(
            local_peer=own,
            local_private_key=key_pair.private_key,
            remote_peer=shaken.peer,
            remote_permanent_pubkey=shaken.key,
            is_initiator=is_initiator,
        )
        self.muxer = shaken.muxer  # that the handshake agreed on, if it did
        self.said, self.told = shaken.said, shaken.told  # identify messages in it, if any
        self._connection = connection
        self._send_cipher = ChaCha20Poly1305(shaken.keys.sending)
        self._receive_cipher = ChaCha20Poly1305(shaken.keys.receiving)
        self._send_nonce = self._receive_nonce = 0
        self._sealed = bytearray()
        self._cut = bytearray()  # the beginning of a message, with its length before it
        self._plain = b""  # decrypted, not yet read by `read`

    @property
    def heard_at(self) -> float | None:
        """The instant at which bytes last came, be they part of a message only; None where
        the connection under the session does not tell."""
        raw = self._connection
        return raw.heard_at if isinstance(raw, TcpConnection) else None

    # --- As libp2p wants it, for the negotiation of the muxer ---------------------------

    def get_remote_address(self) -> tuple[str, int] | None:
        address: tuple[str, int] | None = self._connection.get_remote_address()
        return address

    def get_transport_addresses(self) -> list[Multiaddr]:
        addresses: list[Multiaddr] = self._connection.get_transport_addresses()
        return addresses

    def get_connection_type(self) -> ConnectionType:
        return self._connection.get_connection_type()

    async def read(self, n: int | None = None) -> bytes:
        """Exactly `n` bytes, or what there is, at least one, for None.
        Raises SessionLost where the connection ends first."""
        parts: list[bytes] = []
        missing = n
        while missing is None or missing > 0:
            if not self._plain:
                self._plain = b"".join(await self.read_messages())
            part = self._plain[:missing]
            self._plain = self._plain[len(part) :]
            parts.append(part)
            if missing is None:
                break
            missing -= len(part)
        return b"".join(parts)

    async def write(self, data: bytes) -> None:
        """Send `data`, cut into messages."""
        view = memoryview(data)
        await self.write_frames(
            [
                bytes(view[start : start + NOISE_PLAINTEXT_BYTES_MAX])
                for start in range(0, len(view), NOISE_PLAINTEXT_BYTES_MAX)
            ]
        )

    async def close(self) -> None:
        """Close the connection; raises nothing when it is broken already."""
        try:
            await self._connection.close()
        except _BROKEN:
            pass

    # --- As the muxer wants it ----------------------------------------------------------

    async def read_messages(self) -> list[bytes]:
        """The plaintext of the messages that have come, at least one, none of them empty.
        Raises SessionLost at the end, SessionViolation at bytes that do not decrypt."""
        if self._plain:
            plain, self._plain = self._plain, b""
            return [plain]
        while True:
            try:
                data = await self._connection.read(RAW_READ_BYTES)
            except _BROKEN as error:
                raise SessionLost(f"the connection broke: {error}") from error
            if not data:
                raise SessionLost("the peer closed the connection")
            messages = self._open(data)
            if messages:
                return messages

    async def write_frames(self, frames: Sequence[bytes | memoryview]) -> None:
        """Send `frames`, none longer than NOISE_PLAINTEXT_BYTES_MAX, in order; short ones
        share messages.  Raises SessionLost, also when the nonces are used up."""
        await _send_all(self._connection.write, self._seal(frames))

    async def flush(self) -> None:
        """Send what the connection has gathered.  Raises SessionLost."""
        if isinstance(self._connection, TcpConnection):
            try:
                await self._connection.flush()
            except _BROKEN as error:
                raise SessionLost(f"the connection broke: {error}") from error

    def rest(self) -> None:
        """Give back the write buffer: nothing waits to be sent."""
        self._sealed = bytearray()

    def _open(self, data: bytes) -> list[bytes]:
        """The plaintext of the messages that are complete with `data`."""
        messages: list[bytes] = []
        position, end, cut = 0, len(data), self._cut
        while cut and position < end:
            # What was cut is put together by itself: nothing else of `data` is copied.
            missing = _missing_bytes(cut)
            cut += data[position : position + missing]
            position = min(position + missing, end)
            if not _missing_bytes(cut):
                self._decrypt(cut, messages)
                cut = bytearray()
        with memoryview(data) as view:
            while end - position >= _LENGTH_BYTES:
                stop = position + _LENGTH_BYTES + (data[position] << 8 | data[position + 1])
                if stop > end:
                    break
                self._decrypt(view[position:stop], messages)
                position = stop
        self._cut = cut or bytearray(data[position:])
        return messages

    def _decrypt(self, message: bytearray | memoryview, messages: list[bytes]) -> None:
        """Add the plaintext of one message, with its length before it, unless it is empty."""
        if len(message) < _OVERHEAD_BYTES:
            raise SessionViolation(f"noise: a message of {len(message) - _LENGTH_BYTES} bytes")
        if self._receive_nonce >= _NONCE_END:
            raise SessionLost("noise: the peer has used up its nonces")
        nonce = _NONCE.pack(self._receive_nonce)
        try:
            with memoryview(message) as view:
                plain = self._receive_cipher.decrypt(nonce, view[_LENGTH_BYTES:], None)
        except InvalidTag:
            raise SessionViolation("noise: a message is not authentic") from None
        self._receive_nonce += 1
        if plain:
            messages.append(plain)

    def _seal(self, frames: Sequence[bytes | memoryview]) -> Iterator[memoryview]:
        """The messages for `frames`, some at a time in one buffer, which is used again."""
        filled = 0
        for message in _pack(frames):
            size = _OVERHEAD_BYTES + len(message)
            if filled + size > len(self._sealed):
                if filled:
                    yield memoryview(self._sealed)[:filled]
                    filled = 0
                if size > len(self._sealed):
                    wanted = sum(len(frame) + _OVERHEAD_BYTES for frame in frames)
                    self._sealed = bytearray(max(size, min(wanted, _SEAL_BYTES)))
            if self._send_nonce >= _NONCE_END:
                raise SessionLost("noise: the nonces of this connection are used up")
            with memoryview(self._sealed) as buffer:
                _LENGTH.pack_into(buffer, filled, len(message) + _TAG_BYTES)
                target = buffer[filled + _LENGTH_BYTES : filled + size]
                self._send_cipher.encrypt_into(_NONCE.pack(self._send_nonce), message, None, target)
            self._send_nonce += 1
            filled += size
        if filled:
            yield memoryview(self._sealed)[:filled]


def _missing_bytes(cut: bytearray) -> int:
    """What a message that begins like this still lacks, as far as that can be told."""
    if len(cut) < _LENGTH_BYTES:
        return _LENGTH_BYTES - len(cut)
    return _LENGTH_BYTES + (cut[0] << 8 | cut[1]) - len(cut)


def _pack(frames: Sequence[bytes | memoryview]) -> Iterator[bytes | memoryview]:
    """Whole frames joined to messages of at most NOISE_PLAINTEXT_BYTES_MAX."""
    group: list[bytes | memoryview] = []
    size = 0
    for frame in frames:
        if group and size + len(frame) > NOISE_PLAINTEXT_BYTES_MAX:
            yield group[0] if len(group) == 1 else b"".join(group)
            group, size = [], 0
        group.append(frame)
        size += len(frame)
    if group:
        yield group[0] if len(group) == 1 else b"".join(group)


async def _send_all(
    write: Callable[[memoryview], Awaitable[None]], pieces: Iterator[memoryview]
) -> None:
    for piece in pieces:
        try:
            await write(piece)
        except _BROKEN as error:
            raise SessionLost(f"the connection broke: {error}") from error


class NoiseTransport:
    """Secures the connections of the node whose identity is `key_pair`.  The static Noise key is
    a fresh one for the life of this object.  `muxers`, and the identify message that `describe`
    makes for the peer of a connection, are told in the handshake."""

    def __init__(
        self,
        key_pair: KeyPair,
        muxers: Sequence[str] = (),
        describe: Callable[[IRawConnection], bytes] = lambda _: b"",
    ) -> None:
        self.local_peer = ID.from_pubkey(key_pair.public_key)
        self._key_pair = key_pair
        self._handshakes = Handshakes(key_pair, muxers, describe)

    async def secure_inbound(self, conn: IRawConnection) -> NoiseSession:
        """Raises HandshakeFailure.  The caller sets the deadline."""
        shaken = await _valid(self._handshakes.respond(conn))
        return NoiseSession(self.local_peer, self._key_pair, shaken, conn, is_initiator=False)

    async def secure_outbound(
        self,
        conn: IRawConnection,
        peer_id: ID,
        agreed: Callable[[], Awaitable[object]] | None = None,
    ) -> NoiseSession:
        """`agreed`, where given, reads what comes before the peer's first message.
        Raises HandshakeFailure; what `agreed` raises.  The caller sets the deadline."""
        shaken = await _valid(self._handshakes.initiate(conn, peer_id, agreed))
        return NoiseSession(self.local_peer, self._key_pair, shaken, conn, is_initiator=True)


async def _valid(handshake: Awaitable[Shaken]) -> Shaken:
    try:
        return await handshake
    except HandshakeFailure:
        raise
    except _MALFORMED as error:
        raise HandshakeFailure(f"noise: no valid handshake: {error!r}") from error
