"""Fuzz targets: what is read from a byte stream before anything is known of the peer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from dstore.core.cid import encode_varint
from dstore.core.peerid import PeerId
from dstore.errors import ConnectionLost, ProtocolViolation
from dstore.limits import NEGOTIATE_MESSAGE_BYTES_MAX, NEGOTIATE_PROPOSALS_MAX
from dstore.network.negotiate import MULTISTREAM, accept, propose
from dstore.network.streams import BufferedReader, frame
from tests.fuzz.script import Inbound, Script, run
from tests.fuzz.target import Target


def _line(text: str) -> bytes:
    body = text.encode() + b"\n"
    return encode_varint(len(body)) + body


_HEADER = _line(MULTISTREAM)
_PROTOCOLS = ("/dstore/fragments/1.0.0", "/ipfs/kad/1.0.0")
_MESSAGE_BYTES_MAX = 512


def negotiate(data: bytes) -> None:
    """What is agreed on was on offer, and not a byte beyond it is read."""
    script = Script(data)
    how, piece = script.number(), script.number()
    sent = script.rest()
    stream: Any = Inbound(sent, piece)
    try:
        if how & 1:
            agreed = run(propose(stream, _PROTOCOLS))
        else:
            agreed = run(accept(stream, _PROTOCOLS.__contains__))
    except (ProtocolViolation, ConnectionLost):
        pass
    else:
        assert agreed in _PROTOCOLS
        assert sent[: stream.position].endswith(agreed.encode() + b"\n")
    # The answers do not grow with what was asked, and no length is trusted.
    assert stream.written <= 64 + NEGOTIATE_PROPOSALS_MAX * 32
    assert stream.position <= _legal_bytes(sent)


def _legal_bytes(sent: bytes) -> int:
    """Up to where messages of legal length go, the first that is not with its length only; the
    first of all can be one alone, and is read for what it must be."""
    position = len(_HEADER)
    if not sent.startswith(_HEADER):
        return position
    for _ in range(NEGOTIATE_PROPOSALS_MAX):
        head = sent[position : position + 2]
        size = head[0] if len(head) and head[0] < 0x80 else None
        position += 1
        if size is None:
            position += 1
            size = (head[0] & 0x7F | head[1] << 7) if len(head) == 2 else 0
        if not 0 < size <= NEGOTIATE_MESSAGE_BYTES_MAX:
            break
        position += size
    return position


def frames(data: bytes) -> None:
    """However the bytes are cut, the same messages come, and no length is trusted."""
    outcomes = [_messages(data, piece) for piece in (1, 7, 1 << 18)]
    assert outcomes[0] == outcomes[1] == outcomes[2]


def _messages(data: bytes, piece: int) -> tuple[list[bytes], str]:
    stream: Any = Inbound(data, piece)
    stream.peer = PeerId.of_ed25519(bytes(32))
    reader = BufferedReader(stream)
    found: list[bytes] = []
    try:
        while (message := run(reader.read_message(_MESSAGE_BYTES_MAX))) is not None:
            assert len(message) <= _MESSAGE_BYTES_MAX
            found.append(message)
    except (ProtocolViolation, ConnectionLost) as error:
        return found, type(error).__name__
    return found, ""


def negotiations() -> Iterator[bytes]:
    head, line = _HEADER, _line
    for how in (0, 1):
        for piece in (1, 255):
            yield bytes((how, piece)) + head + line(_PROTOCOLS[0]) + b"more"
            yield bytes((how, piece)) + head + line("na") + line(_PROTOCOLS[1])
    yield bytes((0, 9)) + head + line("ls") + line("/x/" + "y" * 130)
    yield bytes((0, 9)) + head + line("/none/1.0.0") * 33
    yield bytes((0, 255)) + head + line("/" + "y" * NEGOTIATE_MESSAGE_BYTES_MAX)


def framed() -> Iterator[bytes]:
    yield frame(b"one") + frame(b"") + frame(b"x" * 300)
    yield frame(b"x" * _MESSAGE_BYTES_MAX) + encode_varint(_MESSAGE_BYTES_MAX + 1)
    yield b"\x80\x00" + frame(b"not minimal")
    yield b"\xff" * 9


TARGETS = {
    "negotiate": Target(negotiate, negotiations, bytes_max=2048),
    "frames": Target(frames, framed, bytes_max=2048),
}
