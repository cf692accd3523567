"""Rows that the tests of the catalog share."""

from __future__ import annotations

from dstore.core.cid import CID, DAG_CBOR, DAG_PB
from dstore.core.peerid import PeerId
from dstore.storage.rows import HeldSlot, PinRow

NOW = 1_800_000_000.0
ALICE, BOB = b"a" * 32, b"b" * 32


def cid(text: str, codec: int = DAG_CBOR) -> CID:
    return CID.of(codec, text.encode())


def peer(number: int) -> PeerId:
    return PeerId.of_ed25519(number.to_bytes(32, "big"))


ROOT, MANIFEST, SEGMENT, OTHER = cid("root", DAG_PB), cid("manifest"), cid("segment"), cid("other")
PIN = PinRow(ROOT, "protected", "holiday", NOW, NOW + 10, 4, 2, MANIFEST)
SLOT = HeldSlot(
    segment=SEGMENT,
    slot=3,
    owner=ALICE,
    root=ROOT,
    manifest=MANIFEST,
    bytes=1000,
    state="reserved",
    lease=None,
    expires=NOW + 600,
    updated=NOW,
    missing=1000,
)
