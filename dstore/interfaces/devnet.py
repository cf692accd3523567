"""A network of real nodes on this machine: one process and one home directory each.

For demonstrations, tests and benchmarks.  What was started stands in `devnet.json`; whether
a process still is the one that was started is told by its start time, so that a process id
that went to somebody else is never signalled.  Linux only: it reads /proc.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal

from dstore.errors import CallerError, DstoreError, NodeError, NotFoundError
from dstore.interfaces.client import Client, daemon_form
from dstore.interfaces.homes import create_home, peer_id_of
from dstore.limits import DEVNET_DOWN_SECONDS, DEVNET_NODES_MAX, DEVNET_UP_SECONDS, KAD_BUCKET

_STATE_FILE: Final = "devnet.json"
_LOG_FILE: Final = "daemon.log"
_POLL_SECONDS: Final = 0.02
_SETTLE_SECONDS: Final = 0.2  # for the last to find the others before they are introduced
_BOOTSTRAP_NODES: Final = 3
_STARTING_MAX: Final = os.cpu_count() or 1
_LOG_LINES_SHOWN: Final = 15
# Below the ephemeral ports, which connections of other programs take at any time.
_PORTS: Final = range(20_000, 32_000)

State = Literal["running", "paused", "dead"]


@dataclass(frozen=True)
class DevnetNode:
    """One node as it was set up.  `started` is the process's start time in clock ticks since
    boot, 0 where it was never started."""

    name: str
    home: str
    peer_id: str
    domain: str
    address: str
    pid: int = 0
    started: int = 0

    @property
    def state(self) -> State:
        found = _process(self.pid)
        if found is None or found[1] != self.started or found[0] in "ZXx":
            return "dead"
        return "paused" if found[0] in "Tt" else "running"

    def signal(self, number: int) -> None:
        """Send a signal, unless the process is gone."""
        if self.state != "dead":
            try:
                os.kill(self.pid, number)
            except ProcessLookupError:
                return

    @property
    def form(self) -> dict[str, Any]:
        """The JSON form of `devnet status`."""
        told: dict[str, Any] = {}
        state = self.state
        if state != "dead":
            try:
                told = daemon_form(Path(self.home))
            except DstoreError:
                told = {}
        return {
            "name": self.name,
            "pid": self.pid,
            "peer_id": self.peer_id,
            "home": self.home,
            "gateway": told.get("gateway"),
            "api": told.get("url"),
            "domain": self.domain,
            "address": self.address,
            "state": state,
        }


class Devnet:
    """The nodes of a directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory.absolute()
        self.nodes: list[DevnetNode] = []

    @classmethod
    def load(cls, directory: Path) -> Devnet:
        """The devnet that was made in a directory.  Raises NotFoundError, NodeError."""
        devnet = cls(directory)
        path = devnet.directory / _STATE_FILE
        try:
            devnet.nodes = [DevnetNode(**node) for node in json.loads(path.read_text())["nodes"]]
        except FileNotFoundError as error:
            raise NotFoundError(
                f"no devnet in {directory}: make one with  dstore devnet up --dir {directory}"
            ) from error
        except (ValueError, KeyError, TypeError) as error:
            raise NodeError(f"{path} is damaged: remove the directory and start anew") from error
        return devnet

    def node(self, name: str) -> DevnetNode:
        """Raises NotFoundError."""
        for node in self.nodes:
            if node.name == name:
                return node
        names = ", ".join(node.name for node in self.nodes)
        raise NotFoundError(f"no node {name!r} in {self.directory} (there are {names})")

    # --- Up ------------------------------------------------------------------------------

    def up(self, count: int, domains: int | None) -> None:
        """Start `count` nodes in `domains` failure domains (each its own unless given), or
        those of an existing devnet that are dead; returns when all are ready and connected
        to each other, or each to KAD_BUCKET of them.  Raises CallerError, and NodeError with
        the log of one that failed."""
        if (self.directory / _STATE_FILE).exists():
            self.nodes = Devnet.load(self.directory).nodes
        self._make(count, domains or count)
        dead = [node.name for node in self.nodes if node.state == "dead"]
        try:
            self._start_all(dead)
            self._await_connected()
        except BaseException:
            # Nothing that this call started may stay behind.
            self._stop([node for node in self.nodes if node.name in dead])
            raise

    def _make(self, count: int, domains: int) -> None:
        """The homes of nodes that are not there yet."""
        if not 1 <= count <= DEVNET_NODES_MAX:
            raise CallerError(f"a devnet has 1 to {DEVNET_NODES_MAX} nodes, not {count}")
        if len(self.nodes) > count:
            raise CallerError(
                f"{self.directory} has {len(self.nodes)} nodes: ask for as many, or use another"
            )
        self.directory.mkdir(parents=True, exist_ok=True)
        taken = {int(node.address.split("/")[4]) for node in self.nodes}
        ports = _free_ports(taken)
        for number in range(len(self.nodes), count):
            home = self.directory / f"n{number + 1}"
            domain = f"machine-{number % domains + 1}"
            address = f"/ip4/127.0.0.1/tcp/{next(ports)}"
            bootstrap = [
                f"{node.address}/p2p/{node.peer_id}" for node in self.nodes[:_BOOTSTRAP_NODES]
            ]
            create_home(home, _config_text(domain, address, next(ports), bootstrap))
            self.nodes.append(
                DevnetNode(home.name, str(home), str(peer_id_of(home)), domain, address)
            )
        self._save()

    def _start_all(self, names: Sequence[str]) -> None:
        """Start nodes, few at a time, and wait until every one that is not paused is ready.  All
        at once would take turns at the processors to be ready together, and join in one rush."""
        for first in range(0, len(names), _STARTING_MAX):
            few = [self._start(self.node(name)) for name in names[first : first + _STARTING_MAX]]
            for node in few:
                _await_ready(node)
        self._save()
        for node in self.nodes:
            if node.state != "paused":
                _await_ready(node)

    def _start(self, node: DevnetNode) -> DevnetNode:
        home = Path(node.home)
        (home / "api.json").unlink(missing_ok=True)
        # Settings for the operator's own node are none for these.
        environ = {name: value for name, value in os.environ.items() if name[:7] != "DSTORE_"}
        command = [sys.executable, "-m", "dstore", "run", "--home", node.home]
        with (home / _LOG_FILE).open("ab") as log:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environ,
                cwd=home,
                start_new_session=True,
            )
        _children.append(process)
        found = _process(process.pid)
        started = replace(node, pid=process.pid, started=found[1] if found else 0)
        self.nodes[self.nodes.index(node)] = started
        return started

    def _await_connected(self) -> None:
        """Every running node sees all others, or as many as a node knows that has found its
        neighbours; who has not by himself is introduced to them.  One node after the other is
        asked, and not again once it sees them: the nodes are to find each other, not to answer
        questions about it."""
        running = {node.peer_id: node for node in self.nodes if node.state == "running"}
        settled = time.monotonic() + _SETTLE_SECONDS
        deadline = time.monotonic() + DEVNET_UP_SECONDS

        unseen: set[str] = set()
        enough = min(len(running) - 1, KAD_BUCKET)

        def sees_enough(node: DevnetNode) -> bool:
            if node.state == "dead":
                raise _ended(node)
            client = Client.of_home(Path(node.home))
            peers = client.get("/v1/peers", {"known": "true"})["peers"]
            seen = {one["peer_id"] for one in peers if one["connected"]}
            unseen.clear()
            unseen.update(running.keys() - seen - {node.peer_id})
            if len(seen & running.keys()) >= enough:
                return True
            for one in unseen if time.monotonic() > settled else ():
                address = f"{running[one].address}/p2p/{one}"
                client.post("/v1/peers/connect", {"address": address})
            return False

        for node in running.values():
            if not _wait(partial(sees_enough, node), deadline - time.monotonic()):
                lost = ", ".join(sorted(running[one].name for one in unseen))
                raise NodeError(
                    f"not all nodes are connected after {DEVNET_UP_SECONDS} s: "
                    f"{node.name} misses {lost}"
                )

    # --- Signals and down ----------------------------------------------------------------

    def kill(self, name: str) -> None:
        """SIGKILL; returns when the process is gone."""
        node = self.node(name)
        node.signal(signal.SIGKILL)
        if not _wait(lambda: node.state == "dead", DEVNET_DOWN_SECONDS):
            raise NodeError(f"{name} (pid {node.pid}) does not die: see {node.home}/{_LOG_FILE}")

    def pause(self, name: str) -> None:
        """SIGSTOP.  Raises NotFoundError where the node is dead."""
        self._alive(name).signal(signal.SIGSTOP)
        _wait(lambda: self.node(name).state == "paused", DEVNET_DOWN_SECONDS)

    def resume(self, name: str) -> None:
        """SIGCONT.  Raises NotFoundError where the node is dead."""
        self._alive(name).signal(signal.SIGCONT)
        _wait(lambda: self.node(name).state == "running", DEVNET_DOWN_SECONDS)

    def down(self) -> None:
        """Stop all nodes and wait for them; those that do not stop in time are killed."""
        self._stop(self.nodes)

    def _alive(self, name: str) -> DevnetNode:
        node = self.node(name)
        if node.state == "dead":
            raise NotFoundError(
                f"{name} is dead: start it again with  dstore devnet up --dir {self.directory}"
            )
        return node

    def _stop(self, nodes: Sequence[DevnetNode]) -> None:
        for node in nodes:
            node.signal(signal.SIGTERM)
            node.signal(signal.SIGCONT)
        if not _wait(lambda: all(node.state == "dead" for node in nodes), DEVNET_DOWN_SECONDS):
            for node in nodes:
                node.signal(signal.SIGKILL)
            _wait(lambda: all(node.state == "dead" for node in nodes), DEVNET_DOWN_SECONDS)

    def _save(self) -> None:
        content = json.dumps({"nodes": [asdict(node) for node in self.nodes]}, indent=1)
        path = self.directory / _STATE_FILE
        temporary = path.with_suffix(".new")
        temporary.write_text(content)
        temporary.replace(path)


