"""The command line as a whole: quick help, every command documented, errors and exit codes."""

from __future__ import annotations

import json
import re
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from dstore.config import Config, load_config
from dstore.core.unixfs import PROFILES
from dstore.interfaces.cli.main import dstore, main
from dstore.interfaces.cli.pin import _date
from dstore.interfaces.client import Client
from dstore.storage.layout import Home

ROOT = Path(__file__).parents[3]
HELP_SECONDS_MAX = 0.15
HEAVY = ("trio", "libp2p", "numpy", "starlette", "httptools", "cryptography", "sqlite3")
# Of which each costs a command more milliseconds than its request takes.
NOT_FOR_CLIENTS = (
    *(name for name in HEAVY if name != "httptools"),
    *("http.client", "email", "ssl", "ctypes", "msgspec", "libipld", "asyncio"),
    *("dstore.config", "dstore.core", "dstore.network", "dstore.runtime", "dstore.service"),
    *("dstore.storage.durable", "dstore.storage.layout"),
)


def run(*arguments: str, stdin: bytes = b"", environ: dict[str, str] | None = None) -> Result:
    return CliRunner().invoke(dstore, list(arguments), input=stdin, env=environ)


def commands(group: click.Command = dstore, *path: str) -> Iterator[tuple[str, click.Command]]:
    """Every command that does something, with its full name."""
    if not isinstance(group, click.Group):
        yield " ".join(path), group
        return
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        yield from commands(command, *path, name)


def exit_of(*arguments: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(list(arguments))
    assert isinstance(caught.value.code, int)
    return caught.value.code


# --- Help --------------------------------------------------------------------------------


def test_help_imports_nothing_heavy_and_is_quick() -> None:
    code = (
        "import sys; sys.argv = ['dstore', '--help']\n"
        "from dstore.interfaces.cli.main import main\n"
        "try:\n    main()\n"
        f"finally:\n    print([name for name in {HEAVY} if name in sys.modules])\n"
    )
    seconds: list[float] = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        # Of the processor: other processes of the machine must not decide a test.
        seconds.append(after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)
        assert done.stdout.splitlines()[-1] == b"[]"
        assert b"Commands:" in done.stdout
    assert min(seconds) < HELP_SECONDS_MAX


@pytest.mark.parametrize(
    ("command", "allowed"),
    [
        ("status", set()),
        ("status cid", set()),
        ("add f", set()),
        ("cat cid", set()),
        ("ls cid", set()),
        ("pin ls", set()),
        ("peers", set()),
        ("bandwidth", set()),
        # It says what the disk refuses as the stores do.
        ("get -o out cid", {"ctypes", "dstore.storage.durable"}),
    ],
)
def test_commands_that_ask_the_daemon_import_little(
    command: str, allowed: set[str], tmp_path: Path
) -> None:
    """With a daemon that is gone without a word, so that the client is imported and used."""
    home = Home(tmp_path / "home")
    home.create()
    # Nobody listens on the discard port of this address.
    told = {"url": "http://127.0.0.1:9", "token": "x"}
    home.write_private(home.api, json.dumps(told).encode())
    code = (
        "import sys\n"
        "from dstore.interfaces.cli.main import main\n"
        "try:\n    main(sys.argv[1:])\n"
        "finally:\n    print(*sys.modules)\n"
    )
    arguments = [*command.split(), "--home", str(home.directory)]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, check=False, cwd=tmp_path
    )
    assert done.returncode == 1
    assert b"does not answer" in done.stderr
    loaded = set(done.stdout.decode().split())
    assert "dstore.interfaces.client" in loaded
    assert {*NOT_FOR_CLIENTS} & loaded == allowed


def test_every_command_takes_home_or_a_directory_and_json() -> None:
    found = dict(commands())
    assert len(found) == 21
    for name, command in found.items():
        options = {option for parameter in command.params for option in parameter.opts}
        assert "--json" in options, name
        assert ("--dir" if name.startswith("devnet ") else "--home") in options, name
        assert command.help, name
        described = (one for one in command.params if isinstance(one, click.Option))
        assert all(option.help for option in described), name


def test_every_command_and_option_is_in_the_reference() -> None:
    text = (ROOT / "docs/reference/cli.md").read_text("utf-8")
    sections = dict(re.findall(r"^### `dstore ([^`]*)`$(.*?)(?=^##|\Z)", text, re.M | re.S))
    sections = {
        re.sub(r"[ ]?[A-Z\[].*$", "", name).strip(): body for name, body in sections.items()
    }
    found = dict(commands())
    assert sections.keys() == found.keys()
    for name, command in found.items():
        for parameter in command.params:
            for option in parameter.opts if isinstance(parameter, click.Option) else ():
                if option not in ("--home", "--json", "--dir"):
                    assert f"`{option}" in sections[name], f"{name} {option}"


