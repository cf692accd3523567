"""Adds while storage nodes are sick: stopped, killed, full or lying, before the add or from its
middle on.

    python -m benchmarks.sick_nodes [--mib 256] [--runs 5] [--kinds full forging] [--json]

Eight node processes with a failure domain each; one adds a file of random bytes with code
3+2.  Two of the other nodes are stopped (SIGSTOP) or killed, or are `benchmarks/sick_holder.py`
(full, full and unaware of it, forging or keeping leases, busy for ever), either before the add
or as soon as bytes travel; "small" ones are healthy, with a capacity that no slot fits in.  The
figure is the longest time in which the add made no progress, which must stay below five seconds,
and the whole time beside that of a healthy add; `acted` tells how many of the sick the add met.
Medians.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from benchmarks.local_add import make_file
from benchmarks.protected import CODE, devnet, dstore
from benchmarks.sick_holder import ACTED, KINDS, MARK

NODES = 8
_SICK = 2
_WORDS = {"stopped": "pause", "killed": "kill"}
_PROCESSES = ("small", *KINDS)
_SMALL_CAPACITY = "8 MiB"
_CONNECTED_SECONDS = 60

Nodes = list[dict[str, Any]]


def add(home: Path, path: Path, on_upload: Any) -> dict[str, Any]:
    """Add over the API, progress watched; `on_upload` is called when the upload begins."""
    told = json.loads((home / "api.json").read_text())
    headers = {"Authorization": f"Bearer {told['token']}", "Content-Type": "application/json"}
    request = json.dumps({"path": str(path), "code": CODE})
    with closing(http.client.HTTPConnection(urlsplit(told["url"]).netloc, timeout=120)) as line:
        line.request("POST", "/v1/add", request, headers)
        with line.getresponse() as answer:
            return watched(answer, on_upload)


def watched(answer: http.client.HTTPResponse, on_upload: Any) -> dict[str, Any]:
    """What the lines of the answer tell, and the longest time without news among them."""
    begun = last = time.perf_counter()
    longest, before, uploading = 0.0, "", False
    for line in answer:
        now = time.perf_counter()
        form = json.loads(line)
        if str(form) != before:
            longest, last, before = max(longest, now - last), now, str(form)
        if form.get("progress", {}).get("stage") == "upload" and not uploading:
            uploading = True
            on_upload()
        if "result" in form or "error" in form:
            protected = form.get("result", {}).get("protected", False)
            return {
                "seconds": now - begun,
                "standstill_seconds": longest,
                "protected": float(protected),
                "answered": float("result" in form),
            }
    raise SystemExit("the add ended without an answer")


def one_run(work: Path, mib: int, how: str, when: str, *, count: int = NODES) -> dict[str, Any]:
    """One add in a fresh network of `count` nodes."""
    path = work / "file"
    make_file(path, mib)
    with devnet(work / "net", count) as nodes:
        home = Path(nodes[0]["home"])
        victims = nodes[2 : 2 + _SICK]
        with sickness(work / "net", home, victims, how) as strike:
            warm = work / "warm"
            make_file(warm, 1)
            add(home, warm, lambda: None)  # the streams are there
            if when == "before":
                strike()
            result = add(home, path, strike if when == "during" else lambda: None)
            acted = sum((Path(node["home"]) / ACTED).exists() for node in victims)
            return result | ({"acted": float(acted)} if how in KINDS else {})


@contextmanager
def sickness(net: Path, adder: Path, victims: Nodes, how: str) -> Iterator[Callable[[], None]]:
    """Yields what makes the victims sick, and leaves none of them behind stopped or running."""

    def control(word: str) -> None:
        for node in victims:
            dstore("devnet", word, node["name"], "--dir", str(net))

    if how in _WORDS:
        try:
            yield lambda: control(_WORDS[how])
        finally:
            if how == "stopped":
                control("resume")
    elif how in _PROCESSES:
        control("kill")
        with ExitStack() as stack:
            for node in victims:
                stack.enter_context(in_place_of(node, how))
            await_connected(adder, {node["peer_id"] for node in victims})

            def mark() -> None:
                for node in victims:
                    (Path(node["home"]) / MARK).touch()

            yield mark
    else:
        yield lambda: None


@contextmanager
def in_place_of(node: dict[str, Any], how: str) -> Iterator[None]:
    """Another daemon with the home of a node that was killed."""
    small = how == "small"
    sick = ["benchmarks.sick_holder", node["home"], how]
    command = ["dstore", "run", "--home", node["home"], "--json"] if small else sick
    environ = os.environ | ({"DSTORE_STORAGE_CAPACITY": _SMALL_CAPACITY} if small else {})
    process = subprocess.Popen(
        [sys.executable, "-m", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environ,
    )
    assert process.stdout is not None
    try:
        process.stdout.readline()  # ready
        yield
    finally:
        process.kill()
        process.wait(20)
        process.stdout.close()


def await_connected(home: Path, wanted: set[str]) -> None:
    """Until the node of `home` has connections to all of these."""
    deadline = time.monotonic() + _CONNECTED_SECONDS
    while True:
        peers = dstore("peers", "--home", str(home))["peers"]
        if wanted <= {peer["peer_id"] for peer in peers if peer["connected"]}:
            return
        if time.monotonic() > deadline:
            raise SystemExit("the holders did not come back")
        time.sleep(0.1)


def _moments(how: str) -> tuple[str, ...]:
    """When it strikes; a capacity is small from the start."""
    return {"healthy": ("never",), "small": ("before",)}.get(how, ("before", "during"))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--mib", type=int, default=256)
    parser.add_argument("--runs", type=int, default=5)
    known = ("healthy", *_WORDS, *_PROCESSES)
    parser.add_argument("--kinds", nargs="+", choices=known, default=known)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    cases = [(how, when) for how in options.kinds for when in _moments(how)]
    result: dict[str, Any] = {"benchmark": "sick_nodes", "mib": options.mib}
    for how, when in cases:
        rows = []
        for _ in range(options.runs):
            with tempfile.TemporaryDirectory(prefix="dstore-sick-") as directory:
                rows.append(one_run(Path(directory), options.mib, how, when))
        name = how if when == "never" else f"{how}_{when}"
        result[name] = {key: round(statistics.median(r[key] for r in rows), 2) for key in rows[0]}
        result[name]["standstill_seconds_max"] = round(
            max(row["standstill_seconds"] for row in rows), 2
        )
        print(f"{name}: {result[name]}", file=sys.stderr, flush=True)
    if options.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
