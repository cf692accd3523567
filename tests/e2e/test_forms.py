"""The JSON forms that scripts rely on, key by key, from a network of four real nodes.

docs/reference/cli.md documents them; here every key is there, of its type, and means what it
says.  What the commands do is tested in `test_cli.py`.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

NODES = 4
CID = re.compile(r"b[a-z2-7]{58}")
PEER = re.compile(r"12D3KooW[1-9A-HJ-NP-Za-km-z]{44}")
URL = re.compile(r"http://127\.0\.0\.1:\d+")


def run(*arguments: str, code: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "dstore", *arguments],
        env={name: value for name, value in os.environ.items() if name[:7] != "DSTORE_"},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == code, f"{arguments}: {done.stderr}"
    return done.stdout


def forms(*arguments: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in run(*arguments, "--json").splitlines()]


@dataclass(frozen=True)
class Net:
    directory: Path

    def status(self) -> dict[str, Any]:
        (form,) = forms("devnet", "status", "--dir", str(self.directory))
        return form

    def home(self, number: int) -> str:
        return str(self.directory / f"n{number}")


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Net]:
    found = Net(tmp_path_factory.mktemp("net"))
    try:
        run("devnet", "up", "-n", str(NODES), "--dir", str(found.directory))
        yield found
    finally:
        run("devnet", "down", "--dir", str(found.directory))


def file(directory: Path, name: str, size: int = 2_500_000) -> str:
    path = directory / name
    path.write_bytes(hashlib.shake_128(name.encode()).digest(size))
    return str(path)


def check_guarantee(form: object, m: int) -> None:
    assert isinstance(form, dict)
    assert {key: type(value) for key, value in form.items()} == {
        "peers": int,
        "domains": int,
        "text": str,
    }
    assert form["peers"] == m
    assert form["text"]


def test_add(net: Net, tmp_path: Path) -> None:
    paths = [file(tmp_path, "one"), file(tmp_path, "two")]
    given = forms("add", "--code", "2+1", "--home", net.home(1), *paths)
    assert [form["name"] for form in given] == ["one", "two"]
    for form, path in zip(given, paths, strict=True):
        assert CID.fullmatch(form["cid"])
        assert run("add", "--cid-only", path) == form["cid"] + "\n"
        assert CID.fullmatch(form["manifest"])
        assert form["code"] == "2+1"
        assert form["protected"] is True
        check_guarantee(form["guarantee"], 1)
        assert form["warnings"] == []
        assert type(form["size"]) is int


def test_add_on_this_node_alone(net: Net, tmp_path: Path) -> None:
    (form,) = forms("add", "--local-only", "--home", net.home(1), file(tmp_path, "alone"))
    assert form["manifest"] is None
    assert form["code"] is None
    assert form["protected"] is False
    check_guarantee(form["guarantee"], 0)


def test_cid_only_prints_the_cid_alone(tmp_path: Path) -> None:
    path = tmp_path / "hello"
    path.write_bytes(b"hello world")
    known = {
        "unixfs-v1-2025": "bafkreifzjut3te2nhyekklss27nh3k72ysco7y32koao5eei66wof36n5e",
        "unixfs-v0-2015": "Qmf412jQZiuVUtdgnB36FXFX7xg5V6KEbSJ4dpQuhkLyfD",
    }
    for profile, cid in known.items():
        nowhere = ("--home", str(tmp_path / "none"))
        given = run("add", "--cid-only", "--cid-profile", profile, *nowhere, str(path))
        assert given == cid + "\n"
    assert [one.name for one in tmp_path.iterdir()] == ["hello"]


def test_status(net: Net, tmp_path: Path) -> None:
    path = file(tmp_path, "watched")
    (added,) = forms("add", "--code", "2+2", "--home", net.home(1), path)
    nodes = net.status()["nodes"]
    everybody = {node["peer_id"] for node in nodes}
    for number in (1, 4):
        (form,) = forms("status", added["cid"], "--home", net.home(number))
        assert (form["cid"], form["manifest"]) == (added["cid"], added["manifest"])
        assert (form["code"], form["state"]) == ("2+2", "healthy")
        check_guarantee(form["guarantee"], 2)
        (segment,) = form["segments"]
        assert [slot["slot"] for slot in segment["slots"]] == [0, 1, 2, 3]
        for slot in segment["slots"]:
            assert type(slot["slot"]) is int
            assert slot["holders"]
            assert set(slot["holders"]) <= everybody
    assert all(PEER.fullmatch(peer) for peer in everybody)


def test_devnet(net: Net) -> None:
    form = net.status()
    assert form["dir"] == str(net.directory)
    assert [node["name"] for node in form["nodes"]] == ["n1", "n2", "n3", "n4"]
    for number, node in enumerate(form["nodes"], start=1):
        assert type(node["pid"]) is int
        os.kill(node["pid"], 0)
        assert PEER.fullmatch(node["peer_id"])
        assert node["home"] == net.home(number)
        assert URL.fullmatch(node["gateway"])
        assert URL.fullmatch(node["api"])
        assert type(node["domain"]) is str


def test_devnet_signals(net: Net) -> None:
    """Last here: it ends a node."""
    where = ("--dir", str(net.directory))
    pid = net.status()["nodes"][3]["pid"]

    def state() -> str:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]

    run("devnet", "pause", "n4", *where)
    assert state() == "T"
    assert net.status()["nodes"][3]["state"] == "paused"
    run("devnet", "resume", "n4", *where)
    assert state() in "SRD"
    run("devnet", "kill", "n4", *where)
    # Gone, or a zombie where whoever takes in orphans does not reap them.
    assert not Path(f"/proc/{pid}").exists() or state() == "Z"
    node = net.status()["nodes"][3]
    assert (node["state"], node["gateway"], node["api"]) == ("dead", None, None)
