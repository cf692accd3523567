from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Role(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ROLE_UNKNOWN: _ClassVar[Role]
    ROLE_STORAGE: _ClassVar[Role]
    ROLE_GATEWAY: _ClassVar[Role]
    ROLE_CLIENT: _ClassVar[Role]

class Refusal(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    REFUSAL_NONE: _ClassVar[Refusal]
    REFUSAL_OTHER: _ClassVar[Refusal]
    REFUSAL_UNSUPPORTED: _ClassVar[Refusal]
    REFUSAL_BUSY: _ClassVar[Refusal]
    REFUSAL_QUOTA: _ClassVar[Refusal]
    REFUSAL_FULL: _ClassVar[Refusal]
    REFUSAL_POLICY: _ClassVar[Refusal]
    REFUSAL_BAD_SIGNATURE: _ClassVar[Refusal]
    REFUSAL_TOO_MANY_SLOTS: _ClassVar[Refusal]
    REFUSAL_NOT_FOUND: _ClassVar[Refusal]
    REFUSAL_EXPIRED: _ClassVar[Refusal]
    REFUSAL_MALFORMED: _ClassVar[Refusal]
    REFUSAL_NO_SHORTAGE: _ClassVar[Refusal]
    REFUSAL_CLOCK: _ClassVar[Refusal]
    REFUSAL_INTERNAL: _ClassVar[Refusal]
ROLE_UNKNOWN: Role
ROLE_STORAGE: Role
ROLE_GATEWAY: Role
ROLE_CLIENT: Role
REFUSAL_NONE: Refusal
REFUSAL_OTHER: Refusal
REFUSAL_UNSUPPORTED: Refusal
REFUSAL_BUSY: Refusal
REFUSAL_QUOTA: Refusal
REFUSAL_FULL: Refusal
REFUSAL_POLICY: Refusal
REFUSAL_BAD_SIGNATURE: Refusal
REFUSAL_TOO_MANY_SLOTS: Refusal
REFUSAL_NOT_FOUND: Refusal
REFUSAL_EXPIRED: Refusal
REFUSAL_MALFORMED: Refusal
REFUSAL_NO_SHORTAGE: Refusal
REFUSAL_CLOCK: Refusal
REFUSAL_INTERNAL: Refusal

class Request(_message.Message):
    __slots__ = ("hello", "find_manifests", "get_blocks", "have", "put_slot", "renew", "release", "challenge")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    FIND_MANIFESTS_FIELD_NUMBER: _ClassVar[int]
    GET_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    HAVE_FIELD_NUMBER: _ClassVar[int]
    PUT_SLOT_FIELD_NUMBER: _ClassVar[int]
    RENEW_FIELD_NUMBER: _ClassVar[int]
    RELEASE_FIELD_NUMBER: _ClassVar[int]
    CHALLENGE_FIELD_NUMBER: _ClassVar[int]
    hello: HelloRequest
    find_manifests: FindManifests
    get_blocks: GetBlocks
    have: Have
    put_slot: PutSlot
    renew: Renew
    release: Release
    challenge: Challenge
    def __init__(self, hello: _Optional[_Union[HelloRequest, _Mapping]] = ..., find_manifests: _Optional[_Union[FindManifests, _Mapping]] = ..., get_blocks: _Optional[_Union[GetBlocks, _Mapping]] = ..., have: _Optional[_Union[Have, _Mapping]] = ..., put_slot: _Optional[_Union[PutSlot, _Mapping]] = ..., renew: _Optional[_Union[Renew, _Mapping]] = ..., release: _Optional[_Union[Release, _Mapping]] = ..., challenge: _Optional[_Union[Challenge, _Mapping]] = ...) -> None: ...

class HelloRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class FindManifests(_message.Message):
    __slots__ = ("root",)
    ROOT_FIELD_NUMBER: _ClassVar[int]
    root: bytes
    def __init__(self, root: _Optional[bytes] = ...) -> None: ...

class GetBlocks(_message.Message):
    __slots__ = ("cids",)
    CIDS_FIELD_NUMBER: _ClassVar[int]
    cids: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, cids: _Optional[_Iterable[bytes]] = ...) -> None: ...

class Have(_message.Message):
    __slots__ = ("queries",)
    class Query(_message.Message):
        __slots__ = ("segment", "known")
        SEGMENT_FIELD_NUMBER: _ClassVar[int]
        KNOWN_FIELD_NUMBER: _ClassVar[int]
        segment: bytes
        known: bytes
        def __init__(self, segment: _Optional[bytes] = ..., known: _Optional[bytes] = ...) -> None: ...
    QUERIES_FIELD_NUMBER: _ClassVar[int]
    queries: _containers.RepeatedCompositeFieldContainer[Have.Query]
    def __init__(self, queries: _Optional[_Iterable[_Union[Have.Query, _Mapping]]] = ...) -> None: ...

class PutSlot(_message.Message):
    __slots__ = ("pin_record", "manifest", "segment", "slot", "holders")
    PIN_RECORD_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_FIELD_NUMBER: _ClassVar[int]
    SEGMENT_FIELD_NUMBER: _ClassVar[int]
    SLOT_FIELD_NUMBER: _ClassVar[int]
    HOLDERS_FIELD_NUMBER: _ClassVar[int]
    pin_record: bytes
    manifest: bytes
    segment: bytes
    slot: int
    holders: _containers.RepeatedCompositeFieldContainer[Holder]
    def __init__(self, pin_record: _Optional[bytes] = ..., manifest: _Optional[bytes] = ..., segment: _Optional[bytes] = ..., slot: _Optional[int] = ..., holders: _Optional[_Iterable[_Union[Holder, _Mapping]]] = ...) -> None: ...

class SlotRef(_message.Message):
    __slots__ = ("segment", "slot")
    SEGMENT_FIELD_NUMBER: _ClassVar[int]
    SLOT_FIELD_NUMBER: _ClassVar[int]
    segment: bytes
    slot: int
    def __init__(self, segment: _Optional[bytes] = ..., slot: _Optional[int] = ...) -> None: ...

class Renew(_message.Message):
    __slots__ = ("slots", "pin_records")
    SLOTS_FIELD_NUMBER: _ClassVar[int]
    PIN_RECORDS_FIELD_NUMBER: _ClassVar[int]
    slots: _containers.RepeatedCompositeFieldContainer[SlotRef]
    pin_records: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, slots: _Optional[_Iterable[_Union[SlotRef, _Mapping]]] = ..., pin_records: _Optional[_Iterable[bytes]] = ...) -> None: ...

