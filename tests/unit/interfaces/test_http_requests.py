"""Requests out of bytes: what is taken, what is refused with which status, and the bounds."""

from __future__ import annotations

import pytest

from dstore.interfaces.http_requests import RequestReader
from dstore.limits import (
    HTTP_HEADER_BYTES_MAX,
    HTTP_HEADERS_MAX,
    HTTP_PIPELINED_MAX,
    HTTP_READ_HEAD_BYTES,
)

CHUNKED = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
UPGRADE = ("Connection: Upgrade", "Upgrade: h2c")


def read(data: bytes, piece: int | None = None) -> RequestReader:
    reader = RequestReader()
    for start in range(0, len(data), piece or max(1, len(data))):
        reader.feed(data[start : start + (piece or len(data))])
    return reader


def head(*lines: str) -> bytes:
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


@pytest.mark.parametrize("piece", [None, 1, 7])
def test_a_request_is_read_however_it_comes(piece: int | None) -> None:
    data = (
        head("POST /a%20b?c=%2F HTTP/1.1", "HOST: x", "A:  b c \t", "Empty:", "Content-Length: 5")
        + b"words"
        + head("GET /2 HTTP/1.1", "Host: x", "Connection: close")
    )
    reader = read(data, piece)
    assert reader.refusal is None
    first, second = reader.requests
    assert (first.method, first.target, first.version) == ("POST", b"/a%20b?c=%2F", "1.1")
    assert first.headers == [
        (b"host", b"x"),
        (b"a", b"b c"),
        (b"empty", b""),
        (b"content-length", b"5"),
    ]
    assert first.body_bytes == 5
    assert first.take() == b"words"
    assert first.body_bytes == 0
    assert first.ended
    assert first.keep_alive
    assert (second.method, second.target, second.keep_alive) == ("GET", b"/2", False)
    assert second.ended


@pytest.mark.parametrize("piece", [None, 1])
def test_chunks_are_joined_and_trailers_are_no_headers(piece: int | None) -> None:
    data = CHUNKED + b"3;a=b\r\nabc\r\n2\r\nde\r\n0\r\nHost: evil\r\nA: b\r\n\r\n"
    (request,) = read(data, piece).requests
    assert request.take() == b"abcde"
    assert request.ended
    assert [name for name, _ in request.headers] == [b"host", b"transfer-encoding"]


