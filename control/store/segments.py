"""The files of a journal: what is in them, and in which order they are written. Blocks; has no threads.

    lock                        held while a daemon uses the directory
    wal-0000000007              a segment of the log: of fixed size, filled with zeros before its first use
    wal-0000000008              the one that is written
    spare                       the next one, so that a full disk stops nothing at once
    snapshot-0000000000000123   the state after entry 123 (`control.store.snapshots`)

A file gets its name only when its contents are synced, so only the newest segment can have a torn end. Every segment
begins with what is known so far (term, vote, commit, snapshots, end of the log), so the older ones are needed for their
entries only, and go when a snapshot holds these. The two newest snapshots are kept, and the log from the older one on:
if the newest cannot be read, the one before it and the log give the same state. Segments that are done become the next
spare.
"""

from __future__ import annotations

import errno
import re
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NoReturn

from control.store.disk import Disk
from control.store.errors import BackendFailed, Damaged, Refused, WrongCluster
from control.store.log import Log
from control.store.record import SnapshotMeta
from control.store.sealing import KeyRing, Sealer, sealer_of
from control.store.snapshots import NAME as SNAPSHOT_NAME
from control.store.snapshots import UNFINISHED, read_chunks, snapshot_name
from control.store.wal import (
    FORMAT,
    PLAIN,
    Batch,
    Corrupt,
    End,
    SegmentHeader,
    Torn,
    first_record,
    frame,
    read_frame,
    scan,
)

# Two are always there, full or not: the one in use and the spare. One takes a few thousand small commits.
SEGMENT_BYTES = 8 * 1024 * 1024
HEADER_ROOM_BYTES = 64 * 1024  # more than any segment's header
ZEROS = bytes(256 * 1024)  # one write of a fill: a few milliseconds on a slow disk, so that a stop is quick
SPARE = "spare"
_RECYCLED = "recycled" + UNFINISHED
_NAME = re.compile(r"wal-(\d{10})")
_FORMAT_1 = re.compile(r"log-\d{10}")
FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})

_WHAT_TO_DO = (
    "no crash does that, so it is not repaired; if other managers are up, remove this one and let it join again,"
    " otherwise restore a backup with meshd restore"
)


@dataclass(frozen=True, slots=True)
class Recovered:
    """What `Segments.open` found."""

    log: Log
    snapshot: SnapshotMeta | None  # that the log goes on from
    cut_bytes: int  # of a write that a crash interrupted
    message: str  # one sentence if something was wrong and could be helped


@dataclass(slots=True)
class _Segment:
    sequence: int
    size_bytes: int
    key_id: str
    last_index: int  # the highest of the entries in it or before it


