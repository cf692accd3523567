"""The local API over real HTTP, before one node on a memory network: who may call, what it
answers, and that its errors are those of dstore again in the client."""

from __future__ import annotations

import http.client
import itertools
import json
import os
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pytest
import trio
from click.testing import CliRunner
from starlette.requests import Request

from dstore.core.cid import CID, RAW
from dstore.errors import (
    CallerError,
    ConnectionLost,
    DstoreError,
    InvalidCid,
    InvalidPath,
    NodeError,
    NotFoundError,
)
from dstore.interfaces.api.app import api_app
from dstore.interfaces.api.requests import query_of
from dstore.interfaces.cli.main import dstore
from dstore.interfaces.client import Client, DaemonNotRunning, daemon_form
from dstore.interfaces.forms import dump
from dstore.interfaces.http import Receive, Scope, Send, serve_http
from dstore.limits import HTTP_JSON_BYTES_MAX
from dstore.service.node import Node
from dstore.storage.layout import Home
from dstore.testing.cluster import open_cluster

T = TypeVar("T")
TOKEN = "the-token"


@dataclass
class Api:
    """A served API, and a client of it whose calls run in threads."""

    node: Node
    port: int
    client: Client
    stopped: trio.Event

    async def call(self, work: Callable[[Client], T]) -> T:
        return await trio.to_thread.run_sync(work, self.client)

    async def ask(
        self, method: str, target: str, headers: dict[str, str], body: bytes = b""
    ) -> int:
        """The status of a request as given."""

        def work() -> int:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
            try:
                connection.putrequest(method, target, skip_host=True)
                for name, value in headers.items():
                    connection.putheader(name, value)
                connection.putheader("Content-Length", str(len(body)))
                connection.endheaders(body)
                return connection.getresponse().status
            finally:
                connection.close()

        return await trio.to_thread.run_sync(work)

    async def add(self, path: Path, **options: object) -> dict[str, object]:
        events = await self.call(lambda client: list(client.add_path(path, options)))
        assert all("progress" in event for event in events[:-1])
        result = events[-1]["result"]
        assert isinstance(result, dict)
        return result


@asynccontextmanager
async def serving() -> AsyncIterator[Api]:
    stopped = trio.Event()
    async with open_cluster(1) as cluster:
        late: list[Callable[..., object]] = []

        async def app(*args: object) -> None:
            await late[0](*args)  # type: ignore[misc]  # an ASGI application

        async with serve_http(app, "127.0.0.1", 0) as server:
            late.append(api_app(cluster[0], server.port, TOKEN, stopped.set, {"gateway": None}))
            client = Client(server.url, TOKEN, Path("/nowhere"))
            yield Api(cluster[0], server.port, client, stopped)


HOSTS = {"127.0.0.1": True, "localhost": True, "[::1]": True, "LOCALHOST": True}
HOSTS |= {"evil.example": False, "127.0.0.1.evil.example": False, "0.0.0.0": False}
ORIGINS = {None: True, "own": True, "http://evil.example": False, "null": False, "": False}
TOKENS = {f"Bearer {TOKEN}": True, f"bearer {TOKEN}": True, None: False, "Bearer x": False}
TOKENS |= {f"Basic {TOKEN}": False, TOKEN: False, "Bearer": False, f"Bearer {TOKEN}x": False}
# Target and method → whether the route takes it.
ROUTES = {
    ("/v1/version", "GET"): 200,
    ("/v1/peers", "GET"): 200,
    ("/v1/pins/rm", "POST"): 400,  # no JSON
    ("/v1/pins/rm", "GET"): 405,
    ("/v1/add", "GET"): 405,
    ("/v1/shutdown", "GET"): 405,
    ("/v1/version", "POST"): 405,
    ("/v1/version", "PUT"): 405,
    ("/v1/version", "DELETE"): 405,
    ("/v1/version", "OPTIONS"): 405,
    ("/nothing", "GET"): 404,
}


