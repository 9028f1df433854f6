"""Snapshot files: written aside, synced, renamed; read in chunks. Blocks; has no threads.

    snapshot-0000000000000123     the state after entry 123

A file under its name is whole. Whether it counts is for the log to say (`control.store.segments`): it does once a
`Batch` that names it is synced there.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable, Iterator
from contextlib import suppress

from control.store.disk import Disk
from control.store.errors import BackendFailed, Damaged
from control.store.record import SnapshotMeta
from control.store.sealing import KeyRing, Sealer, sealer_of
from control.store.wal import (
    FORMAT,
    HEADER_BYTES,
    PLAIN,
    Chunk,
    End,
    Footer,
    Record,
    SnapshotHeader,
    first_record,
    frame,
    read_frame,
    read_head,
)

UNFINISHED = ".new"
NAME = re.compile(r"snapshot-(\d{16})")
# One frame, one message to another manager. Bounds what a damaged length can make us read.
CHUNK_MAX_BYTES = 4 * 1024 * 1024


def snapshot_name(index: int) -> str:
    """The file of the snapshot at `index`."""
    return f"snapshot-{index:016d}"


def indexes(disk: Disk) -> list[int]:
    """Of all snapshots that are there, in order."""
    return sorted(int(match[1]) for name in disk.names() if (match := NAME.fullmatch(name)))


class SnapshotWriter:
    """A snapshot in the making: `write` each chunk, then `finish`; or `abandon`. Raises OSError as the disk does."""

    def __init__(self, disk: Disk, cluster_id: str, ring: KeyRing, meta: SnapshotMeta, name: str = "") -> None:
        self._disk = disk
        self._meta = meta
        self._sealer: Sealer = ring.current()
        self._context = _context(cluster_id, meta.index)
        self._end = End(0, 0, 0)
        self._check = 0
        self.chunks = 0
        self._name = name or snapshot_name(meta.index)
        self._temporary = self._name + UNFINISHED
        self._handle: int | None = disk.open(self._temporary, create=True)
        self._write(SnapshotHeader(FORMAT, cluster_id, self._sealer.key_id, meta), PLAIN)

    @property
    def meta(self) -> SnapshotMeta:
        return self._meta

    @property
    def size_bytes(self) -> int:
        return self._end.offset

    def write(self, data: bytes) -> None:
        """The next chunk."""
        assert len(data) <= CHUNK_MAX_BYTES
        self._write(Chunk(data), self._sealer)
        self._check = zlib.crc32(data, self._check)
        self.chunks += 1

    def finish(self) -> None:
        """Make it durable under its name."""
        assert self._handle is not None
        self._write(Footer(self.chunks, self._check), self._sealer)
        self._disk.sync(self._handle)
        self._disk.close(self._handle)
        self._handle = None
        self._disk.rename(self._temporary, self._name)
        self._disk.sync_directory()

    def abandon(self) -> None:
        """Remove what was written. Idempotent, and nothing after `finish`."""
        if self._handle is not None:
            self._disk.close(self._handle)
            self._handle = None
            self._disk.remove(self._temporary)

    def _write(self, record: Record, sealer: Sealer) -> None:
        assert self._handle is not None
        data, end = frame(record, self._end, self._meta.index, sealer, self._context)
        self._disk.write(self._handle, data, self._end.offset)
        self._end = end


def write_snapshot(
    disk: Disk, cluster_id: str, ring: KeyRing, meta: SnapshotMeta, chunks: Iterable[bytes], name: str = ""
) -> int:
    """All of it; its size in bytes. Raises OSError, and nothing is left then but perhaps an unfinished file."""
    writer = SnapshotWriter(disk, cluster_id, ring, meta, name)
    try:
        for chunk in chunks:
            writer.write(chunk)
        writer.finish()
    finally:
        writer.abandon()
    return writer.size_bytes


def read_header(disk: Disk, name: str) -> SnapshotHeader | None:
    """Of a snapshot file; None if it has no good one."""
    handle = disk.open(name, create=False)
    try:
        return first_record(disk.read_at(handle, 0, CHUNK_MAX_BYTES), SnapshotHeader)
    finally:
        disk.close(handle)


def keys_of_snapshots(disk: Disk) -> set[str]:
    """What any of them is encrypted with, also one that is being written. Raises OSError."""
    found = set()
    for name in disk.names():
        with suppress(FileNotFoundError):  # it was removed, or given its name, meanwhile
            if NAME.fullmatch(name.removesuffix(UNFINISHED)) and (header := read_header(disk, name)) is not None:
                found.add(header.key_id)
    return found


def read_chunks(disk: Disk, cluster_id: str, ring: KeyRing, meta: SnapshotMeta, name: str = "") -> Iterator[bytes]:
    """The chunks of a snapshot, one at a time. Raises Damaged, at the latest at its end, or BackendFailed."""
    name = name or snapshot_name(meta.index)
    path = disk.path(name)
    try:
        handle = disk.open(name, create=False)
    except FileNotFoundError as error:
        raise Damaged(f"{path} is missing") from error
    try:
        yield from _read_chunks(disk, handle, path, cluster_id, ring, meta)
    except OSError as error:
        raise Damaged(f"{path} cannot be read: {error.strerror}") from error
    finally:
        disk.close(handle)


def _read_chunks(
    disk: Disk, handle: int, path: str, cluster_id: str, ring: KeyRing, meta: SnapshotMeta
) -> Iterator[bytes]:
    end, check, count = End(0, 0, 0), 0, 0
    sealer: Sealer = PLAIN
    context = _context(cluster_id, meta.index)
    while True:
        record, end = _read_record(disk, handle, path, end, meta.index, sealer, context)
        match record:
            case SnapshotHeader() if end.number == 1:
                if record.format != FORMAT:
                    raise BackendFailed(f"{path} has format {record.format}, this meshd knows {FORMAT}: update it")
                if record.cluster_id != cluster_id or record.meta != meta:
                    raise Damaged(f"{path} is another snapshot than the log says")
                sealer = sealer_of(ring, record.key_id, path)
            case Chunk(data) if end.number > 1:
                count += 1
                check = zlib.crc32(data, check)
                yield data
            case Footer() if end.number > 1:
                if record != Footer(count, check) or disk.read_at(handle, end.offset, 1):
                    raise Damaged(f"{path} is not complete")
                return
            case _:
                raise Damaged(f"{path} is damaged at byte {end.offset}")


def _read_record(
    disk: Disk, handle: int, path: str, at: End, index: int, sealer: Sealer, context: bytes
) -> tuple[Record, End]:
    data = disk.read_at(handle, at.offset, HEADER_BYTES)
    head = read_head(data)
    if head is None or head.length > 2 * CHUNK_MAX_BYTES:
        raise Damaged(f"{path} is damaged at byte {at.offset} (its header is bad)")
    data += disk.read_at(handle, at.offset + HEADER_BYTES, head.frame_bytes - HEADER_BYTES)
    found = read_frame(data, at, index, sealer, context, start=0)
    if isinstance(found, str):
        raise Damaged(f"{path} is damaged at byte {at.offset} ({found})")
    return found


def _context(cluster_id: str, index: int) -> bytes:
    return f"{cluster_id} snapshot {index} ".encode()
