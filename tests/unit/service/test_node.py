"""A node on the real network: its home directory, keys, restarts, and the way it stops."""

from __future__ import annotations

import logging
import os
import random
import stat
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from dstore.core.cid import CID, DAG_PB, IDENTITY, RAW, encode_varint
from dstore.core.dagpb import PBLink
from dstore.core.unixfs.node import DataType, UnixfsData, encode_node
from dstore.core.wire import Role
from dstore.errors import AlreadyRunning, NodeError
from dstore.limits import GIB, SHUTDOWN_SECONDS
from dstore.network.routing import Routing
from dstore.network.streams import PeerAddresses
from dstore.runtime import Runtime
from dstore.service import homestores
from dstore.service import node as node_module
from dstore.service.gate import Gate
from dstore.service.homestores import init_home
from dstore.service.node import Node, NodeOptions, open_node
from dstore.service.progress import AddOptions
from dstore.storage.catalog import Catalog
from dstore.storage.diskstore import DiskStore
from dstore.storage.layout import Home

DATA = random.Random(1).randbytes(2_500_000)


def options(number: int = 0, *others: Node) -> NodeOptions:
    return NodeOptions(
        label=f"machine-{number}",
        capacity_bytes=GIB,
        reserve_bytes=0,
        bootstrap=tuple(address_of(other) for other in others),
    )


def address_of(node: Node) -> str:
    return f"{node.network.addresses()[0]}/p2p/{node.peer_id}"


async def stream(data: bytes = DATA) -> AsyncIterator[bytes]:
    for start in range(0, len(data), 500_000):
        yield data[start : start + 500_000]


async def read(node: Node, root: CID) -> bytes:
    async with node.read(root) as chunks:
        return b"".join([chunk async for chunk in chunks])


async def until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(30):
        while not condition():  # noqa: ASYNC110 - the node has no event for this
            await trio.sleep(0.01)


async def acquainted(*nodes: Node) -> None:
    """Until every node is connected to all the others."""
    with trio.fail_after(30):
        for node in nodes:
            for other in nodes:
                if other is not node and other.peer_id not in node.network.connected():
                    addresses = tuple(other.network.addresses())
                    await node.connect(PeerAddresses(other.peer_id, addresses))


@asynccontextmanager
async def fleet(directory: Path, count: int) -> AsyncIterator[list[Node]]:
    async with trio.open_nursery() as nursery:
        nodes: list[Node] = []
        stop = trio.Event()

        async def run(number: int, ready: trio.Event) -> None:
            home = directory / f"node-{number}"
            async with open_node(home, options(number, *nodes[:1])) as node:
                nodes.append(node)
                ready.set()
                await stop.wait()

        for number in range(count):
            ready = trio.Event()
            nursery.start_soon(run, number, ready)
            await ready.wait()
        await acquainted(*nodes)
        yield nodes
        stop.set()


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# --- Home and keys (threats.md 22) -------------------------------------------------------


