"""Structured logs on standard error: `key=value` text for people, or one JSON object a line for machines.

Modules log with the standard library, a constant message and the facts in `extra`:
`log.warning("task failed", extra={"task": task.id, "exit_code": 3})`. Whatever is in `extra` becomes fields. Under
systemd each line begins with its priority in syslog's numbers (sd-daemon(3)), which the journal takes off again.
Text from peers cannot forge lines: control characters are escaped, and every line has a bounded length.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
from collections.abc import Mapping
from datetime import UTC, datetime

from mesh.config import Config

# A line longer than this is cut: it is then data, not a message, and the journal splits at 48 KiB anyway.
LINE_MAX = 16 * 1024
# A traceback is cut in the middle of nothing useful above this.
TRACEBACK_MAX = 64 * 1024

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_PRIORITIES = ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6), (0, 7))
_BARE = re.compile(r'[^\s"=\\\x00-\x1f\x7f]+')


def priority_of(level: int) -> int:
    """Syslog's number of a level: 2 critical, 3 error, 4 warning, 6 info, 7 debug."""
    return next(number for least, number in _PRIORITIES if level >= least)


def _fields(record: logging.LogRecord) -> dict[str, object]:
    return {key: value for key, value in vars(record).items() if key not in _STANDARD}


def _escape(text: str) -> str:
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def _value(value: object) -> str:
    text = value if isinstance(value, str) else str(value)
    return text if _BARE.fullmatch(text) and text.isprintable() else json.dumps(text, ensure_ascii=False)


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class TextFormatter(logging.Formatter):
    """`TIME level logger: message key=value ...`, an exception's traceback on the lines below."""

    def __init__(self, *, times: bool, priorities: bool) -> None:
        super().__init__()
        self._times, self._priorities = times, priorities

    def format(self, record: logging.LogRecord) -> str:
        """One line, or several when there is a traceback; none ends in a newline."""
        fields = "".join(f" {key}={_value(value)}" for key, value in _fields(record).items())
        time = f"{_time(record)} " if self._times else ""
        level = record.levelname.lower()
        first = f"{time}{level} {record.name}: {_escape(record.getMessage())}{_escape(fields)}"[:LINE_MAX]
        lines = [first]
        if record.exc_info:
            lines += self.formatException(record.exc_info)[:TRACEBACK_MAX].splitlines()
        prefix = f"<{priority_of(record.levelno)}>" if self._priorities else ""
        return "\n".join(prefix + line for line in lines)


class JsonFormatter(logging.Formatter):
    """One object a line: time, level, logger, message, then the fields; `exception` holds a traceback."""

    def __init__(self, *, priorities: bool) -> None:
        super().__init__()
        self._priorities = priorities

    def format(self, record: logging.LogRecord) -> str:
        """One line of JSON without its newline."""
        entry: dict[str, object] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage()[:LINE_MAX],
        }
        entry |= {key: _plain(value) for key, value in _fields(record).items() if key not in entry}
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)[:TRACEBACK_MAX]
        prefix = f"<{priority_of(record.levelno)}>" if self._priorities else ""
        return prefix + json.dumps(entry, ensure_ascii=False)


def _plain(value: object) -> object:
    return value if isinstance(value, bool | int | float | None) else str(value)[:LINE_MAX]


def to_journal(environment: Mapping[str, str], device: int, inode: int) -> bool:
    """Whether a stream with these numbers is connected to the journal (systemd.exec(5), JOURNAL_STREAM)."""
    return environment.get("JOURNAL_STREAM", "") == f"{device}:{inode}"


def formatter_for(config: Config, *, journal: bool) -> logging.Formatter:
    """`auto` is text; it leaves out the time when the journal adds its own."""
    if config.log_format == "json":
        return JsonFormatter(priorities=journal)
    return TextFormatter(times=config.log_format == "text" or not journal, priorities=journal)


def setup_logging(config: Config) -> None:
    """Send all logs of this process to standard error as the configuration says. To be called once, at start."""
    try:
        stat = os.fstat(sys.stderr.fileno())
        journal = to_journal(os.environ, stat.st_dev, stat.st_ino)
    except (OSError, ValueError):  # no standard error, or not a file
        journal = False
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter_for(config, journal=journal))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(config.log_level.upper())
    logging.raiseExceptions = False  # a log that cannot be written must not fill the journal with why
