"""The directories that the files of one kind are spread over, by the ends of their names."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from dstore.storage.durable import node_error, sync_directory

# By the end of the text: every CIDv1 starts alike, and the end of a digest is even.
_HEX_DIGITS: Final = 2
_SHARDS: Final = 16**_HEX_DIGITS


class Shards:
    """Those below one directory, which exists.  Safe to use from several threads."""

    def __init__(self, directory: Path) -> None:
        """Raises NodeError."""
        self._prefix = str(directory)
        self._made = len(self.there()) == _SHARDS

    def path(self, name: str) -> str:
        """Where the file of that name belongs; it ends in hexadecimal digits."""
        return f"{self._prefix}/{name[-_HEX_DIGITS:]}/{name}"

    def make(self) -> None:
        """All at once, with the first file: many a node never keeps one, and to make each with
        the first file in it costs each of some hundreds a sync.  Raises NodeError."""
        if self._made:
            return
        try:
            for shard in range(_SHARDS):
                path = f"{self._prefix}/{shard:0{_HEX_DIGITS}x}"
                Path(path).mkdir(mode=0o700, exist_ok=True)
            sync_directory(self._prefix)
        except OSError as error:
            raise node_error(error, f"making {path}") from error
        self._made = True

    def there(self) -> list[str]:
        """The shards that have been made, in order.  Raises NodeError."""
        try:
            with os.scandir(self._prefix) as entries:
                return sorted(e.path for e in entries if e.is_dir(follow_symlinks=False))
        except OSError as error:
            raise node_error(error, f"listing {self._prefix}") from error