class Release(_message.Message):
    __slots__ = ("slots", "pin_records")
    SLOTS_FIELD_NUMBER: _ClassVar[int]
    PIN_RECORDS_FIELD_NUMBER: _ClassVar[int]
    slots: _containers.RepeatedCompositeFieldContainer[SlotRef]
    pin_records: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, slots: _Optional[_Iterable[_Union[SlotRef, _Mapping]]] = ..., pin_records: _Optional[_Iterable[bytes]] = ...) -> None: ...

class Challenge(_message.Message):
    __slots__ = ("items",)
    class Item(_message.Message):
        __slots__ = ("segment", "slot", "stripe", "nonce")
        SEGMENT_FIELD_NUMBER: _ClassVar[int]
        SLOT_FIELD_NUMBER: _ClassVar[int]
        STRIPE_FIELD_NUMBER: _ClassVar[int]
        NONCE_FIELD_NUMBER: _ClassVar[int]
        segment: bytes
        slot: int
        stripe: int
        nonce: bytes
        def __init__(self, segment: _Optional[bytes] = ..., slot: _Optional[int] = ..., stripe: _Optional[int] = ..., nonce: _Optional[bytes] = ...) -> None: ...
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    items: _containers.RepeatedCompositeFieldContainer[Challenge.Item]
    def __init__(self, items: _Optional[_Iterable[_Union[Challenge.Item, _Mapping]]] = ...) -> None: ...

class Upload(_message.Message):
    __slots__ = ("document", "fragment")
    DOCUMENT_FIELD_NUMBER: _ClassVar[int]
    FRAGMENT_FIELD_NUMBER: _ClassVar[int]
    document: Block
    fragment: Fragment
    def __init__(self, document: _Optional[_Union[Block, _Mapping]] = ..., fragment: _Optional[_Union[Fragment, _Mapping]] = ...) -> None: ...

