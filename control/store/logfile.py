"""The backend of a cluster with one manager: a synced, checksummed log in the state directory.

Commits queue up while a sync is under way and go to the disk together with the next one (group commit). One thread
writes (a sync that takes long, or for ever, must not stop the loop from hearing the nodes); another one writes
snapshots, so that commits go on meanwhile. The loop hands each a job and is called back: no task of its own, no lock.

It always leads, in a term above all that are in the log. What it knows of the rows are two persistent maps: what is
durable, and what is queued on top.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

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
from control.store.errors import BackendFailed, NotLeader, Refused, StoreClosed, StoreError
from control.store.logdir import LogDirectory, RowMap, apply_rows, recorded_cluster
from control.store.sortedmap import SortedMap

__all__ = ["LogFile", "cluster_of"]

T = TypeVar("T")

GROUP_BYTES = 4 * 1024 * 1024  # written by one sync: some 20 ms on a slow disk, and well above one full batch
# A log longer than this, and longer than the snapshot before it, is compacted: replaying 16 MiB takes a second, and
# with the second limit no more than twice the state is ever written.
LOG_LIMIT_BYTES = 16 * 1024 * 1024


def cluster_of(directory: Path) -> str | None:
    """Id of the cluster whose store is in `directory`; None if there is none. Blocks for a moment."""
    return recorded_cluster(RealDisk(directory))


@dataclass(frozen=True, slots=True)
class _Queued:
    proposal: Proposal
    rows: RowMap  # after it
    size_bytes: int
    future: asyncio.Future[None]


@dataclass(frozen=True, slots=True)
class _Owed:
    """A snapshot that a sealed log waits for."""

    generation: int
    version: int
    rows: RowMap


def _thread() -> Executor:
    return ThreadPoolExecutor(max_workers=1, thread_name_prefix="store")


class LogFile:
    """Implements `control.store.backend.Backend` over a directory.

    `disk` and `thread` are for tests: another file system, and an executor for each of the two kinds of jobs.
    """

    def __init__(
        self,
        directory: Path,
        cluster_id: str,
        node_id: str = "",
        *,
        disk: Disk | None = None,
        thread: Callable[[], Executor] = _thread,
        log_limit_bytes: int = LOG_LIMIT_BYTES,
    ) -> None:
        self._node_id = node_id
        self._files = LogDirectory(disk or RealDisk(directory), cluster_id)
        self._writer = thread()
        self._snapshotter = thread()
        self._log_limit_bytes = log_limit_bytes
        self._snapshot_bytes = 0
        self._term = 0
        self._version = 0  # durable
        self._tip = 0  # queued
        self._rows: RowMap = SortedMap()
        self._staged: RowMap = self._rows
        self._queue: deque[_Queued] = deque()
        self._writing: deque[_Queued] = deque()  # what the writer has
        self._busy = False  # the writer has a job
        self._owed: _Owed | None = None
        self._snapshotting = False
        self._retry_at_bytes = 0  # log size at which a compaction that found no space is tried again
        self._deliver: Deliver | None = None
        self._closing: asyncio.Future[None] | None = None
        self._error: StoreError | None = None
        self._message = ""

    # --- opening --------------------------------------------------------------------------------------------------

    async def load(self) -> Image:
        """See `Backend`. Raises StateInUse, WrongCluster, Damaged or another BackendFailed, each with what to do."""
        loop = asyncio.get_running_loop()
        self._busy = True
        try:
            found = await loop.run_in_executor(self._writer, self._files.open)
        except BackendFailed as error:
            self._error = error
            raise
        finally:
            self._busy = False
            self._finish_if_idle()
        self._version = self._tip = found.version
        self._rows = self._staged = found.rows
        self._term = found.term + 1
        self._snapshot_bytes = found.snapshot_bytes
        if found.cut_bytes:
            self._message = f"{found.cut_bytes} bytes of a write that a crash interrupted were cut from the log"
        return Image(found.version, found.rows.values())

    def watch(self, after: int, deliver: Deliver) -> None:
        """See `Backend`."""
        assert after == self._version, "a store watches from what it has loaded"
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
        if refusal is not None:
            future.set_exception(refusal)
            return future
        size = sum(len(c.blob) for c in proposal.changes if c.blob is not None)
        self._staged = apply_rows(self._staged, proposal)
        self._tip = proposal.version
        self._queue.append(_Queued(proposal, self._staged, size, future))
        self._kick()
        return future

    def _why_not(self, proposal: Proposal, guard: Guard) -> StoreError | None:
        if self._error is not None:
            return self._error
        if self._closing is not None:
            return _closed()
        if guard.term != self._term:
            return NotLeader(f"the leadership of term {guard.term} is over")
        if proposal.version != self._tip + 1:
            return Refused("a commit before this one failed: try again")
        for change in proposal.changes:
            row = self._staged.get((change.kind, change.id))
            if (row.version if row is not None else 0) != change.expected:
                return Refused(f"{change.kind} {change.id} is not at version {change.expected}: try again")
        return None

    def _kick(self) -> None:
        """Give the threads what there is to do, if they have nothing."""
        if self._busy or self._error is not None:
            return
        if self._owed is not None and self._may_retry():
            self._write_owed(self._owed)
        if self._must_seal():
            self._busy = True
            self._owed = _Owed(self._files.generation + 1, self._version, self._rows)
            self._run(self._writer, partial(self._files.seal, self._version, self._term), self._sealed)
        elif self._queue:
            self._busy = True
            self._writing = self._next_group()
            proposals = tuple(q.proposal for q in self._writing)
            self._run(self._writer, partial(self._files.append, self._term, proposals), self._written)

    def _next_group(self) -> deque[_Queued]:
        group = deque([self._queue.popleft()])
        size = group[0].size_bytes
        while self._queue and size + self._queue[0].size_bytes <= GROUP_BYTES:
            group.append(self._queue.popleft())
            size += group[-1].size_bytes
        return group

    def _written(self, done: asyncio.Future[None]) -> None:
        self._busy = False
        error = done.exception()
        if isinstance(error, Refused):
            self._message = str(error)
            self._cut_off(error)
        elif error is not None:
            self._fail(error)
        else:
            while self._writing:
                queued = self._writing.popleft()
                self._version = queued.proposal.version
                self._rows = queued.rows
                if self._deliver is not None:
                    self._deliver(Committed(queued.proposal.version, queued.proposal.changes))
                queued.future.set_result(None)

    def _cut_off(self, error: StoreError) -> None:
        """The group was not written, and what is queued was to go on top of it."""
        cut = (*self._writing, *self._queue)
        self._writing.clear()
        self._queue.clear()
        self._staged, self._tip = self._rows, self._version
        for queued in cut:
            queued.future.set_exception(error)

    # --- compaction -----------------------------------------------------------------------------------------------

    def _must_seal(self) -> bool:
        limit = max(self._log_limit_bytes, self._snapshot_bytes, self._retry_at_bytes)
        return self._files.log_bytes > limit and self._owed is None and self._closing is None

    def _may_retry(self) -> bool:
        return not self._snapshotting and self._closing is None and self._files.log_bytes > self._retry_at_bytes

    def _sealed(self, done: asyncio.Future[bool]) -> None:
        self._busy = False
        error = done.exception()
        if error is not None:
            self._fail(error)
        elif done.result() and self._owed is not None:
            self._write_owed(self._owed)
        else:
            self._owed = None
            self._no_space()

    def _write_owed(self, owed: _Owed) -> None:
        self._snapshotting = True
        job = partial(self._files.write_snapshot, owed.generation, owed.version, self._term, owed.rows)
        self._run(self._snapshotter, job, self._snapshot_written)

    def _snapshot_written(self, done: asyncio.Future[int]) -> None:
        self._snapshotting = False
        error = done.exception()
        if isinstance(error, Refused):
            self._no_space()
        elif error is not None:
            self._fail(error)
        else:
            self._owed = None
            self._retry_at_bytes = 0
            self._snapshot_bytes = done.result()

    def _no_space(self) -> None:
        """The log just goes on, until it has grown some more."""
        self._message = "the log is not compacted: no space left on the disk of the state directory"
        self._retry_at_bytes = self._files.log_bytes + self._log_limit_bytes // 4

    # --- jobs -----------------------------------------------------------------------------------------------------

    def _run(self, thread: Executor, job: Callable[[], T], then: Callable[[asyncio.Future[T]], None]) -> None:
        def called_back(done: asyncio.Future[T]) -> None:
            try:
                then(done)
            except BaseException as error:  # a bug of ours above: without this, everybody would wait for ever
                self._fail(error)
                raise
            finally:
                self._kick()
                self._finish_if_idle()

        asyncio.get_running_loop().run_in_executor(thread, job).add_done_callback(called_back)

    def _fail(self, error: BaseException) -> None:
        if self._error is not None:
            return
        if not isinstance(error, StoreError):
            error = BackendFailed(f"the store failed: {error!r}; meshd must stop")
        self._error = error
        self._message = str(error)
        self._cut_off(error)
        if self._deliver is not None:
            deliver, self._deliver = self._deliver, None
            deliver(Failed(error))

    # --- the rest of the contract ---------------------------------------------------------------------------------

    async def barrier(self) -> int:
        """See `Backend`: nobody else acknowledges commits."""
        return self._version

    def members(self) -> tuple[Member, ...]:
        """See `Backend`."""
        return (Member(self._node_id, voter=True, leader=True),)

    def status(self) -> Status:
        """See `Backend`."""
        role: Role = "failed" if self._error is not None else "closed" if self._closing is not None else "leader"
        size = self._snapshot_bytes + self._files.log_bytes
        return Status(role, self._term, self._version, self._node_id, size, self._message)

    def close(self) -> asyncio.Future[None]:
        """See `Backend`: what is being synced is still delivered, what only waits for it fails."""
        if self._closing is None:
            self._closing = asyncio.get_running_loop().create_future()
            waiting = tuple(self._queue)
            self._queue.clear()
            for queued in waiting:
                queued.future.set_exception(_closed())
            self._finish_if_idle()
        return self._closing

    def _finish_if_idle(self) -> None:
        if self._busy or self._snapshotting or (self._closing is None and self._error is None):
            return
        self._files.close()
        self._writer.shutdown(wait=False)
        self._snapshotter.shutdown(wait=False)
        if self._closing is not None and not self._closing.done():
            self._closing.set_result(None)


def _closed() -> StoreClosed:
    return StoreClosed("the store is closed: this manager is stopping")
