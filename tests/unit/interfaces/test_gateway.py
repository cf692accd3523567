"""The gateway's application over a cluster in memory: files, blocks, conditions, refusals."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from dstore.core.cid import CID, DAG_CBOR, RAW
from dstore.core.unixfs.directory import build_directory, build_symlink
from dstore.core.unixfs.profile import profile_named
from dstore.interfaces.gateway.app import GatewayApp, gateway_app
from dstore.interfaces.gateway.content_type import type_of_content, type_of_name
from dstore.limits import HTTP_PATH_CHARS_MAX, MIB
from dstore.service.node import Node
from dstore.service.progress import AddOptions
from dstore.testing.cluster import open_cluster
from dstore.testing.deterministic import run_deterministic
from tests.unit.interfaces.gateway_client import Answer, request

PROFILE = profile_named("unixfs-v1-2025")
IMMUTABLE = "public, max-age=29030400, immutable"
DATA = random.Random(5).randbytes(3 * MIB + 12_345)


class Site:
    """One node with a gateway, and what a test puts there."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.app: GatewayApp = gateway_app(node, timeout_seconds=30)

    async def get(self, target: str, method: str = "GET", **headers: str) -> Answer:
        return await request(self.app, target, method, **headers)

    def put(self, data: bytes, codec: int = RAW) -> CID:
        """Store a block as it is."""
        cid = CID.of(codec, data)
        self.node.stores.blocks.put_many([(cid, data)])
        return cid

    def directory(self, **names: CID) -> CID:
        return self.entries(list(names.items()))

    def entries(self, entries: list[tuple[str, CID]]) -> CID:
        link, blocks = build_directory([(name, cid, 7) for name, cid in entries], PROFILE)
        self.node.stores.blocks.put_many(blocks)
        return link.cid

    def symlink(self, target: str) -> CID:
        link, blocks = build_symlink(target, PROFILE)
        self.node.stores.blocks.put_many(blocks)
        return link.cid

    async def file(self, data: bytes) -> CID:
        """Add a file of several blocks."""

        async def chunks() -> AsyncIterator[bytes]:
            yield data

        return (await self.node.add_stream(chunks(), AddOptions(local_only=True))).cid


def on_site(test: Callable[[Site], Awaitable[None]]) -> None:
    """Run a test on a node of its own."""

    async def main() -> None:
        async with open_cluster(1) as cluster:
            await test(Site(cluster[0]))

    run_deterministic(1, main)


def test_a_file_comes_whole_with_its_headers() -> None:
    async def test(site: Site) -> None:
        cid = await site.file(DATA)
        answer = await site.get(f"/ipfs/{cid}")
        assert answer.status == 200
        assert answer.complete
        assert answer.body == DATA
        assert answer.headers == {
            "etag": f'"{cid}"',
            "cache-control": IMMUTABLE,
            "content-type": "application/octet-stream",
            "content-length": str(len(DATA)),
            "accept-ranges": "bytes",
            "x-content-type-options": "nosniff",
            "x-ipfs-path": f"/ipfs/{cid}",
            "x-ipfs-roots": str(cid),
            "vary": "Accept",
            "access-control-allow-origin": "*",
            "access-control-expose-headers": (
                "Content-Length, Content-Range, ETag, X-Ipfs-Path, X-Ipfs-Roots"
            ),
        }
        empty = await site.get(f"/ipfs/{site.put(b'')}", range="bytes=0-9")
        assert (empty.status, empty.body, empty.complete) == (200, b"", True)
        assert empty.headers["content-length"] == "0"

    on_site(test)


@pytest.mark.parametrize(
    ("header", "start", "stop"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=2000000-2000099", 2_000_000, 2_000_100),
        ("bytes=1048570-", 1_048_570, len(DATA)),
        ("bytes=-17", len(DATA) - 17, len(DATA)),
        (f"bytes=5-{1 << 70}", 5, len(DATA)),
    ],
)
def test_one_range(header: str, start: int, stop: int) -> None:
    async def test(site: Site) -> None:
        cid = await site.file(DATA)
        answer = await site.get(f"/ipfs/{cid}", range=header)
        assert answer.status == 206
        assert answer.complete
        assert answer.body == DATA[start:stop]
        assert answer.headers["content-range"] == f"bytes {start}-{stop - 1}/{len(DATA)}"
        assert answer.headers["content-length"] == str(stop - start)
        assert answer.headers["content-type"] == "application/octet-stream"
        assert answer.headers["etag"] == f'"{cid}"'

    on_site(test)


