"""Files, directories and streams into blocks: the UnixFS importer over worker threads.

It reads, chunks, hashes and hands blocks to a `save` function in batches of a few megabytes,
each batch one call in a worker; what it keeps in memory does not grow with the file.  It
knows neither stores nor networks.
"""

from __future__ import annotations

import os
import stat
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dstore.core.cid import CID
from dstore.core.unixfs import (
    Block,
    FileBuilder,
    Link,
    Profile,
    build_directory,
    build_symlink,
    make_leaf,
)
from dstore.errors import CallerError, DstoreError, InvalidPath, NotFoundError
from dstore.limits import (
    COMMIT_BATCH_BLOCKS_MAX,
    IMPORT_BATCH_BYTES,
    IMPORT_BATCH_FILES_MAX,
    IMPORT_BATCHES_IN_FLIGHT,
)
from dstore.runtime import Workers
from dstore.service.pipeline import closing, from_iterable, in_order
from dstore.service.progress import Progress, Report
from dstore.storage.layout import home_around, is_home

Save = Callable[[Sequence[Block]], None]
Note = Callable[[Path, int, Sequence[Block]], None]


@dataclass(slots=True)
class _Directory:
    """A directory on disk: what is in it, by name."""

    path: Path
    depth: int
    parent: _Directory | None
    name: str
    entries: dict[str, Link] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Source:
    """A regular file and the entry that it becomes."""

    path: Path
    size: int
    directory: _Directory
    name: str


@dataclass(slots=True)
class _Tree:
    """Everything below a path that will be imported."""

    files: list[_Source] = field(default_factory=list)
    directories: list[_Directory] = field(default_factory=list)
    symlinks: list[tuple[_Directory, str, str]] = field(default_factory=list)
    hidden: int = 0
    special: int = 0
    homes: int = 0
    home: Path | None = None  # the first of them


@dataclass(frozen=True)
class Imported:
    """The root of what was imported; `size` counts the bytes of files."""

    cid: CID
    size: int
    warnings: tuple[str, ...] = ()


def no_note(path: Path, offset: int, leaves: Sequence[Block]) -> None:
    """Nobody reads the file again."""


