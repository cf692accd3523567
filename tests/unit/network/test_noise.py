"""Noise session I/O over memory pipes: framing, interoperability with libp2p's own, faults."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicNumbers
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.keys import KeyPair, KeyType, PublicKey
from libp2p.crypto.x25519 import create_new_key_pair as create_noise_key_pair
from libp2p.exceptions import BaseLibp2pError
from libp2p.peer.id import ID
from libp2p.peer.pb import crypto_pb2
from libp2p.security.exceptions import HandshakeFailure
from libp2p.security.noise.transport import Transport

from dstore.core.noise_xx import DhKey, NoiseXX
from dstore.core.proto.noise_pb2 import NoiseHandshakePayload
from dstore.core.yamux import YamuxConnection
from dstore.core.yamux_frames import HEADER
from dstore.errors import ConnectionLost, ProtocolViolation
from dstore.limits import (
    HANDSHAKE_IDENTIFY_BYTES_MAX,
    MIB,
    NOISE_PLAINTEXT_BYTES_MAX,
    YAMUX_FRAME_BYTES_MAX,
    YAMUX_HEADER_BYTES,
)
from dstore.network.noise import NoiseTransport
from dstore.network.yamux import YamuxSession
from tests.fuzz.noise import KEYS_OF_NOBODY


class Raw:
    """A raw connection in memory that notes what is written."""

    def __init__(self, stream: trio.StapledStream, *, initiator: bool) -> None:
        self.stream = stream
        self.is_initiator = initiator
        self.writes: list[bytes] = []

    async def read(self, n: int | None = None) -> bytes:
        return bytes(await self.stream.receive_some(n))

    async def write(self, data: bytes) -> None:
        self.writes.append(bytes(data))
        await self.stream.send_all(bytes(data))

    async def close(self) -> None:
        await self.stream.aclose()


def raw_pair() -> tuple[Raw, Raw]:
    one, other = trio.testing.memory_stream_pair()
    return Raw(one, initiator=True), Raw(other, initiator=False)


class HugeRsa(PublicKey):  # type: ignore[misc] # libp2p is untyped
    """A public key of so many bits; libp2p's own class would refuse to be it."""

    def __init__(self, bits: int) -> None:
        numbers = RSAPublicNumbers(65_537, (1 << bits - 1) + 1)
        self._der = numbers.public_key().public_bytes(
            Encoding.DER, PublicFormat.SubjectPublicKeyInfo
        )

    def to_bytes(self) -> bytes:
        return self._der

    def get_type(self) -> KeyType:
        return KeyType.RSA

    def verify(self, data: bytes, signature: bytes) -> bool:
        raise NotImplementedError  # it only travels


def ours(*muxers: str, identify: bytes = b"") -> NoiseTransport:
    return NoiseTransport(create_new_key_pair(), muxers, lambda _: identify)


def stock() -> Any:
    return Transport(create_new_key_pair(), create_noise_key_pair().private_key)


async def handshake(one: Any, other: Any) -> tuple[Any, Any, Raw, Raw]:
    a_raw, b_raw = raw_pair()
    sessions: dict[str, Any] = {}

    async def accept() -> None:
        sessions["b"] = await other.secure_inbound(b_raw)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(accept)
        sessions["a"] = await one.secure_outbound(a_raw, other.local_peer)
    a_raw.writes.clear()
    b_raw.writes.clear()
    return sessions["a"], sessions["b"], a_raw, b_raw


def lengths(wire: bytes) -> list[int]:
    """The lengths of the Noise messages in `wire`."""
    found = []
    while wire:
        size = int.from_bytes(wire[:2], "big")
        assert len(wire) >= 2 + size
        found.append(size)
        wire = wire[2 + size :]
    return found


