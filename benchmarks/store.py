"""The disk store against plain files: puts and gets by size, and its behaviour when large.

    python benchmarks/store.py              ratios against cp + fsync and plain reads
    python benchmarks/store.py --scale      1 M blocks of 1 KiB and 100,000 of 256 KiB

Every comparison runs in the same process on the same directory, alternating, medians of
several rounds; the baseline "cp + fsync" writes the same bytes to one new file per block and
syncs each.  Reads are warm: page cache on both sides, hashing on the store's.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from dstore.core.cid import CID, RAW
from dstore.storage.blockstore import Block, BlockStore
from dstore.storage.diskstore import open_disk_store

KIB = 1024
MIB = 1024 * KIB
ROUNDS = 5


def fresh(count: int, size: int) -> list[Block]:
    """Blocks of random bytes that no store has seen."""
    base = os.urandom(size)
    blocks = []
    for number in range(count):
        data = os.urandom(16) + number.to_bytes(8, "big") + base[24:]
        blocks.append((CID.of(RAW, data), data))
    return blocks


def timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def copy_with_fsync(directory: Path, blocks: list[Block]) -> None:
    for number, (_, data) in enumerate(blocks):
        descriptor = os.open(directory / str(number), os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
        os.write(descriptor, data)
        os.fsync(descriptor)
        os.close(descriptor)


def read_files(directory: Path, count: int) -> None:
    for number in range(count):
        (directory / str(number)).read_bytes()


def get_all(store: BlockStore, cids: list[CID]) -> None:
    for cid in cids:
        store.get(cid)


def put_in_batches(store: BlockStore, blocks: list[Block], batch: int, threads: int = 1) -> None:
    batches = [blocks[start : start + batch] for start in range(0, len(blocks), batch)]
    if threads == 1:
        for one in batches:
            store.put_many(one)
        return
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(store.put_many, batches))


def compare(directory: Path, size: int, count: int) -> None:
    """One table: puts one by one, in batches, from threads; gets; each with its ratio."""
    figures: dict[str, list[float]] = {}
    store = open_disk_store(directory / f"store-{size}")
    plain = directory / f"plain-{size}"
    plain.mkdir()
    for _ in range(ROUNDS):
        copied, one, two, three, four = (fresh(count, size) for _ in range(5))
        ways: list[tuple[str, Callable[[], object]]] = [
            ("cp + fsync", partial(copy_with_fsync, plain, copied)),
            ("put, one by one", partial(put_in_batches, store, one, 1)),
            ("put, batches of 64", partial(put_in_batches, store, two, 64)),
            ("put, 4 threads x 1", partial(put_in_batches, store, three, 1, 4)),
            ("put, 4 threads x 16", partial(put_in_batches, store, four, 16, 4)),
            ("plain read", partial(read_files, plain, count)),
            ("get", partial(get_all, store, [cid for cid, _ in two])),
        ]
        for name, work in ways:
            figures.setdefault(name, []).append(timed(work))
        # A virtual disk is slower where it has never been written: both sides give back what
        # they took, so that neither has the fresh part of it to itself.
        store.delete_many([cid for blocks in (one, two, three, four) for cid, _ in blocks])
        for path in plain.iterdir():
            path.unlink()
    print(f"\n{count} blocks of {size // KIB} KiB, median of {ROUNDS}")
    print(f"{'':22}{'MB/s':>9}{'blocks/s':>11}{'ratio':>8}")
    medians = {name: statistics.median(seconds) for name, seconds in figures.items()}
    for name, seconds in medians.items():
        baseline = medians["plain read" if name in ("get", "plain read") else "cp + fsync"]
        speed, rate = count * size / seconds / 1e6, count / seconds
        print(f"{name:22}{speed:9.0f}{rate:11.0f}{baseline / seconds:8.2f}")
    store.close()
    shutil.rmtree(directory / f"store-{size}")
    shutil.rmtree(plain)


def batches_of(count: int, size: int, batch: int) -> Iterator[list[Block]]:
    for start in range(0, count, batch):
        yield fresh(min(batch, count - start), size)


def scale(directory: Path, small: int, large: int) -> None:
    """Fill, reopen after clean and unclean ends, look up, walk, delete."""
    path = directory / "scale"
    store = open_disk_store(path)
    kept: list[CID] = []
    for count, size in ((small, KIB), (large, 256 * KIB)):
        spent = 0.0
        for blocks in batches_of(count, size, 1024 if size == KIB else 64):
            spent += timed(partial(store.put_many, blocks))
            kept.append(blocks[0][0])
        print(f"put {count} x {size // KIB} KiB: {count / spent:.0f}/s, {spent:.1f} s")
    usage = store.usage()
    assert usage.blocks == small + large
    print(f"close: {timed(store.close):.3f} s")

    def reopen() -> None:
        nonlocal store
        store = open_disk_store(path)

    print(f"open after a clean end: {timed(reopen):.3f} s")
    print(f"open after a kill (counts anew): {timed(reopen):.3f} s")
    assert store.usage() == usage
    seconds = timed(partial(get_all, store, kept))
    print(f"get across the store: {len(kept) / seconds:.0f}/s")
    seconds = timed(partial(store.has_many, kept))
    print(f"has: {len(kept) / seconds:.0f}/s")
    seconds = timed(lambda: sum(1 for _ in store.multihashes()))
    print(f"walk all names: {seconds:.1f} s")
    seconds = timed(partial(store.delete_many, kept))
    print(f"delete: {len(kept) / seconds:.0f}/s")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"peak memory of this process: {peak:.0f} MiB")
    store.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--dir", type=Path, help="where to write (default: a temporary directory)")
    parser.add_argument("--scale", action="store_true")
    parser.add_argument("--small", type=int, default=1_000_000)
    parser.add_argument("--large", type=int, default=100_000)
    arguments = parser.parse_args()
    directory = Path(tempfile.mkdtemp(prefix="dstore-bench-", dir=arguments.dir))
    try:
        if arguments.scale:
            scale(directory, arguments.small, arguments.large)
        else:
            for size, count in ((KIB, 1024), (256 * KIB, 256), (MIB, 128)):
                compare(directory, size, count)
    finally:
        shutil.rmtree(directory)


if __name__ == "__main__":
    main()
