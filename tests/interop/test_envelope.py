"""Our envelopes and libp2p's own read each other: same bytes, same signatures."""

from __future__ import annotations

from libp2p.crypto.ed25519 import Ed25519PrivateKey
from libp2p.peer.envelope import Envelope, make_unsigned, unmarshal_envelope

from dstore.core.envelope import Kind, SigningKey, seal, unseal

SEED = bytes(range(32))
KIND = Kind(b"dstore-interop", b"/dstore/interop")
PAYLOAD = b"\x00payload" * 40


def test_libp2p_reads_and_verifies_ours() -> None:
    data = seal(SigningKey.from_seed(SEED), KIND, PAYLOAD)
    envelope = unmarshal_envelope(data)
    assert envelope.payload_type == KIND.payload_type
    assert envelope.raw_payload == PAYLOAD
    envelope.validate(KIND.domain.decode())
    assert envelope.public_key.to_bytes() == SigningKey.from_seed(SEED).public


def test_we_read_and_verify_theirs_and_the_bytes_are_the_same() -> None:
    ours = seal(SigningKey.from_seed(SEED), KIND, PAYLOAD)
    private = Ed25519PrivateKey.from_bytes(SEED)
    signature = private.sign(make_unsigned(KIND.domain.decode(), KIND.payload_type, PAYLOAD))
    theirs = Envelope(
        private.get_public_key(), KIND.payload_type, PAYLOAD, signature
    ).marshal_envelope()
    assert theirs == ours
    opened = unseal(theirs, KIND)
    assert opened.payload == PAYLOAD
    assert opened.public_key == private.get_public_key().to_bytes()