class Fragment(_message.Message):
    __slots__ = ("stripe", "size")
    STRIPE_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    stripe: int
    size: int
    def __init__(self, stripe: _Optional[int] = ..., size: _Optional[int] = ...) -> None: ...

class Answer(_message.Message):
    __slots__ = ("hello", "manifests", "block", "holding", "wanted", "accepted", "stored", "slot", "stopped", "working", "refused")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    MANIFESTS_FIELD_NUMBER: _ClassVar[int]
    BLOCK_FIELD_NUMBER: _ClassVar[int]
    HOLDING_FIELD_NUMBER: _ClassVar[int]
    WANTED_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    STORED_FIELD_NUMBER: _ClassVar[int]
    SLOT_FIELD_NUMBER: _ClassVar[int]
    STOPPED_FIELD_NUMBER: _ClassVar[int]
    WORKING_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    hello: Hello
    manifests: Manifests
    block: Block
    holding: Holding
    wanted: Wanted
    accepted: Accepted
    stored: Stored
    slot: SlotAnswer
    stopped: Stopped
    working: Working
    refused: Refused
    def __init__(self, hello: _Optional[_Union[Hello, _Mapping]] = ..., manifests: _Optional[_Union[Manifests, _Mapping]] = ..., block: _Optional[_Union[Block, _Mapping]] = ..., holding: _Optional[_Union[Holding, _Mapping]] = ..., wanted: _Optional[_Union[Wanted, _Mapping]] = ..., accepted: _Optional[_Union[Accepted, _Mapping]] = ..., stored: _Optional[_Union[Stored, _Mapping]] = ..., slot: _Optional[_Union[SlotAnswer, _Mapping]] = ..., stopped: _Optional[_Union[Stopped, _Mapping]] = ..., working: _Optional[_Union[Working, _Mapping]] = ..., refused: _Optional[_Union[Refused, _Mapping]] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ("version", "role", "free_bytes", "slot_bytes_max", "lease_seconds_max", "away", "domains", "load_percent", "clock")
    class Away(_message.Message):
        __slots__ = ("start", "end")
        START_FIELD_NUMBER: _ClassVar[int]
        END_FIELD_NUMBER: _ClassVar[int]
        start: int
        end: int
        def __init__(self, start: _Optional[int] = ..., end: _Optional[int] = ...) -> None: ...
    VERSION_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    FREE_BYTES_FIELD_NUMBER: _ClassVar[int]
    SLOT_BYTES_MAX_FIELD_NUMBER: _ClassVar[int]
    LEASE_SECONDS_MAX_FIELD_NUMBER: _ClassVar[int]
    AWAY_FIELD_NUMBER: _ClassVar[int]
    DOMAINS_FIELD_NUMBER: _ClassVar[int]
    LOAD_PERCENT_FIELD_NUMBER: _ClassVar[int]
    CLOCK_FIELD_NUMBER: _ClassVar[int]
    version: str
    role: Role
    free_bytes: int
    slot_bytes_max: int
    lease_seconds_max: int
    away: _containers.RepeatedCompositeFieldContainer[Hello.Away]
    domains: _containers.RepeatedScalarFieldContainer[str]
    load_percent: int
    clock: int
    def __init__(self, version: _Optional[str] = ..., role: _Optional[_Union[Role, str]] = ..., free_bytes: _Optional[int] = ..., slot_bytes_max: _Optional[int] = ..., lease_seconds_max: _Optional[int] = ..., away: _Optional[_Iterable[_Union[Hello.Away, _Mapping]]] = ..., domains: _Optional[_Iterable[str]] = ..., load_percent: _Optional[int] = ..., clock: _Optional[int] = ...) -> None: ...

class Manifests(_message.Message):
    __slots__ = ("manifests", "pin_records")
    MANIFESTS_FIELD_NUMBER: _ClassVar[int]
    PIN_RECORDS_FIELD_NUMBER: _ClassVar[int]
    manifests: _containers.RepeatedScalarFieldContainer[bytes]
    pin_records: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, manifests: _Optional[_Iterable[bytes]] = ..., pin_records: _Optional[_Iterable[bytes]] = ...) -> None: ...

