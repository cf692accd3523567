"""An iroh node that does what it is told by JSON lines; run in iroh's own environment.

    python node.py DIRECTORY

Says its address first.  No relay and no discovery answers: there is loopback alone.
"""

import asyncio
import hashlib
import json
import sys
import time
from pathlib import Path
from typing import Any

import iroh  # type: ignore[import-not-found]


class Quiet:
    """Takes the events of an add or a download, and keeps what it was all about."""

    async def progress(self, event: Any) -> None:
        kind = event.type()
        if kind in (iroh.AddProgressType.ABORT, iroh.DownloadProgressType.ABORT):
            raise RuntimeError(event.as_abort().error)
        if kind == iroh.AddProgressType.ALL_DONE:
            self.hash = event.as_all_done().hash


class Node:
    def __init__(self, inner: Any, scratch: Path) -> None:
        self._blobs = inner.blobs()
        self._scratch = scratch

    async def add(self, path: str) -> dict[str, Any]:
        done, begun = Quiet(), time.perf_counter()
        no_name, no_wrap = iroh.SetTagOption.auto(), iroh.WrapOption.no_wrap()
        await self._blobs.add_from_path(path, False, no_name, no_wrap, done)
        return {"id": str(done.hash), "seconds": time.perf_counter() - begun}

    async def add_each(self, paths: list[str]) -> dict[str, Any]:
        bodies = list(map(Path.read_bytes, map(Path, paths)))
        begun = time.perf_counter()
        ids = [str((await self._blobs.add_bytes(body)).hash) for body in bodies]
        return {"ids": ids, "seconds": time.perf_counter() - begun}

    async def add_tree(self, path: str) -> dict[str, Any]:
        """A directory becomes a collection: a sequence of hashes."""
        done, begun = Quiet(), time.perf_counter()
        wrap = iroh.WrapOption.wrap(None)
        await self._blobs.add_from_path(path, False, iroh.SetTagOption.auto(), wrap, done)
        return {"id": str(done.hash), "seconds": time.perf_counter() - begun}

    async def _download(self, name: str, address: list[Any], form: Any) -> Any:
        found = iroh.Hash.from_string(name)
        key = iroh.PublicKey.from_string(address[0])
        source = iroh.NodeAddr(key, None, address[1])
        options = iroh.BlobDownloadOptions(form, [source], iroh.SetTagOption.auto())
        await self._blobs.download(found, options, Quiet())
        return found

    async def fetch(self, name: str, address: list[Any]) -> dict[str, Any]:
        """Into the own store, where it is verified; written out for the digest afterwards."""
        begun = time.perf_counter()
        found = await self._download(name, address, iroh.BlobFormat.RAW)
        seconds = time.perf_counter() - begun
        target = self._scratch / "fetched"
        await self._blobs.write_to_path(found, str(target))
        with target.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        target.unlink()
        return {"seconds": seconds, "sha256": digest}

    async def fetch_each(self, ids: list[str], address: list[Any]) -> dict[str, Any]:
        begun, got = time.perf_counter(), 0
        for name in ids:
            found = await self._download(name, address, iroh.BlobFormat.RAW)
            got += len(await self._blobs.read_to_bytes(found))
        return {"seconds": time.perf_counter() - begun, "bytes": got}

    async def fetch_tree(self, name: str, address: list[Any]) -> dict[str, Any]:
        begun, got = time.perf_counter(), 0
        found = await self._download(name, address, iroh.BlobFormat.HASH_SEQ)
        for one in (await self._blobs.get_collection(found)).links():
            got += len(await self._blobs.read_to_bytes(one))
        return {"seconds": time.perf_counter() - begun, "bytes": got}


async def main(directory: Path) -> None:
    """`directory` is there and empty."""
    iroh.iroh_ffi.uniffi_set_event_loop(asyncio.get_running_loop())
    options = iroh.NodeOptions(
        ipv4_addr="127.0.0.1:0", node_discovery=iroh.NodeDiscoveryConfig.NONE
    )
    inner = await iroh.Iroh.persistent_with_options(str(directory / "store"), options)
    node = Node(inner, directory)
    told = await inner.net().node_addr()
    local = [one for one in told.direct_addresses() if one.startswith("127.0.0.1:")]
    print(json.dumps({"address": [str(await inner.net().node_id()), local]}), flush=True)
    while line := await asyncio.to_thread(sys.stdin.readline):
        words = json.loads(line)
        answer = await getattr(node, words.pop("do"))(**words)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    home = Path(sys.argv[1])
    home.mkdir(parents=True)
    asyncio.run(main(home))
