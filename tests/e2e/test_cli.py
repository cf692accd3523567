"""The command line against real daemons in processes of their own, on real TCP."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import stat
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dstore.interfaces.client import daemon_form
from dstore.storage.layout import Home

PATIENCE_SECONDS = 60
NODES = 5


def environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("DSTORE_")}


def command(*arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "dstore", *arguments],
        input=stdin,
        capture_output=True,
        timeout=PATIENCE_SECONDS,
        env=environment(),
        check=False,
    )


def good(*arguments: str, stdin: bytes = b"") -> bytes:
    done = command(*arguments, stdin=stdin)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


def form(*arguments: str) -> dict[str, Any]:
    found = json.loads(good(*arguments, "--json"))
    assert isinstance(found, dict)
    return found


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


class Net:
    """A devnet and its nodes' homes."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def home(self, number: int) -> str:
        return str(self.directory / f"n{number}")

    def __call__(self, name: str, *arguments: str) -> dict[str, Any]:
        return form("devnet", name, *arguments, "--dir", str(self.directory))

    def node(self, number: int) -> dict[str, Any]:
        found = self("status")["nodes"][number - 1]
        assert isinstance(found, dict)
        return found


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Net]:
    found = Net(tmp_path_factory.mktemp("devnet"))
    try:
        found("up", "-n", str(NODES))
        yield found
    finally:
        form("devnet", "down", "--dir", str(found.directory))


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a file of several stripes and whatever names files have."""
    top = tmp_path_factory.mktemp("content") / "tree"
    (top / "sub").mkdir(parents=True)
    (top / "large").write_bytes(hashlib.shake_128(b"large").digest(9_000_000))
    (top / "sub" / "small").write_bytes(b"small")
    (top / "sub" / "no utf8 \udcff\n").write_bytes(b"odd")
    (top / "sub" / "link").symlink_to("../large")
    (top / "empty").write_bytes(b"")
    return top


def test_a_devnet_is_ready_and_connected_when_up_returns(net: Net) -> None:
    nodes = net("status")["nodes"]
    assert [node["name"] for node in nodes] == [f"n{number + 1}" for number in range(NODES)]
    assert {node["state"] for node in nodes} == {"running"}
    assert len({node["domain"] for node in nodes}) == NODES
    everybody = {node["peer_id"] for node in nodes}
    for node in nodes:
        assert node.keys() >= {"name", "pid", "peer_id", "home", "gateway", "api", "domain"}
        peers = form("peers", "--home", node["home"])["peers"]
        connected = {peer["peer_id"] for peer in peers if peer["connected"]}
        assert connected == everybody - {node["peer_id"]}
        assert form("id", "--home", node["home"])["peer_id"] == node["peer_id"]


def test_add_status_and_reading_through_another_node(net: Net, tree: Path, tmp_path: Path) -> None:
    home, other = net.home(1), net.home(5)
    added = form("add", "--home", home, "--code", "2+2", str(tree / "large"))
    assert added["protected"] is True
    assert added["code"] == "2+2"
    assert added["guarantee"]["peers"] >= 1
    assert added["manifest"].startswith("bafyrei")
    cid = added["cid"]
    assert good("add", "--cid-only", str(tree / "large")).decode().strip() == cid

    status = form("status", cid, "--home", other)
    slots = [slot for segment in status["segments"] for slot in segment["slots"]]
    everybody = {node["peer_id"] for node in net("status")["nodes"]}
    assert {slot["slot"] for slot in slots} == {0, 1, 2, 3}
    assert all(slot["state"] == "live" and set(slot["holders"]) <= everybody for slot in slots)
    assert status["guarantee"]["peers"] == added["guarantee"]["peers"]

    content = (tree / "large").read_bytes()
    assert good("cat", cid, "--home", other) == content
    ranged = ("--offset", "5000000", "--length", "1000")
    assert good("cat", cid, *ranged, "--home", other) == content[5_000_000:5_001_000]
    url = net.node(4)["gateway"] + f"/ipfs/{cid}"
    with urllib.request.urlopen(url, timeout=PATIENCE_SECONDS) as reply:
        assert reply.read() == content

    pins = form("pin", "ls", "--home", home)["pins"]
    assert (cid, "protected", "2+2") in [(pin["cid"], pin["mode"], pin["code"]) for pin in pins]


def test_a_directory_comes_back_as_it_was(net: Net, tree: Path, tmp_path: Path) -> None:
    added = good("add", "--home", net.home(2), str(tree)).decode()
    word, cid, name = added.split()
    assert (word, name) == ("added", "tree")
    out = tmp_path / "out"
    told = form("get", cid, "-o", str(out), "--home", net.home(4))
    assert told["files"] == 5
    assert {path.relative_to(out) for path in out.rglob("*")} == {
        path.relative_to(tree) for path in tree.rglob("*")
    }
    for path in tree.rglob("*"):
        copy = out / path.relative_to(tree)
        if path.is_symlink():
            assert copy.readlink() == path.readlink()
        elif path.is_file():
            assert copy.read_bytes() == path.read_bytes()
    good("get", f"{cid}/sub/small", "-o", str(tmp_path / "one"), "--home", net.home(4))
    assert (tmp_path / "one").read_bytes() == b"small"
    lines = good("ls", f"{cid}/sub", "--json", "--home", net.home(3)).splitlines()
    names = {json.loads(line)["name"]: json.loads(line)["kind"] for line in lines}
    assert names == {"small": "file", "link": "symlink", "no utf8 \udcff\n": "file"}


def test_standard_input_and_a_pin_let_go(net: Net) -> None:
    content = os.urandom(3_000_000)
    home = ["--home", net.home(3)]
    line = good("add", "--name", "piped", *home, "-", stdin=content).decode().split()
    assert line[0] == "added"
    assert good("cat", line[1], "--home", net.home(1)) == content
    assert form("pin", "rm", line[1], *home)["holders_told"] >= 1
    assert line[1] not in {pin["cid"] for pin in form("pin", "ls", *home)["pins"]}


def test_too_weak_a_guarantee_is_an_error_where_one_is_required(net: Net, tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(os.urandom(100_000))
    done = command("add", "--require-guarantee", "40", "--home", net.home(1), str(path))
    assert done.returncode == 4
    assert b"40 were required" in done.stderr


def test_what_is_not_there(net: Net) -> None:
    for arguments, code in [
        (["cat", "bafkreifjjcie6lypi6ny7amxnfftagclbuxndqonfipmb64f2km2devei4/x"], 3),
        (["cat", "nonsense"], 2),
        (["add", "/no/such/file"], 3),
        (["pin", "rm", "bafkreifjjcie6lypi6ny7amxnfftagclbuxndqonfipmb64f2km2devei4"], 3),
    ]:
        done = command(*arguments, "--home", net.home(2))
        assert (done.returncode, done.stdout) == (code, b""), done.stderr


def test_killed_and_paused_nodes_and_their_return(net: Net, tree: Path) -> None:
    # Of its own: a file that is kept under two codes is as well off as the better of them.
    path = tree.parent / "kept"
    content = hashlib.shake_128(b"kept").digest(9_000_000)
    path.write_bytes(content)
    added = form("add", "--home", net.home(1), "--code", "3+2", str(path))
    before = net("status")["nodes"]
    assert net("kill", "n1")["state"] == "dead"
    assert net("pause", "n2")["state"] == "paused"
    assert command("id", "--home", net.home(1)).returncode == 0  # its keys are there
    assert good("cat", added["cid"], "--home", net.home(5)) == content
    done = command("status", added["cid"], "--json", "--home", net.home(5))
    assert done.returncode == 4
    assert json.loads(done.stdout)["state"] == "at risk"
    assert net("resume", "n2")["state"] == "running"
    after = net("up", "-n", str(NODES))["nodes"]
    assert {node["state"] for node in after} == {"running"}
    for old, new in zip(before, after, strict=True):
        same = ("name", "peer_id", "address", "domain", "gateway")
        assert [old[key] for key in same] == [new[key] for key in same]
        assert (old["pid"] == new["pid"]) == (new["name"] != "n1")
    assert good("cat", added["cid"], "--home", net.home(1)) == content


def test_a_daemon_from_start_to_stop(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    environ = environment() | {
        "DSTORE_NETWORK_LISTEN": "/ip4/127.0.0.1/tcp/0",
        "DSTORE_GATEWAY_LISTEN": "127.0.0.1:0",
        "DSTORE_LOG_FORMAT": "json",
    }
    run = [sys.executable, "-m", "dstore", "run", "--json", "--home", str(home.directory)]
    with subprocess.Popen(run, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environ) as one:
        try:
            assert one.stdout is not None
            ready = json.loads(one.stdout.readline())
            told = daemon_form(home.directory)
            assert stat.S_IMODE(home.api.stat().st_mode) == 0o600
            assert (told["pid"], told["peer_id"]) == (one.pid, ready["peer_id"])
            assert told["gateway"] == ready["gateway"]
            second = subprocess.run(run, capture_output=True, env=environ, timeout=60, check=False)
            assert second.returncode == 1
            assert f"(pid {one.pid}) is using".encode() in second.stderr
            assert home.api.exists()
            # A lonely node adds without waiting for anybody.
            line = good("add", "--home", str(home.directory), "-", stdin=b"alone").split()
            assert good("cat", line[1].decode(), "--home", str(home.directory)) == b"alone"
            one.send_signal(signal.SIGTERM)
            _, logs = one.communicate(timeout=PATIENCE_SECONDS)
        finally:
            one.kill()
    assert one.returncode == 0
    assert not home.api.exists()
    messages = [json.loads(line) for line in logs.splitlines()]
    assert [entry["message"] for entry in messages if entry["level"] == "info"][-1] == "stopping"
    assert not any(entry["level"] == "error" for entry in messages)
    done = command("status", "--home", str(home.directory))
    assert (done.returncode, b"dstore run --home" in done.stderr) == (1, True)


def test_a_devnet_that_cannot_start_says_why_and_leaves_nothing(tmp_path: Path) -> None:
    directory = tmp_path / "net"
    net = Net(directory)
    net("up", "-n", "1")
    net("down")
    (directory / "n1" / "node.toml").write_text("[nonsense]\n")
    done = command("devnet", "up", "-n", "2", "--dir", str(directory))
    assert done.returncode == 1
    assert b"n1 ended while it started" in done.stderr
    assert b"unknown section [nonsense]" in done.stderr
    assert {node["state"] for node in net("status")["nodes"]} == {"dead"}


def test_down_leaves_no_process_not_even_paused_ones(tmp_path: Path) -> None:
    net = Net(tmp_path / "net")
    nodes = net("up", "-n", "2", "--domains", "1")["nodes"]
    assert {node["domain"] for node in nodes} == {"machine-1"}
    net("pause", "n2")
    assert {node["state"] for node in net("down")["nodes"]} == {"dead"}
    for node in nodes:
        path = Path(f"/proc/{node['pid']}/stat")
        eventually(lambda path=path: not path.exists() or ") Z" in path.read_text())  # type: ignore[misc]
        assert not Path(node["home"], "api.json").exists()


def test_bandwidth_is_limited_and_let_go_while_the_node_runs(net: Net) -> None:
    home = net.home(2)
    usual = form("bandwidth", "--home", home)
    assert (usual["up"], usual["down"], usual["overridden"]) == (None, None, False)
    assert usual["sent_bytes"] > 0
    changed = form("bandwidth", "--home", home, "--up", "5 MB/s")
    assert (changed["up"], changed["down"], changed["overridden"]) == (5_000_000, None, True)
    both = form("bandwidth", "--home", home, "--down", "1MB/s")
    assert (both["up"], both["down"]) == (5_000_000, 1_000_000)
    wrong = command("bandwidth", "--home", home, "--up", "fast")
    assert wrong.returncode == 2
    assert b"not a size" in wrong.stderr
    slow = form("bandwidth", "--home", home, "--repair", "1MB/s")
    assert (slow["up"], slow["repair"], slow["traffic"]["repair"]["sent_bytes"]) == (
        5000000,
        1000000,
        0,
    )
    unknown = command("bandwidth", "--home", home, "--peers", "office", "--up", "1MB/s")
    assert unknown.returncode == 2
    assert b"no peers are configured as 'office'" in unknown.stderr
    assert command("bandwidth", "--home", home).stdout.startswith(b"up ")
    back = form("bandwidth", "--home", home, "--reset")
    assert (back["up"], back["down"], back["overridden"]) == (None, None, False)
