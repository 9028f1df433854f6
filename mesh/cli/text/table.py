"""Aligned columns, as Docker's (Go's tabwriter with minimum width 10 and padding 3)."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

MIN_WIDTH = 10
PADDING = 3
ID_LENGTH = 12


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lines, each ended by a newline; no space at their ends."""
    lines = [list(header), *(list(row) for row in rows)]
    widths = [max(MIN_WIDTH, *(width(line[i]) + PADDING for line in lines)) for i in range(len(header))]
    return "".join(
        "".join(cell + " " * (w - width(cell)) for cell, w in zip(line, widths, strict=True)).rstrip() + "\n"
        for line in lines
    )


def width(text: str) -> int:
    """Columns on a terminal: East Asian wide characters take two, combining ones none."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in ("W", "F") else 1 for c in text
    )


def shorten(text: str, most: int) -> str:
    """`text`, cut to `most` characters with an ellipsis as the last."""
    return text if len(text) <= most else text[: most - 1] + "…"


def printable(text: str) -> str:
    """`text` without what could move a cursor or break a line: other people's words reach our tables."""
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def short_id(text: str) -> str:
    """The beginning of an id, as lists show it."""
    return text[:ID_LENGTH]
