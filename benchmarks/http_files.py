"""Many small files over HTTP, by a client that leaves the processors to those measured.

One thread, kept connections, no library: `http.client` with a thread for each connection
takes four times as much of the two cores that client, gateway and holders share.  It reads what
the servers of `benchmarks.peers` send: bodies of a known length, and chunks.
"""

from __future__ import annotations

import selectors
import socket
import time
from collections.abc import Iterator
from urllib.parse import urlsplit

_TIMEOUT_SECONDS = 120
_READ_BYTES = 1 << 18


class _Line:
    """A connection, the paths that it still has to ask for, and what has come of an answer."""

    def __init__(self, host: str, port: int, paths: list[str]) -> None:
        self.socket = socket.create_connection((host, port), _TIMEOUT_SECONDS)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.body_bytes = 0
        self._named = f"{host}:{port}"
        self._paths: Iterator[str] = iter(paths)
        self._path = ""
        self._data = b""

    def ask(self) -> bool:
        """Ask for the next path; whether there was one."""
        self._path = next(self._paths, "")
        if self._path:
            head = f"GET {self._path} HTTP/1.1\r\nHost: {self._named}\r\n\r\n"
            self.socket.sendall(head.encode())
        return bool(self._path)

    def read(self) -> bool:
        """Take what has come; whether the answer is whole.

        Raises:
            SystemExit: the answer is an error, or breaks off.
        """
        data = self.socket.recv(_READ_BYTES)
        self._data = self._data + data if self._data else data
        size = _body_bytes(self._path, self._data)
        if size is None:
            if not data:
                raise SystemExit(f"GET {self._path}: broken off")
            return False
        self.body_bytes += size
        self._data = b""
        return True


def _body_bytes(path: str, data: bytes) -> int | None:
    """Bytes of the body of an answer; None where it is not whole."""
    head, found, rest = data.partition(b"\r\n\r\n")
    if not found:
        return None
    status, *lines = head.lower().split(b"\r\n")
    if b" 200" not in status[:13]:
        raise SystemExit(f"GET {path}: {status.decode('latin-1')}")
    headers = dict(line.split(b":", 1) for line in lines)
    if b"content-length" in headers:
        size = int(headers[b"content-length"])
        return size if len(rest) >= size else None
    total = 0
    while b"\r\n" in rest:
        word, _, rest = rest.partition(b"\r\n")
        size = int(word.partition(b";")[0], 16)
        if size == 0:
            return total if rest.endswith(b"\r\n") else None
        total, rest = total + size, rest[size + 2 :]
    return None


def fetch_all(url: str, paths: list[str], clients: int, size: int) -> float:
    """Seconds for all paths, each `size` bytes, over `clients` kept connections.

    Raises:
        SystemExit: an answer is an error, breaks off, or the bytes are not as many.
    """
    where = urlsplit(url)
    assert where.hostname is not None
    assert where.port is not None
    got = 0
    begun = time.perf_counter()
    with selectors.DefaultSelector() as selector:
        for number in range(min(clients, len(paths))):
            line = _Line(where.hostname, where.port, paths[number::clients])
            line.ask()
            selector.register(line.socket, selectors.EVENT_READ, line)
        while selector.get_map():
            ready = selector.select(_TIMEOUT_SECONDS)
            if not ready:
                raise SystemExit(f"no answer of {url} in {_TIMEOUT_SECONDS} s")
            for key, _ in ready:
                line = key.data
                if line.read() and not line.ask():
                    selector.unregister(line.socket)
                    line.socket.close()
                    got += line.body_bytes
    seconds = time.perf_counter() - begun
    if got != len(paths) * size:
        raise SystemExit(f"{got} bytes of {len(paths)} small files")
    return seconds
