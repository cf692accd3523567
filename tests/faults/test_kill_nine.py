"""kill -9 at random moments of adds and of slots being received, with real node processes.

Afterwards: what was acknowledged is readable, no half block stands under a final name, every
lease that the adder has on record is on its holder's disk with all its blocks, and the same
add, repeated, goes on and completes.  The node processes are this file run as a script.
"""

from __future__ import annotations

import hashlib
import json
import os
import queue
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio

from dstore.core.cid import CID, RAW
from dstore.core.envelope import SigningKey
from dstore.core.manifest import Segment
from dstore.errors import DstoreError
from dstore.limits import GIB
from dstore.service.node import Node, NodeOptions, open_node
from dstore.service.progress import AddOptions
from dstore.storage.catalog import open_catalog
from dstore.storage.diskstore import open_disk_store
from dstore.storage.layout import Home
from dstore.storage.records import RecordFiles

CODE = (2, 1)
HOLDERS = 3
FILE_BYTES = 6_000_000
WAIT_SECONDS = 60


# --- The node process --------------------------------------------------------------------


async def serve(home: str, label: str, bootstrap: tuple[str, ...]) -> None:
    """A node that does what its standard input says, until that ends."""
    options = NodeOptions(label=label, capacity_bytes=GIB, reserve_bytes=0, bootstrap=bootstrap)
    async with open_node(Path(home), options) as node, trio.open_nursery() as nursery:
        print(f"ready {node.network.addresses()[0]}/p2p/{node.peer_id}", flush=True)
        pending = b""
        async with trio.lowlevel.FdStream(os.dup(0)) as stdin:
            async for chunk in stdin:
                *lines, pending = (pending + chunk).split(b"\n")
                for line in lines:
                    nursery.start_soon(obey, node, *line.decode().split(" "))
        nursery.cancel_scope.cancel()


async def obey(node: Node, command: str, argument: str) -> None:
    try:
        if command == "add":
            result = await node.add_path(Path(argument), AddOptions(code=CODE))
            told = {"cid": str(result.cid), "protected": result.protected}
            print("added", json.dumps(told), flush=True)
        elif command == "get":
            digest = hashlib.sha256()
            async with node.read(CID.parse(argument)) as chunks:
                async for chunk in chunks:
                    digest.update(chunk)
            print("got", digest.hexdigest(), flush=True)
        elif command == "meet":
            while len(node.network.connected()) < int(argument):  # noqa: ASYNC110 - no event
                await trio.sleep(0.02)
            print("met", argument, flush=True)
    except DstoreError as error:
        print("failed", repr(error).replace("\n", " "), flush=True)


# --- The test's side ---------------------------------------------------------------------


