"""Provider records across restarts: kept, never prolonged, and no clock ends them in masses."""

from __future__ import annotations

import hashlib
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from dstore.limits import PROVIDER_DOWNTIME_SECONDS_MAX, PROVIDER_SAVE_SECONDS, PROVIDER_SECONDS
from dstore.runtime import InlineWorkers, Runtime
from dstore.service.providers import ProviderKeeper, open_provider_keeper
from dstore.storage.providers import ProviderFile, SavedProvider
from dstore.testing.deterministic import peer_number
from dstore.testing.routing_cluster import routing_cluster

PROJECT = Path(__file__).resolve().parents[3]
HOUR = 3600.0
DAY_ZERO = 1_800_000_000.0


def key_of(number: int) -> bytes:
    return b"\x12\x20" + hashlib.sha256(b"key %d" % number).digest()


def record(number: int, seconds: float = PROVIDER_SECONDS) -> SavedProvider:
    return SavedProvider(key_of(number), peer_number(number), ("/ip4/1.2.3.4/tcp/5",), seconds)


class SetClock:
    """A time of day that is set by hand."""

    def __init__(self) -> None:
        self.time = DAY_ZERO

    def now(self) -> float:
        return self.time


@pytest.mark.parametrize(
    ("jump", "ages"),
    [
        (10.0, 10.0),
        (49 * HOUR, PROVIDER_DOWNTIME_SECONDS_MAX),
        (1e9, PROVIDER_DOWNTIME_SECONDS_MAX),
        (-49 * HOUR, 0.0),
    ],
)
def test_a_restart_ages_records_by_the_time_of_day_within_reason(
    tmp_path: Path, jump: float, ages: float
) -> None:
    path = tmp_path / "providers.sqlite3"
    file = ProviderFile(path, day=DAY_ZERO, now=500.0)
    file.save([record(1), record(2, 60.0)], day=DAY_ZERO, now=500.0)
    file.close()
    again = ProviderFile(path, day=DAY_ZERO + jump, now=7.0)
    loaded = {saved.key: saved.seconds_left for saved in again.load(7.0)}
    assert loaded[key_of(1)] == pytest.approx(PROVIDER_SECONDS - ages)
    assert (key_of(2) in loaded) == (ages < 60)
    again.close()


def test_restarting_over_and_over_prolongs_nothing(tmp_path: Path) -> None:
    path = tmp_path / "providers.sqlite3"
    file = ProviderFile(path, day=DAY_ZERO, now=0.0)
    file.save([record(1)], day=DAY_ZERO, now=0.0)
    left = float(PROVIDER_SECONDS)
    for hour in range(1, 60):
        file.close()
        file = ProviderFile(path, day=DAY_ZERO + hour * HOUR, now=hour * 1e6)
        loaded = file.load(hour * 1e6)
        left -= HOUR
        assert [saved.seconds_left for saved in loaded] == (
            [pytest.approx(left)] if left > 0 else []
        )
        file.save(loaded, day=DAY_ZERO + hour * HOUR, now=hour * 1e6)
    file.close()


@pytest.mark.parametrize("content", [b"", b"not a database" * 1000])
def test_a_damaged_file_is_replaced(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "providers.sqlite3"
    path.write_bytes(content)
    file = ProviderFile(path, day=DAY_ZERO, now=0.0)
    assert file.load(0.0) == []
    file.save([record(1)], day=DAY_ZERO, now=0.0)
    assert file.load(0.0) == [record(1)]
    file.close()


KILLED = """
import os, signal, sys
from pathlib import Path
from tests.unit.service.test_providers import DAY_ZERO, record
from dstore.storage.providers import ProviderFile
file = ProviderFile(Path(sys.argv[1]), day=DAY_ZERO, now=0.0)
for start in range(0, 3000, 1000):
    file.save([record(n) for n in range(start, start + 1000)], day=DAY_ZERO, now=0.0)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_kill_nine_loses_nothing_that_was_saved(tmp_path: Path) -> None:
    path = tmp_path / "providers.sqlite3"
    command = [sys.executable, "-c", KILLED, str(path)]
    ended = subprocess.run(command, cwd=PROJECT, check=False)
    assert ended.returncode == -signal.SIGKILL
    file = ProviderFile(path, day=DAY_ZERO + 60, now=9.0)
    loaded = file.load(9.0)
    assert {saved.key for saved in loaded} == {key_of(number) for number in range(3000)}
    assert {saved.seconds_left for saved in loaded} == {PROVIDER_SECONDS - 60}
    file.close()


async def test_what_was_provided_is_there_after_a_crash(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    clock = SetClock()
    runtime = Runtime(workers=InlineWorkers(), clock=clock)
    path = tmp_path / "providers.sqlite3"
    async with routing_cluster(3) as cluster:
        async with trio.open_nursery() as nursery:
            keeper = ProviderKeeper(path, cluster.routings[0], runtime)
            nursery.start_soon(keeper.worker.run)
            assert await cluster.routings[1].provide(key_of(1)) == 2
            await trio.sleep(PROVIDER_SAVE_SECONDS + 1)
            clock.time += 49 * HOUR  # somebody sets the clock while the node runs
            assert await cluster.routings[2].provide(key_of(2)) == 2
            await trio.sleep(PROVIDER_SAVE_SECONDS + 1)
            assert cluster.routings[0].records == 2
            nursery.cancel_scope.cancel()  # and nothing is closed or saved
        newcomer = await cluster.start()
        clock.time += 60
        async with open_provider_keeper(path, newcomer, runtime) as again:
            await trio.sleep(1)
            assert again.worker.steps == 1
            entries = {entry.key: entry for entry in newcomer.export_providers()}
            assert set(entries) == {key_of(1), key_of(2)}
            assert entries[key_of(1)].provider == cluster.where(1)
            left = [entries[key_of(number)].seconds_left for number in (1, 2)]
            assert PROVIDER_SECONDS - 200 < left[0] < left[1] < PROVIDER_SECONDS - 60
        keeper.close()
