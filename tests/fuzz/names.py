"""Fuzz targets: CIDs and peer ids, in binary and in text."""

from __future__ import annotations

from collections.abc import Iterator

import multibase

from dstore.core.cid import CID, DAG_CBOR, DAG_PB, RAW
from dstore.core.peerid import LIBP2P_KEY, PeerId
from dstore.errors import InvalidCid
from tests.fuzz.target import Target


def cid(data: bytes) -> None:
    """A CID that is taken keeps its bytes, has one text, and knows its content."""
    try:
        _check_cid(CID.from_bytes(data), data)
    except InvalidCid:
        pass
    text = data.decode("utf-8", "surrogateescape")
    try:
        parsed = CID.parse(text)
    except InvalidCid:
        return
    _check_cid(parsed, parsed.binary)


def _check_cid(found: CID, binary: bytes) -> None:
    assert found.binary == binary
    assert CID.from_bytes(found.binary) == found
    assert CID.parse(str(found)) == found
    assert found.digest == binary[len(binary) - len(found.digest) :]
    assert found.multihash.endswith(found.digest)
    assert found.verify(found.digest) is found.is_identity
    if found.version == 1:
        assert CID.v1(found.codec, found.multihash) == found


def peer_id(data: bytes) -> None:
    """A peer id that is taken keeps its bytes and has one text in base58."""
    try:
        peer = PeerId(data)
    except InvalidCid:
        pass
    else:
        assert peer.binary == data
        assert PeerId.parse(str(peer)) == peer
    text = data.decode("utf-8", "surrogateescape")
    try:
        peer = PeerId.parse(text)
    except InvalidCid:
        return
    assert PeerId(peer.binary) == peer
    assert str(peer) == text or not text.startswith(("1", "Qm"))


def cids() -> Iterator[bytes]:
    many = (
        CID.of(RAW, b"x"),
        CID.of(DAG_PB, b"x", version=0),
        CID.of(DAG_CBOR, b"x"),
        CID.v1(RAW, b"\x00\x03abc"),
        CID.v1(RAW, b"\x13\x40" + bytes(64)),
        CID.v1(0x0129, b"\xa0\xe4\x02\x20" + bytes(32)),
    )
    for one in many:
        yield one.binary
        yield str(one).encode()
        if one.version:
            for base in ("base16", "base16upper", "base36", "base58btc", "base64url", "base2"):
                yield bytes(multibase.encode(base, one.binary))


def peer_ids() -> Iterator[bytes]:
    for peer in (PeerId.of_ed25519(bytes(range(32))), PeerId(b"\x12\x20" + bytes(range(32)))):
        yield peer.binary
        yield str(peer).encode()
        yield str(CID.v1(LIBP2P_KEY, peer.binary)).encode()
        yield bytes(multibase.encode("base36", CID.v1(LIBP2P_KEY, peer.binary).binary))


TARGETS = {
    "cid": Target(cid, cids, bytes_max=600),
    "peer-id": Target(peer_id, peer_ids, bytes_max=300),
}