async def test_who_may_call() -> None:
    """Every Host x Origin x method and route x token."""
    async with serving() as api:
        limiter = trio.CapacityLimiter(16)
        wrong: list[object] = []

        async def check(
            host: str, origin: str | None, token: str | None, target: str, method: str
        ) -> None:
            headers = {"Host": f"{host}:{api.port}"}
            if origin is not None:
                headers["Origin"] = f"http://127.0.0.1:{api.port}" if origin == "own" else origin
            if token is not None:
                headers["Authorization"] = token
            wanted = ROUTES[target, method]
            if not (HOSTS[host] and ORIGINS[origin]):
                wanted = 403
            elif not TOKENS[token]:
                wanted = 401
            async with limiter:
                status = await api.ask(method, target, headers)
            if status != wanted:
                wrong.append((host, origin, token, target, method, status, wanted))

        cases = list(itertools.product(HOSTS, ORIGINS, TOKENS, ROUTES))
        # All pairs of the first three on two routes, then all routes with one fault at most.
        few = {("/v1/version", "GET"), ("/v1/pins/rm", "POST")}
        good = ("127.0.0.1", None, f"Bearer {TOKEN}")
        chosen = [
            (*case[:3], *case[3])
            for case in cases
            if case[3] in few or sum(a != b for a, b in zip(case, good, strict=False)) <= 1
        ]
        assert len(chosen) > 500
        async with trio.open_nursery() as nursery:
            for case in chosen:
                nursery.start_soon(check, *case)
        assert wrong == []
        assert not api.stopped.is_set()


async def test_the_authority_of_an_absolute_target_is_the_host() -> None:
    async with serving() as api:
        own, evil = f"127.0.0.1:{api.port}", f"evil.example:{api.port}"
        for authority, host, status in ((own, own, 200), (own, evil, 200), (evil, own, 403)):
            headers = {"Host": host, "Authorization": f"Bearer {TOKEN}"}
            assert await api.ask("GET", f"http://{authority}/v1/version", headers) == status


@pytest.mark.parametrize("host", [None, "127.0.0.1", "127.0.0.1:1", "localhost:", "a@127.0.0.1"])
async def test_a_host_without_the_right_port_is_refused(host: str | None) -> None:
    async with serving() as api:
        headers = {"Authorization": f"Bearer {TOKEN}", **({"Host": host} if host else {})}
        assert await api.ask("GET", "/v1/version", headers) in (400, 403)


async def test_a_file_goes_in_by_path_and_comes_out(tmp_path: Path) -> None:
    content = os.urandom(3_000_000)
    path = tmp_path / "file"
    path.write_bytes(content)
    async with serving() as api:
        result = await api.add(path, local_only=True)
        assert (result["name"], result["size"]) == ("file", len(content))
        cid = str(result["cid"])

        def read(client: Client, offset: int, length: int | None) -> bytes:
            with client.cat(cid, offset, length) as pieces:
                return b"".join(pieces)

        for offset, length in [(0, None), (1_500_000, 10), (2_999_999, 5), (9_000_000, 1), (5, 0)]:
            stop = None if length is None else offset + length
            got = await api.call(lambda client: read(client, offset, length))  # noqa: B023
            assert got == content[offset:stop]
        pins = (await api.call(lambda client: client.get("/v1/pins")))["pins"]
        assert [(pin["cid"], pin["mode"]) for pin in pins] == [(cid, "local")]
        told = await api.call(lambda client: client.post("/v1/pins/rm", {"cid": cid}))
        assert told == {"cid": cid, "holders_told": 0}
        with pytest.raises(NotFoundError, match="not pinned"):
            await api.call(lambda client: client.post("/v1/pins/rm", {"cid": cid}))


