"""The daemon: a node with its gateway and its local API, from start to stop.

Wiring only.  It starts the node, then the servers, then writes `api.json`, so that whoever
finds the file finds a daemon that answers; it stops in the reverse order, each step within
SHUTDOWN_SECONDS.
"""

from __future__ import annotations

import ctypes
import gc
import logging
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import trio

from dstore import __version__
from dstore.config import Config, parse_duration, parse_listen
from dstore.interfaces.api.app import api_app
from dstore.interfaces.forms import Form, dump
from dstore.interfaces.gateway.app import gateway_app
from dstore.interfaces.http import App, HttpServer, Receive, Scope, Send, serve_http
from dstore.interfaces.settings import node_options
from dstore.limits import MIB, SHUTDOWN_SECONDS
from dstore.runtime import Runtime, open_plain_nursery
from dstore.service.node import Node, open_node
from dstore.storage.layout import Home

log = logging.getLogger(__name__)

_TOKEN_BYTES = 32
_M_ARENA_MAX, _M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD = -8, -3, -1  # of glibc's malloc.h
_HEAP_ALLOCATIONS_MAX = 32 * MIB  # what is larger comes from the kernel each time
_HEAP_SPARE_BYTES = 128 * MIB  # at the heap's end, before it shrinks
_YOUNG_OBJECTS = 10_000  # between two collections: one look at a manifest makes thousands


@dataclass(frozen=True)
class Running:
    """A daemon that is ready: what its first line says.  `gateway` is None where it is off."""

    home: Path
    peer_id: str
    addresses: tuple[str, ...]
    gateway: str | None
    api: str


async def run_daemon(
    directory: Path,
    config: Config,
    ready: Callable[[Running], None],
    runtime: Runtime | None = None,
) -> None:
    """Run the node of the home `directory` until SIGTERM, SIGINT or the API ends it; a
    second signal cuts the draining short.  Raises as `open_node`, and NodeError where an
    address cannot be listened on."""
    keep_one_heap()
    runtime = runtime or Runtime()
    home = Home(directory)
    stop, hurry = trio.Event(), trio.CancelScope()
    # From the start: a signal while the stores open must not end the process half-way.
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with open_plain_nursery() as nursery:
            nursery.start_soon(_watch_signals, signals, stop, hurry)
            async with (
                open_node(directory, node_options(config), runtime) as node,
                _serving(node, home, config, runtime, stop) as (running, servers),
            ):
                # What is there now stays: the collector need not look at it again each time.
                gc.freeze()
                gc.set_threshold(_YOUNG_OBJECTS)
                log.info("ready", extra={"peer": running.peer_id, "gateway": running.gateway})
                ready(running)
                await stop.wait()
                log.info("stopping")
                # New programs must not find a daemon that is going.
                home.api.unlink(missing_ok=True)
                with hurry:
                    await _drain(servers)
            nursery.cancel_scope.cancel()


def keep_one_heap() -> None:
    """Worker threads allocate where the main thread does, and what is freed is kept for what comes
    next.  The interpreter's lock keeps them out of each other's way, and a heap for each would keep
    megabytes of blocks for nobody.  Blocks come and go some megabytes at a time: given back to the
    kernel in between, that memory would have to be found and cleared again for every batch."""
    with suppress(OSError, AttributeError):  # another C library than glibc
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_ARENA_MAX, 1)
        mallopt(_M_MMAP_THRESHOLD, _HEAP_ALLOCATIONS_MAX)
        mallopt(_M_TRIM_THRESHOLD, _HEAP_SPARE_BYTES)


async def _watch_signals(
    signals: AsyncIterator[int], stop: trio.Event, hurry: trio.CancelScope
) -> None:
    async for _ in signals:
        if stop.is_set():
            hurry.cancel()
        stop.set()


@asynccontextmanager
async def _serving(
    node: Node, home: Home, config: Config, runtime: Runtime, stop: trio.Event
) -> AsyncIterator[tuple[Running, list[HttpServer]]]:
    """Gateway and API, and api.json as long as they answer."""
    addresses = tuple(f"{one}/p2p/{node.peer_id}" for one in node.network.addresses())
    token = runtime.random.randbytes(_TOKEN_BYTES).hex()
    servers: list[HttpServer] = []
    async with AsyncExitStack() as stack:
        gateway_url: str | None = None
        if config.gateway.enabled:
            timeout = parse_duration(config.gateway.timeout)
            gateway = gateway_app(node, timeout, stopping=stop.is_set)
            listen = parse_listen(config.gateway.listen)
            servers.append(await stack.enter_async_context(serve_http(gateway, *listen)))
            gateway_url = servers[-1].url
        late = _Late()
        api = await stack.enter_async_context(serve_http(late, *parse_listen(config.api.listen)))
        servers.append(api)
        info: Form = {
            "pid": os.getpid(),
            "home": str(home.directory),
            "gateway": gateway_url,
            "api": api.url,
            "domain": config.domain.label,
        }
        late.app = api_app(node, api.port, token, stop.set, info)
        told = {
            **info,
            "version": __version__,
            "url": api.url,
            "token": token,
            "peer_id": str(node.peer_id),
            "addresses": list(addresses),
        }
        content = dump(told).encode() + b"\n"
        await runtime.workers.run(home.write_private, home.api, content)
        try:
            yield (
                Running(home.directory, str(node.peer_id), addresses, gateway_url, api.url),
                servers,
            )
        finally:
            home.api.unlink(missing_ok=True)


class _Late:
    """An application that is known only once its port is: nobody has the token before."""

    app: App | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self.app is not None:
            await self.app(scope, receive, send)


async def _drain(servers: list[HttpServer]) -> None:
    async with trio.open_nursery() as nursery:
        for server in servers:
            nursery.start_soon(server.drain, SHUTDOWN_SECONDS)
