"""Reading files and directories: any range of any tree shape against the plain bytes, both
profiles, sharded directories, and DAGs made to exhaust their reader."""

from __future__ import annotations

import random
from collections.abc import Hashable, Sequence
from typing import cast

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from dstore.core.cid import CID, DAG_CBOR, DAG_PB, RAW
from dstore.core.dagpb import PBLink
from dstore.core.unixfs import (
    Block,
    FileBuilder,
    Profile,
    build_directory,
    build_symlink,
    make_leaf,
    profile_named,
)
from dstore.core.unixfs.node import DataType, UnixfsData, encode_node
from dstore.errors import BudgetExceeded, InvalidPath, MalformedBlock, NotFoundError
from dstore.limits import (
    DAG_PENDING_LINKS_MAX,
    MIB,
    READ_AHEAD_BYTES,
    SESSION_SECONDS,
    SESSIONS_MAX,
)
from dstore.service import retrieve
from dstore.service.progress import DirectoryEntry
from dstore.service.retrieve import Retriever
from dstore.service.session import RootSession

V0, V1 = profile_named("unixfs-v0-2015"), profile_named("unixfs-v1-2025")


class Held:
    """A session over a dictionary: counts what is asked for, and what is under way."""

    def __init__(self, blocks: dict[CID, bytes]) -> None:
        self.blocks = {cid.multihash: data for cid, data in blocks.items()}
        self.asked: list[CID] = []
        self.positions: list[float] = []
        self.busy_bytes = self.peak_bytes = 0

    async def held(self, cids: Sequence[CID]) -> list[bool]:
        await trio.lowlevel.checkpoint()
        return [cid.multihash in self.blocks for cid in cids]

    async def held_once(self, key: Hashable, cids: Sequence[CID]) -> list[bool]:
        return await self.held(cids)

    async def block(self, cid: CID, position: float = 0.0, *, held: bool = True) -> bytes:
        self.asked.append(cid)
        self.positions.append(position)
        data = cid.digest if cid.is_identity else self.blocks.get(cid.multihash)
        if data is None:
            raise NotFoundError(f"nobody has {cid}")
        self.busy_bytes += len(data)
        self.peak_bytes = max(self.peak_bytes, self.busy_bytes)
        await trio.lowlevel.checkpoint()
        self.busy_bytes -= len(data)
        return data

    def can_keep(self, size: int) -> bool:
        return True

    def prefetch(self, cid: CID, position: float = 0.0, *, held: bool = True) -> None:
        assert cid.is_identity or cid.multihash in self.blocks


def retriever(held: Held) -> Retriever:
    return Retriever(lambda root: cast("RootSession", held))


def file_of(data: bytes, profile: Profile) -> tuple[CID, dict[CID, bytes]]:
    builder, blocks = FileBuilder(profile), dict[CID, bytes]()
    for start in range(0, len(data), profile.chunk_bytes):
        chunk = data[start : start + profile.chunk_bytes]
        leaf = make_leaf(profile, chunk)
        blocks |= dict([leaf, *builder.add_leaf(leaf[0], len(chunk), len(leaf[1]))])
    link, rest = builder.finish()
    return link.cid, blocks | dict(rest)


async def read(held: Held, root: CID, offset: int = 0, length: int | None = None) -> bytes:
    async with retriever(held).read(root, root, offset, length) as chunks:
        return b"".join([chunk async for chunk in chunks])


def run(held: Held, root: CID, offset: int = 0, length: int | None = None) -> bytes:
    return trio.run(read, held, root, offset, length)


# --- Ranges ------------------------------------------------------------------------------


