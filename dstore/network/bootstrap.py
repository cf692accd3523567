"""Staying connected to the bootstrap peers: dialled at start, and again when they are lost.

Waits between attempts grow and are jittered; no peer is ever given up, and none is asked
more than once at a time.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from random import Random

import trio

from dstore.errors import ConfigError, NetworkError, PeerError
from dstore.limits import (
    BOOTSTRAP_BACKOFF_SECONDS_MAX,
    BOOTSTRAP_BACKOFF_SECONDS_MIN,
    BOOTSTRAP_PEERS_MAX,
)
from dstore.network.addresses import parse_target
from dstore.network.streams import PeerAddresses
from dstore.network.swarm import Swarm

log = logging.getLogger(__name__)


def bootstrap_targets(addresses: Sequence[str]) -> list[PeerAddresses]:
    """The peers that the multiaddrs name, several addresses of one peer together.
    Raises ConfigError with every fault."""
    faults: list[str] = []
    found: dict[PeerAddresses, None] = {}
    merged: dict[object, list[str]] = {}
    for address in addresses:
        try:
            target = parse_target(address)
        except ValueError as error:
            faults.append(f"network.bootstrap: {error}")
            continue
        merged.setdefault(target.peer, []).extend(target.addresses)
        found[PeerAddresses(target.peer)] = None
    if len(found) > BOOTSTRAP_PEERS_MAX:
        faults.append(f"network.bootstrap: {len(found)} peers; at most {BOOTSTRAP_PEERS_MAX}")
    if faults:
        raise ConfigError(faults)
    return [PeerAddresses(empty.peer, tuple(merged[empty.peer])) for empty in found]


def backoff_seconds(failures: int, random: Random) -> float:
    """How long to wait after so many failures in a row: doubling, capped, and between half
    and the whole of it, so that nodes that lost a peer together do not return together."""
    whole = min(
        BOOTSTRAP_BACKOFF_SECONDS_MIN * 2.0 ** min(failures, 16), BOOTSTRAP_BACKOFF_SECONDS_MAX
    )
    return whole * (0.5 + random.random() / 2)


async def stay_connected(swarm: Swarm, target: PeerAddresses, random: Random) -> None:
    """Runs until cancelled."""
    if target.peer == swarm.own:
        return
    failures = 0
    while True:
        try:
            connection = await swarm.dial(target)
        except (NetworkError, PeerError) as error:
            failures += 1
            log.info(
                "bootstrap peer not reached",
                extra={"peer": str(target.peer), "failures": failures, "reason": str(error)},
            )
        else:
            opened = trio.current_time()
            await connection.ended.wait()
            # A peer that accepts and hangs up at once is a failure too.
            stayed = trio.current_time() - opened
            failures = 0 if stayed > BOOTSTRAP_BACKOFF_SECONDS_MAX else failures + 1
        await trio.sleep(backoff_seconds(failures, random))