@pytest.mark.parametrize("form", ["/ipfs/{}", "/ipfs/{}/", "{}/"])
async def test_a_root_is_named_as_for_reading(form: str, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"12345")
    async with serving() as api:
        cid = str((await api.add(tmp_path / "f", local_only=True))["cid"])
        named = form.format(cid)
        assert (await api.call(lambda client: client.status(named)))["cid"] == cid
        below = {"cid": f"{named}/name"}
        with pytest.raises(InvalidPath, match="below a root"):
            await api.call(lambda client: client.status(below["cid"]))
        with pytest.raises(InvalidPath, match="below a root"):
            await api.call(lambda client: client.post("/v1/pins/rm", below))
        told = await api.call(lambda client: client.post("/v1/pins/rm", {"cid": named}))
        assert told["cid"] == cid


async def test_a_stream_gets_the_cid_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(os.urandom(5_000_000))
    async with serving() as api:
        options = {"local_only": True, "name": "streamed"}

        def work(client: Client) -> list[dict[str, object]]:
            with path.open("rb") as file:
                return list(client.add_stream(file, options))

        result = (await api.call(work))[-1]["result"]
        assert isinstance(result, dict)
        assert result["name"] == "streamed"
        assert result["size"] == 5_000_000
        assert result["cid"] == (await api.add(path, local_only=True))["cid"]


async def test_a_stream_that_is_refused_is_not_sent_to_its_end() -> None:
    async with serving() as api:
        sent: list[int] = []

        def work(client: Client) -> None:
            with Path("/dev/zero").open("rb") as endless:
                list(client.add_stream(endless, {"profile": "none"}, sent.append))

        with pytest.raises(CallerError, match="no CID profile"):
            await api.call(work)


async def test_small_files_are_listed_without_being_read(tmp_path: Path) -> None:
    (tmp_path / "small").write_bytes(b"small")
    async with serving() as api:
        cid = str((await api.add(tmp_path, local_only=True))["cid"])
        api.node.stores.blocks.delete_many([CID.of(RAW, b"small")])
        (entry,) = await api.call(lambda client: list(client.ls(cid)))
        assert (entry["name"], entry["kind"], entry["size"]) == ("small", "file", 5)


async def test_a_tree_comes_out_as_it_went_in(tmp_path: Path) -> None:
    odd = b"n\xff\n".decode("utf-8", "surrogateescape")
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / odd).write_bytes(b"odd")
    (tmp_path / "a" / "link").symlink_to("b")
    (tmp_path / "empty").write_bytes(b"")
    async with serving() as api:
        cid = str((await api.add(tmp_path, local_only=True))["cid"])
        items = await api.call(lambda client: list(client.tree(cid)))
        shown = [
            item if isinstance(item, bytes) else ("/".join(item["path"]), item["kind"])
            for item in items
        ]
        assert shown == [
            ("", "directory"),
            ("a", "directory"),
            ("a/b", "directory"),
            (f"a/b/{odd}", "file"),
            b"odd",
            ("a/link", "symlink"),
            ("empty", "file"),
        ]
        listed = await api.call(lambda client: list(client.ls(f"{cid}/a")))
        assert [(one["name"], one["kind"], one["target"]) for one in listed] == [
            ("b", "directory", None),
            ("link", "symlink", "b"),
        ]
        below = await api.call(lambda client: list(client.tree(f"{cid}/a/b/{odd}")))
        assert below[1:] == [b"odd"]
        entry = await api.call(lambda client: client.get("/v1/entry", {"path": f"{cid}/a/link"}))
        assert (entry["kind"], entry["target"]) == ("symlink", "b")


