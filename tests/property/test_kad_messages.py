"""DHT messages: round trips, what is left out, what is refused."""

from __future__ import annotations

import hashlib
from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from multiaddr import Multiaddr

from dstore.core.kad_messages import (
    KadMessage,
    KadPeer,
    MessageType,
    address_to_bytes,
    decode_message,
    encode_message,
)
from dstore.core.peerid import PeerId
from dstore.core.proto import kad_pb2
from dstore.errors import ProtocolViolation
from dstore.limits import (
    KAD_ADDRESSES_PER_PEER_MAX,
    KAD_KEY_BYTES_MAX,
    KAD_MESSAGE_BYTES_MAX,
    KAD_PEERS_PER_REPLY_MAX,
)

PEERS = [PeerId.of_ed25519(hashlib.sha256(bytes([n])).digest()) for n in range(60)]
ADDRESSES = (
    "/ip4/127.0.0.1/tcp/4001",
    "/ip6/::1/tcp/4001",
    "/dns4/node.example/tcp/443/ws",
    "/ip4/10.0.0.1/udp/4001/quic-v1",
)
LONG_NAME = "/dns4/" + ".".join(["a" * 50] * 4)

kad_peers = st.builds(
    KadPeer,
    st.sampled_from(PEERS),
    st.lists(st.sampled_from(ADDRESSES), unique=True).map(tuple),
    st.booleans(),
)
peer_lists = st.lists(
    kad_peers, max_size=KAD_PEERS_PER_REPLY_MAX, unique_by=lambda each: each.peer
).map(tuple)
messages = st.builds(
    KadMessage,
    st.sampled_from(MessageType),
    st.binary(max_size=KAD_KEY_BYTES_MAX),
    peer_lists,
    peer_lists,
)


@given(messages)
def test_round_trip(message: KadMessage) -> None:
    assert decode_message(encode_message(message)) == message


def test_known_bytes() -> None:
    peer = PeerId.parse("12D3KooWLU2znyJMtDiHArqAGbZn8CgUGp92kxDBtefftEEaHSZS")
    message = KadMessage(
        MessageType.ADD_PROVIDER, b"\x12\x20", (), (KadPeer(peer, ("/ip4/127.0.0.1/tcp/4001",)),)
    )
    # Field 1 type, 2 key, 9 provider (1 id, 2 address), as the specification numbers them.
    assert encode_message(message).hex() == (
        "0802" + "12021220" + "4a32" + "0a26" + peer.binary.hex() + "1208047f000001060fa1"
    )


@given(st.binary(max_size=400))
@example(b"\x42\x80\x80\x80\x80\x08")
@example(b"\x12\xff\xff\xff\xff\xff\xff\xff\xff\x7f")
def test_any_bytes_decode_or_are_refused(data: bytes) -> None:
    try:
        message = decode_message(data)
    except ProtocolViolation:
        return
    assert len(message.key) <= KAD_KEY_BYTES_MAX


@given(st.lists(st.binary(max_size=60), max_size=30))
@example([b"\x04", b")\x00", b"\x04\x7f\x00\x00\x01\x06"])  # truncated
def test_any_addresses_are_taken_or_left_out(addresses: list[bytes]) -> None:
    raw = kad_pb2.Message(
        type=kad_pb2.Message.FIND_NODE,
        closer_peers=[kad_pb2.Message.Peer(id=PEERS[0].binary, addrs=addresses)],
    )
    (peer,) = decode_message(raw.SerializeToString()).closer
    assert len(peer.addresses) <= KAD_ADDRESSES_PER_PEER_MAX
    for address in peer.addresses:
        assert address_to_bytes(address) in addresses


def test_too_large_a_message_or_key_is_refused() -> None:
    with pytest.raises(ProtocolViolation, match="at most"):
        decode_message(bytes(KAD_MESSAGE_BYTES_MAX + 1))
    key = bytes(KAD_KEY_BYTES_MAX + 1)
    with pytest.raises(ProtocolViolation, match="key of 129 bytes"):
        decode_message(kad_pb2.Message(key=key).SerializeToString())
    with pytest.raises(ValueError, match="key of 129 bytes"):
        encode_message(KadMessage(MessageType.FIND_NODE, key))


