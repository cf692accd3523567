"""What a gateway request asks for: its path, query and headers as values, checked.

Nothing is looked up here.  Specifications: IPFS Path Gateway, RFC 9110 (content negotiation).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final
from urllib.parse import parse_qsl, quote, quote_from_bytes, unquote_to_bytes

from dstore.core.cid import CID, DAG_CBOR, DAG_JSON
from dstore.errors import CallerError, InvalidPath
from dstore.limits import DAG_DEPTH_MAX, HTTP_PATH_CHARS_MAX, NAME_BYTES_MAX

PREFIX: Final = "/ipfs/"

_QUERY_FIELDS_MAX: Final = 32
_ACCEPT_RANGES_MAX: Final = 64  # media ranges of an Accept header that are looked at
# Representations that the specification names; of these only `raw` is made here.
_FORMAT_OF_TYPE: Final = {
    "application/vnd.ipld.raw": "raw",
    "application/vnd.ipld.car": "car",
    "application/x-tar": "tar",
    "application/vnd.ipld.dag-json": "dag-json",
    "application/vnd.ipld.dag-cbor": "dag-cbor",
    "application/vnd.ipfs.ipns-record": "ipns-record",
}
_FORMATS: Final = frozenset({*_FORMAT_OF_TYPE.values(), "json", "cbor"})
_FORMAT_OF_CODEC: Final = {DAG_JSON: "dag-json", DAG_CBOR: "dag-cbor", 0x0200: "json", 0x51: "cbor"}


class PathTooLong(CallerError):
    """A request target longer than HTTP_PATH_CHARS_MAX."""

    http_status = 414


class NotAcceptable(CallerError):
    """A representation that this gateway does not make."""

    http_status = 406


class NotCached(CallerError):
    """The client wanted it only without asking peers, and it is not here."""

    http_status = 412


@dataclass(frozen=True)
class GatewayRequest:
    """One request for content.

    `names` are path elements below the root, bytes that are no UTF-8 escaped as in
    `os.fsdecode`; `slash` says that the path ended in one.  `format` is None for the default.
    """

    root: CID
    names: tuple[str, ...]
    slash: bool
    query: bytes
    format: str | None
    negotiated: bool  # the format came from the Accept header, not from the URL
    filename: str | None
    download: bool
    headers: Mapping[str, str]

    @property
    def path(self) -> str:
        """The content path, percent-encoded, as the URL had it, less empty elements."""
        return path_of(self.root, self.names) + ("/" if self.slash else "")

    @property
    def only_if_cached(self) -> bool:
        """Whether peers must not be asked."""
        return "only-if-cached" in self.headers.get("cache-control", "").lower()

    @property
    def registers_worker(self) -> bool:
        """Whether a browser wants to install a service worker for more than one root."""
        return "service-worker" in self.headers and not self.names and not self.slash

    def check_format(self, cid: CID) -> None:
        """Raises NotAcceptable where what the path led to cannot be had in the format."""
        if self.format in (None, "raw") or self.format == _FORMAT_OF_CODEC.get(cid.codec):
            return
        raise NotAcceptable(
            f"this gateway does not convert to {self.format}; it serves files, directory "
            "listings and, with ?format=raw, single blocks"
        )


def path_of(root: CID, names: tuple[str, ...]) -> str:
    """The percent-encoded content path of names below a root."""
    return PREFIX + "/".join((str(root), *(quote_name(name) for name in names)))


def quote_name(name: str) -> str:
    """A path element percent-encoded, whatever bytes it has."""
    return quote(name, safe="", errors="surrogateescape")


def parse_request(scope: Mapping[str, Any]) -> GatewayRequest:
    """The request of an ASGI scope whose path begins with /ipfs/.

    Raises InvalidCid, InvalidPath, PathTooLong, CallerError.
    """
    raw_path: bytes = scope["raw_path"]
    query: bytes = scope["query_string"]
    if len(raw_path) + len(query) > HTTP_PATH_CHARS_MAX:
        raise PathTooLong(f"a path and query of more than {HTTP_PATH_CHARS_MAX} characters")
    headers = _headers(scope)
    root, names, slash = _parse_path(unquote_to_bytes(raw_path))
    fields = _fields(query)
    format_, negotiated = fields.get("format") or None, False
    if format_ is None:
        format_ = _accepted_format(headers.get("accept", ""))
        negotiated = format_ is not None
    elif format_ not in _FORMATS:
        raise CallerError(f"unknown format {format_[:32]!r}")
    return GatewayRequest(
        root=root,
        names=names,
        slash=slash,
        query=query,
        format=format_,
        negotiated=negotiated,
        filename=_filename(fields.get("filename", "")),
        download=fields.get("download") == "true",
        headers=headers,
    )


def redirect_target(request: GatewayRequest) -> str:
    """The URL of the directory that the path names: with a slash, the query kept."""
    query = f"?{quote_from_bytes(request.query, safe='%&=+,;:@!$*/?')}" if request.query else ""
    return f"{path_of(request.root, request.names)}/{query}"


def _headers(scope: Mapping[str, Any]) -> dict[str, str]:
    """Header values by lower-case name; what came several times is one list, as RFC 9110
    has it."""
    found: dict[str, str] = {}
    for name, value in scope["headers"]:
        key, text = name.decode("latin-1").lower(), value.decode("latin-1")
        found[key] = f"{found[key]}, {text}" if key in found else text
    return found


def _parse_path(path: bytes) -> tuple[CID, tuple[str, ...], bool]:
    """Root and names of a decoded path.  Empty elements do not count; dot segments are not
    names and nothing is resolved upwards."""
    text = path.decode("utf-8", "surrogateescape").removeprefix(PREFIX)
    if "\0" in text:
        raise InvalidPath("a path with a NUL in it")
    first, *rest = text.split("/")
    if not first:
        raise InvalidPath("a CID belongs behind /ipfs/")
    names = tuple(name for name in rest if name)
    if "." in names or ".." in names:
        raise InvalidPath("dot segments are not resolved here; give the path without them")
    if len(names) > DAG_DEPTH_MAX:
        raise InvalidPath(f"a path of more than {DAG_DEPTH_MAX} elements")
    return _root(first), names, bool(rest) and not rest[-1]


@lru_cache(maxsize=256)  # who asks for a file of a directory asks for more of them
def _root(text: str) -> CID:
    return CID.parse(text)


def _fields(query: bytes) -> dict[str, str]:
    if not query:
        return {}
    try:
        pairs = parse_qsl(
            query.decode("latin-1"),
            keep_blank_values=True,
            errors="replace",
            max_num_fields=_QUERY_FIELDS_MAX,
        )
    except ValueError as error:
        raise CallerError(f"a query of more than {_QUERY_FIELDS_MAX} fields") from error
    return dict(pairs)


def _filename(text: str) -> str | None:
    """A file name as given in the query, less what no file name has."""
    kept = "".join("_" if character in '/\\"\0' else character for character in text)
    kept = "".join(character for character in kept if character.isprintable())
    return kept.encode("utf-8", "replace")[:NAME_BYTES_MAX].decode("utf-8", "ignore") or None


def _accepted_format(accept: str) -> str | None:
    """The format that an Accept header asks for; None for the default.

    A block's type must be named to be served; anything that is no IPFS format of its own
    (text/html, image/*, */*) accepts the default, whatever type that turns out to have.
    """
    if accept in ("", "*/*"):
        return None
    weights: dict[str | None, float] = {}
    for part in accept.split(",", _ACCEPT_RANGES_MAX)[:_ACCEPT_RANGES_MAX]:
        media_range, *parameters = (piece.strip().lower() for piece in part.split(";", 16))
        if media_range:
            format_ = _FORMAT_OF_TYPE.get(media_range)
            weights[format_] = max(weights.get(format_, 0.0), _weight(parameters))
    wanted = {format_: weight for format_, weight in weights.items() if weight > 0}
    if not wanted:
        return None
    made = {format_: weight for format_, weight in wanted.items() if format_ in (None, "raw")}
    # Of equals the one that was named.
    return max(made or wanted, key=lambda format_: (wanted[format_], format_ or ""))


def _weight(parameters: list[str]) -> float:
    for parameter in parameters:
        if parameter.startswith("q="):
            try:
                return min(max(float(parameter[2:10]), 0.0), 1.0)
            except ValueError:
                return 1.0
    return 1.0
