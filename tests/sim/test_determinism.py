"""A seeded scenario gives the same event log every time, in this process and in another."""

from __future__ import annotations

import os
import random
import subprocess
import sys

import trio

from dstore.errors import DstoreError
from dstore.network.streams import BufferedReader, PeerAddresses, Stream, frame
from dstore.testing.deterministic import peer_number, run_deterministic, simulated_runtime
from dstore.testing.memory_network import (
    MemoryHost,
    MemoryNetwork,
    NetworkOptions,
    memory_network,
)

NODES = 6
PROTOCOL = "/test/echo/1"


async def _echo(stream: Stream) -> None:
    reader = BufferedReader(stream)
    while (message := await reader.read_message(1 << 20)) is not None:
        await stream.write(frame(message))


async def _client(network: MemoryNetwork, host: MemoryHost, seed: int) -> None:
    """Exchanges with random peers; every failure is an event too."""
    dice = random.Random(seed)
    for _ in range(8):
        peer = peer_number(dice.randrange(NODES))
        try:
            with trio.fail_after(10):
                await host.connect(PeerAddresses(peer, (_address(peer),)))
                stream = await host.open_stream(peer, [PROTOCOL])
                message = dice.randbytes(dice.randrange(1, 100_000))
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(stream.write, frame(message))
                    answer = await BufferedReader(stream).read_message(1 << 20)
                network.record(f"answer right: {answer == message}")
                await stream.close()
        except* (DstoreError, trio.TooSlowError) as errors:
            network.record(f"failed: {type(errors.exceptions[0]).__name__}")


def _address(peer: object) -> str:
    number = [peer_number(n) for n in range(NODES)].index(peer)  # type: ignore[arg-type]
    return f"/ip4/127.0.0.1/tcp/{10_000 + number}"


async def _faults(network: MemoryNetwork, dice: random.Random) -> None:
    for _ in range(4):
        await trio.sleep(dice.random() * 0.05)
        victim = peer_number(dice.randrange(NODES))
        match dice.randrange(4):
            case 0 if network.alive(victim):
                network.kill(victim)
            case 1:
                network.pause(victim)
                await trio.sleep(1)
                network.resume(victim)
            case 2:
                network.partition([peer_number(0), victim])
                await trio.sleep(1)
                network.heal()
            case _:
                network.delay(victim, 0.01)


async def _scenario(seed: int) -> list[tuple[float, str]]:
    runtime = simulated_runtime(seed)
    async with memory_network(seed, NetworkOptions(ragged=True)) as network:
        hosts = [network.host(peer_number(number)) for number in range(NODES)]
        for host in hosts:
            host.set_handler(PROTOCOL, _echo)
        async with trio.open_nursery() as nursery:
            for number, host in enumerate(hosts):
                nursery.start_soon(_client, network, host, runtime.random.getrandbits(32) + number)
            nursery.start_soon(_faults, network, runtime.random)
        return network.events


def _digest_in_new_process(seed: int, hash_seed: int) -> str:
    code = (
        f"import hashlib, runpy; scenario = runpy.run_path({__file__!r}); "
        f"events = scenario['run_deterministic']({seed}, scenario['_scenario'], {seed}); "
        "print(hashlib.sha256(repr(events).encode()).hexdigest())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONHASHSEED": str(hash_seed)},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return done.stdout.strip()


def test_same_seed_same_events() -> None:
    first = run_deterministic(7, _scenario, 7)
    again = run_deterministic(7, _scenario, 7)
    assert first == again
    text = [event for _, event in first]
    assert any("answer right: True" in event for event in text)
    assert not any("answer right: False" in event for event in text)


def test_other_seeds_other_events() -> None:
    logs = [repr(run_deterministic(seed, _scenario, seed)) for seed in range(5)]
    assert len(set(logs)) == len(logs)


def test_scheduler_seed_matters() -> None:
    logs = {repr(run_deterministic(seed, _scenario, 1)) for seed in range(4)}
    assert len(logs) > 1


def test_same_events_whatever_the_hash_seed() -> None:
    assert _digest_in_new_process(3, hash_seed=1) == _digest_in_new_process(3, hash_seed=2)


def test_scheduler_is_left_as_found() -> None:
    from trio._core import _run

    before = _run._r.getstate()
    run_deterministic(1, _scenario, 1)
    assert _run._r.getstate() == before