async def test_errors_are_raised_again_in_the_client(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"x")
    missing = str(CID.of(RAW, b"nobody has this"))
    async with serving() as api:
        cid = str((await api.add(tmp_path / "f", local_only=True))["cid"])

        async def fails(kind: type[DstoreError], work: Callable[[Client], object]) -> None:
            with pytest.raises(DstoreError) as caught:
                await api.call(work)
            assert type(caught.value) is kind, caught.value

        await fails(NotFoundError, lambda client: list(client.add_path(tmp_path / "no", {})))
        await fails(CallerError, lambda client: list(client.add_path(Path("f"), {})))
        await fails(CallerError, lambda client: list(client.add_path(tmp_path, {"code": "9"})))
        await fails(CallerError, lambda client: list(client.add_path(tmp_path, {"profile": "x"})))
        await fails(CallerError, lambda client: client.post("/v1/peers/connect", {"address": "x"}))
        await fails(CallerError, lambda client: client.post("/v1/peers/connect", {"address": 3}))
        await fails(InvalidCid, lambda client: client.status("nonsense"))
        await fails(InvalidPath, lambda client: list(client.ls(cid)))
        await fails(InvalidPath, lambda client: client.get("/v1/entry", {"path": f"{cid}/x"}))
        await fails(CallerError, lambda client: client.get("/v1/cat", {"path": cid, "offset": "x"}))
        await fails(NotFoundError, lambda client: client.get("/v1/entry", {"path": missing}))
        await fails(CallerError, lambda client: client.get("/v1/none"))
        large = {"cid": "x" * (HTTP_JSON_BYTES_MAX + 1)}
        await fails(CallerError, lambda client: client.post("/v1/pins/rm", large))


async def test_a_query_with_bytes_that_are_no_utf8() -> None:
    """As an ASGI server may hand it over; the server takes ASCII only."""
    request = Request({"type": "http", "query_string": b"path=a\xff%fe&x=\xc3\xa9"})
    assert query_of(request) == {"path": "a\udcff\udcfe", "x": "é"}


async def test_bodies_that_are_no_json_object() -> None:
    async with serving() as api:
        headers = {"Host": f"127.0.0.1:{api.port}", "Authorization": f"Bearer {TOKEN}"}
        for body in (b"", b"[]", b"{", b"\xff", b"[" * 100_000, b'"x"'):
            assert await api.ask("POST", "/v1/pins/rm", headers, body) == 400
            assert (
                await api.ask(
                    "POST", "/v1/add", {**headers, "Content-Type": "application/json"}, body
                )
                == 400
            )
        assert await api.ask("POST", "/v1/add", {**headers, "Content-Type": "text/plain"}) == 400
        fields = "&".join(f"x{number}=1" for number in range(100))
        assert await api.ask("GET", f"/v1/cat?{fields}", headers) == 400


async def test_a_client_that_leaves_takes_its_add_along() -> None:
    """Its stream never ends, so only its going can end the add."""
    async with serving() as api:
        lost = threading.Event()

        def work() -> None:
            client = http.client.HTTPConnection("127.0.0.1", api.port, timeout=20)
            client.putrequest("POST", "/v1/add?local_only=true")
            client.putheader("Authorization", f"Bearer {TOKEN}")
            client.putheader("Content-Type", "application/octet-stream")
            client.putheader("Transfer-Encoding", "chunked")
            client.endheaders()
            client.send(b"4\r\nabcd\r\n")
            lost.wait(20)
            client.close()

        catalog = api.node.stores.catalog
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.to_thread.run_sync, work)
            with trio.fail_after(20):
                while not catalog.operations():
                    await trio.lowlevel.checkpoint()
                lost.set()
                while catalog.operations():
                    await trio.lowlevel.checkpoint()
        assert await api.node.pins() == []


