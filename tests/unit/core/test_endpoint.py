"""Endpoints in text and binary; the published examples, and what is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dstore.core.endpoint import (
    Endpoint,
    endpoint_of_binary,
    endpoint_of_socket,
    parse_endpoint,
    to_binary,
)
from dstore.core.peerid import PeerId
from dstore.limits import ADDRESS_CHARS_MAX

PEER = PeerId.of_ed25519(bytes(range(32)))


endpoints = st.builds(
    lambda ip, port: Endpoint(f"ip{ip.version}", str(ip), port),
    st.ip_addresses(),
    st.integers(0, 65_535),
) | st.builds(
    lambda kind, host, port: Endpoint(kind, host, port),
    st.sampled_from(["dns", "dns4", "dns6"]),
    st.from_regex(r"[a-z0-9-]{1,20}(\.[a-z0-9-]{1,20}){0,3}", fullmatch=True),
    st.integers(0, 65_535),
)


@given(endpoints)
def test_text_and_binary_round_trip(endpoint: Endpoint) -> None:
    text = str(endpoint)
    assert parse_endpoint(text) == endpoint
    assert str(endpoint_of_binary(to_binary(text))) == text


@pytest.mark.parametrize(
    ("text", "binary"),
    [
        # Cases of the multiaddr implementations' shared conformance table.
        ("/ip4/127.0.0.1/tcp/1234", "047f00000106" + "04d2"),
        ("/ip6/2001:8a0:7ac5:4201:3ac9:86ff:fe31:7095/tcp/0", None),
        ("/dns4/example.com/tcp/443", "360b6578616d706c652e636f6d0601bb"),
    ],
)
def test_known_answers(text: str, binary: str | None) -> None:
    if binary is not None:
        assert to_binary(text).hex() == binary
    assert str(endpoint_of_binary(to_binary(text))) == text


def test_agreement_with_the_multiaddr_library() -> None:
    from multiaddr import Multiaddr

    for text in (
        "/ip4/10.1.2.3/tcp/4001",
        "/ip6/::1/tcp/65535",
        "/dns6/node.example.org/tcp/1",
        "/dns/a-b.example/tcp/9",
    ):
        assert Multiaddr(text).to_bytes() == to_binary(text)
    with_peer = Multiaddr(f"/ip4/10.1.2.3/tcp/4001/p2p/{PEER}").to_bytes()
    assert str(endpoint_of_binary(with_peer)) == "/ip4/10.1.2.3/tcp/4001"


@given(st.binary(max_size=400))
def test_any_bytes_are_an_address_or_a_value_error(data: bytes) -> None:
    try:
        text = str(endpoint_of_binary(data))
    except ValueError:
        return
    assert parse_endpoint(text)


@given(st.text(max_size=80) | st.from_regex(r"/(ip4|ip6|dns)/[^/]*/tcp/[^/]*", fullmatch=True))
def test_any_text_is_an_address_or_a_value_error(text: str) -> None:
    try:
        endpoint = parse_endpoint(text)
    except ValueError:
        return
    assert 0 <= endpoint.port <= 65_535


@pytest.mark.parametrize(
    "text",
    [
        "",
        "/",
        "/ip4/127.0.0.1",
        "/ip4/127.0.0.1/udp/1",
        "/ip4/127.0.0.1/tcp/65536",
        "/ip4/127.0.0.1/tcp/-1",
        "/ip4/127.0.0.1/tcp/١",
        "/ip4/127.0.0.1/tcp/1/ws",
        "/ip4/127.0.0.1/tcp/1/p2p/x",
        "/ip4/127.0.0.256/tcp/1",
        "/ip6/::g/tcp/1",
        "/ip6/fe80::1%eth0/tcp/1",
        "/ip6/fe80::1%\x1b[2J\n/tcp/1",
        "/dns/" + "a" * 64 + "/tcp/1",
        "/dns/a..b/tcp/1",
        "/dns/" + "a." * ADDRESS_CHARS_MAX + "a/tcp/1",
        "/unix/tmp/tcp/1",
    ],
)
def test_refused(text: str) -> None:
    with pytest.raises(ValueError):
        parse_endpoint(text)


def test_socket_addresses() -> None:
    assert str(endpoint_of_socket("fe80::1%eth0", 5)) == "/ip6/fe80::1/tcp/5"
    assert str(endpoint_of_socket("::ffff:10.0.0.1", 5)) == "/ip4/10.0.0.1/tcp/5"
