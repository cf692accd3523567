"""A small synchronous client of a running daemon's local API.

It finds the daemon through `api.json` in the home directory and raises the daemon's own
errors again.  It imports nothing of the services, so that commands start quickly.
"""

from __future__ import annotations

import json
import os
import select
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final
from urllib.parse import quote, urlencode, urlsplit

from dstore.errors import ConnectionLost, DeadlineExceeded, NodeError, NotFoundError
from dstore.interfaces.forms import Form, dump, error_of
from dstore.interfaces.http_answers import Answer
from dstore.limits import CLI_ANSWER_SECONDS, HTTP_JSON_BYTES_MAX, MIB
from dstore.storage.private import api_file, read_private

_LINE_BYTES_MAX: Final = 16 * MIB  # a status of many segments comes as one
_PIECE_BYTES: Final = MIB


class DaemonNotRunning(NodeError):
    """No daemon runs on the home directory."""


class Client:
    """Speaks to one daemon; each call is a connection of its own.

    Every method raises the DstoreError that the daemon answered with, ConnectionLost where
    it ends in the middle, and DeadlineExceeded where it says nothing for long.
    """

    def __init__(self, url: str, token: str, home: Path) -> None:
        parts = urlsplit(url)
        self._host, self._port = parts.hostname or "", parts.port or 0
        self._authority = parts.netloc
        self._token = token
        self._home = home

    @classmethod
    def of_home(cls, directory: Path) -> Client:
        """The client of the daemon that runs on a home directory.  Raises DaemonNotRunning."""
        form = daemon_form(directory)
        return cls(str(form.get("url")), str(form.get("token")), directory)

    # --- Calls ---------------------------------------------------------------------------

    def get(self, path: str, query: Mapping[str, str] | None = None) -> Form:
        """The JSON object at `path`."""
        with self._request("GET", path, query) as answer:
            return _object(answer)

    def post(self, path: str, form: Form) -> Form:
        """The JSON object that a POST of `form` is answered with."""
        with self._request("POST", path, None, dump(form).encode()) as answer:
            return _object(answer)

    def status(self, cid: str) -> Form:
        return self.get(f"/v1/status/{quote(cid, safe='')}")

    def add_path(self, path: Path, options: Form) -> Iterator[Form]:
        """Progress forms, then the result (`{"result": …}`), of an add of a local path."""
        body = dump({**options, "path": str(path)}).encode()
        with self._request("POST", "/v1/add", None, body) as answer:
            yield from _lines(answer)

    def add_stream(
        self, source: BinaryIO, options: Form, sent: Callable[[int], None] = lambda _: None
    ) -> Iterator[Form]:
        """As `add_path`, of what `source` has until its end; `sent` is told how many bytes
        have gone out."""
        query = {
            name: (str(value).lower() if isinstance(value, bool) else str(value))
            for name, value in options.items()
            if value is not None
        }
        with self._request("POST", "/v1/add", query, _chunks(source, sent)) as answer:
            yield from _lines(answer)

    def ls(self, path: str) -> Iterator[Form]:
        """The entries of a directory.  Ends only where all of them came."""
        with self._request("GET", "/v1/ls", {"path": path}) as answer:
            yield from _until_done(answer)

    @contextmanager
    def cat(
        self, path: str, offset: int = 0, length: int | None = None
    ) -> Iterator[Iterator[bytes]]:
        """The bytes of a file, in pieces."""
        query = {"path": path, "offset": str(offset)}
        if length is not None:
            query["length"] = str(length)
        with self._request("GET", "/v1/cat", query) as answer:
            yield _pieces(answer)

    def tree(self, path: str) -> Iterator[Form | bytes]:
        """Everything at and below a path: a form for each entry, and after that of a file
        its bytes in pieces.  Ends only where all of it came."""
        with self._request("GET", "/v1/get", {"path": path}) as answer:
            for form in _until_done(answer):
                if "bytes" in form:
                    yield _exactly(answer, int(form["bytes"]))
                else:
                    yield form

    # --- One exchange --------------------------------------------------------------------

    @contextmanager
    def _request(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: bytes | Iterator[bytes] | None = None,
    ) -> Iterator[Answer]:
        """The answer to a request, its status a good one."""
        target = path + ("?" + urlencode(query, errors="surrogateescape") if query else "")
        reading = False
        try:
            with self._connect() as connection:
                self._send(connection, f"{method} {target} HTTP/1.1\r\n", body)
                answer = Answer(connection)
                if answer.status != 200:
                    raise error_of(_object(answer))
                reading = True
                yield answer
        except TimeoutError as error:
            raise DeadlineExceeded(
                f"the daemon said nothing for {CLI_ANSWER_SECONDS} s; its log may say why"
            ) from error
        except ConnectionError as error:
            if reading and isinstance(error, BrokenPipeError):
                raise  # not ours, from which we only read: whoever reads what we print is gone
            raise ConnectionLost(f"the daemon ended the connection: {error!r}") from error

    def _connect(self) -> socket.socket:
        try:
            connection = socket.create_connection((self._host, self._port), CLI_ANSWER_SECONDS)
        except OSError as error:
            raise DaemonNotRunning(
                f"the daemon of {self._home} does not answer at {self._host}:{self._port} "
                f"({error.strerror or error}); start it: dstore run --home {self._home}"
            ) from error
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection

    def _send(
        self, connection: socket.socket, first_line: str, body: bytes | Iterator[bytes] | None
    ) -> None:
        head = f"{first_line}Host: {self._authority}\r\nAuthorization: Bearer {self._token}\r\n"
        if isinstance(body, bytes):
            head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        elif body is not None:
            head += "Content-Type: application/octet-stream\r\nTransfer-Encoding: chunked\r\n"
        begin = f"{head}\r\n".encode("latin-1")
        if isinstance(body, bytes):
            connection.sendall(begin + body)
            return
        connection.sendall(begin)
        if body is not None:
            _send_chunks(connection, body)


