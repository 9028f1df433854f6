"""Backups: one file that holds a whole store, and state directories made of one. Everything here blocks: use a thread.

A backup is a snapshot under a name of its choice (checksums, and encryption if the ring has keys), made from a view of
the tables, so it is the same for every backend and of one moment.

A restored store begins VERSION_JUMP above the backup's version: versions that were handed out after the backup was
made, and are lost, are never handed out again, so whoever remembers one starts over (etcd #16028 is what happens
otherwise).
"""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from control.store.disk import RealDisk
from control.store.errors import BackendFailed, Damaged
from control.store.journal import Journal
from control.store.record import HardState, SnapshotMeta
from control.store.rows import row_of
from control.store.sealing import KeyRing, PlainRing
from control.store.segments import SEGMENT_BYTES
from control.store.snapshots import read_chunks, read_header, write_snapshot
from control.store.state import State
from control.store.tables import Snapshot
from control.store.wal import SnapshotHeader

# More commits than a cluster makes between a backup and its use: at 1,000 a second, 49 days.
VERSION_JUMP = 1 << 32


@dataclass(frozen=True, slots=True, eq=False)
class Backup:
    """What is in a backup."""

    cluster_id: str
    term: int
    state: State


def write_backup(path: Path, cluster_id: str, term: int, view: Snapshot, ring: KeyRing | None = None) -> int:
    """Write a view to a file, which appears whole or not at all; its size in bytes. Raises BackendFailed."""
    state = State.of_rows(view.version, map(row_of, view.objects()))
    meta = SnapshotMeta(view.version, term)
    disk = RealDisk(path.parent)
    try:
        return write_snapshot(disk, cluster_id, ring or PlainRing(), meta, state.chunks(), path.name)
    except OSError as error:
        raise BackendFailed(f"cannot write the backup {path}: {error.strerror}") from error


def key_of_backup(path: Path) -> str:
    """What it is encrypted with, "" for nothing. Raises Damaged or BackendFailed."""
    return _header(path).key_id


def _header(path: Path) -> SnapshotHeader:
    try:
        header = read_header(RealDisk(path.parent), path.name)
    except OSError as error:
        raise BackendFailed(f"cannot read the backup {path}: {error.strerror}") from error
    if header is None:
        raise Damaged(f"{path} is no backup of meshd, or is damaged at its beginning")
    return header


def read_backup(path: Path, ring: KeyRing | None = None) -> Backup:
    """Read and check all of a backup. Raises Damaged or BackendFailed."""
    disk, header = RealDisk(path.parent), _header(path)
    chunks: Iterator[bytes] = read_chunks(disk, header.cluster_id, ring or PlainRing(), header.meta, path.name)
    return Backup(header.cluster_id, header.meta.term, State.of(chunks))


def restore(
    backup: Backup, directory: Path, *, members: bytes = b"", ring: KeyRing | None = None,
    segment_bytes: int = SEGMENT_BYTES,
) -> None:  # fmt: skip
    """Make a state directory of a backup. It must not exist, and appears whole or not at all. Raises BackendFailed.

    `members` becomes the `data` of the snapshot that the log begins with.
    """
    if directory.exists():
        raise BackendFailed(f"{directory} exists: move it away before restoring a backup there")
    unfinished = directory.with_name(directory.name + ".restoring")
    try:
        shutil.rmtree(unfinished, ignore_errors=True)
        asyncio.run(_restore(backup, unfinished, members, ring, segment_bytes))
        os.rename(unfinished, directory)
        parent = os.open(directory.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(parent)
        finally:
            os.close(parent)
    except OSError as error:
        raise BackendFailed(f"cannot restore the backup to {directory}: {error.strerror}") from error


async def _restore(backup: Backup, directory: Path, members: bytes, ring: KeyRing | None, segment_bytes: int) -> None:
    state = replace(backup.state, version=backup.state.version + VERSION_JUMP)
    term = backup.term + 1
    journal, _ = await Journal.open(RealDisk(directory), backup.cluster_id, ring, segment_bytes=segment_bytes)
    try:
        await journal.append(HardState(term))
        await journal.save_snapshot(SnapshotMeta(state.version, term, members), state.chunks())
    finally:
        await journal.close()
