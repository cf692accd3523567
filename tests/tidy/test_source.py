"""The architecture and the house rules as tests; exceptions are listed here with a reason,
and may only shrink."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.tidy.source import ROOT, Function, Source, sources, tracked

FILE_LINES_MAX = 500
FUNCTION_LINES_MAX = 70
# What was longer when the limit came.  The number is the limit for that file or function.
LONG_FILES: dict[str, int] = {}
LONG_FUNCTIONS: dict[str, int] = {}

# Where the outside world comes in.
CLOCK_AND_RANDOM = {"dstore/runtime.py"}
BROAD_EXCEPT = {
    "dstore/interfaces/http_connection.py": 1,
    "dstore/network/host.py": 1,
    "dstore/service/worker.py": 1,
}

_NO_FILE_IS_CALLED = re.compile(r"(^|_)(utils?|helpers?|common|misc)(_|$)")
_UNFINISHED = re.compile(r"\b(TODO|FIXME|XXX|HACK|stub|placeholder)\b", re.IGNORECASE)
_TIME_AND_RANDOM = re.compile(
    r"time\.(time|time_ns)|datetime\.(datetime\.(now|utcnow|today)|date\.today)"
    r"|random\.(?!Random$)\w+|os\.urandom|secrets\.\w+|uuid\.uuid[14]"
)
_SIMULATED = {"autojump_clock", "mock_clock", "MockClock", "run_deterministic"}


def _ratchet(found: dict[str, int], listed: dict[str, int], limit: int) -> None:
    """`found` may exceed the limit only as far as listed, and the list holds nothing stale."""
    over = {name: size for name, size in found.items() if size > listed.get(name, limit)}
    assert not over, f"longer than {limit} lines: {over}"
    stale = {name: most for name, most in listed.items() if found.get(name, 0) < most}
    assert not stale, f"shorter now than listed: lower or drop these entries: {stale}"


def test_files_are_short() -> None:
    found = {one.name: one.text.count("\n") for one in sources("dstore", "tests", "benchmarks")}
    assert len(found) > 20
    _ratchet(found, LONG_FILES, FILE_LINES_MAX)


def test_functions_are_short() -> None:
    found: dict[str, int] = {}
    for one in sources("dstore", "tests", "benchmarks"):
        for function in one.functions():
            name = f"{one.name}:{function.name}"
            size = (function.end_lineno or function.lineno) - function.lineno + 1
            found[name] = max(size, found.get(name, 0))
    _ratchet(found, LONG_FUNCTIONS, FUNCTION_LINES_MAX)


def _faults(where: tuple[str, ...], check: Callable[[Source], list[tuple[int, str]]]) -> list[str]:
    return [f"{one.name}:{line}: {what}" for one in sources(*where) for line, what in check(one)]


def _banned_calls(
    banned: Callable[[str, ast.Call, tuple[ast.AST, ...]], bool],
) -> Callable[[Source], list[tuple[int, str]]]:
    def check(one: Source) -> list[tuple[int, str]]:
        return [
            (call.lineno, name) for name, call, around in one.calls() if banned(name, call, around)
        ]

    return check


def test_time_and_randomness_are_injected() -> None:
    check = _banned_calls(lambda name, *_: bool(_TIME_AND_RANDOM.fullmatch(name)))
    found = [
        fault
        for fault in _faults(("dstore",), check)
        if fault.partition(":")[0] not in CLOCK_AND_RANDOM
    ]
    assert found == []


def test_random_generators_are_made_in_runtime_and_testing_only() -> None:
    check = _banned_calls(lambda name, *_: name in ("random.Random", "random.SystemRandom"))
    found = [
        fault
        for fault in _faults(("dstore",), check)
        if not fault.startswith(("dstore/runtime.py", "dstore/testing/"))
    ]
    assert found == []


def test_threads_and_hidden_tasks() -> None:
    """Blocking work goes through `Workers`; every task has a nursery that somebody sees."""
    hidden = re.compile(
        r"threading\.Thread|concurrent\.futures\.\w+|trio\.to_thread\.run_sync"
        r"|(.*\.)?spawn_system_task"
    )
    check = _banned_calls(lambda name, *_: bool(hidden.fullmatch(name)))
    found = [
        fault
        for fault in _faults(("dstore",), check)
        if not fault.startswith(("dstore/runtime.py", "dstore/testing/"))
    ]
    assert found == []


def test_only_the_command_line_prints() -> None:
    check = _banned_calls(lambda name, *_: name == "print")
    found = [
        fault
        for fault in _faults(("dstore",), check)
        if not fault.startswith("dstore/interfaces/cli/")
    ]
    assert found == []


def _is_broad(handler: ast.ExceptHandler) -> bool:
    if handler.type is None:
        names = {"BaseException"}
    else:
        kinds = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
        names = {kind.id for kind in kinds if isinstance(kind, ast.Name)}
    if not names & {"Exception", "BaseException"}:
        return False
    # Cleaning up and passing the error on swallows nothing.
    return not any(isinstance(node, ast.Raise) for node in ast.walk(handler))


def test_broad_excepts_stand_at_the_boundaries_only() -> None:
    found: dict[str, int] = {}
    for one in sources("dstore"):
        count = sum(
            isinstance(node, ast.ExceptHandler) and _is_broad(node) for node in ast.walk(one.tree)
        )
        if count:
            found[one.name] = count
    over = {name: count for name, count in found.items() if count > BROAD_EXCEPT.get(name, 0)}
    assert over == {}


def test_nothing_but_tests_imports_the_testing_kit() -> None:
    found = [
        one.name
        for one in sources("dstore")
        if not one.name.startswith("dstore/testing/")
        and any(name.startswith("dstore.testing") for name in one.modules.values())
    ]
    assert found == []


def test_tests_wait_for_conditions_not_for_time() -> None:
    """A sleep of fixed length is fine on a mock clock, and between two looks at something;
    anywhere else it is a guess at how fast the machine is."""

    def sleeps(name: str, call: ast.Call, around: tuple[ast.AST, ...]) -> bool:
        if name not in ("trio.sleep", "time.sleep") or not call.args:
            return False
        length = call.args[0]
        if not isinstance(length, ast.Constant) or not length.value:
            return False
        if any(isinstance(outer, ast.While | ast.For | ast.AsyncFor) for outer in around):
            return False
        functions = [outer for outer in around if isinstance(outer, Function)]
        named = {
            node.id if isinstance(node, ast.Name) else node.arg
            for node in (ast.walk(functions[0]) if functions else ())
            if isinstance(node, ast.Name | ast.arg)
        }
        return not named & _SIMULATED

    found = _faults(("tests",), _banned_calls(sleeps))
    # Everything under tests/sim runs on a mock clock.
    assert [fault for fault in found if not fault.startswith("tests/sim/")] == []


def test_modules_say_what_they_are() -> None:
    missing = [
        one.name
        for one in sources("dstore", "benchmarks")
        if one.text.strip() and not ast.get_docstring(one.tree)
    ]
    assert missing == []


def test_no_dumping_grounds() -> None:
    parts = {
        (name, part.removesuffix(".py")) for name in tracked(".py") for part in Path(name).parts
    }
    assert {name for name, part in parts if _NO_FILE_IS_CALLED.search(part)} == set()


def test_no_unfinished_words() -> None:
    suffixes = (".py", ".md", ".toml", ".sh", ".proto", ".html", ".css", ".yml", "Makefile", "run")
    found = [
        f"{name}:{number}: {line.strip()}"
        for name in tracked(*suffixes)
        if not name.startswith("tests/tidy/") and not name.endswith("_pb2.py")
        for number, line in enumerate((ROOT / name).read_text("utf-8").splitlines(), 1)
        if _UNFINISHED.search(line)
    ]
    assert found == []


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("import time\ntime.time()", ["time.time"]),
        ("from time import time as t\nt()", ["time.time"]),
        ("import datetime as d\nd.datetime.now()", ["datetime.datetime.now"]),
        ("import random\ndef f(random): random.random()", []),
        ("import os\nclass A:\n def f(self): return os.urandom(1)", ["os.urandom"]),
        ("print(1)", ["print"]),
    ],
)
def test_the_checks_see_through_imports(text: str, names: list[str]) -> None:
    one = Source("nowhere.py")
    vars(one)["text"] = text  # fills the cached property
    assert [name for name, *_ in one.calls()] == names
    assert all(_TIME_AND_RANDOM.fullmatch(name) for name in names if name != "print")


@pytest.mark.parametrize(
    ("text", "broad"),
    [
        ("except Exception: pass", True),
        ("except BaseException as e: log(e)", True),
        ("except: pass", True),
        ("except (ValueError, Exception): pass", True),
        ("except BaseException: undo(); raise", False),
        ("except ValueError: pass", False),
    ],
)
def test_the_checks_know_a_broad_except(text: str, broad: bool) -> None:
    tree = ast.parse(f"try: x()\n{text}")
    handlers = [node for node in ast.walk(tree) if isinstance(node, ast.ExceptHandler)]
    assert [_is_broad(handler) for handler in handlers] == [broad]