class TestFraming:
    async def test_a_full_frame_fills_whole_messages(self) -> None:
        a, b, raw, _ = await handshake(ours(), ours())
        core = YamuxConnection(initiator=True)
        data = memoryview(random.Random(1).randbytes(YAMUX_FRAME_BYTES_MAX))
        assert core.send(core.open_stream(), data) == len(data)
        frames = core.data_to_send()
        await a.write_frames(frames)
        # The header shares a message with the frame before it, the opening of the stream.
        assert lengths(b"".join(raw.writes)) == [2 * YAMUX_HEADER_BYTES + 16, *[65_535] * 4]
        got = b""
        while len(got) < 2 * YAMUX_HEADER_BYTES + len(data):
            got += b"".join(await b.read_messages())
        assert got == b"".join(frames)

    async def test_small_frames_share_messages_and_writes(self) -> None:
        a, b, raw, _ = await handshake(ours(), ours())
        frames = [bytes([i]) * (i * 37) for i in range(1, 120)]
        await a.write_frames(frames)
        assert len(raw.writes) < 3
        sizes = lengths(b"".join(raw.writes))
        assert sum(sizes) - 16 * len(sizes) == sum(map(len, frames))
        assert len(sizes) <= 1 + sum(map(len, frames)) // (NOISE_PLAINTEXT_BYTES_MAX - 120 * 37)
        got = b""
        while len(got) < sum(map(len, frames)):
            got += b"".join(await b.read_messages())
        assert got == b"".join(frames)

    async def test_the_buffer_is_returned_and_taken_again(self) -> None:
        a, b, _, _ = await handshake(ours(), ours())
        for size in (1, 300_000, 5, 70_000):
            await a.write(bytes([size % 256]) * size)
            a.rest()
            assert await b.read(size) == bytes([size % 256]) * size

    async def test_messages_cut_anywhere_are_put_together(self) -> None:
        a, b, raw, _ = await handshake(ours(), ours())
        raw_b: Raw = b._connection
        await a.write_frames([b"one" * 1000, b"two" * 1000])
        await a.write(b"three")
        wire = b"".join(raw.writes)
        await raw_b.stream.receive_some(len(wire))
        for start in range(0, len(wire), 7):
            await raw.stream.send_all(wire[start : start + 7])
            await trio.lowlevel.checkpoint()
        assert await b.read(6005) == b"one" * 1000 + b"two" * 1000 + b"three"

    @pytest.mark.parametrize("size", [1, 2, 3, 17, 65_536, 65_537, 65_538, 100_000, 200_000])
    async def test_reads_that_end_in_a_message_lose_nothing_of_it(self, size: int) -> None:
        a, b, raw, _ = await handshake(ours(), ours())
        frames = [bytes([i]) * n for i, n in enumerate((NOISE_PLAINTEXT_BYTES_MAX, 40_000) * 2)]
        await a.write_frames([*frames, b"end"])
        wire = b"".join(raw.writes)
        got: list[bytes] = []
        for start in range(0, len(wire), size):
            got += b._open(wire[start : start + size])
        assert b"".join(got) == b"".join(frames) + b"end"

    async def test_a_cancelled_read_loses_nothing(self) -> None:
        a, b, _, _ = await handshake(ours(), ours())
        with trio.move_on_after(0):
            await b.read_messages()
        await a.write(b"there")
        with trio.CancelScope() as scope:
            scope.cancel()
            await b.read_messages()
        assert await b.read(5) == b"there"

    async def test_an_empty_message_is_no_end(self) -> None:
        a, b, _, _ = await handshake(stock(), ours())
        await a.write(b"")
        await a.write(b"after")
        assert await b.read_messages() == [b"after"]


