"""The answers of the local API as its client reads them: a status, then a body in pieces.

The bytes are parsed by llhttp through httptools, as the daemon parses requests: http.client would
import TLS and all of mail's headers, and every command would wait for that.
"""

from __future__ import annotations

import socket
from collections import deque
from typing import Final

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

from dstore.errors import ConnectionLost
from dstore.limits import MIB

_PIECE_BYTES: Final = MIB
_FRAMING: Final = (b"content-length", b"transfer-encoding")


class Answer:
    """What comes back on a connection whose request is sent; reading waits for bytes to come.

    Made, it has the status.  Everything raises ConnectionLost where the answer is no HTTP or the
    connection ends before it does, and OSError.
    """

    def __init__(self, connection: socket.socket) -> None:
        self.status = 0
        self.length: int | None = None
        """The bytes of the body, where the head says how many."""
        self._connection = connection
        self._parser = HttpResponseParser(self)
        self._pieces: deque[bytes] = deque()
        self._taken = 0  # bytes of the first one
        self._framed = False  # it has an end of its own, before that of the connection
        self._ended = False
        while not self.status:
            self._receive()

    def piece(self) -> bytes:
        """What is there of the body, as it comes; nothing only at its end."""
        if not self._wait():
            return b""
        taken, self._taken = self._taken, 0
        return self._pieces.popleft()[taken:]

    def read(self, size: int) -> bytes:
        """That many bytes of the body, fewer only at its end."""
        return self._read(size, line=False)

    def line(self, size: int) -> bytes:
        """A line of the body with its end; a part of it where it is longer than `size` bytes or
        the body ends."""
        return self._read(size, line=True)

    def _read(self, size: int, *, line: bool) -> bytes:
        parts: list[bytes] = []
        while size and self._wait():
            piece, start = self._pieces[0], self._taken
            line_end = piece.find(b"\n", start, start + size) + 1 if line else 0
            self._taken = line_end or min(start + size, len(piece))
            parts.append(piece[start : self._taken])
            size = 0 if line_end else size - len(parts[-1])
            if self._taken == len(piece):
                self._pieces.popleft()
                self._taken = 0
        return b"".join(parts)

    def _wait(self) -> bool:
        """Whether there is more of the body; waits until that is known."""
        while not (self._pieces or self._ended):
            self._receive()
        return bool(self._pieces)

    def _receive(self) -> None:
        data = self._connection.recv(_PIECE_BYTES)
        if data:
            self._parse(data)
        elif self.status and not self._framed:
            self._ended = True
        else:
            raise ConnectionLost(
                "the daemon ended the connection "
                + ("in the middle of its answer" if self.status else "without an answer")
            )

    def _parse(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except (HttpParserError, HttpParserUpgrade) as error:
            raise ConnectionLost(f"the daemon's answer is no HTTP: {error}") from error

    # --- Called by the parser, in this order -------------------------------------------------

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        self._framed = self._framed or name in _FRAMING
        if name == b"content-length":
            self.length = int(value)

    def on_headers_complete(self) -> None:
        self.status = self._parser.get_status_code()

    def on_body(self, data: bytes) -> None:
        self._pieces.append(data)

    def on_message_complete(self) -> None:
        self._ended = True
