"""Fuzz targets: what HTTP clients send and ask, and what the content of strangers does to a
page."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from html.parser import HTMLParser
from typing import Any

from starlette.requests import Request

from dstore.core.cid import CID, DAG_PB, RAW
from dstore.errors import CallerError, ConnectionLost
from dstore.interfaces.api.guard import Guard
from dstore.interfaces.api.requests import json_of, query_of
from dstore.interfaces.arguments import add_options, flag, local_path, natural, split_path
from dstore.interfaces.forms import dump, error_form, error_of
from dstore.interfaces.gateway.content_type import SNIFF_BYTES, type_of_content, type_of_name
from dstore.interfaces.gateway.listing import render_listing
from dstore.interfaces.gateway.ranges import (
    ByteRange,
    not_modified,
    range_applies,
    select_range,
)
from dstore.interfaces.gateway.request import parse_request, path_of, redirect_target
from dstore.interfaces.http_requests import RequestReader
from dstore.interfaces.text import escape_controls
from dstore.limits import DAG_DEPTH_MAX, HTTP_HEADERS_MAX, HTTP_PIPELINED_MAX
from dstore.service.progress import DirectoryEntry
from tests.fuzz.script import run
from tests.fuzz.target import Target

_ROOT = CID.of(DAG_PB, b"root")
_TAGS = {"html", "head", "meta", "title", "style", "body", "h1", "span", "a", "p", "code"}
_TAGS |= {"table", "thead", "tbody", "tr", "th", "td"}


def _scope(data: bytes) -> dict[str, Any]:
    """A request as the server hands it over: the target, then headers, a line each."""
    target, *lines = data.split(b"\n")
    path, _, query = target.partition(b"?")
    headers = [(name, value) for name, _, value in (line.partition(b":") for line in lines)]
    return {
        "type": "http",
        "method": "GET",
        "path": "/",
        "raw_path": path,
        "query_string": query,
        "headers": headers,
        "server": ("127.0.0.1", 8080),
        "scheme": "http",
    }


def http(data: bytes) -> None:
    """What a client sends is read alike however it is cut; a request that is taken has one
    host, one length, and nothing in its head that could be another line of it."""
    seen = []
    for piece in (len(data) or 1, 1, 7):
        reader, bodies = RequestReader(), dict[int, bytes]()
        for start in range(0, len(data), piece):
            reader.feed(data[start : start + piece])
            for number, request in enumerate(reader.requests):
                bodies[number] = bodies.get(number, b"") + request.take()
        assert len(reader.requests) <= HTTP_PIPELINED_MAX
        assert reader.refusal in (None, 400, 431, 501, 503, 505)
        # What is too much and malformed as well is refused for whichever is met first.
        refusal = 400 if reader.refusal == 431 else reader.refusal
        seen.append((refusal, [_request_form(one) for one in reader.requests], bodies))
    assert seen[0] == seen[1] == seen[2]
    refusal, requests, _ = seen[0]
    for number, (_, ended, keeps_alive, _, headers) in enumerate(requests):
        _framing(headers)
        last = number == len(requests) - 1
        assert ended or last
        assert keeps_alive or last
        assert refusal is None or ended or last


def _request_form(request: Any) -> tuple[Any, ...]:
    target = request.target.decode("ascii")
    assert target.isprintable()
    assert " " not in target
    assert request.method.isupper()
    where = (request.method, target, request.version)
    return where, request.ended, request.keep_alive, request.waits, tuple(request.headers)


def _framing(headers: tuple[tuple[bytes, bytes], ...]) -> None:
    assert len(headers) <= HTTP_HEADERS_MAX
    names = [name for name, _ in headers]
    assert names.count(b"host") <= 1
    assert names.count(b"content-length") + names.count(b"transfer-encoding") <= 1
    for name, value in headers:
        assert name == name.lower()
        assert not set(name) & set(b" :\t\r\n\0")
        assert not set(value) & set(b"\r\n\0")
        if name == b"content-length":
            assert value.isdigit()
        elif name == b"transfer-encoding":
            assert value.lower() == b"chunked"


def gateway(data: bytes) -> None:
    """A request is refused as the caller's fault, or its path is written as it was read, and
    every range lies within the content."""
    scope = _scope(data)
    scope["raw_path"] = b"/ipfs/" + scope["raw_path"]
    try:
        asked = parse_request(scope)
    except CallerError as error:
        assert 400 <= error.http_status < 500
        return
    assert len(asked.names) <= DAG_DEPTH_MAX
    assert not {"", ".", ".."} & set(asked.names)
    again = parse_request({**scope, "raw_path": asked.path.encode("ascii")})
    assert (again.root, again.names) == (asked.root, asked.names)
    for text in (asked.path, redirect_target(asked), path_of(_ROOT, asked.names)):
        assert text.isascii()
        assert text.isprintable()
        assert " " not in text
        assert text.startswith("/ipfs/")
    if asked.filename is not None:
        assert not set('/\\"\0\r\n') & set(asked.filename)
        asked.filename.encode()
    for cid in (_ROOT, CID.of(RAW, b"x")):
        try:
            asked.check_format(cid)
        except CallerError as error:
            assert error.http_status == 406
    _conditions(asked.headers)


def _conditions(headers: Any) -> None:
    for size in (0, 1, 1000, 1 << 62):
        chosen = select_range(headers.get("range"), size)
        if isinstance(chosen, ByteRange):
            assert 0 <= chosen.start < chosen.start + chosen.length <= size
            assert chosen.content_range(size).isascii()
        else:
            assert chosen == "whole" or size > 0
    for etag in ('"x"', 'W/"x"'):
        not_modified(headers.get("if-none-match"), etag)
        assert not range_applies(headers.get("if-range"), 'W/"x"') or "if-range" not in headers


class _Page(HTMLParser):
    """Looks at what a browser would make of a listing."""

    def __init__(self) -> None:
        super().__init__()
        self.links = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in _TAGS, tag
        for name, value in attrs:
            assert not name.startswith("on"), name
            if name == "href":
                self.links += 1
                assert value is not None
                assert value.startswith(("/ipfs/", "./")), value

    def handle_comment(self, data: str) -> None:
        raise AssertionError("a comment in a listing")


def content(data: bytes) -> None:
    """Names and bytes of strangers: a page holds the links that it should and no others, a
    terminal gets no control characters, and a media type is one line of ASCII."""
    text = data.decode("utf-8", "surrogateescape")
    names = tuple(name for name in text.split("/") if name and "\0" not in name)[:20]
    entries = [DirectoryEntry(name, _ROOT, len(name)) for name in names]
    page = _Page()
    page.feed(render_listing(_ROOT, names[:3], _ROOT, entries, more=bool(len(data) & 1)).decode())
    page.close()
    assert page.links == 2 * len(entries) + len(names[:3])
    shown = escape_controls(text)
    assert not any(ord(character) < 32 or 0x7F <= ord(character) < 0xA0 for character in shown)
    shown.encode()
    for kind in (type_of_content(data[:SNIFF_BYTES]), *map(type_of_name, names)):
        if kind is not None:
            assert kind.isascii()
            assert kind.isprintable()


def api(data: bytes) -> None:
    """A request to the local API: what is taken can be used, kept and shown."""
    head, _, body = data.partition(b"\n\n")
    scope = _scope(head)
    messages = iter([{"type": "http.request", "body": body, "more_body": len(body) % 3 == 1}])

    async def receive() -> Any:
        return next(messages, {"type": "http.disconnect"})

    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def inner(scope: Any, receive: Any, send: Any) -> None:
        sent.append(None)

    run(Guard(inner, 5001, "secret")(scope, receive, send))
    passed = sent == [None]
    assert passed or sent[0]["status"] in (401, 403, 405)
    assert not passed or (b"secret" in head and b"5001" in head)
    request = Request(scope, receive)
    for read in (lambda: query_of(request), lambda: run(json_of(request))):
        try:
            _use(read())
        except (CallerError, ConnectionLost) as error:
            again = error_of(json.loads(dump(error_form(error))))
            assert type(again) in type(error).__mro__


def _use(given: dict[str, Any]) -> None:
    for check in (_options, _local_path, _path, lambda form: natural(form, "limit")):
        try:
            check(given)
        except CallerError as error:
            dump(error_form(error)).encode()


def _options(given: dict[str, Any]) -> None:
    options = add_options(given)
    (options.name or "").encode()  # as it is kept
    assert options.pin_seconds is None or options.pin_seconds > 0
    assert flag(given, "local_only") is options.local_only


def _local_path(given: dict[str, Any]) -> None:
    path = local_path(given)
    assert path.is_absolute()
    assert b"\0" not in os.fsencode(path)


def _path(given: dict[str, Any]) -> None:
    path = given.get("path")
    if isinstance(path, str):
        _, names = split_path(path)
        assert not {"", ".", ".."} & set(names)


def connections() -> Iterator[bytes]:
    yield b"GET /ipfs/x?y HTTP/1.1\r\nHost: x\r\nRange: bytes=0-9\r\n\r\n"
    yield b"GET / HTTP/1.0\r\n\r\nHEAD / HTTP/1.1\r\nHost: x\r\n\r\n"
    yield (
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\nabc"
        b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    )
    yield (
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"3;a=b\r\nabc\r\n0\r\nA: b\r\n\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n"
    )
    yield b"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n"


def gateway_requests() -> Iterator[bytes]:
    root = str(_ROOT).encode()
    yield root + b"/a%20b/c\xff/?format=raw&filename=x.txt&download=true\nRange: bytes=0-9"
    yield root + b"\nAccept: application/vnd.ipld.raw;q=0.5, text/html, */*;q=0.1"
    yield root + b'/\nRange:bytes=-5\nIf-None-Match:W/"x", "y"\nIf-Range:"x"'
    yield b"QmYwAPJzv5CZsnA625s3Xf2nemtYgPpHdWEz79ojWnPbdG\nRange:bytes=5-\nAccept:*/*"
    yield root + b"?format=car&x=%zz;y\nCache-Control: only-if-cached\nService-Worker: script"


def contents() -> Iterator[bytes]:
    yield b"<script>alert(1)</script>/\"' onclick=x/&lt;/javascript:x/\x1b[2J/\xff.html"
    yield "x\u202egpj.exe/\u2028/a.tar.gz/.gitignore".encode()
    yield b"<!DOCTYPE html><p>"
    yield b"RIFF....WEBP"
    yield b"\x00\x00\x00\x1cftypavif"
    yield b"<?xml version='1.0'?><svg xmlns=''>"
    yield b"x" * 257 + b"ustar"


def api_requests() -> Iterator[bytes]:
    body = {
        "path": "/tmp/x",
        "code": "4+2",
        "profile": "v1-2025",
        "name": "caf\u00e9",
        "pin_seconds": 60,
        "local_only": True,
        "require_guarantee": 1,
        "hidden": False,
        "limit": 10,
    }
    yield b"/add\nHost:127.0.0.1:5001\nAuthorization:Bearer secret\n\n" + json.dumps(body).encode()
    yield b"/ls?path=" + str(_ROOT).encode() + b"/a/b&limit=9&code=auto&name=%ff\n\n[]"
    yield b'/x?code=300%2b2\nOrigin:http://evil\n\n{"name": "\\ud800", "path": "/\\ud800"}'
    yield b'\n\n{"path": "\\u0000", "limit": 1e400, "code": "1+1"}'


TARGETS = {
    "http": Target(http, connections, bytes_max=2048),
    "gateway": Target(gateway, gateway_requests, bytes_max=2048),
    "content": Target(content, contents, bytes_max=2048),
    "api": Target(api, api_requests, bytes_max=2048),
}
