"""Answers that are sent as they come: progress lines, bytes of files, whole trees.

An answer that fails after its first byte cannot change its status: a line stream ends with
an error line, a byte stream is cut short, so that no client takes a part for the whole.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from typing import TypeVar

import trio

from dstore.core.cid import CID, RAW
from dstore.errors import BudgetExceeded, DstoreError
from dstore.interfaces.forms import Form, dump, entry_form, error_form, progress_form
from dstore.interfaces.http import Receive, Scope, Send
from dstore.limits import (
    API_JOINED_BYTES,
    API_JOINED_SECONDS,
    API_PROGRESS_SECONDS,
    API_TREE_BYTES,
    API_TREE_TASKS,
    BLOCK_BYTES_MAX,
    DAG_DEPTH_MAX,
)
from dstore.runtime import open_plain_nursery
from dstore.service.node import Node
from dstore.service.pipeline import from_iterable, in_order
from dstore.service.progress import DirectoryEntry, Entry, Progress, Report

log = logging.getLogger(__name__)

T = TypeVar("T")

LINES = "application/x-ndjson"
BYTES = "application/octet-stream"


class Streamed:
    """An ASGI answer of status 200 whose body is what `produce` gives."""

    def __init__(
        self,
        produce: Callable[[], AsyncGenerator[bytes, None]],
        media_type: str,
        length: int | None = None,
    ) -> None:
        self._produce = produce
        self._headers = [
            (b"content-type", media_type.encode()),
            (b"cache-control", b"no-store"),
            (b"x-content-type-options", b"nosniff"),
        ]
        if length is not None:
            self._headers.append((b"content-length", str(length).encode()))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with aclosing(self._produce()) as chunks:
            # The first piece decides the status: what fails before it has one of its own.
            first = await anext(chunks, b"")
            await send({"type": "http.response.start", "status": 200, "headers": self._headers})
            await send({"type": "http.response.body", "body": first, "more_body": True})
            try:
                async for chunk in chunks:
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
            except DstoreError as error:
                # Without a last message the connection is closed in the middle of the answer.
                log.warning("an answer was cut short", extra={"reason": str(error)})
                return
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def line(form: Form) -> bytes:
    return dump(form).encode() + b"\n"


class Progressing:
    """An ASGI answer: progress lines while `work` runs, then its result or its error.  Only
    the newest progress is sent, so that a slow reader slows nothing down.

    The answer begins with the first progress; what fails before has a status of its own.
    """

    def __init__(self, work: Callable[[Report], Awaitable[Form]]) -> None:
        self._work = work
        self._latest: Progress | None = None
        self._news = trio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def emit(form: Form, *, more: bool) -> None:
            nonlocal started
            if not started:
                started = True
                headers = [(b"content-type", LINES.encode()), (b"cache-control", b"no-store")]
                await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": line(form), "more_body": more})

        async def tell() -> None:
            while True:
                await self._news.wait()
                self._news = trio.Event()
                if self._latest is not None:
                    # Half a message cannot be followed by another one.
                    with trio.CancelScope(shield=True):
                        await emit({"progress": progress_form(self._latest)}, more=True)
                await trio.sleep(API_PROGRESS_SECONDS)

        async with open_plain_nursery() as nursery:
            nursery.start_soon(tell)
            try:
                last: Form = {"result": await self._work(self._report)}
            except DstoreError as error:
                if not started:
                    raise
                last = {"error": error_form(error)}
            nursery.cancel_scope.cancel()
        await emit(last, more=False)

    def _report(self, progress: Progress) -> None:
        self._latest = progress
        self._news.set()


async def listing(node: Node, root: CID, directory: CID) -> AsyncGenerator[bytes, None]:
    """A line for each entry of a directory, with its kind and size.  The last line is
    `{"done": true}`, or an error."""

    async def look(one: DirectoryEntry) -> bytes:
        # A raw block is a file as long as its link says.  With thousands of small files,
        # fetching each of them to list them would be nearly all of the work.
        if one.cid.codec == RAW and one.tsize:
            entry = Entry(one.cid, "file", one.tsize)
        else:
            entry = await node.entry(root, one.cid, held=one.held)
        return line({"name": one.name, **entry_form(entry), "dag_bytes": one.tsize})

    begun = False
    try:
        async with _looked_at(node.entries(root, directory), look) as lines:
            async for each in lines:
                yield each
                begun = True
    except DstoreError as error:
        if not begun:
            raise  # it still has a status of its own
        yield line({"error": error_form(error)})
        return
    yield line({"done": True})


async def tree(node: Node, root: CID, top: Entry) -> AsyncGenerator[bytes, None]:
    """Everything below an entry, depth first.

    A line for each entry; after that of a file, its bytes in pieces, each with a line
    `{"bytes": N}` before it.  The last line is `{"done": true}`, or an error.
    """
    joined = bytearray()  # thousands of small files do not pass through HTTP one by one
    joined_at = trio.current_time()
    try:
        async with aclosing(_walk(node, root, (), top)) as entries:
            async for names, entry in entries:
                joined += line({"path": list(names), **entry_form(entry)})
                if entry.kind == "file":
                    async with _content(node, root, entry) as chunks:
                        async for chunk in chunks:
                            joined += line({"bytes": len(chunk)})
                            if len(chunk) >= API_JOINED_BYTES:
                                yield bytes(joined)
                                joined.clear()
                                yield chunk
                            else:
                                joined += chunk
                now = trio.current_time()
                if len(joined) >= API_JOINED_BYTES or now > joined_at + API_JOINED_SECONDS:
                    yield bytes(joined)
                    joined.clear()
                    joined_at = now
    except DstoreError as error:
        yield bytes(joined) + line({"error": error_form(error)})
        return
    yield bytes(joined) + line({"done": True})


@asynccontextmanager
async def _content(node: Node, root: CID, entry: Entry) -> AsyncIterator[AsyncIterator[bytes]]:
    """The bytes of a file."""
    if entry.content is not None:
        yield from_iterable([entry.content] if entry.size else [])
    elif entry.cid.codec == RAW:  # all of it is in memory since its entry was looked at
        yield from_iterable([await node.block(root, entry.cid)])
    else:
        async with node.read(root, entry.cid) as chunks:
            yield chunks


async def _walk(
    node: Node, root: CID, names: tuple[str, ...], top: Entry
) -> AsyncGenerator[tuple[tuple[str, ...], Entry], None]:
    """The entry, and all below it."""
    yield names, top
    if top.kind != "directory":
        return
    if len(names) >= DAG_DEPTH_MAX:
        raise BudgetExceeded(f"directories nested deeper than {DAG_DEPTH_MAX}")

    async def look(one: DirectoryEntry) -> tuple[str, Entry]:
        return one.name, await node.entry(root, one.cid, held=one.held)

    async with _looked_at(node.entries(root, top.cid), look) as found:
        async for name, entry in found:
            async with aclosing(_walk(node, root, (*names, name), entry)) as below:
                async for each in below:
                    yield each


def _looked_at(
    entries: AsyncIterator[DirectoryEntry], look: Callable[[DirectoryEntry], Awaitable[T]]
) -> AbstractAsyncContextManager[AsyncIterator[T]]:
    """The entries looked at, some ahead, in their order."""
    return in_order(
        entries,
        look,
        # A block of each is kept for a moment, and an inner node is small.
        weigh=lambda one: min(one.tsize, BLOCK_BYTES_MAX),
        budget=API_TREE_BYTES,
        tasks=API_TREE_TASKS,
    )
