"""The home directory: who may read it, one process at a time, formats."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dstore.errors import (
    AlreadyRunning,
    CorruptStore,
    NodeError,
    NotFoundError,
    StoreTooNew,
)
from dstore.limits import PRIVATE_FILE_BYTES_MAX
from dstore.storage.layout import Home


@pytest.fixture
def home(tmp_path: Path) -> Home:
    home = Home(tmp_path / "a" / "home")
    home.create()
    return home


@pytest.fixture(params=[0o000, 0o022, 0o277])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_a_home_is_private_whatever_the_umask(tmp_path: Path, umask: int) -> None:
    home = Home(tmp_path / "home")
    home.create()
    home.write_private(home.identity_key, b"secret")
    assert mode(home.directory) == 0o700
    assert mode(home.identity_key) == 0o600
    home.check()
    assert home.read_private(home.identity_key) == b"secret"


def test_writing_replaces_and_tightens(home: Home) -> None:
    home.owner_key.write_bytes(b"old")
    home.owner_key.chmod(0o644)
    home.write_private(home.owner_key, b"new")
    assert mode(home.owner_key) == 0o600
    assert home.read_private(home.owner_key) == b"new"
    assert sorted(path.name for path in home.directory.iterdir()) == ["format", "owner.key"]


@pytest.mark.parametrize("permissions", [0o640, 0o604, 0o610, 0o620, 0o666])
def test_a_key_that_others_may_touch_refuses_to_start(home: Home, permissions: int) -> None:
    home.write_private(home.identity_key, b"secret")
    home.identity_key.chmod(permissions)
    with pytest.raises(NodeError, match="chmod 600") as refusal:
        home.check()
    assert str(home.identity_key) in str(refusal.value)
    with pytest.raises(NodeError, match="chmod 600"):
        home.read_private(home.identity_key)


@pytest.mark.parametrize("permissions", [0o750, 0o701, 0o777])
def test_a_home_that_others_may_enter_refuses_to_start(home: Home, permissions: int) -> None:
    home.directory.chmod(permissions)
    with pytest.raises(NodeError, match="chmod 700"):
        home.check()
    home.directory.chmod(0o700)
    home.check()


def test_the_secret_is_not_in_the_message(home: Home) -> None:
    home.write_private(home.identity_key, b"verysecret")
    home.identity_key.chmod(0o644)
    with pytest.raises(NodeError) as refusal:
        home.read_private(home.identity_key)
    assert "verysecret" not in str(refusal.value)


def test_missing_and_absurd_files(home: Home) -> None:
    with pytest.raises(NotFoundError):
        home.read_private(home.owner_key)
    home.write_private(home.owner_key, bytes(PRIVATE_FILE_BYTES_MAX + 1))
    with pytest.raises(NodeError, match="larger"):
        home.read_private(home.owner_key)


def test_a_lost_or_damaged_key_is_said_with_what_to_do(home: Home) -> None:
    with pytest.raises(NodeError, match="missing: put your copy"):
        home.read_key(home.owner_key)
    home.write_private(home.owner_key, bytes(31))
    with pytest.raises(NodeError, match=r"damaged \(31 bytes.*put your copy"):
        home.read_key(home.owner_key)
    home.write_private(home.owner_key, bytes(range(32)))
    assert home.read_key(home.owner_key) == bytes(range(32))


def test_a_directory_that_is_no_home(tmp_path: Path) -> None:
    home = Home(tmp_path)
    assert not home.exists
    with pytest.raises(NotFoundError, match="dstore init"):
        home.check()


def test_creating_again_leaves_everything(home: Home) -> None:
    home.write_private(home.owner_key, b"mine")
    home.create()
    assert home.exists
    assert home.read_private(home.owner_key) == b"mine"


def test_a_newer_home_is_refused(home: Home) -> None:
    (home.directory / "format").write_text("dstore home 2\n")
    for use in (home.check, home.create):
        with pytest.raises(StoreTooNew):
            use()
    (home.directory / "format").write_text("something else")
    with pytest.raises(CorruptStore):
        home.check()


def test_one_process_at_a_time(home: Home) -> None:
    with home.lock():
        with pytest.raises(AlreadyRunning, match=str(os.getpid())):
            with home.lock():
                raise AssertionError("two hold the lock")
    with home.lock():
        pass


def test_a_killed_process_lets_go(home: Home) -> None:
    script = (
        "import sys\nfrom pathlib import Path\nfrom dstore.storage.layout import Home\n"
        "with Home(Path(sys.argv[1])).lock():\n"
        "    print('locked', flush=True)\n    sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(home.directory)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"locked\n"
        with pytest.raises(AlreadyRunning, match=str(process.pid)):
            with home.lock():
                raise AssertionError("two hold the lock")
        process.kill()
    with home.lock():
        pass
