"""Subnets of addresses, and how many peers of one the table and a lookup take."""

from __future__ import annotations

import hashlib

import pytest

from dstore.core.diversity import NOWHERE, Subnet, Subnets, subnets_of
from dstore.core.kad_table import RoutingTable
from dstore.core.kademlia import Lookup, closest_of, common_prefix, kad_id
from dstore.core.peerid import PeerId
from dstore.limits import (
    KAD_BUCKET,
    KAD_BUCKET_NARROW_MAX,
    KAD_BUCKET_WIDE_MAX,
    KAD_FAILURES_MAX,
    KAD_LOOKUP_WIDE_MAX,
    KAD_TABLE_WIDE_MAX,
)


def peer(number: int) -> PeerId:
    return PeerId.of_ed25519(hashlib.sha256(f"peer {number}".encode()).digest())


OWN = peer(-1)
PEERS = [peer(number) for number in range(600)]
FAR = [each for each in PEERS if common_prefix(kad_id(OWN.binary), kad_id(each.binary)) == 0]


def at(a: int, b: int, c: int = 0) -> Subnets:
    return subnets_of([f"/ip4/{a}.{b}.{c}.9/tcp/4001"])


def test_two_widths_of_public_addresses() -> None:
    assert at(20, 30, 40) == {Subnet("20.30.0.0/16", False), Subnet("20.30.40.0/24", True)}
    assert subnets_of(["/ip6/2a01:4f8:1:2::3/tcp/1"]) == {
        Subnet("2a01:4f8::/32", False),
        Subnet("2a01:4f8:1::/48", True),
    }
    assert {each.name for each in subnets_of(["/dns4/n7.evil.example/tcp/1"])} == {"evil.example"}
    assert subnets_of(["/ip6/::ffff:20.30.40.1/tcp/1"]) == at(20, 30, 40)
    assert len(subnets_of(["/ip4/20.30.40.1/tcp/1", "/ip4/20.31.40.1/tcp/1"])) == 4


@pytest.mark.parametrize(
    "address",
    [
        "/ip4/127.0.0.1/tcp/1",
        "/ip4/10.1.2.3/tcp/1",
        "/ip4/192.168.1.2/tcp/1",
        "/ip6/::1/tcp/1",
        "/ip6/fe80::1/tcp/1",
        "/ip6/fd00::1/tcp/1",
        "/dns4/localhost/tcp/1",
        "/ip4/999.1.1.1/tcp/1",
        "",
    ],
)
def test_local_and_unreadable_addresses_lie_nowhere(address: str) -> None:
    assert subnets_of([address]) == NOWHERE


def test_a_bucket_takes_few_of_one_subnet() -> None:
    table = RoutingTable(OWN)
    wide = [table.heard(each, 0, at(20, 30, n)) for n, each in enumerate(FAR[:10])]
    assert sum(wide) == KAD_BUCKET_WIDE_MAX
    narrow = [table.heard(each, 0, at(21, 30)) for each in FAR[10:20]]
    assert sum(narrow) == KAD_BUCKET_NARROW_MAX
    assert all(table.heard(each, 0) for each in FAR[20:35])  # local ones are not limited


def test_the_table_takes_few_of_one_subnet() -> None:
    table = RoutingTable(OWN)
    for n, each in enumerate(PEERS):
        table.heard(each, 0, at(20, 30, n % 256))
    assert len(table) == KAD_TABLE_WIDE_MAX


def test_who_was_there_first_stays_and_his_place_goes_to_one_that_fits() -> None:
    table = RoutingTable(OWN)
    seniors, crowd, other = FAR[:KAD_BUCKET_WIDE_MAX], FAR[20:25], FAR[30]
    for n, each in enumerate(seniors):
        assert table.heard(each, 0, at(20, 30, n))
    fillers = FAR[40 : 40 + KAD_BUCKET - len(seniors)]
    for each in fillers:
        assert table.heard(each, 0)
    assert not table.heard(other, 1, at(22, 1))
    for n, each in enumerate(crowd):
        assert not table.heard(each, 2, at(20, 30, 100 + n))
    assert all(each in table for each in seniors)
    for _ in range(KAD_FAILURES_MAX):
        table.failed(fillers[0])
    assert other in table  # the crowd, heard later, does not fit
    table.remove(seniors[0])
    assert crowd[-1] in table


def answer_all(lookup: Lookup) -> None:
    while not lookup.finished:
        for each in lookup.ask(0.0):
            lookup.answered(each, (), 0.0)


def test_a_lookup_takes_few_of_one_subnet_while_there_are_others() -> None:
    target = kad_id(b"target")
    near = set(closest_of(PEERS, target, 30))
    lookup = Lookup(
        target, OWN, subnets=lambda p: at(20, 30) if p in near else at(30, PEERS.index(p) % 256)
    )
    lookup.learn(PEERS)
    answer_all(lookup)
    found = lookup.closest()
    assert len(found) == KAD_BUCKET
    assert len(near.intersection(found)) <= KAD_LOOKUP_WIDE_MAX
    assert found == closest_of(found, target, KAD_BUCKET)


def test_a_lookup_in_one_subnet_finds_everybody() -> None:
    target = kad_id(b"target")
    lookup = Lookup(target, OWN, subnets=lambda _: at(20, 30))
    lookup.learn(PEERS[:15])
    answer_all(lookup)
    assert lookup.closest() == closest_of(PEERS[:15], target, KAD_BUCKET)


def test_peers_known_otherwise_are_asked_first_and_hold_up_nobody() -> None:
    target = kad_id(b"target")
    ordered = closest_of(PEERS, target, len(PEERS))
    trusted = [OWN, *ordered[-3:]]
    lookup = Lookup(target, OWN)
    lookup.start_from(trusted)
    lookup.learn(ordered[:30])
    asked = lookup.ask(0.0)
    assert asked[:3] == trusted[1:]
    lookup.answered(asked[0], [ordered[40]], 0.0)
    while not lookup.finished:
        for each in asked[3:]:
            lookup.answered(each, (), 0.0)
        asked = [*asked[:3], *lookup.ask(0.0)]
    assert lookup.closest() == ordered[:KAD_BUCKET]
