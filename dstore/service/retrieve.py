"""Reading by hash: paths resolved, files streamed, directories listed, every byte verified.

Works on UnixFS nodes that a `RootSession` fetches; it knows neither peers nor stripes.  A
file is read with a bounded number of bytes ahead, whatever its size and shape.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass

import trio

from dstore.core.cid import CID, DAG_CBOR, DAG_PB, RAW
from dstore.core.unixfs import (
    Budget,
    Directory,
    DirectoryLister,
    Extent,
    File,
    FileChild,
    HamtShard,
    Node,
    Symlink,
    children_in_range,
    parse_child,
)
from dstore.errors import BudgetExceeded, InvalidPath, NotFoundError
from dstore.limits import (
    DAG_BLOCKS_MAX,
    DAG_DEPTH_MAX,
    DAG_PENDING_LINKS_MAX,
    ENTRY_CONTENT_BYTES_MAX,
    HELD_LOOKUP_BLOCKS,
    PREFETCH_NODES,
    READ_AHEAD_BYTES,
    READ_AHEAD_TOTAL_BYTES,
    SESSION_SECONDS,
    SESSIONS_MAX,
)
from dstore.service.directories import Directories
from dstore.service.pipeline import ByteBudget, in_order
from dstore.service.progress import DirectoryEntry, Entry
from dstore.service.session import RootSession
from dstore.service.worker import Worker

NewSession = Callable[[CID], RootSession]


@dataclass(frozen=True, slots=True)
class _Piece:
    """Bytes of a file in order: `data`, or the part of a raw leaf to be fetched.  `ahead` bytes
    of what is read come before it."""

    size: int
    ahead: int
    data: bytes | None = None
    leaf: CID | None = None
    leaf_size: int = 0
    skip: int = 0
    position: float = 0.0
    held: bool = True


class Retriever:
    """Reads files, directories and blocks of any root."""

    def __init__(self, new_session: NewSession) -> None:
        self._new_session = new_session
        self._read_ahead = ByteBudget(READ_AHEAD_TOTAL_BYTES)
        self._sessions: OrderedDict[CID, tuple[float, RootSession]] = OrderedDict()
        self._directories = Directories()
        self.worker = Worker("sessions", self.step)

    def session(self, root: CID) -> RootSession:
        """The session of the root: what was found out about it stays for a while."""
        now = trio.current_time()
        made, session = self._sessions.get(root, (0.0, None))
        if session is None or now > made + SESSION_SECONDS:
            session = self._new_session(root)
            self._sessions[root] = (now, session)
        self._sessions.move_to_end(root)
        while len(self._sessions) > SESSIONS_MAX:
            self._sessions.popitem(last=False)
        return session

    def forget(self, root: CID) -> None:
        """Find out anew next time."""
        self._sessions.pop(root, None)

    async def step(self) -> float:
        """In the background: let go of sessions that are over, whoever reads with one keeps it."""
        now = trio.current_time()
        over = [root for root, (made, _) in self._sessions.items() if now > made + SESSION_SECONDS]
        for root in over:
            self.forget(root)
        return SESSION_SECONDS / 10

    async def resolve(self, root: CID, names: Sequence[str] = ()) -> Entry:
        """What /ipfs/ROOT/NAME/NAME… is.

        Raises NotFoundError where a name does not exist or nobody has the root, InvalidPath
        where a name goes below something that is no directory, MalformedBlock,
        DeadlineExceeded, Unrecoverable.
        """
        session = self.session(root)
        cid, passed, held = root, [root], True
        for at, name in enumerate(names):
            below, held = await self._directories.find(session, cid, name)
            if below is None:
                path = "/".join((str(root), *names[: at + 1]))
                node = await self._directories.node(session, cid)
                if not isinstance(node, Directory | HamtShard):
                    raise InvalidPath(f"/ipfs/{path}: what comes before {name!r} is no directory")
                raise NotFoundError(f"/ipfs/{path} does not exist")
            cid = below
            passed.append(cid)
        return await self.entry(root, cid, held=held, path=tuple(passed))

    async def entry(
        self, root: CID, cid: CID, *, held: bool = True, path: tuple[CID, ...] = ()
    ) -> Entry:
        """What the node `cid` of the root's DAG is, which `path` led to; `held` as for
        `RootSession.block`.  Raises as `resolve`."""
        session = self.session(root)
        if cid.codec == DAG_CBOR:
            return Entry(cid, "file", len(await session.block(cid, held=held)), path=path)
        node = await self._directories.node(session, cid, held=held)
        if isinstance(node, File):
            here = not node.children and len(node.data) == node.size <= ENTRY_CONTENT_BYTES_MAX
            content = node.data if here else None
            return Entry(cid, "file", node.size, path=path, content=content)
        if isinstance(node, Symlink):
            return Entry(cid, "symlink", len(node.target), node.target, path)
        return Entry(cid, "directory", path=path)

    async def block(self, root: CID, cid: CID, *, held: bool = True) -> bytes:
        """One block of the root's DAG, verified; `held` as for `RootSession.block`."""
        return await self.session(root).block(cid, held=held)

    async def entries(self, root: CID, directory: CID) -> AsyncGenerator[DirectoryEntry, None]:
        """The entries of a directory of the root's DAG, in encoded order."""
        session = self.session(root)
        lister = DirectoryLister(directory, Budget())
        while (cid := lister.wanted()) is not None:
            entries = lister.supply(await session.block(cid))
            here = await session.held([entry.cid for entry in entries])
            for entry, held in zip(entries, here, strict=True):
                yield DirectoryEntry(entry.name, entry.cid, entry.dag_bytes or 0, held)

    @asynccontextmanager
    async def read(
        self, root: CID, cid: CID, offset: int = 0, length: int | None = None
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """The bytes [offset, offset + length) of the file `cid` in the root's DAG, in chunks
        of at most one block; those beyond its end are not there.

        Raises as `resolve`, in the middle too: then what came before was right and the rest
        is missing.
        """
        session = self.session(root)
        if cid.codec == DAG_CBOR:
            first = await session.block(cid)
            node: Node = File(len(first), first)
        else:
            node = await self._directories.node(session, cid)
        if not isinstance(node, File):
            raise InvalidPath(f"{cid} is no file")
        stop = node.size if length is None else min(node.size, offset + length)
        if not node.children:
            async with aclosing(_inline(node.data[offset:stop])) as whole:
                yield whole
            return

        begun = trio.Event()  # the first piece has been dealt with

        async def fetch(piece: _Piece) -> bytes:
            if piece.leaf is None:
                assert piece.data is not None
                return piece.data
            if piece.ahead:
                await begun.wait()  # the first bytes have the wires and this process alone
            data = await session.block(piece.leaf, piece.position, held=piece.held)
            parse_child(FileChild(piece.leaf, piece.leaf_size), data)
            if piece.size == len(data):
                return data
            return data[piece.skip : piece.skip + piece.size]

        async with in_order(
            _pieces(session, node, offset, stop),
            fetch,
            weigh=lambda piece: max(piece.leaf_size, piece.size),
            budget=READ_AHEAD_BYTES,
            within=self._read_ahead,
            tasks=256,
        ) as chunks:
            async with aclosing(_telling(chunks, begun)) as told:
                yield told


async def _telling(chunks: AsyncIterator[bytes], begun: trio.Event) -> AsyncGenerator[bytes, None]:
    """The chunks, and word once the first of them has been dealt with."""
    async for chunk in chunks:
        yield chunk
        begun.set()


async def _inline(data: bytes) -> AsyncGenerator[bytes, None]:
    if data:
        yield data


@dataclass(slots=True)
class _Visit:
    """A node of a file still to be read: where its bytes lie in the file, how deep it is, and
    whether its block is here, once that was asked."""

    extent: Extent
    depth: int
    held: bool | None = None


async def _pieces(
    session: RootSession, root: File, offset: int, stop: int
) -> AsyncIterator[_Piece]:
    """What makes up the bytes [offset, stop) of the file, in order; inner nodes are fetched
    on the way, a few ahead."""
    total = max(root.size, 1)
    pending: list[_Visit] = []  # the next one last
    visited = 0

    async def enter(node: File, start: int, depth: int) -> _Piece | None:
        """Queue the node's children in the range; its inline bytes come first."""
        children = children_in_range(node, offset - start, stop - offset)
        if len(pending) + len(children) > DAG_PENDING_LINKS_MAX:
            raise BudgetExceeded(f"more than {DAG_PENDING_LINKS_MAX} links on one path of a file")
        for child in reversed(children):
            extent = Extent(child.cid, start + child.start, child.size)
            pending.append(_Visit(extent, depth + 1))
        low, high = max(offset, start), min(stop, start + len(node.data))
        if low >= high:
            return None
        return _Piece(high - low, low - offset, node.data[low - start : high - start])

    if (inline := await enter(root, 0, 0)) is not None:
        yield inline
    while pending:
        visit = pending.pop()
        extent, depth, held = visit.extent, visit.depth, visit.held
        if held is None:
            ahead = [visit, *pending[:-HELD_LOOKUP_BLOCKS:-1]]
            here = await session.held([one.extent.cid for one in ahead])
            for one, is_here in zip(ahead, here, strict=True):
                one.held = is_here
            held = here[0]
        visited += 1
        if depth > DAG_DEPTH_MAX or visited > DAG_BLOCKS_MAX:
            raise BudgetExceeded("a file deeper or of more blocks than allowed")
        low, high = max(offset, extent.start), min(stop, extent.start + extent.size)
        position = extent.start / total
        if extent.cid.codec == RAW:
            yield _Piece(
                high - low,
                low - offset,
                leaf=extent.cid,
                leaf_size=extent.size,
                skip=low - extent.start,
                position=position,
                held=held,
            )
            continue
        for one in pending[: -PREFETCH_NODES - 1 : -1]:
            if one.extent.cid.codec == DAG_PB:
                session.prefetch(one.extent.cid, one.extent.start / total)
        node = parse_child(
            FileChild(extent.cid, extent.size), await session.block(extent.cid, position)
        )
        if (inline := await enter(node, extent.start, depth)) is not None:
            yield inline
