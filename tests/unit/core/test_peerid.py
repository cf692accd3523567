from __future__ import annotations

import json
from pathlib import Path

import pytest

from dstore.core.cid import CID, RAW
from dstore.core.peerid import LIBP2P_KEY, PeerId
from dstore.errors import InvalidCid

VECTORS = json.loads((Path(__file__).parents[2] / "vectors" / "unixfs.json").read_text())
PEER: dict[str, str] = VECTORS["peer"]
RSA = "QmcgpsyWgH8Y8ajJz1Cu72KnS5uo2Aa2LpzU7kinSupNKC"


def test_ed25519_id_carries_its_key() -> None:
    peer = PeerId.parse(PEER["peer_id"])
    assert peer.binary.hex() == PEER["peer_id_hex"]
    assert str(peer) == PEER["peer_id"]
    key = peer.ed25519
    assert key is not None
    assert key == peer.binary[-32:]
    assert PeerId.of_ed25519(key) == peer
    assert repr(peer) == f"PeerId({peer})"


def test_hashed_key() -> None:
    peer = PeerId.parse(RSA)
    assert peer.ed25519 is None
    assert str(peer) == RSA
    assert peer != PeerId.parse(PEER["peer_id"])


def test_inlined_key_of_another_kind() -> None:
    secp256k1 = b"\x00\x25\x08\x02\x12\x21" + bytes(33)
    assert PeerId(secp256k1).ed25519 is None
    assert PeerId.parse(str(PeerId(secp256k1))).binary == secp256k1


@pytest.mark.parametrize("text", [PEER["peer_id"], RSA])
def test_written_as_a_cid(text: str) -> None:
    peer = PeerId.parse(text)
    assert PeerId.parse(str(CID.v1(LIBP2P_KEY, peer.binary))) == peer


def test_is_a_value() -> None:
    low, high = PeerId.of_ed25519(bytes(32)), PeerId.of_ed25519(b"\x01" + bytes(31))
    assert len({low, high, PeerId(low.binary)}) == 2
    assert sorted([high, low]) == [low, high]
    assert low != high


@pytest.mark.parametrize(
    "binary",
    [
        b"",
        b"\x00",
        b"\x00\x00",
        b"\x12\x20" + bytes(31),
        b"\x12\x14" + bytes(20),
        b"\x00\x24\x08\x01\x12\x20" + bytes(31),
        b"\x00\x24\x08\x01\x12\x20" + bytes(33),
        b"\x00\x2b" + bytes(43),
        b"\x01\x72\x12\x20" + bytes(32),
    ],
)
def test_refuses_bytes(binary: bytes) -> None:
    with pytest.raises(InvalidCid, match="not a peer id"):
        PeerId(binary)


@pytest.mark.parametrize("text", [PEER["peer_id"], RSA])
@pytest.mark.parametrize("space", [" ", "\n", "\t\r\n", "\x1c"])
def test_white_space_belongs_to_no_text(text: str, space: str) -> None:
    for spaced in (text + space, space + text):
        with pytest.raises(InvalidCid):
            PeerId.parse(spaced)


def test_refuses_a_key_of_another_length() -> None:
    with pytest.raises(InvalidCid):
        PeerId.of_ed25519(bytes(31))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1",
        "Qm",
        PEER["peer_id"][:-1],
        PEER["peer_id"] + "a",
        PEER["peer_id"].replace("Z", "0"),
        "1" * 65,
        "é",
        RSA[:-2],
        str(CID.of(RAW, b"")),
        PEER["cid"],
    ],
)
def test_refuses_text(text: str) -> None:
    with pytest.raises(InvalidCid):
        PeerId.parse(text)
