from __future__ import annotations

import contextlib

from hypothesis import given
from hypothesis import strategies as st

from dstore.core import dagpb
from dstore.core.cid import CID, DAG_PB, RAW
from dstore.core.dagpb import PBLink, PBNode
from dstore.core.unixfs import parse
from dstore.core.unixfs.node import DataType, Mtime, UnixfsData, decode_data, encode_data
from dstore.errors import MalformedBlock

numbers = st.integers(0, (1 << 63) - 1)
cids = st.builds(
    CID.of, st.sampled_from([RAW, DAG_PB]), st.binary(max_size=4), version=st.just(1)
) | st.builds(CID.of, st.just(DAG_PB), st.binary(max_size=4), version=st.just(0))
# All byte strings: names need not be UTF-8.
names = st.binary(max_size=300).map(lambda name: name.decode("utf-8", "surrogateescape"))
nodes = st.builds(
    PBNode,
    st.lists(st.builds(PBLink, cids, st.none() | names, st.none() | numbers), max_size=8).map(
        tuple
    ),
    st.none() | st.binary(max_size=200),
)
messages = st.builds(
    UnixfsData,
    type=st.sampled_from(DataType),
    data=st.none() | st.binary(max_size=200),
    filesize=st.none() | numbers,
    blocksizes=st.lists(numbers, max_size=5).map(tuple),
    hash_type=st.none() | numbers,
    fanout=st.none() | numbers,
    mode=st.none() | st.integers(0, (1 << 32) - 1),
    mtime=st.none()
    | st.builds(
        Mtime,
        st.integers(-(1 << 63), (1 << 63) - 1),
        st.none() | st.integers(0, 999_999_999),
    ),
)


@given(nodes)
def test_nodes_round_trip(node: PBNode) -> None:
    assert dagpb.decode(dagpb.encode(node)) == node


@given(messages)
def test_messages_round_trip(message: UnixfsData) -> None:
    assert decode_data(encode_data(message)) == message


@given(nodes, st.data())
def test_damaged_nodes_decode_or_are_refused(node: PBNode, data: st.DataObject) -> None:
    block = bytearray(dagpb.encode(node) or b"\x0a")
    for _ in range(data.draw(st.integers(1, 3))):
        block[data.draw(st.integers(0, len(block) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(MalformedBlock):
        decoded = dagpb.decode(bytes(block))
        # Only the order of links and data may differ: the decoder knows no other freedom.
        again = dagpb.encode(decoded)
        assert len(again) == len(block)
        assert decoded.data is None or again == block or block.startswith(b"\x0a")


@given(st.binary(max_size=200))
def test_any_bytes_parse_or_are_refused(data: bytes) -> None:
    with contextlib.suppress(MalformedBlock):
        decode_data(data)
    with contextlib.suppress(MalformedBlock):
        dagpb.decode(data)
    with contextlib.suppress(MalformedBlock):
        parse(CID.of(DAG_PB, data), data)


@given(messages, st.lists(st.builds(PBLink, cids, names, numbers), max_size=3))
def test_any_message_parses_or_is_refused(message: UnixfsData, links: list[PBLink]) -> None:
    block = dagpb.encode(PBNode(tuple(links), encode_data(message)))
    with contextlib.suppress(MalformedBlock):
        parse(CID.of(DAG_PB, block), block)
