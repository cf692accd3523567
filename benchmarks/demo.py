"""The main job, shown: `make demo`.

Eight nodes, each a process of its own, protect a real file and a directory of small files
with a 4+2 code; two holders and the adder are killed with SIGKILL; a node that never saw the
data serves it back, byte for byte, through its HTTP gateway.  Everything goes through the
commands a user types.  Exits with 1 on any mismatch.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

MB = 1_000_000
NODES = 8
CODE = "4+2"
FILE_BYTES_MIN = 64 * MB
DSTORE = Path(sys.executable).with_name("dstore")


class Mismatch(Exception):
    """The demonstration did not show what it should."""


def say(text: str) -> None:
    print(text, flush=True)


@contextmanager
def timed(what: str, size: int = 0) -> Iterator[None]:
    """Print how long the block took, and MB/s where it moved `size` bytes."""
    start = time.perf_counter()
    yield
    seconds = time.perf_counter() - start
    speed = f", {size / MB / seconds:.0f} MB/s" if size else ""
    say(f"    {what}: {seconds:.2f} s{speed}")


def dstore(*words: str) -> str:
    """Run a dstore command; its standard output."""
    done = subprocess.run([DSTORE, *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise Mismatch(f"dstore {' '.join(words)} exited {done.returncode}: {done.stderr.strip()}")
    return done.stdout


def answer(*words: str) -> Any:
    """Run a dstore command with --json; its answer."""
    return json.loads(dstore(*words, "--json"))


def library_files() -> Iterator[Path]:
    """Real files that every machine with Python has: the standard library and what is
    installed beside dstore."""
    for name in ("stdlib", "purelib"):
        for folder, below, names in os.walk(sysconfig.get_path(name)):
            below[:] = sorted(set(below) - {"__pycache__", "site-packages"})
            for file in sorted(names):
                path = Path(folder, file)
                if path.is_file() and not path.is_symlink():
                    yield path


def make_file(path: Path) -> None:
    """A tar of library files, at least FILE_BYTES_MIN long."""
    with tarfile.open(path, "w") as tar:
        while tar.offset < FILE_BYTES_MIN:
            before = tar.offset
            for source in library_files():
                tar.add(source, f"library/{tar.offset}/{source.name}", recursive=False)
                if tar.offset >= FILE_BYTES_MIN:
                    break
            if tar.offset == before:
                raise Mismatch("no library files were found to make a file of")


def make_directory(path: Path, count: int) -> int:
    """Copies of `count` small library files in a tree; their bytes."""
    size = made = 0
    for source in library_files():
        if made == count:
            break
        if source.suffix == ".py" and source.stat().st_size < 200_000:
            target = path / f"part-{made % 40:02d}" / f"{made:05d}-{source.name}"
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
            size += target.stat().st_size
            made += 1
    return size


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fetch(url: str, headers: dict[str, str] | None = None) -> tuple[int, str, int]:
    """GET: bytes, their sha256 and the status."""
    request = urllib.request.Request(url, headers=headers or {})
    digest, size = hashlib.sha256(), 0
    with urllib.request.urlopen(request, timeout=60) as response:
        while chunk := response.read(1 << 20):
            digest.update(chunk)
            size += len(chunk)
        return size, digest.hexdigest(), response.status


def check(what: str, got: object, expected: object) -> None:
    if got != expected:
        raise Mismatch(f"{what}: expected {expected}, got {got}")
    say(f"    {what}: identical")


def protect(home: str, path: Path, size: int) -> dict[str, Any]:
    """Add `path` through the node at `home` and say what came of it."""
    with timed(f"dstore add --code {CODE} {path.name}", size):
        added: dict[str, Any] = answer("add", "--home", home, "--code", CODE, str(path))
    say(f"    {added['cid']}")
    say(f"    {added['guarantee']['text']}")
    if not added["protected"] or added["guarantee"]["peers"] < 2:
        raise Mismatch(f"{path.name} is not protected against the loss of two peers: {added}")
    return added


def holders_of(home: str, cid: str) -> dict[str, list[int]]:
    """Peer id → slots, as `dstore status` has it."""
    held: dict[str, list[int]] = {}
    for segment in answer("status", "--home", home, cid)["segments"]:
        for slot in segment["slots"]:
            for peer in slot["holders"]:
                held.setdefault(peer, []).append(slot["slot"])
    return held


def check_directory(gateway: str, cid: str, directory: Path, sample: int) -> None:
    """Read files of the directory through the gateway and compare them."""
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    chosen = files[:: max(1, len(files) // sample)]
    with timed(f"{len(chosen)} of {len(files)} small files by path"):
        for path in chosen:
            name = quote(str(path.relative_to(directory)))
            _, digest, _ = fetch(f"{gateway}/ipfs/{cid}/{name}")
            if digest != sha256_of(path):
                raise Mismatch(f"{name} came back different")
    say(f"    {len(chosen)} files: identical")


def run(work: Path, *, short: bool) -> None:
    file, directory = work / "library.tar", work / "sources"
    say("1. Something real to keep")
    make_file(file)
    tree_bytes = make_directory(directory, 1000 if short else 3000)
    file_bytes, file_digest = file.stat().st_size, sha256_of(file)
    count = sum(path.is_file() for path in directory.rglob("*"))
    say(f"    {file.name}: {file_bytes / MB:.1f} MB, sha256 {file_digest[:16]}…")
    say(f"    {directory.name}/: {count} files, {tree_bytes / MB:.1f} MB")

    say(f"2. {NODES} nodes, each a process: TCP, Noise, yamux, a Kademlia DHT")
    devnet = str(work / "devnet")
    with timed(f"dstore devnet up -n {NODES}"):
        dstore("devnet", "up", "-n", str(NODES), "--dir", devnet)
    nodes = {node["peer_id"]: node for node in answer("devnet", "status", "--dir", devnet)["nodes"]}
    adder = next(iter(nodes.values()))

    say(f"3. {adder['name']} adds both")
    added = protect(adder["home"], file, file_bytes)
    tree = protect(adder["home"], directory, tree_bytes)
    held = holders_of(adder["home"], added["cid"])
    for peer, slots in held.items():
        say(f"    slot {', '.join(map(str, slots))} of {file.name} is on {nodes[peer]['name']}")

    victims = [nodes[peer] for peer in list(held)[:2]] + [adder]
    say("4. SIGKILL: two holders, and the node that added")
    for victim in victims:
        dstore("devnet", "kill", victim["name"], "--dir", devnet)
        say(f"    dstore devnet kill {victim['name']}")

    gone = {victim["peer_id"] for victim in victims}
    reader = next(node for peer, node in nodes.items() if peer not in gone and peer not in held)
    gateway = reader["gateway"].rstrip("/")
    say(f"5. {reader['name']}, which never saw the file, serves it: {gateway}/ipfs/{added['cid']}")
    with timed("GET the whole file", file_bytes):
        size, digest, _ = fetch(f"{gateway}/ipfs/{added['cid']}")
    check("length", size, file_bytes)
    check("sha256", digest, file_digest)
    start = file_bytes // 2
    with timed("GET 1 MiB in the middle"):
        span = f"bytes={start}-{start + (1 << 20) - 1}"
        _, digest, status = fetch(f"{gateway}/ipfs/{added['cid']}", {"Range": span})
    with file.open("rb") as opened:
        opened.seek(start)
        check("range", (status, digest), (206, hashlib.sha256(opened.read(1 << 20)).hexdigest()))
    check_directory(gateway, tree["cid"], directory, 100 if short else 500)

    say("6. Stop")
    with timed("dstore devnet down"):
        dstore("devnet", "down", "--dir", devnet)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--short", action="store_true", help="fewer small files, for CI")
    options = parser.parse_args()
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="dstore-demo-") as path:
        work = Path(path)
        try:
            run(work, short=options.short)
        except (Mismatch, OSError) as error:
            say(f"FAILED: {error}")
            return 1
        finally:
            if (work / "devnet").exists():
                subprocess.run(
                    [DSTORE, "devnet", "down", "--dir", work / "devnet"],
                    capture_output=True,
                    check=False,
                )
    say(f"Done in {time.perf_counter() - start:.1f} s: three of eight nodes killed, nothing lost.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
