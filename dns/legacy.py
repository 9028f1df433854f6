"""Serving processes of an earlier daemon: noted in files when they start, ended when those of this daemon serve.

A file says which process it is and when that was started, so that a process which has its number by chance is left
alone. Blocking, but short; errors of the disk are not ours to fail by: a process that was not noted is not ended, and
answers beside ours until the machine is restarted.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
from pathlib import Path

log = logging.getLogger(__name__)

_PREFIX = "mesh-dns-"


class Legacy:
    """The notes in one directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._found: list[tuple[int, int]] = []  # (process id, pidfd)

    def find(self) -> None:
        """Look for processes of an earlier daemon, before ours overwrite its notes."""
        for note in sorted(self._directory.glob(f"{_PREFIX}*")):
            with contextlib.suppress(OSError, ValueError):
                pid, started = map(int, note.read_text().split())
                pidfd = os.pidfd_open(pid)
                if started_at(pid) == started:
                    self._found.append((pid, pidfd))
                else:
                    os.close(pidfd)

    def note(self, index: int, pid: int) -> None:
        """Process number `index` of this daemon is `pid`."""
        path = self._directory / f"{_PREFIX}{index}"
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            beside = path.with_suffix(".new")
            beside.write_text(f"{pid} {started_at(pid)}\n")
            beside.replace(path)
        except OSError as error:
            log.warning("cannot note the name server's process", extra={"path": str(path), "error": str(error)})

    def end(self) -> None:
        """Ours serve: end those of the earlier daemon."""
        for pid, pidfd in self._found:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, signal.SIGTERM)
                log.info("ended the name server of the daemon before", extra={"pid": pid})
            os.close(pidfd)
        self._found = []


def started_at(pid: int) -> int:
    """When a process was started, in clock ticks since boot (proc(5), field 22). Raises OSError."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
