"""A node on the real network: `dstore.network.streams.Network` over libp2p.

Here libp2p's exceptions, tasks and quirks end: callers see the types of `errors.py` and
multiaddrs in text.  TCP, Noise and our own yamux, nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from types import TracebackType

from dstore.core.peerid import PeerId
from dstore.limits import CONNECTIONS_MAX, DIAL_SECONDS, HANDSHAKE_SECONDS
from dstore.network.streams import PeerAddresses, Stream, StreamHandler
from dstore.runtime import Runtime


@dataclass(frozen=True)
class HostOptions:
    """`listen`: multiaddrs, port 0 for any free one.  `bootstrap`: multiaddrs that end in
    /p2p/<peer id>.  `announce`: told to peers instead of the addresses listened on."""

    listen: tuple[str, ...] = ("/ip4/127.0.0.1/tcp/0",)
    bootstrap: tuple[str, ...] = ()
    announce: tuple[str, ...] = ()
    agent: str = "dstore"
    connections_max: int = CONNECTIONS_MAX
    dial_seconds: float = DIAL_SECONDS
    handshake_seconds: float = HANDSHAKE_SECONDS


class Libp2pHost:
    """Made by `open_host`; implements `Network`."""

    @property
    def peer_id(self) -> PeerId:
        raise NotImplementedError

    def addresses(self) -> Sequence[str]:
        """Multiaddrs listened on, true ports, without the /p2p part."""
        raise NotImplementedError

    async def connect(self, target: PeerAddresses) -> None: ...
    async def open_stream(self, peer: PeerId, protocols: Sequence[str]) -> Stream:
        raise NotImplementedError

    def set_handler(self, protocol: str, handler: StreamHandler) -> None: ...
    def connected(self) -> Sequence[PeerId]:
        raise NotImplementedError

    def known_addresses(self, peer: PeerId) -> Sequence[str]:
        raise NotImplementedError

    def remember(self, target: PeerAddresses) -> None: ...
    async def speaks(self, peer: PeerId, protocol: str) -> bool:
        raise NotImplementedError

    async def disconnect(self, peer: PeerId) -> None: ...
    async def ping(self, peer: PeerId) -> float:
        """Seconds of one round trip."""
        raise NotImplementedError


def open_host(options: HostOptions, seed: bytes, runtime: Runtime) -> HostContext:
    """`async with open_host(options, seed, runtime) as host:` listens until the block ends."""
    raise NotImplementedError


class HostContext:
    async def __aenter__(self) -> Libp2pHost:
        raise NotImplementedError

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...
