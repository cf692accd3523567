"""Logs: one line or one JSON object a record, on standard error.

Text of peers and files ends up in messages, so control characters are escaped: a name cannot
forge a line or drive a terminal.  What is worth saying is decided where it is said.
"""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any, Final, TextIO

from dstore.interfaces.text import escape_controls

# What every record has; anything else came through `extra`.
_STANDARD: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def _extras(record: logging.LogRecord) -> dict[str, Any]:
    return {name: value for name, value in vars(record).items() if name not in _STANDARD}


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")


class TextFormatter(logging.Formatter):
    """`time LEVEL logger: message key=value`; a traceback follows on lines of its own."""

    def format(self, record: logging.LogRecord) -> str:
        extras = "".join(f" {name}={value}" for name, value in _extras(record).items())
        line = f"{_time(record)} {record.levelname:<7} {record.name}: {record.getMessage()}{extras}"
        line = escape_controls(line)
        if record.exc_info:
            traceback = self.formatException(record.exc_info).splitlines()
            line = "\n  ".join([line, *map(escape_controls, traceback)])
        return line


class JsonFormatter(logging.Formatter):
    """One object a line: `time`, `level`, `logger`, `message`, `error`, and what `extra` had."""

    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, Any] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            entry["error"] = self.formatException(record.exc_info)
        entry.update((name, value) for name, value in _extras(record).items() if name not in entry)
        # Everything beyond ASCII is escaped, control characters among it.
        return json.dumps(entry, default=str)


def configure_logs(level: str, form: str, stream: TextIO | None = None) -> None:
    """Send records of `level` and above to `stream` (standard error) as "text" or "json"."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("dstore").setLevel(level.upper())
