"""Identify: what a peer says of itself when a connection opens, and our own answer.

Everything in the message is the peer's claim.  Counts and lengths are capped, the key must
be the connection's, and a signed record for somebody else is refused.  Specification:
libp2p identify, RFC 0002 (signed envelopes), RFC 0003 (peer records).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from google.protobuf.message import DecodeError
from libp2p.identity.identify.pb.identify_pb2 import Identify
from libp2p.peer.pb.crypto_pb2 import KeyType, PublicKey
from libp2p.peer.pb.envelope_pb2 import Envelope
from libp2p.peer.pb.peer_record_pb2 import PeerRecord

from dstore.core.cid import encode_varint
from dstore.core.endpoint import Endpoint, endpoint_of_binary, to_binary
from dstore.core.peerid import PeerId
from dstore.errors import ProtocolViolation
from dstore.limits import (
    ADDRESSES_PER_PEER_MAX,
    IDENTIFY_PROTOCOLS_MAX,
    PROTOCOL_CHARS_MAX,
)

IDENTIFY: Final = "/ipfs/id/1.0.0"
IDENTIFY_PUSH: Final = "/ipfs/id/push/1.0.0"
PROTOCOL_VERSION: Final = "ipfs/0.1.0"
_DOMAIN: Final = b"libp2p-peer-record"
_PAYLOAD_TYPE: Final = b"\x03\x01"
_ED25519: Final = KeyType.Ed25519


@dataclass(frozen=True)
class Identified:
    """What is taken from a peer's identify message."""

    agent: str
    protocols: frozenset[str]
    addresses: tuple[str, ...]
    observed: str | None


def describe(
    seed: bytes,
    *,
    agent: str,
    protocols: Iterable[str],
    addresses: Sequence[str],
    observed: Endpoint,
    sequence: int,
) -> bytes:
    """Our own identify message.  `sequence` grows with every change of the addresses;
    `observed` is the peer's endpoint as we see it."""
    claims = claims_of(agent, tuple(protocols), tuple(addresses))
    return claims + observation(observed) + _proof(seed, tuple(addresses), sequence)


@lru_cache(maxsize=8)  # a node says the same to everybody
def claims_of(agent: str, protocols: tuple[str, ...], addresses: tuple[str, ...]) -> bytes:
    """The part of the message that is the same for every peer.  Within a handshake, which proves
    the key, it says enough: nothing need be signed again."""
    data: bytes = Identify(
        protocol_version=PROTOCOL_VERSION,
        agent_version=agent,
        listen_addrs=_binary(addresses),
        protocols=sorted(protocols),
    ).SerializeToString()
    return data


def observation(observed: Endpoint) -> bytes:
    """The part that tells a peer its endpoint as we see it."""
    data: bytes = Identify(observed_addr=observed.binary).SerializeToString()
    return data


def _binary(addresses: tuple[str, ...]) -> list[bytes]:
    return [to_binary(address) for address in addresses[:ADDRESSES_PER_PEER_MAX]]


@lru_cache(maxsize=8)
def _proof(seed: bytes, addresses: tuple[str, ...], sequence: int) -> bytes:
    """The part with the public key, and the envelope with the signed peer record."""
    private = Ed25519PrivateKey.from_private_bytes(seed)
    public = private.public_key().public_bytes_raw()
    key = PublicKey(Type=_ED25519, Data=public)
    record = PeerRecord(
        peer_id=PeerId.of_ed25519(public).binary,
        seq=sequence,
        addresses=[PeerRecord.AddressInfo(multiaddr=one) for one in _binary(addresses)],
    ).SerializeToString()
    envelope = Envelope(
        public_key=key,
        payload_type=_PAYLOAD_TYPE,
        payload=record,
        signature=private.sign(_signed_bytes(record)),
    )
    data: bytes = Identify(
        public_key=key.SerializeToString(), signedPeerRecord=envelope.SerializeToString()
    ).SerializeToString()
    return data


