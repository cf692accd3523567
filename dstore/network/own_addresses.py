"""The addresses that a node tells of itself: those it is told to, or those it listens on."""

from __future__ import annotations

import socket
from collections.abc import Sequence

from dstore.core.endpoint import Endpoint, parse_endpoint
from dstore.errors import ConfigError
from dstore.network.addresses import dialable


def checked(key: str, addresses: Sequence[str]) -> list[str]:
    """The addresses in canonical text.  Raises ConfigError where one is not dialable."""
    usable = dialable(addresses)
    if len(usable) < len(set(addresses)):
        bad = [address for address in addresses if not dialable([address])]
        raise ConfigError([f"{key}: not a TCP multiaddr that can be dialled: {a}" for a in bad])
    return usable


def written_out(listening: Endpoint) -> list[Endpoint]:
    """The endpoints behind a wildcard address; any other as it is."""
    ip = listening.ip
    if ip is None or not ip.is_unspecified:
        return [listening]
    family, loopback, far = (
        (socket.AF_INET, "127.0.0.1", "192.0.2.1")
        if ip.version == 4
        else (socket.AF_INET6, "::1", "2001:db8::1")
    )
    found = [loopback]
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((far, 9))  # picks a route; sends nothing
            found.append(probe.getsockname()[0])
        except OSError:
            pass  # no route out: loopback is all there is
    return [
        parse_endpoint(f"/ip{ip.version}/{host}/tcp/{listening.port}")
        for host in dict.fromkeys(found)
    ]
