"""The durable log and the snapshots of one manager, for one event loop.

What Raft needs of a disk: entries with index and term (a conflicting suffix is replaced
by appending over it), term and vote and commit, snapshots, compaction.

Appends queue up while a sync is under way and go to the disk together with the next one (group commit). One thread
writes the log: a sync that takes long, or for ever, must not stop the loop from hearing the others. Another one does
what takes long: snapshots, the spare segment, the look at the space that is left. The loop hands each a job and is
called back: no task of its own, no lock. What `append` wrote can be read when its future is done.

Errors: `Refused` means that there was no space, nothing was written, and everything queued behind it is refused as
well, since it goes on top; it can be tried again. Anything else is the end: every future fails, `on_event` gets
`JournalFailed` once, and the process must stop.

Space is watched: `on_event` gets `DiskLow` before the disk is full, and `DiskRecovered` when it is over; it is for the
owner to take no more additions meanwhile and to hand the leadership over.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import msgspec

from control.store.disk import Disk
from control.store.errors import BackendFailed, Damaged, Refused, StoreClosed, StoreError
from control.store.log import Log
from control.store.record import Entry, HardState, SnapshotMeta
from control.store.sealing import KeyRing, PlainRing
from control.store.segments import FULL, SEGMENT_BYTES, Recovered, Segments
from control.store.snapshots import SnapshotWriter, keys_of_snapshots, read_chunks, write_snapshot
from control.store.space import DiskLow, DiskRecovered, Space
from control.store.wal import Batch
from control.store.worker import Outcome, ThreadWorker, Worker, done, resolve, settle

__all__ = ["DiskLow", "DiskRecovered", "Event", "Incoming", "Journal", "JournalFailed", "Recovered"]

T = TypeVar("T")

GROUP_BYTES = 4 * 1024 * 1024  # written by one sync: some 20 ms on a slow disk, and well above one full batch
ENTRY_BYTES = 64  # of a frame, for each entry beside its data
SPACE_POLL_S = 5.0  # a disk that fills at 100 MB/s loses 500 MB meanwhile: then the spare segment is what helps


@dataclass(frozen=True, slots=True)
class JournalFailed:
    """The journal cannot go on: the process must stop."""

    error: StoreError


Event = DiskLow | DiskRecovered | JournalFailed


Then = Callable[[BaseException | None], None]  # called with what went wrong


class _Queued(msgspec.Struct, frozen=True):
    batch: Batch
    size_bytes: int
    then: Then


def _thread() -> Worker:
    return ThreadWorker("journal")


class Journal:
    """See the module. Made by `open`."""

    def __init__(
        self, disk: Disk, cluster_id: str, ring: KeyRing, segment_bytes: int, threads: Callable[[], Worker]
    ) -> None:
        self._disk = disk
        self._cluster_id = cluster_id
        self._ring = ring
        self._segment_bytes = segment_bytes
        self._segments = Segments(disk, cluster_id, ring, segment_bytes)
        self._writer = threads()
        self._helper = threads()
        self._log = Log()
        self._queue: deque[_Queued] = deque()
        self._tail_index = 0  # of the log and what is queued
        self._lazy: HardState | None = None  # goes with the next append
        self._writing = 0  # jobs that the writer has
        self._helping = 0
        self._space = Space()
        self._starved = False  # no space was found when it was last needed
        self._snapshot_bytes = 0  # of the last one written
        self._on_event: Callable[[Event], None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._closing: asyncio.Future[None] | None = None
        self._error: StoreError | None = None

    @classmethod
    async def open(
        cls,
        disk: Disk,
        cluster_id: str,
        ring: KeyRing | None = None,
        *,
        segment_bytes: int = SEGMENT_BYTES,
        threads: Callable[[], Worker] = _thread,
    ) -> tuple[Journal, Recovered]:
        """Open, and repair what a crash left.

        Raises StateInUse, WrongCluster, Damaged or another BackendFailed, each with what to do.
        """
        journal = cls(disk, cluster_id, ring or PlainRing(), segment_bytes, threads)
        try:
            found = await done(journal._writer, journal._segments.open)
        except BaseException:
            # Also when cancelled: the thread may be just opening, and closes after that.
            journal._writer.do(journal._segments.close, lambda _: None)
            journal._shut_down()
            raise
        journal._log = found.log
        journal._tail_index = found.log.last_index
        journal._release()
        journal._make_spare()
        journal._look()
        return journal, found

    def listen(self, on_event: Callable[[Event], None]) -> None:
        """Who is told of events; never from within a call of his. One that is over already is told at once."""
        self._on_event = on_event
        if self._error is not None:
            self._tell(JournalFailed(self._error))

    # --- reading --------------------------------------------------------------------------------------------------

    @property
    def first_index(self) -> int:
        """Of the entries that are there; one above the last if there is none."""
        return self._log.base_index + 1

    @property
    def last_index(self) -> int:
        return self._log.last_index

    @property
    def hard_state(self) -> HardState:
        return self._log.hard_state

    @property
    def snapshot(self) -> SnapshotMeta | None:
        """The newest."""
        return self._log.snapshots[-1] if self._log.snapshots else None

    @property
    def size_bytes(self) -> int:
        """On disk."""
        return self._segments.size_bytes + self._snapshot_bytes

    @property
    def low(self) -> bool:
        """Whether there is too little space left."""
        return self._space.low

    def keys_in_use(self) -> set[str]:
        """Keys without which the log cannot be read; snapshots older than the last `save_snapshot` aside."""
        return self._segments.keys_in_use()

    def keys_needed(self) -> set[str]:
        """Those, and what snapshots that are on the disk name, done or not: blocks. Raises OSError."""
        return self.keys_in_use() | keys_of_snapshots(self._disk)

    @property
    def key_id(self) -> str:
        """What the segment that is written now is encrypted with."""
        return self._segments.key_id

    def term(self, index: int) -> int | None:
        """Of an entry, or of the one just before the first; None if it is not there, or not any more."""
        return self._log.term(index)

    def entries(self, low: int, high: int) -> list[Entry]:
        """Those with low <= index < high, all of which must be there."""
        return self._log.entries(low, high)

    def snapshot_chunks(self, meta: SnapshotMeta) -> Iterator[bytes]:
        """The chunks of a snapshot, from the disk: blocks, so for a thread. Raises Damaged."""
        return read_chunks(self._disk, self._cluster_id, self._ring, meta)

    # --- appending ------------------------------------------------------------------------------------------------

    def append(
        self, hard_state: HardState | None = None, entries: Sequence[Entry] = (), *, must_sync: bool = True
    ) -> asyncio.Future[None]:
        """Make this durable after all that was appended before; the future says when it is.

        Entries follow the last one, or replace it and others at its end. `must_sync` False, for a hard state whose
        commit alone has grown: it may wait for the next append, and be forgotten by a crash until then.
        """
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if not self.write(partial(resolve, future), hard_state, entries, must_sync=must_sync):
            future.set_result(None)
        return future

    def write(
        self, then: Then, hard_state: HardState | None, entries: Sequence[Entry] = (), *, must_sync: bool = True
    ) -> bool:
        """As `append`, which costs a turn of the loop more: `then` is called, never from within this call.

        False: nothing is to be waited for, and `then` is not called.
        """
        if (refusal := self._why_not()) is not None:
            asyncio.get_running_loop().call_soon(then, refusal)
            return True
        if not must_sync and not entries:
            self._lazy = hard_state
            return False
        if hard_state is None:
            hard_state, self._lazy = self._lazy, None
        self._lazy = None
        if entries:
            if entries[0].index > self._tail_index + 1:
                refusal = Refused("an append before this one was refused: try again")
                asyncio.get_running_loop().call_soon(then, refusal)
                return True
            self._tail_index = max(self._tail_index, entries[-1].index)
        size = sum(len(entry.data) + ENTRY_BYTES for entry in entries)
        self._queue.append(_Queued(Batch(hard_state, tuple(entries)), size, then))
        self._kick()
        return True

    def _why_not(self) -> StoreError | None:
        if self._error is not None:
            return self._error
        return _closed() if self._closing is not None else None

    def _kick(self) -> None:
        """Give the writer what there is to do, if it has nothing."""
        if self._writing or self._error is not None or not self._queue:
            return
        group = self._next_group()
        batch = _merged(group)
        meta = batch.snapshot
        replaces = meta is not None and self._log.term(meta.index) != meta.term
        batch = Batch(batch.hard_state, self._log.news(batch.entries), meta, replaces)
        self._write(partial(self._segments.append, batch, self._log.tip()), partial(self._written, group, batch))

    def _next_group(self) -> list[_Queued]:
        """At least one, as many as a sync may take; a snapshot by itself: it may empty the log."""
        group = [self._queue.popleft()]
        size = group[0].size_bytes
        while (
            self._queue
            and self._queue[0].batch.snapshot is None
            and group[0].batch.snapshot is None
            and size + self._queue[0].size_bytes <= GROUP_BYTES
        ):
            group.append(self._queue.popleft())
            size += group[-1].size_bytes
        return group

    def _written(self, group: list[_Queued], batch: Batch, outcome: Outcome[None]) -> None:
        error = outcome.exception()
        if isinstance(error, Refused):
            self._cut_off(group, error)
            self._starve()
        elif error is not None:
            self._fail(error, group)
        elif not self._log.apply(batch):
            self._fail(BackendFailed("an append leaves a gap in the log: stop, and report this"), group)
        else:
            if batch.snapshot is not None and not self._queue:
                self._tail_index = self._log.last_index
            for queued in group:
                queued.then(None)
            self._make_spare()

    def _cut_off(self, group: Iterable[_Queued], error: StoreError) -> None:
        """The group was not written, and what is queued was to go on top of it."""
        cut = (*group, *self._queue)
        self._queue.clear()
        self._tail_index = self._log.last_index
        for queued in cut:
            queued.then(error)

    def rotate(self) -> asyncio.Future[None]:
        """Go on in a new segment, under the ring's current key."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def rotated(outcome: Outcome[None]) -> None:
            error = outcome.exception()
            if error is None:
                future.set_result(None)
                self._make_spare()
            else:
                if not isinstance(error, Refused):
                    self._fail(error)
                future.set_exception(error)

        def turn() -> None:
            if (refusal := self._why_not()) is not None:
                future.set_exception(refusal)
            elif self._writing:
                loop.call_soon(turn)
            else:
                self._write(partial(self._segments.rotate, self._log.tip()), rotated)

        loop = asyncio.get_running_loop()
        turn()
        return future

    # --- snapshots ------------------------------------------------------------------------------------------------

    def save_snapshot(self, meta: SnapshotMeta, chunks: Iterable[bytes]) -> asyncio.Future[None]:
        """Keep the state after an entry: when the future is done, `compact` may go up to it.

        `chunks`, of at most CHUNK_MAX_BYTES, are drawn in a thread. Fails with Refused if there is no space.
        """
        return self._save(partial(write_snapshot, self._disk, self._cluster_id, self._ring, meta, chunks), meta)

    def receive_snapshot(self, meta: SnapshotMeta) -> Incoming:
        """Keep a state that another manager sends, in place of the whole log."""
        return Incoming(self, meta)

    def _save(self, write: Callable[[], int], meta: SnapshotMeta) -> asyncio.Future[None]:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        newest = self.snapshot
        refusal = self._why_not()
        if refusal is None and newest is not None and meta.index <= newest.index:
            refusal = Refused(f"there is a snapshot of entry {newest.index} already")
        if refusal is not None:
            future.set_exception(refusal)
            return future

        def saved(outcome: Outcome[int]) -> None:
            error = outcome.exception()
            if error is None and (error := self._why_not()) is None:
                self._snapshot_bytes = outcome.result()
                # The file is safe; only now the log may speak of it (etcd #10219).
                self._queue.append(_Queued(Batch(snapshot=meta), 0, partial(resolve, future)))
                future.add_done_callback(lambda _: self._release())
                self._kick()
                return
            if isinstance(error, Refused):
                self._starve()
            elif not isinstance(error, StoreClosed):
                self._fail(error)
            future.set_exception(error)

        self._help(partial(_translated, self._disk, write), saved)
        return future

    def compact(self, index: int) -> None:
        """Forget the entries up to `index`, at most that of the newest snapshot; their files go in the background."""
        assert self.snapshot is not None
        assert index <= self.snapshot.index
        self._log.forget(index)
        self._release()

    def _release(self) -> None:
        """Files that nobody needs: not the log, and not the older of the snapshots to go on from."""
        snapshots = self._log.snapshots
        if self._why_not() is not None or not snapshots:
            return
        index = min(self._log.base_index, snapshots[0].index)

        def released(outcome: Outcome[None]) -> None:
            error = outcome.exception()
            if error is not None:
                self._fail(error)
            self._make_spare()

        self._write(partial(self._segments.release, index, snapshots), released)

    # --- space ----------------------------------------------------------------------------------------------------

    def _make_spare(self) -> None:
        if self._segments.has_spare or self._helping or self._why_not() is not None:
            return

        def made(outcome: Outcome[None]) -> None:
            error = outcome.exception()
            if isinstance(error, Refused):
                if not self._starved:
                    self._starve()
            elif error is not None:
                self._fail(error)
            else:
                self._starved = False

        self._help(self._segments.prepare_spare, made)

    def _starve(self) -> None:
        self._starved = True
        self._look()

    def _look(self) -> None:
        """How much space is there? Now, and again and again."""
        if self._timer is not None:
            self._timer.cancel()
        if self._why_not() is not None:
            return

        def looked(outcome: Outcome[int]) -> None:
            error = outcome.exception()
            if error is not None:
                self._fail(
                    BackendFailed(f"cannot look at the disk of {self._disk.path('.')}: {error}; meshd must stop")
                )
                return
            needed = self._segment_bytes + 2 * self._snapshot_bytes
            before = self._space
            self._space = before.judge(outcome.result(), needed, starved=self._starved)
            if self._space.low and not before.low:
                self._tell(DiskLow(outcome.result(), self._disk.path(".")))
            elif before.low and not self._space.low:
                self._tell(DiskRecovered(outcome.result()))
            if self._segments.has_spare:
                self._starved = False
            else:
                self._make_spare()

        self._help(self._disk.free_bytes, looked)
        self._timer = asyncio.get_running_loop().call_later(SPACE_POLL_S, self._look)

    # --- jobs -----------------------------------------------------------------------------------------------------

    def _write(self, job: Callable[[], T], then: Callable[[Outcome[T]], None]) -> None:
        self._writing += 1
        self._run(self._writer, job, then, writer=True)

    def _help(self, job: Callable[[], T], then: Callable[[Outcome[T]], None]) -> None:
        self._helping += 1
        self._run(self._helper, job, then, writer=False)

    def _run(self, worker: Worker, job: Callable[[], T], then: Callable[[Outcome[T]], None], *, writer: bool) -> None:
        def called_back(outcome: Outcome[T]) -> None:
            if writer:
                self._writing -= 1
            else:
                self._helping -= 1
            try:
                then(outcome)
            except BaseException as error:  # a bug of ours above: without this, everybody would wait for ever
                self._fail(error)
                raise
            finally:
                self._kick()
                self._finish_if_idle()

        worker.do(job, called_back)

    def _fail(self, error: BaseException, group: Iterable[_Queued] = ()) -> None:
        if not isinstance(error, StoreError):
            error = BackendFailed(f"the store failed: {error!r}; meshd must stop")
        first = self._error is None
        self._error = self._error or error
        self._cut_off(group, error)
        if first:
            self._tell(JournalFailed(error))

    def _tell(self, event: Event) -> None:
        if self._on_event is not None:
            asyncio.get_running_loop().call_soon(self._on_event, event)

    def close(self) -> asyncio.Future[None]:
        """Stop: what is being synced ends well, what only waits fails with StoreClosed. Idempotent."""
        if self._closing is None:
            self._closing = asyncio.get_running_loop().create_future()
            self._cut_off((), _closed())
            if self._timer is not None:
                self._timer.cancel()
            self._finish_if_idle()
        return self._closing

    def _finish_if_idle(self) -> None:
        if self._writing or self._helping or self._closing is None or self._closing.done():
            return
        self._segments.close()
        self._shut_down()
        self._closing.set_result(None)

    def _shut_down(self) -> None:
        self._writer.stop()
        self._helper.stop()