@pytest.mark.parametrize(
    ("status", "data"),
    [
        (400, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"),
        (400, head("GET / HTTP/1.1")),
        (400, head("GET / HTTP/1.1", "Host: x", "Host: x")),
        (400, head("GET / HTTP/1.0", "Host: x", "Host: y")),
        (400, head("get / HTTP/1.1", "Host: x")),
        (400, head("GET /\x01 HTTP/1.1", "Host: x")),
        (400, head("GET /\xe9 HTTP/1.1", "Host: x")),
        (400, head("GET /?\xe9 HTTP/1.1", "Host: x")),
        (400, head("GET /a b HTTP/1.1", "Host: x")),
        (400, b"GET / HTTP/1.1\nHost: x\n\n"),
        (400, head("GET / HTTP/1.1", "Host: x", "A : b")),
        (400, head("GET / HTTP/1.1", "Host: x", "A: b", " c")),
        (400, head("GET / HTTP/1.1", "Host: x", "A: b\0")),
        (400, head("GET / HTTP/1.1", "Host: x", "A: b\rC: d")),
        (400, head("GET / HTTP/1.1", "Host: x", "A\xe9: b")),
        (400, head("GET / HTTP/1.1", "Host: x", ": b")),
        # What two programs may read differently: one's body is the other's next request.
        (400, head("POST / HTTP/1.1", "Host: x", "Content-Length: 1", "Content-Length: 2")),
        (400, head("POST / HTTP/1.1", "Host: x", "Content-Length: 1", "Content-Length: 1")),
        (400, head("POST / HTTP/1.1", "Host: x", "Content-Length: 1, 1")),
        (400, head("POST / HTTP/1.1", "Host: x", "Content-Length: +1")),
        (400, head("POST / HTTP/1.1", "Host: x", "Content-Length: 0x1")),
        (400, head("POST / HTTP/1.1", "Host: x", "Content-Length: -1")),
        (400, head("POST / HTTP/1.1", "Host: x", "Content-Length: 99999999999999999999")),
        (
            400,
            head("POST / HTTP/1.1", "Host: x", "Content-Length: 1", "Transfer-Encoding: chunked"),
        ),
        (
            400,
            head("POST / HTTP/1.1", "Host: x", "Transfer-Encoding: chunked", "Content-Length: 1"),
        ),
        (400, head("POST / HTTP/1.1", "Host: x", "Transfer-Encoding: chunked, gzip")),
        (501, head("POST / HTTP/1.1", "Host: x", "Transfer-Encoding: xchunked") + b"0\r\n\r\n"),
        (400, head("POST / HTTP/1.1", "Host: x", "Transfer-Encoding:\x0bchunked")),
        (400, head("POST / HTTP/1.1", "Host: x", "Transfer-Encoding:", "Content-Length: 1")),
        (400, head("POST / HTTP/1.0", "Transfer-Encoding: chunked")),
        (501, head("POST / HTTP/1.1", "Host: x", "Transfer-Encoding: gzip, chunked")),
        (
            501,
            head(
                "POST / HTTP/1.1",
                "Host: x",
                "Transfer-Encoding: gzip",
                "Transfer-Encoding: chunked",
            ),
        ),
        (501, head("CONNECT x:1 HTTP/1.1", "Host: x")),
        # Where the body is the other protocol's for one program, and ours for another.
        (501, head("POST / HTTP/1.1", "Host: x", *UPGRADE, "Content-Length: 3") + b"abc"),
        (501, head("POST / HTTP/1.1", "Host: x", *UPGRADE, "Transfer-Encoding: chunked")),
        (400, head("GET http:///a HTTP/1.1", "Host: x")),
        (400, head("GET http://?a HTTP/1.1", "Host: x")),
        (400, head("GET http://:80/a HTTP/1.1", "Host: x")),
        (400, head("GET http://user@h/a HTTP/1.1", "Host: x")),
        (400, head("GET http://h/a HTTP/1.1")),
        (400, head("GET http://h/a HTTP/1.1", "Host: h", "Host: h")),
        (400, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
        (505, head("GET / HTTP/2.0", "Host: x")),
        (505, head("GET / HTTP/0.9")),
        (400, head("GET / HTTP/1.2", "Host: x")),
    ],
)
def test_what_is_refused(status: int, data: bytes) -> None:
    for piece in (None, 1):
        reader = read(data, piece)
        assert reader.refusal == status
        assert not any(request.ended for request in reader.requests)


@pytest.mark.parametrize(
    ("absolute", "target", "host"),
    [
        ("http://h:1/ipfs/a%20b?c=/d@e:f", b"/ipfs/a%20b?c=/d@e:f", b"h:1"),
        ("HTTP://[::1]:80//evil", b"//evil", b"[::1]:80"),
        ("http://h", b"/", b"h"),
        ("http://h?q=1", b"/?q=1", b"h"),
    ],
)
def test_an_absolute_target_is_one_in_origin_form_at_its_authority(
    absolute: str, target: bytes, host: bytes
) -> None:
    """RFC 9112, section 3.2.2: the Host header that came with it does not count."""
    heads = [
        head(f"GET {absolute} HTTP/1.1", "A: b", "Host: other"),
        head(f"GET {absolute} HTTP/1.0", "A: b"),
    ]
    for data in heads:
        for piece in (None, 1):
            reader = read(data, piece)
            (request,) = reader.requests
            assert (reader.refusal, request.target, request.ended) == (None, target, True)
            assert request.headers == [(b"host", host), (b"a", b"b")]


@pytest.mark.parametrize("protocol", ["h2c", "websocket", "TLS/1.0, HTTP/1.1"])
def test_an_offer_of_another_protocol_is_passed_over(protocol: str) -> None:
    offer = head("GET /1 HTTP/1.1", "Host: x", "Connection: Upgrade", f"Upgrade: {protocol}")
    empty = head("POST /2 HTTP/1.1", "Host: x", *UPGRADE, "Content-Length: 0")
    data = offer + empty + head("GET /3 HTTP/1.1", "Host: x")
    for piece in (None, 1, 7):
        reader = read(data, piece)
        assert reader.refusal is None
        assert [one.target for one in reader.requests] == [b"/1", b"/2", b"/3"]
        assert all(one.ended and one.keep_alive for one in reader.requests)


@pytest.mark.parametrize(
    "body",
    [
        b"3\nabc\r\n0\r\n\r\n",
        b"0x3\r\nabc\r\n0\r\n\r\n",
        b"-3\r\nabc\r\n0\r\n\r\n",
        b"3 \r\nabc\r\n0\r\n\r\n",
        b"3\r\nabcd\r\n0\r\n\r\n",
        b"3\r\nabcde\r\n0\r\n\r\n",
        b"fffffffffffffffff\r\nabc",
        b"0\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"\r\n0\r\n\r\n",
    ],
)
def test_a_broken_chunk_ends_nothing(body: bytes) -> None:
    for piece in (None, 1):
        reader = read(CHUNKED + body + head("GET /smuggled HTTP/1.1", "Host: x"), piece)
        (request,) = reader.requests
        assert reader.refusal == 400
        assert not request.ended


def test_what_comes_behind_a_last_request_is_no_request() -> None:
    data = head("GET / HTTP/1.1", "Host: x", "Connection: close")
    reader = read(data + head("GET /2 HTTP/1.1", "Host: x"))
    (request,) = reader.requests
    assert request.ended
    assert not request.keep_alive
    assert reader.refusal == 400


def test_nothing_is_read_behind_a_refusal() -> None:
    reader = read(b"nonsense\r\n\r\n")
    reader.feed(head("GET / HTTP/1.1", "Host: x"))
    assert (reader.refusal, list(reader.requests)) == (400, [])


def test_http_1_0_needs_no_host_and_is_closed() -> None:
    (request,) = read(head("GET / HTTP/1.0", "Connection: keep-alive")).requests
    assert (request.version, request.keep_alive, request.ended) == ("1.0", False, True)


@pytest.mark.parametrize(
    ("version", "waits"), [("1.1", True), ("1.0", False)]
)  # HTTP/1.0 knows no interim answers
def test_who_waits_to_be_told_to_send_the_body(version: str, waits: bool) -> None:
    data = head(f"POST / HTTP/{version}", "Host: x", "Expect: 100-Continue", "Content-Length: 1")
    (request,) = read(data).requests
    assert request.waits is waits
    assert not request.ended


def test_many_headers_are_refused() -> None:
    lines = [f"A{number}: b" for number in range(HTTP_HEADERS_MAX - 1)]
    assert read(head("GET / HTTP/1.1", "Host: x", *lines)).refusal is None
    assert read(head("GET / HTTP/1.1", "Host: x", *lines, "One-More: b")).refusal == 431


@pytest.mark.parametrize("piece", [None, HTTP_READ_HEAD_BYTES, 1000])
def test_long_heads_are_refused(piece: int | None) -> None:
    around = len(head("GET / HTTP/1.1", "Host: x", "A: "))
    room = HTTP_HEADER_BYTES_MAX - around
    assert read(head("GET / HTTP/1.1", "Host: x", "A: " + "b" * room), piece).refusal is None
    for data in (
        head("GET / HTTP/1.1", "Host: x", "A: " + "b" * (room + around)),
        head("GET / HTTP/1.1", "Host: x", *[f"A{n}: " + "b" * 1000 for n in range(40)]),
        head("GET /" + "b" * HTTP_HEADER_BYTES_MAX + " HTTP/1.1", "Host: x"),
        b"\r\n" * HTTP_HEADER_BYTES_MAX,
    ):
        assert read(data, piece).refusal == 431


@pytest.mark.parametrize(
    "endless",
    [
        b"GET /" + b"a" * 50_000,
        b"GET / HTTP/1.1\r\nHost: x\r\nA: " + b"a" * 50_000,
        b"GET / HTTP/1.1\r\nHost: x\r\n" + b"a" * 50_000,
        CHUNKED + b"1;" + b"a" * 50_000,
        CHUNKED + b"0\r\nA: " + b"a" * 50_000,
        CHUNKED + b"0\r\n" + b"A: b\r\n" * 10_000,
    ],
)
def test_what_never_ends_is_given_up(endless: bytes) -> None:
    """Where llhttp keeps what it has not seen the end of."""
    assert read(endless, 1000).refusal == 431


def test_a_body_is_no_head_however_long() -> None:
    data = head("POST / HTTP/1.1", "Host: x", "Content-Length: 100000")
    reader = read(data + bytes(100_000), 1000)
    (request,) = reader.requests
    assert reader.refusal is None
    assert request.ended
    assert request.body_bytes == 100_000


def test_requests_ahead_of_answers_are_counted() -> None:
    reader = read(head("GET / HTTP/1.1", "Host: x") * (HTTP_PIPELINED_MAX + 1))
    assert len(reader.requests) == HTTP_PIPELINED_MAX
    assert reader.refusal == 503
