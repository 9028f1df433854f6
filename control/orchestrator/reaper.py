"""Forgets tasks that are history, and keeps as many of them per place as the cluster says. Pure.

What is still needed is kept beyond the limit: as many ended tasks as there may be attempts; the last one of a place in
which nothing is wanted (it says whether it ended for good), or where a replacement is under way (it says how long that
one is held), or of a service that is being updated (it may be a failure). And a task stays in the store until the
allocator has taken its addresses back, so that they can rest.
"""

from __future__ import annotations

from collections.abc import Iterable

from control.lifecycle import RUNNABLE_TO, TaskState, is_terminal, may_delete
from control.model import Service, Task
from control.orchestrator.places import Slot, slots
from control.orchestrator.update import UNDER_WAY
from control.store.txn import Delete

# Attempts are counted from the tasks that are kept: more than so many are not told apart from no limit.
ATTEMPTS_KEPT_MAX = 1000


def reap(service: Service | None, tasks: Iterable[Task], history_limit: int) -> list[Delete]:
    """What to forget of one service; None: the service is gone."""
    tasks = list(tasks)
    if all(t.desired_state <= RUNNABLE_TO for t in tasks):
        return []
    gone = [t for t in tasks if t.desired_state is TaskState.REMOVE and _may_go(t)]
    if service is not None:
        attempts = min(service.spec.task.restart.max_attempts, ATTEMPTS_KEPT_MAX)
        limit = max(history_limit, attempts + 1) if attempts else history_limit
        for slot in slots(tasks).values():
            gone += _history(slot, max(limit, _needed(service, slot)))
    return [Delete(Task, t.id, t.meta.version) for t in gone]


def _may_go(task: Task) -> bool:
    if not is_terminal(task.status.state):
        return may_delete(task.status.state, task.desired_state)  # never placed: nobody has seen its addresses
    return not task.addresses


def _history(slot: Slot, limit: int) -> list[Task]:
    ended = [t for t in slot.tasks if t.desired_state > RUNNABLE_TO and is_terminal(t.status.state)]
    old = [t for t in ended[: max(0, len(ended) - limit)] if _may_go(t)]
    unplaced = [t for t in slot.tasks if t.desired_state > RUNNABLE_TO and t.status.state < TaskState.ASSIGNED]
    return old + (unplaced if slot.wanted or ended else unplaced[:-1])


def _needed(service: Service, slot: Slot) -> int:
    """How many ended tasks the supervisor, or an update that counts failures, cannot do without."""
    newest = slot.newest
    at_rest = newest.desired_state is TaskState.RUNNING and len(slot.wanted) == 1
    return 0 if at_rest and service.update_status.state not in UNDER_WAY else 1
