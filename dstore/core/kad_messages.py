"""The message of the DHT protocol: from bytes to values and back, checked.

What is too large for a message as a whole is refused; single peers and addresses that make
no sense are left out, since other implementations put much into an address list.  Framing
is the stream's business.  Specification: libp2p kad-dht, "RPC messages".
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache

from google.protobuf.message import DecodeError
from multiaddr import Multiaddr
from multiaddr.exceptions import Error as MultiaddrError

from dstore.core.endpoint import endpoint_of_binary, to_binary
from dstore.core.peerid import PeerId
from dstore.core.proto import kad_pb2
from dstore.errors import InvalidCid, ProtocolViolation
from dstore.limits import (
    KAD_ADDRESS_BYTES_MAX,
    KAD_ADDRESSES_PER_PEER_MAX,
    KAD_KEY_BYTES_MAX,
    KAD_MESSAGE_BYTES_MAX,
    KAD_PEERS_PER_REPLY_MAX,
)


class MessageType(IntEnum):
    """What a message asks or answers."""

    PUT_VALUE = 0
    GET_VALUE = 1
    ADD_PROVIDER = 2
    GET_PROVIDERS = 3
    FIND_NODE = 4
    PING = 5


@dataclass(frozen=True, slots=True)
class KadPeer:
    """A peer in a message.  `addresses` are multiaddrs in text, without the /p2p part;
    `connected` says that the sender has a connection to it."""

    peer: PeerId
    addresses: tuple[str, ...] = ()
    connected: bool = False


@dataclass(frozen=True, slots=True)
class KadMessage:
    """One request or answer; which fields count depends on `type`.  Values (records) are
    not carried: dstore keeps none."""

    type: MessageType
    key: bytes = b""
    closer: tuple[KadPeer, ...] = ()
    providers: tuple[KadPeer, ...] = ()


@lru_cache(maxsize=16_384)
def address_to_bytes(address: str) -> bytes | None:
    """The binary form of a multiaddr; None where it has none or is too long."""
    try:
        binary = to_binary(address)
    except ValueError:
        # Of a transport that is not ours.  The library loads tables of hardware addresses, for
        # 20 ms, with its first IP address.
        try:
            binary = bytes(Multiaddr(address).to_bytes())
        except (MultiaddrError, ValueError, LookupError, TypeError):
            return None
    return binary if 0 < len(binary) <= KAD_ADDRESS_BYTES_MAX else None


@lru_cache(maxsize=16_384)
def _bytes_to_address(binary: bytes) -> str | None:
    try:
        endpoint = endpoint_of_binary(binary)
        if endpoint.binary == binary:
            return str(endpoint)
    except ValueError:
        pass  # of another transport, as with a peer's name behind it
    try:
        text = str(Multiaddr(binary))
    except (MultiaddrError, ValueError, LookupError, TypeError):
        return None
    # The library reads a truncated address as one full of zeros.
    return text if address_to_bytes(text) == binary else None


def _address_of(binary: bytes, peer: PeerId) -> str | None:
    """The text of one address of `peer`, None where it is unknown or leads to another."""
    if not 0 < len(binary) <= KAD_ADDRESS_BYTES_MAX:
        return None
    text = _bytes_to_address(binary)
    if text is None:
        return None
    if "/p2p/" in text:
        text = text.removesuffix(f"/p2p/{peer}")
    return None if not text or text.startswith("/p2p/") else text


# The same peers stand in answer after answer, of one node as of all its neighbours.
@lru_cache(maxsize=1024)
def _encode_peer(peer: KadPeer) -> kad_pb2.Message.Peer:
    addresses = (address_to_bytes(a) for a in peer.addresses[:KAD_ADDRESSES_PER_PEER_MAX])
    return kad_pb2.Message.Peer(
        id=peer.peer.binary,
        addrs=[a for a in addresses if a is not None],
        connection=kad_pb2.Message.CONNECTED if peer.connected else kad_pb2.Message.NOT_CONNECTED,
    )


def _encode_peers(peers: Sequence[KadPeer]) -> list[kad_pb2.Message.Peer]:
    return [_encode_peer(peer) for peer in peers[:KAD_PEERS_PER_REPLY_MAX]]


@lru_cache(maxsize=1024)
def _decode_peer(data: bytes) -> KadPeer | None:
    """The peer of a message in its binary form; None where its id is none."""
    peer = kad_pb2.Message.Peer.FromString(data)
    try:
        peer_id = PeerId(peer.id)
    except InvalidCid:
        return None
    addresses = (_address_of(a, peer_id) for a in peer.addrs[:KAD_ADDRESSES_PER_PEER_MAX])
    known = tuple(dict.fromkeys(a for a in addresses if a is not None))
    return KadPeer(peer_id, known, peer.connection == kad_pb2.Message.CONNECTED)


def _decode_peers(peers: Iterable[kad_pb2.Message.Peer]) -> tuple[KadPeer, ...]:
    decoded: dict[PeerId, KadPeer] = {}
    for peer in peers:
        if len(decoded) == KAD_PEERS_PER_REPLY_MAX:
            break
        known = _decode_peer(peer.SerializeToString())
        if known is not None:
            decoded.setdefault(known.peer, known)
    return tuple(decoded.values())


def encode_message(message: KadMessage) -> bytes:
    """The message without its length prefix.  Peers and addresses above the limits are left
    out, farthest first; raises ValueError for a key above its limit."""
    if len(message.key) > KAD_KEY_BYTES_MAX:
        raise ValueError(f"DHT key of {len(message.key)} bytes; at most {KAD_KEY_BYTES_MAX}")
    closer = _encode_peers(message.closer)
    providers = _encode_peers(message.providers)
    while True:
        data = kad_pb2.Message(
            type=kad_pb2.Message.MessageType.Name(message.type),
            key=message.key,
            closer_peers=closer,
            provider_peers=providers,
        ).SerializeToString()
        if len(data) <= KAD_MESSAGE_BYTES_MAX:
            return data
        # Twice 20 peers with 16 long addresses each are more than a message may hold.
        (closer if len(closer) >= len(providers) else providers).pop()


def decode_message(data: bytes) -> KadMessage:
    """The message in `data` (one frame's payload).  Raises ProtocolViolation where it is
    malformed, too large, of no known type, or has a key above its limit."""
    if len(data) > KAD_MESSAGE_BYTES_MAX:
        raise ProtocolViolation(
            f"DHT message of {len(data)} bytes; at most {KAD_MESSAGE_BYTES_MAX}"
        )
    try:
        raw = kad_pb2.Message.FromString(data)
        kind = MessageType(raw.type)
    except (DecodeError, ValueError) as error:
        raise ProtocolViolation(f"malformed DHT message: {error}") from error
    if len(raw.key) > KAD_KEY_BYTES_MAX:
        raise ProtocolViolation(f"DHT key of {len(raw.key)} bytes; at most {KAD_KEY_BYTES_MAX}")
    return KadMessage(
        kind, raw.key, _decode_peers(raw.closer_peers), _decode_peers(raw.provider_peers)
    )
