"""The recent past, shared by all who watch.

Watchers have no queue of their own: the history is one bounded sequence of commits, and each watcher has a place in
it. One that falls behind the oldest commit kept is told to start over (`Resync`), with the snapshot to start from. So a
slow or forgotten watcher costs nothing, and watching from an older version is the same as being slow.
"""

from __future__ import annotations

import asyncio
import weakref
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from control.store.errors import StoreError
from control.store.tables import Event, Snapshot

# What a watcher may lag. Creating 10,000 tasks is 50 commits of 200; the events of 100 such commits hold perhaps 20 MB,
# most of it shared with the tables. Whoever is further behind is better off with a snapshot.
HISTORY_EVENTS = 20_000
HISTORY_COMMITS = 4_096


class Commit(msgspec.Struct, frozen=True, gc=False):
    """One commit: all its events belong together."""

    version: int
    events: tuple[Event, ...]


@dataclass(frozen=True, slots=True)
class Resync:
    """Too far behind, or the state jumped: forget everything and begin again from `view`.

    What follows are the commits after `view.version`.
    """

    version: int
    view: Snapshot


class History:
    """The last commits, and who reads them. `view` gives the durable snapshot they lead to."""

    def __init__(self, view: Callable[[], Snapshot]) -> None:
        self._view = view
        self._commits: deque[Commit] = deque()
        self._base = view().version  # what the oldest commit kept goes on top of
        self._first = 0  # place of the oldest commit kept; places count up from 0 and are never reused
        self._events = 0
        self._ended = False
        self._error: StoreError | None = None
        self._watchers: list[weakref.ref[Watcher]] = []

    def append(self, commit: Commit) -> None:
        """Add the newest commit, forget the oldest, wake who waits."""
        self._commits.append(commit)
        self._events += len(commit.events)
        while len(self._commits) > HISTORY_COMMITS or (self._events > HISTORY_EVENTS and len(self._commits) > 1):
            oldest = self._commits.popleft()
            self._base = oldest.version
            self._events -= len(oldest.events)
            self._first += 1
        self._wake()

    def reset(self) -> None:
        """The state jumped: every watcher resyncs."""
        # One place is skipped, so that also the watchers that had read everything are behind.
        self._first += len(self._commits) + 1
        self._commits.clear()
        self._base = self._view().version
        self._events = 0
        self._wake()

    def end(self, error: StoreError | None) -> None:
        """No more commits: watchers end once they have read the rest, with `error` if there is one."""
        self._ended = True
        self._error = error
        self._wake()

    def watch(self, after: int | None) -> Watcher:
        """A watcher that first gets what comes after version `after` (None: after now)."""
        place = self._place_after(self._view().version if after is None else after)
        watcher = Watcher(self, place)
        self._watchers.append(weakref.ref(watcher, self._watchers.remove))
        return watcher

    @property
    def watched(self) -> bool:
        """Whether anybody watches."""
        return bool(self._watchers)

    def read(self, place: int) -> tuple[int, Commit | Resync | None]:
        """What is at a place, and the place after it; None if nothing is there yet."""
        if place < self._first:
            view = self._view()
            return self._first + len(self._commits), Resync(view.version, view)
        if place < self._first + len(self._commits):
            return place + 1, self._commits[place - self._first]
        return place, None

    def check_open(self) -> None:
        """Raise what the history ended with."""
        if self._error is not None:
            raise self._error
        if self._ended:
            raise StopAsyncIteration

    def _place_after(self, version: int) -> int:
        """The place of the commit on top of `version`; one that is behind if it is not kept or not known."""
        if version == self._base:
            return self._first
        for place, commit in enumerate(self._commits, start=self._first):
            if commit.version == version:
                return place + 1
        return self._first - 1

    def _wake(self) -> None:
        for ref in tuple(self._watchers):
            watcher = ref()
            if watcher is not None:
                watcher.wake()


class Watcher:
    """Async iterator of Commit and Resync, for one reader. Ends when the store is closed; raises if it failed.

    `__anext__` returns in the same turn of the loop in which the item was taken, so `store.view()` read at once is of
    the item's version or later. Forget it to be rid of it, or `close` it to end its reader.
    """

    def __init__(self, history: History, place: int) -> None:
        self._history = history
        self._place = place
        self._news = asyncio.Event()
        self._closed = False

    def __aiter__(self) -> Watcher:
        return self

    async def __anext__(self) -> Commit | Resync:
        while True:
            if self._closed:
                raise StopAsyncIteration
            self._place, item = self._history.read(self._place)
            if item is not None:
                return item
            self._history.check_open()
            self._news.clear()
            await self._news.wait()

    def pending(self) -> bool:
        """Whether the next item is there already."""
        return self._history.read(self._place)[1] is not None

    def wake(self) -> None:
        """Called by the history when there is something new."""
        self._news.set()

    def close(self) -> None:
        """End the iteration."""
        self._closed = True
        self._news.set()