def test_help_of_the_groups_matches_that_of_the_commands() -> None:
    context = click.Context(dstore)
    lines = dict(re.findall(r"^  (\w+) +(\S.*)$", run("--help").output, re.M))
    for name in dstore.list_commands(context):
        command = dstore.get_command(context, name)
        assert command is not None
        assert command.get_short_help_str(100).split()[:2] == lines[name].split()[:2], name


# --- Usage and errors --------------------------------------------------------------------


def test_unknown_commands_name_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_of("stats") == 2
    assert "Did you mean status?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["get"], 2, "Missing argument"),
        (["add", "--home", "{home}", "x"], 1, "dstore run --home"),
        (["add", "--home", "{home}", "-", "-"], 2, "once"),
        (["add", "--home", "{home}", ""], 2, "empty path"),
        (["add", "--home", "{home}", "--pin-for", "soon", "x"], 2, "not a duration"),
        (["add", "--home", "{home}", "--pin-for", "0d", "x"], 2, "too short"),
        (["add", "--home", "{home}", "--require-guarantee", "-1", "x"], 2, "range"),
        (["add", "--home", "{home}", "--cid-only", "/nowhere/x"], 3, "does not exist"),
        (["add", "--home", "{home}", "--cid-only", "--cid-profile", "x", "/"], 2, "no CID profile"),
        (["cat", "--home", "{home}", "--offset", "x", "y"], 2, "not a valid integer"),
        (["id", "--home", "{home}/none"], 3, "dstore init --home"),
        (["status", "--home", "{home}"], 1, "no daemon runs"),
        (["config", "check", "--home", "{home}/none"], 3, "does not exist"),
        (["devnet", "status", "--dir", "{home}/none"], 3, "dstore devnet up"),
        (["devnet", "up", "-n", "0", "--dir", "{home}/none"], 2, "1 to 64 nodes"),
    ],
)
def test_exit_codes_and_messages(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    message: str,
) -> None:
    home = tmp_path / "home"
    run("init", "--home", str(home))
    assert exit_of(*(one.replace("{home}", str(home)) for one in arguments)) == code
    assert message in capsys.readouterr().err


def test_output_that_cannot_be_written_is_one_line() -> None:
    with Path("/dev/null").open("rb") as readable:
        done = subprocess.run(
            [sys.executable, "-m", "dstore", "--version"],
            stdout=readable,
            stderr=subprocess.PIPE,
            check=False,
        )
    assert (done.returncode, done.stderr) == (1, b"dstore: Bad file descriptor\n")


def test_adding_an_input_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    assert exit_of("add", "--cid-only", "-") == 2


def test_pins_that_outlast_every_calendar_are_listed() -> None:
    assert [_date(moment) for moment in (None, 0.0, 3e11, 1e30)] == [
        "-",
        "1970-01-01",
        "always",
        "always",
    ]


def test_messages_cannot_drive_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_of("add", "--cid-only", "/no\x1b[2J\u202ewhere") == 3
    error = capsys.readouterr().err
    assert "\\x1b[2J\\u202e" in error
    assert "\x1b" not in error


