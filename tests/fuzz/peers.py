"""Fuzz targets: what peers say of themselves and of others: DHT messages, identify, addresses."""

from __future__ import annotations

from collections.abc import Iterator

from libp2p.identity.identify.pb.identify_pb2 import Identify
from libp2p.peer.pb.crypto_pb2 import KeyType, PublicKey
from libp2p.peer.pb.envelope_pb2 import Envelope
from libp2p.peer.pb.peer_record_pb2 import PeerRecord

from dstore.core.cid import encode_varint
from dstore.core.endpoint import Endpoint, endpoint_of_binary, parse_endpoint, to_binary
from dstore.core.envelope import SigningKey
from dstore.core.kad_messages import (
    KadMessage,
    KadPeer,
    MessageType,
    decode_message,
    encode_message,
)
from dstore.core.peerid import PeerId
from dstore.errors import ProtocolViolation
from dstore.limits import (
    ADDRESSES_PER_PEER_MAX,
    IDENTIFY_PROTOCOLS_MAX,
    KAD_ADDRESSES_PER_PEER_MAX,
    KAD_PEERS_PER_REPLY_MAX,
    PROTOCOL_CHARS_MAX,
)
from dstore.network.addresses import dialable, split_peer
from dstore.network.identify import describe, read
from tests.fuzz.target import Target

_KEY = SigningKey.from_seed(bytes(range(32)))
_PEER = _KEY.peer_id
_RSA_PEER = PeerId(b"\x12\x20" + bytes(32))
_REMOTE = Endpoint("ip4", "192.0.2.1", 4001)
_ADDRESSES = ("/ip4/192.0.2.7/tcp/4001", "/ip6/2001:db8::1/tcp/1", "/dns4/a.example/tcp/443")
_DOMAIN, _TYPE = b"libp2p-peer-record", b"\x03\x01"


def kad(data: bytes) -> None:
    """A DHT message keeps its meaning; lists are capped, addresses have a binary form."""
    try:
        message = decode_message(data)
    except ProtocolViolation:
        return
    for peers in (message.closer, message.providers):
        assert len(peers) <= KAD_PEERS_PER_REPLY_MAX
        assert len({one.peer for one in peers}) == len(peers)
        assert all(len(one.addresses) <= KAD_ADDRESSES_PER_PEER_MAX for one in peers)
        for one in peers:
            dialable(one.addresses, one.peer)
    assert decode_message(encode_message(message)) == message


def identify(data: bytes) -> None:
    """What is taken from an identify message is capped, printable and dialable."""
    for peer in (_PEER, _RSA_PEER):
        try:
            found = read(data, peer, _REMOTE)
        except ProtocolViolation:
            continue
        assert found.agent.isprintable()
        assert len(found.agent) <= PROTOCOL_CHARS_MAX
        assert len(found.protocols) <= IDENTIFY_PROTOCOLS_MAX
        assert all(len(name) <= PROTOCOL_CHARS_MAX for name in found.protocols)
        assert len(found.addresses) <= ADDRESSES_PER_PEER_MAX
        for address in (*found.addresses, *filter(None, [found.observed])):
            assert parse_endpoint(address).dialable
            assert str(endpoint_of_binary(to_binary(address))) == address


def peer_record(data: bytes) -> None:
    """As `identify`, the input being a peer record that its peer really signed."""
    signed = b"".join(encode_varint(len(part)) + part for part in (_DOMAIN, _TYPE, data))
    envelope = Envelope(
        public_key=PublicKey(Type=KeyType.Ed25519, Data=_KEY.public),
        payload_type=_TYPE,
        payload=data,
        signature=_KEY.sign(signed),
    )
    identify(Identify(signedPeerRecord=envelope.SerializeToString()).SerializeToString())


def addresses(data: bytes) -> None:
    """Every address has one text and one binary form, and the text is fit to be shown."""
    try:
        text = str(endpoint_of_binary(data))
    except ValueError:
        pass
    else:
        assert str(endpoint_of_binary(to_binary(text))) == text
    text = data.decode("utf-8", "surrogateescape")
    try:
        transport, _ = split_peer(text)
    except ValueError:
        assert dialable([text]) == []
        return
    assert transport.isascii()
    assert transport.isprintable()
    assert str(parse_endpoint(transport)) == transport
    assert str(endpoint_of_binary(to_binary(transport))) == transport


def kad_messages() -> Iterator[bytes]:
    peers = (
        KadPeer(_PEER, _ADDRESSES, connected=True),
        KadPeer(_RSA_PEER, ("/ip4/192.0.2.1/udp/4001/quic-v1",)),
        KadPeer(PeerId.of_ed25519(b"y" * 32)),
    )
    for kind in MessageType:
        yield encode_message(KadMessage(kind, b"key", peers[:2], peers[1:]))
    yield encode_message(KadMessage(MessageType.PING))
    # Messages end to end are one with the lists of both: more peers than are taken.
    many = [KadPeer(PeerId.of_ed25519(bytes((number,)) * 32)) for number in range(24)]
    yield b"".join(
        encode_message(KadMessage(MessageType.FIND_NODE, b"k", tuple(part)))
        for part in (many[:12], many[12:])
    )


def identify_messages() -> Iterator[bytes]:
    yield describe(
        _KEY.seed,
        agent="dstore/0.1.0",
        protocols=["/ipfs/id/1.0.0", "/dstore/fragments/1.0.0"],
        addresses=_ADDRESSES,
        observed=_REMOTE,
        sequence=7,
    )
    yield Identify(
        agent_version="x", listen_addrs=[to_binary(_ADDRESSES[0])], protocols=["/a"]
    ).SerializeToString()


def peer_records() -> Iterator[bytes]:
    listed = [PeerRecord.AddressInfo(multiaddr=to_binary(one)) for one in _ADDRESSES]
    yield PeerRecord(peer_id=_PEER.binary, seq=1, addresses=listed).SerializeToString()


def address_forms() -> Iterator[bytes]:
    for one in _ADDRESSES:
        yield one.encode()
        yield to_binary(one)
    yield f"{_ADDRESSES[0]}/p2p/{_PEER}".encode()
    yield to_binary(_ADDRESSES[0]) + encode_varint(421) + b"\x26" + _PEER.binary
    yield b"/dns/localhost./tcp/80"
    yield b"/ip6/fe80::1%eth0/tcp/1"


TARGETS = {
    "kad": Target(kad, kad_messages, protobuf=True),
    "identify": Target(identify, identify_messages, protobuf=True),
    "peer-record": Target(peer_record, peer_records, protobuf=True),
    "addresses": Target(addresses, address_forms, bytes_max=400),
}
