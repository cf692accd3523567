"""A client for the gateway's application in the same process, and a reader of CAR files."""

from __future__ import annotations

from collections.abc import MutableMapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from libipld import decode_dag_cbor

from dstore.core.cid import CID, decode_varint
from dstore.interfaces.http import App
from dstore.storage.blockstore import Block


@dataclass
class Answer:
    """What the application sent; `complete` where it ended the body cleanly."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    complete: bool = False

    @property
    def text(self) -> str:
        return self.body.decode()


async def _never() -> MutableMapping[str, Any]:
    raise AssertionError("the gateway reads no request bodies")


async def request(app: App, target: str, method: str = "GET", **headers: str) -> Answer:
    """One request; header names with underscores for hyphens."""
    raw_path, _, query = target.partition("?")
    answer = Answer()

    async def send(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            assert not answer.status
            answer.status = message["status"]
            for name, value in message["headers"]:
                assert name == name.lower()
                answer.headers[name.decode()] = value.decode("latin-1")
        else:
            assert answer.status
            assert not answer.complete
            answer.body += message["body"]
            answer.complete = not message.get("more_body", False)

    scope = {
        "type": "http",
        "http_version": "1.1",
        "method": method,
        "path": unquote(raw_path),
        "raw_path": raw_path.encode("latin-1"),
        "query_string": query.encode("latin-1"),
        "headers": [
            (name.replace("_", "-").encode(), value.encode("latin-1"))
            for name, value in headers.items()
        ],
    }
    await app(scope, _never, send)
    return answer


def read_car(path: Path) -> tuple[CID, list[Block]]:
    """The first root and all blocks of a CARv1 file; the blocks are checked by whoever
    stores them."""
    data = path.read_bytes()
    size, position = decode_varint(data)
    header = decode_dag_cbor(data[position : position + size])
    position += size
    blocks = []
    while position < len(data):
        size, position = decode_varint(data, position)
        section, position = data[position : position + size], position + size
        length = _cid_bytes(section)
        blocks.append((CID.from_bytes(section[:length]), section[length:]))
    return CID.from_bytes(header["roots"][0]), blocks


def _cid_bytes(section: bytes) -> int:
    """How many bytes at the front of a CAR section are its CID."""
    if section.startswith(b"\x12\x20"):
        return 34
    _, position = decode_varint(section)
    _, position = decode_varint(section, position)
    _, position = decode_varint(section, position)
    size, position = decode_varint(section, position)
    return position + size
