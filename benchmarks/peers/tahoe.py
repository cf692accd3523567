"""Tahoe-LAFS: an introducer, five storage nodes, 3-of-5 with happy 5, gateways without storage.

All defaults but the encoding: HTTPS storage protocol, encryption, convergence, 1 MiB segments.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

from benchmarks.http_files import fetch_all
from benchmarks.peers.measure import (
    Trees,
    beside_sick,
    free_port,
    middle,
    running,
    wait_until,
    whole,
)
from benchmarks.peers.peer import SMALL_BYTES, Load, Peer, Row, place, tell, venv_with
from benchmarks.protected import SETTLED_SECONDS

_REQUIREMENT = "tahoe-lafs==1.20.0"
_SERVERS = 5
_CODE = ["--shares-needed", "3", "--shares-happy", "5", "--shares-total", "5"]
_SICK_SHARES = ("0", "1")
_CLIENTS = 8
_PUT_SECONDS = 120


def prepare() -> str:
    venv_with("tahoe", _REQUIREMENT)
    return tell([_tahoe(), "--version"]).splitlines()[0].rpartition("/")[2]


def _tahoe() -> Path:
    return place("tahoe") / "venv" / "bin" / "tahoe"


class Grid:
    """The introducer and the storage nodes, running."""

    def __init__(self, work: Path, stack: ExitStack, gateways: int = 0) -> None:
        """The first `gateways` of the storage nodes are gateways, too."""
        self._work = work
        self.introducer = ""
        self.servers: dict[str, subprocess.Popen[bytes]] = {}
        self.urls: dict[str, str] = {}  # of the servers that are gateways
        self._create("create-introducer", "introducer", self._listening())
        stack.enter_context(self._run("introducer"))
        furl = work / "introducer" / "private" / "introducer.furl"
        wait_until("the introducer runs", lambda: furl.exists() and furl.read_text().strip())
        self.introducer = furl.read_text().strip()
        for number in range(_SERVERS):
            name = f"server-{number}"
            web = "--webport=none"
            if number < gateways:
                web, self.urls[name] = self._web()
            joined = ["--introducer", self.introducer, web, *_CODE]
            self._create("create-node", name, [*self._listening(), *joined])
            self.servers[name] = stack.enter_context(self._run(name))

    def _listening(self) -> list[str]:
        port = free_port()
        return [f"--port=tcp:{port}:interface=127.0.0.1", f"--location=tcp:127.0.0.1:{port}"]

    def _web(self) -> tuple[str, str]:
        """The option for a gateway's port, and its URL."""
        port = free_port()
        return f"--webport=tcp:{port}:interface=127.0.0.1", f"http://127.0.0.1:{port}"

    def _create(self, what: str, name: str, words: list[str]) -> None:
        tell([_tahoe(), what, *words, self._work / name])

    def _run(self, name: str) -> AbstractContextManager[subprocess.Popen[bytes]]:
        command: list[str | Path] = [_tahoe(), "run", "--allow-stdin-close", self._work / name]
        return running(command, self._work / f"{name}.log")

    @contextmanager
    def gateway(self, name: str, servers: int = _SERVERS) -> Iterator[tuple[Trees, str]]:
        """A fresh client that is connected to so many servers, left alone for a while."""
        web, url = self._web()
        self._create("create-client", name, [web, *_CODE, "--introducer", self.introducer])
        with self._run(name) as process:
            settle(name, url, servers)
            yield Trees(process.pid), url

    def holders(self, shares: tuple[str, ...]) -> list[str]:
        """The servers of these shares of the only file."""
        stored = (self._work / name / "storage" / "shares" for name in self.servers)
        found = [path for root in stored for path in root.glob("*/*/*") if path.name in shares]
        return [path.relative_to(self._work).parts[0] for path in found]

    def trees(self, without: list[str]) -> Trees:
        well = [one.pid for name, one in self.servers.items() if name not in without]
        return Trees(*well)


def settle(name: str, url: str, servers: int) -> None:
    """Wait until the gateway is connected to so many servers, and leave it alone for a while."""

    def connected() -> bool:
        with urllib.request.urlopen(f"{url}/?t=json", timeout=5) as answer:
            known = json.load(answer)["servers"]
        words = [str(one["connection_status"]).lower() for one in known]
        return sum(word.startswith("connected") for word in words) >= servers

    wait_until(f"{name} knows {servers} servers", connected)
    time.sleep(SETTLED_SECONDS)


@contextmanager
def _grid(work: Path, gateways: int = 0) -> Iterator[Grid]:
    with ExitStack() as stack:
        yield Grid(work, stack, gateways)


