"""The files of one manager's store: what is in them, and in which order they are written. Blocks; has no threads.

    lock                    held while a daemon uses the directory
    snapshot-0000000003     the whole state at the beginning of generation 3
    log-0000000003          every commit from there on
    log-0000000004          the same for generation 4, while its snapshot is still being written

A log that has grown too long is *sealed*: a new generation gets a new, empty log, then a snapshot of the state it
begins with, and when that is safe the older files go. At every moment the newest snapshot with all logs from its
generation on is the whole state, so a crash between any two steps loses nothing; generation 0 begins empty and has no
snapshot. A file gets its name only when its contents are synced, so only the last log can have a torn end.
"""

from __future__ import annotations

import contextlib
import errno
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import islice

from control.store.backend import Proposal
from control.store.disk import Disk
from control.store.errors import BackendFailed, Damaged, Refused, WrongCluster
from control.store.record import Row
from control.store.sortedmap import SortedMap
from control.store.wal import (
    FORMAT,
    Corrupt,
    End,
    Footer,
    Group,
    Header,
    Record,
    Rows,
    Scan,
    Torn,
    WrittenCommit,
    first_header,
    frame,
    scan,
)

RowMap = SortedMap[tuple[str, str], Row]

ROWS_PER_FRAME = 256  # of a snapshot: about 100 kB, so that writing one never holds the interpreter for long
_NAME = re.compile(r"(log|snapshot)-(\d{10})")
_UNFINISHED = ".new"
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


@dataclass(frozen=True, slots=True)
class Recovered:
    """What `LogDirectory.open` found."""

    version: int
    term: int  # the last one written
    rows: RowMap
    snapshot_bytes: int
    cut_bytes: int  # of a write that a crash interrupted


@dataclass(slots=True)
class _Files:
    logs: set[int] = field(default_factory=set)
    snapshots: set[int] = field(default_factory=set)
    unfinished: list[str] = field(default_factory=list)