@given(
    size=st.integers(0, 3000),
    chunk=st.integers(1, 300),
    links=st.integers(2, 5),
    raw=st.booleans(),
    offset=st.integers(0, 3200),
    length=st.none() | st.integers(0, 3200),
)
@settings(max_examples=150)
def test_any_range_of_any_tree_is_the_plain_bytes(
    size: int, chunk: int, links: int, raw: bool, offset: int, length: int | None
) -> None:
    data = random.Random(size).randbytes(size)
    profile = Profile("small", 1, max(chunk, size // 60 + 1), links, raw, 256, 1 << 18, "block")
    root, blocks = file_of(data, profile)
    held = Held(blocks)
    stop = None if length is None else offset + length
    assert run(held, root, offset, length) == data[offset:stop]


@given(
    parts=st.lists(st.binary(max_size=40), min_size=1, max_size=5),
    inline=st.lists(st.binary(max_size=20), min_size=5, max_size=5),
    offset=st.integers(0, 250),
    length=st.integers(0, 250),
)
def test_nodes_with_bytes_of_their_own_before_their_children(
    parts: list[bytes], inline: list[bytes], offset: int, length: int
) -> None:
    """No importer makes them, and they are legal: every level has inline bytes."""
    blocks: dict[CID, bytes] = {}
    whole, child = b"", CID.of(RAW, b"")
    blocks[child] = b""
    for part, own in zip(parts, inline, strict=False):
        leaf = CID.of(RAW, part)
        blocks[leaf] = part
        sizes = (len(part), len(whole))
        message = UnixfsData(
            DataType.FILE,
            data=own or None,
            filesize=len(own) + sum(sizes),
            blocksizes=sizes,
        )
        node = encode_node((PBLink(leaf, "", len(part)), PBLink(child, "", 0)), message)
        whole = own + part + whole
        child = CID.of(DAG_PB, node)
        blocks[child] = node
    assert run(Held(blocks), child, offset, length) == whole[offset : offset + length]


def test_a_range_asks_for_its_own_path_only() -> None:
    data = random.Random(1).randbytes(50_000)
    root, blocks = file_of(data, Profile("small", 1, 100, 8, True, 256, 1 << 18, "block"))
    held = Held(blocks)
    assert run(held, root, 25_050, 100) == data[25_050:25_150]
    assert len(held.asked) <= 6
    assert all(abs(position - 0.5) < 0.26 for position in held.positions[1:])


@pytest.mark.parametrize("profile", [V0, V1])
def test_both_profiles_at_full_size(profile: Profile) -> None:
    data = random.Random(2).randbytes(3 * MIB + 12_345)
    root, blocks = file_of(data, profile)
    assert run(Held(blocks), root) == data
    assert run(Held(blocks), root, MIB - 5, 10) == data[MIB - 5 : MIB + 5]


def test_the_first_bytes_are_asked_for_alone() -> None:
    data = random.Random(3).randbytes(8 * MIB)
    root, blocks = file_of(data, V1)
    may = trio.Event()

    class Slow(Held):
        async def block(self, cid: CID, position: float = 0.0, *, held: bool = True) -> bytes:
            found = await super().block(cid, position, held=held)
            if cid != root:
                await may.wait()
            return found

    async def main() -> None:
        held = Slow(blocks)
        async with retriever(held).read(root, root) as chunks, trio.open_nursery() as nursery:
            got: list[bytes] = []

            async def take() -> None:
                got.extend([chunk async for chunk in chunks])

            nursery.start_soon(take)
            await wait_all_tasks_blocked()
            assert len(held.asked) == 1 + 1  # the root, and the first MiB
            may.set()
        assert b"".join(got) == data

    trio.run(main)


def test_bytes_within_nodes_count_as_the_first_ones() -> None:
    leaf = CID.of(RAW, b"leaf")
    message = UnixfsData(DataType.FILE, data=b"inline", filesize=10, blocksizes=(4,))
    node = encode_node((PBLink(leaf, "", 4),), message)
    root = CID.of(DAG_PB, node)
    assert run(Held({leaf: b"leaf", root: node}), root) == b"inlineleaf"


def test_read_ahead_is_bounded() -> None:
    data = bytes(80 * MIB)
    root, blocks = file_of(data, V1)
    held = Held(blocks)

    async def main() -> None:
        async with retriever(held).read(root, root) as chunks:
            async for _ in chunks:
                await wait_all_tasks_blocked()
                ahead = len(held.asked)
                break
        assert MIB < ahead * MIB <= READ_AHEAD_BYTES + 3 * MIB

    trio.run(main)


def test_what_is_not_a_file_and_other_codecs() -> None:
    link, made = build_symlink("there", V1)
    directory, more = build_directory([("link", link.cid, link.dag_bytes)], V1)
    cbor = CID.of(DAG_CBOR, b"\xa0")
    held = Held(dict([*made, *more, (cbor, b"\xa0")]))
    assert run(held, cbor) == b"\xa0"
    for other in (link.cid, directory.cid):
        with pytest.raises(InvalidPath):
            run(held, other)
    odd = CID.of(DAG_PB, b"\xff\xff")
    held.blocks[odd.multihash] = b"\xff\xff"
    with pytest.raises(MalformedBlock):
        run(held, odd)


def test_a_missing_leaf_fails_where_it_stands() -> None:
    data = random.Random(3).randbytes(1000)
    root, blocks = file_of(data, Profile("small", 1, 100, 4, True, 256, 1 << 18, "block"))
    del blocks[CID.of(RAW, data[500:600])]
    got = bytearray()

    async def main() -> None:
        async with retriever(Held(blocks)).read(root, root) as chunks:
            async for chunk in chunks:
                got.extend(chunk)

    with pytest.raises(NotFoundError):
        trio.run(main)
    assert got == data[:500]


# --- Directories -------------------------------------------------------------------------


def tree(profile: Profile, count: int) -> tuple[CID, dict[CID, bytes]]:
    """/sub/NAME… with `count` files, of the content of their names."""
    blocks: list[Block] = []
    entries = []
    for number in range(count):
        name = f"file {number:030}"
        leaf = make_leaf(profile, name.encode())
        blocks.append(leaf)
        entries.append((name, leaf[0], len(leaf[1])))
    sub, more = build_directory(entries, profile)
    root, rest = build_directory([("sub", sub.cid, sub.dag_bytes)], profile)
    return root.cid, dict([*blocks, *more, *rest])


async def listing(reader: Retriever, root: CID, directory: CID) -> Sequence[DirectoryEntry]:
    return [entry async for entry in reader.entries(root, directory)]


@pytest.mark.parametrize("profile", [V0, V1])
@pytest.mark.parametrize("count", [3, 6000])
def test_paths_and_listings_of_plain_and_sharded_directories(profile: Profile, count: int) -> None:
    root, blocks = tree(profile, count)

    async def main() -> None:
        held = Held(blocks)
        reader = retriever(held)
        for number in (0, count - 1):
            name = f"file {number:030}"
            entry = await reader.resolve(root, ["sub", name])
            assert (entry.kind, entry.size) == ("file", len(name))
        assert len(held.asked) < 30
        sub = await reader.resolve(root, ["sub"])
        assert (sub.kind, sub.size) == ("directory", None)
        names = [entry.name for entry in await listing(reader, root, sub.cid)]
        assert sorted(names) == [f"file {number:030}" for number in range(count)]
        with pytest.raises(NotFoundError, match="/sub/nobody does not exist"):
            await reader.resolve(root, ["sub", "nobody"])
        with pytest.raises(InvalidPath, match="no directory"):
            await reader.resolve(root, ["sub", f"file {0:030}", "below"])

    trio.run(main)


def test_sessions_are_bounded_and_end() -> None:
    made: list[CID] = []

    def new(root: CID) -> RootSession:
        made.append(root)
        return cast("RootSession", Held({}))

    roots = [CID.of(RAW, b"%d" % number) for number in range(SESSIONS_MAX + 10)]

    async def main() -> None:
        reader = Retriever(new)
        for root in roots:
            assert reader.session(root) is reader.session(root)
        assert len(made) == len(roots)
        assert len(reader._sessions) == SESSIONS_MAX
        reader.session(roots[-1])
        assert len(made) == len(roots)
        reader.forget(roots[-1])
        reader.session(roots[-1])
        await trio.sleep(SESSION_SECONDS + 1)
        reader.session(roots[-1])
        assert len(made) == len(roots) + 2

    trio.run(main, clock=MockClock(autojump_threshold=0))


# --- Bombs -------------------------------------------------------------------------------


def chain(levels: int, width: int, leaf: bytes) -> tuple[CID, dict[CID, bytes]]:
    """`levels` nodes that each link `width` times to the next."""
    child, size = CID.of(RAW, leaf), len(leaf)
    blocks = {child: leaf}
    for _ in range(levels):
        message = UnixfsData(DataType.FILE, filesize=size * width, blocksizes=(size,) * width)
        node = encode_node((PBLink(child, "", size),) * width, message)
        child, size = CID.of(DAG_PB, node), size * width
        blocks[child] = node
    return child, blocks


def test_wide_nodes_below_each_other_do_not_fill_the_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every level adds its links to those that wait; the limit is made small here."""
    assert DAG_PENDING_LINKS_MAX < 1_000_000
    monkeypatch.setattr(retrieve, "DAG_PENDING_LINKS_MAX", 20_000)
    root, blocks = chain(1, 3000, b"x")
    size = 3000
    for level in range(10):
        sizes = (size,) + (1,) * 2999
        links = (PBLink(root, "", size),) + (PBLink(CID.of(RAW, b"x"), "", 1),) * 2999
        size = sum(sizes)
        node = encode_node(links, UnixfsData(DataType.FILE, filesize=size, blocksizes=sizes))
        root = CID.of(DAG_PB, node)
        blocks[root] = node
        if level == 4:
            assert run(Held(blocks), root, 0, 1000) == b"x" * 1000
    with pytest.raises(BudgetExceeded, match="links on one path"):
        run(Held(blocks), root)


def test_a_chain_deeper_than_allowed() -> None:
    root, blocks = chain(300, 1, b"x")
    with pytest.raises(BudgetExceeded):
        run(Held(blocks), root)


def test_a_range_of_a_bomb_comes_at_once() -> None:
    """174 ** 8 bytes of file in nine blocks: any part of it is read like any other."""
    root, blocks = chain(8, 174, b"0123456789")
    held = Held(blocks)
    assert run(held, root, 174**7 * 10 - 5, 10) == b"5678901234"
    assert len(held.asked) < 200


def test_sizes_that_lie_end_the_read() -> None:
    leaf = CID.of(RAW, b"four")
    message = UnixfsData(DataType.FILE, filesize=4_000_000, blocksizes=(4_000_000,))
    node = encode_node((PBLink(leaf, "", 4),), message)
    root = CID.of(DAG_PB, node)
    with pytest.raises(MalformedBlock):
        run(Held({leaf: b"four", root: node}), root)
