"""The store of one manager: the tables, kept true by a backend.

The store has no task of its own: the backend calls it (`_deliver`) and callers wait for futures. It
holds two snapshots. `view()` is what is durable, and only that is ever read. The *head* has the commits under way on
top, and only the checks of further commits look at it; so commits are pipelined, none waits for the sync of another,
and nothing is locked across an await. When a commit fails, the head falls back to the view, and what was proposed on
top of it fails too.

What the store is told by its backend it either has prepared itself (then the prepared snapshot becomes the view) or it
comes from another leader (then it is decoded and applied): both lead to the same tables. Another leader's commits are
only kept as rows while nobody watches (`deferred`), and made objects of when somebody looks, when it has become quiet,
before this manager leads, and every LAG_S.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Sized
from functools import partial

import msgspec

from control.lifecycle import Writer
from control.model import KIND_OF, Object, Task
from control.store import heap
from control.store.backend import (
    Backend,
    Committed,
    Delivery,
    Failed,
    Following,
    Guard,
    Image,
    Leading,
    Member,
    Proposal,
    Replaced,
    Status,
)
from control.store.deferred import Deferred, diverged, existing
from control.store.errors import BackendFailed, NotLeader, StoreClosed, StoreError, TooLarge
from control.store.record import RowChange
from control.store.rows import MAX_BYTES, MAX_CHANGES, change_of, decode, split
from control.store.tables import Event, Snapshot, event
from control.store.txn import Change, name_of, prepare
from control.store.watch import Commit, History, Resync, Watcher

__all__ = ["Commit", "Event", "Resync", "Store", "Watcher"]

# Commits under way; further callers wait. Enough for a group commit to fill the disk's sync time many times over
# (a sync of 1 ms and 25 µs for each commit would be 40), little enough that a stop or a failure is over at once.
MAX_PENDING = 256
MAX_PENDING_BYTES = 16 * 1024 * 1024  # ten full batches
# Changes proposed in one turn of the loop; further callers come in the next turns. A change takes 20 to 60 µs, and all
# who waited for one sync wake up together: without this the loop would be deaf meanwhile, and miss heartbeats.
TURN_CHANGES = 250
# An image of more rows is decoded in a thread: a thousand take 10 ms.
INLINE_ROWS = 500
# Rows of another leader that a look waits for (5 to 10 ms). More are made objects of in parts of so many, each in a
# turn of the loop of its own, and the look gets the view of before.
INLINE_DEFERRED, PART_DEFERRED = 500, 250
# Commits of another leader that nobody looks at are put off until there is none for QUIET_S, or for LAG_S at most: a
# manager that takes over after ten seconds of more than it could ever follow has a second or two to do.
QUIET_S, LAG_S = 0.25, 10.0
# Then so many rows at a time, with a pause after them: it takes many turns of the loop to acknowledge what the leader
# sends, and each would have to wait for a part, on a machine that is busy for long.
PART_QUIET, PAUSE_S = 100, 0.01
SETTLE_TASKS = 1_000  # below this the garbage collector is no matter


class _Pending(msgspec.Struct, frozen=True, eq=False):
    """A commit under way."""

    changes: tuple[RowChange, ...]
    events: tuple[Event, ...]
    after: Snapshot
    size_bytes: int
    future: asyncio.Future[None]  # the backend's
    told: asyncio.Future[None]  # the caller's, who may cancel it


class Store:
    """See the top of the file. All methods belong to the event loop that called `open`."""

    def __init__(self, backend: Backend, now_ms: Callable[[], int]) -> None:
        self._backend = backend
        self._now_ms = now_ms
        self._view = self._head = Snapshot()
        self._pending: deque[_Pending] = deque()
        self._pending_bytes = 0
        self._turn_changes = 0  # proposed in this turn of the loop
        self._backlog: deque[Delivery] | None = None  # what came while an image is being decoded
        self._deferred = Deferred()
        self._catching_up = False  # a turn for that is on its way
        self._timer: asyncio.TimerHandle | None = None  # looks whether it is quiet
        self._news: dict[str, asyncio.Future[bool]] = {}  # by kind
        self._history = History(self._durable)
        self._term: int | None = None
        self._leader = ""
        self._state: StoreError | None = StoreClosed("the store has not been opened")  # why it takes no commits
        self._turn: asyncio.Future[None]  # done at the next change of leadership or of `_state`

    async def open(self) -> None:
        """Load everything, and learn who leads. Raises BackendFailed with what to do about it."""
        self._turn = asyncio.get_running_loop().create_future()
        image = await self._backend.load()
        try:
            self._view = self._head = await asyncio.to_thread(_snapshot, image)
        except BackendFailed:
            await self._backend.close()
            raise
        heap.tune()
        if len(self._view.all(Task)) > SETTLE_TASKS:
            heap.settle()
        self._history = History(self._durable)
        self._state = None
        turn = self._turn
        self._backend.watch(image.version, self._deliver)
        await asyncio.wait([turn])
        self._check_open()

    # --- reading --------------------------------------------------------------------------------------------------

    def view(self) -> Snapshot:
        """What is durable now, as far as this manager has heard and been able to follow (`barrier` is for more).

        Free, but for commits of another leader that nobody has looked at; may be held.
        """
        if self._deferred:
            self._look()
        return self._view

    def _durable(self) -> Snapshot:
        return self._view

    async def barrier(self) -> Snapshot:
        """A view that holds every commit acknowledged anywhere before the call (a linearizable read)."""
        self._check_open()
        watcher = self.watch(None)
        version = await self._backend.barrier()
        if self._view.version < version:
            async for item in watcher:
                if item.version >= version:
                    break
            self._check_open()
        return self._view

    def watch(self, after: int | None = None) -> Watcher:
        """All commits after a version (None: from now on) as they become durable.

        `view = store.view(); watcher = store.watch(view.version)` without an await between them misses nothing.
        """
        if self._deferred:
            self._look()
        return self._history.watch(after)

    def news(self, cls: type[Object]) -> asyncio.Future[bool]:
        """Done when an object of this kind was written, and `view` has it; perhaps also for nothing. False: the end.

        For those who wait for seldom things on every manager: unlike a watcher it lets all else be put off. Not to be
        cancelled (`asyncio.shield`).
        """
        future = self._news.get(KIND_OF[cls])
        if future is None:
            future = asyncio.get_running_loop().create_future()
            if self._state is None:
                self._news[KIND_OF[cls]] = future
            else:
                future.set_result(False)
        return future

    def _tell_news(self, kinds: Iterable[str], *, more: bool = True) -> None:
        for kind in kinds:
            future = self._news.pop(kind, None)
            if future is not None and not future.done():
                future.set_result(more)

    def _is_news(self, commit: Committed) -> set[str]:
        return self._news.keys() & {change.kind for change in commit.changes} if self._news else set()

    # --- writing --------------------------------------------------------------------------------------------------

    async def commit(self, changes: Iterable[Change], writer: Writer, *, term: int | None = None) -> int:
        """Write all of it or nothing; returns the version when it is durable and in `view()`.

        `term` is that of `leading()` for loops that must not outlive their leadership; None: the current one.
        Raises StoreError; of these only OutcomeUnknown, BackendFailed and StoreClosed leave open whether it happened.
        A cancelled caller does not know either.
        """
        changes = tuple(changes)
        if not changes:
            return self._view.version
        await self._room(len(changes))
        pending = self._propose(changes, writer, term)
        await pending.told
        return pending.after.version

    async def batch(self, changes: Iterable[Change], writer: Writer, *, term: int | None = None) -> int:
        """Write many changes as several commits, in order; returns the version of the last.

        Stops at the first commit that fails, and raises its error when all before it have settled.
        """
        version = self._view.version
        proposed: list[_Pending] = []
        failure: StoreError | None = None
        for part in split(changes):
            await self._room(len(part))
            if proposed and proposed[-1].future.done() and proposed[-1].future.exception() is not None:
                break
            try:
                proposed.append(self._propose(tuple(part), writer, term))
            except StoreError as error:
                failure = error
                break
        for pending in reversed(proposed):
            try:
                await pending.told
            except StoreError as error:
                failure = error  # the earliest one in the end
            else:
                version = max(version, pending.after.version)
        if failure is not None:
            raise failure
        return version

    def _propose(self, changes: tuple[Change, ...], writer: Writer, term: int | None) -> _Pending:
        """Check against the head, hand to the backend, move the head: one turn of the loop."""
        self._check_open()
        if self._term is None:
            raise NotLeader("this manager does not lead the cluster" + (f": {self._leader} does" * bool(self._leader)))
        if term is not None and term != self._term:
            raise NotLeader(f"the leadership of term {term} is over")
        if len(changes) > MAX_CHANGES:
            raise TooLarge(f"{len(changes)} changes are too many for one commit: the limit is {MAX_CHANGES}")
        prepared = prepare(self._head, changes, writer, self._now_ms())
        rows = tuple(map(change_of, prepared.events))
        size = sum(len(row.blob) for row in rows if row.blob is not None)
        if size > MAX_BYTES:
            at = max(range(len(rows)), key=lambda i: len(rows[i].blob or b""))
            raise TooLarge(
                f"{name_of(prepared.events[at].object)} makes a commit of {size} bytes: {MAX_BYTES} are allowed"
            )
        future = self._backend.commit(Proposal(prepared.after.version, rows), Guard(self._term))
        told: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        pending = _Pending(rows, prepared.events, prepared.after, size, future, told)
        self._pending.append(pending)
        self._pending_bytes += size
        self._head = prepared.after
        future.add_done_callback(partial(self._settled, pending))
        return pending

    async def _room(self, count: int) -> None:
        while True:
            if len(self._pending) >= MAX_PENDING or self._pending_bytes >= MAX_PENDING_BYTES:
                await asyncio.wait([self._pending[0].future])
            elif self._turn_changes and self._turn_changes + count > TURN_CHANGES:
                await asyncio.sleep(0)
            else:
                break
        if not self._turn_changes:
            asyncio.get_running_loop().call_soon(self._next_turn)
        self._turn_changes += count

    def _next_turn(self) -> None:
        self._turn_changes = 0

    def _settled(self, pending: _Pending, done: asyncio.Future[None]) -> None:
        error = done.exception()
        if error is not None and pending in self._pending:
            self._fall_back(pending)
        if pending.told.done():
            return  # when it was delivered, or cancelled
        if error is None:
            pending.told.set_result(None)
        else:
            pending.told.set_exception(error)
            pending.told.exception()  # of a batch that was cancelled meanwhile nobody asks

    def _fall_back(self, pending: _Pending) -> None:
        """A commit that fails takes all that were built upon it out of the head."""
        while self._pending:
            last = self._pending.pop()
            self._pending_bytes -= last.size_bytes
            if last is pending:
                break
        self._head = self._pending[-1].after if self._pending else self._view

    def _drop_pending(self) -> None:
        self._pending.clear()
        self._pending_bytes = 0
        self._head = self._view

    # --- what the backend says ------------------------------------------------------------------------------------

    def _deliver(self, delivery: Delivery) -> None:
        if self._backlog is not None:
            if isinstance(delivery, Replaced | Failed):
                self._backlog.clear()  # it makes what came before it pointless, so the backlog is bounded by one log
            self._backlog.append(delivery)
            return
        try:
            match delivery:
                case Committed():
                    self._committed(delivery)
                case Replaced(image):
                    self._replace(image)
                case Leading() if self._deferred:
                    self._backlog = deque([delivery])
                    self._catch_up_soon()
                case Leading(term):
                    self._drop_pending()
                    self._lead(term, "")
                case Following(leader):
                    self._drop_pending()
                    self._lead(None, leader)
                case Failed(error):
                    self._fail(error)
        except BackendFailed as error:  # what was delivered cannot be read: nothing after it may be applied
            self._fail(error)
            self._backend.close()

    def _drain(self) -> None:
        """What came meanwhile."""
        backlog, self._backlog = self._backlog or deque(), None
        for delivery in backlog:
            self._deliver(delivery)

    def _replace(self, image: Image) -> None:
        """Take a state that another manager sent. A large one in a thread: this manager may have to vote meanwhile."""
        if isinstance(image.rows, Sized) and len(image.rows) <= INLINE_ROWS:
            self._replaced(_snapshot(image))
            return
        self._backlog = deque()

        def decoded(done: asyncio.Future[Snapshot]) -> None:
            error = done.exception()
            if error is not None:
                self._backlog = None
                failure = (
                    error if isinstance(error, StoreError) else BackendFailed(f"the state cannot be read: {error!r}")
                )
                self._fail(failure)
                self._backend.close()
                return
            self._replaced(done.result())
            self._drain()

        asyncio.get_running_loop().run_in_executor(None, _snapshot, image).add_done_callback(decoded)

    def _replaced(self, view: Snapshot) -> None:
        self._deferred = Deferred()
        self._jump(view)

    def _jump(self, view: Snapshot) -> None:
        """The view goes on by more than a commit."""
        self._view = view
        self._drop_pending()
        self._history.reset()
        self._tell_news(tuple(self._news))

    def _committed(self, commit: Committed) -> None:
        if self._state is not None and not isinstance(self._state, StoreClosed):
            return
        first = self._pending[0] if self._pending else None
        if first is not None and first.after.version == commit.version and first.changes == commit.changes:
            self._pending.popleft()
            self._pending_bytes -= first.size_bytes
            self._view, events = first.after, first.events
            if not first.told.done() and not first.future.done():  # that is for the next turn of the loop
                first.told.set_result(None)
        elif self._deferred or (self._term is None and not self._history.watched):
            self._defer(commit)
            return
        else:
            events = _events(self._view, commit)
            self._view = self._view.apply(commit.version, events)
            self._drop_pending()
        self._history.append(Commit(commit.version, events))
        self._tell_news(self._is_news(commit))

    # --- commits of others that nobody has looked at --------------------------------------------------------------

    def _defer(self, commit: Committed) -> None:
        if commit.version <= max(self._view.version, self._deferred.version):
            raise unordered(commit, max(self._view.version, self._deferred.version))
        self._drop_pending()
        if not self._deferred and self._timer is None and self._state is None:
            self._wait_for_quiet(commit.version, asyncio.get_running_loop().time() + LAG_S, QUIET_S)
        self._deferred.add(commit.version, commit.changes)
        if self._history.watched or self._is_news(commit):
            self._catch_up_soon()

    def _wait_for_quiet(self, version: int, latest_s: float, wait_s: float) -> None:
        """Look again a little later whether `version` is still the last one; then it is time for a part."""
        loop = asyncio.get_running_loop()

        def ring() -> None:
            self._timer = None
            if not self._deferred or self._state is not None:
                return
            if self._deferred.version != version and loop.time() < latest_s:
                self._wait_for_quiet(self._deferred.version, latest_s, QUIET_S)
            elif self._catch_up(PART_QUIET) and self._deferred.working:
                self._wait_for_quiet(self._deferred.version, latest_s, PAUSE_S)
            elif self._deferred:  # what came while a round was worked off is for the next one
                self._wait_for_quiet(self._deferred.version, loop.time() + LAG_S, QUIET_S)

        self._timer = loop.call_later(wait_s, ring)

    def _look(self) -> None:
        """Somebody does: a little is made now, more of it soon."""
        if len(self._deferred) > INLINE_DEFERRED:
            self._catch_up_soon()
        while self._deferred and len(self._deferred) <= INLINE_DEFERRED and self._catch_up(INLINE_DEFERRED):
            pass

    def _catch_up_soon(self) -> None:
        if not self._catching_up and self._state is None:
            self._catching_up = True
            asyncio.get_running_loop().call_soon(self._catch_up_in_turns)

    def _catch_up_in_turns(self) -> None:
        self._catching_up = False
        if self._deferred and self._catch_up(PART_DEFERRED) and self._deferred:
            self._catch_up_soon()
        elif self._backlog is not None and not self._deferred and self._state is None:
            self._drain()

    def _catch_up(self, limit: int) -> bool:
        """A part of it. False if that was the end of the store."""
        try:
            view = self._deferred.advance(self._view, limit)
        except BackendFailed as error:
            self._deferred = Deferred()
            self._fail(error)
            self._backend.close()
            return False
        if view is not None:
            self._jump(view)
        return True

    # --- leadership -----------------------------------------------------------------------------------------------

    @property
    def term(self) -> int | None:
        """The term in which this manager leads, None if it does not."""
        return self._term

    @property
    def leader(self) -> str:
        """Node id of another manager that leads, "" if none is known or this one does."""
        return self._leader

    async def leading(self) -> int:
        """Wait until this manager leads; the term. Everything committed in earlier terms is in `view()` then."""
        while self._term is None:
            self._check_open()
            await asyncio.wait([self._turn])
        return self._term

    async def deposed(self, term: int) -> None:
        """Wait until the leadership of `term` is over (also because the store was closed or failed)."""
        while self._term == term:
            await asyncio.wait([self._turn])

    def turn(self) -> asyncio.Future[None]:
        """Done at the next change of leadership, and at the end of the store. Not to be cancelled."""
        return self._turn

    def members(self) -> tuple[Member, ...]:
        """All managers, as far as known here."""
        return self._backend.members()

    def status(self) -> Status:
        """What this manager knows of the store's health, without asking anybody."""
        return self._backend.status()

    def _lead(self, term: int | None, leader: str) -> None:
        self._term, self._leader = term, leader
        turn, self._turn = self._turn, asyncio.get_running_loop().create_future()
        turn.set_result(None)

    # --- the end --------------------------------------------------------------------------------------------------

    async def closed(self) -> None:
        """Wait until the store is closed. Raises what it failed with: the daemon must end then."""
        while self._state is None:
            await asyncio.wait([self._turn])
        if not isinstance(self._state, StoreClosed):
            raise self._state

    def close(self) -> asyncio.Future[None]:
        """Take no more commits, end the watchers. Await the result to know that the backend has let go of its files.

        Commits that are not durable by then fail with StoreClosed.
        """
        if self._state is None:
            self._state = StoreClosed("the store is closed: this manager is stopping")
            self._lead(None, "")
            self._history.end(None)
            self._tell_news(tuple(self._news), more=False)
        return self._backend.close()

    def _fail(self, error: StoreError) -> None:
        if self._state is None:
            self._state = error
            self._drop_pending()
            self._lead(None, "")
            self._history.end(error)
            self._tell_news(tuple(self._news), more=False)

    def _check_open(self) -> None:
        if self._state is not None:
            raise self._state


def _snapshot(image: Image) -> Snapshot:
    return Snapshot.of((decode(row.kind, row.blob) for row in image.rows), image.version)


def unordered(commit: Committed, version: int) -> BackendFailed:
    """What to fail with."""
    return BackendFailed(f"commit {commit.version} was delivered after commit {version}: stop, and report this")


def _events(view: Snapshot, commit: Committed) -> tuple[Event, ...]:
    """What another leader's commit means here. Raises BackendFailed if it does not fit on top of `view`."""
    if commit.version <= view.version:
        raise unordered(commit, view.version)
    events = []
    for row in commit.changes:
        before = existing(view, row.kind, row.id)
        after = decode(row.kind, row.blob) if row.blob is not None else None
        if (before.meta.version if before is not None else 0) != row.expected or (before is None and after is None):
            raise diverged(commit.version, row.kind, row.id)
        events.append(event(before, after))
    return tuple(events)