def daemon_form(directory: Path) -> Form:
    """What `api.json` of a home says.  Raises DaemonNotRunning, NodeError."""
    file = api_file(directory)
    try:
        form = json.loads(read_private(file))
    except NotFoundError as error:
        raise DaemonNotRunning(
            f"no daemon runs on {directory}: start one with  dstore run --home {directory}"
        ) from error
    except ValueError as error:
        raise NodeError(f"{file} is damaged: stop the daemon and start it again") from error
    if not isinstance(form, dict):
        raise NodeError(f"{file} is damaged: stop the daemon and start it again")
    return form


def _chunks(source: BinaryIO, sent: Callable[[int], None]) -> Iterator[bytes]:
    done = 0
    # What is there, as it comes: a pipe may be slow.
    while piece := os.read(source.fileno(), _PIECE_BYTES):
        yield piece
        done += len(piece)
        sent(done)


def _send_chunks(connection: socket.socket, body: Iterator[bytes]) -> None:
    """The body in HTTP chunks.  Stops where the daemon answers before the end: it refuses."""
    try:
        for piece in body:
            if select.select([connection], [], [], 0)[0]:
                return
            connection.sendall(b"%x\r\n%b\r\n" % (len(piece), piece))
        connection.sendall(b"0\r\n\r\n")
    except (BrokenPipeError, ConnectionResetError):
        return


def _object(answer: Answer) -> Form:
    content = answer.read(_LINE_BYTES_MAX + 1)
    if len(content) > _LINE_BYTES_MAX:
        raise NodeError("the daemon's answer is larger than any it gives")
    return _decoded(content)


def _decoded(content: bytes) -> Form:
    try:
        form = json.loads(content)
    except ValueError as error:
        raise NodeError(
            f"not an answer of dstore: {content[:80]!r}; is another program on its port?"
        ) from error
    if not isinstance(form, dict):
        raise NodeError("not an answer of dstore: no JSON object")
    return form


def _line(answer: Answer) -> Form | None:
    content = answer.line(HTTP_JSON_BYTES_MAX)
    if not content:
        return None
    if not content.endswith(b"\n"):
        raise ConnectionLost("the daemon stopped in the middle of a line")
    return _decoded(content)


def _lines(answer: Answer) -> Iterator[Form]:
    while (form := _line(answer)) is not None:
        if "error" in form:
            raise error_of(form["error"])
        yield form


def _until_done(answer: Answer) -> Iterator[Form]:
    """The lines before the one that says that it is the last."""
    for form in _lines(answer):
        if form.get("done"):
            return
        yield form
    raise ConnectionLost("the daemon stopped in the middle of its answer")


def _exactly(answer: Answer, size: int) -> bytes:
    content = answer.read(size)
    if len(content) < size:
        raise ConnectionLost("the daemon stopped in the middle of a file")
    return content


def _pieces(answer: Answer) -> Iterator[bytes]:
    """The body as it comes.  Raises ConnectionLost where it is not all of it."""
    missing = answer.length or 0
    try:
        while piece := answer.piece():
            missing -= len(piece)
            yield piece
    except ConnectionLost as error:
        raise ConnectionLost(
            f"the daemon stopped {missing} bytes before the end of the file: its log says why"
        ) from error
