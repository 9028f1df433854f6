"""mesh.log: lines compared literally."""

from __future__ import annotations

import io
import json
import logging
import sys
from collections.abc import Iterator

import pytest

from mesh.config import Config
from mesh.log import LINE_MAX, JsonFormatter, TextFormatter, formatter_for, priority_of, setup_logging, to_journal


def record(message: str = "task failed", level: int = logging.WARNING, **extra: object) -> logging.LogRecord:
    made = logging.makeLogRecord(
        {"name": "mesh.agent", "msg": message, "levelno": level, "levelname": logging.getLevelName(level)} | extra
    )
    made.created = 1_790_000_000.125
    return made


def raised() -> logging.LogRecord:
    try:
        raise OSError("no\nroute")
    except OSError:
        return record(exc_info=sys.exc_info())


TIME = "2026-09-21T14:13:20.125Z"
PLAIN = TextFormatter(times=True, priorities=False)


@pytest.mark.parametrize(
    ("made", "line"),
    [
        (record(), f"{TIME} warning mesh.agent: task failed"),
        (record(task="a1", exit_code=3), f"{TIME} warning mesh.agent: task failed task=a1 exit_code=3"),
        (record(error='no "such" thing'), rf'{TIME} warning mesh.agent: task failed error="no \"such\" thing"'),
        (record(empty="", equal="a=b"), f'{TIME} warning mesh.agent: task failed empty="" equal="a=b"'),
        (record("from %s", args=("peer\n<0>forged",)), f"{TIME} warning mesh.agent: from peer\\n<0>forged"),
        (record(name_="é\x1b[31m"), f'{TIME} warning mesh.agent: task failed name_="é\\u001b[31m"'),
    ],
)
def test_text(made: logging.LogRecord, line: str) -> None:
    assert PLAIN.format(made) == line


def test_text_for_the_journal_has_priorities_on_every_line_and_no_time() -> None:
    lines = TextFormatter(times=False, priorities=True).format(raised()).split("\n")
    assert lines[0] == "<4>warning mesh.agent: task failed"
    assert lines[1] == "<4>Traceback (most recent call last):"
    assert all(line.startswith("<4>") for line in lines)
    assert len(lines) > 3


def test_json() -> None:
    line = JsonFormatter(priorities=True).format(record(task="a1", code=3, ok=True, none=None, time="x", many=(1, 2)))
    assert line.startswith("<4>{")
    assert json.loads(line[3:]) == {
        "time": TIME,
        "level": "warning",
        "logger": "mesh.agent",
        "message": "task failed",
        "task": "a1",
        "code": 3,
        "ok": True,
        "none": None,
        "many": "(1, 2)",
    }
    assert "no\nroute" in json.loads(JsonFormatter(priorities=False).format(raised()))["exception"]


def test_lines_are_bounded() -> None:
    huge = record("x" * (3 * LINE_MAX), other="y" * (3 * LINE_MAX))
    assert len(PLAIN.format(huge)) == LINE_MAX
    assert len(JsonFormatter(priorities=False).format(huge)) < 3 * LINE_MAX


@pytest.mark.parametrize(
    ("level", "priority"),
    [
        (logging.CRITICAL, 2),
        (logging.ERROR, 3),
        (logging.WARNING, 4),
        (logging.INFO, 6),
        (logging.DEBUG, 7),
        (1, 7),
        (35, 4),
    ],
)
def test_priorities(level: int, priority: int) -> None:
    assert priority_of(level) == priority


def test_the_journal_is_known_by_its_numbers() -> None:
    assert to_journal({"JOURNAL_STREAM": "8:1234"}, 8, 1234)
    assert not to_journal({"JOURNAL_STREAM": "8:1234"}, 8, 1235)
    assert not to_journal({}, 8, 1234)


@pytest.mark.parametrize(
    ("log_format", "journal", "start"),
    [
        ("auto", False, TIME),
        ("auto", True, "<4>warning"),
        ("text", True, f"<4>{TIME}"),
        ("json", False, '{"time"'),
        ("json", True, '<4>{"time"'),
    ],
)
def test_formats(log_format: str, journal: bool, start: str) -> None:
    config = Config(log_format=log_format)  # type: ignore[arg-type]
    assert formatter_for(config, journal=journal).format(record()).startswith(start)


@pytest.fixture
def root_logger() -> Iterator[logging.Logger]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield root
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.raiseExceptions = True


def test_setup_replaces_what_was_there(root_logger: logging.Logger, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    setup_logging(Config(log_level="warning", log_format="json"))
    setup_logging(Config(log_level="warning", log_format="json"))
    logging.getLogger("any").info("hidden")
    logging.getLogger("any").warning("shown", extra={"task": "t"})
    assert [json.loads(line)["message"] for line in stream.getvalue().splitlines()] == ["shown"]
