"""The JSON forms that scripts rely on, field by field."""

from __future__ import annotations

import inspect
import json

import pytest

from dstore import errors
from dstore.core.cid import CID, DAG_CBOR, RAW
from dstore.core.peerid import PeerId
from dstore.core.unixfs.profile import UnknownProfile
from dstore.errors import ConfigError, DstoreError, NodeError, NotFoundError, PeerError, Refused
from dstore.interfaces.forms import add_form, dump, error_form, error_of, pin_form, root_form
from dstore.service.progress import (
    AddResult,
    GuaranteeStatus,
    Pin,
    RootStatus,
    SegmentStatus,
    SlotStatus,
)

ROOT, MANIFEST = CID.of(RAW, b"file"), CID.of(DAG_CBOR, b"manifest")
PEER = PeerId.of_ed25519(bytes(32))
GUARANTEE = GuaranteeStatus(2, 1, "survives")


def test_an_add() -> None:
    result = AddResult(ROOT, 4, MANIFEST, (4, 2), True, GUARANTEE, ("careful",))
    assert add_form(result, "a") == {
        "cid": str(ROOT),
        "name": "a",
        "size": 4,
        "manifest": str(MANIFEST),
        "code": "4+2",
        "protected": True,
        "guarantee": {"peers": 2, "domains": 1, "text": "survives"},
        "warnings": ["careful"],
    }


def test_an_add_without_protection_has_every_key_too() -> None:
    form = add_form(AddResult(ROOT, 4))
    assert form.keys() == add_form(AddResult(ROOT, 4, MANIFEST, (4, 2), True, GUARANTEE)).keys()
    assert (form["manifest"], form["code"], form["protected"]) == (None, None, False)
    assert form["guarantee"]["peers"] == form["guarantee"]["domains"] == 0


def test_a_status_names_slots_and_their_holders() -> None:
    slots = (SlotStatus(0, (PEER,), "live"), SlotStatus(1, (), "missing"))
    segment = SegmentStatus(MANIFEST, "at risk", 4, slots)
    status = RootStatus(ROOT, MANIFEST, (1, 1), "at risk", 4, GUARANTEE, (segment,), 5.0)
    form = root_form(status)
    assert form["segments"] == [
        {
            "segment": str(MANIFEST),
            "state": "at risk",
            "bytes": 4,
            "slots": [
                {"slot": 0, "state": "live", "holders": [str(PEER)]},
                {"slot": 1, "state": "missing", "holders": []},
            ],
        }
    ]
    assert form["guarantee"] == {"peers": 2, "domains": 1, "text": "survives"}
    assert (form["cid"], form["manifest"], form["code"]) == (str(ROOT), str(MANIFEST), "1+1")
    assert (form["state"], form["dag_bytes"], form["expires"]) == ("at risk", 4, 5.0)


def test_names_that_are_no_utf8_survive_json() -> None:
    name = b"\xff\n".decode("utf-8", "surrogateescape")
    line = dump(pin_form(Pin(ROOT, "local", name, 1.0, None)))
    assert line.isascii()
    assert "\n" not in line
    assert json.loads(line)["name"] == name


PLAIN_ERRORS = [
    kind
    for _, kind in inspect.getmembers(errors, inspect.isclass)
    if issubclass(kind, DstoreError) and kind not in (ConfigError, Refused)
]


@pytest.mark.parametrize("kind", PLAIN_ERRORS)
def test_errors_come_back_as_themselves(kind: type[DstoreError]) -> None:
    again = error_of(json.loads(dump(error_form(kind("why")))))
    assert type(again) is kind
    assert str(again) == "why"
    assert error_form(again)["exit_code"] == kind.exit_code


def test_errors_with_more_in_them_come_back_as_their_parents() -> None:
    config = error_form(ConfigError(["one", "two"]))
    assert config["faults"] == ["one", "two"]
    assert type(error_of(config)) is errors.CallerError
    assert type(error_of(error_form(Refused("no", "QUOTA")))) is PeerError
    assert type(error_of(error_form(UnknownProfile("x")))) is errors.CallerError


@pytest.mark.parametrize("form", [{}, {"error": "json"}, {"error": "Final"}, {"error": 3}])
def test_answers_that_are_no_error_become_one(form: dict[str, object]) -> None:
    assert type(error_of(form)) is NodeError
    assert type(error_of({"error": "NotFoundError"})) is NotFoundError
