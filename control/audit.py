"""The audit log of a manager: every change that was asked of it, and every call that was refused. JSON, one a line.

    {"at_ms": …, "call": "Control/UpdateNode", "who": "user alice (admin)", "from": "10.0.0.7", "about": "…",
     "result": "done" | "failed: …" | "refused: …"}

Who called is a certificate's holder, or the user of a machine: "uid 1000 on the local socket", and where another node
hands it on "uid 1000 by node … (worker)". It stands where the call arrived, so a change that was handed on to the
leader is written down by both. Specs are not in it: they may hold secrets. No tasks; a line is a write into the page
cache.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path

import msgspec

log = logging.getLogger(__name__)

# Two files of this size: some hundred thousand changes.
FILE_MAX_BYTES = 16 << 20


class AuditLog:
    """See the module. A disk that is full costs lines, not calls; it is logged."""

    def __init__(self, path: Path, wall_ms: Callable[[], int]) -> None:
        self._path, self._wall_ms = path, wall_ms
        self._file: int | None = None
        self._size = 0
        self.lost = 0

    def __call__(self, call: str, who: str, address: str, about: str, result: str) -> None:
        """Write a line."""
        entry = {"at_ms": self._wall_ms(), "call": call, "who": who, "from": address, "about": about, "result": result}
        line = msgspec.json.encode(entry) + b"\n"
        try:
            if self._file is None:
                self._open()
            elif self._size + len(line) > FILE_MAX_BYTES:
                self.close()
                os.replace(self._path, self._path.with_suffix(".log.1"))
                self._open()
            assert self._file is not None
            self._size += os.write(self._file, line)
        except OSError as error:
            self.lost += 1
            log.error("cannot write the audit log", extra={"path": str(self._path), "reason": error.strerror})

    def close(self) -> None:
        """Let go of the file; the next line opens it again."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _open(self) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        self._file = os.open(self._path, flags, 0o600)
        self._size = os.fstat(self._file).st_size
