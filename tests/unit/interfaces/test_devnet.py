"""Starting the nodes of a devnet, without processes."""

from __future__ import annotations

from pathlib import Path

import pytest

from dstore.interfaces import devnet as devnet_module
from dstore.interfaces.devnet import Devnet, DevnetNode


def test_few_nodes_start_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More would take turns at the processors, and join all in the same moment."""
    devnet = Devnet(tmp_path)
    devnet.nodes = [DevnetNode(f"n{one}", str(tmp_path), "", "", "") for one in range(9)]
    starting: set[str] = set()
    most, started = 0, []

    def start(_: Devnet, node: DevnetNode) -> DevnetNode:
        nonlocal most
        started.append(node.name)
        starting.add(node.name)
        most = max(most, len(starting))
        return node

    monkeypatch.setattr(devnet_module, "_STARTING_MAX", 3)
    monkeypatch.setattr(Devnet, "_start", start)
    monkeypatch.setattr(devnet_module, "_await_ready", lambda node: starting.discard(node.name))
    devnet._start_all([node.name for node in devnet.nodes])
    assert started == [node.name for node in devnet.nodes]
    assert most == 3
    assert not starting
