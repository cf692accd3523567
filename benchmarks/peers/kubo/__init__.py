"""Kubo, built by Go from `go.mod`: two daemons on loopback, connected by hand, nothing else on.

TCP with its own choice of TLS or Noise, yamux, bitswap; no routing, no bootstrap, no discovery,
no relay, no providing, no telemetry.  Otherwise its defaults, flatfs without fsync among them.
"""

from __future__ import annotations

import http.client
import json
import os
import shutil
import subprocess
import time
import urllib.parse
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from benchmarks.http_files import fetch_all
from benchmarks.peers.measure import (
    Trees,
    free_port,
    middle,
    run_timed,
    running,
    wait_until,
    whole,
)
from benchmarks.peers.peer import SMALL_BYTES, Load, Peer, Row, Unavailable, place, tell
from benchmarks.protected import SETTLED_SECONDS

_HERE = Path(__file__).parent
_IPFS = place("kubo") / "ipfs"
_PROGRAM = "github.com/ipfs/kubo/cmd/ipfs"
_CLIENTS = 8
_OFF: dict[str, Any] = {
    "AutoConf": {"Enabled": False},
    "AutoNAT": {"ServiceMode": "disabled"},
    "AutoTLS": {"Enabled": False},
    "Bootstrap": [],
    "DNS": {"Resolvers": {}},
    "Discovery": {"MDNS": {"Enabled": False}},
    "HTTPRetrieval": {"Enabled": False},
    "Ipns": {"DelegatedPublishers": []},
    "Provide": {"Enabled": False},
    "Routing": {"Type": "none", "DelegatedRouters": []},
    "Version": {"SwarmCheckEnabled": False},
}


def prepare() -> str:
    go = shutil.which("go") or "/usr/local/go/bin/go"
    wanted = (_HERE / "go.sum").read_text()
    ready = place("kubo") / "ready"
    if not (_IPFS.exists() and ready.exists() and ready.read_text() == wanted):
        if not Path(go).exists():
            raise Unavailable("it is built by Go, and there is no Go")
        _IPFS.parent.mkdir(parents=True, exist_ok=True)
        tell([go, "build", "-buildvcs=false", "-o", _IPFS, _PROGRAM], cwd=_HERE)
        ready.write_text(wanted)
    return tell([_IPFS, "version", "-n"])


class Daemon:
    """A repository of its own and the daemon that serves it."""

    def __init__(self, home: Path, stack: ExitStack) -> None:
        self.env = {"IPFS_PATH": str(home), "IPFS_TELEMETRY": "off"}
        self.api, gateway = free_port(), free_port()
        self.url = f"http://127.0.0.1:{gateway}"
        self._log = home.with_suffix(".log")
        run_timed([_IPFS, "init", "--empty-repo"], self.env, self._log)
        config = json.loads((home / "config").read_text())
        config |= _OFF
        config["Addresses"] |= {
            "API": f"/ip4/127.0.0.1/tcp/{self.api}",
            "Gateway": f"/ip4/127.0.0.1/tcp/{gateway}",
            "Swarm": [f"/ip4/127.0.0.1/tcp/{free_port()}"],
        }
        config["Swarm"] |= {
            "DisableNatPortMap": True,
            "EnableHolePunching": False,
            "RelayClient": {"Enabled": False},
            "RelayService": {"Enabled": False},
        }
        (home / "config").write_text(json.dumps(config))
        process = stack.enter_context(running([_IPFS, "daemon"], self._log, self.env))
        self.pid = process.pid
        wait_until("the daemon is ready", lambda: "Daemon is ready" in self._log.read_text())

    def ipfs(self, *words: str) -> str:
        done = subprocess.run(
            [_IPFS, *words], env={**os.environ, **self.env}, capture_output=True, text=True
        )
        if done.returncode:
            raise SystemExit(f"ipfs {words[0]}: {done.stderr[-300:]}")
        return done.stdout.strip()

    def add(self, path: Path, *words: str) -> tuple[str, float]:
        """By the command; the CID and the seconds."""
        begun = time.perf_counter()
        cid = self.ipfs("add", "-Q", "--progress=false", *words, str(path))
        return cid, time.perf_counter() - begun

    def add_bytes(self, connection: http.client.HTTPConnection, body: bytes) -> str:
        """By the RPC API: no process a file."""
        head = '--edge\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n'
        form = head.encode() + body + b"\r\n--edge--\r\n"
        headers = {"Content-Type": "multipart/form-data; boundary=edge"}
        connection.request("POST", "/api/v0/add?progress=false", form, headers)
        told: dict[str, str] = json.loads(connection.getresponse().read())
        return told["Hash"]


@contextmanager
def _two(work: Path) -> Iterator[tuple[Daemon, Daemon]]:
    """A daemon that has, and one that is connected to it and has nothing."""
    with ExitStack() as stack:
        giver, taker = Daemon(work / "giver", stack), Daemon(work / "taker", stack)
        taker.ipfs("swarm", "connect", giver.ipfs("id", "-f", "<addrs>").splitlines()[0])
        time.sleep(SETTLED_SECONDS)
        yield giver, taker


def large(work: Path, load: Load) -> Row:
    with _two(work) as (giver, taker):
        used = Trees(giver.pid)
        cid, seconds = giver.add(load.path)
        row: Row = {
            "local_add_mb_per_s": load.size / 1e6 / seconds,
            "local_add_cpu_s_per_gib": used.cpu_seconds() / load.gib,
            "local_add_peak_mib": used.peak_mib(),
        }
        return row | whole(taker.url, f"/ipfs/{cid}", load, Trees(taker.pid), Trees(giver.pid))


def cold_range(work: Path, load: Load) -> Row:
    with _two(work) as (giver, taker):
        cid, _ = giver.add(load.path)
        return middle(taker.url, f"/ipfs/{cid}", load)


def small(work: Path, load: Load) -> Row:
    bodies = load.bodies()
    with _two(work) as (giver, taker):
        connection = http.client.HTTPConnection("127.0.0.1", giver.api, timeout=60)
        begun = time.perf_counter()
        cids = [giver.add_bytes(connection, body) for body in bodies]
        each = time.perf_counter() - begun
        root, together = giver.add(load.tree, "-r")
        got = fetch_all(taker.url, [f"/ipfs/{cid}" for cid in cids], 1, SMALL_BYTES)
        paths = [f"/ipfs/{root}/{urllib.parse.quote(path.name)}" for path in load.names()]
        got_tree = fetch_all(taker.url, paths, _CLIENTS, SMALL_BYTES)
    return {
        "small_add_per_s": load.small / each,
        "small_add_together_per_s": load.small / together,
        "small_get_per_s": load.small / got,
        "small_get_together_per_s": load.small / got_tree,
    }


PEER = Peer(prepare=prepare, parts={"large": large, "range": cold_range, "small": small})
