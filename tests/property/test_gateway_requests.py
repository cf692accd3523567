"""Range headers, entity tags, paths and types: what any input may do."""

from __future__ import annotations

from urllib.parse import quote_from_bytes

from hypothesis import example, given
from hypothesis import strategies as st

from dstore.core.cid import CID, RAW
from dstore.errors import CallerError
from dstore.interfaces.gateway.content import disposition
from dstore.interfaces.gateway.content_type import SNIFF_BYTES, type_of_content, type_of_name
from dstore.interfaces.gateway.ranges import ByteRange, not_modified, select_range
from dstore.interfaces.gateway.request import parse_request

ROOT = CID.of(RAW, b"root")
SIZES = st.integers(0, 1 << 63)


def reference(header_range: tuple[int | None, int | None], size: int) -> range | None:
    """The positions that RFC 9110 selects; None where the range is malformed."""
    first, last = header_range
    if first is None:
        assert last is not None
        return range(max(size - last, 0), size)
    if last is not None and last < first:
        return None
    return range(first, size if last is None else min(last + 1, size))


@given(st.integers(0, 300) | st.none(), st.integers(0, 300) | st.none(), st.integers(1, 200))
def test_a_range_selects_what_the_rfc_says(first: int | None, last: int | None, size: int) -> None:
    if first is None and last is None:
        return
    text = f"bytes={'' if first is None else first}-{'' if last is None else last}"
    selected = select_range(text, size)
    wanted = reference((first, last), size)
    if wanted is None:
        assert selected == "whole"
    elif len(wanted) == 0:
        assert selected == "unsatisfiable"
    else:
        assert selected == ByteRange(wanted.start, len(wanted))


@given(st.text(max_size=200) | st.text("bytes=0123456789-, ", max_size=200), SIZES)
@example("bytes=" + ",".join(f"{n}-{n}" for n in range(0, 20_000, 2)), 1 << 20)
@example("bytes=" + "9" * 100_000 + "-", 10)
@example("bytes=٣-٥", 10)
def test_any_header_gives_a_part_of_the_whole(header: str, size: int) -> None:
    selected = select_range(header, size)
    if isinstance(selected, ByteRange):
        assert 0 <= selected.start < selected.start + selected.length <= size
    else:
        assert selected in ("whole", "unsatisfiable")


@given(st.lists(st.text("abc.-", min_size=1), max_size=5), st.integers(0, 4), st.booleans())
def test_a_tag_in_a_list_is_found(tags: list[str], at: int, weak: bool) -> None:
    header = ", ".join(f'{"W/" if weak else ""}"{tag}"' for tag in tags)
    assert not_modified(header, '"not there"') is False
    if tags:
        assert not_modified(header, f'"{tags[at % len(tags)]}"')


def scope(raw_path: bytes, query: bytes = b"", *headers: tuple[bytes, bytes]) -> dict[str, object]:
    return {"raw_path": raw_path, "query_string": query, "headers": headers}


@given(st.lists(st.binary(min_size=1, max_size=20), max_size=6), st.booleans())
def test_names_survive_the_url(names: list[bytes], slash: bool) -> None:
    names = [name.replace(b"/", b"_").replace(b"\0", b"_") for name in names]
    names = [name for name in names if name not in (b".", b"..")]
    path = "/".join(quote_from_bytes(name, safe="") for name in (str(ROOT).encode(), *names))
    request = parse_request(scope(b"/ipfs/" + path.encode() + b"/" * slash))
    assert request.root == ROOT
    assert [name.encode("utf-8", "surrogateescape") for name in request.names] == names
    assert request.slash == slash
    assert request.path == f"/ipfs/{path}" + "/" * slash


@given(st.binary(max_size=100), st.binary(max_size=100), st.binary(max_size=100))
def test_garbage_is_a_request_or_a_refusal(path: bytes, query: bytes, accept: bytes) -> None:
    try:
        request = parse_request(
            scope(b"/ipfs/" + str(ROOT).encode() + b"/" + path, query, (b"Accept", accept))
        )
    except CallerError as error:
        assert error.http_status in (400, 414)
    else:
        assert request.root == ROOT
        assert request.path.isascii()


@given(st.text(max_size=300), st.sampled_from(["inline", "attachment"]))
def test_a_disposition_is_one_header(name: str, kind: str) -> None:
    header = disposition(kind, name)
    assert header.isascii()
    assert header.isprintable()
    assert header.startswith(f'{kind}; filename="')
    assert header.count('"') == 2


@given(st.binary(max_size=2 * SNIFF_BYTES), st.text(max_size=40))
def test_any_content_has_a_type(data: bytes, name: str) -> None:
    for media_type in (type_of_content(data), type_of_name(name)):
        assert media_type is None or (media_type.isascii() and "/" in media_type)


@given(st.text(min_size=1, max_size=3 * SNIFF_BYTES))
def test_text_cut_anywhere_is_text(text: str) -> None:
    plain = "words " + "".join(character for character in text if character.isprintable())
    assert type_of_content(plain.encode("utf-8", "ignore")) == "text/plain; charset=utf-8"
