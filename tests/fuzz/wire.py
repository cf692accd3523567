"""Fuzz targets: the control messages of the fragment protocol, as either side reads them."""

from __future__ import annotations

from collections.abc import Iterator

from dstore.core import wire
from dstore.core.cid import CID, DAG_CBOR, DAG_PB, RAW
from dstore.core.peerid import PeerId
from dstore.core.wire import Refusal
from dstore.core.wirecodec import (
    decode_answer,
    decode_request,
    decode_upload,
    digest_of,
    encode_answer,
    encode_request,
    encode_upload,
    fitted,
)
from dstore.errors import ProtocolViolation
from dstore.limits import SEGMENT_FRAGMENTS_MAX
from tests.fuzz.target import Target

_ROOT = CID.of(DAG_PB, b"root", version=0)
_LEAF = CID.of(RAW, b"leaf")
_MANIFEST = CID.of(DAG_CBOR, b"manifest")
_SEGMENT = CID.of(DAG_CBOR, b"segment")
_PEER = PeerId.of_ed25519(bytes(range(32)))
_HOLDERS = (
    wire.HolderEntry(_PEER, 0, 1_800_000_000, ("/ip4/192.0.2.1/tcp/4001", "/dns/a.example/tcp/1")),
    wire.HolderEntry(PeerId.of_ed25519(b"x" * 32), 5, 0),
)


def request(data: bytes) -> None:
    """Read, written and read again, a request is the same."""
    try:
        message = decode_request(data)
    except ProtocolViolation:
        return
    if message is not None:
        assert decode_request(encode_request(message)) == message
        if isinstance(message, wire.PutSlot):
            cut = fitted(message)
            assert [entry.peer for entry in cut.holders] == [e.peer for e in message.holders]


def answer(data: bytes) -> None:
    """As `request`; the bitmaps of a holding name stripes that a segment can have."""
    try:
        message = decode_answer(data)
    except ProtocolViolation:
        return
    assert decode_answer(encode_answer(message)) == message
    if isinstance(message, wire.Holding):
        assert len(digest_of(message)) == wire.DIGEST_BYTES
        assert len(fitted(message).holders) == len(message.holders)
        for held in message.slots:
            stripes = wire.stripes_of(held.stripes)
            assert list(stripes) == sorted(set(stripes))
            assert all(stripe < SEGMENT_FRAGMENTS_MAX for stripe in stripes)
            assert all(wire.has_stripe(held.stripes, stripe) for stripe in stripes)
    elif isinstance(message, wire.Accepted):
        assert wire.stripes_of(wire.bitmap_of(message.stripes)) == message.stripes
    elif isinstance(message, wire.Refusing):
        assert message.text.isprintable()


def upload(data: bytes) -> None:
    """As `request`."""
    try:
        message = decode_upload(data)
    except ProtocolViolation:
        return
    assert decode_upload(encode_upload(message)) == message


def requests() -> Iterator[bytes]:
    refs = (wire.SlotRef(_SEGMENT, 0), wire.SlotRef(_SEGMENT, 254))
    for message in (
        wire.HelloRequest(),
        wire.FindManifests(_ROOT),
        wire.GetBlocks((_LEAF, _ROOT, CID.v1(RAW, b"\x00\x03abc"))),
        wire.Have((wire.HaveQuery(_SEGMENT), wire.HaveQuery(_SEGMENT, bytes(16)))),
        wire.PutSlot(b"record", _MANIFEST, _SEGMENT, 3, _HOLDERS),
        wire.Renew(refs, (b"record",)),
        wire.Release(refs, (b"record", b"another")),
        wire.Challenge((wire.Challenged(_SEGMENT, 1, 16_383, b"nonce"),)),
    ):
        yield encode_request(message)


def answers() -> Iterator[bytes]:
    held = (wire.HeldSlot(0, True, 1_800_000_000), wire.HeldSlot(5, False, 0, b"\x81\x01"))
    for message in (
        wire.Hello("dstore/0.1.0", wire.Role.STORAGE, 1 << 40, 1 << 30, 2_592_000),
        wire.Hello("x", wire.Role.GATEWAY, 0, 0, 0, ("rack:1", "dc:é"), 50, 9, (wire.Away(1, 2),)),
        wire.Manifests((_MANIFEST,), (b"record",)),
        wire.BlockHeader(_LEAF, 1 << 20),
        wire.BlockHeader(_LEAF, None),
        wire.Holding(_SEGMENT, held, _HOLDERS),
        wire.Unchanged(_SEGMENT),
        wire.Wanted(_SEGMENT),
        wire.Accepted((0, 9, 16_383)),
        wire.Stored(7),
        wire.SlotAnswer(_SEGMENT, 0, lease=b"lease"),
        wire.SlotAnswer(_SEGMENT, 0, refusal=Refusal.QUOTA),
        wire.SlotAnswer(_SEGMENT, 0),
        wire.Stopped(),
        wire.Working(),
        wire.Refusing(Refusal.FULL, "no room"),
    ):
        yield encode_answer(message)


def uploads() -> Iterator[bytes]:
    for message in (
        wire.Document(_SEGMENT, 100),
        wire.Document(_MANIFEST, None),
        wire.Fragment(16_383, 1 << 20),
    ):
        yield encode_upload(message)


TARGETS = {
    "wire-request": Target(request, requests, protobuf=True),
    "wire-answer": Target(answer, answers, protobuf=True),
    "wire-upload": Target(upload, uploads, bytes_max=256, protobuf=True),
}
