"""Background work: steps, wake-ups, pauses, and steps that break."""

from __future__ import annotations

import logging

import pytest
import trio
from trio.testing import MockClock

from dstore.errors import StorageFull
from dstore.limits import WORKER_RETRY_SECONDS
from dstore.service.worker import Worker


class Steps:
    """Counts its steps by the time of each, and asks for the next after `pause` seconds."""

    def __init__(self, pause: float = 10) -> None:
        self.times: list[float] = []
        self.pause = pause
        self.error: Exception | None = None

    async def __call__(self) -> float:
        self.times.append(trio.current_time())
        if self.error is not None:
            raise self.error
        return self.pause


async def run_for(worker: Worker, seconds: float) -> None:
    with trio.move_on_after(seconds):
        await worker.run()


async def test_steps_come_when_they_asked_to(autojump_clock: MockClock) -> None:
    step = Steps()
    worker = Worker("test", step)
    await run_for(worker, 25)
    assert step.times == [0, 10, 20]
    assert (worker.steps, worker.failures) == (3, 0)


async def test_a_wake_up_brings_the_next_step_forward(autojump_clock: MockClock) -> None:
    step = Steps(1000)
    worker = Worker("test", step)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run_for, worker, 50)
        await trio.sleep(7)
        worker.wake()
        await trio.sleep(7)
        worker.wake()
    assert step.times == [0, 7, 14]


async def test_a_wake_up_during_a_step_is_not_lost(autojump_clock: MockClock) -> None:
    times: list[float] = []

    async def step() -> float:
        times.append(trio.current_time())
        if len(times) == 1:
            worker.wake()
            await trio.sleep(1)
        return 1000

    worker = Worker("test", step)
    await run_for(worker, 50)
    assert times == [0, 1]


@pytest.mark.parametrize(
    "error", [StorageFull("no room"), KeyError("a bug"), ExceptionGroup("both", [KeyError("bug")])]
)
async def test_a_step_that_breaks_is_counted_and_the_next_one_comes(
    error: Exception, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    step = Steps()
    step.error = error
    worker = Worker("test", step)
    with caplog.at_level(logging.ERROR):
        await run_for(worker, WORKER_RETRY_SECONDS * 1.5)
    assert step.times == [0, WORKER_RETRY_SECONDS]
    assert (worker.steps, worker.failures) == (0, 2)
    assert worker.last_error == repr(error)
    assert "a step of test failed" in caplog.text


async def test_a_paused_worker_does_nothing_until_it_goes_on(autojump_clock: MockClock) -> None:
    step = Steps()
    worker = Worker("test", step, paused=True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run_for, worker, 105)
        await trio.sleep(100)
        assert step.times == []
        worker.paused = False
        worker.wake()
    assert step.times == [100]
