"""Connected peers are asked for their labels, now and then, and what they say is handed on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import cast

import trio
from trio.testing import MockClock

from dstore.core.peerid import PeerId
from dstore.limits import LABELS_AGAIN_SECONDS, LABELS_LOOK_SECONDS, LABELS_RETRY_SECONDS
from dstore.network.streams import Network
from dstore.runtime import InlineWorkers, Runtime
from dstore.service.candidates import CandidateFinder
from dstore.service.peerlabels import label_workers
from dstore.service.stores import Stores
from dstore.storage.catalog import open_catalog
from dstore.storage.memory import MemoryStore
from dstore.testing.deterministic import peer_number

TALKS, SILENT, LATER = (peer_number(number) for number in range(3))


class Bench:
    """Connections, and the answers to Hellos; every asking is noted with its instant."""

    def __init__(self) -> None:
        self.peers = [TALKS, SILENT]
        self.announces = {TALKS: ("label:a", "rack:7"), LATER: ()}
        self.asked: list[tuple[float, PeerId]] = []
        self.claimed: list[tuple[PeerId, list[str]]] = []
        self.on_hello: Callable[[PeerId, Sequence[str]], None] = lambda *_: None

    def connected(self) -> list[PeerId]:
        return self.peers

    async def introduce(self, peers: Iterable[PeerId]) -> None:
        for peer in peers:
            self.asked.append((trio.current_time(), peer))
            if peer in self.announces:
                self.on_hello(peer, self.announces[peer])

    def claims(self, peer: PeerId, labels: Sequence[str]) -> None:
        self.claimed.append((peer, list(labels)))

    def times(self, peer: PeerId) -> list[int]:
        return [round(time) for time, asked in self.asked if asked == peer]


async def test_who_is_connected_is_asked_and_asked_again(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    bench = Bench()
    catalog = open_catalog(tmp_path / "catalog.sqlite3")
    catalog.peer_terms(LATER, "client", 0, ["label:b"], 1.0)
    catalog.peer_terms(TALKS, "client", 0, ["label:c", "label:d"], 2.0)
    (worker,) = await label_workers(
        cast("Network", bench),
        cast("CandidateFinder", bench),
        Stores(MemoryStore(), catalog),
        Runtime(workers=InlineWorkers()),
        bench.claims,
    )
    # What they said before this node started, the latest last.
    assert bench.claimed == [(LATER, ["b"]), (TALKS, ["c", "d"])]
    bench.claimed.clear()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(worker.run)
        await trio.sleep(LABELS_LOOK_SECONDS / 2)
        assert bench.claimed == [(TALKS, ["a"])]
        bench.peers.append(LATER)
        await trio.sleep(LABELS_LOOK_SECONDS)
        assert bench.claimed[1:] == [(LATER, [])]
        await trio.sleep(LABELS_AGAIN_SECONDS)
        first, second = bench.times(TALKS)
        assert second - first - LABELS_AGAIN_SECONDS in range(LABELS_LOOK_SECONDS + 1)
        silent = bench.times(SILENT)
        assert LABELS_RETRY_SECONDS <= silent[1] - silent[0] <= LABELS_RETRY_SECONDS + 2
        assert len(silent) >= LABELS_AGAIN_SECONDS // (LABELS_RETRY_SECONDS + LABELS_LOOK_SECONDS)
        # Who comes back is asked at once: it may be called otherwise by now.
        bench.peers = [SILENT]
        await trio.sleep(LABELS_LOOK_SECONDS)
        bench.peers = [SILENT, TALKS]
        bench.asked.clear()
        await trio.sleep(LABELS_LOOK_SECONDS)
        assert len(bench.times(TALKS)) == 1
        nursery.cancel_scope.cancel()
    assert worker.failures == 0
    catalog.close()