class LogDirectory:
    """Used by one thread at a time, but `write_snapshot`, which may run beside the others."""

    def __init__(self, disk: Disk, cluster_id: str) -> None:
        self._disk = disk
        self._cluster_id = cluster_id
        self._handle: int | None = None
        self._end = End(0, 0, 0)
        self.generation = 0

    @property
    def log_bytes(self) -> int:
        """Size of the newest log."""
        return self._end.offset

    # --- recovery -------------------------------------------------------------------------------------------------

    def open(self) -> Recovered:
        """Lock, read everything, repair what a crash left. Raises BackendFailed (or a subclass) with what to do."""
        try:
            self._disk.lock()
        except OSError as error:
            raise BackendFailed(f"cannot use the state directory {self._disk.path('.')}: {error.strerror}") from error
        try:
            return self._recover()
        except OSError as error:
            self.close()
            raise BackendFailed(f"cannot open the store in {self._disk.path('.')}: {error.strerror}") from error
        except BackendFailed:
            self.close()
            raise

    def _recover(self) -> Recovered:
        files = _files(self._disk)
        for name in files.unfinished:
            self._disk.remove(name)
        if not files.logs and not files.snapshots:
            self._begin_log(Header(FORMAT, self._cluster_id, 0, 0, 0, 0))
            return Recovered(0, 0, SortedMap(), 0, 0)
        base = max(files.snapshots, default=0)
        version, term, rows, snapshot_bytes = 0, 0, RowMap(), 0
        if base in files.snapshots:
            version, term, rows, snapshot_bytes = self._read_snapshot(base)
        last = max(files.logs, default=-1)
        cut_bytes = 0
        chain: int | None = None
        for generation in range(base, max(last, base) + 1):
            if generation not in files.logs:
                raise Damaged(f"{self._log_path(generation)} is missing: {_RESTORE}")
            found = self._read_log(generation, chain, version, is_last=generation == last)
            chain = found.end.chain
            for record in found.records:
                if isinstance(record, Group):
                    version, term, rows = _replay(record, version, rows, self._log_path(generation))
                elif isinstance(record, Header):
                    term = max(term, record.term)
            if isinstance(found.verdict, Torn):
                cut_bytes = found.verdict.lost_bytes
            self._end = found.end
        self._adopt_log(last, cut_bytes)
        self._remove(files, before=base)
        return Recovered(version, term, rows, snapshot_bytes, cut_bytes)

    def _read_log(self, generation: int, chain: int | None, version: int, *, is_last: bool) -> Scan:
        path = self._log_path(generation)
        data = self._disk.read(_log_name(generation))
        header = self._check_header(first_header(data), path, generation)
        found = scan(data, header.chain)
        may_be_torn = is_last and bool(found.records)  # a log gets its name only when its header is synced
        if isinstance(found.verdict, Corrupt) or (isinstance(found.verdict, Torn) and not may_be_torn):
            reason = found.verdict.reason if isinstance(found.verdict, Corrupt) else "its end is missing"
            raise Damaged(f"{path} is damaged at byte {found.end.offset} ({reason}): {_RESTORE}")
        if header.version != version or (chain is not None and header.chain != chain):
            raise Damaged(f"{path} does not go on from the file before it: {_RESTORE}")
        return found

    def _read_snapshot(self, generation: int) -> tuple[int, int, RowMap, int]:
        """Version, term, rows, size in bytes."""
        name = _snapshot_name(generation)
        path = self._disk.path(name)
        data = self._disk.read(name)
        header = self._check_header(first_header(data), path, generation)
        found = scan(data)
        if isinstance(found.verdict, Corrupt | Torn):
            raise Damaged(f"{path} is damaged at byte {found.end.offset}: {_RESTORE}")
        editor = RowMap().edit()
        count = 0
        for record in found.records:
            if isinstance(record, Rows):
                for row in record.rows:
                    editor.set((row.kind, row.id), row)
                    count += 1
        if found.records[-1] != Footer(count):
            raise Damaged(f"{path} is not complete: {_RESTORE}")
        return header.version, header.term, editor.done(), len(data)

    def _check_header(self, header: Header | None, path: str, generation: int) -> Header:
        if header is None:
            raise Damaged(f"{path} is damaged at its beginning: {_RESTORE}")
        if header.format != FORMAT:
            raise BackendFailed(f"{path} has format {header.format}, this version of meshd knows {FORMAT}: update it")
        if header.cluster_id != self._cluster_id:
            raise WrongCluster(
                f'the state directory {self._disk.path(".")} belongs to cluster "{header.cluster_id}",'
                f' not to "{self._cluster_id}": use another directory, or remove this one'
            )
        if header.generation != generation:
            raise Damaged(f"{path} was generation {header.generation} once and has been renamed: {_RESTORE}")
        return header

    def _adopt_log(self, generation: int, cut_bytes: int) -> None:
        self.generation = generation
        self._handle = self._disk.open(_log_name(generation), create=False)
        if cut_bytes:
            self._disk.truncate(self._handle, self._end.offset)
        # What was read may so far be in the page cache only: written, but not synced, by a process that was killed.
        # It is acted upon from now on, so it must be safe first. The same goes for the names.
        self._disk.sync(self._handle)
        self._disk.sync_directory()

    # --- writing --------------------------------------------------------------------------------------------------

    def append(self, term: int, commits: Iterable[Proposal]) -> None:
        """Write and sync commits as one group.

        Raises Refused if there is no space (nothing was written, the log is as before), BackendFailed if it cannot be
        known any more what is on the disk: a failed sync is never tried again, because the system may have thrown the
        pages away and say "done" the next time.
        """
        assert self._handle is not None
        group = Group(term, tuple(WrittenCommit(c.version, c.changes) for c in commits))
        data, end = frame(group, self._end)
        try:
            self._disk.write(self._handle, data, self._end.offset)
        except OSError as error:
            self._undo(error)
        self._sync(self._handle, self._log_path(self.generation))
        self._end = end

    def _undo(self, error: OSError) -> None:
        path = self._log_path(self.generation)
        assert self._handle is not None
        if error.errno in _FULL:
            with contextlib.suppress(OSError):
                self._disk.truncate(self._handle, self._end.offset)
                raise Refused(f"cannot write {path}: {error.strerror}; free some space") from error
        raise BackendFailed(f"cannot write {path}: {error.strerror}; meshd must stop") from error

    def seal(self, version: int, term: int) -> bool:
        """Begin a new generation with an empty log. False if there is no space for it: the old one goes on."""
        assert self._handle is not None
        old = self._handle
        header = Header(FORMAT, self._cluster_id, self.generation + 1, version, term, self._end.chain)
        try:
            self._begin_log(header)
        except OSError as error:
            if error.errno not in _FULL:
                raise BackendFailed(
                    f"cannot write {self._log_path(header.generation)}: {error.strerror}; meshd must stop"
                ) from error
            return False
        self._disk.close(old)
        return True

    def _begin_log(self, header: Header) -> None:
        """A log under its name, synced, with its header; only then it is the one in use."""
        data, end = frame(header, End(0, 0, header.chain))
        name = _log_name(header.generation)
        handle = self._write_file(name, [data])
        self._handle, self._end, self.generation = handle, end, header.generation

    def write_snapshot(self, generation: int, version: int, term: int, rows: RowMap) -> int:
        """Make the snapshot that a generation begins with, then remove what is older; its size in bytes.

        Raises Refused if there is no space, BackendFailed as `append`.
        """
        name = _snapshot_name(generation)
        size = 0

        def frames() -> Iterable[bytes]:
            nonlocal size
            end = End(0, 0, 0)
            for record in _snapshot_records(Header(FORMAT, self._cluster_id, generation, version, term, 0), rows):
                data, end = frame(record, end)
                yield data
            size = end.offset

        try:
            self._disk.close(self._write_file(name, frames()))
            self._remove(_files(self._disk), before=generation)
        except OSError as error:
            path = self._disk.path(name)
            if error.errno not in _FULL:
                raise BackendFailed(f"cannot write {path}: {error.strerror}; meshd must stop") from error
            raise Refused(f"cannot write {path}: {error.strerror}; free some space") from error
        return size

    def _write_file(self, name: str, frames: Iterable[bytes]) -> int:
        """Contents first, then the name: a file under its name is whole. Returns the open handle."""
        temporary = name + _UNFINISHED
        handle = self._disk.open(temporary, create=True)
        try:
            offset = 0
            for data in frames:
                self._disk.write(handle, data, offset)
                offset += len(data)
            self._sync(handle, self._disk.path(temporary))
        except OSError:
            self._disk.close(handle)
            self._disk.remove(temporary)
            raise
        self._disk.rename(temporary, name)
        self._sync_directory()
        return handle

    def _sync(self, handle: int, path: str) -> None:
        try:
            self._disk.sync(handle)
        except OSError as error:
            raise BackendFailed(f"cannot sync {path}: {error.strerror}; meshd must stop") from error

    def _sync_directory(self) -> None:
        try:
            self._disk.sync_directory()
        except OSError as error:
            raise BackendFailed(f"cannot sync {self._disk.path('.')}: {error.strerror}; meshd must stop") from error

    def _remove(self, files: _Files, before: int) -> None:
        """Remove what belongs to generations that a snapshot has made superfluous. No sync: they may come back."""
        for generation in sorted(g for g in files.logs if g < before):
            self._disk.remove(_log_name(generation))
        for generation in sorted(g for g in files.snapshots if g < before):
            self._disk.remove(_snapshot_name(generation))

    def close(self) -> None:
        """Let go of the files and the lock. Idempotent."""
        if self._handle is not None:
            self._disk.close(self._handle)
            self._handle = None
        self._disk.unlock()

    def _log_path(self, generation: int) -> str:
        return self._disk.path(_log_name(generation))