def test_an_unknown_type_is_refused() -> None:
    with pytest.raises(ProtocolViolation, match="malformed"):
        decode_message(b"\x08\x06")


def test_unknown_fields_are_skipped() -> None:
    # Cluster level (10), and the signed records some implementations add.
    data = encode_message(KadMessage(MessageType.PING)) + b"\x50\x07\x5a\x03abc"
    assert decode_message(data) == KadMessage(MessageType.PING)


def test_lists_are_cut_at_their_limits() -> None:
    address = address_to_bytes(ADDRESSES[0])
    assert address is not None
    raw = kad_pb2.Message(
        type=kad_pb2.Message.GET_PROVIDERS,
        provider_peers=[kad_pb2.Message.Peer(id=peer.binary) for peer in PEERS],
        closer_peers=[
            kad_pb2.Message.Peer(
                id=PEERS[0].binary,
                addrs=[bytes(Multiaddr(f"/ip4/1.2.3.4/tcp/{n}").to_bytes()) for n in range(1, 99)],
            )
        ],
    )
    message = decode_message(raw.SerializeToString())
    assert [each.peer for each in message.providers] == PEERS[:KAD_PEERS_PER_REPLY_MAX]
    assert len(message.closer[0].addresses) == KAD_ADDRESSES_PER_PEER_MAX


def test_what_makes_no_sense_is_left_out_alone() -> None:
    own, other = PEERS[0], PEERS[1]
    addresses = [
        b"\xff\xff\xff",
        b"",
        bytes(Multiaddr(f"/ip4/1.2.3.4/tcp/1{LONG_NAME}{LONG_NAME}").to_bytes()),
        bytes(Multiaddr(f"/ip4/1.2.3.4/tcp/1/p2p/{own}").to_bytes()),
        bytes(Multiaddr(f"/p2p/{own}").to_bytes()),
        bytes(Multiaddr("/ip4/1.2.3.4/tcp/1").to_bytes()),
    ]
    raw = kad_pb2.Message(
        type=kad_pb2.Message.FIND_NODE,
        closer_peers=[
            kad_pb2.Message.Peer(id=b"nobody", addrs=addresses),
            kad_pb2.Message.Peer(id=own.binary, addrs=addresses),
            kad_pb2.Message.Peer(id=own.binary),
            kad_pb2.Message.Peer(id=other.binary),
        ],
    )
    message = decode_message(raw.SerializeToString())
    assert message.closer == (KadPeer(own, ("/ip4/1.2.3.4/tcp/1",)), KadPeer(other))


def test_a_reply_fits_one_message_whatever_it_holds() -> None:
    long = f"{LONG_NAME}/tcp/1"
    peers = tuple(KadPeer(peer, tuple(f"{long}{n}" for n in range(16))) for peer in PEERS[:20])
    data = encode_message(KadMessage(MessageType.GET_PROVIDERS, b"k", peers, peers))
    assert len(data) <= KAD_MESSAGE_BYTES_MAX
    message = decode_message(data)
    assert message.closer == peers[: len(message.closer)]
    assert message.providers == peers[: len(message.providers)]
    assert abs(len(message.closer) - len(message.providers)) <= 1


@given(st.ip_addresses(), st.integers(0, 65_535))
def test_tcp_addresses_have_the_form_that_the_multiaddr_library_gives_them(
    ip: IPv4Address | IPv6Address, port: int
) -> None:
    text = f"/ip{ip.version}/{ip}/tcp/{port}"
    assert address_to_bytes(text) == bytes(Multiaddr(text).to_bytes())


def test_an_address_with_no_binary_form_is_left_out() -> None:
    assert address_to_bytes("not an address") is None
    assert address_to_bytes("/ip4/1.2.3.4/tcp/99999") is None
    message = KadMessage(MessageType.FIND_NODE, b"k", (KadPeer(PEERS[0], ("nonsense",)),))
    assert decode_message(encode_message(message)).closer == (KadPeer(PEERS[0]),)
