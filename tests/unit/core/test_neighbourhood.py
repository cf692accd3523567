"""What one lookup knows of other places: exactly the truth, or nothing."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dstore.core.kademlia import closest_of, kad_id
from dstore.core.neighbourhood import Neighbourhood
from dstore.testing.deterministic import peer_number

PEERS = [peer_number(number) for number in range(300)]


def place(number: int) -> int:
    return kad_id(b"place %d" % number)


@given(
    population=st.integers(1, 300),
    wanted=st.integers(1, 80),
    count=st.integers(1, 20),
    number=st.integers(0, 10_000),
)
def test_an_answer_is_what_an_own_lookup_would_find(
    population: int, wanted: int, count: int, number: int
) -> None:
    alive = PEERS[:population]
    centre = place(0)
    around = Neighbourhood(centre, closest_of(alive, centre, wanted), wanted, ended=True)
    answer = around.closest(place(number), count)
    if answer is not None and count <= wanted:
        assert answer == closest_of(alive, place(number), count)


@pytest.mark.parametrize(("population", "keys"), [(30, 2000), (300, 100)])
def test_one_lookup_serves_many_keys(population: int, keys: int) -> None:
    alive = PEERS[:population]
    centre = place(0)
    around = Neighbourhood(centre, closest_of(alive, centre, 60), 60, ended=True)
    served = sum(around.closest(place(number), 20) is not None for number in range(2000))
    assert served >= keys


def test_a_lookup_cut_short_answers_for_its_own_key_alone() -> None:
    centre = place(0)
    found = closest_of(PEERS, centre, 10)
    around = Neighbourhood(centre, found, 60, ended=False)
    assert around.closest(centre, 20) == found
    assert all(around.closest(place(number), 5) is None for number in range(1, 1000))