class Segments:
    """Used by one thread at a time, but `prepare_spare`, which may run beside the others, once at a time."""

    def __init__(self, disk: Disk, cluster_id: str, ring: KeyRing, segment_bytes: int = SEGMENT_BYTES) -> None:
        self._disk = disk
        self._cluster_id = cluster_id
        self._ring = ring
        self._segment_bytes = segment_bytes
        self._segments: deque[_Segment] = deque()
        self._handle: int | None = None
        self._sealer: Sealer = PLAIN
        self._end = End(0, 0, 0)
        self._dirty_bytes = 0  # behind the end: parts of a write that was refused
        self._has_spare = False

    @property
    def has_spare(self) -> bool:
        """Whether the next segment is there already."""
        return self._has_spare

    @property
    def size_bytes(self) -> int:
        """Of all segments."""
        return sum(s.size_bytes for s in self._segments) + self._has_spare * self._segment_bytes

    def keys_in_use(self) -> set[str]:
        """Of all segments."""
        return {segment.key_id for segment in tuple(self._segments)}  # a copy: another thread may add one

    @property
    def key_id(self) -> str:
        """Of the segment that is written now."""
        return self._segments[-1].key_id

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
        names = self._disk.names()
        if any(_FORMAT_1.fullmatch(name) for name in names):
            raise BackendFailed(
                f"the store in {self._disk.path('.')} was written by a meshd that knew one manager only:"
                " this version cannot read it; leave the cluster and make it anew"
            )
        sequences = _newest_run(names)
        if not sequences:
            if any(SNAPSHOT_NAME.fullmatch(name) for name in names):
                raise Damaged(f"{self._disk.path('wal-*')} is missing, but snapshots are there: {_WHAT_TO_DO}")
            self._clean(names, (), ())
            self._begin(1, Log(), 0)
            return Recovered(Log(), None, 0, "")
        log, cut_bytes = self._read_all(sequences)
        snapshot, message = self._choose(log, sequences[0])
        self._adopt(sequences[-1], cut_bytes)
        self._clean(names, sequences, log.snapshots)
        return Recovered(log, snapshot, cut_bytes, message)

    def _read_all(self, sequences: list[int]) -> tuple[Log, int]:
        log: Log | None = None
        cut_bytes = 0
        for sequence in sequences:
            path, data = self._path(sequence), self._disk.read(_name(sequence))
            header = self._check_header(first_record(data, SegmentHeader), path, sequence)
            sealer = sealer_of(self._ring, header.key_id, path)
            context = _context(self._cluster_id, sequence)
            at_first = read_frame(data, End(0, 0, header.chain), sequence)
            if isinstance(at_first, str):
                raise Damaged(f"{path} is damaged at byte 0 ({at_first}): {_WHAT_TO_DO}")
            if log is None:
                log = Log(header.last_index, header.last_term, header.hard_state, header.snapshots)
            elif header.chain != self._end.chain or header.last_index != log.last_index:
                raise Damaged(f"{path} does not go on from the segment before it: {_WHAT_TO_DO}")
            found = scan(data, at_first[1], sequence, sealer, context)
            if isinstance(found.verdict, Corrupt) or (isinstance(found.verdict, Torn) and sequence != sequences[-1]):
                reason = found.verdict.reason if isinstance(found.verdict, Corrupt) else "its end is missing"
                raise Damaged(f"{path} is damaged at byte {found.end.offset} ({reason}): {_WHAT_TO_DO}")
            cut_bytes = found.verdict.lost_bytes if isinstance(found.verdict, Torn) else 0
            segment = _Segment(sequence, len(data), header.key_id, header.last_index)
            for record in found.records:
                if not isinstance(record, Batch) or not log.replay(record):
                    raise Damaged(f"{path} has something that does not belong there: {_WHAT_TO_DO}")
                segment.last_index = max(segment.last_index, log.last_index)
            self._segments.append(segment)
            self._end, self._sealer = found.end, sealer
        assert log is not None
        log.settle()
        return log, cut_bytes

    def _choose(self, log: Log, first: int) -> tuple[SnapshotMeta | None, str]:
        """The newest good snapshot that the log goes on from."""
        damage = ""
        for meta in reversed(log.snapshots):
            if meta.index < log.base_index:
                break  # the log has a gap behind this one
            try:
                for _ in read_chunks(self._disk, self._cluster_id, self._ring, meta):
                    pass
            except Damaged as error:
                damage = damage or str(error)
                continue
            if damage:
                log.snapshots = tuple(s for s in log.snapshots if s.index <= meta.index)
                return meta, f"{damage}: the snapshot before it and the log were used instead"
            return meta, ""
        if log.base_index == 0:  # nothing has ever been taken out of the log
            log.snapshots = ()
            return None, damage and f"{damage}: the log was used instead"
        missing = damage or f"{self._path(first - 1)} is missing"
        raise Damaged(f"{missing}, and the log alone is not enough: {_WHAT_TO_DO}")

    def _check_header(self, header: SegmentHeader | None, path: str, sequence: int) -> SegmentHeader:
        if header is None:
            raise Damaged(f"{path} is damaged at byte 0: {_WHAT_TO_DO}")
        if header.format != FORMAT:
            raise BackendFailed(f"{path} has format {header.format}, this version of meshd knows {FORMAT}: update it")
        if header.cluster_id != self._cluster_id:
            raise WrongCluster(
                f'the state directory {self._disk.path(".")} belongs to cluster "{header.cluster_id}",'
                f' not to "{self._cluster_id}": use another directory, or remove this one'
            )
        if header.sequence != sequence:
            raise Damaged(f"{path} was segment {header.sequence} once and has been renamed: {_WHAT_TO_DO}")
        return header

    def _adopt(self, sequence: int, cut_bytes: int) -> None:
        self._handle = self._disk.open(_name(sequence), create=False)
        if cut_bytes:
            self._fill(self._handle, self._end.offset, self._end.offset + cut_bytes)
        # What was read may so far be in the page cache only: written, but not synced, by a process that was killed.
        # It is acted upon from now on, so it must be safe first. The same goes for the names.
        self._disk.sync(self._handle)
        self._disk.sync_directory()

    def _clean(self, names: list[str], sequences: Iterable[int], snapshots: Iterable[SnapshotMeta]) -> None:
        """Remove what a crash left over: all that the log does not speak of."""
        kept = {_name(s) for s in sequences} | {snapshot_name(meta.index) for meta in snapshots}
        for name in names:
            ours = _NAME.fullmatch(name) or SNAPSHOT_NAME.fullmatch(name) or name.endswith(UNFINISHED)
            if ours and name not in kept:
                self._disk.remove(name)
        if SPARE in names:
            self._adopt_spare()

    def _adopt_spare(self) -> None:
        """It may have got a header, and no name. It is kept above all when there is no space for another."""
        if self._disk.size(SPARE) != self._segment_bytes:
            self._disk.remove(SPARE)
            return
        handle = self._disk.open(SPARE, create=False)
        self._fill(handle, 0, min(HEADER_ROOM_BYTES, self._segment_bytes))
        self._disk.sync(handle)
        self._disk.close(handle)
        self._has_spare = True

    # --- writing --------------------------------------------------------------------------------------------------

    def append(self, batch: Batch, tip: Log) -> None:
        """Write and sync as one. `tip`: the log before it, without its entries.

        Raises Refused if there is no space (nothing was written, the log is as before), BackendFailed if it cannot be
        known any more what is on the disk: a failed sync is never tried again, because the system may have thrown the
        pages away and say "done" the next time.
        """
        self._undo()
        data, end = self._frame(batch)
        if end.offset > self._segments[-1].size_bytes:
            self.rotate(tip, len(data))
            data, end = self._frame(batch)
        assert self._handle is not None
        try:
            self._disk.write(self._handle, data, self._end.offset)
        except OSError as error:
            self._dirty_bytes = len(data)
            self._refuse("write", self._path(self._segments[-1].sequence), error)
        self._sync(self._handle, self._path(self._segments[-1].sequence))
        self._end = end
        if batch.entries:
            self._segments[-1].last_index = max(self._segments[-1].last_index, batch.entries[-1].index)

    def _frame(self, batch: Batch) -> tuple[bytes, End]:
        sequence = self._segments[-1].sequence
        return frame(batch, self._end, sequence, self._sealer, _context(self._cluster_id, sequence))

    def _refuse(self, what: str, path: str, error: OSError) -> NoReturn:
        """Where something is overwritten, only file systems that never do that can be full (Btrfs)."""
        if error.errno in FULL:
            raise Refused(f"cannot {what} {path}: {error.strerror}; free some space") from error
        self._fail(what, path, error)

    def _undo(self) -> None:
        """Zeros where a refused write left something: until then a crash takes it for torn."""
        if self._dirty_bytes and self._handle is not None:
            try:
                self._fill(self._handle, self._end.offset, self._end.offset + self._dirty_bytes)
            except OSError as error:
                self._refuse("write", self._path(self._segments[-1].sequence), error)
            self._dirty_bytes = 0

    def rotate(self, tip: Log, room_bytes: int = 0) -> None:
        """Go on in a new segment, with the ring's current key. Raises as `append`."""
        self._undo()
        self._begin(self._segments[-1].sequence + 1, tip, room_bytes)

    def _begin(self, sequence: int, tip: Log, room_bytes: int) -> None:
        """A segment under its name, synced, with its header; only then it is the one in use."""
        sealer = self._ring.current()
        header = SegmentHeader(
            FORMAT, self._cluster_id, sequence, sealer.key_id, self._end.chain,
            tip.last_index, tip.last_term, tip.hard_state, tip.snapshots,
        )  # fmt: skip
        data, end = frame(header, End(0, 0, header.chain), sequence)
        assert len(data) <= HEADER_ROOM_BYTES
        size = self._segment_bytes
        room_bytes += len(data)
        temporary = SPARE
        if not self._has_spare or room_bytes > size:
            temporary = _name(sequence) + UNFINISHED
            size = max(size, room_bytes)
            self._make(temporary, size, create=True)
        path = self._disk.path(temporary)
        try:
            handle = self._disk.open(temporary, create=False)
            # With zeros behind it: an attempt before this one may have left a longer header.
            self._disk.write(handle, data.ljust(min(HEADER_ROOM_BYTES, size), b"\0"), 0)
            self._sync(handle, path)
            self._disk.rename(temporary, _name(sequence))
            self._disk.sync_directory()
        except OSError as error:
            self._refuse("write", path, error)
        if temporary == SPARE:
            self._has_spare = False
        if self._handle is not None:
            self._disk.close(self._handle)
        self._handle, self._end, self._sealer = handle, end, sealer
        self._segments.append(_Segment(sequence, size, sealer.key_id, tip.last_index))

    def release(self, index: int, snapshots: Iterable[SnapshotMeta]) -> None:
        """Remove the segments all of whose entries are at or below `index`, and the snapshots that are not kept.

        No sync: what comes back after a crash is removed again. Raises BackendFailed.
        """
        try:
            while len(self._segments) > 1 and self._segments[0].last_index <= index:
                old = self._segments.popleft()
                # What was written under another key, or none, must not wait on the disk until a spare is needed.
                again = old.size_bytes == self._segment_bytes and old.key_id == self.key_id
                if again and _RECYCLED not in self._disk.names():
                    self._disk.rename(_name(old.sequence), _RECYCLED)
                else:
                    self._disk.remove(_name(old.sequence))
            kept = {meta.index for meta in snapshots}
            for name in self._disk.names():
                match = SNAPSHOT_NAME.fullmatch(name)
                if match and int(match[1]) not in kept and int(match[1]) < max(kept, default=0):
                    self._disk.remove(name)
        except OSError as error:
            self._fail("tidy", self._disk.path("."), error)

    def prepare_spare(self) -> None:
        """Have a spare segment. Raises Refused if there is no space for it, BackendFailed as `append`."""
        if self._has_spare:
            return
        temporary = SPARE + UNFINISHED
        try:
            recycle = _RECYCLED in self._disk.names()
            if recycle:
                # A segment whose new name is lost must not have lost its contents.
                self._disk.sync_directory()
                temporary = _RECYCLED
        except OSError as error:
            self._fail("sync", self._disk.path("."), error)
        self._make(temporary, self._segment_bytes, create=not recycle)
        try:
            self._disk.rename(temporary, SPARE)
            self._disk.sync_directory()
        except OSError as error:
            self._fail("sync", self._disk.path("."), error)
        self._has_spare = True

    def _make(self, name: str, size: int, *, create: bool) -> None:
        """A file of zeros, synced."""
        path = self._disk.path(name)
        handle: int | None = None
        try:
            handle = self._disk.open(name, create=create)
            self._fill(handle, 0, size)
        except OSError as error:
            if handle is not None:
                self._disk.close(handle)
                self._disk.remove(name)
            self._refuse("write", path, error)
        self._sync(handle, path)
        self._disk.close(handle)

    def _fill(self, handle: int, start: int, end: int) -> None:
        for offset in range(start, end, len(ZEROS)):
            self._disk.write(handle, ZEROS[: end - offset], offset)

    def _sync(self, handle: int, path: str) -> None:
        try:
            self._disk.sync(handle)
        except OSError as error:
            self._fail("sync", path, error)

    def _fail(self, what: str, path: str, error: OSError) -> NoReturn:
        raise BackendFailed(f"cannot {what} {path}: {error.strerror}; meshd must stop") from error

    def close(self) -> None:
        """Let go of the files and the lock. Idempotent."""
        if self._handle is not None:
            self._disk.close(self._handle)
            self._handle = None
        self._disk.unlock()

    def _path(self, sequence: int) -> str:
        return self._disk.path(_name(sequence))


def recorded_cluster(disk: Disk) -> str | None:
    """Id of the cluster whose store is in a directory; None if there is none. Reads, and takes no lock."""
    for header in _headers(disk):
        return header.cluster_id
    return None


def _headers(disk: Disk) -> Iterator[SegmentHeader]:
    """Of all segments that have a good one, the newest first."""
    try:
        for sequence in reversed(_newest_run(disk.names())):
            handle = disk.open(_name(sequence), create=False)
            header = first_record(disk.read_at(handle, 0, HEADER_ROOM_BYTES), SegmentHeader)
            disk.close(handle)
            if header is not None:
                yield header
    except (FileNotFoundError, NotADirectoryError):
        return


def _newest_run(names: list[str]) -> list[int]:
    """The sequences of the newest segments that follow each other. What is before a gap was being removed."""
    run: list[int] = []
    for sequence in sorted((int(m[1]) for name in names if (m := _NAME.fullmatch(name))), reverse=True):
        if run and sequence != run[-1] - 1:
            break
        run.append(sequence)
    return run[::-1]


def _name(sequence: int) -> str:
    return f"wal-{sequence:010d}"


def _context(cluster_id: str, sequence: int) -> bytes:
    return f"{cluster_id} segment {sequence} ".encode()
