"""A block store that fails on purpose: a wrapper with the contract's own interface.

Faults are scripted before the act and happen at a counted call, so a failing test fails again
the same way.  With no fault scripted it is the store that it wraps.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from dstore.core.cid import CID
from dstore.errors import CorruptStore, DstoreError, StorageFull
from dstore.storage.blockstore import Block, BlockStore, Usage

Operation = Literal["put_many", "get", "has_many", "size", "delete_many", "multihashes"]


class SimulatedCrash(BaseException):
    """The process is gone at this point; not an Exception, so that nothing handles it."""


@dataclass
class _Script:
    """Raise `error` at calls number `first` to `first + times - 1` (None: for ever)."""

    error: DstoreError
    first: int
    times: int | None


class FaultyStore:
    """Wraps a store; `calls` counts what was asked of it."""

    def __init__(self, inner: BlockStore) -> None:
        self.inner = inner
        self.calls: Counter[Operation] = Counter()
        self._scripts: dict[Operation, list[_Script]] = {}
        self._corrupt: set[bytes] = set()
        self._full = False
        self._crash_in: int | None = None
        self._crashed = False
        self._lock = threading.Lock()

    # --- Scripting ---------------------------------------------------------------------

    def fail(
        self, operation: Operation, error: DstoreError, *, after: int = 0, times: int | None = 1
    ) -> None:
        """From now, let `after` calls of the operation pass, then raise `error` in `times`
        calls (None: in all)."""
        script = _Script(error, self.calls[operation] + after + 1, times)
        self._scripts.setdefault(operation, []).append(script)

    def fill(self) -> None:
        """The disk is full: puts of anything new raise StorageFull until `drain`."""
        self._full = True

    def drain(self) -> None:
        """There is room again."""
        self._full = False

    def corrupt(self, cid: CID) -> None:
        """The block's bytes are bad from now on: the next `get` raises CorruptStore and loses
        the block, as the disk store does."""
        self._corrupt.add(cid.multihash)

    def crash_after_blocks(self, blocks: int) -> None:
        """After so many more blocks are stored, the process dies in the middle of its put:
        SimulatedCrash there and in every later call, until `restart`."""
        self._crash_in = blocks

    def restart(self) -> None:
        """The process starts again over what was stored."""
        self._crashed = False
        self._crash_in = None

    # --- The contract ------------------------------------------------------------------

    def put_many(self, blocks: Sequence[Block], *, read_soon: bool = True) -> None:
        """See `BlockStore.put_many`."""
        self._enter("put_many")
        if self._full and not all(self.inner.has_many([cid for cid, _ in blocks])):
            raise StorageFull("no room: the disk is full by script")
        with self._lock:
            crash_in = self._crash_in
            if crash_in is not None:
                self._crash_in = max(0, crash_in - len(blocks))
        if crash_in is not None and len(blocks) > crash_in:
            self.inner.put_many(blocks[:crash_in], read_soon=read_soon)
            self._crashed = True
            raise SimulatedCrash
        self.inner.put_many(blocks, read_soon=read_soon)
        self._corrupt.difference_update(cid.multihash for cid, _ in blocks)

    def get(self, cid: CID) -> bytes:
        """See `BlockStore.get`."""
        self._enter("get")
        self._check_damage(cid)
        return self.inner.get(cid)

    def has_many(self, cids: Sequence[CID]) -> list[bool]:
        """See `BlockStore.has_many`."""
        self._enter("has_many")
        return self.inner.has_many(cids)

    def size(self, cid: CID) -> int | None:
        """See `BlockStore.size`."""
        self._enter("size")
        return self.inner.size(cid)

    def delete_many(self, cids: Sequence[CID]) -> None:
        """See `BlockStore.delete_many`."""
        self._enter("delete_many")
        self.inner.delete_many(cids)

    def multihashes(self) -> Iterator[bytes]:
        """See `BlockStore.multihashes`."""
        self._enter("multihashes")
        yield from self.inner.multihashes()

    def usage(self) -> Usage:
        """See `BlockStore.usage`."""
        return self.inner.usage()

    def room(self) -> int | None:
        """See `BlockStore.room`."""
        return self.inner.room()

    def close(self) -> None:
        """See `BlockStore.close`."""
        self.inner.close()

    def _check_damage(self, cid: CID) -> None:
        if cid.multihash in self._corrupt and self.inner.has_many([cid])[0]:
            self._corrupt.discard(cid.multihash)
            self.inner.delete_many([cid])
            raise CorruptStore(f"block {cid} was damaged by script")

    def _enter(self, operation: Operation) -> None:
        if self._crashed:
            raise SimulatedCrash
        with self._lock:
            self.calls[operation] += 1
            call = self.calls[operation]
        for script in self._scripts.get(operation, ()):
            last = None if script.times is None else script.first + script.times
            if call >= script.first and (last is None or call < last):
                raise script.error
