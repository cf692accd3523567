"""Telling keys to peers: rounds, whose word counts, what is tried again."""

from __future__ import annotations

from dstore.core.kad_messages import KadMessage, KadPeer, MessageType
from dstore.core.kad_provision import Exchange, Provided, Telling, parts_of
from dstore.core.kademlia import closest_of, kad_id
from dstore.core.peerid import PeerId
from dstore.limits import (
    KAD_BUCKET,
    KAD_PROVIDE_ATTEMPTS,
    KAD_PROVIDE_KEYS_PER_EXCHANGE,
    KAD_PROVIDE_LOOKUPS_MAX,
    KAD_PROVIDE_ROUNDS_MAX,
)
from dstore.testing.deterministic import peer_number

OWN = peer_number(0)
KEY = b"\x12\x20" + bytes(32)
# The nearest to the key first.
PEERS = closest_of([peer_number(n) for n in range(1, 200)], kad_id(KEY), 199)


def keys(number: int) -> list[bytes]:
    return [b"\x12\x20" + bytes(30) + n.to_bytes(2, "big") for n in range(number)]


def answer(key: bytes, *, has: bool = True, closer: list[PeerId] | None = None) -> KadMessage:
    named = tuple(KadPeer(peer, ()) for peer in closer or [])
    providers = (KadPeer(OWN, ()),) if has else ()
    return KadMessage(MessageType.GET_PROVIDERS, key, named, providers)


def telling(found: list[PeerId], suspects: frozenset[PeerId] = frozenset()) -> Telling:
    return Telling(OWN, [KEY], found, suspects.__contains__)


def only(exchanges: list[Exchange]) -> Exchange:
    (exchange,) = exchanges
    return exchange


def test_parts_are_runs_of_neighbours_and_few() -> None:
    parts = parts_of(keys(10) * 2)
    assert len(parts) == KAD_PROVIDE_LOOKUPS_MAX
    assert [key for part in parts for key in part] == sorted(keys(10), key=kad_id)
    assert parts_of([]) == []


def test_one_who_two_name_is_told_and_one_who_one_names_is_not() -> None:
    told = telling(PEERS[3:6])
    first, second, third = (only(each) for each in told.next_round().values())
    first.took([answer(KEY, closer=PEERS[:2])])
    second.took([answer(KEY, closer=[PEERS[1], PEERS[2]])])
    third.took([answer(KEY, closer=[PEERS[1], OWN])])
    assert list(told.next_round()) == [PEERS[1]]
    assert told.closest(KEY) == [PEERS[1], *PEERS[3:6]]
    assert told.result(KEY) == Provided(told=4, confirmed=3)


def test_a_silent_one_is_told_of_by_nobody() -> None:
    told = telling(PEERS[3:5], frozenset({PEERS[0]}))
    for exchange in told.next_round().values():
        only(exchange).took([answer(KEY, closer=[PEERS[0]])])
    assert told.next_round() == {}


def test_the_next_nearest_takes_the_place_of_one_that_failed() -> None:
    told = telling(PEERS[: KAD_BUCKET + 1])
    first = told.next_round()
    assert list(first) == PEERS[:KAD_BUCKET]
    told.failed(PEERS[4])
    assert list(told.next_round()) == [PEERS[KAD_BUCKET]]
    assert PEERS[4] not in told.closest(KEY)


def test_rounds_end_whatever_is_named() -> None:
    told = telling(PEERS[150:190])
    rounds = 0
    while exchanges := told.next_round():
        rounds += 1
        nearer = PEERS[150 - 25 * rounds : 175 - 25 * rounds]
        for each in exchanges.values():
            only(each).took([answer(KEY, closer=nearer)])
    assert rounds == KAD_PROVIDE_ROUNDS_MAX


def test_an_exchange_is_tried_again_for_what_is_missing() -> None:
    few = keys(3)
    told = Telling(OWN, few, [PEERS[0]], lambda _: False)
    exchange = only(told.next_round()[PEERS[0]])
    exchange.took([answer(few[0]), answer(few[1], has=False), answer(few[2])])
    assert exchange.keys == [few[1]]
    kinds = [request.type for request in exchange.requests(KadPeer(OWN, ()))]
    assert kinds == [MessageType.ADD_PROVIDER, MessageType.GET_PROVIDERS]
    exchange.took([answer(few[1], has=False)])
    assert exchange.keys == []
    assert exchange.answered, "one that refuses is none the worse for it"
    assert [told.result(key).confirmed for key in few] == [1, 0, 1]
    assert not told.result(few[1]).enough


def test_an_exchange_that_is_lost_each_time_is_over() -> None:
    exchange = only(telling([PEERS[0]]).next_round()[PEERS[0]])
    for _ in range(KAD_PROVIDE_ATTEMPTS):
        assert exchange.keys == [KEY]
        exchange.lost()
    assert exchange.keys == []
    assert not exchange.answered


def test_one_exchange_holds_so_many_keys() -> None:
    many = keys(2 * KAD_PROVIDE_KEYS_PER_EXCHANGE + 1)
    told = Telling(OWN, many, [PEERS[0]], lambda _: False)
    sizes = [len(exchange.keys) for exchange in told.next_round()[PEERS[0]]]
    assert sizes == [KAD_PROVIDE_KEYS_PER_EXCHANGE] * 2 + [1]
