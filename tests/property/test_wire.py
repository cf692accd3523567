"""The fragment protocol's messages: every legal value survives, no bytes break the reader."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

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
)
from dstore.errors import ProtocolViolation
from dstore.limits import BLOCK_BYTES_MAX, SEGMENT_FRAGMENTS_MAX

cids = st.builds(
    CID.of, st.sampled_from([RAW, DAG_PB, DAG_CBOR]), st.binary(max_size=8)
) | st.builds(lambda data: CID.of(DAG_PB, data, version=0), st.binary(max_size=8))
peers = st.binary(min_size=32, max_size=32).map(PeerId.of_ed25519)
times = st.integers(0, 1 << 53)
slots = st.integers(0, 254)
stripes = st.integers(0, SEGMENT_FRAGMENTS_MAX - 1)
sizes = st.integers(0, BLOCK_BYTES_MAX)
records = st.lists(st.binary(max_size=64), max_size=4).map(tuple)
texts = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), max_size=32)
entries = st.builds(wire.HolderEntry, peers, slots, times, st.lists(texts, max_size=3).map(tuple))
holder_maps = st.lists(entries, max_size=4).map(tuple)
slot_refs = st.lists(st.builds(wire.SlotRef, cids, slots), max_size=4).map(tuple)
bitmaps = st.frozensets(stripes, max_size=20).map(wire.bitmap_of)
challenges = st.builds(wire.Challenged, cids, slots, stripes, st.binary(max_size=64))
queries = st.builds(wire.HaveQuery, cids, st.just(b"") | st.binary(min_size=16, max_size=16))
periods = st.tuples(times, times).map(lambda pair: wire.Away(min(pair), max(pair)))

requests = st.one_of(
    st.just(wire.HelloRequest()),
    st.builds(wire.FindManifests, cids),
    st.builds(wire.GetBlocks, st.lists(cids, max_size=6).map(tuple)),
    st.builds(wire.Have, st.lists(queries, max_size=6).map(tuple)),
    st.builds(wire.PutSlot, st.binary(max_size=64), cids, cids, slots, holder_maps),
    st.builds(wire.Renew, slot_refs, records),
    st.builds(wire.Release, slot_refs, records),
    st.builds(wire.Challenge, st.lists(challenges, max_size=4).map(tuple)),
)
uploads = st.builds(wire.Document, cids, st.none() | sizes) | st.builds(
    wire.Fragment, stripes, sizes
)
hellos = st.builds(
    wire.Hello,
    texts,
    st.sampled_from(wire.Role),
    st.integers(0, (1 << 63) - 1),
    st.integers(0, (1 << 63) - 1),
    times,
    st.lists(texts, max_size=4).map(tuple),
    st.integers(0, 100),
    times,
    st.lists(periods, max_size=4).map(tuple),
)
held = st.builds(wire.HeldSlot, slots, st.booleans(), times, bitmaps)
holdings = st.builds(wire.Holding, cids, st.lists(held, max_size=4).map(tuple), holder_maps)
slot_answers = st.one_of(
    st.builds(wire.SlotAnswer, cids, slots),
    st.builds(wire.SlotAnswer, cids, slots, lease=st.binary(min_size=1, max_size=64)),
    st.builds(wire.SlotAnswer, cids, slots, refusal=st.sampled_from(Refusal)),
)
answers = st.one_of(
    hellos,
    st.builds(wire.Manifests, st.lists(cids, max_size=4).map(tuple), records),
    st.builds(wire.BlockHeader, cids, st.none() | sizes),
    holdings,
    st.builds(wire.Unchanged, cids),
    st.builds(wire.Wanted, cids),
    st.builds(wire.Accepted, st.frozensets(stripes, max_size=20).map(lambda s: tuple(sorted(s)))),
    st.builds(wire.Stored, st.integers(0, SEGMENT_FRAGMENTS_MAX)),
    slot_answers,
    st.just(wire.Stopped()),
    st.just(wire.Working()),
    st.builds(wire.Refusing, st.sampled_from(Refusal), texts),
)


@given(requests)
def test_requests_round_trip(request: wire.Request) -> None:
    assert decode_request(encode_request(request)) == request


@given(uploads)
def test_uploads_round_trip(upload: wire.Upload) -> None:
    assert decode_upload(encode_upload(upload)) == upload


@given(answers)
def test_answers_round_trip(answer: wire.Answer) -> None:
    assert decode_answer(encode_answer(answer)) == answer


@given(holdings)
def test_digest_survives_the_wire(holding: wire.Holding) -> None:
    decoded = decode_answer(encode_answer(holding))
    assert isinstance(decoded, wire.Holding)
    assert digest_of(decoded) == digest_of(holding)


@given(st.frozensets(stripes))
def test_bitmaps_round_trip(indices: frozenset[int]) -> None:
    bitmap = wire.bitmap_of(indices)
    assert wire.stripes_of(bitmap) == tuple(sorted(indices))
    assert all(wire.has_stripe(bitmap, index) for index in indices)
    assert not bitmap.endswith(b"\0")


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A legal message with bytes changed, cut off or put in."""
    message = draw(
        requests.map(encode_request) | answers.map(encode_answer) | uploads.map(encode_upload)
    )
    start = draw(st.integers(0, len(message)))
    end = draw(st.integers(start, min(len(message), start + 8)))
    return message[:start] + draw(st.binary(max_size=8)) + message[end:]


@given(st.binary(max_size=200) | damaged())
@settings(max_examples=400)
def test_readers_answer_any_bytes_with_a_value_or_a_violation(data: bytes) -> None:
    # What a reader lets through, a writer can write: nothing illegal becomes a value.
    try:
        request = decode_request(data)
        if request is not None:
            assert decode_request(encode_request(request)) == request
    except ProtocolViolation:
        pass
    try:
        answer = decode_answer(data)
        assert decode_answer(encode_answer(answer)) == answer
    except ProtocolViolation:
        pass
    try:
        upload = decode_upload(data)
        assert decode_upload(encode_upload(upload)) == upload
    except ProtocolViolation:
        pass
