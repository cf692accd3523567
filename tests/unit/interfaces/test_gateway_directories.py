"""Directories through the gateway: listings, index pages, redirects, and trees that other
implementations made."""

from __future__ import annotations

import re
from html import unescape
from pathlib import Path

import pytest

from dstore import __version__
from dstore.core.cid import CID
from dstore.interfaces.gateway import content
from dstore.interfaces.gateway.listing import SECURITY_POLICY
from tests.unit.interfaces.gateway_client import Answer, read_car
from tests.unit.interfaces.test_gateway import DATA, IMMUTABLE, Site, on_site


def links(answer: Answer) -> list[tuple[str, str]]:
    """(target, text) of the entries of a listing."""
    found = re.findall(r'<tr><td><a href="([^"]*)">([^<]*)</a>', answer.text)
    return [(target, unescape(text)) for target, text in found]


def test_a_directory_is_listed_and_its_links_lead_on() -> None:
    async def test(site: Site) -> None:
        cid = site.put(b"words")
        inner = site.directory(a=cid)
        root = site.entries([("b.txt", cid), ("A dir", inner), ("c&<i>.txt", cid)])
        answer = await site.get(f"/ipfs/{root}/")
        assert (answer.status, answer.complete) == (200, True)
        assert answer.headers["content-type"] == "text/html; charset=utf-8"
        assert answer.headers["content-length"] == str(len(answer.body))
        assert answer.headers["etag"] == f'"dir-{__version__}-{root}"'
        assert answer.headers["content-security-policy"] == SECURITY_POLICY
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "immutable" not in answer.headers["cache-control"]
        assert links(answer) == [
            ("./A%20dir", "A dir"),
            ("./b.txt", "b.txt"),
            ("./c%26%3Ci%3E.txt", "c&<i>.txt"),
        ]
        assert "<i>" not in answer.text
        assert "<script" not in answer.text
        for target, _ in links(answer)[1:]:
            assert (await site.get(f"/ipfs/{root}/{target[2:]}")).body == b"words"
        deeper = await site.get(f"/ipfs/{root}/A%20dir/")
        assert f'<a href="/ipfs/{root}/">' in deeper.text
        assert deeper.headers["x-ipfs-roots"] == f"{root},{inner}"
        assert deeper.headers["x-ipfs-path"] == f"/ipfs/{root}/A%20dir/"
        head = await site.get(f"/ipfs/{root}/", "HEAD")
        assert (head.body, head.headers["content-length"]) == (b"", str(len(answer.body)))
        again = await site.get(f"/ipfs/{root}/", if_none_match=answer.headers["etag"])
        assert again.status == 304
        part = await site.get(f"/ipfs/{root}/", range="bytes=0-14")
        assert (part.status, part.body) == (206, b"<!DOCTYPE html>")
        raw = await site.get(f"/ipfs/{root}?format=raw")
        assert raw.body == site.node.stores.blocks.get(root)

    on_site(test)


def test_names_that_are_no_text_or_would_drive_a_page() -> None:
    names = [b"\xff\xfe".decode("utf-8", "surrogateescape"), "\u202etxt.exe", 'a"b', "é.txt"]
    names += ["javascript:alert(1)", "%2e%2e", "a\nb", "?q#f", "' onclick='x", "<script>"]

    async def test(site: Site) -> None:
        cid = site.put(b"words")
        root = site.entries([(name, cid) for name in names])
        answer = await site.get(f"/ipfs/{root}/")
        found = links(answer)
        assert len(found) == len(names)
        assert {text for _, text in found} >= {"\\xff\\xfe", "\\u202etxt.exe", "é.txt", "a\\x0ab"}
        for target, _ in found:
            assert target.startswith("./")
            assert (await site.get(f"/ipfs/{root}/{target[2:]}")).body == b"words"
        assert "<script" not in answer.text

    on_site(test)


def test_a_directory_without_its_slash_is_redirected() -> None:
    async def test(site: Site) -> None:
        root = site.entries([("d?", site.directory(a=site.put(b"words")))])
        answer = await site.get(f"/ipfs/{root}")
        assert (answer.status, answer.headers["location"]) == (301, f"/ipfs/{root}/")
        answer = await site.get(f"/ipfs//{root}//d%3F?filename=x&download=true")
        assert answer.status == 400  # the root comes first
        answer = await site.get(f"/ipfs/{root}//d%3F?filename=x&download=true")
        assert answer.status == 301
        assert answer.headers["location"] == f"/ipfs/{root}/d%3F/?filename=x&download=true"

    on_site(test)


def test_an_index_page_is_served_for_its_directory() -> None:
    async def test(site: Site) -> None:
        page = site.put(b"hello")
        root = site.entries([("index.html", page), ("other", page)])
        answer = await site.get(f"/ipfs/{root}/")
        assert (answer.status, answer.body) == (200, b"hello")
        assert answer.headers["content-type"] == "text/html; charset=utf-8"
        assert answer.headers["etag"] == f'"{page}"'
        assert answer.headers["cache-control"] == IMMUTABLE
        assert "content-security-policy" not in answer.headers
        directory = site.entries([("index.html", root)])
        assert links(await site.get(f"/ipfs/{directory}/")) == [("./index.html", "index.html")]
        # An index that exists and cannot be had is not replaced by a listing.
        site.node.stores.blocks.delete_many([page])
        assert (await site.get(f"/ipfs/{root}/")).status == 404

    on_site(test)