def test_ranges_that_select_nothing_or_too_much() -> None:
    async def test(site: Site) -> None:
        cid = site.put(b"0123456789")
        beyond = await site.get(f"/ipfs/{cid}", range="bytes=10-")
        assert (beyond.status, beyond.headers["content-range"]) == (416, "bytes */10")
        assert "immutable" not in beyond.headers["cache-control"]
        many = "bytes=" + ",".join(f"{n}-{n}" for n in range(5000))
        for header in ("bytes=0-1,3-4", many, "lines=1-2", "bytes=4-2", "bytes=x"):
            answer = await site.get(f"/ipfs/{cid}", range=header)
            assert (answer.status, answer.body) == (200, b"0123456789")

    on_site(test)


def test_conditions() -> None:
    async def test(site: Site) -> None:
        cid = site.put(b"0123456789")
        for tag in (f'"{cid}"', f'W/"{cid}"', f'"other", "{cid}"', "*"):
            answer = await site.get(f"/ipfs/{cid}", if_none_match=tag)
            assert (answer.status, answer.body) == (304, b"")
            assert answer.headers["etag"] == f'"{cid}"'
            assert answer.headers["cache-control"] == IMMUTABLE
        assert (await site.get(f"/ipfs/{cid}", if_none_match='"other"')).status == 200
        assert (await site.get(f"/ipfs/{cid}?format=raw", if_none_match=f'"{cid}"')).status == 200
        same = await site.get(f"/ipfs/{cid}", range="bytes=1-2", if_range=f'"{cid}"')
        assert (same.status, same.body) == (206, b"12")
        for tag in ('"other"', f'W/"{cid}"', "Wed, 21 Oct 2015 07:28:00 GMT"):
            other = await site.get(f"/ipfs/{cid}", range="bytes=1-2", if_range=tag)
            assert (other.status, other.body) == (200, b"0123456789")

    on_site(test)


def test_head_fetches_no_leaves() -> None:
    async def test(site: Site) -> None:
        cid = await site.file(DATA)
        store = site.node.stores.blocks
        leaves = [CID.of(RAW, DATA[start : start + MIB]) for start in range(0, len(DATA), MIB)]
        store.delete_many(leaves)
        root = site.directory(**{"x.html": cid})
        answer = await site.get(f"/ipfs/{cid}", "HEAD", range="bytes=0-5")
        assert (answer.status, answer.body, answer.complete) == (200, b"", True)
        assert answer.headers["content-length"] == str(len(DATA))
        assert "content-type" not in answer.headers  # only the content would tell
        named = await site.get(f"/ipfs/{root}/x.html", "HEAD")
        assert named.headers["content-type"] == "text/html; charset=utf-8"
        raw = await site.get(f"/ipfs/{cid}?format=raw", "HEAD")
        assert (raw.body, raw.headers["content-length"]) == (b"", str(store.size(cid)))
        text = await site.get(f"/ipfs/{site.put(b'words')}", "HEAD")
        assert text.headers["content-type"] == "text/plain; charset=utf-8"

    on_site(test)


def test_raw_blocks() -> None:
    async def test(site: Site) -> None:
        cid = await site.file(DATA)
        block = site.node.stores.blocks.get(cid)
        by_query = await site.get(f"/ipfs/{cid}?format=raw", accept="text/html")
        by_header = await site.get(f"/ipfs/{cid}", accept="application/vnd.ipld.raw, */*;q=0.1")
        for answer in (by_query, by_header):
            assert (answer.status, answer.body) == (200, block)
            assert answer.headers["content-type"] == "application/vnd.ipld.raw"
            assert answer.headers["content-disposition"] == f'attachment; filename="{cid}.bin"'
            assert answer.headers["etag"] == f'"{cid}.raw"'
            assert answer.headers["cache-control"] == IMMUTABLE
            assert answer.headers["x-content-type-options"] == "nosniff"
        assert by_header.headers["content-location"] == f"/ipfs/{cid}?format=raw"
        assert "content-location" not in by_query.headers
        part = await site.get(f"/ipfs/{cid}?format=raw", range="bytes=2-5")
        assert (part.status, part.body) == (206, block[2:6])
        not_unixfs = site.put(b"\x12\x00", 0x70)  # a dag-pb node without UnixFS in it
        assert (await site.get(f"/ipfs/{not_unixfs}?format=raw")).status == 200
        assert (await site.get(f"/ipfs/{not_unixfs}")).status == 502

    on_site(test)


