"""A peer whose process is stopped: its connection stays open, only the keep-alive can tell.
And an add in a network of processes of which some are stopped, full or lying."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from benchmarks.sick_nodes import one_run
from dstore.core.peerid import PeerId
from dstore.network.host import HostOptions, open_host
from dstore.network.streams import PeerAddresses
from dstore.runtime import Runtime

NOTICED_SECONDS = 30
_PIPED: dict[str, Any] = {"stdout": subprocess.PIPE, "text": True}
_PEER = """
import trio
from dstore.network.host import HostOptions, open_host
from dstore.runtime import Runtime

async def main():
    async with open_host(HostOptions(), bytes(range(32)), Runtime()) as host:
        print(host.addresses()[0], host.peer_id, flush=True)
        await trio.sleep_forever()

trio.run(main)
"""


@pytest.mark.soak
async def test_a_stopped_process_is_noticed() -> None:
    command = [sys.executable, "-c", _PEER]
    process = await trio.to_thread.run_sync(partial(subprocess.Popen, command, **_PIPED))
    try:
        assert process.stdout is not None
        line = await trio.to_thread.run_sync(process.stdout.readline)
        address, name = line.split()
        peer = PeerId.parse(name)
        async with open_host(HostOptions(listen=()), bytes(range(1, 33)), Runtime()) as host:
            await host.connect(PeerAddresses(peer, (address,)))
            await host.ping(peer)
            os.kill(process.pid, signal.SIGSTOP)
            with trio.fail_after(NOTICED_SECONDS):
                while host.connected():  # noqa: ASYNC110  # the table has no event
                    await trio.sleep(0.05)
    finally:
        process.kill()
        process.wait(20)
        assert process.stdout is not None
        process.stdout.close()


def test_an_add_goes_on_when_holders_are_stopped_in_its_middle(tmp_path: Path) -> None:
    """Eight processes; two holders stop (SIGSTOP) as soon as bytes travel."""
    result = one_run(tmp_path, 64, "stopped", "during")
    assert result["answered"]
    assert result["protected"]


@pytest.mark.parametrize("how", ["unaware", "forging"])
def test_an_add_goes_on_beside_holders_that_are_full_or_lie(tmp_path: Path, how: str) -> None:
    """Seven processes; two take slots and find their disks full, or sign their leases wrongly.
    Of the six others five are asked: one of the two is among them, wherever slots go."""
    result = one_run(tmp_path, 64, how, "before", count=7)
    assert result["acted"] > 0
    assert result["answered"]
    assert result["protected"]
