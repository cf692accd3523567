"""The machinery of the search, on planted faults: it finds them, keeps them and says so."""

from __future__ import annotations

import sys
from pathlib import Path
from random import Random
from types import ModuleType

import pytest

from dstore.core import wire
from dstore.core.cid import CID, RAW
from dstore.core.wirecodec import decode_request, encode_request
from dstore.errors import ProtocolViolation
from tests.fuzz import __main__ as command
from tests.fuzz import corpus, engine
from tests.fuzz.mutation import of_fields, plain
from tests.fuzz.target import MODULES, Target, run_bounded
from tests.fuzz.wire import requests


def check(data: bytes) -> None:
    assert b"\xff" not in data


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """A target with a fault that changes of a byte or two reach."""
    module = ModuleType("tests.fuzz.planted")
    vars(module)["TARGETS"] = {"planted": Target(check, lambda: [b"abc", b"\x00" * 8])}
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(MODULES, "planted", "planted")
    monkeypatch.setattr(corpus, "FOLDER", tmp_path / "corpus")
    return "planted"


def test_a_search_without_coverage_finds_a_planted_fault(planted: str, tmp_path: Path) -> None:
    folder, found = tmp_path / "inputs", tmp_path / "found"
    found.mkdir()
    corpus.unpack(planted, folder)
    assert len(list(folder.iterdir())) == 3
    # Ends at the fault: the time is only for a machine that finds none.
    assert engine.run_blind(planted, folder, found, seconds=60, seed=1) == engine.BROKEN
    (broke,) = found.iterdir()
    assert b"\xff" in broke.read_bytes()


def test_a_search_without_faults_ends_well(planted: str, tmp_path: Path) -> None:
    folder = tmp_path / "inputs"
    corpus.unpack(planted, folder)
    assert engine.run_blind(planted, folder, tmp_path, seconds=0, seed=1) == 0


def test_inputs_that_broke_something_stay(planted: str) -> None:
    corpus.FOLDER.mkdir()
    (corpus.FOLDER / "planted.txt").write_text("/w==  # found: why\n")
    assert corpus.write(planted, [b"abc", b"longer", b"\xff", b"x" * 100_000]) == 2
    assert corpus.kept(planted) == {b"\xff": "found: why", b"longer": ""}
    assert corpus.inputs(planted) == [b"", b"abc", b"\x00" * 8, b"\xff", b"longer"]


def test_inputs_are_chosen_by_what_they_reach() -> None:
    """One of many that go the same way, the shortest; none that goes the way of a seed."""
    tracer = sys.gettrace()
    nonsense = [b"\xff" * size for size in range(1, 9)]
    text = str(CID.of(RAW, b"y")).encode()
    assert corpus.choose("cid", [*nonsense, text]) == [b"\xff"]
    assert sys.gettrace() is tracer


def test_time_and_memory_of_an_input_are_bounded() -> None:
    def greedy(data: bytes) -> None:
        bytearray(100 * 1024 * 1024)

    target = Target(greedy, list)
    run_bounded(target, b"", weigh=False)
    with pytest.raises(AssertionError, match="bytes of memory for 0 bytes"):
        run_bounded(target, b"", weigh=True)


def test_changed_messages_are_still_messages() -> None:
    """Half of what becomes of a legal request reads as one: the lengths were kept whole."""
    random = Random(1)
    mutate = of_fields(random, plain(random))
    legal, start = 0, list(requests())
    for _ in range(400):
        changed = mutate(random.choice(start), 4096)
        assert len(changed) <= 4096
        try:
            legal += decode_request(changed) is not None
        except ProtocolViolation:
            continue
    assert legal > 100
    assert mutate(b"\xff\xff", 100) is not None
    whole = encode_request(wire.HelloRequest())
    assert all(len(plain(random)(whole, 10)) <= 10 for _ in range(100))


def test_what_went_wrong_is_printed_with_a_way_to_repeat_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    log = "cov: 17 ft: 20\nstat::number_of_executed_units: 5\nstat::new_units_added:   3\n"
    command._report(command.Outcome("cid", 0, log, None))
    command._report(command.Outcome("cid", 77, "Traceback", b"\xff"))
    good, bad, *rest = capsys.readouterr().out.splitlines()
    assert good.split() == ["cid", "5", "17", "3", "ok"]
    assert bad.split() == ["cid", "-", "-", "-", "BROKEN"]
    assert rest == ["Traceback", "replay: python -m tests.fuzz cid --input /w=="]
