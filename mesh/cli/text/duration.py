"""Durations as Docker (Go's time.ParseDuration) writes them: 10s, 1m30s, 500ms, 1.5h."""

from __future__ import annotations

import re
from decimal import Decimal

from mesh.cli.text import TextError

_UNIT_NS = {
    "ns": 1,
    "us": 1_000,
    "µs": 1_000,  # U+00B5
    "μs": 1_000,  # U+03BC
    "ms": 1_000_000,
    "s": 1_000_000_000,
    "m": 60_000_000_000,
    "h": 3_600_000_000_000,
}
_PART = re.compile(r"([0-9]+\.?[0-9]*|\.[0-9]+)(ns|us|µs|μs|ms|s|m|h)")
# Go's own limit (an int64 of nanoseconds).
_MAX_NS = (1 << 63) - 1
# A number with more digits is no duration of anybody's.
_LENGTH_MAX = 64


def parse_duration(text: str) -> float:
    """Seconds, not negative. Raises TextError."""
    if text == "0":
        return 0.0
    total, position = Decimal(0), 0
    for part in _PART.finditer(text) if len(text) <= _LENGTH_MAX else ():
        if part.start() != position:
            break
        total += Decimal(part[1]) * _UNIT_NS[part[2]]
        position = part.end()
    if not text or position != len(text):
        hint = f"write {text}s for seconds" if re.fullmatch(r"[0-9]+(\.[0-9]+)?", text) else "such as 10s, 1m30s, 500ms"
        raise TextError(f'"{text}" is not a duration: {hint}')
    if total > _MAX_NS:
        raise TextError(f'"{text}" is too long for a duration')
    return float(total / 1_000_000_000)


def format_duration(seconds: float) -> str:
    """The shortest exact form, as Go prints it: 1m30s, 500ms, 1.5s, 0s."""
    left_ns = round(seconds * 1e9)
    if left_ns < 1_000_000_000:
        for unit in ("ms", "us", "ns"):
            if left_ns >= _UNIT_NS[unit]:
                return f"{Decimal(left_ns) / _UNIT_NS[unit]:f}{unit}"
        return "0s"
    hours, left_ns = divmod(left_ns, _UNIT_NS["h"])
    minutes, left_ns = divmod(left_ns, _UNIT_NS["m"])
    rest = f"{(Decimal(left_ns) / _UNIT_NS['s']).normalize():f}s"
    return (f"{hours}h" if hours else "") + (f"{minutes}m" if hours or minutes else "") + rest


def human_duration(seconds: float) -> str:
    """About how long: "5 seconds", "About a minute", "3 weeks" (after Docker's go-units)."""
    whole = int(seconds)
    minutes, hours = whole // 60, int(seconds / 3600 + 0.5)
    ladder = (
        (whole < 1, "Less than a second"),
        (whole == 1, "1 second"),
        (whole < 60, f"{whole} seconds"),
        (minutes == 1, "About a minute"),
        (minutes < 60, f"{minutes} minutes"),
        (hours == 1, "About an hour"),
        (hours < 48, f"{hours} hours"),
        (hours < 24 * 7 * 2, f"{hours // 24} days"),
        (hours < 24 * 30 * 2, f"{hours // 24 // 7} weeks"),
        (hours < 24 * 365 * 2, f"{hours // 24 // 30} months"),
    )
    return next((words for holds, words in ladder if holds), f"{hours // 24 // 365} years")