def test_formats_that_are_not_made() -> None:
    async def test(site: Site) -> None:
        cid = site.put(b"words")
        for target in ("car", "tar", "dag-json", "ipns-record"):
            answer = await site.get(f"/ipfs/{cid}?format={target}")
            assert answer.status == 406
        assert (await site.get(f"/ipfs/{cid}?format=jpeg2000")).status == 400
        assert (await site.get(f"/ipfs/{cid}", accept="application/vnd.ipld.car")).status == 406
        for accept in (
            "application/vnd.ipld.car, */*;q=0.1",
            "text/html,application/xhtml+xml",
            "application/vnd.ipld.raw;q=0",
            "application/vnd.ipld.raw;q=0.1, text/plain",
            "a/b," * 8000,
            ";;;,,,;q=,q=x",
        ):
            answer = await site.get(f"/ipfs/{cid}", accept=accept)
            assert (answer.status, answer.body) == (200, b"words")
        document = site.put(b"\xa1\x61a\x01", DAG_CBOR)
        for target in ("", "?format=dag-cbor"):
            answer = await site.get(f"/ipfs/{document}{target}")
            assert answer.headers["content-type"] == "application/vnd.ipld.dag-cbor"
            assert answer.headers["content-disposition"].startswith("attachment;")
            assert answer.body == b"\xa1\x61a\x01"

    on_site(test)


def test_file_names_of_downloads() -> None:
    async def test(site: Site) -> None:
        cid = site.put(b"<p>hello")
        root = site.directory(**{"a.txt": cid})

        async def shown(target: str) -> str | None:
            return (await site.get(target)).headers.get("content-disposition")

        assert await shown(f"/ipfs/{cid}") is None
        assert await shown(f"/ipfs/{root}/a.txt") is None
        assert await shown(f"/ipfs/{root}/a.txt?download=true") == 'attachment; filename="a.txt"'
        assert await shown(f"/ipfs/{cid}?filename=b.pdf") == 'inline; filename="b.pdf"'
        tricky = "?download=true&filename=..%2F%22t%C3%A9st%0d%0aX:1.pdf"
        assert await shown(f"/ipfs/{cid}{tricky}") == (
            "attachment; filename=\".._t_stX:1.pdf\"; filename*=UTF-8''.._t%C3%A9stX%3A1.pdf"
        ).replace("_t_st", "__t_st").replace("_t%C3", "__t%C3")
        named = await site.get(f"/ipfs/{cid}?filename=b.pdf")
        assert named.headers["content-type"] == "application/pdf"
        assert (await site.get(f"/ipfs/{cid}")).headers["content-type"].startswith("text/html")

    on_site(test)


def test_symbolic_links_are_their_target() -> None:
    async def test(site: Site) -> None:
        cid = site.symlink("../elsewhere/secret")
        answer = await site.get(f"/ipfs/{cid}")
        assert (answer.status, answer.body) == (200, b"../elsewhere/secret")
        assert answer.headers["content-type"] == "inode/symlink"

    on_site(test)


@pytest.mark.parametrize(
    ("target", "status"),
    [
        ("/ipfs/{cid}/", 200),  # a slash behind a file changes nothing
        ("/ipfs/{cid}/below", 404),
        ("/ipfs/{root}/none", 404),
        ("/ipfs/{root}/none/deeper", 404),
        ("/ipfs/{root}/../{cid}", 400),
        ("/ipfs/{root}/%2e%2e/{cid}", 400),
        ("/ipfs/{root}/a%00b", 400),
        ("/ipfs/notacid", 400),
        ("/ipfs/", 400),
        ("/ipfs", 400),
        ("/ipfs//", 400),
        ("/ipfs/{cid}" + "/x" * 300, 400),
        ("/ipfs/{cid}/" + "x" * HTTP_PATH_CHARS_MAX, 414),
        ("/ipfs/{cid}?" + "x" * HTTP_PATH_CHARS_MAX, 414),
        ("/ipfs/{cid}?" + "a=1&" * 100, 400),
        ("/ipns/example.org", 404),
        ("/", 404),
        ("/v1/status", 404),
    ],
)
def test_paths(target: str, status: int) -> None:
    async def test(site: Site) -> None:
        cid = site.put(b"words")
        root = site.directory(a=cid)
        answer = await site.get(target.format(cid=cid, root=root))
        assert answer.status == status
        if status != 200:
            assert answer.headers["content-type"] == "text/plain; charset=utf-8"
            assert answer.headers["cache-control"] == "no-store"
            assert answer.text.isprintable() or answer.text.endswith("\n")

    on_site(test)


