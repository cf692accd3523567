"""Progress of long operations, on standard error, for people who watch.

Nothing is shown in the first second, nor where standard error is no terminal.
"""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Final

from dstore.interfaces.text import escape_controls, in_bytes

_SILENT_SECONDS: Final = 1.0
_REDRAW_SECONDS: Final = 0.1
_BAR_CHARS: Final = 24
_WORDS: Final = {
    "import": "reading",
    "encode": "encoding",
    "upload": "uploading",
    "announce": "announcing",
    "read": "fetching",
}


class ProgressLine:
    """A line that is redrawn; gone when the block ends."""

    def __init__(self, label: str) -> None:
        self._label = escape_controls(label)
        self._started = time.monotonic()
        self._drawn = 0.0
        self._shown = False
        self._visible = sys.stderr.isatty()

    def __enter__(self) -> ProgressLine:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._shown:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()

    def update(self, stage: str, done: int, total: int | None) -> None:
        """Show how far it is, if it is time to."""
        now = time.monotonic()
        if not self._visible or now - self._started < _SILENT_SECONDS:
            return
        if now - self._drawn < _REDRAW_SECONDS:
            return
        self._drawn, self._shown = now, True
        parts = [_WORDS.get(stage, stage), self._label, in_bytes(done)]
        if total:
            filled = min(_BAR_CHARS, done * _BAR_CHARS // total)
            parts.insert(2, f"[{'#' * filled}{'.' * (_BAR_CHARS - filled)}]")
            parts[-1] += f" of {in_bytes(total)}"
        sys.stderr.write(f"\r\x1b[K{' '.join(parts)}")
        sys.stderr.flush()