def _put(connection: http.client.HTTPConnection, body: bytes | Path) -> str:
    """Add an immutable file; its capability."""
    if isinstance(body, Path):
        with body.open("rb") as file:
            size = {"Content-Length": str(body.stat().st_size)}
            connection.request("PUT", "/uri", file, size)
            response = connection.getresponse()
    else:
        connection.request("PUT", "/uri", body)
        response = connection.getresponse()
    told = response.read().decode()
    if response.status not in (200, 201):
        raise SystemExit(f"PUT /uri: status {response.status}: {told[:300]}")
    return told


def _connect(url: str) -> http.client.HTTPConnection:
    return http.client.HTTPConnection(urllib.parse.urlsplit(url).netloc, timeout=_PUT_SECONDS)


def _path(capability: str) -> str:
    return f"/uri/{urllib.parse.quote(capability, safe='')}"


def _add(grid: Grid, load: Load, row: Row) -> str:
    with grid.gateway("adder") as (adder, url):
        servers = grid.trees([])
        begun = time.perf_counter()
        capability = _put(_connect(url), load.path)
        row["coded_add_mb_per_s"] = load.size / 1e6 / (time.perf_counter() - begun)
        used = adder.cpu_seconds() + servers.cpu_seconds()
        row["coded_add_cpu_s_per_gib"] = used / load.gib
        row["adder_peak_mib"] = adder.peak_mib()
    return capability


def five(work: Path, load: Load) -> Row:
    """A coded add through one of the five storage nodes, which keeps one share itself."""
    with _grid(work, gateways=1) as grid:
        name, url = next(iter(grid.urls.items()))
        settle(name, url, _SERVERS)
        begun = time.perf_counter()
        _put(_connect(url), load.path)
        return {"own_slot_add_mb_per_s": load.size / 1e6 / (time.perf_counter() - begun)}


def large(work: Path, load: Load) -> Row:
    row: Row = {}
    with _grid(work) as grid:
        path = _path(_add(grid, load, row))
        with grid.gateway("whole") as (gateway, url):
            row |= whole(url, path, load, Trees(*gateway.pids), grid.trees([]))
        with grid.gateway("range") as (_, url):
            row |= middle(url, path, load)
    return row


def sick_holders(work: Path, load: Load) -> Row:
    """The holders of two data shares stopped, then killed, before the gateway starts."""
    row: Row = {}
    with _grid(work) as grid:
        path = _path(_add(grid, load, {}))
        names = grid.holders(_SICK_SHARES)
        for mode, word in (("stopped", signal.SIGSTOP), ("dead", signal.SIGKILL)):
            for name in names:
                os.kill(grid.servers[name].pid, word)
            with grid.gateway(mode, _SERVERS - len(names)) as (gateway, url):
                trees = grid.trees(names)
                found = whole(url, path, load, Trees(*gateway.pids), trees)
            row |= beside_sick(mode, found)
    return row


def small(work: Path, load: Load) -> Row:
    """One by one; then eight clients at once and one immutable directory of what they put."""
    bodies = load.bodies()
    files = [path.read_bytes() for path in load.names()]
    with _grid(work) as grid:
        with grid.gateway("adder") as (_, url):
            connection = _connect(url)
            begun = time.perf_counter()
            alone = [_put(connection, body) for body in bodies]
            each = time.perf_counter() - begun
            begun = time.perf_counter()
            with ThreadPoolExecutor(_CLIENTS) as pool:
                caps = list(pool.map(lambda body: _put(_connect(url), body), files))
            children = {
                path.name: ["filenode", {"ro_uri": cap}]
                for path, cap in zip(load.names(), caps, strict=True)
            }
            connection.request("POST", "/uri?t=mkdir-immutable", json.dumps(children))
            root = connection.getresponse().read().decode()
            together = time.perf_counter() - begun
        with grid.gateway("each") as (_, url):
            got = fetch_all(url, [_path(cap) for cap in alone], 1, SMALL_BYTES)
        with grid.gateway("tree") as (_, url):
            paths = [f"{_path(root)}/{path.name}" for path in load.names()]
            got_tree = fetch_all(url, paths, _CLIENTS, SMALL_BYTES)
    return {
        "small_put_per_s": load.small / each,
        "small_put_together_per_s": load.small / together,
        "small_get_per_s": load.small / got,
        "small_get_together_per_s": load.small / got_tree,
    }


PEER = Peer(
    prepare=prepare,
    parts={"five": five, "large": large, "sick": sick_holders, "small": small},
)
