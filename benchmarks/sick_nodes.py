"""Adds while storage nodes are sick: stopped or killed before the add, and in its middle.

    python -m benchmarks.sick_nodes [--mib 256] [--runs 5] [--json]

Eight node processes with a failure domain each; one adds a file of random bytes with code
3+2.  Two of the other nodes are stopped (SIGSTOP) or killed, either before the add or as soon
as bytes travel.  The figure is the longest time in which the add made no progress, which must
stay below five seconds, and the whole time beside that of a healthy add.  Medians.
"""

from __future__ import annotations

import argparse
import http.client
import json
import statistics
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from benchmarks.local_add import make_file
from benchmarks.protected import CODE, devnet, dstore

NODES = 8
_SICK = 2
_WORDS = {"stopped": "pause", "killed": "kill"}


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


def one_run(work: Path, mib: int, how: str, when: str) -> dict[str, Any]:
    """One add in a fresh network."""
    path = work / "file"
    make_file(path, mib)
    with devnet(work / "net", NODES) as nodes:
        home = Path(nodes[0]["home"])
        warm = work / "warm"
        make_file(warm, 1)
        add(home, warm, lambda: None)  # the streams are there

        def strike() -> None:
            for node in nodes[2 : 2 + _SICK]:
                dstore("devnet", _WORDS[how], node["name"], "--dir", str(work / "net"))

        if when == "before":
            strike()
        try:
            return add(home, path, strike if when == "during" else lambda: None)
        finally:
            if how == "stopped":
                for node in nodes[2 : 2 + _SICK]:
                    dstore("devnet", "resume", node["name"], "--dir", str(work / "net"))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--mib", type=int, default=256)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    cases = [
        ("healthy", "never"),
        *((how, when) for how in _WORDS for when in ("before", "during")),
    ]
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
