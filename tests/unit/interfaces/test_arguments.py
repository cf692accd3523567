"""Arguments as people and programs write them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dstore.core.cid import CID, RAW
from dstore.errors import CallerError, InvalidPath
from dstore.interfaces.arguments import (
    add_options,
    flag,
    local_path,
    natural,
    parse_code,
    split_path,
)
from dstore.service.progress import AddOptions

ROOT = CID.of(RAW, b"x")


def test_paths_below_a_cid() -> None:
    assert split_path(str(ROOT)) == (ROOT, [])
    assert split_path(f"/ipfs/{ROOT}/a//b c/") == (ROOT, ["a", "b c"])


@pytest.mark.parametrize("text", ["", "/", "a/../b", f"{ROOT}/../x", f"{ROOT}/./x", "x" * 5000])
def test_paths_that_are_none(text: str) -> None:
    with pytest.raises(CallerError):
        split_path(text)


def test_dots_are_refused_not_followed() -> None:
    with pytest.raises(InvalidPath, match=r"\. and \.\. mean nothing"):
        split_path(f"{ROOT}/a/../../b")


def test_codes() -> None:
    assert parse_code("4+2") == (4, 2)
    assert parse_code("auto") is None
    for text in ("", "4", "4+", "+2", "4+2+1", "-4+2", "x+y", "4+²", "1000+1", "9" * 5000 + "+1"):
        with pytest.raises(CallerError):
            parse_code(text)


def test_the_options_of_an_add() -> None:
    assert add_options({}) == AddOptions()
    given: dict[str, Any] = {
        "code": "3+2",
        "profile": "unixfs-v0-2015",
        "local_only": False,
        "require_guarantee": 2,
        "pin_seconds": 60,
        "name": "n",
    }
    wanted = AddOptions((3, 2), "unixfs-v0-2015", False, 2, 60, "n")
    assert add_options(given) == wanted
    assert add_options({**given, "local_only": "false", "pin_seconds": "60"}) == wanted
    assert add_options({"local_only": "true"}) == AddOptions(local_only=True)


@pytest.mark.parametrize(
    "given",
    [
        {"code": 3},
        {"profile": ["x"]},
        {"name": "x" * 5000},
        {"name": "\ud800"},
        {"local_only": "yes"},
        {"local_only": 1},
        {"require_guarantee": -1},
        {"require_guarantee": True},
        {"local_only": True, "require_guarantee": 1},
        {"pin_seconds": 0},
        {"pin_seconds": 101 * 365 * 86_400},
        {"pin_seconds": 1.5},
        {"pin_seconds": "1e3"},
    ],
)
def test_options_that_are_none(given: dict[str, Any]) -> None:
    with pytest.raises(CallerError):
        add_options(given)


def test_local_paths_are_absolute() -> None:
    assert local_path({"path": "/a/b"}) == Path("/a/b")
    assert bytes(local_path({"path": "/\udcff"})) == b"/\xff"
    for path in (None, "", "a", "../a", "/a\0b", "/\ud800", 3):
        with pytest.raises(CallerError):
            local_path({"path": path})


@given(st.dictionaries(st.sampled_from(["a"]), st.none() | st.text() | st.floats() | st.booleans()))
def test_any_value_is_read_or_refused(given: dict[str, Any]) -> None:
    for read in (natural, flag):
        try:
            value = read(given, "a")
        except CallerError:
            continue
        assert value is None or value >= 0
