"""Many keys provided at once on simulated nodes: the planning of the real node, step by step."""

from __future__ import annotations

import pytest

from dstore.limits import (
    KAD_BUCKET,
    KAD_REPLICAS_WANTED,
    PROVIDE_RETRY_SECONDS,
)
from dstore.testing.dht_burst import Burst, BurstReport
from dstore.testing.dht_simulation import SimNode, Simulation


class Provided:
    """`keys` keys provided at once by one of `nodes`, a part of whom is dead or forgets."""

    def __init__(
        self, seed: int, nodes: int, keys: int, *, dead: float = 0.0, forget: float = 0.0
    ) -> None:
        self.sim = Simulation(seed)
        everybody = self.sim.grow(nodes)
        self.sim.fill_tables(everybody)
        self.keys = [b"\x12\x20" + self.sim.random.randbytes(32) for _ in range(keys)]
        self.provider, *others = everybody
        self.able: list[SimNode] = []
        for node in others:
            draw = self.sim.random.random()
            node.alive = draw >= dead
            if dead <= draw < dead + forget:
                node.friends = node.table.closest(0)
            elif node.alive:
                self.able.append(node)
        self.report: BurstReport = Burst(self.sim, self.provider, self.keys).run()

    def replicas(self) -> list[int]:
        """For each key, the nodes that really have it."""
        now = self.sim.now
        return [sum(bool(n.store.providers(k, now)) for n in self.able) for k in self.keys]

    def told_of_closest(self) -> list[int]:
        """For each key, how many of the k closest living others have it."""
        now = self.sim.now
        return [
            sum(
                bool(self.sim.nodes[peer].store.providers(key, now))
                for peer in self.sim.true_closest(key, self.provider)
            )
            for key in self.keys
        ]


def test_neighbouring_keys_share_lookups_and_each_is_at_its_closest() -> None:
    burst = Provided(1, 200, 150)
    assert burst.report.left == burst.report.told_again == 0
    assert burst.report.lookups < 150 / 10
    # 20 peers told and asked back, and little more.
    assert 2 * KAD_BUCKET <= burst.report.messages / 150 < 2.3 * KAD_BUCKET
    assert min(burst.report.confirmed.values()) == KAD_BUCKET
    assert min(burst.told_of_closest()) >= KAD_BUCKET - 1
    assert burst.report.batches == 2
    assert burst.report.seconds < 10


def test_with_a_third_silent_no_key_has_few_replicas() -> None:
    burst = Provided(2, 200, 150, dead=0.3)
    assert burst.report.left == 0
    assert min(burst.replicas()) >= KAD_REPLICAS_WANTED
    assert list(burst.report.confirmed.values()) == burst.replicas()
    assert min(burst.told_of_closest()) >= KAD_BUCKET - 3
    assert burst.report.messages / 150 < 2.8 * KAD_BUCKET
    assert burst.report.seconds < 20


def test_keys_that_many_forget_are_told_again_later_and_not_for_ever() -> None:
    """Three of five store nothing: read-back finds it out, and the key waits for its turn."""
    burst = Provided(3, 60, 10, forget=0.6)
    assert burst.report.told_again > 0
    assert burst.report.seconds > PROVIDE_RETRY_SECONDS
    assert burst.report.batches < 60 * len(burst.keys)
    few = [key for key, n in burst.report.confirmed.items() if n < KAD_REPLICAS_WANTED]
    assert burst.report.left == len(few)


def test_a_node_alone_tells_nobody_and_ends() -> None:
    sim = Simulation(4)
    (alone,) = sim.grow(1)
    report = Burst(sim, alone, [b"\x12\x20" + bytes(32)]).run()
    assert report.left == 1
    assert report.messages == 0


def test_the_same_seed_is_the_same_burst() -> None:
    assert Provided(5, 100, 30, dead=0.2).report == Provided(5, 100, 30, dead=0.2).report
    assert Provided(5, 100, 30, dead=0.2).report != Provided(6, 100, 30, dead=0.2).report


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(3))
def test_a_thousand_keys_on_10_000_nodes_of_which_a_third_is_silent(seed: int) -> None:
    burst = Provided(seed, 10_000, 1000, dead=0.3)
    assert burst.report.left == 0
    assert min(burst.replicas()) >= KAD_REPLICAS_WANTED
    assert burst.report.messages / 1000 < 80
    assert burst.report.seconds < 200
