"""The log files of the process executor: `log`, and `log.1` from before the last rotation (mesh.executor.shim)."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

CHUNK_BYTES = 64 << 10
POLL_S = 0.25
# Lines that --tail keeps in memory: both files together are at most 20 MiB, so this only bounds their number.
TAIL_MAX = 1_000_000


def copy_log(directory: Path, out: BinaryIO, *, tail: int | None, follow: bool, sleep: Callable[[float], None]) -> None:
    """Copy a task's log to `out`; with `follow` until it has ended (`exit.json` is there). Raises OSError."""
    current = _open(directory / "log")
    try:
        older = [] if current is None or tail == 0 else list(_older(directory))
        parts = [*older, *(_chunks(current) if current is not None else ())]
        for part in parts if tail is None else _last_lines(parts, tail):
            out.write(part)
        out.flush()
        while follow:
            ended = (directory / "exit.json").exists()  # looked at before reading: what follows it is complete
            current = _copy_new(directory, current, out)
            if ended:
                return
            sleep(POLL_S)
    finally:
        if current is not None:
            current.close()


def _open(path: Path) -> BinaryIO | None:
    try:
        return path.open("rb")
    except FileNotFoundError:
        return None


def _older(directory: Path) -> Iterator[bytes]:
    file = _open(directory / "log.1")
    if file is not None:
        with file:
            yield from _chunks(file)


def _chunks(file: BinaryIO) -> Iterator[bytes]:
    while chunk := file.read(CHUNK_BYTES):
        yield chunk


def _last_lines(parts: list[bytes], count: int) -> Iterator[bytes]:
    lines = deque(b"".join(parts).splitlines(keepends=True), maxlen=min(count, TAIL_MAX))
    yield from lines


def _copy_new(directory: Path, current: BinaryIO | None, out: BinaryIO) -> BinaryIO | None:
    """Copy what has been written since, also past a rotation; the file to go on with."""
    path = directory / "log"
    while True:
        if current is not None:
            for chunk in _chunks(current):
                out.write(chunk)
            out.flush()
        newest = _open(path)
        if newest is None or (current is not None and _same(newest, current)):
            if newest is not None:
                newest.close()
            return current
        if current is not None:
            current.close()
        current = newest


def _same(one: BinaryIO, other: BinaryIO) -> bool:
    a, b = os.fstat(one.fileno()), os.fstat(other.fileno())
    return (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino)