class TestInterop:
    """The handshake and the messages are libp2p's."""

    @pytest.mark.parametrize("dialler", [ours, stock])
    @pytest.mark.parametrize("listener", [ours, stock])
    async def test_both_ways_with_the_stock_transport(self, dialler: Any, listener: Any) -> None:
        one, other = dialler(), listener()
        a, b, _, _ = await handshake(one, other)
        assert a.get_remote_peer() == other.local_peer
        assert b.get_remote_peer() == one.local_peer
        assert (a.is_initiator, b.is_initiator) == (True, False)
        data = bytes(range(256)) * 800
        for sender, receiver in ((a, b), (b, a), (a, b)):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(sender.write, data)
                assert await receiver.read(len(data)) == data

    @pytest.mark.parametrize(
        ("of_dialler", "of_listener", "agreed"),
        [
            (("/a", "/b"), ("/b", "/a"), "/a"),
            (("/x", "/b"), ("/a", "/b"), "/b"),
            (("/a",), (), None),
            ((), ("/a",), None),
        ],
    )
    async def test_the_first_muxer_of_the_dialler_that_both_name(
        self, of_dialler: tuple[str, ...], of_listener: tuple[str, ...], agreed: str | None
    ) -> None:
        a, b, _, _ = await handshake(ours(*of_dialler), ours(*of_listener))
        assert (a.muxer, b.muxer) == (agreed, agreed)

    async def test_the_stock_transport_takes_no_notice_of_muxers(self) -> None:
        a, _, _, _ = await handshake(ours("/a"), stock())
        _, b, _, _ = await handshake(stock(), ours("/a"))
        assert (a.muxer, b.muxer) == (None, None)

    @pytest.mark.parametrize("size", [1, HANDSHAKE_IDENTIFY_BYTES_MAX])
    async def test_each_side_hears_who_the_other_is(self, size: int) -> None:
        a, b, _, _ = await handshake(ours(identify=b"a" * size), ours("/y", identify=b"b"))
        assert (a.said, a.told, b.said, b.told) == (b"a" * size, b"b", b"b", b"a" * size)

    async def test_what_is_too_long_for_a_handshake_is_not_said_in_it(self) -> None:
        long = b"a" * (HANDSHAKE_IDENTIFY_BYTES_MAX + 1)
        a, b, _, _ = await handshake(ours(identify=long), ours("/y"))
        assert (a.said, b.told) == (b"", b"")

    @pytest.mark.parametrize("stock_dials", [True, False])
    async def test_the_stock_transport_takes_no_notice_of_who_we_are(
        self, stock_dials: bool
    ) -> None:
        pair = (ours("/y", identify=b"dstore"), stock())
        one, other = reversed(pair) if stock_dials else pair
        a, b, _, _ = await handshake(one, other)
        own = b if stock_dials else a
        assert (own.said, own.told) == (b"dstore", b"")

    async def test_no_muxer_in_common_is_no_connection(self) -> None:
        a_raw, b_raw = raw_pair()
        us, them = ours("/a"), ours("/b")

        async def answer() -> None:
            with pytest.raises(HandshakeFailure):
                await them.secure_inbound(b_raw)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(answer)
            with pytest.raises(HandshakeFailure, match="no muxer of ours"):
                await us.secure_outbound(a_raw, them.local_peer)
            await a_raw.close()

    async def test_what_negotiation_reads_ahead_is_not_lost(self) -> None:
        a, b, _, _ = await handshake(ours(), ours())
        await a.write(b"/yamux/1.0.0" + HEADER.pack(0, 1, 1, 1, 0))
        assert await b.read(12) == b"/yamux/1.0.0"
        assert await b.read_messages() == [HEADER.pack(0, 1, 1, 1, 0)]


