"""Directories that many paths lead through: parsed once, looked for here window by window, and
where file after file of them is asked for, the next ones fetched ahead.

Blocks come from a `RootSession`; what a path means is `retrieve`'s.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from dstore.core.cid import CID, RAW
from dstore.core.unixfs import (
    Absent,
    Descend,
    Directory,
    File,
    Found,
    HamtShard,
    Node,
    listing,
    lookup,
    parse,
)
from dstore.core.unixfs import Entry as Named
from dstore.limits import (
    DIRECTORY_AHEAD_AFTER,
    DIRECTORY_AHEAD_FILE_BYTES,
    HELD_LOOKUP_BLOCKS,
    INNER_NODES_KEPT_BYTES,
)
from dstore.service.session import RootSession

_WINDOW_BYTES = HELD_LOOKUP_BLOCKS * DIRECTORY_AHEAD_FILE_BYTES  # at most, of what comes ahead
_AHEAD_FACTOR = HELD_LOOKUP_BLOCKS // DIRECTORY_AHEAD_AFTER - 1  # fetched, for each one wanted


@dataclass(eq=False, slots=True)
class _Kept:
    """An inner node, parsed, and what was found out about its entries, which are counted in
    windows of HELD_LOOKUP_BLOCKS."""

    cid: CID
    node: Node
    size: int
    entries: Sequence[Named] = ()
    places: dict[str, int] | None = None  # of `entries`, by name
    held: dict[int, Collection[bytes]] = field(default_factory=dict)  # multihashes, by window
    asked: dict[int, int] = field(default_factory=dict)  # a bit for each that was not here
    begun: set[int] = field(default_factory=set)  # windows that were fetched ahead
    # Of the first block of a sharded directory: files of all shards that were asked for and not
    # here, and files that were fetched ahead.
    wanted: int = 0
    ahead: int = 0

    def find(self, name: str, depth: int) -> Found | Descend | Absent:
        """As `lookup`, which goes through the names of a plain directory one by one."""
        assert isinstance(self.node, Directory | HamtShard)
        if self.places is None:
            self.entries = listing(self.node).entries
            self.places = {entry.name: place for place, entry in enumerate(self.entries)}
        if isinstance(self.node, HamtShard):
            return lookup(self.node, name, depth)
        place = self.places.get(name)
        return Absent() if place is None else Found(self.entries[place].cid)

    def window(self, number: int) -> Sequence[Named]:
        """The entries of a window; none behind the last."""
        start = number * HELD_LOOKUP_BLOCKS
        return self.entries[start : start + HELD_LOOKUP_BLOCKS]


class Directories:
    """Parsed blocks of directories and large files, the least recently used dropped first."""

    def __init__(self, bytes_max: int = INNER_NODES_KEPT_BYTES) -> None:
        self._bytes_max = bytes_max
        self._bytes = 0
        self._kept: OrderedDict[CID, _Kept] = OrderedDict()

    async def node(self, session: RootSession, cid: CID, *, held: bool = True) -> Node:
        """The block as UnixFS; `held` as for `RootSession.block`.  Raises as that, and
        MalformedBlock."""
        return (await self._get(session, cid, held=held)).node

    async def find(self, session: RootSession, cid: CID, name: str) -> tuple[CID | None, bool]:
        """What the name in the directory `cid` leads to, and whether that may be here; None
        where there is no such name or no directory."""
        depth = 0
        top = kept = await self._get(session, cid)
        while isinstance(kept.node, Directory | HamtShard):
            step = kept.find(name, depth)
            if isinstance(step, Found):
                return step.cid, await self._is_held(session, top, kept, name)
            if not isinstance(step, Descend):
                break
            depth = step.depth
            kept = await self._get(session, step.cid)
        return None, False

    async def _get(self, session: RootSession, cid: CID, *, held: bool = True) -> _Kept:
        kept = self._kept.get(cid)
        if kept is None:
            data = await session.block(cid, held=held)
            kept = self._kept.get(cid)  # by who waited for the block, too
            if kept is None:
                kept = _Kept(cid, parse(cid, data), len(data))
                self._keep(kept)
                return kept
        self._kept.move_to_end(cid)
        return kept

    def _keep(self, kept: _Kept) -> None:
        leaf = not isinstance(kept.node, Directory | HamtShard) and not (
            isinstance(kept.node, File) and kept.node.children
        )
        if leaf or kept.size > self._bytes_max:
            return
        self._kept[kept.cid] = kept
        self._bytes += kept.size
        while self._bytes > self._bytes_max:
            self._bytes -= self._kept.popitem(last=False)[1].size

    async def _is_held(self, session: RootSession, top: _Kept, kept: _Kept, name: str) -> bool:
        """Whether the block behind the name, which is in `kept` of the directory `top`, may be
        here.  Where it must come from peers and many others had to, more are begun: in few
        exchanges, in place of one each."""
        assert kept.places is not None
        number, at = divmod(kept.places[name], HELD_LOOKUP_BLOCKS)
        held = await self._held(session, kept, number)
        if kept.window(number)[at].cid.multihash in held:
            return True
        before = kept.asked.get(number, 0)
        asked = kept.asked[number] = before | 1 << at
        if asked != before and session.can_keep(_WINDOW_BYTES):
            if isinstance(top.node, HamtShard):
                await self._ahead_of_shards(session, top, kept, number)
            else:
                await self._ahead_of_window(session, kept, number, asked.bit_count())
        return False

    async def _ahead_of_window(
        self, session: RootSession, kept: _Kept, number: int, count: int
    ) -> None:
        """`count` of the window's files have been asked for, one by one."""
        if count == DIRECTORY_AHEAD_AFTER:
            # Where this one came ahead, it is the turn of the next.
            await self._fetch_ahead(session, kept, number + (number in kept.begun))
        elif count == HELD_LOOKUP_BLOCKS // 2:
            await self._fetch_ahead(session, kept, number + 1)

    async def _ahead_of_shards(
        self, session: RootSession, top: _Kept, kept: _Kept, number: int
    ) -> None:
        """Neighbours by name are anywhere in a sharded directory: what counts is how many of
        all its files have been asked for."""
        top.wanted += 1
        if top.wanted == DIRECTORY_AHEAD_AFTER:
            assert isinstance(top.node, HamtShard)
            shards = listing(top.node).shards
            here = await session.held_once((top.cid, "shards"), shards)
            session.prefetch_many(
                cid for cid, is_here in zip(shards, here, strict=True) if not is_here
            )
        begun = number in kept.begun or top.wanted < DIRECTORY_AHEAD_AFTER
        if not begun and top.ahead < _AHEAD_FACTOR * top.wanted:
            top.ahead += len(kept.window(number))
            await self._fetch_ahead(session, kept, number)

    async def _held(self, session: RootSession, kept: _Kept, number: int) -> Collection[bytes]:
        """The multihashes of a window that are here: one look, as long as the node is kept."""
        held = kept.held.get(number)
        if held is None:
            cids = [entry.cid for entry in kept.window(number)]
            here = await session.held_once((kept.cid, number), cids)
            held = {one.multihash for one, is_here in zip(cids, here, strict=True) if is_here}
            kept.held[number] = held
        return held

    async def _fetch_ahead(self, session: RootSession, kept: _Kept, number: int) -> None:
        """Begin to fetch the small files of a window, once."""
        if number in kept.begun:
            return
        kept.begun.add(number)
        held = await self._held(session, kept, number)
        session.prefetch_many(
            entry.cid
            for entry in kept.window(number)
            if entry.cid.codec == RAW
            and entry.dag_bytes is not None
            and entry.dag_bytes <= DIRECTORY_AHEAD_FILE_BYTES
            and entry.cid.multihash not in held
        )
