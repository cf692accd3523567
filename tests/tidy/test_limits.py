"""limits.py and errors.py: complete, consistent, and what their own words say."""

from __future__ import annotations

import ast
import re

import pytest

from dstore import errors, limits
from tests.tidy.source import Source

_NUMBERS = {
    name: value
    for name, value in vars(limits).items()
    if name.isupper() and isinstance(value, int | float)
}


def test_limits_are_final_positive_numbers() -> None:
    tree = Source("dstore/limits.py").tree
    assigned = [node for node in tree.body if isinstance(node, ast.Assign)]
    assert assigned == [], "a limit without Final"
    declared = [node for node in tree.body if isinstance(node, ast.AnnAssign)]
    assert len(declared) == len(_NUMBERS)
    assert all(value > 0 for value in _NUMBERS.values())


@pytest.mark.parametrize(
    ("less", "more"),
    [
        ("BLOCK_BYTES_MAX", "GET_BYTES_MAX"),
        ("BLOCK_BYTES_MAX", "PEER_MEMORY_BYTES_MAX"),
        ("BLOCK_BYTES_MAX", "SEGMENT_BYTES_MAX"),
        ("CONTROL_BYTES_MAX", "PEER_MEMORY_BYTES_MAX"),
        ("RECORD_BYTES_MAX", "CONTROL_BYTES_MAX"),
        ("FRAGMENTS_PER_STRIPE_MAX", "SEGMENT_FRAGMENTS_MAX"),
        ("ALIGNED_FILE_BYTES_MIN", "SEGMENT_BYTES_MAX"),
        ("SEGMENT_BYTES_MAX", "PLACEMENT_GROUP_BYTES"),
        ("YAMUX_FRAME_BYTES_MAX", "YAMUX_WINDOW_BYTES_INITIAL"),
        ("YAMUX_WINDOW_BYTES", "PEER_MEMORY_BYTES_MAX"),
        ("REQUEST_SECONDS", "PROGRESS_SECONDS"),
        ("NEGOTIATE_SECONDS", "HANDSHAKE_SECONDS"),
        ("HEDGE_SECONDS", "REQUEST_SECONDS"),
        ("KAD_REQUEST_SECONDS", "KAD_LOOKUP_SECONDS"),
        ("REPROVIDE_SECONDS", "PROVIDER_SECONDS"),
        ("CLOCK_SKEW_SECONDS_MAX", "LEASE_SECONDS"),
        ("LEASE_SECONDS", "PIN_SECONDS_DEFAULT"),
        ("HEALTH_CHECK_SECONDS", "AWAY_SECONDS"),
        ("AWAY_SECONDS", "LEASE_SECONDS"),
    ],
)
def test_limits_fit_each_other(less: str, more: str) -> None:
    assert _NUMBERS[less] < _NUMBERS[more]


def test_a_segment_block_fits_a_block() -> None:
    """A CID and a size are at most some 45 bytes in dag-cbor (formats.md)."""
    assert limits.SEGMENT_FRAGMENTS_MAX * 50 + 64 * 1024 <= limits.BLOCK_BYTES_MAX
    assert limits.SEGMENTS_MAX * 55 + 64 * 1024 <= limits.BLOCK_BYTES_MAX


def test_the_error_tree_is_as_drawn() -> None:
    """Name, parent, exit code and HTTP status of each class, from the drawing."""
    drawn: dict[str, tuple[str, int | None, int | None]] = {}
    branch = ""
    for line in (errors.__doc__ or "").splitlines():
        match = re.search(r"([│ ]*)[├└]── (\w+)", line)
        if match is None:
            continue
        top = "│" not in match[1] and not line.startswith("        ")
        code = re.search(r"exit (\d)", line)
        status = re.search(r"\s(\d{3})$", line)
        parent = "DstoreError" if top else branch
        drawn[match[2]] = (parent, code and int(code[1]), status and int(status[1]))
        if top:
            branch = match[2]
    defined = {
        name: kind
        for name, kind in vars(errors).items()
        if isinstance(kind, type) and issubclass(kind, errors.DstoreError)
    }
    assert drawn.keys() == defined.keys() - {"DstoreError"}
    for name, (parent, exit_code, http_status) in drawn.items():
        kind, base = defined[name], defined[parent]
        assert kind.__bases__ == (base,), name
        assert kind.exit_code == (base.exit_code if exit_code is None else exit_code), name
        assert kind.http_status == (base.http_status if http_status is None else http_status), name
        assert kind.__doc__, name