class TestFaults:
    async def test_a_flipped_bit_is_a_violation(self) -> None:
        a, b, raw, _ = await handshake(ours(), ours())
        with pytest.raises(ProtocolViolation, match="not authentic"):
            sealed = bytearray(b"".join(bytes(piece) for piece in a._seal([b"secret"])))
            sealed[5] ^= 1
            await raw.stream.send_all(bytes(sealed))
            await b.read_messages()

    async def test_a_replayed_message_is_a_violation(self) -> None:
        a, b, raw, _ = await handshake(ours(), ours())
        await a.write(b"once")
        await raw.stream.send_all(raw.writes[0])
        with pytest.raises(ProtocolViolation, match="not authentic"):
            await b.read(8)

    async def test_a_message_shorter_than_its_tag_is_a_violation(self) -> None:
        _, b, raw, _ = await handshake(ours(), ours())
        await raw.stream.send_all(b"\x00\x0f" + bytes(15))
        with pytest.raises(ProtocolViolation, match="15 bytes"):
            await b.read_messages()

    async def test_the_end_of_the_connection_is_an_error(self) -> None:
        a, b, raw, _ = await handshake(ours(), ours())
        await a.write(b"last")
        await raw.stream.send_all(b"\x00\x20half")
        await a.close()
        assert await b.read(4) == b"last"
        with pytest.raises(ConnectionLost):
            await b.read_messages()
        with pytest.raises(ConnectionLost):
            await b.write(b"x")
        await a.close()

    async def test_used_up_nonces_end_the_session(self) -> None:
        a, b, _, _ = await handshake(ours(), ours())
        a._send_nonce = b._receive_nonce = 2**64 - 2
        await a.write(b"the last one")
        assert await b.read(12) == b"the last one"
        with pytest.raises(ConnectionLost, match="used up"):
            await a.write(b"x")
        # A peer that goes on nevertheless is not believed.
        a._send_nonce = 0
        await a.write(b"x")
        with pytest.raises(ConnectionLost, match="used up"):
            await b.read(1)

    @pytest.mark.parametrize(
        "message",
        [
            b"\x00\x00",
            b"\x00\x01x",
            b"\x00\x20" + bytes(32),
            b"\x00\x30" + b"\xff" * 48,
            b"\xff\xff" + bytes(65_535),
        ],
        ids=["empty", "one byte", "zero key", "no payload", "longest"],
    )
    @pytest.mark.parametrize("inbound", [True, False])
    async def test_a_malformed_handshake_fails(self, message: bytes, inbound: bool) -> None:
        near, far = raw_pair()
        await far.stream.send_all(message)
        await far.stream.send_eof()
        with pytest.raises(HandshakeFailure):
            if inbound:
                await ours().secure_inbound(near)
            else:
                await ours().secure_outbound(near, ID(b"\x12\x20" + bytes(32)))

    @pytest.mark.parametrize("bits", [8_193, 16_384])
    @pytest.mark.parametrize("inbound", [True, False])
    async def test_a_huge_rsa_key_fails(self, bits: int, inbound: bool) -> None:
        private: Any = create_new_key_pair().private_key
        public = HugeRsa(bits)
        private.get_public_key = lambda: public  # which goes into the handshake
        theirs = Transport(KeyPair(private, public), create_noise_key_pair().private_key)
        near, far = raw_pair()

        async def peer() -> None:
            try:
                if inbound:
                    await theirs.secure_outbound(far, us.local_peer)
                else:
                    await theirs.secure_inbound(far)
            except (HandshakeFailure, BaseLibp2pError, trio.BrokenResourceError):
                pass

        us = ours()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(peer)
            with pytest.raises(HandshakeFailure, match="RSA key size"):
                if inbound:
                    await us.secure_inbound(near)
                else:
                    await us.secure_outbound(near, theirs.local_peer)
            await near.close()

    async def test_somebody_else_is_not_let_in(self) -> None:
        a_raw, b_raw = raw_pair()

        async def answer() -> None:
            with pytest.raises((HandshakeFailure, ConnectionLost)):
                await ours().secure_inbound(b_raw)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(answer)
            with pytest.raises(HandshakeFailure):
                await ours().secure_outbound(a_raw, ours().local_peer)
            await a_raw.close()


def serialized(kind: KeyType, data: bytes) -> bytes:
    message: bytes = crypto_pb2.PublicKey(Type=kind.value, Data=data).SerializeToString()
    return message


