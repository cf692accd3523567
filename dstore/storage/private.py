"""Reading what only a node's own user may read: keys, and where its daemon answers.

Apart from `storage.layout`, so that commands which only ask the daemon start without the means
to write and sync.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Final

from dstore.errors import NodeError, NotFoundError
from dstore.limits import PRIVATE_FILE_BYTES_MAX

_OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO


def api_file(directory: Path) -> Path:
    """URL and token of the daemon that runs on the home: api.json."""
    return directory / "api.json"


def read_private(path: Path) -> bytes:
    """The file's bytes.  Raises NotFoundError, or NodeError where others may read it (with
    the chmod command) or it is larger than PRIVATE_FILE_BYTES_MAX."""
    try:
        with path.open("rb") as file:
            refuse_others(path, "600", os.fstat(file.fileno()))
            content = file.read(PRIVATE_FILE_BYTES_MAX + 1)
    except FileNotFoundError as error:
        raise NotFoundError(f"{path} does not exist") from error
    except OSError as error:
        raise NodeError(f"cannot read {path}: {error.strerror}") from error
    if len(content) > PRIVATE_FILE_BYTES_MAX:
        raise NodeError(f"{path} is larger than any key: is it the right file?")
    return content


def refuse_others(path: Path, mode: str, status: os.stat_result | None = None) -> None:
    """Raise NodeError where group or others may do anything with the file or directory."""
    permissions = stat.S_IMODE((status or path.stat()).st_mode)
    if permissions & _OTHERS:
        raise NodeError(
            f"{path} is open to other users (mode {permissions:o}): run  chmod {mode} '{path}'"
        )
