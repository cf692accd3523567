"""Measures that all systems share: rates, first bytes, memory and processor time."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.local_add import MIB
from benchmarks.peers.peer import Load, Row
from benchmarks.protected import Role, get_path

START_SECONDS = 60
_STOP_SECONDS = 20
_POLL_SECONDS = 0.05


def family(pid: int) -> list[int]:
    """A process and all that descend from it."""
    found = [pid]
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in task.read_text().split():
            found += family(int(child))
    return found


class Trees:
    """The processes that play one part, with all they started."""

    def __init__(self, *pids: int) -> None:
        self.pids = pids
        self._before = self._seconds()

    def _roles(self) -> list[list[Role]]:
        return [[Role(one) for one in family(pid)] for pid in self.pids]

    def _seconds(self) -> float:
        return sum(role.cpu_seconds() for tree in self._roles() for role in tree)

    def cpu_seconds(self) -> float:
        """Processor seconds since this object was made."""
        return self._seconds() - self._before

    def peak_mib(self) -> int:
        """The largest tree's memory: the sum of its processes' peaks."""
        return max(sum(role.peak_mib() for role in tree) for tree in self._roles())


def run_timed(command: Sequence[str | Path], env: dict[str, str], log: Path) -> Row:
    """Seconds, processor seconds and peak memory of a command that ends.

    Raises:
        SystemExit: it failed; the end of what it said.
    """
    with log.open("wb") as output:
        begun = time.perf_counter()
        process = subprocess.Popen(command, env={**os.environ, **env}, stdout=output, stderr=output)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - begun
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{command[0]}: {log.read_text(errors='replace')[-500:]}")
    return {
        "seconds": seconds,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "peak_mib": usage.ru_maxrss // 1024,
    }


def stop(process: subprocess.Popen[Any]) -> None:
    """End a process that this program started: asked first, then killed."""
    if process.poll() is None:
        process.send_signal(signal.SIGCONT)
        process.terminate()
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def running(
    command: Sequence[str | Path], log: Path, env: dict[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """A process within the block, its output in a file."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            env={**os.environ, **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
        try:
            yield process
        finally:
            stop(process)


class Servant:
    """A process that answers each JSON line with a JSON line."""

    def __init__(self, process: subprocess.Popen[str], log: Path) -> None:
        self._process = process
        self._log = log
        self.pid = process.pid
        self.address = self._answer()["address"]

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"ended early: {self._log.read_text(errors='replace')[-500:]}")
        found: dict[str, Any] = json.loads(line)
        return found

    def ask(self, what: str, **words: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"do": what, **words}) + "\n")
        self._process.stdin.flush()
        answer = self._answer()
        if "error" in answer:
            raise SystemExit(f"{what}: {answer['error']}")
        return answer


@contextmanager
def servant(
    command: Sequence[str | Path], log: Path, env: dict[str, str] | None = None
) -> Iterator[Servant]:
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            env={**os.environ, **(env or {})},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=output,
            text=True,
        )
        try:
            yield Servant(process, log)
        finally:
            stop(process)


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens at."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


def wait_until(what: str, ready: Any, seconds: float = START_SECONDS) -> None:
    """Look until `ready()` is true; OSError means not yet.

    Raises:
        SystemExit: it did not come true in time.
    """
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if ready():
                return
        except OSError:
            pass
        time.sleep(_POLL_SECONDS)
    raise SystemExit(f"not within {seconds} s: {what}")


def whole(url: str, path: str, load: Load, gateway: Trees, holders: Trees) -> Row:
    """One cold read of the large file over HTTP, checked."""
    first, seconds = get_path(url, path, 0, load.size, load.digest())
    return {
        "fetch_mb_per_s": load.size / 1e6 / seconds,
        "first_byte_ms": 1000 * first,
        "fetch_cpu_s_per_gib": (gateway.cpu_seconds() + holders.cpu_seconds()) / load.gib,
        "gateway_peak_mib": gateway.peak_mib(),
        "holder_peak_mib": holders.peak_mib(),
    }


def local_add(load: Load, took: Row) -> Row:
    """The figures of a local add of the large file that took as `run_timed` tells."""
    return {
        "local_add_mb_per_s": load.size / 1e6 / took["seconds"],
        "local_add_cpu_s_per_gib": took["cpu_seconds"] / load.gib,
        "local_add_peak_mib": took["peak_mib"],
    }


def beside_sick(mode: str, found: Row) -> Row:
    """Of a read as `whole` tells it, what is told of one beside sick holders."""
    return {f"{mode}_{name}": found[name] for name in ("fetch_mb_per_s", "first_byte_ms")}


def middle(url: str, path: str, load: Load) -> Row:
    """One cold read of 1 MiB in the middle over HTTP, checked."""
    first, seconds = get_path(url, path, load.middle, MIB, load.digest(load.middle, MIB))
    return {"range_first_byte_ms": 1000 * first, "range_ms": 1000 * seconds}