class TestIdentity:
    """A peer that does the handshake right, and lies about who it is."""

    them = create_new_key_pair(bytes(range(32)))
    name = them.public_key.serialize()

    async def refused(self, key: bytes, signature: bytes, match: str, *, inbound: bool) -> None:
        near, far = raw_pair()
        static, ephemeral = (DhKey(X25519PrivateKey.generate()) for _ in range(2))
        noise = NoiseXX(static, ephemeral, initiator=inbound)
        payload = NoiseHandshakePayload(identity_key=key, identity_sig=signature)
        if signature == b"sign":
            signed = b"noise-libp2p-static-key:" + static.public
            payload.identity_sig = self.them.private_key.sign(signed)
        said = payload.SerializeToString()

        async def send(message: bytes) -> None:
            await far.write(len(message).to_bytes(2, "big") + message)

        async def receive() -> bytes:
            return (await far.read(65_537))[2:]

        async def peer() -> None:
            if inbound:
                await send(noise.write_hello())
                noise.read_answer(await receive())
                await send(noise.write_end(said))
            else:
                noise.read_hello(await receive())
                await send(noise.write_answer(said))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(peer)
            with pytest.raises(HandshakeFailure, match=match):
                if inbound:
                    await ours().secure_inbound(near)
                else:
                    await ours().secure_outbound(near, ID.from_pubkey(self.them.public_key))

    @pytest.mark.parametrize("inbound", [True, False])
    async def test_a_signature_of_another_static_key(self, inbound: bool) -> None:
        other = self.them.private_key.sign(b"noise-libp2p-static-key:" + bytes(32))
        await self.refused(self.name, other, "not signed", inbound=inbound)

    @pytest.mark.parametrize("inbound", [True, False])
    async def test_somebody_else_s_signature(self, inbound: bool) -> None:
        """Of the right static key, by a key of the peer's own, under another's name."""
        victim = create_new_key_pair(bytes(range(1, 33))).public_key.serialize()
        await self.refused(victim, b"sign", "not signed", inbound=inbound)

    @pytest.mark.parametrize("inbound", [True, False])
    @pytest.mark.parametrize(
        ("key", "signature"),
        [
            pytest.param(b"", b"sign", id="no key"),
            pytest.param(name, b"", id="no signature"),
            pytest.param(name, bytes(64), id="a signature of zeros"),
            pytest.param(b"\xff", b"sign", id="no message"),
            pytest.param(serialized(KeyType.ECDSA, bytes(32)), b"sign", id="a kind not spoken"),
            pytest.param(serialized(KeyType.RSA, KEYS_OF_NOBODY[0]), b"sign", id="a prime of 0"),
            pytest.param(serialized(KeyType.RSA, KEYS_OF_NOBODY[1]), b"sign", id="a kind unknown"),
        ],
    )
    async def test_what_is_no_key_or_no_signature(
        self, key: bytes, signature: bytes, inbound: bool
    ) -> None:
        await self.refused(key, signature, "sign", inbound=inbound)


@asynccontextmanager
async def muxed() -> AsyncIterator[tuple[YamuxSession, YamuxSession]]:
    """Two running sessions over Noise."""
    secured = await handshake(ours(), ours())
    a, b = (YamuxSession(one, one.get_remote_peer()) for one in secured[:2])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(a.start)
        nursery.start_soon(b.start)
        yield a, b
        await a.close()
        await b.event_closed.wait()


async def test_streams_over_noise() -> None:
    async with muxed() as (a, b):
        near = await a.open_stream()
        far = await b.accept_stream()
        data = bytes(range(256)) * (5 * MIB // 256)
        got = bytearray()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(near.write, data)
            while len(got) < len(data):
                got += await far.read_some()
        assert got == data


async def test_a_flipped_bit_loses_the_connection_not_the_node() -> None:
    async with muxed() as (a, b):
        near = await a.open_stream()
        await b.accept_stream()
        a.secured_conn._send_nonce += 1
        await near.write(b"out of step")
        await b.event_closed.wait()
        assert b.ending is not None
        assert "not authentic" in b.ending
        with pytest.raises(ConnectionLost):
            await near.read_some()
