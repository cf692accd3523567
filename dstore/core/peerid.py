"""Peer ids: the name of a node's Ed25519 key, as libp2p writes it.

dstore's own nodes use Ed25519 keys, whose public half stands in the id itself, so that a
signature can be checked from the id alone.  Specification: libp2p peer-ids.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final, NamedTuple

import base58

from dstore.core.cid import CID
from dstore.errors import InvalidCid

LIBP2P_KEY: Final = 0x72  # the multicodec of a public key named by a CID
_ED25519_PREFIX: Final = bytes.fromhex("002408011220")  # identity multihash, protobuf key


@lru_cache(maxsize=1024)
def _base58(binary: bytes) -> str:
    """Every stream and connection is called after its peer."""
    return base58.b58encode(binary).decode()


class _Named(NamedTuple):
    binary: bytes


class PeerId(_Named):
    """One peer; equal when the binary forms are equal, and in their order."""

    # A tuple, which the interpreter compares and hashes by itself: tables are full of these.
    __slots__ = ()

    def __new__(cls, binary: bytes) -> PeerId:
        """`binary` is the multihash.  Raises InvalidCid where it is none that libp2p uses."""
        ed25519 = len(binary) == 38 and binary.startswith(_ED25519_PREFIX)
        sha256 = len(binary) == 34 and binary.startswith(b"\x12\x20")
        inlined = 2 < len(binary) <= 44 and binary[0] == 0 and binary[1] == len(binary) - 2
        if not (ed25519 or sha256 or inlined):
            raise InvalidCid(f"not a peer id: {binary[:16].hex()}…")
        return tuple.__new__(cls, (binary,))

    @classmethod
    def parse(cls, text: str) -> PeerId:
        """The peer id written in bare base58btc, or as a CIDv1 of a libp2p key (in any
        multibase).  Raises InvalidCid."""
        if not text.startswith(("1", "Qm")):
            cid = CID.parse(text)
            if cid.codec != LIBP2P_KEY:
                raise InvalidCid(f"{text!r} is a CID of codec 0x{cid.codec:x}, not a peer id")
            return cls(cid.multihash)
        # base58 passes over white space at the end: two texts for one peer.
        if len(text) > 64 or not text.isascii() or text[-1].isspace():
            raise InvalidCid(f"not a peer id: {text[:64]!r}")
        try:
            return cls(base58.b58decode(text))
        except ValueError as error:
            raise InvalidCid(f"not a peer id: {text!r}") from error

    @classmethod
    def of_ed25519(cls, public_key: bytes) -> PeerId:
        """The id of the raw 32-byte public key."""
        return cls(_ED25519_PREFIX + public_key)

    @property
    def ed25519(self) -> bytes | None:
        """The raw 32-byte public key, or None where the id does not carry one."""
        return self.binary[6:] if self.binary.startswith(_ED25519_PREFIX) else None

    def __str__(self) -> str:
        return _base58(self.binary)

    def __repr__(self) -> str:
        return f"PeerId({self})"
