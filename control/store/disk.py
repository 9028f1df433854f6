"""The one door to the file system: what the log needs of a directory, and nothing else.

All calls block; they are made from the log's own threads. Errors are OSError as the system gives them. The tests have
a disk behind the same protocol that forgets, tears and fails (tests/control/store/simdisk.py).
"""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path
from typing import Protocol

from control.store.errors import StateInUse

LOCK_NAME = "lock"
# A daemon that was killed has its lock until the kernel has taken it apart, and until a child that it was just making
# has begun its own program.
LOCK_WAIT_S = 2.0
LOCK_POLL_S = 0.02


class Disk(Protocol):
    """A directory of files. Handles are small integers."""

    def path(self, name: str) -> str:
        """How to name a file to the user."""

    def lock(self) -> None:
        """Make sure that nobody else uses the directory, and make it if there is none. Raises StateInUse."""

    def unlock(self) -> None:
        """Let others use it."""

    def names(self) -> list[str]:
        """All files in it."""

    def read(self, name: str) -> bytes:
        """A whole file."""

    def size(self, name: str) -> int:
        """Of a file, in bytes."""

    def free_bytes(self) -> int:
        """What the file system has left for us."""

    def open(self, name: str, *, create: bool) -> int:
        """Open for reading and writing; `create` makes it anew, empty."""

    def read_at(self, handle: int, offset: int, length: int) -> bytes:
        """A part of a file; shorter at its end."""

    def write(self, handle: int, data: bytes, offset: int) -> None:
        """Write all of it, or raise with any part written."""

    def sync(self, handle: int) -> None:
        """Returns when the file's contents and size would survive a power failure."""

    def close(self, handle: int) -> None:
        """Done with it. Syncs nothing."""

    def rename(self, old: str, new: str) -> None:
        """Atomic; survives a power failure only after `sync_directory`."""

    def remove(self, name: str) -> None:
        """As `rename`."""

    def sync_directory(self) -> None:
        """Returns when all names would survive a power failure."""


class RealDisk:
    """A directory of this machine; only its owner may read it (the store holds secrets)."""

    def __init__(self, directory: Path, lock_wait_s: float = LOCK_WAIT_S) -> None:
        self._directory = directory
        self._lock_wait_s = lock_wait_s
        self._lock: int | None = None

    def path(self, name: str) -> str:
        return str(self._directory / name)

    def lock(self) -> None:
        if not self._directory.is_dir():
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            sync_directory(self._directory.parent)
        # flock, not lockf: it also keeps apart two users within one process. The descriptor is not inherited by
        # programs that are started, so a task that outlives the daemon does not keep the lock.
        handle = os.open(self.path(LOCK_NAME), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            self._flock(handle)
        except BlockingIOError as error:
            owner = os.pread(handle, 20, 0).decode("ascii", "replace").strip()
            os.close(handle)
            raise StateInUse(
                f"the state directory {self._directory} is in use by another meshd (process {owner or 'unknown'})"
            ) from error
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
        self._lock = handle

    def _flock(self, handle: int) -> None:
        deadline_s = time.monotonic() + self._lock_wait_s
        while True:
            try:
                return fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() >= deadline_s:
                    raise
                time.sleep(LOCK_POLL_S)

    def unlock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def names(self) -> list[str]:
        return sorted(entry.name for entry in os.scandir(self._directory))

    def read(self, name: str) -> bytes:
        return (self._directory / name).read_bytes()

    def size(self, name: str) -> int:
        return (self._directory / name).stat().st_size

    def free_bytes(self) -> int:
        found = os.statvfs(self._directory)
        return found.f_bavail * found.f_frsize

    def read_at(self, handle: int, offset: int, length: int) -> bytes:
        return os.pread(handle, length, offset)

    def open(self, name: str, *, create: bool) -> int:
        flags = os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT | os.O_TRUNC if create else 0)
        return os.open(self.path(name), flags, 0o600)

    def write(self, handle: int, data: bytes, offset: int) -> None:
        view = memoryview(data)
        while view:
            done = os.pwrite(handle, view, offset)
            view = view[done:]
            offset += done

    def sync(self, handle: int) -> None:
        os.fdatasync(handle)

    def close(self, handle: int) -> None:
        os.close(handle)

    def rename(self, old: str, new: str) -> None:
        os.rename(self.path(old), self.path(new))

    def remove(self, name: str) -> None:
        os.unlink(self.path(name))

    def sync_directory(self) -> None:
        sync_directory(self._directory)


def sync_directory(path: Path) -> None:
    """Returns when all names in it would survive a power failure. Raises OSError."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
