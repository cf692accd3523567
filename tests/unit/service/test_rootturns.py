"""Turns on a root: adds one after the other, letting go before them all."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from dstore.core.cid import CID, RAW
from dstore.errors import CallerError
from dstore.service.rootturns import RootTurns

ROOT, OTHER = CID.of(RAW, b"root"), CID.of(RAW, b"other")


async def test_adds_of_a_root_come_one_after_the_other() -> None:
    turns, order = RootTurns(), []

    async def add(name: str, root: CID) -> None:
        async with turns.protecting(root):
            order.append(f"{name} begins")
            await trio.testing.wait_all_tasks_blocked()
            order.append(f"{name} ends")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(add, "first", ROOT)
        await trio.testing.wait_all_tasks_blocked(0)
        nursery.start_soon(add, "second", ROOT)
    assert order == ["first begins", "first ends", "second begins", "second ends"]
    assert len(turns) == 0


async def test_letting_go_ends_who_works_and_who_waits_but_not_who_comes_later() -> None:
    turns, ended, late = RootTurns(), [], []

    async def add(root: CID) -> None:
        with pytest.raises(CallerError, match="let go of"):
            async with turns.protecting(root):
                await trio.sleep_forever()
        ended.append(root)

    async def add_later() -> None:
        async with turns.pinning(ROOT), turns.protecting(ROOT):
            late.append(len(ended))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(add, ROOT)
        nursery.start_soon(add, ROOT)
        nursery.start_soon(add, OTHER)
        await trio.testing.wait_all_tasks_blocked()
        async with turns.letting_go(ROOT):
            assert ended == [ROOT, ROOT]
            nursery.start_soon(add_later)
            await trio.testing.wait_all_tasks_blocked()
            assert late == []
        await trio.testing.wait_all_tasks_blocked()
        assert late == [2]
        async with turns.letting_go(OTHER):
            pass
    assert len(turns) == 0


async def test_an_add_that_is_cancelled_itself_says_nothing_of_it() -> None:
    turns = RootTurns()
    with trio.CancelScope() as scope:
        async with turns.protecting(ROOT):
            scope.cancel()
            await trio.sleep_forever()
    assert scope.cancelled_caught
    assert len(turns) == 0
