"""What the fragment protocol's messages are, refuse and skip; and their published form."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dstore.core import wire
from dstore.core.cid import CID, RAW
from dstore.core.peerid import PeerId
from dstore.core.proto import fragments_pb2 as pb
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
from dstore.limits import (
    ADDRESS_CHARS_MAX,
    BLOCK_BYTES_MAX,
    CHALLENGES_MAX,
    CONTROL_BYTES_MAX,
    FIND_RECORDS_MAX,
    GET_BLOCKS_MAX,
    HAVE_SEGMENTS_MAX,
    HOLDER_ADDRESSES_MAX,
    HOLDER_MAP_ENTRIES_MAX,
    RECORD_BYTES_MAX,
    SEGMENT_FRAGMENTS_MAX,
)

SEGMENT = CID.of(RAW, b"segment")
PEER = PeerId.of_ed25519(bytes(32))
PROTO = Path(pb.__file__).with_name("fragments.proto")


# --- Golden forms: what another implementation has to write ------------------------------

GOLDEN: list[tuple[Callable[[Any], bytes], Any, str]] = [
    (encode_request, wire.HelloRequest(), "0a00"),
    (encode_request, wire.FindManifests(SEGMENT), f"12260a24{SEGMENT.binary.hex()}"),
    (encode_request, wire.GetBlocks((SEGMENT,)), f"1a260a24{SEGMENT.binary.hex()}"),
    (
        encode_request,
        wire.Have((wire.HaveQuery(SEGMENT, b"k" * 16),)),
        f"223a0a380a24{SEGMENT.binary.hex()}1210{'6b' * 16}",
    ),
    (
        encode_request,
        wire.PutSlot(b"pin", SEGMENT, SEGMENT, 3, (wire.HolderEntry(PEER, 1, 2, ("/x",)),)),
        (
            f"2a85010a0370696e1224{SEGMENT.binary.hex()}1a24{SEGMENT.binary.hex()}2003"
            f"2a300a26{PEER.binary.hex()}12022f7818012002"
        ),
    ),
    (
        encode_request,
        wire.Renew((wire.SlotRef(SEGMENT, 1),), (b"pin",)),
        f"322f0a280a24{SEGMENT.binary.hex()}10011203" + b"pin".hex(),
    ),
    (
        encode_request,
        wire.Release((wire.SlotRef(SEGMENT, 1),)),
        f"3a2a0a280a24{SEGMENT.binary.hex()}1001",
    ),
    (
        encode_request,
        wire.Challenge((wire.Challenged(SEGMENT, 1, 2, b"n"),)),
        f"422f0a2d0a24{SEGMENT.binary.hex()}1001180222016e",
    ),
    (encode_upload, wire.Document(SEGMENT, 5), f"0a280a24{SEGMENT.binary.hex()}1005"),
    (encode_upload, wire.Document(SEGMENT, None), f"0a280a24{SEGMENT.binary.hex()}1801"),
    (encode_upload, wire.Fragment(7, 300), "1205080710ac02"),
    (
        encode_answer,
        wire.Hello("v", wire.Role.STORAGE, 1, 2, 3, ("d",), 4, 5, (wire.Away(6, 7),)),
        "0a180a01761001180120022803320408061007" + "3a016440044805",
    ),
    (
        encode_answer,
        wire.Manifests((SEGMENT,), (b"r",)),
        f"12290a24{SEGMENT.binary.hex()}120172",
    ),
    (encode_answer, wire.BlockHeader(SEGMENT, 5), f"1a280a24{SEGMENT.binary.hex()}1005"),
    (encode_answer, wire.Unchanged(SEGMENT), f"22280a24{SEGMENT.binary.hex()}1001"),
    (
        encode_answer,
        wire.Holding(SEGMENT, (wire.HeldSlot(1, False, 9, b"\x81"),)),
        f"222f0a24{SEGMENT.binary.hex()}1a0708011a01812009",
    ),
    (encode_answer, wire.Wanted(SEGMENT), f"2a260a24{SEGMENT.binary.hex()}"),
    (encode_answer, wire.Accepted((0, 9)), "32040a020102"),
    (encode_answer, wire.Accepted(()), "3200"),
    (encode_answer, wire.Stored(3), "3a020803"),
    (
        encode_answer,
        wire.SlotAnswer(SEGMENT, 1, b"lease"),
        f"422f0a24{SEGMENT.binary.hex()}10011a05" + b"lease".hex(),
    ),
    (encode_answer, wire.Stopped(), "4a00"),
    (encode_answer, wire.Working(), "5200"),
    (encode_answer, wire.Refusing(Refusal.QUOTA, "no"), "7a06080412026e6f"),
]


@pytest.mark.parametrize(("encode", "value", "expected"), GOLDEN)
def test_golden_forms(encode: Callable[[Any], bytes], value: Any, expected: str) -> None:
    decode: dict[Any, Callable[[bytes], Any]] = {
        encode_request: decode_request,
        encode_upload: decode_upload,
        encode_answer: decode_answer,
    }
    assert encode(value).hex() == expected
    assert decode[encode](bytes.fromhex(expected)) == value


def test_every_refusal_and_role_has_its_number() -> None:
    for refusal in Refusal:
        again = decode_answer(encode_answer(wire.Refusing(refusal)))
        assert again == wire.Refusing(refusal)
    assert len(Refusal) == len(pb.Refusal.values()) - 1  # REFUSAL_NONE is no refusal
    assert [int(role) for role in wire.Role] == pb.Role.values()


# --- Bitmaps -----------------------------------------------------------------------------


def test_bitmaps() -> None:
    assert wire.bitmap_of([]) == b""
    assert wire.bitmap_of([0, 1, 10]) == b"\x03\x04"
    assert wire.stripes_of(b"\x03\x04\x00") == (0, 1, 10)
    assert wire.has_stripe(b"\x03\x04", 10)
    assert not wire.has_stripe(b"\x03\x04", 9)
    assert not wire.has_stripe(b"", 0)
    last = SEGMENT_FRAGMENTS_MAX - 1
    assert wire.stripes_of(wire.bitmap_of([last])) == (last,)
    for illegal in (-1, SEGMENT_FRAGMENTS_MAX):
        with pytest.raises(ValueError, match="stripe"):
            wire.bitmap_of([illegal])
    with pytest.raises(ValueError, match="bitmap"):
        wire.stripes_of(bytes(SEGMENT_FRAGMENTS_MAX // 8 + 1))


# --- What is refused ---------------------------------------------------------------------


def request(**fields: Any) -> bytes:
    return pb.Request(**fields).SerializeToString()


def answer(**fields: Any) -> bytes:
    return pb.Answer(**fields).SerializeToString()


CID_BYTES = SEGMENT.binary
HOLDER = pb.Holder(peer=PEER.binary)


@pytest.mark.parametrize(
    "data",
    [
        b"\xff",
        b"\x12\x7f",  # declares more than there is
        request(find_manifests=pb.FindManifests()),
        request(find_manifests=pb.FindManifests(root=CID_BYTES + b"x")),
        request(find_manifests=pb.FindManifests(root=b"\x01\x55\x22\x04abcd")),  # murmur3
        request(get_blocks=pb.GetBlocks(cids=[CID_BYTES] * (GET_BLOCKS_MAX + 1))),
        request(have=pb.Have(queries=[pb.Have.Query(segment=CID_BYTES)] * (HAVE_SEGMENTS_MAX + 1))),
        request(have=pb.Have(queries=[pb.Have.Query(segment=CID_BYTES, known=b"short")])),
        request(put_slot=pb.PutSlot(manifest=CID_BYTES, segment=CID_BYTES, slot=255)),
        request(
            put_slot=pb.PutSlot(
                manifest=CID_BYTES, segment=CID_BYTES, pin_record=bytes(RECORD_BYTES_MAX + 1)
            )
        ),
        request(
            put_slot=pb.PutSlot(
                manifest=CID_BYTES,
                segment=CID_BYTES,
                holders=[HOLDER] * (HOLDER_MAP_ENTRIES_MAX + 1),
            )
        ),
        request(
            put_slot=pb.PutSlot(
                manifest=CID_BYTES, segment=CID_BYTES, holders=[pb.Holder(peer=b"nobody")]
            )
        ),
        request(renew=pb.Renew(pin_records=[b""] * (FIND_RECORDS_MAX + 1))),
        request(
            challenge=pb.Challenge(
                items=[pb.Challenge.Item(segment=CID_BYTES)] * (CHALLENGES_MAX + 1)
            )
        ),
        request(
            challenge=pb.Challenge(
                items=[pb.Challenge.Item(segment=CID_BYTES, stripe=SEGMENT_FRAGMENTS_MAX)]
            )
        ),
        request(
            challenge=pb.Challenge(items=[pb.Challenge.Item(segment=CID_BYTES, nonce=bytes(65))])
        ),
        bytes(CONTROL_BYTES_MAX + 1),
    ],
)
def test_illegal_requests(data: bytes) -> None:
    with pytest.raises(ProtocolViolation):
        decode_request(data)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xfa\x01\x00",  # field 31: no answer that was ever asked for
        answer(block=pb.Block(cid=CID_BYTES, size=BLOCK_BYTES_MAX + 1)),
        answer(block=pb.Block(cid=CID_BYTES, size=4 << 30)),
        answer(block=pb.Block(cid=CID_BYTES, size=(1 << 64) - 1)),
        answer(block=pb.Block(cid=CID_BYTES, size=1, missing=True)),
        answer(accepted=pb.Accepted(stripes=bytes(SEGMENT_FRAGMENTS_MAX // 8 + 1))),
        answer(stored=pb.Stored(fragments=SEGMENT_FRAGMENTS_MAX + 1)),
        answer(
            slot=pb.SlotAnswer(segment=CID_BYTES, lease=b"x", refusal=pb.REFUSAL_QUOTA),
        ),
        answer(hello=pb.Hello(load_percent=101)),
        answer(hello=pb.Hello(version="a\x1b[2J")),
        answer(hello=pb.Hello(domains=["d"] * 17)),
        answer(hello=pb.Hello(away=[pb.Hello.Away(start=2, end=1)])),
        answer(
            holding=pb.Holding(
                segment=CID_BYTES,
                holders=[
                    pb.Holder(peer=PEER.binary, addresses=["/a"] * (HOLDER_ADDRESSES_MAX + 1))
                ],
            )
        ),
        answer(
            holding=pb.Holding(
                segment=CID_BYTES,
                holders=[pb.Holder(peer=PEER.binary, addresses=["/" * (ADDRESS_CHARS_MAX + 1)])],
            )
        ),
        answer(holding=pb.Holding(segment=CID_BYTES, slots=[pb.Holding.Slot()] * 256)),
        b"\x0a\x03\x0a\x01\xff",  # a version that is not UTF-8
    ],
)
def test_illegal_answers(data: bytes) -> None:
    with pytest.raises(ProtocolViolation):
        decode_answer(data)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        pb.Upload(fragment=pb.Fragment(size=BLOCK_BYTES_MAX + 1)).SerializeToString(),
        pb.Upload(fragment=pb.Fragment(stripe=SEGMENT_FRAGMENTS_MAX)).SerializeToString(),
        pb.Upload(document=pb.Block(cid=b"x")).SerializeToString(),
    ],
)
def test_illegal_uploads(data: bytes) -> None:
    with pytest.raises(ProtocolViolation):
        decode_upload(data)


def test_own_messages_are_held_to_the_limits() -> None:
    with pytest.raises(ValueError, match="at most"):
        wire.GetBlocks((SEGMENT,) * (GET_BLOCKS_MAX + 1))
    with pytest.raises(ValueError, match="slot"):
        wire.SlotRef(SEGMENT, -1)
    with pytest.raises(ValueError, match="at most"):
        wire.Manifests(pin_records=(bytes(RECORD_BYTES_MAX + 1),))


# --- What is skipped ---------------------------------------------------------------------


def test_unknown_requests_and_fields_are_told_apart_from_faults() -> None:
    assert decode_request(b"") is None
    assert decode_request(b"\xfa\x01\x00") is None  # field 31
    known = encode_request(wire.FindManifests(SEGMENT))
    assert decode_request(known + b"\xf8\x07\x01") == wire.FindManifests(SEGMENT)
    assert decode_answer(encode_answer(wire.Stored(3)) + b"\xf8\x07\x01") == wire.Stored(3)


def test_unknown_numbers_become_the_general_word() -> None:
    assert decode_answer(b"\x7a\x02\x08\x63") == wire.Refusing(Refusal.OTHER)
    hello = decode_answer(b"\x0a\x02\x10\x63")
    assert isinstance(hello, wire.Hello)
    assert hello.role is wire.Role.UNKNOWN


def test_texts_of_refusals_are_made_harmless() -> None:
    refused = pb.Refused(reason=pb.REFUSAL_FULL, text="a\x1b[2J\n" + "b" * 1000)
    decoded = decode_answer(pb.Answer(refused=refused).SerializeToString())
    assert isinstance(decoded, wire.Refusing)
    assert decoded.text.startswith("a�[2J�bbb")
    assert len(decoded.text) == 512


# --- Large holder maps -------------------------------------------------------------------


def test_large_holder_maps_lose_addresses_not_holders() -> None:
    small = wire.Holding(SEGMENT, holders=(wire.HolderEntry(PEER, 1, 2, ("/a", "/b")),))
    assert fitted(small) == small
    addresses = tuple("/dns4/" + "h" * 100 + str(i) for i in range(HOLDER_ADDRESSES_MAX))
    entry = wire.HolderEntry(PEER, 1, 1 << 40, addresses)
    large = wire.Holding(SEGMENT, holders=(entry,) * HOLDER_MAP_ENTRIES_MAX)
    cut = fitted(large)
    assert {len(entry.addresses) for entry in cut.holders} == {1}
    longest = wire.HolderEntry(PEER, 1, 1 << 40, ("/" * ADDRESS_CHARS_MAX,))
    whole = wire.HeldSlot(1, False, 1 << 40, b"\xff" * (SEGMENT_FRAGMENTS_MAX // 8))
    largest = fitted(wire.Holding(SEGMENT, (whole,) * 255, (longest,) * HOLDER_MAP_ENTRIES_MAX))
    assert len(largest.holders) == HOLDER_MAP_ENTRIES_MAX
    assert decode_answer(encode_answer(largest)) == largest
    offer = wire.PutSlot(
        bytes(RECORD_BYTES_MAX), SEGMENT, SEGMENT, 1, (longest,) * HOLDER_MAP_ENTRIES_MAX
    )
    with pytest.raises(ValueError, match="control message"):
        encode_request(offer)
    assert decode_request(encode_request(fitted(offer))) == fitted(offer)


def test_digest_tells_holdings_apart() -> None:
    one = wire.Holding(SEGMENT, (wire.HeldSlot(1, whole=True, lease_expires=5),))
    other = wire.Holding(SEGMENT, (wire.HeldSlot(1, whole=True, lease_expires=6),))
    assert digest_of(one) == digest_of(wire.Holding(SEGMENT, one.slots))
    assert digest_of(one) != digest_of(other)
    assert len(digest_of(one)) == wire.DIGEST_BYTES
    canonical = b"\x0a\x24" + SEGMENT.binary + bytes.fromhex("1a06080110012005")
    assert digest_of(one) == hashlib.sha256(canonical).digest()[:16]


# --- The published schema ----------------------------------------------------------------


def test_reference_names_every_message_number() -> None:
    text = (PROTO.parents[3] / "docs/reference/wire.md").read_text()
    for message, kind in ((pb.Request, "request"), (pb.Answer, "answer"), (pb.Upload, "upload")):
        for field in message.DESCRIPTOR.oneofs_by_name[kind].fields:
            assert f"| {field.number} | `{field.name}` |" in text
    for value in pb.Refusal.DESCRIPTOR.values[1:]:
        assert f"| {value.number} | `{value.name.removeprefix('REFUSAL_').lower()}` |" in text
