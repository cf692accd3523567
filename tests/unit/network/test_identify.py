"""Identify messages: round trip, agreement with libp2p, and lies."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dstore.core.endpoint import Endpoint, to_binary
from dstore.core.peerid import PeerId
from dstore.errors import ProtocolViolation
from dstore.limits import ADDRESSES_PER_PEER_MAX, IDENTIFY_PROTOCOLS_MAX
from dstore.network.identify import describe, read
from dstore.network.identity import peer_id_of

SEED = bytes(range(32))
PEER = peer_id_of(SEED)
STRANGER = bytes(32)
REMOTE = Endpoint("ip4", "10.0.0.9", 1234)
NEAR = Endpoint("ip4", "127.0.0.1", 1234)
ADDRESSES = ("/ip4/10.0.0.9/tcp/4001", "/dns4/node.example/tcp/4001")


def describe_with(seed: bytes = SEED, **changes: Any) -> bytes:
    defaults: dict[str, Any] = {
        "agent": "dstore/test",
        "protocols": ["/b/1", "/a/1"],
        "addresses": ADDRESSES,
        "observed": REMOTE,
        "sequence": 7,
    }
    return describe(seed, **(defaults | changes))


def parsed(message: bytes) -> Any:
    from libp2p.identity.identify.pb.identify_pb2 import Identify

    return Identify.FromString(message)


def test_round_trip() -> None:
    identity = read(describe_with(), PEER, REMOTE)
    assert identity.agent == "dstore/test"
    assert identity.protocols == {"/a/1", "/b/1"}
    assert identity.addresses == ADDRESSES
    assert identity.observed == str(REMOTE)


def test_libp2p_takes_our_signed_record() -> None:
    from libp2p.peer.envelope import consume_envelope

    message = parsed(describe_with())
    envelope, record = consume_envelope(message.signedPeerRecord, "libp2p-peer-record")
    assert record.peer_id.to_bytes() == PEER.binary
    assert record.seq == 7
    assert [str(address) for address in record.addrs] == list(ADDRESSES)
    assert envelope.public_key.to_bytes() == PEER.ed25519


def test_the_signed_addresses_count_not_the_unsigned_ones() -> None:
    message = parsed(describe_with())
    message.listen_addrs.append(to_binary("/ip4/10.6.6.6/tcp/1"))
    assert read(message.SerializeToString(), PEER, REMOTE).addresses == ADDRESSES
    message.ClearField("signedPeerRecord")
    assert "/ip4/10.6.6.6/tcp/1" in read(message.SerializeToString(), PEER, REMOTE).addresses


def test_records_of_and_by_somebody_else_are_refused() -> None:
    foreign = parsed(describe_with(STRANGER))
    mine = parsed(describe_with())
    # Somebody else's message as a whole, his key, his record, his signature.
    with pytest.raises(ProtocolViolation):
        read(foreign.SerializeToString(), PEER, REMOTE)
    for field in ("public_key", "signedPeerRecord"):
        mixed = parsed(describe_with())
        setattr(mixed, field, getattr(foreign, field))
        with pytest.raises(ProtocolViolation):
            read(mixed.SerializeToString(), PEER, REMOTE)
    flipped = bytearray(mine.signedPeerRecord)
    flipped[-1] ^= 1
    mine.signedPeerRecord = bytes(flipped)
    with pytest.raises(ProtocolViolation, match="wrong signature"):
        read(mine.SerializeToString(), PEER, REMOTE)


def test_a_record_for_somebody_else_with_our_own_signature_is_refused() -> None:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from libp2p.peer.pb.crypto_pb2 import KeyType, PublicKey
    from libp2p.peer.pb.envelope_pb2 import Envelope
    from libp2p.peer.pb.peer_record_pb2 import PeerRecord

    payload = PeerRecord(peer_id=peer_id_of(STRANGER).binary, seq=1).SerializeToString()
    signed = b"\x12libp2p-peer-record\x02\x03\x01" + bytes([len(payload)]) + payload
    message = parsed(describe_with())
    message.signedPeerRecord = Envelope(
        public_key=PublicKey(Type=KeyType.Ed25519, Data=PEER.ed25519),
        payload_type=b"\x03\x01",
        payload=payload,
        signature=Ed25519PrivateKey.from_private_bytes(SEED).sign(signed),
    ).SerializeToString()
    with pytest.raises(ProtocolViolation, match="somebody else's peer record"):
        read(message.SerializeToString(), PEER, REMOTE)


def test_thousands_of_protocols_are_refused() -> None:
    many = [f"/p/{n}" for n in range(IDENTIFY_PROTOCOLS_MAX + 1)]
    with pytest.raises(ProtocolViolation, match="257 protocols"):
        read(describe_with(protocols=many), PEER, REMOTE)


def test_what_is_no_address_is_not_read_without_end() -> None:
    message = parsed(describe_with())
    message.ClearField("signedPeerRecord")
    good = to_binary("/ip4/10.0.0.1/tcp/1")
    for junk, found in ((IDENTIFY_PROTOCOLS_MAX - 1, 1), (IDENTIFY_PROTOCOLS_MAX, 0)):
        message.ClearField("listen_addrs")
        message.listen_addrs.extend([b"\x04"] * junk + [good])
        assert len(read(message.SerializeToString(), PEER, REMOTE).addresses) == found


def test_addresses_are_capped_and_names_cut() -> None:
    message = parsed(describe_with(agent="evil\x1b[2J" + "a" * 9_999))
    message.ClearField("signedPeerRecord")
    message.listen_addrs.extend(to_binary(f"/ip4/10.0.0.{n}/tcp/1") for n in range(200))
    message.protocols.append("/" + "x" * 300)
    identity = read(message.SerializeToString(), PEER, REMOTE)
    assert len(identity.addresses) == ADDRESSES_PER_PEER_MAX
    assert len(identity.agent) == 256
    assert "\x1b" not in identity.agent
    assert all(len(protocol) < 300 for protocol in identity.protocols)


def test_a_peer_elsewhere_cannot_point_to_our_loopback() -> None:
    message = describe_with(addresses=("/ip4/127.0.0.1/tcp/22", *ADDRESSES))
    assert read(message, PEER, REMOTE).addresses == ADDRESSES
    assert "/ip4/127.0.0.1/tcp/22" in read(message, PEER, NEAR).addresses


def test_a_peer_without_an_inlined_key_is_taken_without_its_record() -> None:
    rsa = PeerId(b"\x12\x20" + bytes(32))
    assert read(describe_with(), rsa, REMOTE).addresses == ADDRESSES


@given(st.binary(max_size=300))
def test_any_bytes_are_an_identity_or_a_violation(data: bytes) -> None:
    try:
        identity = read(data, PEER, REMOTE)
    except ProtocolViolation:
        return
    assert len(identity.protocols) <= IDENTIFY_PROTOCOLS_MAX


@given(st.data())
def test_any_flipped_byte_is_an_identity_or_a_violation(data: st.DataObject) -> None:
    message = bytearray(describe_with())
    message[data.draw(st.integers(0, len(message) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        identity = read(bytes(message), PEER, REMOTE)
    except ProtocolViolation:
        return
    # Whatever else was changed, the addresses are signed.
    assert set(identity.addresses) <= set(ADDRESSES)
