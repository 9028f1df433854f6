"""The leader's loop: looks at the store whenever it has changed, and commits what the decision cores want.

One asyncio task, `run`, for one term of leadership. The cores (orchestrators, allocator, scheduler) are pure functions
of a snapshot and run in turn, each on what the one before has made durable, so that a new service goes from its tasks'
making to their placing in one pass. Each holds the `Decisions` lock from its snapshot to its commit. A pass that finds
nothing to do costs no write; one that fails is simply made again, because the cores remember nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter

from control.decision import Decision
from control.lifecycle import Writer
from control.model import Object
from control.server.transact import Decisions
from control.store.errors import (
    BackendFailed,
    NotLeader,
    OutcomeUnknown,
    Refused,
    StoreClosed,
    StoreError,
    VersionConflict,
)
from control.store.store import Store, Watcher
from control.store.tables import Snapshot
from control.store.txn import Change, Put

log = logging.getLogger(__name__)

# Decide when the store has been quiet for this long, and at the latest after that (SwarmKit's scheduler: the same).
QUIET_S, QUIET_MAX_S = 0.05, 1.0
# Look again after a failure. Conflicts are over as soon as the other commit is durable; a full disk is not.
CONFLICT_PAUSE_S, FAILURE_PAUSE_S = 0.05, 1.0
# A wake-up is a time of the wall clock; should that be set back, it is at most this late.
SLEEP_MAX_S = 30.0
# A core that wants to wake in the past gets no busy loop.
SLEEP_MIN_S = 0.05
# A pass longer than this is logged: meanwhile the loop hears no node.
SLOW_DECISION_S = 0.1

Decide = Callable[[Snapshot, int], Decision]


@dataclass(frozen=True, slots=True)
class Core:
    """A decision core: (snapshot, wall clock in ms) -> what it wants."""

    name: str
    decide: Decide


class Leader:
    """See the module. `now_ms` is the wall clock."""

    def __init__(self, store: Store, decisions: Decisions, cores: Sequence[Core], now_ms: Callable[[], int]) -> None:
        self._store, self._decisions, self._cores, self._now_ms = store, decisions, tuple(cores), now_ms
        self.passes = 0

    async def run(self, term: int) -> None:
        """Decide while this manager leads in `term`; ends by cancellation, or with the StoreError that ended it."""
        watcher = self._store.watch()
        while True:
            await self._wait(watcher, await self._pass(term))

    # --- deciding ---------------------------------------------------------------------------------------------------

    async def _pass(self, term: int) -> float:
        """Every core once; how long to sleep if nothing happens, in seconds."""
        self.passes += 1
        sleep_s = SLEEP_MAX_S
        for core in self._cores:
            sleep_s = min(sleep_s, await self._run_core(core, term))
        return sleep_s

    async def _run_core(self, core: Core, term: int) -> float:
        async with self._decisions:
            now_ms, began = self._now_ms(), _now()
            decision = core.decide(self._store.view(), now_ms)
            took_s = _now() - began
            if took_s > SLOW_DECISION_S:
                log.warning("a slow decision", extra={"core": core.name, "seconds": round(took_s, 3)})
            try:
                for writer, changes in groupby(first_of_each(decision.changes), key=itemgetter(0)):
                    await self._commit(core, [change for _, change in changes], writer, term)
            except (NotLeader, StoreClosed, BackendFailed):
                raise
            except VersionConflict:
                return CONFLICT_PAUSE_S  # a node has reported meanwhile
            except StoreError as error:
                log.warning("cannot write a decision", extra={"core": core.name, "reason": str(error)})
                return FAILURE_PAUSE_S
        if decision.wake_at_ms is None:
            return SLEEP_MAX_S
        return min(SLEEP_MAX_S, max(SLEEP_MIN_S, (decision.wake_at_ms - now_ms) / 1000))

    async def _commit(self, core: Core, changes: list[Change], writer: Writer, term: int) -> None:
        try:
            await self._store.batch(changes, writer, term=term)
        except (NotLeader, StoreClosed, BackendFailed, VersionConflict, Refused, OutcomeUnknown):
            raise
        except StoreError as error:
            # The store forbids one of them. It must not hold up the others for ever: one by one, then.
            log.error("a decision breaks a rule of the store", extra={"core": core.name, "reason": str(error)})
            await self._commit_singly(core, changes, writer, term)

    async def _commit_singly(self, core: Core, changes: Iterable[Change], writer: Writer, term: int) -> None:
        for change in changes:
            try:
                await self._store.commit([change], writer, term=term)
            except (NotLeader, StoreClosed, BackendFailed, Refused, OutcomeUnknown):
                raise
            except StoreError as error:
                log.warning("skipped", extra={"core": core.name, "reason": str(error)})

    # --- waiting ----------------------------------------------------------------------------------------------------

    async def _wait(self, watcher: Watcher, sleep_s: float) -> None:
        """Until the store has changed and is quiet again, or until it is time to wake."""
        if not await _changed(watcher, sleep_s):
            return
        latest = _now() + QUIET_MAX_S
        while await _changed(watcher, min(QUIET_S, latest - _now())):
            pass


def first_of_each(changes: Iterable[tuple[Writer, Change]]) -> Iterator[tuple[Writer, Change]]:
    """At most one change of each object; what else is wanted of it is decided anew when that one is made."""
    seen: set[tuple[type[Object], str]] = set()
    for writer, change in changes:
        key = (type(change.obj), change.obj.id) if isinstance(change, Put) else (change.cls, change.id)
        if key not in seen:
            seen.add(key)
            yield writer, change


async def _changed(watcher: Watcher, timeout_s: float) -> bool:
    """Whether there is a commit within this time. Raises StoreClosed at the end of the store."""
    try:
        async with asyncio.timeout(timeout_s):
            await anext(watcher)
    except TimeoutError:
        return False
    except StopAsyncIteration as error:
        raise StoreClosed("the store is closed: this manager is stopping") from error
    return True


def _now() -> float:
    return asyncio.get_running_loop().time()
