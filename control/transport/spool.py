"""Snapshots on disk: where those that come are put together, and where those that go are read from.

A snapshot that is coming is `NAME.part`, NAME being its digest: after a break, or a restart, it goes on where the file
ends. Only one is kept, since only the newest is of use. Everything blocks, and is called in a thread.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from control.transport.wire import Offer

_READ_BYTES = 1024 * 1024


class Source(Protocol):
    """A snapshot to be sent: it must not change meanwhile. `read` is called in a thread."""

    @property
    def size_bytes(self) -> int:
        """Of all of it."""

    @property
    def sha256(self) -> bytes:
        """Of all of it."""

    def read(self, offset: int, size: int) -> bytes:
        """Some of it. Raises OSError."""


@dataclass(frozen=True, slots=True)
class FileSource:
    """A file. Made by `of`."""

    path: Path
    size_bytes: int
    sha256: bytes

    @classmethod
    def of(cls, path: Path) -> FileSource:
        """Blocks while it reads it all. Raises OSError."""
        return cls(path, path.stat().st_size, digest_of(path))

    def read(self, offset: int, size: int) -> bytes:
        """Raises OSError."""
        with self.path.open("rb") as file:
            file.seek(offset)
            return file.read(size)


@dataclass(frozen=True, slots=True)
class BytesSource:
    """Something small enough to be held."""

    data: bytes

    @property
    def size_bytes(self) -> int:
        """See Source."""
        return len(self.data)

    @property
    def sha256(self) -> bytes:
        """See Source."""
        return hashlib.sha256(self.data).digest()

    def read(self, offset: int, size: int) -> bytes:
        """See Source."""
        return self.data[offset : offset + size]


class Spool:
    """One directory, for the snapshots that come. All methods block, and raise OSError."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def clear(self) -> None:
        """What a crash left behind: whole snapshots that nobody has taken."""
        for path in self._directory.glob("*.snapshot"):
            path.unlink(missing_ok=True)

    def begin(self, offer: Offer) -> int:
        """Offset from which on this snapshot is still needed. Others are given up."""
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        mine = self._part(offer)
        for path in self._directory.glob("*.part"):
            if path != mine:
                path.unlink(missing_ok=True)
        if not mine.exists():
            mine.touch(mode=0o600)
        size = mine.stat().st_size
        if size > offer.size_bytes:
            os.truncate(mine, 0)
            size = 0
        return size

    def write(self, offer: Offer, offset: int, data: bytes) -> None:
        """Put bytes in their place."""
        handle = os.open(self._part(offer), os.O_WRONLY)
        try:
            view = memoryview(data)
            while view:
                written = os.pwrite(handle, view, offset)
                view, offset = view[written:], offset + written
        finally:
            os.close(handle)

    def finish(self, offer: Offer) -> Path | None:
        """The whole, synced, if it is what was offered; otherwise None, and it is gone. Whoever gets it removes it."""
        part = self._part(offer)
        if digest_of(part) != offer.sha256:
            part.unlink()
            return None
        handle = os.open(part, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
        whole = part.with_suffix(".snapshot")
        part.rename(whole)
        handle = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
        return whole

    def _part(self, offer: Offer) -> Path:
        return self._directory / f"{offer.sha256.hex()}.part"


def digest_of(path: Path) -> bytes:
    """SHA-256. Blocks. Raises OSError."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while data := file.read(_READ_BYTES):
            digest.update(data)
    return digest.digest()
