"""From a seed to a peer id, and to the same identity in libp2p's hands."""

from __future__ import annotations

import random
import subprocess
import sys

import pytest

from dstore.errors import ConfigError
from dstore.network.identity import SEED_BYTES, key_pair_of, new_seed, peer_id_of


def test_the_peer_id_is_the_one_libp2p_makes_of_the_same_seed() -> None:
    from libp2p.peer.id import ID

    for number in range(8):
        seed = bytes([number]) * SEED_BYTES
        pair = key_pair_of(seed)
        assert ID.from_pubkey(pair.public_key).to_bytes() == peer_id_of(seed).binary
        assert str(ID.from_pubkey(pair.public_key)) == str(peer_id_of(seed))


def test_known_answer() -> None:
    # RFC 8032, test 1: this seed's public key.
    seed = bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
    public = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"
    ed25519 = peer_id_of(seed).ed25519
    assert ed25519 is not None
    assert ed25519.hex() == public


@pytest.mark.parametrize("size", [0, 31, 33, 64])
def test_a_seed_of_another_length_is_refused(size: int) -> None:
    with pytest.raises(ConfigError, match="32 bytes"):
        peer_id_of(bytes(size))
    with pytest.raises(ConfigError, match="32 bytes"):
        key_pair_of(bytes(size))


def test_new_seeds_come_from_the_random_source_given() -> None:
    first, again = new_seed(random.Random(1)), new_seed(random.Random(1))
    assert len(first) == SEED_BYTES
    assert first == again != new_seed(random.Random(2))


def test_a_peer_id_costs_no_libp2p() -> None:
    script = (
        "import sys; from dstore.network.identity import peer_id_of; peer_id_of(bytes(32));"
        "sys.exit(any(name.split('.')[0] in ('libp2p', 'trio') for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", script], timeout=60).returncode == 0
