"""Answers as the local API's client reads them, from whatever a socket brings."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from dstore.errors import ConnectionLost
from dstore.interfaces.http_answers import Answer

OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"


@contextmanager
def answered(*parts: bytes) -> Iterator[socket.socket]:
    """A connection on which the parts come, one after the other, and then its end."""
    near, far = socket.socketpair()
    with near, far:

        def send() -> None:
            for part in parts:
                far.sendall(part)
            far.shutdown(socket.SHUT_WR)

        sender = threading.Thread(target=send)
        sender.start()
        try:
            yield near
        finally:
            near.close()
            sender.join()


def chunk(body: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(body), body)


@pytest.mark.parametrize("step", [1, 2, 7, 10_000])
def test_lines_and_bytes_of_a_chunked_body(step: int) -> None:
    body = b"".join(map(chunk, (b"first\nsec", b"ond\n", b"12345", b"67third\n", b"a\nb\nrest")))
    whole = CHUNKED + body + chunk(b"")
    with answered(*(whole[at : at + step] for at in range(0, len(whole), step))) as connection:
        answer = Answer(connection)
        assert (answer.status, answer.length) == (200, None)
        assert answer.line(100) == b"first\n"
        assert answer.line(100) == b"second\n"
        assert answer.read(7) == b"1234567"
        assert answer.line(100) == b"third\n"
        assert answer.line(1) == b"a"  # longer than asked for
        assert answer.line(2) == b"\n"
        assert answer.line(2) == b"b\n"
        assert answer.line(100) == b"rest"  # no end of a line, but of the body
        assert answer.line(100) == answer.read(100) == answer.piece() == b""


def test_pieces_end_with_the_length() -> None:
    with answered(OK + b"content-LENGTH: 5\r\n\r\nab", b"cde") as connection:
        answer = Answer(connection)
        assert answer.length == 5
        assert answer.read(1) == b"a"
        assert b"".join(iter(answer.piece, b"")) == b"bcde"


def test_a_body_without_a_length_ends_with_the_connection() -> None:
    """No daemon of ours sends one: another program on its port does."""
    with answered(b"HTTP/1.0 404 no\r\n\r\n<h1>", b"</h1>") as connection:
        answer = Answer(connection)
        assert answer.status == 404
        assert answer.read(100) == b"<h1></h1>"


@pytest.mark.parametrize(
    ("sent", "told"),
    [
        (b"", "without an answer"),
        (OK, "without an answer"),
        (OK + b"Content-Length: 9\r\n\r\n12345678", "in the middle of its answer"),
        (CHUNKED + chunk(b"12345678"), "in the middle of its answer"),
        (CHUNKED + b"9\r\n12345678", "in the middle of its answer"),
        (CHUNKED + b"no length\r\n", "no HTTP"),
        (b"SSH-2.0-OpenSSH_9.6\r\n", "no HTTP"),
        (b"HTTP/1.1 101 x\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\nx", "no HTTP"),
        (OK + b"Content-Length: many\r\n\r\n", "no HTTP"),
    ],
)
def test_what_is_no_whole_answer(sent: bytes, told: str) -> None:
    with answered(sent) as connection, pytest.raises(ConnectionLost, match=told):
        Answer(connection).read(100)
