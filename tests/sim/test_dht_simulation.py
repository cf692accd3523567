"""The DHT's core on many simulated nodes: it finds, survives deaths, and resists Sybils."""

from __future__ import annotations

from statistics import fmean

from dstore.limits import KAD_LOOKUP_WIDE_MAX
from dstore.testing.dht_churn import Churn
from dstore.testing.dht_simulation import Simulation, add_sybils


def key_of(sim: Simulation) -> bytes:
    return b"\x12\x20" + sim.random.randbytes(32)


def look_up(seed: int, dead: float) -> tuple[list[float], list[float], list[int]]:
    """Recall, seconds and messages of lookups among 500 nodes, of which some died."""
    sim = Simulation(seed)
    nodes = sim.grow(500)
    sim.fill_tables(nodes)
    for node in sim.random.sample(nodes, int(500 * dead)):
        node.alive = False
    living = [node for node in nodes if node.alive]
    recalls, seconds, messages = [], [], []
    for _ in range(40):
        node, key = sim.random.choice(living), key_of(sim)
        found = sim.search(node, key)
        true = sim.true_closest(key, node)
        recalls.append(len(set(true) & set(found.closest)) / len(true))
        seconds.append(found.seconds)
        messages.append(found.messages)
    return recalls, seconds, messages


def test_500_nodes_find_the_closest_in_few_messages() -> None:
    recalls, seconds, messages = look_up(1, 0.0)
    assert fmean(recalls) > 0.97
    assert max(seconds) < 1.5
    assert fmean(messages) < 40


def test_500_nodes_of_which_a_third_died_still_find() -> None:
    recalls, seconds, messages = look_up(2, 0.3)
    assert fmean(recalls) > 0.98
    assert sorted(seconds)[37] < 2, "the p95 of 40"
    assert fmean(messages) < 60


def test_nodes_that_come_and_go_are_found_and_find() -> None:
    """Half of the sessions are shorter than an hour."""
    churning = Churn(Simulation(5), 60, median_seconds=3600)
    churning.run(1800, 600, every=60, find_after=900)
    report = churning.report
    assert report.left > 20
    assert len(report.lookups) == len(report.found) == 10
    assert report.dead_in_tables < 0.3
    assert fmean(report.recalls) > 0.95
    assert all(report.found)


def test_the_same_seed_is_the_same_run() -> None:
    assert look_up(3, 0.1) == look_up(3, 0.1)
    assert look_up(3, 0.1) != look_up(4, 0.1)


def sybils_beside_a_key(seed: int, *, diverse: bool) -> tuple[float, float]:
    """The parts of ten lookups, and of ten searches for providers, that were right."""
    sim = Simulation(seed, diverse=diverse)
    nodes = sim.grow(200)
    key = key_of(sim)
    add_sybils(sim, key, 20, [f"/ip4/10{i}.5.5.5/tcp/4001" for i in range(4)])
    sim.fill_tables(nodes)
    sim.provide(sim.random.choice(nodes), key)
    right, found = [], []
    for node in sim.random.sample(nodes, 10):
        nearest = sim.true_closest(key, node)[: KAD_LOOKUP_WIDE_MAX + 2]
        right.append(set(nearest) <= set(sim.search(node, key).closest))
        found.append(bool(sim.search(node, key, providers=1).providers))
    return fmean(right), fmean(found)


def test_sybils_from_few_subnets_do_not_take_a_key() -> None:
    on = [sybils_beside_a_key(seed, diverse=True) for seed in range(4)]
    off = [sybils_beside_a_key(seed, diverse=False) for seed in range(4)]
    lookups, finds = (fmean(column) for column in zip(*on, strict=True))
    without = fmean(found for _, found in off)
    print(f"limits on: {lookups:.0%} of lookups, {finds:.0%} of finds; off: {without:.0%}")
    assert lookups >= 0.95
    assert finds >= 0.95
    assert without < 0.5  # or the attack is none
