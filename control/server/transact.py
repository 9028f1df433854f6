"""Read, decide, write, and again if somebody else wrote meanwhile.

The decision is a pure function of a snapshot and never spans an `await`. The store refuses it if an object it writes
has changed; what it only *read* (is this port free?) must stay true as well, so everybody who decides from the whole
picture holds one lock, `Decisions`, until what they decided is durable: the API and the leader's loops. Reports of
nodes touch only their own tasks and need no lock.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable

from control.lifecycle import Writer
from control.store.errors import OutcomeUnknown, Refused, VersionConflict
from control.store.store import Store
from control.store.tables import Snapshot
from control.store.txn import Change

log = logging.getLogger(__name__)

Decisions = asyncio.Lock

# Each conflict means that somebody else's commit went through, so this many in a row are a mistake of ours.
ATTEMPTS_MAX = 100
# The commit that was in the way is under way; if nothing comes of it in this time, look again.
SETTLE_TIMEOUT_S = 1.0
# Between attempts while the backend refuses (a full disk) or contact to it is lost.
REFUSED_PAUSE_S = 1.0

Decide = Callable[[Snapshot], Iterable[Change]]


async def transact(
    store: Store, decide: Decide, writer: Writer, *, term: int | None = None, atomic: bool = True
) -> int:
    """Commit what `decide` says; the version. Not `atomic`: as several commits, `decide` must then be repeatable.

    Raises what `decide` raises, and StoreError.
    """
    for _ in range(ATTEMPTS_MAX):
        watcher = store.watch()
        view = store.view()
        changes = tuple(decide(view))
        try:
            if atomic:
                return await store.commit(changes, writer, term=term)
            return await store.batch(changes, writer, term=term)
        except VersionConflict as error:
            conflict = error
        if store.view().version == view.version:  # the other commit is not durable yet
            try:
                async with asyncio.timeout(SETTLE_TIMEOUT_S):
                    async for _ in watcher:
                        break
            except TimeoutError:
                pass
        watcher.close()
    raise conflict


async def insist(store: Store, decide: Decide, writer: Writer, term: int) -> int:
    """As `transact`, not atomic, for loops that have nobody to tell of a failure: wait and try again.

    Raises only the StoreErrors that no waiting cures: the leadership of `term` is over, or the store is.
    """
    while True:
        try:
            return await transact(store, decide, writer, term=term, atomic=False)
        except (Refused, OutcomeUnknown) as error:
            log.warning("cannot write to the store", extra={"writer": writer.value, "reason": str(error)})
        await asyncio.sleep(REFUSED_PAUSE_S)