# Processes that this one started: reaped as they end, so that none stays a zombie.
_children: list[subprocess.Popen[bytes]] = []


def _process(pid: int) -> tuple[str, int] | None:
    """State letter and start time of a process, or None where there is none."""
    for child in _children:
        child.poll()
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The name in parentheses may hold spaces and parentheses.
    fields = text.rpartition(")")[2].split()
    return fields[0], int(fields[19])


def _config_text(domain: str, address: str, gateway_port: int, bootstrap: list[str]) -> str:
    from dstore.config import (
        Config,
        DomainSection,
        GatewaySection,
        NetworkSection,
        StorageSection,
    )
    from dstore.interfaces.nodetoml import commented

    return commented(
        Config(
            storage=StorageSection(capacity="20 GiB", reserve="64 MiB"),
            domain=DomainSection(label=domain),
            network=NetworkSection(listen=(address,), bootstrap=tuple(bootstrap)),
            gateway=GatewaySection(listen=f"127.0.0.1:{gateway_port}"),
        )
    )


def _free_ports(taken: set[int]) -> Iterator[int]:
    """Ports of 127.0.0.1 that nobody listens on now, from a place that differs by process."""
    start = os.getpid() * 64 % len(_PORTS)
    for index in range(len(_PORTS)):
        port = _PORTS[(start + index) % len(_PORTS)]
        if port in taken:
            continue
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        yield port
    raise NodeError("no free port on 127.0.0.1")


def _await_ready(node: DevnetNode) -> None:
    def ready() -> bool:
        if node.state == "dead":
            raise _ended(node)
        try:
            return bool(daemon_form(Path(node.home)).get("pid") == node.pid)
        except DstoreError:
            return False

    if not _wait(ready, DEVNET_UP_SECONDS):
        raise NodeError(f"{node.name} is not ready after {DEVNET_UP_SECONDS} s\n{_tail(node)}")


def _ended(node: DevnetNode) -> NodeError:
    return NodeError(f"{node.name} ended while it started:\n{_tail(node)}")


def _tail(node: DevnetNode) -> str:
    path = Path(node.home) / _LOG_FILE
    lines = path.read_text("utf-8", "replace").splitlines()[-_LOG_LINES_SHOWN:]
    return "\n".join([f"{path}:", *(f"  {line}" for line in lines)])


def _wait(condition: Callable[[], bool], seconds: float) -> bool:
    """Whether the condition came true in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_SECONDS)
    return True
