"""What a file's bytes are, by its name and else by how they begin.

Browsers are told not to guess (`nosniff`), so this guess is the one that counts.  Only a
built-in table is used: the machine's own would give other answers on other machines.
Signatures: WHATWG MIME Sniffing, and the formats' own specifications.
"""

from __future__ import annotations

import codecs
import mimetypes
import re
from typing import Final

from dstore.core.cid import DAG_CBOR, DAG_JSON

OCTETS: Final = "application/octet-stream"
TEXT: Final = "text/plain; charset=utf-8"
RAW_BLOCK: Final = "application/vnd.ipld.raw"
SYMLINK: Final = "inode/symlink"
SNIFF_BYTES: Final = 1024
"""How much of a file's beginning is looked at."""

_MORE_TYPES: Final = {
    ".7z": "application/x-7z-compressed",
    ".apng": "image/apng",
    ".arrow": "application/vnd.apache.arrow.file",
    ".avif": "image/avif",
    ".car": "application/vnd.ipld.car",
    ".epub": "application/epub+zip",
    ".flac": "audio/flac",
    ".geojson": "application/geo+json",
    ".ipynb": "application/x-ipynb+json",
    ".js": "text/javascript",
    ".jsonl": "application/jsonl",
    ".m4a": "audio/mp4",
    ".m4v": "video/mp4",
    ".markdown": "text/markdown",
    ".md": "text/markdown",
    ".mjs": "text/javascript",
    ".mkv": "video/matroska",
    ".oga": "audio/ogg",
    ".ogg": "audio/ogg",
    ".ogv": "video/ogg",
    ".opus": "audio/ogg",
    ".otf": "font/otf",
    ".parquet": "application/vnd.apache.parquet",
    ".rst": "text/x-rst",
    ".toml": "application/toml",
    ".ttf": "font/ttf",
    ".wasm": "application/wasm",
    ".webm": "video/webm",
    ".webmanifest": "application/manifest+json",
    ".webp": "image/webp",
    ".woff": "font/woff",
    ".woff2": "font/woff2",
    ".yaml": "application/yaml",
    ".yml": "application/yaml",
}
_COMPRESSIONS: Final = {
    "gzip": "application/gzip",
    "bzip2": "application/x-bzip2",
    "xz": "application/x-xz",
    "compress": "application/x-compress",
    "br": OCTETS,
    "zst": "application/zstd",
}
# Types that are text though their name does not begin so.
_TEXTUAL: Final = frozenset({"application/json", "image/svg+xml"})


def _known_types() -> mimetypes.MimeTypes:
    known = mimetypes.MimeTypes()
    known.encodings_map = {**known.encodings_map, ".zst": "zst"}
    for extension, media_type in _MORE_TYPES.items():
        known.add_type(media_type, extension)
    return known


_KNOWN: Final = _known_types()

_BEGINNINGS: Final = (
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF87a", "image/gif"),
    (b"GIF89a", "image/gif"),
    (b"%PDF-", "application/pdf"),
    (b"PK\x03\x04", "application/zip"),
    (b"PK\x05\x06", "application/zip"),
    (b"\x1f\x8b\x08", "application/gzip"),
    (b"BZh", "application/x-bzip2"),
    (b"\xfd7zXZ\x00", "application/x-xz"),
    (b"\x28\xb5\x2f\xfd", "application/zstd"),
    (b"7z\xbc\xaf\x27\x1c", "application/x-7z-compressed"),
    (b"\x1aE\xdf\xa3", "video/webm"),
    (b"OggS\x00", "audio/ogg"),
    (b"fLaC", "audio/flac"),
    (b"ID3", "audio/mpeg"),
    (b"\xff\xfb", "audio/mpeg"),
    (b"\x00asm", "application/wasm"),
    (b"wOFF", "font/woff"),
    (b"wOF2", "font/woff2"),
    (b"OTTO", "font/otf"),
    (b"PAR1", "application/vnd.apache.parquet"),
    (b"SQLite format 3\x00", "application/vnd.sqlite3"),
    (b"II*\x00", "image/tiff"),
    (b"MM\x00*", "image/tiff"),
    (codecs.BOM_UTF16_LE, "text/plain; charset=utf-16le"),
    (codecs.BOM_UTF16_BE, "text/plain; charset=utf-16be"),
)
_RIFF: Final = {b"WEBP": "image/webp", b"WAVE": "audio/wave", b"AVI ": "video/avi"}
_FTYP: Final = {b"avif": "image/avif", b"heic": "image/heic", b"M4A ": "audio/mp4"}
_HTML: Final = re.compile(
    rb"<(?:!DOCTYPE HTML|HTML|HEAD|SCRIPT|IFRAME|H1|DIV|FONT|TABLE|A|STYLE|TITLE|B|BODY|BR|P)[ >]"
    rb"|<!--",
    re.IGNORECASE,
)
_SVG: Final = re.compile(rb"<svg[\s>]", re.IGNORECASE)
# Bytes that no text has: all controls but tab, line feed, form feed, return and escape.
_BINARY: Final = re.compile(rb"[\x00-\x08\x0b\x0e-\x1a\x1c-\x1f]")


def type_of_name(name: str) -> str | None:
    """The media type that a file name's extension says; None where it says nothing."""
    base, dot, extension = name.rpartition(".")
    if not dot or not extension.isascii():
        return None
    # Only the end counts, and nothing in front of it is to be taken for a URL's scheme.
    inner = base.rpartition(".")[2]
    media_type, encoding = _KNOWN.guess_type(
        f"x.{inner}.{extension}" if inner else f"x.{extension}"
    )
    if encoding is not None:
        return _COMPRESSIONS.get(encoding, OCTETS)
    if media_type is None:
        return None
    is_text = media_type.startswith("text/") or media_type in _TEXTUAL
    return f"{media_type}; charset=utf-8" if is_text else media_type


def type_of_content(beginning: bytes) -> str:
    """The media type of what begins with these bytes (SNIFF_BYTES or the whole)."""
    data = beginning[:SNIFF_BYTES]
    for signature, media_type in _BEGINNINGS:
        if data.startswith(signature):
            return media_type
    if data.startswith(b"RIFF") and data[8:12] in _RIFF:
        return _RIFF[data[8:12]]
    if data[4:8] == b"ftyp":
        return _FTYP.get(data[8:12], "video/mp4")
    if data[257:262] == b"ustar":
        return "application/x-tar"
    return _type_of_text(data) if _is_text(data) else OCTETS


def _is_text(data: bytes) -> bool:
    if _BINARY.search(data):
        return False
    try:
        # Not final: the last character may be cut in two.
        codecs.getincrementaldecoder("utf-8")().decode(data, final=len(data) < SNIFF_BYTES)
    except UnicodeDecodeError:
        return False
    return True


def _type_of_text(data: bytes) -> str:
    start = data.removeprefix(codecs.BOM_UTF8).lstrip(b"\t\n\x0c\r ")
    if _HTML.match(start):
        return "text/html; charset=utf-8"
    if start.startswith(b"<?xml") or _SVG.match(start):
        return "image/svg+xml" if _SVG.search(start) else "text/xml; charset=utf-8"
    return TEXT


def type_of_codec(codec: int) -> str | None:
    """The media type of a block of a codec that is no UnixFS; None where it has none."""
    return {
        DAG_CBOR: "application/vnd.ipld.dag-cbor",
        DAG_JSON: "application/vnd.ipld.dag-json",
        0x0200: "application/json",
        0x51: "application/cbor",
    }.get(codec)
