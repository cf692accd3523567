"""HTTP/1.1 requests out of the bytes of a connection, and what is refused of them.

llhttp (`httptools`) splits and checks: line ends, tokens, lengths, chunks.  What it leaves to
its users is here: limits, the Host header, transfer codings, protocols that are not spoken.
No I/O and no clock.  Specifications: RFC 9112, RFC 9110.
"""

from __future__ import annotations

import re
from collections import deque
from dataclasses import dataclass, field
from typing import Final, NoReturn

from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser

from dstore.limits import HTTP_HEADER_BYTES_MAX, HTTP_HEADERS_MAX, HTTP_PIPELINED_MAX

_VERSIONS: Final = frozenset({"1.0", "1.1"})
_FRAMING: Final = frozenset({b"content-length", b"transfer-encoding"})
# Beside its text, a header line has a colon and a line end.
_LINE_BYTES: Final = 3
# As proxies are asked: scheme, authority without user and with a host, and what asks a server.
_ABSOLUTE: Final = re.compile(rb"(?i:http)://([^:/?@][^/?@]*)((?:[/?].*)?)", re.DOTALL)


@dataclass(eq=False, slots=True)
class Request:
    """The head of a request, and what has come of its body and was not taken yet.

    Names of `headers` are in lower case.  A `target` that came in absolute form is in origin form,
    its authority the Host header (RFC 9112, section 3.2.2).  `waits` says that the client wants to
    be told to send the body (`Expect: 100-continue`); `ended` that the body has come to its end.
    """

    method: str
    target: bytes
    version: str
    headers: list[tuple[bytes, bytes]]
    keep_alive: bool
    waits: bool
    body: deque[bytes] = field(default_factory=deque)
    body_bytes: int = 0
    ended: bool = False

    def take(self) -> bytes:
        """All of the body that is here."""
        data = self.body[0] if len(self.body) == 1 else b"".join(self.body)
        self.body.clear()
        self.body_bytes = 0
        return data


class RequestReader:
    """Reads what a client sends.  Requests whose heads are there are in `requests`, in order,
    the last one perhaps with its body still to come; `refusal` is the status that what comes
    behind them is answered with, and nothing is read after it."""

    def __init__(self) -> None:
        self.requests: deque[Request] = deque()
        self.refusal: int | None = None
        self._parser = HttpRequestParser(self)
        self._target = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._request: Request | None = None  # whose body is being read
        self._undecided = 0  # bytes that were neither a whole head nor of a body

    @property
    def in_body(self) -> bool:
        """Whether the rest of a body is what comes next."""
        return self._request is not None

    def feed(self, data: bytes) -> None:
        """Read on.  The whole of a head, and whatever stands around a piece of a body, must
        not be longer than HTTP_HEADER_BYTES_MAX."""
        if self.refusal is not None:
            return
        self._undecided += len(data)
        try:
            while data:
                data = self._parse(data)
        except HttpParserError:
            self.refusal = self.refusal or 400
        if self._undecided > HTTP_HEADER_BYTES_MAX:
            self.refusal = self.refusal or 431

    def _parse(self, data: bytes) -> bytes:
        """Give the parser the bytes; what it leaves behind a head that offers another protocol.
        None is spoken, so that is the next request (RFC 9110, section 7.8)."""
        try:
            self._parser.feed_data(data)
        except HttpParserUpgrade as upgrade:
            left: int = upgrade.args[0]
            return data[left:]
        return b""

    def _refuse(self, status: int) -> NoReturn:
        self.refusal = status
        raise ValueError(status)  # llhttp's way to be told to stop

    # --- Called by the parser, in this order -------------------------------------------------

    def on_message_begin(self) -> None:
        self._target, self._headers = b"", []

    def on_url(self, part: bytes) -> None:
        self._target += part

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._request is not None:
            return  # a trailer: nobody asked for it
        if len(self._headers) == HTTP_HEADERS_MAX:
            self._refuse(431)
        self._headers.append((name.lower(), value.rstrip(b" \t")))

    def on_headers_complete(self) -> None:
        parser, headers = self._parser, self._headers
        version = parser.get_http_version()
        if version not in _VERSIONS:
            self._refuse(505)
        if not self._target.isascii():
            self._refuse(400)
        if parser.get_method() == b"CONNECT":
            self._refuse(501)
        hosts, waits = 0, False
        size = len(self._target)
        for name, value in headers:
            size += len(name) + len(value) + _LINE_BYTES
            if name == b"host":
                hosts += 1
            elif name in _FRAMING and value != b"0" and parser.should_upgrade():
                self._refuse(501)  # llhttp would take the body for the other protocol
            elif name == b"transfer-encoding":
                # llhttp takes any list that ends with it, and HTTP/1.0 has none.
                if value.lower() != b"chunked":
                    self._refuse(501)
                if version == "1.0":
                    self._refuse(400)
            elif name == b"expect":
                waits = version == "1.1" and value.lower() == b"100-continue"
        if size > HTTP_HEADER_BYTES_MAX:
            self._refuse(431)
        if hosts > 1 or (not hosts and version == "1.1"):
            self._refuse(400)
        if len(self.requests) == HTTP_PIPELINED_MAX:
            self._refuse(503)
        if self._target[:7].lower() == b"http://":
            self._to_origin_form()
        self._undecided = 0
        self._request = Request(
            method=parser.get_method().decode("ascii"),
            target=self._target,
            version=version,
            headers=self._headers,
            keep_alive=version == "1.1" and parser.should_keep_alive(),
            waits=waits,
        )
        self.requests.append(self._request)

    def _to_origin_form(self) -> None:
        absolute = _ABSOLUTE.fullmatch(self._target)
        if absolute is None:
            self._refuse(400)
        authority, rest = absolute.groups()
        self._target = rest if rest.startswith(b"/") else b"/" + rest
        others = [(name, value) for name, value in self._headers if name != b"host"]
        self._headers = [(b"host", authority), *others]

    def on_body(self, data: bytes) -> None:
        assert self._request is not None
        self._undecided = 0
        self._request.body.append(data)
        self._request.body_bytes += len(data)

    def on_message_complete(self) -> None:
        self._undecided = 0
        if self._request is not None:
            self._request.ended = True
            self._request = None
