"""The values of `core/wire.py` to protobuf bytes and back; the schema is proto/fragments.proto.

Reading checks the size of the whole before it parses and every count and length after; what
is not legal raises ProtocolViolation.  Fields that this version does not know are skipped.
It frames nothing and knows no order of messages.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, Final, TypeVar

from google.protobuf.message import DecodeError, Message

from dstore.core import wire
from dstore.core.cid import CID
from dstore.core.peerid import PeerId
from dstore.core.proto import fragments_pb2 as pb
from dstore.core.wire import Refusal
from dstore.errors import InvalidCid, ProtocolViolation
from dstore.limits import (
    AWAY_PERIODS_MAX,
    CHALLENGES_MAX,
    CONTROL_BYTES_MAX,
    DOMAINS_PER_PEER_MAX,
    FIND_MANIFESTS_MAX,
    FIND_RECORDS_MAX,
    FRAGMENTS_PER_STRIPE_MAX,
    GET_BLOCKS_MAX,
    HAVE_SEGMENTS_MAX,
    HOLDER_ADDRESSES_MAX,
    HOLDER_MAP_ENTRIES_MAX,
    REFUSAL_CHARS_MAX,
    SLOT_REFS_MAX,
)

V = TypeVar("V")
F = TypeVar("F", wire.Holding, wire.PutSlot)
M = TypeVar("M", bound=Message)

_REFUSAL_NUMBERS: Final = {
    Refusal.OTHER: pb.REFUSAL_OTHER,
    Refusal.UNSUPPORTED: pb.REFUSAL_UNSUPPORTED,
    Refusal.BUSY: pb.REFUSAL_BUSY,
    Refusal.QUOTA: pb.REFUSAL_QUOTA,
    Refusal.FULL: pb.REFUSAL_FULL,
    Refusal.POLICY: pb.REFUSAL_POLICY,
    Refusal.BAD_SIGNATURE: pb.REFUSAL_BAD_SIGNATURE,
    Refusal.TOO_MANY_SLOTS: pb.REFUSAL_TOO_MANY_SLOTS,
    Refusal.NOT_FOUND: pb.REFUSAL_NOT_FOUND,
    Refusal.EXPIRED: pb.REFUSAL_EXPIRED,
    Refusal.MALFORMED: pb.REFUSAL_MALFORMED,
    Refusal.NO_SHORTAGE: pb.REFUSAL_NO_SHORTAGE,
    Refusal.CLOCK: pb.REFUSAL_CLOCK,
    Refusal.INTERNAL: pb.REFUSAL_INTERNAL,
}
_REFUSALS: Final = {int(number): refusal for refusal, number in _REFUSAL_NUMBERS.items()}
_ROLE_NUMBERS: Final = {
    wire.Role.UNKNOWN: pb.ROLE_UNKNOWN,
    wire.Role.STORAGE: pb.ROLE_STORAGE,
    wire.Role.GATEWAY: pb.ROLE_GATEWAY,
    wire.Role.CLIENT: pb.ROLE_CLIENT,
}
_ROLES: Final = {int(number): role for role, number in _ROLE_NUMBERS.items()}


def encode_request(request: wire.Request) -> bytes:
    """The control message of a request, without its length prefix.  Raises ValueError where
    it would be above CONTROL_BYTES_MAX."""
    message = pb.Request()
    match request:
        case wire.HelloRequest():
            message.hello.SetInParent()
        case wire.FindManifests(root):
            message.find_manifests.root = root.binary
        case wire.GetBlocks(cids):
            message.get_blocks.SetInParent()
            message.get_blocks.cids.extend(cid.binary for cid in cids)
        case wire.Have(queries):
            message.have.SetInParent()
            for query in queries:
                message.have.queries.add(segment=query.segment.binary, known=query.known)
        case wire.PutSlot():
            _fill_put_slot(message.put_slot, request)
        case wire.Renew(slots, records):
            _fill_slots(message.renew, slots, records)
        case wire.Release(slots, records):
            _fill_slots(message.release, slots, records)
        case wire.Challenge(items):
            message.challenge.SetInParent()
            for item in items:
                message.challenge.items.add(
                    segment=item.segment.binary,
                    slot=item.slot,
                    stripe=item.stripe,
                    nonce=item.nonce,
                )
    return _bytes_of(message)


def decode_request(data: bytes) -> wire.Request | None:
    """The request in a control message; None for one that this version does not know.
    Raises ProtocolViolation."""
    message = _parsed(pb.Request, data)
    name = message.WhichOneof("request")
    return None if name is None else _checked(_REQUESTS[name], getattr(message, name))


def encode_upload(upload: wire.Upload) -> bytes:
    """The header of a block that a client sends, without length prefix and raw bytes."""
    message = pb.Upload()
    match upload:
        case wire.Document(cid, size):
            _fill_block(message.document, cid, size)
        case wire.Fragment(stripe, size):
            message.fragment.SetInParent()
            message.fragment.stripe = stripe
            message.fragment.size = size
    return _bytes_of(message)


def decode_upload(data: bytes) -> wire.Upload:
    """The header of a block that a client sends.  Raises ProtocolViolation."""
    message = _parsed(pb.Upload, data)
    name = message.WhichOneof("upload")
    if name == "document":
        return _checked(lambda m: wire.Document(*_block_of(m)), message.document)
    if name == "fragment":
        return _checked(lambda m: wire.Fragment(m.stripe, m.size), message.fragment)
    raise ProtocolViolation("an upload message of a kind that does not exist")


def encode_answer(answer: wire.Answer) -> bytes:
    """The control message of an answer, without its length prefix.  A holding too large for
    one message is cut with `fitted`."""
    message = pb.Answer()
    match answer:
        case wire.BlockHeader(cid, size):
            _fill_block(message.block, cid, size)
        case wire.Hello():
            _fill_hello(message.hello, answer)
        case wire.Manifests(manifests, records):
            message.manifests.SetInParent()
            message.manifests.manifests.extend(cid.binary for cid in manifests)
            message.manifests.pin_records.extend(records)
        case wire.Holding():
            _fill_holding(message.holding, answer)
        case wire.Unchanged(segment):
            message.holding.segment = segment.binary
            message.holding.unchanged = True
        case wire.Wanted(cid):
            message.wanted.cid = cid.binary
        case wire.Accepted(stripes):
            message.accepted.SetInParent()
            message.accepted.stripes = wire.bitmap_of(stripes)
        case wire.Stored(fragments):
            message.stored.SetInParent()
            message.stored.fragments = fragments
        case wire.SlotAnswer(segment, slot, lease, refusal):
            message.slot.segment = segment.binary
            message.slot.slot = slot
            message.slot.lease = lease or b""
            message.slot.refusal = _REFUSAL_NUMBERS[refusal] if refusal else pb.REFUSAL_NONE
        case wire.Stopped():
            message.stopped.SetInParent()
        case wire.Working():
            message.working.SetInParent()
        case wire.Refusing(reason, text):
            message.refused.reason = _REFUSAL_NUMBERS[reason]
            message.refused.text = text
    return _bytes_of(message)


def decode_answer(data: bytes) -> wire.Answer:
    """The answer in a control message.  Raises ProtocolViolation, also for one of a kind
    that this version does not know: it asked for none of that kind."""
    message = _parsed(pb.Answer, data)
    name = message.WhichOneof("answer")
    if name is None:
        raise ProtocolViolation("an answer of a kind that does not exist")
    return _checked(_ANSWERS[name], getattr(message, name))


def fitted(value: F) -> F:
    """The holding or offer with as many addresses in its holder map as one control message
    takes: all, else the first of each entry, else none.  Who holds what is never left out."""
    for addresses_kept in (HOLDER_ADDRESSES_MAX, 1, 0):
        holders = tuple(
            replace(entry, addresses=entry.addresses[:addresses_kept]) for entry in value.holders
        )
        cut = replace(value, holders=holders)
        # Room for the envelope around the value.
        if _message_of(cut).ByteSize() <= CONTROL_BYTES_MAX - 16:
            return cut
    raise ValueError(f"{type(value).__name__} does not fit a control message")


def digest_of(holding: wire.Holding) -> bytes:
    """What `HaveQuery.known` says of a holding: the first 16 bytes of the sha2-256 of its
    canonical protobuf form (fields in order of their numbers, defaults left out)."""
    data = _message_of(holding).SerializeToString(deterministic=True)
    return hashlib.sha256(data).digest()[: wire.DIGEST_BYTES]


# --- Writing ---------------------------------------------------------------------------


def _bytes_of(message: Message) -> bytes:
    data = message.SerializeToString()
    if len(data) > CONTROL_BYTES_MAX:
        raise ValueError(f"control message of {len(data)} bytes; at most {CONTROL_BYTES_MAX}")
    return data


def _fill_block(message: pb.Block, cid: CID, size: int | None) -> None:
    message.cid = cid.binary
    if size is None:
        message.missing = True
    else:
        message.size = size


def _fill_put_slot(message: pb.PutSlot, offer: wire.PutSlot) -> None:
    message.pin_record = offer.pin_record
    message.manifest = offer.manifest.binary
    message.segment = offer.segment.binary
    message.slot = offer.slot
    _fill_holders(message, offer.holders)


def _fill_holders(message: Any, holders: Iterable[wire.HolderEntry]) -> None:
    for entry in holders:
        message.holders.add(
            peer=entry.peer.binary,
            addresses=entry.addresses,
            slot=entry.slot,
            expires=entry.expires,
        )


def _fill_slots(message: Any, slots: Iterable[wire.SlotRef], records: Iterable[bytes]) -> None:
    message.SetInParent()
    for ref in slots:
        message.slots.add(segment=ref.segment.binary, slot=ref.slot)
    message.pin_records.extend(records)


def _fill_hello(message: pb.Hello, hello: wire.Hello) -> None:
    message.version = hello.version
    message.role = _ROLE_NUMBERS[hello.role]
    message.free_bytes = hello.free_bytes
    message.slot_bytes_max = hello.slot_bytes_max
    message.lease_seconds_max = hello.lease_seconds_max
    for period in hello.away:
        message.away.add(start=period.start, end=period.end)
    message.domains.extend(hello.domains)
    message.load_percent = hello.load_percent
    message.clock = hello.clock


def _fill_holding(message: pb.Holding, holding: wire.Holding) -> None:
    message.segment = holding.segment.binary
    for held in holding.slots:
        message.slots.add(
            slot=held.slot,
            whole=held.whole,
            stripes=held.stripes,
            lease_expires=held.lease_expires,
        )
    _fill_holders(message, holding.holders)


def _message_of(value: wire.Holding | wire.PutSlot) -> pb.Holding | pb.PutSlot:
    if isinstance(value, wire.PutSlot):
        offer = pb.PutSlot()
        _fill_put_slot(offer, value)
        return offer
    holding = pb.Holding()
    _fill_holding(holding, value)
    return holding


# --- Reading ---------------------------------------------------------------------------


def _parsed(kind: type[M], data: bytes) -> M:
    if len(data) > CONTROL_BYTES_MAX:
        raise ProtocolViolation(
            f"control message of {len(data)} bytes; at most {CONTROL_BYTES_MAX}"
        )
    try:
        return kind.FromString(data)
    except DecodeError as error:
        raise ProtocolViolation(f"control message does not parse: {error}") from error


def _checked(make: Callable[[Any], V], message: Any) -> V:
    try:
        return make(message)
    except (ValueError, InvalidCid) as error:
        raise ProtocolViolation(f"illegal {type(message).__name__} message: {error}") from error


def _counted(what: str, repeated: Any, limit: int) -> Any:
    """`repeated`, once its count is known to be legal: before values are made of it."""
    if len(repeated) > limit:
        raise ValueError(f"{what}: {len(repeated)}; at most {limit}")
    return repeated


def _block_of(message: pb.Block) -> tuple[CID, int | None]:
    if message.missing and message.size:
        raise ValueError("a missing block with a size")
    return CID.from_bytes(message.cid), None if message.missing else message.size


def _holders_of(message: Any) -> tuple[wire.HolderEntry, ...]:
    entries = _counted("entries of a holder map", message.holders, HOLDER_MAP_ENTRIES_MAX)
    return tuple(
        wire.HolderEntry(
            PeerId(entry.peer),
            entry.slot,
            entry.expires,
            tuple(_counted("addresses", entry.addresses, HOLDER_ADDRESSES_MAX)),
        )
        for entry in entries
    )


def _slots_of(message: Any) -> tuple[tuple[wire.SlotRef, ...], tuple[bytes, ...]]:
    slots = _counted("slots", message.slots, SLOT_REFS_MAX)
    records = _counted("pin records", message.pin_records, FIND_RECORDS_MAX)
    return (
        tuple(wire.SlotRef(CID.from_bytes(ref.segment), ref.slot) for ref in slots),
        tuple(records),
    )


def _cids_of(what: str, cids: Any, limit: int) -> tuple[CID, ...]:
    return tuple(CID.from_bytes(cid) for cid in _counted(what, cids, limit))


def _get_blocks(message: pb.GetBlocks) -> wire.GetBlocks:
    return wire.GetBlocks(_cids_of("blocks asked for", message.cids, GET_BLOCKS_MAX))


def _have(message: pb.Have) -> wire.Have:
    queries = _counted("segments asked about", message.queries, HAVE_SEGMENTS_MAX)
    return wire.Have(
        tuple(wire.HaveQuery(CID.from_bytes(query.segment), query.known) for query in queries)
    )


def _put_slot(message: pb.PutSlot) -> wire.PutSlot:
    return wire.PutSlot(
        message.pin_record,
        CID.from_bytes(message.manifest),
        CID.from_bytes(message.segment),
        message.slot,
        _holders_of(message),
    )


def _challenge(message: pb.Challenge) -> wire.Challenge:
    items = _counted("fragments challenged", message.items, CHALLENGES_MAX)
    return wire.Challenge(
        tuple(
            wire.Challenged(CID.from_bytes(item.segment), item.slot, item.stripe, item.nonce)
            for item in items
        )
    )


_REQUESTS: Final[dict[str, Callable[[Any], wire.Request]]] = {
    "hello": lambda message: wire.HelloRequest(),
    "find_manifests": lambda message: wire.FindManifests(CID.from_bytes(message.root)),
    "get_blocks": _get_blocks,
    "have": _have,
    "put_slot": _put_slot,
    "renew": lambda message: wire.Renew(*_slots_of(message)),
    "release": lambda message: wire.Release(*_slots_of(message)),
    "challenge": _challenge,
}


def _hello(message: pb.Hello) -> wire.Hello:
    away = _counted("absences", message.away, AWAY_PERIODS_MAX)
    return wire.Hello(
        version=message.version,
        role=_ROLES.get(message.role, wire.Role.UNKNOWN),
        free_bytes=message.free_bytes,
        slot_bytes_max=message.slot_bytes_max,
        lease_seconds_max=message.lease_seconds_max,
        domains=tuple(_counted("domains", message.domains, DOMAINS_PER_PEER_MAX)),
        load_percent=message.load_percent,
        clock=message.clock,
        away=tuple(wire.Away(period.start, period.end) for period in away),
    )


def _manifests(message: pb.Manifests) -> wire.Manifests:
    return wire.Manifests(
        _cids_of("manifests", message.manifests, FIND_MANIFESTS_MAX),
        tuple(_counted("pin records", message.pin_records, FIND_RECORDS_MAX)),
    )


def _holding(message: pb.Holding) -> wire.Holding | wire.Unchanged:
    segment = CID.from_bytes(message.segment)
    if message.unchanged:
        return wire.Unchanged(segment)
    slots = _counted("slots held", message.slots, FRAGMENTS_PER_STRIPE_MAX)
    return wire.Holding(
        segment,
        tuple(
            wire.HeldSlot(held.slot, held.whole, held.lease_expires, held.stripes) for held in slots
        ),
        _holders_of(message),
    )


def _slot_answer(message: pb.SlotAnswer) -> wire.SlotAnswer:
    refusal = _refusal_of(message.refusal) if message.refusal else None
    lease = message.lease or None
    return wire.SlotAnswer(CID.from_bytes(message.segment), message.slot, lease, refusal)


def _refusal_of(number: int) -> Refusal:
    return _REFUSALS.get(number, Refusal.OTHER)


def _refused(message: pb.Refused) -> wire.Refusing:
    # It goes to logs and terminals as it is.
    shown = "".join(char if char.isprintable() else "�" for char in message.text)
    return wire.Refusing(_refusal_of(message.reason), shown[:REFUSAL_CHARS_MAX])


_ANSWERS: Final[dict[str, Callable[[Any], wire.Answer]]] = {
    "hello": _hello,
    "manifests": _manifests,
    "block": lambda message: wire.BlockHeader(*_block_of(message)),
    "holding": _holding,
    "wanted": lambda message: wire.Wanted(CID.from_bytes(message.cid)),
    "accepted": lambda message: wire.Accepted(wire.stripes_of(message.stripes)),
    "stored": lambda message: wire.Stored(message.fragments),
    "slot": _slot_answer,
    "stopped": lambda message: wire.Stopped(),
    "working": lambda message: wire.Working(),
    "refused": _refused,
}
