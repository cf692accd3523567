"""kill -9 at random points of puts: what was acknowledged is there, nothing half is visible.

A subprocess writes blocks, pin records and leases from several threads and prints each
acknowledgement; it is killed after a random number of them, in the middle of whatever its
threads are doing then.  Stopped processes keep the page cache, so this shows the order of
writes, not the disk's honesty.
"""

from __future__ import annotations

import hashlib
import random
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from dstore.core.cid import CID, DAG_CBOR, RAW
from dstore.storage.blockstore import Usage
from dstore.storage.catalog import HeldSlot, open_catalog
from dstore.storage.diskstore import open_disk_store
from dstore.storage.records import RecordFiles
from dstore.testing.blockstore_suite import content

SIZES = (10, 3000, 32_767, 32_768, 100_000, 300_000)
OWNER = b"o" * 32
KILLS = 20


def size_of(number: int) -> int:
    return SIZES[number % len(SIZES)]


def name_of(number: int) -> CID:
    return CID.of(DAG_CBOR, b"segment %d" % number)


def write(directory: Path, start: int) -> None:
    """The subprocess: put, promise, acknowledge, until killed."""
    store = open_disk_store(directory / "blocks")
    catalog = open_catalog(directory / "catalog.sqlite3", RecordFiles(directory / "records"))
    printing = threading.Lock()

    def acknowledge(line: str) -> None:
        with printing:
            print(line, flush=True)

    def work(first: int) -> None:
        number = first
        while True:
            count = 1 + number // 4 % 12  # below and above the batch that syncs everything
            numbers = range(number, number + 4 * count, 4)
            data = [content(one, size_of(one)) for one in numbers]
            store.put_many([(CID.of(RAW, one), one) for one in data])
            acknowledge("put " + " ".join(map(str, numbers)))
            segment = name_of(number)
            catalog.put_pin_record(OWNER, segment, number, 2e9, b"wish %d" % number)
            acknowledge(f"wish {number}")
            catalog.reserve_slot(
                HeldSlot(segment, 0, OWNER, segment, segment, 1, "reserved", None, 2e9, 0.0)
            )
            catalog.hold_slot(segment, 0, b"lease %d" % number, 2e9, 1.0)
            acknowledge(f"lease {number}")
            number += 4 * count

    for thread in range(4):
        threading.Thread(target=work, args=(start + thread,)).start()


def run_and_kill(directory: Path, start: int, acknowledgements: int) -> list[str]:
    """All that the writer acknowledged before it died."""
    with subprocess.Popen(
        [sys.executable, __file__, str(directory), str(start)],
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(acknowledgements)]
        process.kill()
        lines.extend(process.stdout)
    assert process.returncode == -9
    return [line for line in lines if line.endswith("\n")]  # the last may be cut by the kill


def check(directory: Path, acknowledged: list[str]) -> None:
    store = open_disk_store(directory / "blocks")
    records = RecordFiles(directory / "records")
    catalog = open_catalog(directory / "catalog.sqlite3", records)
    rebuilt = open_catalog(directory / "rebuilt.sqlite3")
    rebuilt.rebuild(records, now=0.0)
    for line in acknowledged:
        kind, *numbers = line.split()
        for number in map(int, numbers):
            segment = name_of(number)
            if kind == "put":
                data = content(number, size_of(number))
                assert store.get(CID.of(RAW, data)) == data, line
            for book in (catalog, rebuilt):
                if kind == "wish":
                    record = book.pin_record(OWNER, segment)
                    assert record is not None, line
                    assert record.envelope == b"wish %d" % number
                if kind == "lease":
                    slot = book.held_slot(segment, 0)
                    assert slot is not None, line
                    assert slot.lease == b"lease %d" % number
    # What was not acknowledged may be there, but whole; the counts know of it.
    blocks = total = 0
    for multihash in store.multihashes():
        data = store.get(CID.v1(RAW, multihash))
        assert hashlib.sha256(data).digest() == multihash[2:]
        blocks += 1
        total += len(data)
    assert store.usage() == Usage(blocks, total)
    assert records.damaged == set()
    for leftovers in (directory / "blocks/tmp", directory / "records/tmp"):
        assert list(leftovers.iterdir()) == []
    for closing in (store, catalog, rebuilt, records):
        closing.close()
    (directory / "rebuilt.sqlite3").unlink()


@pytest.mark.slow
def test_what_was_acknowledged_survives_kill_9(tmp_path: Path) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")  # pytest shows it when the test fails
    chance = random.Random(seed)
    acknowledged: list[str] = []
    for kill in range(KILLS):
        acknowledged += run_and_kill(tmp_path, kill * 100_000, chance.randint(1, 40))
        check(tmp_path, acknowledged)
    assert len(acknowledged) >= KILLS


if __name__ == "__main__":
    write(Path(sys.argv[1]), int(sys.argv[2]))