def read(message: bytes, peer: PeerId, remote: Endpoint) -> Identified:
    """What `message` says of `peer`, whose connection comes from `remote`.
    Raises ProtocolViolation where it is malformed or speaks of somebody else."""
    try:
        parsed = Identify.FromString(message)
        if parsed.public_key and not _is_key_of(parsed.public_key, peer):
            raise ProtocolViolation(f"{peer} identified itself with another peer's key")
        if len(parsed.protocols) > IDENTIFY_PROTOCOLS_MAX:
            raise ProtocolViolation(f"{peer} announced {len(parsed.protocols)} protocols")
        protocols = _protocols(tuple(parsed.protocols))
        announced: Iterable[bytes] = parsed.listen_addrs[:IDENTIFY_PROTOCOLS_MAX]
        if parsed.signedPeerRecord and peer.ed25519 is not None:
            announced = _signed_addresses(parsed.signedPeerRecord, peer, peer.ed25519)
        agent = _text(parsed.agent_version)[:PROTOCOL_CHARS_MAX]
    except (DecodeError, ValueError) as error:
        raise ProtocolViolation(f"malformed identify message from {peer}: {error}") from error
    return Identified(
        agent=_printable(agent),
        protocols=protocols,
        addresses=_usable(announced, remote),
        observed=next(iter(_usable([parsed.observed_addr], remote)), None),
    )


def _usable(announced: Iterable[bytes], remote: Endpoint) -> tuple[str, ...]:
    """The announced addresses that dstore can dial.  A peer elsewhere cannot mean our
    loopback."""
    remote_ip = remote.ip
    near = remote_ip is not None and remote_ip.is_loopback
    found: dict[str, None] = {}
    for data in announced:
        if len(found) == ADDRESSES_PER_PEER_MAX:
            break
        try:
            endpoint = endpoint_of_binary(data)
        except ValueError:
            continue
        ip = endpoint.ip
        if endpoint.dialable and (near or ip is None or not ip.is_loopback):
            found[str(endpoint)] = None
    return tuple(found)


@lru_cache(maxsize=64)  # most peers say the same: one set for all of them
def _protocols(announced: tuple[str | bytes, ...]) -> frozenset[str]:
    return frozenset(name for name in map(_text, announced) if len(name) <= PROTOCOL_CHARS_MAX)


def _printable(text: str) -> str:
    return text if text.isprintable() else "".join(c if c.isprintable() else "?" for c in text)


def _text(value: str | bytes) -> str:
    """protobuf hands over a proto2 string that is not UTF-8 as bytes."""
    return value if isinstance(value, str) else value.decode("utf-8")


def _is_key_of(serialized: bytes, peer: PeerId) -> bool:
    raw = peer.ed25519
    if raw is None:
        # The key was checked in the handshake; nothing here rests on this copy of it.
        return True
    key = PublicKey.FromString(serialized)
    return bool(key.Type == _ED25519 and key.Data == raw)


def _signed_addresses(serialized: bytes, peer: PeerId, public: bytes) -> list[bytes]:
    """The addresses in a signed peer record.  Raises ProtocolViolation, DecodeError."""
    envelope: Any = Envelope.FromString(serialized)
    if envelope.payload_type != _PAYLOAD_TYPE:
        raise ProtocolViolation(f"{peer} sent an envelope of another type than a peer record")
    if envelope.public_key.Type != _ED25519 or envelope.public_key.Data != public:
        raise ProtocolViolation(f"{peer} sent a peer record that somebody else signed")
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(
            envelope.signature, _signed_bytes(envelope.payload)
        )
    except InvalidSignature as error:
        raise ProtocolViolation(f"{peer} sent a peer record with a wrong signature") from error
    record = PeerRecord.FromString(envelope.payload)
    if record.peer_id != peer.binary:
        raise ProtocolViolation(f"{peer} sent somebody else's peer record")
    return [info.multiaddr for info in record.addresses[:IDENTIFY_PROTOCOLS_MAX]]


def _signed_bytes(payload: bytes) -> bytes:
    """What the signature of an envelope covers."""
    return b"".join(encode_varint(len(part)) + part for part in (_DOMAIN, _PAYLOAD_TYPE, payload))