@pytest.mark.parametrize(("kind", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_get_that_is_ended_leaves_no_part_of_a_file(
    kind: signal.Signals, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / ".dstore-1-0.part"  # of another process, at work beside it

    def tree(_: Client, path: str) -> Iterator[dict[str, object] | bytes]:
        yield {"path": [], "kind": "file", "size": 10, "target": None}
        yield b"12345"
        other.write_bytes(b"abc")
        assert len(list(tmp_path.iterdir())) == 2
        signal.raise_signal(kind)
        raise AssertionError("not ended")

    monkeypatch.setattr(Client, "of_home", lambda _: Client("http://127.0.0.1:1", "", tmp_path))
    monkeypatch.setattr(Client, "tree", tree)
    # What ends a process would end the tests; and who starts them may have told them to ignore
    # interrupts, as shells do in the background.
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    interrupted_before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert exit_of("get", "x", "-o", str(tmp_path / "out")) == code
        assert signal.getsignal(signal.SIGTERM) is not signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)
        signal.signal(signal.SIGINT, interrupted_before)
    assert list(tmp_path.iterdir()) == [other]


# --- Homes and configuration -------------------------------------------------------------


def test_init_makes_a_private_home_once(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    bootstrap = "/ip4/192.0.2.1/tcp/4180/p2p/12D3KooWAsWJmNNtfA5V3XcXo5qyYJDc8JUn3gsV6YEBvUKhxpdb"
    options = ["--label", 'a "b" 🏠', "--role", "client", "--capacity", "3 GiB"]
    options += ["--bootstrap", bootstrap, "--listen", "/ip4/127.0.0.1/tcp/0", "--json"]
    first = json.loads(run("init", "--home", str(home.directory), *options).output)
    assert first["created"] is True
    home.check()
    config = load_config(home.config, {})
    assert (config.domain.label, config.node.role) == ('a "b" 🏠', "client")
    assert (config.storage.capacity, config.network.bootstrap) == ("3 GiB", (bootstrap,))
    again = json.loads(run("init", "--home", str(home.directory), "--json").output)
    assert (again["created"], again["peer_id"]) == (False, first["peer_id"])
    assert load_config(home.config, {}) == config
    environ = {"DSTORE_HOME": str(home.directory)}
    assert run("id", environ=environ).output.strip() == first["peer_id"]
    elsewhere = ["--home", str(home.directory), "id"]
    assert run(*elsewhere, environ={"DSTORE_HOME": "/no"}).output.strip() == first["peer_id"]


def test_init_refuses_what_is_no_setting(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home = tmp_path / "home"
    assert exit_of("init", "--home", str(home), "--capacity", "much", "--bootstrap", "x") == 2
    error = capsys.readouterr().err
    assert "storage.capacity" in error
    assert "network.bootstrap" in error or "not a size" in error
    assert not home.exists()


def test_config_show_and_check(tmp_path: Path) -> None:
    home = ["--home", str(tmp_path)]
    shown = run("config", "show", *home).output
    (tmp_path / "node.toml").write_text(shown)
    assert load_config(tmp_path / "node.toml", {}) == Config()
    form = json.loads(run("config", "show", "--json", *home).output)
    assert form["gateway"]["listen"] == "127.0.0.1:8180"
    assert run("config", "check", *home).output.endswith(": fine\n")
    (tmp_path / "node.toml").write_text("[storge]\n[node]\nrole = 3\n")
    checked = run("config", "check", "--json", *home)
    assert len(json.loads(checked.output)["faults"]) == 2
    assert exit_of("config", "check", *home) == 2
    assert exit_of("run", *home) == 2


@pytest.mark.parametrize(
    "path", sorted((ROOT / "configs").glob("*.toml")), ids=lambda one: one.name
)
def test_the_example_configurations_are_valid(path: Path) -> None:
    load_config(path, {})


def test_there_are_the_examples_that_the_documentation_names() -> None:
    names = {path.name for path in (ROOT / "configs").glob("*.toml")}
    assert names == {"node.toml", "storage-node.toml", "gateway-only.toml", "devnet.toml"}


# --- Without a daemon --------------------------------------------------------------------


def test_cid_only_needs_nothing_and_stores_nothing(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"hello\n")
    raw = "bafkreicysg23kiwv34eg2d7qweipxwosdo2py4ldv42nbauguluen5v6am"
    old = "QmZULkCELmmk5XNfCgTnCyFgAVxBRBXyDHGGMVoLFLiXEN"
    home = tmp_path / "home"
    base = ["add", "--home", str(home), "--cid-only"]
    assert run(*base, str(path)).output == f"{raw}\n"
    assert run(*base, "--cid-profile", "unixfs-v0-2015", str(path)).output == f"{old}\n"
    assert len(PROFILES) == 2
    form = json.loads(run(*base, "--json", str(path)).output)
    assert form == {"cid": raw, "name": str(path)}
    assert not home.exists()


def test_local_adds_without_a_daemon(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    run("init", "--home", str(home.directory))
    (tmp_path / "a").write_bytes(b"hello\n")
    base = ["add", "--home", str(home.directory), "--local-only"]
    result = run(*base, "--json", str(tmp_path / "a"), str(tmp_path / "a"))
    first, second = map(json.loads, result.output.splitlines())
    assert first == second
    assert first.keys() >= {"cid", "manifest", "code", "protected", "guarantee"}
    assert (first["manifest"], first["code"], first["protected"]) == (None, None, False)
    plain = run(*base, str(tmp_path / "a")).output
    assert plain == f"added {first['cid']} a\n"
    with home.lock(), pytest.raises(SystemExit) as caught:
        main([*base, str(tmp_path / "a")])
    assert caught.value.code == 1
    assert exit_of(*base, "--require-guarantee", "1", str(tmp_path / "a")) == 2