async def test_keys_are_private_whatever_the_umask(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    before = os.umask(0)
    try:
        async with open_node(home.directory, options()):
            assert mode(home.directory) == 0o700
            assert mode(home.identity_key) == mode(home.owner_key) == 0o600
    finally:
        os.umask(before)
    assert home.identity_key.read_bytes() != home.owner_key.read_bytes()


@pytest.mark.parametrize("name", ["", "identity.key", "owner.key"])
@pytest.mark.parametrize("bits", [0o040, 0o004, 0o020])
async def test_a_home_open_to_others_is_refused_with_the_remedy(
    tmp_path: Path, name: str, bits: int
) -> None:
    home = Home(tmp_path / "home")
    init_home(home, Runtime())
    path = home.directory / name
    path.chmod(mode(path) | bits)
    with pytest.raises(NodeError, match="chmod"):
        async with open_node(home.directory, options()):
            raise AssertionError("started")


async def test_keys_appear_nowhere(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    home = Home(tmp_path / "home")
    with caplog.at_level(logging.DEBUG):
        async with open_node(home.directory, options()) as node:
            await node.add_stream(stream(b"x"), AddOptions(local_only=True))
            seen = f"{await node.summary()} {await node.pins()} {options()} {vars(node)}"
    for path in (home.identity_key, home.owner_key):
        key = path.read_bytes()
        for form in (key.hex(), repr(key)[2:-1]):
            assert form not in seen + caplog.text


async def test_a_home_whose_making_was_cut_short_is_finished(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    home.create()
    assert init_home(home, Runtime())
    assert not init_home(home, Runtime())
    async with open_node(home.directory, options()):
        pass
    # But a key that was there once and is lost is not made up anew.
    home.identity_key.unlink()
    with pytest.raises(NodeError, match=r"identity\.key is missing"):
        async with open_node(home.directory, options()):
            raise AssertionError("started")


async def test_a_second_node_in_the_same_home_is_refused(tmp_path: Path) -> None:
    async with open_node(tmp_path / "home", options()) as node:
        with pytest.raises(AlreadyRunning, match=str(os.getpid())):
            async with open_node(tmp_path / "home", options()):
                raise AssertionError("started")
        assert (await node.summary()).blocks == 0
    async with open_node(tmp_path / "home", options()):
        pass


# --- Restarts ----------------------------------------------------------------------------


async def test_a_restart_keeps_identity_pins_and_blocks(tmp_path: Path) -> None:
    async with open_node(tmp_path / "home", options()) as node:
        peer = node.peer_id
        result = await node.add_stream(stream(), AddOptions(name="kept"))
        assert not result.protected
    async with open_node(tmp_path / "home", options()) as node:
        assert node.peer_id == peer
        assert [(pin.cid, pin.name) for pin in await node.pins()] == [(result.cid, "kept")]
        assert await read(node, result.cid) == DATA


@pytest.mark.parametrize("lost", [False, True])
async def test_a_holder_restarts_and_serves_its_slots_again(tmp_path: Path, lost: bool) -> None:
    """Also where its catalog is gone: the record files and the blocks say everything."""
    async with fleet(tmp_path, 3) as nodes:
        result = await nodes[0].add_stream(stream(), AddOptions(code=(1, 1)))
        assert result.protected
        slots = {number: len(nodes[number].stores.catalog.held_slots()) for number in range(3)}
        assert slots[1]
        assert slots[2]
    if lost:
        for path in list((tmp_path / "node-1").glob("catalog.sqlite3*")):
            path.unlink()
    async with (
        open_node(tmp_path / "node-1", options(1)) as holder,
        open_node(tmp_path / "node-3", options(3, holder)) as reader,
    ):
        await acquainted(holder, reader)
        rows = holder.stores.catalog.held_slots()
        assert {row.state for row in rows} == {"held"}
        assert len(rows) == slots[1]
        assert await read(reader, result.cid) == DATA
        serial = holder.stores.catalog.next_serial()
        assert serial > len(rows)


async def test_what_a_failed_start_opened_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_node(tmp_path / "home", options()):
        pass

    def fail(*args: object, **more: object) -> None:
        raise NodeError("no store today")

    with monkeypatch.context() as patch:
        patch.setattr(homestores, "open_disk_store", fail)
        with pytest.raises(NodeError, match="today"):
            async with open_node(tmp_path / "home", options()):
                raise AssertionError("started")
    async with open_node(tmp_path / "home", options()):
        pass


# --- Stopping ----------------------------------------------------------------------------


async def test_a_running_add_may_end_while_the_node_stops(tmp_path: Path) -> None:
    ended: list[CID] = []
    go_on = trio.Event()
    begun = trio.Event()

    async def slow() -> AsyncIterator[bytes]:
        yield b"first "
        begun.set()
        await go_on.wait()
        yield b"second"

    async with trio.open_nursery() as nursery:
        async with open_node(tmp_path / "home", options()) as node:

            async def add() -> None:
                result = await node.add_stream(slow(), AddOptions(local_only=True))
                ended.append(result.cid)

            async def let_go() -> None:
                await wait_all_tasks_blocked(0.05)
                with pytest.raises(NodeError, match="shutting down"):
                    await node.add_stream(stream(b"late"))
                go_on.set()

            nursery.start_soon(add)
            await begun.wait()
            nursery.start_soon(let_go)
    assert len(ended) == 1
    async with open_node(tmp_path / "home", options()) as node:
        assert await read(node, ended[0]) == b"first second"


async def test_what_does_not_end_is_ended_within_the_deadline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert SHUTDOWN_SECONDS <= 10
    monkeypatch.setattr(node_module, "SHUTDOWN_SECONDS", 0.2)
    told: list[str] = []
    begun = trio.Event()

    async def endless() -> AsyncIterator[bytes]:
        begun.set()
        await trio.sleep_forever()
        yield b""

    async with trio.open_nursery() as nursery:
        async with open_node(tmp_path / "home", options()) as node:

            async def add() -> None:
                try:
                    await node.add_stream(endless())
                except NodeError as error:
                    told.append(str(error))

            nursery.start_soon(add)
            await begun.wait()
            begin = trio.current_time()
        assert trio.current_time() - begin < 5
    assert told == ["the node was shut down before this was done"]
    async with open_node(tmp_path / "home", options()) as node:
        assert node.stores.catalog.operations() == []


async def test_it_stops_from_the_outside_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Operations first, then the network, the stores last."""
    order: list[str] = []

    def noting(owner: type, method: str, name: str) -> None:
        original = getattr(owner, method)

        def noted(self: object, *args: object) -> object:
            order.append(name)
            return original(self, *args)

        monkeypatch.setattr(owner, method, noted)

    noting(Gate, "drain", "operations")
    noting(Routing, "close", "DHT")
    noting(DiskStore, "close", "blocks")
    noting(Catalog, "close", "catalog")
    async with open_node(tmp_path / "home", options()):
        pass
    assert order == ["operations", "DHT", "blocks", "catalog"]


async def test_cancelled_from_outside_it_leaves_its_home_in_order(tmp_path: Path) -> None:
    with trio.CancelScope() as scope:
        async with open_node(tmp_path / "home", options()) as node:
            result = await node.add_stream(stream(b"kept"), AddOptions(local_only=True))
            scope.cancel()
            await trio.sleep_forever()
    async with open_node(tmp_path / "home", options()) as node:
        assert await read(node, result.cid) == b"kept"


# --- Roles -------------------------------------------------------------------------------


async def test_a_gateway_keeps_nothing_for_others(tmp_path: Path) -> None:
    gateway = NodeOptions(role=Role.GATEWAY, reserve_bytes=0)
    async with (
        open_node(tmp_path / "gateway", gateway) as one,
        open_node(tmp_path / "other", options(2, one)) as other,
    ):
        await acquainted(one, other)
        result = await other.add_stream(stream(b"alone"))
        assert not result.protected
        assert any("stored here only" in warning for warning in result.warnings)
        assert await read(one, result.cid) == b"alone"


async def test_a_bootstrap_peer_that_comes_back_is_met_again(tmp_path: Path) -> None:
    """Also while others are there to talk to: a network that fell apart grows together."""
    async with open_node(tmp_path / "first", options()) as first:
        listen = (first.network.addresses()[0],)
        bootstrap = (address_of(first),)
    async with (
        open_node(tmp_path / "third", options(3)) as third,
        open_node(tmp_path / "second", replace(options(2, third), bootstrap=bootstrap)) as second,
    ):
        await acquainted(second, third)
        for _ in range(2):
            async with open_node(tmp_path / "first", replace(options(), listen=listen)) as again:
                await until(lambda: first.peer_id in second.network.connected())
                assert again.peer_id == first.peer_id
            await until(lambda: first.peer_id not in second.network.connected())


@pytest.mark.parametrize("length", [1, 126, 128])
async def test_an_entry_whose_cid_is_its_bytes_is_read_however_long(
    tmp_path: Path, length: int
) -> None:
    """The longest are no names of files: a store that is asked for them must not fall over."""
    content = b"x" * length
    identity = CID.from_bytes(bytes([1, RAW, IDENTITY]) + encode_varint(length) + content)
    block = encode_node((PBLink(identity, "file", length),), UnixfsData(DataType.DIRECTORY))
    root = CID.of(DAG_PB, block)
    async with open_node(tmp_path / "home", options()) as node:
        await trio.to_thread.run_sync(node.stores.blocks.put_many, [(root, block)])
        found = await node.resolve(root, ["file"])
        assert await read(node, found.cid) == content
        assert [entry.cid async for entry in node.entries(root)] == [identity]