class Process:
    """One node process; its lines come through a thread, so that waiting has a limit."""

    def __init__(self, home: Path, label: str, bootstrap: list[str]) -> None:
        self.home = home
        self._popen = subprocess.Popen(
            [sys.executable, __file__, str(home), label, *bootstrap],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._lines: queue.Queue[str] = queue.Queue()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        self.address = self.hear("ready")

    def _read(self) -> None:
        assert self._popen.stdout is not None
        for line in self._popen.stdout:
            self._lines.put(line.rstrip("\n"))
        self._lines.put("ended -")

    def say(self, command: str, argument: object) -> None:
        assert self._popen.stdin is not None
        self._popen.stdin.write(f"{command} {argument}\n")
        self._popen.stdin.flush()

    def hear(self, word: str) -> str:
        """What follows the word on the next line, which must begin with it."""
        heard, _, rest = self._lines.get(timeout=WAIT_SECONDS).partition(" ")
        assert heard == word, f"{heard} {rest}"
        return rest

    def heard_so_far(self) -> list[str]:
        """All lines up to the end of the process."""
        lines: list[str] = []
        while (line := self._lines.get(timeout=WAIT_SECONDS)) != "ended -":
            lines.append(line)
        return lines

    def ask(self, command: str, argument: object, word: str) -> str:
        self.say(command, argument)
        return self.hear(word)

    def add(self, path: Path) -> CID:
        """Add until it is protected: right after a crash a peer may not be back yet."""
        for _ in range(5):
            told = json.loads(self.ask("add", path, "added"))
            if told["protected"]:
                return CID.parse(told["cid"])
        raise AssertionError("the add was never protected")

    def kill(self) -> list[str]:
        """SIGKILL; what it had said and nobody had read yet."""
        self._popen.kill()
        return self._end()

    def stop(self) -> None:
        """An end in order."""
        assert self._popen.stdin is not None
        self._popen.stdin.close()
        self._end()
        assert self._popen.returncode == 0

    def _end(self) -> list[str]:
        lines = self.heard_so_far()
        self._popen.wait(timeout=WAIT_SECONDS)
        self._reader.join()
        for pipe in (self._popen.stdin, self._popen.stdout):
            if pipe is not None:
                try:
                    pipe.close()
                except BrokenPipeError:
                    continue
        return lines


@dataclass
class Fleet:
    """An adder (number 0) and holders; `known` is every file acknowledged, by root."""

    directory: Path
    draw: random.Random
    nodes: dict[int, Process]
    known: dict[CID, str]
    files: int = 0

    def start(self, number: int) -> None:
        others = [node.address for node in self.nodes.values()]
        node = Process(self.directory / f"node-{number}", f"machine-{number}", others)
        node.ask("meet", len(others), "met")
        self.nodes[number] = node

    def kill(self, number: int) -> list[str]:
        return self.nodes.pop(number).kill()

    def file(self) -> tuple[Path, str]:
        self.files += 1
        data = self.draw.randbytes(FILE_BYTES)
        path = self.directory / f"file-{self.files}"
        path.write_bytes(data)
        return path, hashlib.sha256(data).hexdigest()

    def check_readable(self, number: int) -> None:
        for root, digest in self.known.items():
            assert self.nodes[number].ask("get", root, "got") == digest

    def check_home(self, number: int) -> None:
        """Of a node that is dead: every block is whole, every held slot complete."""
        home = Home(self.directory / f"node-{number}")
        store = open_disk_store(home.blocks)
        records = RecordFiles(home.records)
        catalog = open_catalog(home.catalog, records)
        try:
            for multihash in store.multihashes():
                store.get(CID.v1(RAW, multihash))
            promised = self._leases_from(number)
            held = {
                (row.segment, row.slot): row
                for row in catalog.held_slots()
                if row.state == "held" and row.lease is not None
            }
            assert promised <= held.keys()
            for segment, slot in held:
                cids = [cid for _, cid, _ in Segment.decode(store.get(segment)).slot_blocks(slot)]
                assert all(store.has_many(cids))
        finally:
            catalog.close()
            records.close()
            store.close()

    def _leases_from(self, number: int) -> set[tuple[CID, int]]:
        """The slots for which the adder has the node's lease on record."""
        identity = self.directory / f"node-{number}" / "identity.key"
        peer = SigningKey.from_seed(identity.read_bytes()).peer_id
        path = self.directory / "node-0" / "catalog.sqlite3"
        connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
        try:
            rows = connection.execute(
                "SELECT segment, slot FROM placements WHERE peer = ? AND lease IS NOT NULL",
                (peer.binary,),
            ).fetchall()
        finally:
            connection.close()
        return {(CID.from_bytes(segment), slot) for segment, slot in rows}


@pytest.fixture
def fleet(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Fleet]:
    seed = getattr(request, "param", 1)
    made = Fleet(tmp_path, random.Random(seed), {}, {})
    try:
        for number in range(HOLDERS + 1):
            made.start(number)
        path, digest = made.file()
        made.known[made.nodes[0].add(path)] = digest
        yield made
        made.nodes.pop(HOLDERS).stop()
    finally:
        for node in made.nodes.values():
            node.kill()
        shutil.rmtree(tmp_path, ignore_errors=True)


def add_seconds(fleet: Fleet) -> float:
    """How long an undisturbed add takes here and now."""
    path, digest = fleet.file()
    begun = time.monotonic()
    fleet.known[fleet.nodes[0].add(path)] = digest
    return time.monotonic() - begun


def kill_adders(fleet: Fleet, times: int) -> None:
    span = add_seconds(fleet)
    for number in range(times):
        path, digest = fleet.file()
        fleet.nodes[0].say("add", path)
        time.sleep(span * fleet.draw.uniform(0, 1.1))  # the moment is the point, nothing waits
        said = fleet.kill(0)
        for line in said:
            told = json.loads(line.removeprefix("added "))
            assert told["protected"]
            fleet.known[CID.parse(told["cid"])] = digest
        fleet.check_readable(1 + number % HOLDERS)
        fleet.check_home(0)
        fleet.start(0)
        fleet.known[fleet.nodes[0].add(path)] = digest
    fleet.kill(0)
    fleet.check_readable(1)


def kill_holders(fleet: Fleet, times: int) -> None:
    span = add_seconds(fleet)
    for number in range(times):
        path, digest = fleet.file()
        victim = 1 + number % HOLDERS
        fleet.nodes[0].say("add", path)
        time.sleep(span * fleet.draw.uniform(0, 1.1))  # the moment is the point, nothing waits
        fleet.kill(victim)
        told = json.loads(fleet.nodes[0].hear("added"))
        fleet.check_home(victim)
        if told["protected"]:
            fleet.known[CID.parse(told["cid"])] = digest
        fleet.start(victim)
        fleet.known[fleet.nodes[0].add(path)] = digest
        fleet.check_readable(victim)
    fleet.kill(0)
    fleet.check_readable(2)


@pytest.mark.slow
def test_an_adder_killed_at_random_moments(fleet: Fleet) -> None:
    kill_adders(fleet, 6)


@pytest.mark.slow
def test_a_holder_killed_while_it_receives(fleet: Fleet) -> None:
    kill_holders(fleet, 6)


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("fleet", range(5), indirect=True)
@pytest.mark.parametrize("kill", [kill_adders, kill_holders])
def test_killed_many_times_soak(fleet: Fleet, kill: object) -> None:
    assert callable(kill)
    kill(fleet, 20)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends it
    trio.run(serve, sys.argv[1], sys.argv[2], tuple(sys.argv[3:]))
