"""iroh 0.35 by its Python binding: BLAKE3, two nodes over QUIC, whole blobs only.

The binding reads neither a stream nor a range of what another node has: no first byte, no range.
The fetch includes the set-up of its connection, which the binding makes by itself.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from benchmarks.peers import pair
from benchmarks.peers.peer import Peer, place, venv_with

_VERSION = "0.35.0"
_COMMAND = (place("iroh") / "venv" / "bin" / "python", Path(__file__).with_name("node.py"))


def prepare() -> str:
    venv_with("iroh", f"iroh=={_VERSION}")
    return _VERSION


PEER = Peer(
    prepare=prepare,
    parts={
        "large": partial(pair.large, _COMMAND, connect=False),
        "small": partial(pair.small, _COMMAND, connect=False),
    },
)