class Block(_message.Message):
    __slots__ = ("cid", "size", "missing")
    CID_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    MISSING_FIELD_NUMBER: _ClassVar[int]
    cid: bytes
    size: int
    missing: bool
    def __init__(self, cid: _Optional[bytes] = ..., size: _Optional[int] = ..., missing: _Optional[bool] = ...) -> None: ...

class Holding(_message.Message):
    __slots__ = ("segment", "unchanged", "slots", "holders")
    class Slot(_message.Message):
        __slots__ = ("slot", "whole", "stripes", "lease_expires")
        SLOT_FIELD_NUMBER: _ClassVar[int]
        WHOLE_FIELD_NUMBER: _ClassVar[int]
        STRIPES_FIELD_NUMBER: _ClassVar[int]
        LEASE_EXPIRES_FIELD_NUMBER: _ClassVar[int]
        slot: int
        whole: bool
        stripes: bytes
        lease_expires: int
        def __init__(self, slot: _Optional[int] = ..., whole: _Optional[bool] = ..., stripes: _Optional[bytes] = ..., lease_expires: _Optional[int] = ...) -> None: ...
    SEGMENT_FIELD_NUMBER: _ClassVar[int]
    UNCHANGED_FIELD_NUMBER: _ClassVar[int]
    SLOTS_FIELD_NUMBER: _ClassVar[int]
    HOLDERS_FIELD_NUMBER: _ClassVar[int]
    segment: bytes
    unchanged: bool
    slots: _containers.RepeatedCompositeFieldContainer[Holding.Slot]
    holders: _containers.RepeatedCompositeFieldContainer[Holder]
    def __init__(self, segment: _Optional[bytes] = ..., unchanged: _Optional[bool] = ..., slots: _Optional[_Iterable[_Union[Holding.Slot, _Mapping]]] = ..., holders: _Optional[_Iterable[_Union[Holder, _Mapping]]] = ...) -> None: ...

class Holder(_message.Message):
    __slots__ = ("peer", "addresses", "slot", "expires")
    PEER_FIELD_NUMBER: _ClassVar[int]
    ADDRESSES_FIELD_NUMBER: _ClassVar[int]
    SLOT_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_FIELD_NUMBER: _ClassVar[int]
    peer: bytes
    addresses: _containers.RepeatedScalarFieldContainer[str]
    slot: int
    expires: int
    def __init__(self, peer: _Optional[bytes] = ..., addresses: _Optional[_Iterable[str]] = ..., slot: _Optional[int] = ..., expires: _Optional[int] = ...) -> None: ...

class Wanted(_message.Message):
    __slots__ = ("cid",)
    CID_FIELD_NUMBER: _ClassVar[int]
    cid: bytes
    def __init__(self, cid: _Optional[bytes] = ...) -> None: ...

class Accepted(_message.Message):
    __slots__ = ("stripes",)
    STRIPES_FIELD_NUMBER: _ClassVar[int]
    stripes: bytes
    def __init__(self, stripes: _Optional[bytes] = ...) -> None: ...

class Stored(_message.Message):
    __slots__ = ("fragments",)
    FRAGMENTS_FIELD_NUMBER: _ClassVar[int]
    fragments: int
    def __init__(self, fragments: _Optional[int] = ...) -> None: ...

class SlotAnswer(_message.Message):
    __slots__ = ("segment", "slot", "lease", "refusal")
    SEGMENT_FIELD_NUMBER: _ClassVar[int]
    SLOT_FIELD_NUMBER: _ClassVar[int]
    LEASE_FIELD_NUMBER: _ClassVar[int]
    REFUSAL_FIELD_NUMBER: _ClassVar[int]
    segment: bytes
    slot: int
    lease: bytes
    refusal: Refusal
    def __init__(self, segment: _Optional[bytes] = ..., slot: _Optional[int] = ..., lease: _Optional[bytes] = ..., refusal: _Optional[_Union[Refusal, str]] = ...) -> None: ...

class Stopped(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Working(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Refused(_message.Message):
    __slots__ = ("reason", "text")
    REASON_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    reason: Refusal
    text: str
    def __init__(self, reason: _Optional[_Union[Refusal, str]] = ..., text: _Optional[str] = ...) -> None: ...
