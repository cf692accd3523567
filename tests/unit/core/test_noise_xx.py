"""The Noise handshake XX: known answers, the `noise` package at the other end, and every lie."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from hypothesis import given
from hypothesis import strategies as st
from noise.connection import Keypair, NoiseConnection

from dstore.core.noise_xx import DhKey, NoiseXX, TransportKeys
from dstore.errors import ProtocolViolation


def key(first: int) -> DhKey:
    return DhKey(X25519PrivateKey.from_private_bytes(bytes(range(first, first + 32))))


STATICS = key(0x00), key(0x01)
EPHEMERALS = key(0x20), key(0x41)

VECTORS = json.loads((Path(__file__).parents[2] / "vectors" / "noise.json").read_text())


def sides() -> tuple[NoiseXX, NoiseXX]:
    return (
        NoiseXX(STATICS[0], EPHEMERALS[0], initiator=True),
        NoiseXX(STATICS[1], EPHEMERALS[1], initiator=False),
    )


def opened(keys: TransportKeys, message: bytes) -> bytes:
    return ChaCha20Poly1305(keys.receiving).decrypt(bytes(12), message, b"")


@pytest.mark.parametrize("vector", VECTORS["handshakes"])
def test_known_answers(vector: dict[str, list[str]]) -> None:
    hello, answer, end, after = map(bytes.fromhex, vector["payloads"])
    messages = vector["messages"]
    one, other = sides()
    assert one.write_hello(hello).hex() == messages[0]
    assert other.read_hello(bytes.fromhex(messages[0])) == hello
    assert other.write_answer(answer).hex() == messages[1]
    assert one.read_answer(bytes.fromhex(messages[1])) == answer
    assert one.write_end(end).hex() == messages[2]
    assert other.read_end(bytes.fromhex(messages[2])) == end
    assert (one.their_static, other.their_static) == (STATICS[1].public, STATICS[0].public)
    assert one.split() == TransportKeys(other.split().receiving, other.split().sending)
    assert opened(other.split(), bytes.fromhex(messages[3])) == after


class Weak(DhKey):
    """A static key that says to be another."""

    def __init__(self, public: bytes) -> None:
        super().__init__(X25519PrivateKey.generate())
        self.public = public


def package(initiator: bool) -> Any:
    """The side of somebody else's making."""
    noise = NoiseConnection.from_name(b"Noise_XX_25519_ChaChaPoly_SHA256")
    noise.set_keypair_from_private_bytes(Keypair.STATIC, bytes(range(7, 39)))
    (noise.set_as_initiator if initiator else noise.set_as_responder)()
    noise.start_handshake()
    return noise


@given(st.binary(max_size=80), st.binary(max_size=500), st.binary(max_size=500))
def test_the_noise_package_agrees_as_either_side(hello: bytes, answer: bytes, end: bytes) -> None:
    ours, theirs = sides()[0], package(initiator=False)
    assert theirs.read_message(ours.write_hello(hello)) == hello
    assert ours.read_answer(bytes(theirs.write_message(answer))) == answer
    assert theirs.read_message(ours.write_end(end)) == end
    assert opened(ours.split(), bytes(theirs.encrypt(b"said after"))) == b"said after"

    ours, theirs = sides()[1], package(initiator=True)
    assert ours.read_hello(bytes(theirs.write_message(hello))) == hello
    assert theirs.read_message(ours.write_answer(answer)) == answer
    assert ours.read_end(bytes(theirs.write_message(end))) == end
    assert ours.their_static == key(7).public
    assert opened(ours.split(), bytes(theirs.encrypt(b"said after"))) == b"said after"


@given(st.data())
def test_a_message_changed_on_the_way_is_refused(data: st.DataObject) -> None:
    """Wherever the change is, one side stops before it takes the other for anybody."""
    which = data.draw(st.integers(0, 2))

    def sent(number: int, message: bytes) -> bytes:
        if number != which:
            return message
        place = data.draw(st.integers(0, len(message) * 8 - 1))
        changed = bytearray(message)
        changed[place // 8] ^= 1 << place % 8
        return bytes(changed)

    one, other = sides()
    with pytest.raises(ProtocolViolation):
        other.read_hello(sent(0, one.write_hello()))
        one.read_answer(sent(1, other.write_answer(b"who I am")))
        other.read_end(sent(2, one.write_end(b"and I")))


@given(st.data())
def test_a_message_cut_short_is_refused(data: st.DataObject) -> None:
    which = data.draw(st.integers(0, 2))

    def sent(number: int, message: bytes) -> bytes:
        return (
            message[: data.draw(st.integers(0, len(message) - 1))] if number == which else message
        )

    one, other = sides()
    with pytest.raises(ProtocolViolation):
        other.read_hello(sent(0, one.write_hello()))
        one.read_answer(sent(1, other.write_answer(b"who I am")))
        other.read_end(sent(2, one.write_end(b"and I")))


@pytest.mark.parametrize(
    "point", [bytes(32), b"\x01" + bytes(31), bytes([0xEC]) + b"\xff" * 30 + b"\x7f"]
)
def test_a_key_that_makes_every_secret_zero_is_refused(point: bytes) -> None:
    one, other = sides()
    other.read_hello(point)
    with pytest.raises(ProtocolViolation, match="no usable key"):
        other.write_answer(b"")
    one.write_hello()
    with pytest.raises(ProtocolViolation, match="no usable key"):
        one.read_answer(point + bytes(64))

    one, other = NoiseXX(Weak(point), EPHEMERALS[0], initiator=True), sides()[1]
    other.read_hello(one.write_hello())
    one.read_answer(other.write_answer(b""))
    with pytest.raises(ProtocolViolation, match="no usable key"):
        other.read_end(one.write_end(b""))