def test_a_huge_directory_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(content, "GATEWAY_LISTING_ENTRIES_MAX", 20)

    async def test(site: Site) -> None:
        cid = site.put(b"words")
        root = site.entries([(f"{number:03}", cid) for number in range(21)])
        answer = await site.get(f"/ipfs/{root}/")
        assert len(links(answer)) == 20
        assert "The first 20 entries" in answer.text
        whole = site.entries([(f"{number:03}", cid) for number in range(20)])
        assert "The first" not in (await site.get(f"/ipfs/{whole}/")).text
        assert "empty" in (await site.get(f"/ipfs/{site.entries([])}/")).text

    on_site(test)


def load(site: Site, path: Path) -> CID:
    """Put the blocks of a CAR file into the node's store; its root."""
    root, blocks = read_car(path)
    assert all(cid.verify(data) for cid, data in blocks)
    site.node.stores.blocks.put_many(blocks)
    return root


def test_names_with_special_characters(fixtures_dir: Path) -> None:
    async def test(site: Site) -> None:
        root = load(site, fixtures_dir / "boxo-gateway" / "dir-special-chars.car")
        top = await site.get(f"/ipfs/{root}/")
        assert links(top) == [("./file.txt", "file.txt"), ("./foo%3F%20%23%3C%27", "foo? #<'")]
        assert (await site.get(f"/ipfs/{root}/foo%3F%20%23%3C%27/file.txt")).body == b"2"
        deepest = await site.get(f"/ipfs/{root}/foo%3F%20%23%3C%27/bar/file.txt")
        assert deepest.body == b"3"
        assert deepest.headers["x-ipfs-path"] == f"/ipfs/{root}/foo%3F%20%23%3C%27/bar/file.txt"
        assert deepest.headers["x-ipfs-roots"].count(",") == 3
        below = await site.get(f"/ipfs/{root}/foo%3F%20%23%3C%27/")
        assert f'<a href="/ipfs/{root}/">' in below.text
        assert "foo? #&lt;&#x27;</h1>" in below.text

    on_site(test)


def test_a_tree_with_modes_times_and_links(fixtures_dir: Path) -> None:
    async def test(site: Site) -> None:
        root = load(site, fixtures_dir / "boxo-gateway" / "unixfs-dir-with-mode-mtime.car")
        names = [text for _, text in links(await site.get(f"/ipfs/{root}/"))]
        assert names[:3] == ["dir1", "dir2", "dir3"]
        link = await site.get(f"/ipfs/{root}/dir2/sub1/link1")
        assert (link.headers["content-type"], link.body) == ("inode/symlink", b"../sub2/file3")
        empty = await site.get(f"/ipfs/{root}/dir2/sub1/sub2/file3")
        assert (empty.status, empty.body, empty.complete) == (200, b"", True)
        assert (await site.get(f"/ipfs/{root}/dir2/sub1/link1/x")).status == 404

    on_site(test)


def test_sharded_directories_and_files_of_many_blocks(fixtures_dir: Path) -> None:
    async def test(site: Site) -> None:
        name = "directory-with-multilayer-hamt-and-multiblock-files.car"
        root = load(site, fixtures_dir / "boxo-gateway" / name)
        plain = await site.get(f"/ipfs/{root}/basicDir/exampleA")
        assert (plain.status, len(plain.body), plain.complete) == (200, 1026, True)
        assert plain.body.endswith(b"t.")
        assert plain.headers["content-type"] == "text/plain; charset=utf-8"
        part = await site.get(f"/ipfs/{root}/basicDir/exampleA", range="bytes=250-780")
        assert (part.status, part.body) == (206, plain.body[250:781])
        assert part.headers["content-type"] == "text/plain; charset=utf-8"
        listed = await site.get(f"/ipfs/{root}/hamtDir/")
        assert listed.status == 200
        for target, _ in links(listed):
            found = await site.get(f"/ipfs/{root}/hamtDir/{target[2:]}")
            assert (found.status, found.complete) == (200, True)
        assert len(links(listed)) > 1

    on_site(test)


def test_documents_in_other_codecs(fixtures_dir: Path) -> None:
    async def test(site: Site) -> None:
        root = load(site, fixtures_dir / "boxo-gateway" / "fixtures.car")
        answer = await site.get(f"/ipfs/{root}/subdir/dag-cbor-document")
        assert answer.status == 200
        assert answer.headers["content-type"] == "application/vnd.ipld.dag-cbor"
        assert answer.headers["content-disposition"].endswith('.cbor"')

    on_site(test)


def test_version_0_and_any_base() -> None:
    async def test(site: Site) -> None:
        cid = await site.file(DATA)
        old = CID.from_bytes(cid.multihash)
        for text in (str(old), str(cid).upper()):
            answer = await site.get(f"/ipfs/{text}")
            assert answer.body == DATA
        assert answer.headers["etag"] == f'"{cid}"'

    on_site(test)
