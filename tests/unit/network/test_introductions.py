"""Who peers say they are: within the handshake, asked when it is not there, and once it changed."""

from __future__ import annotations

import pytest
from libp2p.abc import IRawConnection

from dstore.core.endpoint import Endpoint
from dstore.limits import HANDSHAKE_IDENTIFY_BYTES_MAX
from dstore.network.host import HostOptions, open_host
from dstore.network.identify import IDENTIFY, claims_of, describe
from dstore.network.identity import peer_id_of
from dstore.network.negotiate import accept
from dstore.network.streams import frame
from dstore.runtime import Runtime
from tests.unit.network.hosts import ECHO, SEEDS, echo, next_stream, until, visitor, where

PEER = peer_id_of(SEEDS[1])
REMOTE = Endpoint("ip4", "10.0.0.9", 1234)


def claims(agent: str) -> bytes:
    return claims_of(agent, (ECHO,), ())


async def test_nobody_is_asked_who_said_it_in_the_handshake() -> None:
    async with (
        open_host(HostOptions(agent="alpha"), SEEDS[0], Runtime()) as a,
        open_host(HostOptions(agent="beta"), SEEDS[1], Runtime()) as b,
    ):
        await a.connect(where(b))
        beta = a.identified(b.peer_id)  # at once
        assert beta is not None
        assert (beta.agent, IDENTIFY in beta.protocols) == ("beta", True)
        await until(lambda: b.identified(a.peer_id))
        # Where the dialler listens is known without a question, too.
        assert list(b.known_addresses(a.peer_id)) == list(a.addresses())
        assert a.counters["streams_accepted"] == b.counters["streams_accepted"] == 0


async def test_it_is_believed_of_the_peer_itself_only() -> None:
    async with open_host(HostOptions(), SEEDS[0], Runtime()) as node:
        lie = describe(
            SEEDS[2], agent="not me", protocols=[], addresses=[], observed=REMOTE, sequence=1
        )
        async with visitor(node, SEEDS[1], lambda _: lie) as connection:
            asked = await next_stream(connection)  # as if nothing had been said
            assert await accept(asked, {IDENTIFY}.__contains__) == IDENTIFY
            assert node.identified(PEER) is None
            truth = describe(
                SEEDS[1], agent="me", protocols=[], addresses=[], observed=REMOTE, sequence=1
            )
            await asked.write(frame(truth))
            await until(lambda: getattr(node.identified(PEER), "agent", "") == "me")


@pytest.mark.parametrize("nonsense", [b"\xff", b"\x0a\x05", b"\x32\x02\xff\xfe"])
async def test_somebody_s_experiment_is_no_reason_to_refuse_a_peer(nonsense: bytes) -> None:
    async with open_host(HostOptions(), SEEDS[0], Runtime()) as node:
        async with visitor(node, SEEDS[1], lambda _: nonsense) as connection:
            asked = await next_stream(connection)
            assert await accept(asked, {IDENTIFY}.__contains__) == IDENTIFY
            assert node.connected() == [PEER]


async def test_who_has_too_much_to_say_for_a_handshake_is_asked() -> None:
    async with (
        open_host(HostOptions(), SEEDS[0], Runtime()) as a,
        open_host(HostOptions(), SEEDS[1], Runtime()) as b,
    ):
        for number in range(HANDSHAKE_IDENTIFY_BYTES_MAX // 64):
            b.set_handler(f"/test/{number:064}/1", echo)
        await a.connect(where(b))
        assert a.identified(b.peer_id) is None
        assert await a.speaks(b.peer_id, f"/test/{0:064}/1")


async def test_what_changed_during_the_handshake_is_told_after_it() -> None:
    async with open_host(HostOptions(), SEEDS[0], Runtime()) as node:

        def late(_: IRawConnection) -> bytes:
            node.set_handler(ECHO, echo)  # it has said already what it speaks
            return claims("late")

        async with visitor(node, SEEDS[1], late) as connection:
            assert connection.identity is not None
            assert not connection.speaks(ECHO)
            told = await next_stream(connection)
            assert await accept(told, lambda _: True) == "/ipfs/id/push/1.0.0"
