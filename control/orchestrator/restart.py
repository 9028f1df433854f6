"""The restart supervisor: replaces tasks that ended, or whose node is lost or drained, as the policy says. Pure.

A replacement is made at once but held (desired READY), so that it is prepared while the delay runs; it is let go
(desired RUNNING) when the delay is over and its predecessor has ended, or can no longer be heard of, or has had
OLD_TASK_TIMEOUT_MS. All of it follows from the tasks in the store: attempts are counted from the ended ones that are
kept, the delay from when the replacement was made. So a new leader keeps every deadline.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from msgspec.structs import replace

from control.lifecycle import TaskState, is_terminal
from control.model import Node, RestartPolicy, Service, Task
from control.orchestrator.slots import Slot, is_evicted, is_lost
from control.store.tables import Snapshot
from control.store.txn import Change, Put

# An old task that does not end holds its replacement back for no longer than this (SwarmKit's value).
OLD_TASK_TIMEOUT_MS = 60_000

NewTask = Callable[[Service, Task | None, TaskState], Task]


@dataclass(frozen=True, slots=True)
class Outcome:
    """Changes in one place, and when to look again."""

    changes: tuple[Change, ...] = ()
    wake_at_ms: int | None = None


def supervise(snapshot: Snapshot, service: Service, slot: Slot, now_ms: int, new_task: NewTask) -> Outcome:
    """What to do in one place of a service."""
    current = slot.current
    if not current:
        return Outcome()
    task = current[-1]
    if task.desired_state is TaskState.READY and not is_terminal(task.status.state) and not _unfit(snapshot, task):
        return _let_go(snapshot, slot, task, now_ms)
    if is_terminal(task.status.state) or _unfit(snapshot, task):
        return _replace(snapshot, service, slot, task, now_ms, new_task)
    return Outcome()


def _unfit(snapshot: Snapshot, task: Task) -> bool:
    return is_lost(snapshot, task) or is_evicted(snapshot, task)


def _replace(snapshot: Snapshot, service: Service, slot: Slot, task: Task, now_ms: int, new_task: NewTask) -> Outcome:
    """Give a task up, and make its successor if the policy allows one."""
    given_up = Put(replace(task, desired_state=TaskState.SHUTDOWN))
    ended = is_terminal(task.status.state)
    if ended and not is_evicted(snapshot, task) and not _may_restart(service.spec.task.restart, slot, task, now_ms):
        return Outcome((given_up,))
    if task.slot == 0:  # global: its place is its node, and the global orchestrator decides whether to fill it
        return Outcome((given_up,))
    return Outcome((given_up, Put(new_task(service, task, TaskState.READY))))


def _may_restart(policy: RestartPolicy, slot: Slot, task: Task, now_ms: int) -> bool:
    """Whether an ended task gets a successor."""
    if policy.condition == "none":
        return False
    if policy.condition == "on-failure" and task.status.state is TaskState.COMPLETE:
        return False
    if not policy.max_attempts:
        return True
    since_ms = now_ms - int(policy.window_s * 1000) if policy.window_s else 0
    ends = [
        t
        for t in slot.tasks
        if t.spec_version == task.spec_version and is_terminal(t.status.state) and t.meta.updated_ms >= since_ms
    ]
    return len(ends) <= policy.max_attempts


def _let_go(snapshot: Snapshot, slot: Slot, task: Task, now_ms: int) -> Outcome:
    """Let a held task run when its time has come."""
    due_ms = task.meta.created_ms + _delay_ms(snapshot, slot, task)
    waiting = [t for t in slot.ending(task) if not is_lost(snapshot, t)]
    if waiting:
        due_ms = max(due_ms, task.meta.created_ms + OLD_TASK_TIMEOUT_MS)
    if now_ms < due_ms:
        return Outcome((), due_ms)
    return Outcome((Put(replace(task, desired_state=TaskState.RUNNING)),))


def _delay_ms(snapshot: Snapshot, slot: Slot, task: Task) -> int:
    """The policy's delay after a task that ended by itself; none after a lost or drained node, or in an update."""
    older = slot.tasks[: slot.tasks.index(task)]
    predecessor = older[-1] if older else None
    if predecessor is None or predecessor.spec_version != task.spec_version:
        return 0
    if predecessor.status.state not in (TaskState.COMPLETE, TaskState.FAILED, TaskState.REJECTED):
        return 0
    node = snapshot.get(Node, predecessor.node_id) if predecessor.node_id else None
    if node is not None and node.spec.availability == "drain":
        return 0
    return int(task.spec.restart.delay_s * 1000)
