"""Text for people and logs: what strangers wrote cannot forge a line or drive a terminal."""

from __future__ import annotations

import io
import json
import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dstore.interfaces.logs import JsonFormatter, TextFormatter, configure_logs
from dstore.interfaces.text import escape_controls, in_bytes, in_time

HOSTILE = "a\x1b[31m\nb\u202e\udcff\u2028"


def test_controls_are_written_out() -> None:
    assert escape_controls(HOSTILE) == "a\\x1b[31m\\x0ab\\u202e\\xff\\u2028"
    assert escape_controls("Überblick ☃ 中") == "Überblick ☃ 中"


@given(st.text() | st.text(alphabet=[chr(code) for code in (*range(40), 0x202E, 0xDC80, 0xE0001)]))
def test_what_is_escaped_can_be_printed_on_one_line(text: str) -> None:
    escaped = escape_controls(text)
    assert not any(character in escaped for character in "\n\r\x1b\x07\u202e\u2028\x9b")
    escaped.encode("utf-8")
    assert escape_controls(escaped) == escaped


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (1 << 60, "1048576.0 TiB")]
)
def test_sizes(size: int, text: str) -> None:
    assert in_bytes(size) == text


def test_times() -> None:
    assert [in_time(one) for one in (3, 119, 120, 7200, 90 * 86_400)] == [
        "3 s",
        "119 s",
        "2 min",
        "2 h",
        "90 days",
    ]


def record(message: str, **extra: object) -> logging.LogRecord:
    made = logging.makeLogRecord({"name": "dstore.x", "levelname": "INFO", "msg": message})
    vars(made).update(extra)
    return made


def test_a_text_record_is_one_safe_line() -> None:
    line = TextFormatter().format(record("from " + HOSTILE, peer=HOSTILE))
    assert "\n" not in line
    assert "\x1b" not in line
    assert line.endswith("INFO    dstore.x: from " + escape_controls(HOSTILE + " peer=" + HOSTILE))


def test_a_json_record_is_one_object_with_its_extras() -> None:
    line = JsonFormatter().format(record("hello " + HOSTILE, peer="p", count=3, message_="x"))
    assert line.isascii()
    assert line.isprintable()
    entry = json.loads(line)
    assert entry["message"] == "hello " + HOSTILE
    assert (entry["level"], entry["logger"], entry["peer"], entry["count"]) == (
        "info",
        "dstore.x",
        "p",
        3,
    )
    assert entry["time"].startswith("1970") or entry["time"][4] == "-"


@pytest.mark.parametrize("form", ["text", "json"])
def test_tracebacks_are_kept_and_safe(form: str) -> None:
    root, ours = logging.getLogger(), logging.getLogger("dstore")
    handlers, level, own_level = root.handlers[:], root.level, ours.level
    stream = io.StringIO()
    try:
        configure_logs("info", form, stream)
        try:
            raise ValueError("broken\x1b[2J")
        except ValueError:
            logging.getLogger("dstore.test").exception("it failed")
        logging.getLogger("dstore.test").debug("not shown")
        logging.getLogger("other").info("not shown either")
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
        ours.setLevel(own_level)
    text = stream.getvalue()
    assert "it failed" in text
    assert "ValueError" in text
    assert "\x1b" not in text
    assert "not shown" not in text