class Importer:
    """Imports under one profile, handing blocks to `save` (called in workers).  `note` is told
    there from which offset of which file leaves were read, once they are saved."""

    def __init__(
        self,
        profile: Profile,
        save: Save,
        workers: Workers,
        report: Report,
        note: Note = no_note,
    ) -> None:
        self._profile = profile
        self._save = save
        self._note = note
        self._workers = workers
        self._report = report
        self._done = 0
        self._total: int | None = None

    async def add_path(self, path: Path, *, hidden: bool = False) -> Imported:
        """The file or directory at `path`; a symbolic link there is followed, those inside a
        directory are kept as links.

        As with Kubo, names that begin with a dot inside a directory are left out unless
        `hidden`.  Raises NotFoundError, CallerError, and what `save` raises.
        """
        status = await self._workers.run(_examine, path)
        if stat.S_ISDIR(status.st_mode):
            return await self._add_directory(path, hidden)
        if not stat.S_ISREG(status.st_mode):
            raise CallerError(f"{path} is neither a file nor a directory")
        self._total = status.st_size
        link = await self._add_large(path)
        return Imported(link.cid, link.file_bytes)

    async def add_stream(self, chunks: AsyncIterator[bytes]) -> Imported:
        """A file whose bytes come from `chunks`, pieces of any length; a generator is closed
        when it was not read to its end."""
        builder = FileBuilder(self._profile)
        async with in_order(
            _leaf_batches(chunks, self._profile.chunk_bytes),
            self._save_leaves,
            weigh=_bytes_of,
            budget=IMPORT_BATCH_BYTES * IMPORT_BATCHES_IN_FLIGHT,
        ) as batches:
            async for leaves in batches:
                await self._grow(builder, leaves)
        link = await self._finish(builder)
        return Imported(link.cid, link.file_bytes)

    # --- One file ------------------------------------------------------------------------

    async def _add_large(self, path: Path) -> Link:
        builder = FileBuilder(self._profile)
        batch = self._profile.chunk_bytes * max(1, IMPORT_BATCH_BYTES // self._profile.chunk_bytes)
        descriptor = await self._workers.run(_open_regular, path)

        async def work(offset: int) -> list[Link]:
            return await self._workers.run(self._read_leaves, path, descriptor, offset, batch)

        try:
            async with in_order(
                from_iterable(_offsets(batch)),
                work,
                weigh=lambda _: batch,
                budget=batch * IMPORT_BATCHES_IN_FLIGHT,
            ) as batches:
                async for leaves in batches:
                    await self._grow(builder, leaves)
                    if sum(leaf.file_bytes for leaf in leaves) < batch:
                        break
        finally:
            os.close(descriptor)
        return await self._finish(builder)

    def _read_leaves(self, path: Path, descriptor: int, offset: int, size: int) -> list[Link]:
        """In a worker: the leaves of one batch, read, hashed and saved."""
        chunk_bytes = self._profile.chunk_bytes
        blocks: list[Block] = []
        sizes: list[int] = []
        while len(blocks) * chunk_bytes < size:
            try:
                chunk = _read_at(descriptor, offset + len(blocks) * chunk_bytes, chunk_bytes)
            except OSError as error:
                raise _unreadable(path, error) from error
            if chunk:
                blocks.append(make_leaf(self._profile, chunk))
                sizes.append(len(chunk))
            if len(chunk) < chunk_bytes:
                break
        self._save(blocks)
        if self._profile.raw_leaves:
            self._note(path, offset, blocks)
        return _links(blocks, sizes)

    async def _save_leaves(self, pieces: list[bytes]) -> list[Link]:
        def work() -> list[Link]:
            blocks = [make_leaf(self._profile, piece) for piece in pieces]
            self._save(blocks)
            return _links(blocks, [len(piece) for piece in pieces])

        return await self._workers.run(work)

    async def _grow(self, builder: FileBuilder, leaves: Iterable[Link]) -> None:
        finished: list[Block] = []
        for leaf in leaves:
            finished += builder.add_leaf(leaf.cid, leaf.file_bytes, leaf.dag_bytes)
            self._done += leaf.file_bytes
        if finished:
            await self._workers.run(self._save, finished)
        self._report(Progress("import", self._done, self._total))

    async def _finish(self, builder: FileBuilder) -> Link:
        link, blocks = builder.finish()
        if blocks:
            await self._workers.run(self._save, blocks)
        return link

    # --- Directories ---------------------------------------------------------------------

    async def _add_directory(self, path: Path, hidden: bool) -> Imported:
        tree = await self._workers.run(_scan, path, hidden)
        self._total = sum(source.size for source in tree.files)
        chunk_bytes = self._profile.chunk_bytes
        large = [source for source in tree.files if source.size > chunk_bytes]
        async with in_order(
            from_iterable(_small_batches(one for one in tree.files if one.size <= chunk_bytes)),
            lambda batch: self._workers.run(self._import_small, batch),
            weigh=lambda batch: sum(source.size for source in batch),
            budget=IMPORT_BATCH_BYTES * IMPORT_BATCHES_IN_FLIGHT,
            tasks=IMPORT_BATCHES_IN_FLIGHT,
        ) as batches:
            async for links, grown in batches:
                for source, link in links:
                    source.directory.entries[source.name] = link
                    self._done += link.file_bytes
                large += grown
                self._report(Progress("import", self._done, self._total))
        for source in large:
            source.directory.entries[source.name] = await self._add_large(source.path)
        root = await self._workers.run(self._build_directories, tree)
        return Imported(root.cid, self._done, tuple(_warnings(tree)))

    def _import_small(
        self, batch: list[_Source]
    ) -> tuple[list[tuple[_Source, Link]], list[_Source]]:
        """In a worker: many small files, saved together; and those that have grown beyond one
        chunk since they were seen, which need another way."""
        blocks: list[Block] = []
        leaves: list[tuple[Path, Block]] = []
        links: list[tuple[_Source, Link]] = []
        grown: list[_Source] = []
        for source in batch:
            chunk_bytes = self._profile.chunk_bytes
            descriptor = _open_regular(source.path)
            try:
                chunk = _read_at(descriptor, 0, chunk_bytes + 1)
            except OSError as error:
                raise _unreadable(source.path, error) from error
            finally:
                os.close(descriptor)
            if len(chunk) > chunk_bytes:
                grown.append(source)
                continue
            builder = FileBuilder(self._profile)
            if chunk:
                leaf = make_leaf(self._profile, chunk)
                blocks.append(leaf)
                leaves.append((source.path, leaf))
                blocks += builder.add_leaf(leaf[0], len(chunk), len(leaf[1]))
            link, finished = builder.finish()
            blocks += finished
            links.append((source, link))
        self._save(blocks)
        if self._profile.raw_leaves:
            for path, leaf in leaves:
                self._note(path, 0, [leaf])
        return links, grown

    def _build_directories(self, tree: _Tree) -> Link:
        """In a worker: symbolic links and directories, the deepest first."""
        blocks: list[Block] = []
        waiting_bytes = 0

        def keep(new: Sequence[Block]) -> None:
            nonlocal waiting_bytes
            blocks.extend(new)
            waiting_bytes += sum(len(block) for _, block in new)
            if waiting_bytes > IMPORT_BATCH_BYTES or len(blocks) > COMMIT_BATCH_BLOCKS_MAX:
                self._save(blocks)
                blocks.clear()
                waiting_bytes = 0

        for directory, name, target in tree.symlinks:
            directory.entries[name], new = build_symlink(target, self._profile)
            keep(new)
        root: Link | None = None
        for directory in sorted(tree.directories, key=lambda one: -one.depth):
            entries = ((name, link.cid, link.dag_bytes) for name, link in directory.entries.items())
            try:
                root, new = build_directory(entries, self._profile)
            except InvalidPath as error:
                raise InvalidPath(f"{directory.path}: {error}") from error
            keep(new)
            directory.entries.clear()
            if directory.parent is not None:
                directory.parent.entries[directory.name] = root
        self._save(blocks)
        assert root is not None
        return root


def _examine(path: Path) -> os.stat_result:
    """In a worker: what is at the path, and that it is no part of a node's home."""
    try:
        status = path.stat()
    except OSError as error:
        raise _unreadable(path, error) from error
    if (home := home_around(path)) is not None:
        raise CallerError(f"{path} is of a dstore node's home, {home}: its keys stay private")
    return status


def _open_regular(path: Path) -> int:
    """A descriptor of the regular file.  A pipe that has come in its place is not waited for."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise _unreadable(path, error) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise CallerError(f"{path} is no longer a file")
    return descriptor


def _read_at(descriptor: int, offset: int, size: int) -> bytes:
    """Up to `size` bytes at `offset`; fewer only at the end of the file."""
    data = os.pread(descriptor, size, offset)
    while data and len(data) < size:
        more = os.pread(descriptor, size - len(data), offset + len(data))
        if not more:
            break
        data += more
    return data


def _links(blocks: Sequence[Block], sizes: Sequence[int]) -> list[Link]:
    return [Link(cid, size, len(block)) for (cid, block), size in zip(blocks, sizes, strict=True)]


def _offsets(step: int) -> Iterator[int]:
    offset = 0
    while True:
        yield offset
        offset += step


def _bytes_of(pieces: Sequence[bytes]) -> int:
    return sum(len(piece) for piece in pieces)


async def _leaf_batches(
    chunks: AsyncIterator[bytes], leaf_bytes: int
) -> AsyncIterator[list[bytes]]:
    """The same bytes in pieces of `leaf_bytes`, the last one shorter, about IMPORT_BATCH_BYTES of
    them at once; nothing for no bytes."""
    batch: list[bytes] = []
    parts: list[bytes] = []
    have = 0
    async with closing(chunks):
        async for chunk in chunks:
            view = memoryview(chunk)
            while view:
                part = view[: leaf_bytes - have]
                parts.append(bytes(part))
                have += len(part)
                view = view[len(part) :]
                if have < leaf_bytes:
                    break
                batch.append(b"".join(parts))
                parts, have = [], 0
                if (len(batch) + 1) * leaf_bytes > IMPORT_BATCH_BYTES:
                    yield batch
                    batch = []
    if parts:
        batch.append(b"".join(parts))
    if batch:
        yield batch


def _small_batches(sources: Iterable[_Source]) -> Iterator[list[_Source]]:
    batch: list[_Source] = []
    size = 0
    for source in sources:
        if batch and (
            size + source.size > IMPORT_BATCH_BYTES or len(batch) >= IMPORT_BATCH_FILES_MAX
        ):
            yield batch
            batch, size = [], 0
        batch.append(source)
        size += source.size
    if batch:
        yield batch


def _scan(path: Path, hidden: bool) -> _Tree:
    """In a worker: everything below the directory `path`, links not followed."""
    tree = _Tree()
    pending = [_Directory(path, 0, None, "")]
    while pending:
        directory = pending.pop()
        tree.directories.append(directory)
        try:
            with os.scandir(directory.path) as entries:
                for entry in sorted(entries, key=lambda entry: entry.name):
                    _sort_in(tree, directory, entry, hidden, pending)
        except OSError as error:
            raise _unreadable(Path(error.filename or directory.path), error) from error
    return tree


def _sort_in(
    tree: _Tree,
    directory: _Directory,
    entry: os.DirEntry[str],
    hidden: bool,
    pending: list[_Directory],
) -> None:
    path = Path(entry.path)
    if entry.name.startswith(".") and not hidden:
        tree.hidden += 1
    elif entry.is_symlink():
        tree.symlinks.append((directory, entry.name, str(path.readlink())))
    elif entry.is_dir(follow_symlinks=False):
        if is_home(path):
            tree.homes += 1
            tree.home = tree.home or path
            return
        pending.append(_Directory(path, directory.depth + 1, directory, entry.name))
    elif entry.is_file(follow_symlinks=False):
        size = entry.stat(follow_symlinks=False).st_size
        tree.files.append(_Source(path, size, directory, entry.name))
    else:
        tree.special += 1


def _warnings(tree: _Tree) -> Iterator[str]:
    if tree.hidden:
        yield f"{tree.hidden} hidden entries were left out (--hidden adds them)"
    if tree.special:
        yield f"{tree.special} sockets, pipes or devices were left out"
    if tree.homes:
        yield f"{tree.homes} homes of nodes, with their keys, were left out: first {tree.home}"


def _unreadable(path: Path, error: OSError) -> DstoreError:
    if isinstance(error, FileNotFoundError):
        return NotFoundError(f"{path} does not exist")
    return CallerError(f"{path} cannot be read: {error.strerror or error}")
