"""Random histories of the block stores against a dictionary, restarts and damage included."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from dstore.core.cid import CID, DAG_CBOR, RAW
from dstore.errors import CorruptStore, NotFoundError, StorageFull
from dstore.limits import SMALL_BLOCK_BYTES
from dstore.storage.blockstore import BlockStore, Usage
from dstore.storage.diskstore import DiskStore, open_disk_store
from dstore.storage.memory import MemoryStore
from dstore.testing.blockstore_suite import content
from dstore.testing.faulty_store import FaultyStore

CAPACITY = 12 * SMALL_BLOCK_BYTES
SIZES = (0, 1, 700, SMALL_BLOCK_BYTES - 1, SMALL_BLOCK_BYTES, 2 * SMALL_BLOCK_BYTES)
UNIVERSE = {
    CID.of(RAW, content(number, size)): content(number, size)
    for number in range(3)
    for size in SIZES
}
names = st.sampled_from(sorted(UNIVERSE))
spellings = st.sampled_from([RAW, DAG_CBOR])


class StoreMachine(RuleBasedStateMachine):
    """The store holds exactly what the model holds, and refuses exactly what does not fit."""

    store: BlockStore

    def __init__(self) -> None:
        super().__init__()
        self.model: dict[CID, bytes] = {}

    def open(self) -> BlockStore:
        return MemoryStore(capacity_bytes=CAPACITY)

    @initialize()
    def start(self) -> None:
        self.store = self.open()

    @rule(batch=st.lists(names, max_size=14), codec=spellings)
    def put(self, batch: list[CID], codec: int) -> None:
        after = self.model | {name: UNIVERSE[name] for name in batch}
        blocks = [(CID.v1(codec, name.multihash), UNIVERSE[name]) for name in batch]
        if sum(map(len, after.values())) > CAPACITY:
            try:
                self.store.put_many(blocks)
            except StorageFull:
                return
            raise AssertionError("more than the capacity was taken")
        self.store.put_many(blocks)
        self.model = after

    @rule(batch=st.lists(names, max_size=5), codec=spellings)
    def delete(self, batch: list[CID], codec: int) -> None:
        self.store.delete_many([CID.v1(codec, name.multihash) for name in batch])
        for name in batch:
            self.model.pop(name, None)

    @rule(name=names, codec=spellings)
    def get(self, name: CID, codec: int) -> None:
        cid = CID.v1(codec, name.multihash)
        assert self.store.size(cid) == (len(self.model[name]) if name in self.model else None)
        try:
            found = self.store.get(cid)
        except NotFoundError:
            assert name not in self.model
        else:
            assert found == self.model[name]

    @invariant()
    def same_names_and_counts(self) -> None:
        held = sorted(name.multihash for name in self.model)
        assert sorted(self.store.multihashes()) == held
        everything = list(UNIVERSE)
        assert self.store.has_many(everything) == [name in self.model for name in everything]
        assert self.store.usage() == Usage(len(held), sum(map(len, self.model.values())))

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.store.close()


class FaultyMachine(StoreMachine):
    """The wrapper's faults lose what they say they lose, and nothing else."""

    def open(self) -> BlockStore:
        return FaultyStore(MemoryStore(capacity_bytes=CAPACITY))

    @precondition(lambda self: bool(self.model))
    @rule(data=st.data())
    def corrupt(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.model)))
        assert isinstance(self.store, FaultyStore)
        self.store.corrupt(name)
        _must_be_corrupt(self.store, name)
        del self.model[name]


class DiskMachine(StoreMachine):
    """The disk store, opened again after clean and unclean ends, with files damaged."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp(prefix="dstore-model-"))

    def open(self) -> BlockStore:
        return open_disk_store(self.directory, capacity_bytes=CAPACITY)

    @rule(clean=st.booleans())
    def restart(self, clean: bool) -> None:
        if clean:
            self.store.close()
            self.store = self.open()
        else:  # as after a kill: the old one never says goodbye to the files
            killed, self.store = self.store, self.open()
            assert isinstance(killed, DiskStore)
            killed._small.close()
            killed._durable.close()

    @precondition(lambda self: any(len(data) >= SMALL_BLOCK_BYTES for data in self.model.values()))
    @rule(data=st.data(), position=st.integers(0, SMALL_BLOCK_BYTES - 1))
    def flip_a_bit(self, data: st.DataObject, position: int) -> None:
        large = [name for name, held in self.model.items() if len(held) >= SMALL_BLOCK_BYTES]
        name = data.draw(st.sampled_from(sorted(large)))
        text = name.multihash.hex()
        path = self.directory / "large" / text[-2:] / text
        damaged = bytearray(path.read_bytes())
        damaged[position] ^= 0x10
        path.write_bytes(damaged)
        _must_be_corrupt(self.store, name)
        del self.model[name]

    def teardown(self) -> None:
        super().teardown()
        shutil.rmtree(self.directory)


def _must_be_corrupt(store: BlockStore, name: CID) -> None:
    try:
        store.get(name)
    except CorruptStore:
        return
    raise AssertionError("a damaged block was served")


def _settings(examples: int) -> settings:
    return settings(
        max_examples=examples,
        stateful_step_count=25,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow],
    )


TestMemoryModel = StoreMachine.TestCase
TestMemoryModel.settings = _settings(60)
TestFaultyModel = FaultyMachine.TestCase
TestFaultyModel.settings = _settings(40)
TestDiskModel = DiskMachine.TestCase
TestDiskModel.settings = _settings(30)