async def test_identity_status_and_shutdown(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(bytes(3000))
    async with serving() as api:
        me = await api.call(lambda client: client.get("/v1/id"))
        assert me["peer_id"] == str(api.node.peer_id)
        assert me["gateway"] is None
        cid = str((await api.add(tmp_path / "f"))["cid"])
        status = await api.call(lambda client: client.status(cid))
        assert (status["cid"], status["manifest"], status["segments"]) == (cid, None, [])
        assert status["guarantee"]["peers"] == 0
        await api.call(lambda client: client.post("/v1/shutdown", {}))
        assert api.stopped.is_set()


async def test_a_file_cut_short_is_no_file(tmp_path: Path) -> None:
    """A block that is gone in the middle: the client must not take the part for the whole."""
    content = os.urandom(4 << 20)
    (tmp_path / "f").write_bytes(content)
    async with serving() as api:
        cid = str((await api.add(tmp_path / "f", local_only=True))["cid"])
        api.node.stores.blocks.delete_many([CID.of(RAW, content[2 << 20 : 3 << 20])])

        def read(client: Client) -> bytes:
            with client.cat(cid) as pieces:
                return b"".join(pieces)

        with pytest.raises((ConnectionLost, DstoreError)) as caught:
            await api.call(read)
        assert caught.value.exit_code in (3, 4)
        with pytest.raises(DstoreError) as caught:
            await api.call(lambda client: list(client.tree(cid)))
        assert type(caught.value) is not ConnectionLost


async def test_a_listing_that_cannot_go_on_says_so(tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / "d" / name).mkdir(parents=True)
        (tmp_path / "d" / name / "f").write_text(name)
    async with serving() as api:
        cid = str((await api.add(tmp_path / "d", local_only=True))["cid"])
        missing = str((await api.add(tmp_path / "d" / "b", local_only=True))["cid"])
        api.node.stores.blocks.delete_many([CID.parse(missing)])
        seen: list[str] = []

        def read(client: Client) -> None:
            for entry in client.ls(cid):
                seen.append(entry["name"])  # what came before the error

        with pytest.raises(DstoreError) as caught:
            await api.call(read)
        assert type(caught.value) is not ConnectionLost
        assert seen == ["a"]


async def test_a_reader_of_our_output_that_leaves_is_not_the_daemon(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"content")
    async with serving() as api:
        cid = str((await api.add(tmp_path / "f", local_only=True))["cid"])

        def read(client: Client) -> None:
            with client.cat(cid):
                raise BrokenPipeError

        with pytest.raises(BrokenPipeError):
            await api.call(read)


def test_without_a_daemon(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    home.create()
    with pytest.raises(DaemonNotRunning, match="dstore run --home"):
        Client.of_home(home.directory)
    stale = {"url": "http://127.0.0.1:9", "token": "x"}
    home.write_private(home.api, json.dumps(stale).encode())
    with pytest.raises(DaemonNotRunning, match="does not answer"):
        Client.of_home(home.directory).get("/v1/version")
    for damaged in (b"", b"[]", b"\xff"):
        home.write_private(home.api, damaged)
        with pytest.raises(NodeError, match="damaged"):
            daemon_form(home.directory)
    home.api.chmod(0o644)
    with pytest.raises(NodeError, match="open to other users"):
        daemon_form(home.directory)


async def test_another_program_on_the_port_is_told_apart() -> None:
    async def app(scope: object, receive: object, send: Callable[..., object]) -> None:
        headers = [(b"content-length", b"4")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})  # type: ignore[misc]
        await send({"type": "http.response.body", "body": b"<h1>"})  # type: ignore[misc]

    async with serve_http(app, "127.0.0.1", 0) as server:
        client = Client(server.url, TOKEN, Path("/nowhere"))
        with pytest.raises(NodeError, match="another program"):
            await trio.to_thread.run_sync(client.get, "/v1/version")


async def test_an_add_is_one_request(tmp_path: Path) -> None:
    """Asking first whether a daemon is there would cost each command another connection."""
    asked: list[str] = []
    result = {"cid": "the-cid", "name": "f", "warnings": []}

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        asked.append(scope["path"])
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send(
            {"type": "http.response.body", "body": dump({"result": result}).encode() + b"\n"}
        )

    home = Home(tmp_path / "home")
    home.create()
    async with serve_http(app, "127.0.0.1", 0) as server:
        home.write_private(home.api, dump({"url": server.url, "token": TOKEN}).encode())
        arguments = ["add", "--home", str(home.directory), "f", "g"]
        done = await trio.to_thread.run_sync(CliRunner().invoke, dstore, arguments)
    assert done.exit_code == 0, done.output
    assert done.output == "added the-cid f\n" * 2
    assert asked == ["/v1/add"] * 2
