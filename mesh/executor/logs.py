"""What a task of this node has printed, whoever runs it.

A process has log files: `log`, and `log.1` from before the last rotation (mesh.executor.shim). A container's log is the
engine's. All of it blocks: who must not wait runs this file as a program of its own,
`python -m mesh.executor.logs STATE_DIR TASK_ID TAIL FOLLOW`, which writes the log to standard output (TAIL "all" or a
number; FOLLOW "0" or "1"), or one sentence to standard error.
"""

from __future__ import annotations

import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from mesh.executor.protocol import ExecutorError

CHUNK_BYTES = 64 << 10
POLL_S = 0.25
# Lines that --tail keeps in memory: both files together are at most 20 MiB, so this only bounds their number.
TAIL_MAX = 1_000_000


class NoLogError(Exception):
    """Nothing of the task is on this node. One sentence."""


def has_log(state_dir: Path, task_id: str) -> bool:
    """Whether a task is on this node, running or ended. Raises PermissionError."""
    return any((state_dir / kind / task_id).is_dir() for kind in ("tasks", "containers"))


def write_log(
    state_dir: Path, task_id: str, out: BinaryIO, *, tail: int | None, follow: bool, sleep: Callable[[float], None]
) -> None:
    """Write a task's log to `out`, with `follow` until it has ended. Raises OSError, NoLogError and ExecutorError."""
    if not (state_dir / "containers" / task_id).is_dir():
        copy_log(state_dir / "tasks" / task_id, out, tail=tail, follow=follow, sleep=sleep)
        return
    from mesh.executor.docker.engine import Engine, local_socket  # noqa: PLC0415 - Docker's SDK takes long to import
    from mesh.executor.docker.executor import container_of  # noqa: PLC0415 - as above

    container = container_of(state_dir, task_id)
    if container is None:
        raise NoLogError(f"task {task_id} has no container any more")
    for piece in Engine(local_socket(os.environ)).logs(container, tail=tail, follow=follow):
        out.write(piece)
        out.flush()


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


def main(arguments: list[str]) -> int:
    """See the module."""
    state_dir, task_id, tail, follow = arguments
    lines = None if tail == "all" else int(tail)
    try:
        if not has_log(Path(state_dir), task_id):
            raise NoLogError(f"nothing of task {task_id} is on this node any more")
        out = sys.stdout.buffer
        write_log(Path(state_dir), task_id, out, tail=lines, follow=follow == "1", sleep=time.sleep)
    except BrokenPipeError:  # nobody reads on
        return 1
    except (OSError, NoLogError, ExecutorError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
