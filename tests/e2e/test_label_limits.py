"""Limits for peers by the label that they announce: real daemons, over TCP."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dstore.limits import BANDWIDTH_BURST_SECONDS
from tests.e2e.test_cli import environment, eventually, form, good

RATE = 2_000_000
BYTES = 8_000_000
_BASE = '[network]\nlisten = ["/ip4/127.0.0.1/tcp/0"]\n{network}[gateway]\nenabled = false\n'
_GROUP = '[bandwidth.peers.site]\nlabels = ["site-a"]\nschedule = ["00:00-24:00 up=200MB/s"]\n'


@contextmanager
def daemon(home: Path, more: str, join: str | None = None) -> Iterator[dict[str, Any]]:
    """A daemon of its own configuration; yields what it says when it is ready."""
    good("init", "--home", str(home))
    network = f'bootstrap = ["{join}"]\n' if join else ""
    (home / "node.toml").write_text(_BASE.format(network=network) + more)
    command = [sys.executable, "-m", "dstore", "run", "--home", str(home), "--json"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment()
    )
    assert process.stdout is not None
    try:
        yield json.loads(process.stdout.readline())
    finally:
        process.terminate()
        process.wait(20)
        process.stdout.close()


def test_a_label_brings_its_peers_under_a_limit_and_others_not(tmp_path: Path) -> None:
    homes = [tmp_path / name for name in ("giver", "labelled", "other")]
    giver = str(homes[0])

    def site() -> dict[str, Any]:
        found: dict[str, Any] = form("bandwidth", "--home", giver)["peers"]["site"]
        return found

    with daemon(homes[0], _GROUP) as ready:
        (address, *_) = ready["addresses"]
        content = tmp_path / "content"
        content.write_bytes(hashlib.shake_128(b"content").digest(BYTES))
        cid = form("add", "--home", giver, "--local-only", str(content))["cid"]
        assert (site()["labels"], site()["claimed_by"]) == (["site-a"], [])
        with (
            daemon(homes[1], '[domain]\nlabel = "site-a"\n', address) as labelled,
            daemon(homes[2], '[domain]\nlabel = "site-b"\n', address) as other,
        ):
            ours = {labelled["peer_id"], other["peer_id"]}
            eventually(lambda: set(_connected(giver)) == ours)
            eventually(lambda: site()["claimed_by"] == [labelled["peer_id"]])
            assert site()["up"] == 200_000_000  # by the hour
            good("bandwidth", "--home", giver, "--peers", "site", "--up", f"{RATE // 1000} KB/s")
            assert site()["up"] == RATE

            # The giver alone has it, so all of it comes under the limit.
            begun, before = time.monotonic(), site()["sent_bytes"]
            assert good("cat", "--home", str(homes[1]), cid) == content.read_bytes()
            passed, carried = time.monotonic() - begun, site()["sent_bytes"] - before
            assert carried >= BYTES
            assert passed > BYTES / RATE - 2 * BANDWIDTH_BURST_SECONDS

            before = site()["sent_bytes"]
            assert good("cat", "--home", str(homes[2]), cid) == content.read_bytes()
            assert site()["sent_bytes"] - before < BYTES / 2, "somebody else's bytes"

            text = good("bandwidth", "--home", giver).decode()
            assert "peers site (1 by label site-a):" in text
            back = form("bandwidth", "--home", giver, "--reset")
            assert back["peers"]["site"]["up"] == 200_000_000


def _connected(home: str) -> list[str]:
    peers = form("peers", "--home", home)["peers"]
    return [peer["peer_id"] for peer in peers if peer["connected"]]
