"""The backend of a cluster with one manager: the state machine of `control.store.state` on a journal.

It always leads, in a term above all that are in the log; each commit is an entry, committed when it is synced. What it
knows of the rows are two persistent maps: what is durable, and what is queued on top. The journal has the threads.

A journal that is long is compacted: a snapshot of the durable rows, made in the journal's thread, lets the entries go.
While the disk is nearly full only commits that remove or change are taken, not those that create (`DiskLow`).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from control.store.backend import (
    Committed,
    Deliver,
    Failed,
    Guard,
    Image,
    Leading,
    Member,
    Proposal,
    Role,
    Status,
)
from control.store.disk import Disk, RealDisk
from control.store.errors import BackendFailed, Damaged, NotLeader, Refused, StoreClosed, StoreError
from control.store.journal import DiskLow, DiskRecovered, Event, Journal, JournalFailed, Recovered
from control.store.record import Entry, HardState, SnapshotMeta
from control.store.sealing import KeyRing
from control.store.segments import SEGMENT_BYTES, recorded_cluster
from control.store.state import State, decode_commit, encode_commit

__all__ = ["COMMIT", "LogFile", "cluster_of"]

COMMIT = 0  # the kind of an entry that holds a commit
# Entries of more than this, and of more than the snapshot before them, are compacted: replaying 16 MiB takes a second,
# and with the second limit no more than twice the state is ever written.
LOG_LIMIT_BYTES = 16 * 1024 * 1024


def cluster_of(directory: Path) -> str | None:
    """Id of the cluster whose store is in `directory`; None if there is none. Blocks for a moment."""
    return recorded_cluster(RealDisk(directory))


@dataclass(frozen=True, slots=True)
class _Queued:
    proposal: Proposal
    state: State  # after it
    entry: Entry
    future: asyncio.Future[None]


class LogFile:
    """Implements `control.store.backend.Backend` over a directory.

    `disk` and `threads` are for tests: another file system, and an executor for each of the two kinds of jobs.
    """

    def __init__(
        self,
        directory: Path,
        cluster_id: str,
        node_id: str = "",
        *,
        ring: KeyRing | None = None,
        disk: Disk | None = None,
        threads: Callable[[], Executor] | None = None,
        log_limit_bytes: int = LOG_LIMIT_BYTES,
        segment_bytes: int = SEGMENT_BYTES,
    ) -> None:
        self._disk = disk or RealDisk(directory)
        options = {"threads": threads} if threads is not None else {}
        self._open = partial(Journal.open, self._disk, cluster_id, ring, segment_bytes=segment_bytes, **options)
        self._journal: Journal | None = None
        self._node_id = node_id
        self._log_limit_bytes = log_limit_bytes
        self._log_bytes = 0  # of the entries behind the newest snapshot
        self._snapshot_bytes = 0
        self._compact_at_bytes = log_limit_bytes
        self._snapshotting = False
        self._term = 0
        self._state = self._staged = State()  # durable, and with what is queued
        self._index = 0  # of the last entry queued
        self._queue: deque[_Queued] = deque()
        self._deliver: Deliver | None = None
        self._closing: asyncio.Future[None] | None = None
        self._error: StoreError | None = None
        self._message = ""
        self._low = ""  # why nothing may be created

    # --- opening --------------------------------------------------------------------------------------------------

    async def load(self) -> Image:
        """See `Backend`. Raises StateInUse, WrongCluster, Damaged or another BackendFailed, each with what to do."""
        try:
            self._journal, found = await self._open()
            self._state, self._log_bytes, self._snapshot_bytes = await asyncio.to_thread(
                _replay, self._journal, found, self._disk.path(".")
            )
        except BackendFailed as error:
            self._error = error
            if self._journal is not None:
                await self._journal.close()
            raise
        self._staged = self._state
        self._index = found.log.last_index
        self._term = max(found.log.hard_state.term, found.log.last_term) + 1
        self._set_limit()
        self._message = found.message
        if found.cut_bytes:
            self._message = f"{found.cut_bytes} bytes of a write that a crash interrupted were cut from the log"
        self._journal.listen(self._heard)
        return Image(self._state.version, self._state.rows.values())

    def watch(self, after: int, deliver: Deliver) -> None:
        """See `Backend`."""
        assert after == self._state.version, "a store watches from what it has loaded"
        self._deliver = deliver
        asyncio.get_running_loop().call_soon(self._announce)

    def _announce(self) -> None:
        if self._deliver is not None and self._error is None and self._closing is None:
            self._deliver(Leading(self._term))

    # --- commits --------------------------------------------------------------------------------------------------

    def commit(self, proposal: Proposal, guard: Guard) -> asyncio.Future[None]:
        """See `Backend`."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        refusal = self._why_not(proposal, guard)
        if refusal is not None or self._journal is None:
            future.set_exception(refusal or _closed())
            return future
        self._index += 1
        entry = Entry(self._index, self._term, COMMIT, encode_commit(proposal))
        self._staged = self._staged.apply(proposal)
        queued = _Queued(proposal, self._staged, entry, future)
        self._queue.append(queued)
        hard_state = HardState(self._term, self._node_id, self._index)
        self._journal.append(hard_state, (entry,)).add_done_callback(partial(self._written, queued))
        return future

    def _why_not(self, proposal: Proposal, guard: Guard) -> StoreError | None:
        if self._error is not None:
            return self._error
        if self._closing is not None:
            return _closed()
        if guard.term != self._term:
            return NotLeader(f"the leadership of term {guard.term} is over")
        if proposal.version != self._staged.version + 1:
            return Refused("a commit before this one failed: try again")
        if (misfit := self._staged.misfit(proposal)) is not None:
            return Refused(f"{misfit.kind} {misfit.id} is not at version {misfit.expected}: try again")
        if self._low and any(c.blob is not None and c.expected == 0 for c in proposal.changes):
            return Refused(self._low)
        return None

    def _written(self, queued: _Queued, done: asyncio.Future[None]) -> None:
        error = done.exception()
        if error is None:
            self._queue.popleft()
            self._state = queued.state
            self._log_bytes += len(queued.entry.data)
            if self._deliver is not None:
                self._deliver(Committed(queued.proposal.version, queued.proposal.changes))
            queued.future.set_result(None)
            self._compact()
            return
        if isinstance(error, Refused):
            self._message = str(error)
        if self._queue and queued.entry.index >= self._queue[0].entry.index:  # what is behind it goes on top of it
            while self._queue and self._queue[-1].entry.index >= queued.entry.index:
                self._queue.pop()
            self._staged = self._queue[-1].state if self._queue else self._state
            self._index = queued.entry.index - 1
        queued.future.set_exception(error)

    # --- compaction -----------------------------------------------------------------------------------------------

    def _set_limit(self) -> None:
        self._compact_at_bytes = max(self._log_limit_bytes, self._snapshot_bytes)

    def _compact(self) -> None:
        journal = self._journal
        if self._log_bytes <= self._compact_at_bytes or self._snapshotting or self._closing or journal is None:
            return
        self._snapshotting = True
        log_bytes, state = self._log_bytes, self._state
        index = self._queue[0].entry.index - 1 if self._queue else self._index
        meta = SnapshotMeta(index, self._term)
        size = 0

        def measured() -> Iterator[bytes]:
            nonlocal size
            for chunk in state.chunks():
                size += len(chunk)
                yield chunk

        def saved(done: asyncio.Future[None]) -> None:
            self._snapshotting = False
            error = done.exception()
            if isinstance(error, Refused):  # the log just goes on, until it has grown some more
                self._message = "the log is not compacted: no space left on the disk of the state directory"
                self._compact_at_bytes = self._log_bytes + self._log_limit_bytes // 4
            elif error is None:
                journal.compact(meta.index)
                self._snapshot_bytes = size
                self._log_bytes -= log_bytes
                self._set_limit()

        journal.save_snapshot(meta, measured()).add_done_callback(saved)

    # --- the rest of the contract ---------------------------------------------------------------------------------

    def _heard(self, event: Event) -> None:
        match event:
            case DiskLow():
                self._low = self._message = str(event)
            case DiskRecovered():
                self._low = self._message = ""
            case JournalFailed(error):
                self._error = error
                self._message = str(error)
                if self._deliver is not None:
                    deliver, self._deliver = self._deliver, None
                    deliver(Failed(error))

    async def barrier(self) -> int:
        """See `Backend`: nobody else acknowledges commits."""
        return self._state.version

    def members(self) -> tuple[Member, ...]:
        """See `Backend`."""
        return (Member(self._node_id, voter=True, leader=True),)

    def status(self) -> Status:
        """See `Backend`."""
        role: Role = "failed" if self._error is not None else "closed" if self._closing is not None else "leader"
        size = self._journal.size_bytes if self._journal is not None else 0
        return Status(
            role, self._term, self._state.version, self._node_id, size, self._message, digest=self._state.digest
        )

    def close(self) -> asyncio.Future[None]:
        """See `Backend`: what is being synced is still delivered, what only waits for it fails."""
        if self._closing is None:
            self._closing = asyncio.get_running_loop().create_future()
            if self._journal is None:
                self._closing.set_result(None)
            else:
                self._journal.close().add_done_callback(self._closed)
        return self._closing

    def _closed(self, _: asyncio.Future[None]) -> None:
        assert self._closing is not None
        self._closing.set_result(None)


def _replay(journal: Journal, found: Recovered, path: str) -> tuple[State, int, int]:
    """The state, the bytes of the entries behind the snapshot, those of the snapshot. Raises Damaged. Blocks."""
    try:
        size = 0

        def measured(meta: SnapshotMeta) -> Iterator[bytes]:
            nonlocal size
            for chunk in journal.snapshot_chunks(meta):
                size += len(chunk)
                yield chunk

        state = State() if found.snapshot is None else State.of(measured(found.snapshot))
        first = (found.snapshot.index if found.snapshot is not None else 0) + 1
        log_bytes = 0
        for entry in found.log.entries(first, found.log.last_index + 1):
            commit = decode_commit(entry.data)
            if commit.version != state.version + 1 or state.misfit(commit) is not None:
                raise Damaged(f"commit {commit.version} does not go on top of commit {state.version}")
            state = state.apply(commit)
            log_bytes += len(entry.data)
    except Damaged as error:
        raise Damaged(f"the store in {path} is damaged: {error}; restore a backup with meshd restore") from error
    return state, log_bytes, size


def _closed() -> StoreClosed:
    return StoreClosed("the store is closed: this manager is stopping")
