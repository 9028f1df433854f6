"""Logs of several tasks as one: whole lines, each with the name of its task before it."""

from __future__ import annotations

from collections.abc import Iterator

# A line without an end is shown in parts, so that nobody can make us remember it for ever.
LINE_MAX_BYTES = 64 << 10


class Interleaver:
    """Pieces in, whole lines out. `width`: of the names seen so far, so that most lines are aligned."""

    def __init__(self) -> None:
        self._parts: dict[str, bytes] = {}
        self._width = 0

    def add(self, name: str, data: bytes) -> Iterator[bytes]:
        """What a piece completes."""
        self._width = max(self._width, len(name))
        *whole, rest = (self._parts.get(name, b"") + data).split(b"\n")
        for line in whole:
            yield self._line(name, line)
        if len(rest) > LINE_MAX_BYTES:
            yield self._line(name, rest)
            rest = b""
        self._parts[name] = rest

    def flush(self) -> Iterator[bytes]:
        """Lines that never ended."""
        for name, rest in self._parts.items():
            if rest:
                yield self._line(name, rest)
        self._parts.clear()

    def _line(self, name: str, line: bytes) -> bytes:
        return f"{name:<{self._width}} | ".encode() + line + b"\n"
