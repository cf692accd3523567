"""Blocks and DAGs made to exhaust or mislead their reader: refused, in bounded memory."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from dstore.core import dagpb
from dstore.core.cid import CID, DAG_PB, RAW, encode_varint
from dstore.core.dagpb import PBLink, PBNode
from dstore.core.unixfs import (
    DEFAULT_PROFILE,
    Budget,
    DirectoryLister,
    Entry,
    File,
    FileChild,
    Profile,
    build_directory,
    children_in_range,
    iter_dag,
    links_of,
    parse,
    parse_child,
)
from dstore.core.unixfs.hamt import name_hash
from dstore.core.unixfs.node import DataType, UnixfsData, decode_data, encode_node
from dstore.errors import BudgetExceeded, CallerError, DataError, InvalidPath, MalformedBlock
from dstore.limits import BLOCK_BYTES_MAX, DAG_DEPTH_MAX, MIB

LEAF = CID.of(RAW, b"leaf")


@contextmanager
def memory_under(limit: int) -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < limit, f"peak {peak / MIB:.1f} MiB"


class Bomb:
    """`levels` nodes, each of which links `width` times to the next; a leaf at the end."""

    def __init__(self, levels: int, width: int, leaf_bytes: int) -> None:
        self.held = {LEAF: b"leaf"[:leaf_bytes]}
        self.loads = 0
        self.root = FileChild(LEAF, leaf_bytes)
        for _ in range(levels):
            size = self.root.size * width
            block = encode_node(
                (PBLink(self.root.cid, "", size),) * width,
                UnixfsData(DataType.FILE, filesize=size, blocksizes=(self.root.size,) * width),
            )
            self.root = FileChild(CID.of(DAG_PB, block), size)
            self.held[self.root.cid] = block

    def load(self, cid: CID) -> bytes:
        self.loads += 1
        return self.held[cid]

    def size_of(self, cid: CID) -> int:
        return len(self.held[cid])


def test_40_levels_of_174_links_to_one_child_are_41_blocks() -> None:
    bomb = Bomb(40, 174, leaf_bytes=0)
    with memory_under(8 * MIB):
        visits = list(iter_dag(bomb.root.cid, bomb.load, bomb.size_of, Budget(blocks=41)))
    assert len(visits) == 41
    assert bomb.loads == 40


def test_a_file_of_endless_nothing_has_no_parts_to_read() -> None:
    bomb = Bomb(40, 174, leaf_bytes=0)
    node = parse_child(bomb.root, bomb.load(bomb.root.cid))
    assert node.size == 0
    assert children_in_range(node, 0, 1 << 62) == []


def test_a_range_of_a_bomb_touches_its_own_path() -> None:
    bomb = Bomb(7, 174, leaf_bytes=4)  # 19 PB, honestly declared
    assert bomb.root.size == 4 * 174**7

    def read(child: FileChild, offset: int, length: int) -> int:
        file = parse_child(child, bomb.load(child.cid))
        got = len(file.data[offset : offset + length]) if not file.children else 0
        for cid, start, size in children_in_range(file, offset, length):
            begin, end = max(offset, start), min(offset + length, start + size)
            got += read(FileChild(cid, size), begin - start, end - begin)
        return got

    assert read(bomb.root, bomb.root.size // 2 + 1, 100) == 100
    assert bomb.loads < 7 * 2 + 30


def test_a_file_larger_than_any_number_is_refused() -> None:
    with pytest.raises(ValueError, match="varint"):
        Bomb(40, 174, leaf_bytes=4)
    sizes = ((1 << 62) + 1, 1 << 62)
    block = encode_node((PBLink(LEAF),) * 2, UnixfsData(DataType.FILE, blocksizes=sizes))
    with pytest.raises(MalformedBlock):
        parse(CID.of(DAG_PB, block), block)


def test_sizes_that_lie_are_found_one_level_down() -> None:
    honest = Bomb(2, 3, leaf_bytes=4)
    node = parse_child(honest.root, honest.load(honest.root.cid))
    with pytest.raises(MalformedBlock, match="its parent says 1000000"):
        parse_child(node.children[0]._replace(size=1_000_000), honest.load(node.children[0].cid))


def test_a_chain_deeper_than_allowed() -> None:
    bomb = Bomb(2000, 1, leaf_bytes=4)
    seen = 0
    with memory_under(16 * MIB), pytest.raises(BudgetExceeded, match="levels deep"):
        for _ in iter_dag(bomb.root.cid, bomb.load, bomb.size_of):
            seen += 1
    assert seen <= DAG_DEPTH_MAX + 1


def test_a_path_of_the_widest_nodes() -> None:
    """Each level links to the next and, after it, to 50,000 blocks that nobody has."""
    padding = b"".join(
        dagpb.encode_link(PBLink(CID.v1(RAW, b"\x12\x20" + index.to_bytes(32, "big"))))
        for index in range(50_000)
    )
    held: dict[CID, bytes] = {}
    below = LEAF
    for _ in range(12):
        block = dagpb.encode_link(PBLink(below)) + padding
        assert len(block) <= BLOCK_BYTES_MAX
        below = CID.of(DAG_PB, block)
        held[below] = block
    with memory_under(64 * MIB), pytest.raises(BudgetExceeded, match="links on one path"):
        for _ in iter_dag(below, held.__getitem__, lambda cid: 0, Budget()):
            pass


@pytest.mark.parametrize(
    "block",
    [
        pytest.param(b"\x12\x08\x0a\x04\x01\x55\x00\x00" * (BLOCK_BYTES_MAX // 10), id="links"),
        pytest.param(b"\x0a\x00" * (BLOCK_BYTES_MAX // 2), id="data"),
        pytest.param(b"\x12\x00" * (BLOCK_BYTES_MAX // 2), id="links without CIDs"),
        pytest.param(b"\x0a" + encode_varint((1 << 63) - 1), id="length"),
        pytest.param(
            b"\x0a" + encode_varint(2_000_005) + b"\x08\x02\x22" + encode_varint(2_000_000 - 3),
            id="message cut off",
        ),
        pytest.param(bytes(BLOCK_BYTES_MAX + 1), id="size"),
    ],
)
def test_hostile_nodes(block: bytes) -> None:
    cid = CID.of(DAG_PB, block)
    with memory_under(64 * MIB):
        for read in (parse, links_of):
            with pytest.raises(MalformedBlock):
                read(cid, block)


@pytest.mark.parametrize(
    "message",
    [
        pytest.param(
            b"\x08\x02\x22" + encode_varint(2_000_000) + bytes(2_000_000), id="packed sizes"
        ),
        pytest.param(b"\x08\x02" + b"\x20\x00" * 1_000_000, id="sizes"),
        pytest.param(b"\x08\x05\x28\x22\x30" + encode_varint(1 << 40), id="fan-out"),
    ],
)
def test_hostile_messages(message: bytes) -> None:
    block = dagpb.encode(PBNode((), message))
    with memory_under(64 * MIB), pytest.raises(MalformedBlock):
        parse(CID.of(DAG_PB, block), block)


# --- Names that collide ----------------------------------------------------------------

_MASK = (1 << 64) - 1
_C1, _C2 = 0x87C37B91114253D5, 0x4CF5AD432745937F


def _rotate(value: int, bits: int) -> int:
    return (value << bits | value >> 64 - bits) & _MASK


def _absorb(state: tuple[int, int], block: bytes) -> tuple[int, int]:
    """The state of murmur3-x64 after 16 more bytes."""
    h1, h2 = state
    k1, k2 = int.from_bytes(block[:8], "little"), int.from_bytes(block[8:], "little")
    h1 = _rotate(h1 ^ _rotate(k1 * _C1 & _MASK, 31) * _C2 & _MASK, 27)
    h1 = ((h1 + h2) * 5 + 0x52DCE729) & _MASK
    h2 = _rotate(h2 ^ _rotate(k2 * _C2 & _MASK, 33) * _C1 & _MASK, 31)
    return h1, ((h2 + h1) * 5 + 0x38495AB5) & _MASK


def _block_between(state: tuple[int, int], target: tuple[int, int]) -> bytes:
    """The 16 bytes that lead from one state to another: murmur3 can be run backwards."""
    (h1, h2), (t1, t2) = state, target
    fifth = pow(5, -1, 1 << 64)
    x1 = _rotate(((t1 - 0x52DCE729) * fifth - h2) & _MASK, 64 - 27) ^ h1
    x2 = _rotate(((t2 - 0x38495AB5) * fifth - t1) & _MASK, 64 - 31) ^ h2
    k1 = _rotate(x1 * pow(_C2, -1, 1 << 64) & _MASK, 64 - 31) * pow(_C1, -1, 1 << 64) & _MASK
    k2 = _rotate(x2 * pow(_C1, -1, 1 << 64) & _MASK, 64 - 33) * pow(_C2, -1, 1 << 64) & _MASK
    return k1.to_bytes(8, "little") + k2.to_bytes(8, "little")


def colliding_names(count: int) -> list[str]:
    target = _absorb(_absorb((0, 0), b"sixteen bytes ok"), b"and sixteen more")
    names: list[str] = []
    index = 0
    while len(names) < count:
        first = f"{index:016}".encode()
        name = first + _block_between(_absorb((0, 0), first), target)
        if b"/" not in name and b"\0" not in name:
            names.append(name.decode("utf-8", "surrogateescape"))
        index += 1
    return names


SHARDED = Profile("sharded", 1, MIB, 1024, True, 256, 0, "block")


def test_names_of_one_hash_are_refused_by_name() -> None:
    names = colliding_names(3)
    assert len({name_hash(name) for name in names}) == 1
    with pytest.raises(CallerError, match="same murmur3 hash"):
        build_directory([(name, LEAF, 4) for name in names], SHARDED)
    # A directory of one block holds them as any others.
    link, blocks = build_directory([(n, LEAF, 4) for n in names], DEFAULT_PROFILE)
    assert link.cid == blocks[0][0]


def test_names_that_share_nearly_all_of_their_hash() -> None:
    """The deepest legal tree: as many levels as the hash has bytes, and every name found."""
    one, other = "aaaa", None
    wanted = name_hash(one) >> 48
    for index in range(1 << 20):
        if name_hash(f"{index}") >> 48 == wanted:
            other = f"{index}"
            break
    assert other is not None
    root, blocks = build_directory([(one, LEAF, 4), (other, LEAF, 4)], SHARDED)
    assert len(blocks) == 3
    assert sorted(entry.name for entry in list_all(root.cid, dict(blocks))) == sorted([one, other])


def list_all(root: CID, held: dict[CID, bytes], budget: Budget | None = None) -> list[Entry]:
    lister = DirectoryLister(root, budget or Budget())
    entries: list[Entry] = []
    while (wanted := lister.wanted()) is not None:
        entries += lister.supply(held[wanted])
    return entries


# --- Shards that lie -------------------------------------------------------------------


def shard(links: list[PBLink], slots: list[int], fanout: int = 256) -> tuple[CID, bytes]:
    field = sum(1 << slot for slot in slots)
    message = UnixfsData(
        DataType.HAMT_SHARD,
        field.to_bytes((field.bit_length() + 7) // 8, "big"),
        hash_type=0x22,
        fanout=fanout,
    )
    block = encode_node(tuple(links), message)
    return CID.of(DAG_PB, block), block


def full_shard(child: CID) -> tuple[CID, bytes]:
    return shard([PBLink(child, f"{slot:02X}") for slot in range(256)], list(range(256)))


@pytest.mark.parametrize("levels", [1, 7, 40])
def test_a_directory_of_endless_repetition(levels: int) -> None:
    """256 to the power of `levels` entries, all one: refused at the first that is misplaced."""
    held: dict[CID, bytes] = {}
    bottom_slot = name_hash("x") & 0xFF
    cid, block = shard([PBLink(LEAF, f"{bottom_slot:02X}x")], [bottom_slot])
    held[cid] = block
    for _ in range(levels):
        cid, block = full_shard(cid)
        held[cid] = block
    with memory_under(16 * MIB), pytest.raises(MalformedBlock):
        list_all(cid, held, Budget(blocks=50))


def test_shards_that_do_not_belong() -> None:
    held: dict[CID, bytes] = {}

    def put(made: tuple[CID, bytes]) -> CID:
        held[made[0]] = made[1]
        return made[0]

    slot = name_hash("x") >> 56
    wrong = (slot + 1) % 256
    empty = put(shard([], []))
    narrow = put(shard([PBLink(LEAF, "0x")], [0], fanout=8))
    plain = put(build_directory([("x", LEAF, 4)], DEFAULT_PROFILE)[1][0])
    assert list_all(empty, held) == []  # as a whole directory, it is one
    for child in (empty, narrow, plain, put((LEAF, b"leaf"))):
        root = put(shard([PBLink(child, "00")], [0]))
        with pytest.raises(MalformedBlock):
            list_all(root, held)
    misplaced = put(shard([PBLink(LEAF, f"{wrong:02X}x")], [wrong]))
    with pytest.raises(MalformedBlock, match="no look-up would find it"):
        list_all(misplaced, held)
    with pytest.raises(InvalidPath, match="not a directory"):
        list_all(LEAF, held)


def test_every_refusal_is_an_error_of_the_data() -> None:
    """A caller that handles DataError handles all of the above."""
    for bad in (b"\xff", b"", b"\x0a\x02\x08\x09"):
        with pytest.raises(DataError):
            parse(CID.of(DAG_PB, bad), bad)
        if bad:
            with pytest.raises(DataError):
                decode_data(bad)
    assert isinstance(parse(LEAF, b"leaf"), File)
