"""The address book: bounded, best address first, nobody who matters evicted."""

from __future__ import annotations

from dstore.core.peerid import PeerId
from dstore.network.peers import AddressBook


def peer(number: int) -> PeerId:
    return PeerId.of_ed25519(number.to_bytes(32, "big"))


def at(number: int) -> str:
    return f"/ip4/10.0.{number >> 8}.{number & 255}/tcp/4001"


def test_unknown_and_forgotten_peers_have_no_addresses() -> None:
    book = AddressBook()
    assert book.known(peer(1)) == ()
    book.remember(peer(1), [at(1)])
    book.forget(peer(1))
    assert book.known(peer(1)) == ()
    assert len(book) == 0


def test_what_worked_comes_first_then_what_the_peer_says_then_hearsay() -> None:
    book = AddressBook()
    book.remember(peer(1), [at(1), at(2)])
    book.announced(peer(1), [at(3)])
    assert book.known(peer(1)) == (at(3), at(1), at(2))
    book.reached(peer(1), at(2))
    assert book.known(peer(1)) == (at(2), at(3), at(1))
    book.failed(peer(1), at(2))
    assert book.known(peer(1)) == (at(3), at(1), at(2))
    book.failed(peer(1), at(9))
    assert at(9) not in book.known(peer(1))


def test_hearsay_cannot_push_out_what_is_known() -> None:
    book = AddressBook(addresses_max=4)
    book.reached(peer(1), at(1))
    book.remember(peer(1), [at(n) for n in range(2, 100)])
    assert book.known(peer(1)) == (at(1), at(2), at(3), at(4))


def test_lies_do_not_keep_the_truth_out() -> None:
    book = AddressBook(addresses_max=16)
    lies = [at(n) for n in range(100, 116)]
    book.remember(peer(1), lies)
    book.remember(peer(1), [at(1)])
    assert at(1) in book.known(peer(1))
    for lie in lies:
        book.failed(peer(1), lie)
    book.remember(peer(1), [*lies[:15], at(2)])
    assert book.known(peer(1))[:2] == (at(1), at(2))
    assert len(book.known(peer(1))) == 16
    book.announced(peer(1), [lies[-1]])
    assert book.known(peer(1))[0] == lies[-1]
    assert len(set(book.known(peer(1)))) == 16


def test_nothing_undialable_is_kept() -> None:
    book = AddressBook()
    book.remember(peer(1), ["/ip4/0.0.0.0/tcp/1", "nonsense", "/ip4/1.2.3.4/udp/1/quic"])
    assert len(book) == 0


def test_the_book_is_bounded_and_connected_peers_stay() -> None:
    # libp2p's store evicts the node's own key at 1,000 peers.
    connected = {peer(0), peer(5)}
    book = AddressBook(keep=connected.__contains__, peers_max=100)
    for number in range(5_000):
        book.remember(peer(number), [at(number)])
        assert len(book) <= 100
    assert connected <= set(book)
    assert peer(4_999) in set(book)
    assert peer(100) not in set(book)


def test_when_all_are_connected_the_newcomer_goes() -> None:
    book = AddressBook(keep=lambda _: True, peers_max=2)
    for number in range(3):
        book.remember(peer(number), [at(number)])
    assert set(book) == {peer(0), peer(1)}
