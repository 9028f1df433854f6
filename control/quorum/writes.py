"""Readys of the core on their way to the journal: in order, and each ended only when all before it are.

A journal that has no space refuses, and nothing was written: then it is tried again, from the first one that failed on,
until there is space. To the core that is a disk that hangs, so it hands the leadership over. Any other failure is the
end.

A snapshot of another manager is written alone: nothing later is handed to the disk before the log speaks of it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from functools import partial

import msgspec

from control.raft.messages import entries_bytes
from control.raft.ready import Ready
from control.store.errors import Refused, StoreClosed, StoreError
from control.store.journal import Journal
from control.store.record import HardState
from control.store.state import FrozenRows

RETRY_S = 0.25  # of a write for which there was no space
# Handed to the disk and not durable: above that no appends of others are read, until half of it is done. Well above
# what a leader sends without an answer, so a disk that only is slow does not stop the lane.
HOLD_BYTES = 16 * 1024 * 1024


class _Write(msgspec.Struct, eq=False):
    ready: Ready
    state: FrozenRows | None  # of its snapshot
    size_bytes: int
    done: bool = False


class Writes:
    """See the module. `durable` is called for each Ready in order; `failed` at most once; none of them by `put`."""

    def __init__(
        self, journal: Journal, durable: Callable[[Ready], None], failed: Callable[[StoreError], None]
    ) -> None:
        self._journal, self._durable, self._failed = journal, durable, failed
        self._queue: deque[_Write] = deque()  # not ended
        self._given = 0  # of these, the first ones are with the journal
        self._attempt = 0  # grows when all has to be given anew
        self._busy = False  # with a snapshot, or waiting for space
        self._hard = journal.hard_state  # as last given
        self._timer: asyncio.TimerHandle | None = None
        self._ended = False
        self.size_bytes = 0  # of entries that are not durable
        self.message = ""  # why nothing is written just now

    @property
    def full(self) -> bool:
        """Whether a write waits for space."""
        return bool(self.message)

    def put(self, ready: Ready, state: FrozenRows | None = None) -> None:
        """Write what a Ready with `to_disk` asks for; `state` is that of its snapshot. Then call `settle`."""
        size = entries_bytes(ready.entries)
        self._queue.append(_Write(ready, state, size))
        self.size_bytes += size
        self._give()

    def settle(self) -> None:
        """Tell of those at the front that are durable."""
        while self._queue and self._queue[0].done and not self._ended:
            write = self._queue.popleft()
            self._given -= 1
            self.size_bytes -= write.size_bytes
            self._durable(write.ready)

    def stop(self) -> None:
        """Tell nothing any more."""
        self._ended = True
        if self._timer is not None:
            self._timer.cancel()

    # --- giving -------------------------------------------------------------------------------------------------------

    def _give(self) -> None:
        while self._given < len(self._queue) and not self._busy and not self._ended:
            write = self._queue[self._given]
            self._given += 1
            if write.state is not None and write.ready.snapshot != self._journal.snapshot:
                self._install(write)
            else:
                self._append(write)

    def _append(self, write: _Write) -> None:
        ready = write.ready
        if ready.hard_state is None and not ready.entries:
            write.done = True  # only waits for those before it
            return
        self._hard = ready.hard_state or self._hard
        then = partial(self._written, write, self._attempt)
        if not self._journal.write(then, ready.hard_state, ready.entries, must_sync=ready.must_sync):
            write.done = True  # lazy: nothing is written for it

    def _written(self, write: _Write, attempt: int, error: BaseException | None) -> None:
        if attempt != self._attempt or self._ended:
            return
        if error is None:
            write.done = True
            self.message = ""
            self.settle()
        else:
            self._stumbled(write, error)

    def _stumbled(self, write: _Write, error: BaseException) -> None:
        """This one and all behind it are to be given anew, also those that the journal has taken meanwhile: what they
        said would be older than what is written before them."""
        if isinstance(error, StoreClosed):
            return  # its owner knows
        if not isinstance(error, Refused):
            self._end(error)
            return
        self._attempt += 1
        self._given = self._queue.index(write)
        for later in list(self._queue)[self._given :]:
            later.done = False
        self._busy, self.message = True, str(error)
        self._timer = asyncio.get_running_loop().call_later(RETRY_S, self._again)

    def _again(self) -> None:
        self._busy = False
        self._give()

    def _end(self, error: BaseException) -> None:
        assert isinstance(error, StoreError)
        self.stop()
        self._failed(error)

    # --- snapshots of others ------------------------------------------------------------------------------------------

    def _install(self, write: _Write) -> None:
        self._busy = True
        meta, hard, attempt = write.ready.snapshot, write.ready.hard_state, self._attempt
        assert meta is not None and write.state is not None  # noqa: PT018 - for mypy
        if hard is not None:
            # The term before the entries of that term; the log does not have what `hard.commit` speaks of yet.
            self._hard = HardState(hard.term, hard.vote, self._hard.commit)
            self._journal.append(self._hard)
        saving = self._journal.save_snapshot(meta, write.state.chunks())
        saving.add_done_callback(partial(self._installed, write, attempt))

    def _installed(self, write: _Write, attempt: int, done: asyncio.Future[None]) -> None:
        error = done.exception()
        if attempt != self._attempt or self._ended:
            return
        if error is not None:
            self._stumbled(write, error)
            return
        self._busy, self.message = False, ""
        write.state = None
        self._append(write)
        self._give()
        self.settle()