_RESTORE = (
    "it does not look like a crash, so it is not repaired; restore the state directory from a backup,"
    " or remove it to begin a new cluster"
)


def recorded_cluster(disk: Disk) -> str | None:
    """Id of the cluster whose store is in a directory; None if there is none. Reads, and takes no lock."""
    try:
        files = _files(disk)
        for generation in sorted(files.logs, reverse=True):
            header = first_header(disk.read(_log_name(generation)))
            if header is not None:
                return header.cluster_id
    except FileNotFoundError:
        return None
    return None


def _replay(group: Group, version: int, rows: RowMap, path: str) -> tuple[int, int, RowMap]:
    for commit in group.commits:
        if commit.version != version + 1:
            raise Damaged(f"{path} has commit {commit.version} after {version}: {_RESTORE}")
        rows = apply_rows(rows, Proposal(commit.version, commit.changes))
        version = commit.version
    return version, group.term, rows


def apply_rows(rows: RowMap, commit: Proposal) -> RowMap:
    """The rows after a commit."""
    editor = rows.edit()
    for change in commit.changes:
        key = (change.kind, change.id)
        if change.blob is None:
            editor.delete(key)
        else:
            editor.set(key, Row(change.kind, change.id, commit.version, change.blob))
    return editor.done()


def _snapshot_records(header: Header, rows: RowMap) -> Iterable[Record]:
    yield header
    values = iter(rows.values())
    while part := tuple(islice(values, ROWS_PER_FRAME)):
        yield Rows(part)
    yield Footer(len(rows))


def _files(disk: Disk) -> _Files:
    files = _Files()
    for name in disk.names():
        match = _NAME.fullmatch(name)
        if match is not None:
            (files.logs if match[1] == "log" else files.snapshots).add(int(match[2]))
        elif name.endswith(_UNFINISHED):
            files.unfinished.append(name)
    return files


def _log_name(generation: int) -> str:
    return f"log-{generation:010d}"


def _snapshot_name(generation: int) -> str:
    return f"snapshot-{generation:010d}"