class Incoming:
    """A snapshot on its way from another manager.

    `write` each chunk in order; `next_chunk` says which one is wanted, also after the connection was lost and made
    anew. Then `finish`, or `abandon`.
    """

    def __init__(self, journal: Journal, meta: SnapshotMeta) -> None:
        self._journal = journal
        self._meta = meta
        self._writer: SnapshotWriter | None = None
        self.next_chunk = 0

    def write(self, number: int, data: bytes) -> asyncio.Future[None]:
        """Take a chunk, if it is the one wanted: others are dropped, so that a repeated one does no harm."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if number != self.next_chunk:
            future.set_result(None)
            return future
        self.next_chunk += 1
        self._journal._help(
            partial(_translated, self._journal._disk, partial(self._write, data)), partial(settle, future)
        )
        return future

    def finish(self) -> asyncio.Future[None]:
        """All chunks are there: make it the beginning of the log. What the log had is gone when the future is done."""
        return self._journal._save(self._finish, self._meta)

    def abandon(self) -> None:
        """Forget it."""
        if self._writer is not None:
            self._journal._help(self._writer.abandon, lambda _: None)

    def _write(self, data: bytes) -> None:
        self._open().write(data)

    def _finish(self) -> int:
        writer = self._open()
        writer.finish()
        return writer.size_bytes

    def _open(self) -> SnapshotWriter:
        if self._writer is None:
            journal = self._journal
            self._writer = SnapshotWriter(journal._disk, journal._cluster_id, journal._ring, self._meta)
        return self._writer


def _merged(group: list[_Queued]) -> Batch:
    if len(group) == 1:
        return group[0].batch
    hard_state = next((q.batch.hard_state for q in reversed(group) if q.batch.hard_state is not None), None)
    entries = tuple(entry for q in group for entry in q.batch.entries)
    return Batch(hard_state, entries)


def _translated(disk: Disk, write: Callable[[], T]) -> T:
    """A job that writes a snapshot, with errors of ours. Raises Refused for a full disk, BackendFailed otherwise."""
    try:
        return write()
    except OSError as error:
        text = f"cannot write a snapshot in {disk.path('.')}: {error.strerror}"
        if error.errno in FULL:
            raise Refused(f"{text}; free some space") from error
        raise BackendFailed(f"{text}; meshd must stop") from error
    except Damaged as error:
        raise BackendFailed(f"the snapshot to keep cannot be read: {error}") from error


def _closed() -> StoreClosed:
    return StoreClosed("the store is closed: this manager is stopping")
