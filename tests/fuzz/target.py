"""What a fuzz target is, and the list of them: one per decoder that reads bytes from outside.

Targets are loaded by name, so that an engine can instrument what it then imports; nothing of
dstore is imported here.
"""

from __future__ import annotations

import importlib
import time
import tracemalloc
from collections.abc import Callable, Iterable
from dataclasses import dataclass

MIB = 1024 * 1024
# What one input may cost under instrumentation, which makes code some five times slower.
CPU_SECONDS_MAX = 5.0
MEMORY_BYTES_MAX = 4 * MIB  # eight times what any legal input was seen to take

# Target → the module of this folder that has it in its `TARGETS`, most exposed first.
MODULES = {
    "wire-request": "wire",
    "wire-answer": "wire",
    "wire-upload": "wire",
    "fragments-server": "fragments",
    "fragments-client": "fragments",
    "yamux": "yamux",
    "noise-handshake": "noise",
    "noise-payload": "noise",
    "noise-session": "noise",
    "negotiate": "streams",
    "frames": "streams",
    "kad": "peers",
    "identify": "peers",
    "peer-record": "peers",
    "addresses": "peers",
    "records": "records",
    "manifest": "manifest",
    "segment": "manifest",
    "dagcbor": "dags",
    "dagpb": "dags",
    "unixfs": "dags",
    "walk": "dags",
    "cid": "names",
    "peer-id": "names",
    "http": "http",
    "gateway": "http",
    "content": "http",
    "api": "http",
}

# Packages beside dstore whose branches count, by module.
BESIDE = {
    "noise": ("libp2p.crypto", "Crypto.PublicKey"),
    "peers": ("multiaddr",),
    "names": ("multibase", "base58"),
}


@dataclass(frozen=True)
class Target:
    """One decoder.  `check` returns where the input is legal or refused as documented, and
    raises where a property does not hold; `seeds` are legal inputs to start from;
    `protobuf` says that mutations should keep the nesting of lengths whole."""

    check: Callable[[bytes], None]
    seeds: Callable[[], Iterable[bytes]]
    bytes_max: int = 4096
    protobuf: bool = False


def load(name: str) -> Target:
    """The target of that name."""
    module = importlib.import_module(f"tests.fuzz.{MODULES[name]}")
    target: Target = module.TARGETS[name]
    return target


def run_bounded(target: Target, data: bytes, *, weigh: bool) -> None:
    """Check one input, and that it took bounded time; with `weigh`, bounded memory too."""
    if weigh:
        tracemalloc.start()
    started = time.thread_time()
    try:
        target.check(data)
        spent = time.thread_time() - started
        peak = tracemalloc.get_traced_memory()[1] if weigh else 0
    finally:
        if weigh:
            tracemalloc.stop()
    assert spent < CPU_SECONDS_MAX, f"{spent:.1f} s of a core for {len(data)} bytes"
    assert peak < MEMORY_BYTES_MAX, f"{peak} bytes of memory for {len(data)} bytes"
