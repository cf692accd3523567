"""A node's identity: from the 32-byte Ed25519 seed to its peer id and libp2p key pair.

Where the seed is kept, and with which permissions, is storage's affair.  Specification:
libp2p peer-ids.
"""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING, Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from dstore.core.peerid import PeerId
from dstore.errors import ConfigError

if TYPE_CHECKING:
    from libp2p.crypto.keys import KeyPair

SEED_BYTES: Final = 32


def new_seed(random: Random) -> bytes:
    """A fresh seed; `random` is a `SystemRandom` wherever the key matters."""
    return random.randbytes(SEED_BYTES)


def _private_key(seed: bytes) -> Ed25519PrivateKey:
    if len(seed) != SEED_BYTES:
        raise ConfigError([f"an identity seed has {SEED_BYTES} bytes, not {len(seed)}"])
    return Ed25519PrivateKey.from_private_bytes(seed)


def peer_id_of(seed: bytes) -> PeerId:
    """The peer id of the key made from `seed`.  Raises ConfigError on a wrong length."""
    return PeerId.of_ed25519(_private_key(seed).public_key().public_bytes_raw())


def key_pair_of(seed: bytes) -> KeyPair:
    """The same key as libp2p takes it.  Raises ConfigError on a wrong length."""
    # Imported here: `dstore id` needs a peer id, not the half second libp2p takes to load.
    from libp2p.crypto.ed25519 import create_new_key_pair

    _private_key(seed)
    return create_new_key_pair(seed)