def test_methods() -> None:
    async def test(site: Site) -> None:
        cid = site.put(b"words")
        for method in ("POST", "PUT", "DELETE", "BREW"):
            answer = await site.get(f"/ipfs/{cid}", method)
            assert (answer.status, answer.headers["allow"]) == (405, "GET, HEAD, OPTIONS")
        answer = await site.get(f"/ipfs/{cid}", "OPTIONS", origin="https://example.org")
        assert (answer.status, answer.body) == (204, b"")
        assert answer.headers["access-control-allow-origin"] == "*"
        assert answer.headers["access-control-allow-methods"] == "GET, HEAD, OPTIONS"
        assert "Range" in answer.headers["access-control-allow-headers"]

    on_site(test)


def test_what_is_asked_for_from_here_alone() -> None:
    async def test(site: Site) -> None:
        here, away = site.put(b"here"), CID.of(RAW, b"away")
        assert (await site.get(f"/ipfs/{here}", cache_control="only-if-cached")).status == 200
        assert (await site.get(f"/ipfs/{away}", cache_control="only-if-cached")).status == 412
        assert (await site.get(f"/ipfs/{away}")).status == 404

    on_site(test)


def test_a_service_worker_may_not_take_all_roots() -> None:
    async def test(site: Site) -> None:
        cid = site.put(b"self.onfetch = null")
        root = site.directory(**{"sw.js": cid})
        assert (await site.get(f"/ipfs/{cid}", service_worker="script")).status == 400
        answer = await site.get(f"/ipfs/{root}/sw.js", service_worker="script")
        assert answer.headers["content-type"] == "text/javascript; charset=utf-8"

    on_site(test)


@pytest.mark.parametrize(
    ("name", "media_type"),
    [
        ("a.html", "text/html; charset=utf-8"),
        ("A.CSS", "text/css; charset=utf-8"),
        ("app.js", "text/javascript; charset=utf-8"),
        ("logo.svg", "image/svg+xml; charset=utf-8"),
        ("x.tar.gz", "application/gzip"),
        ("t.parquet", "application/vnd.apache.parquet"),
        ("data:text/html,x.png", "image/png"),
        ("README", None),
        (".png", "image/png"),
        ("x.unknown", None),
        ("", None),
    ],
)
def test_types_by_name(name: str, media_type: str | None) -> None:
    assert type_of_name(name) == media_type


@pytest.mark.parametrize(
    ("data", "media_type"),
    [
        (b"\x89PNG\r\n\x1a\n....", "image/png"),
        (b"RIFF\x10\0\0\0WEBPVP8 ", "image/webp"),
        (b"\0\0\0\x20ftypisom", "video/mp4"),
        (b"%PDF-1.7", "application/pdf"),
        (b"  \n<!doctype html><title>", "text/html; charset=utf-8"),
        (b"\xef\xbb\xbf<HTML >", "text/html; charset=utf-8"),
        (b'<?xml version="1.0"?><svg xmlns="x">', "image/svg+xml"),
        (b"<?xml version='1.0'?><feed/>", "text/xml; charset=utf-8"),
        (b"plain \xc3\xa9 text", "text/plain; charset=utf-8"),
        (b"<pre>", "text/plain; charset=utf-8"),
        (b"text\0", "application/octet-stream"),
        (b"\xc3\x28", "application/octet-stream"),
        (b"", "text/plain; charset=utf-8"),
    ],
)
def test_types_by_content(data: bytes, media_type: str) -> None:
    assert type_of_content(data) == media_type
