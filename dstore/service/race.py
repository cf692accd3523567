"""Several ways to the same answer, started one after another, the first success taken.

A failure starts the next way at once; silence starts it after a while, the earlier ones
going on (a hedged request).  This is where a dead, slow or lying peer stops mattering.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import trio

from dstore.errors import DstoreError, NotFoundError
from dstore.runtime import open_plain_nursery

T = TypeVar("T")


async def first_success(
    ways: Sequence[Callable[[], Awaitable[T]]], *, stagger_seconds: float, at_once: int = 1
) -> T:
    """The result of the first of `ways` to succeed; the others are cancelled.

    The first `at_once` of them start together.  Raises the last failure when all fail,
    NotFoundError when there are none.
    """
    if len(ways) == 1:
        return await ways[0]()
    result: list[T] = []
    failures: list[DstoreError] = []

    async def run(way: Callable[[], Awaitable[T]], ended: trio.Event) -> None:
        try:
            value = await way()
        except DstoreError as error:
            failures.append(error)
        else:
            if not result:
                result.append(value)
            nursery.cancel_scope.cancel()
        ended.set()

    async with open_plain_nursery() as nursery:
        for index, way in enumerate(ways):
            ended = trio.Event()
            nursery.start_soon(run, way, ended)
            if index >= at_once - 1:
                with trio.move_on_after(stagger_seconds):
                    await ended.wait()
    if result:
        # Their tracebacks hold the frames that hold them, and the result: megabytes that would
        # wait for the collector.
        failures.clear()
        return result.pop()
    if failures:
        raise failures[-1]
    raise NotFoundError("there is nobody to ask")


async def gather_enough(
    ways: Sequence[Callable[[], Awaitable[T]]],
    needed: int,
    *,
    stagger_seconds: float,
    within_seconds: float = math.inf,
) -> list[T]:
    """The results of the first `needed` of `ways` to succeed, in the order they came.

    `needed` ways start at once; each failure, and each `stagger_seconds` without news,
    starts one more.  Returns fewer than `needed` results only when all ways have ended, or
    `within_seconds` have passed.
    """
    results: list[T] = []
    if needed <= 0:
        return results
    news = trio.Event()
    running: set[int] = set()

    async def run(index: int) -> None:
        nonlocal news
        try:
            value = await ways[index]()
        except DstoreError:
            running.discard(index)
        else:
            running.discard(index)
            if len(results) < needed:
                results.append(value)
        news.set()

    async with open_plain_nursery() as nursery:
        started = 0
        late: set[int] = set()
        with trio.move_on_after(within_seconds):
            while len(results) < needed:
                lively = len(running - late)
                while started < len(ways) and len(results) + lively < needed:
                    running.add(started)
                    nursery.start_soon(run, started)
                    started += 1
                    lively += 1
                if not running:
                    break
                with trio.move_on_after(stagger_seconds) as waiting:
                    await news.wait()
                news = trio.Event()
                if waiting.cancelled_caught and started < len(ways):
                    late |= running
        nursery.cancel_scope.cancel()
    return results
