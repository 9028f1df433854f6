"""The restart supervisor: replaces tasks that ended, or whose node is lost or drained, as the policy says. Pure.

A replacement is made at once but held (desired READY), so that it is prepared while the delay runs. It is let go
(desired RUNNING) when the delay is over and its predecessor has ended, or can no longer be heard of, or has had
OLD_TASK_TIMEOUT_MS. All of it follows from the tasks in the store: attempts are counted from the ended ones that are
kept, the delay from when the replacement was made. So a new leader keeps every deadline, and finishes what the one
before it began: a place of which nothing is wanted is filled again, unless its last task ended for good.

What a place runs is not decided here but in `update`: a replacement runs what its predecessor ran.
"""

from __future__ import annotations

from control.lifecycle import TaskState, is_terminal
from control.model import Task
from control.orchestrator.places import (
    ENDED_BY_ITSELF,
    Outcome,
    Slot,
    View,
    earliest,
    let_run,
    shut,
    takes_new,
)
from control.store.txn import Change, Put

# An old task that does not end holds its replacement back for no longer than this (SwarmKit's value); and for no longer
# than this a drained node keeps a task whose replacement, made first, does not come to run.
OLD_TASK_TIMEOUT_MS = 60_000
# A replacement made first that finds no node for so long is given its predecessor's room, if that may help.
YIELD_AFTER_MS = 5_000


def supervise(view: View, slot: Slot) -> Outcome:
    """What to do in one place of a service that no update is touching."""
    wanted = slot.wanted
    if not wanted:
        return _refill(view, slot)
    strays = _strays(view, wanted)
    if strays:
        return Outcome(tuple(shut(t) for t in strays))
    *older, task = wanted
    if is_terminal(task.status.state):
        return _ended(view, slot, older, task)
    if view.is_lost(task):
        if task.spec.restart.condition == "none":
            return Outcome()  # at most once: it may still run there, and goes on if the node returns
        return _replace(view, slot, older, task)
    if view.is_evicted(task):
        return _evict(view, slot, older, task)
    return _tend(view, slot, older, task)


def _strays(view: View, wanted: tuple[Task, ...]) -> tuple[Task, ...]:
    """Tasks newer than one that runs what the service wants, and themselves running something else.

    They were to replace it, start-first, when the service went back to what it wanted before.
    """
    for i in reversed(range(len(wanted))):
        if not view.is_outdated(wanted[i]):
            return wanted[i + 1 :]
    return ()


# --- ends ---------------------------------------------------------------------------------------------------------


def _refill(view: View, slot: Slot) -> Outcome:
    last = slot.newest
    return Outcome((Put(_successor(view, slot, last)),)) if may_restart(view, slot, last) else Outcome()


def _ended(view: View, slot: Slot, older: list[Task], task: Task) -> Outcome:
    """A wanted task has ended. One that was still held is only replaced when its delay is over: no hot loop."""
    if task.desired_state is TaskState.READY:
        due_ms = task.meta.created_ms + _delay_before_ms(view, slot, task)
        if view.now_ms < due_ms:
            return Outcome((), due_ms)
    return _replace(view, slot, older, task)


def _replace(view: View, slot: Slot, older: list[Task], task: Task) -> Outcome:
    """Give a task up, and make its successor, unless the one that it was to replace is still there and goes on."""
    changes: list[Change] = [shut(task)]
    if any(view.is_alive(t) for t in older):
        return Outcome(tuple(changes))
    changes += [shut(t) for t in older]
    if may_restart(view, slot, task):
        changes.append(Put(_successor(view, slot, task)))
    return Outcome(tuple(changes))


def _successor(view: View, slot: Slot, last: Task) -> Task:
    """The task that follows on `last`: to run at once if nothing is to be waited for."""
    waits = delay_after_ms(view, last) or any(view.is_alive(t) for t in slot.tasks)
    return view.again(slot, last, TaskState.READY if waits else TaskState.RUNNING)


def may_restart(view: View, slot: Slot, last: Task) -> bool:
    """Whether a task that has ended, or is given up, gets a successor."""
    policy, by_itself = last.spec.restart, last.status.state in ENDED_BY_ITSELF
    if not view.can_be_filled(slot.place):
        return False
    if policy.condition == "none":  # one task per place; unless that never started, or stopped because its node left
        return last.status.state < TaskState.ASSIGNED or (view.is_global and not by_itself)
    if not by_itself:
        return True
    if policy.condition == "on-failure" and last.status.state is TaskState.COMPLETE:
        return False
    if not policy.max_attempts:
        return True
    since_ms = last.meta.updated_ms - int(policy.window_s * 1000) if policy.window_s else 0
    ends = sum(
        1
        for t in slot.tasks
        if t.spec_version == last.spec_version and t.status.state in ENDED_BY_ITSELF and t.meta.updated_ms >= since_ms
    )
    return ends <= policy.max_attempts


def delay_after_ms(view: View, last: Task) -> int:
    """The policy's delay after a task that ended by itself; none after a lost or drained node."""
    if last.status.state not in ENDED_BY_ITSELF or view.is_evicted(last):
        return 0
    return int(last.spec.restart.delay_s * 1000)


# --- drained nodes ------------------------------------------------------------------------------------------------


def _evict(view: View, slot: Slot, older: list[Task], task: Task) -> Outcome:
    """A task must leave its node. Start-first, its replacement is made before, if it runs and so is worth keeping."""
    running = task.status.state is TaskState.RUNNING and task.desired_state is TaskState.RUNNING
    if older or not running or view.is_global or view.service.spec.update.order != "start-first":
        return _replace(view, slot, older, task)
    tries = slot.after(task)
    if not tries:
        if task.spec.restart.condition == "none":
            return _replace(view, slot, older, task)
        return Outcome((Put(view.again(slot, task, TaskState.RUNNING)),))
    last, give_up_ms = tries[-1], tries[0].meta.created_ms + OLD_TASK_TIMEOUT_MS
    if view.now_ms >= give_up_ms or not may_restart(view, slot, last):
        return Outcome((shut(task),))
    due_ms = last.meta.updated_ms + delay_after_ms(view, last)
    if view.now_ms < due_ms:
        return Outcome((), min(due_ms, give_up_ms))
    return Outcome((Put(view.again(slot, last, TaskState.RUNNING)),))


# --- replacements under way ---------------------------------------------------------------------------------------


def _tend(view: View, slot: Slot, older: list[Task], task: Task) -> Outcome:
    """The newest task is well, so far: let it go when its time has come, and let it take over when it runs."""
    if task.desired_state is TaskState.READY:
        stopped: list[Change] = [shut(t) for t in older]
        due_ms = _due_ms(view, slot, task)
        if view.now_ms < due_ms:
            return Outcome(tuple(stopped), due_ms)
        return Outcome((*stopped, let_run(task)))
    if task.status.state is TaskState.RUNNING:
        return Outcome(tuple(shut(t) for t in older))
    changes: list[Change] = []
    wakes: list[int] = []
    for old in older:
        until_ms = _patience_ms(view, slot, old, task)
        if until_ms is None:
            continue
        if view.now_ms >= until_ms:
            changes.append(shut(old))
        else:
            wakes.append(until_ms)
    return Outcome(tuple(changes), earliest(wakes))


def _patience_ms(view: View, slot: Slot, old: Task, task: Task) -> int | None:
    """Until when `old` runs on although `task`, which is to take over, does not run yet; None: as long as it takes."""
    if not view.is_alive(old):
        return 0
    if view.is_evicted(old):
        return slot.after(old)[0].meta.created_ms + OLD_TASK_TIMEOUT_MS
    if _needs_room(view, old, task):
        return task.meta.created_ms + YIELD_AFTER_MS
    return None


def _needs_room(view: View, old: Task, task: Task) -> bool:
    """Whether a replacement that finds no node could have one if its predecessor went first."""
    if task.status.state is not TaskState.PENDING or not task.status.error:
        return False
    node = view.nodes.get(old.node_id)
    exclusive = bool(task.ports) or task.spec.placement.max_replicas_per_node > 0
    return exclusive and node is not None and takes_new(node) and view.fits(node)


def _due_ms(view: View, slot: Slot, task: Task) -> int:
    """When a held task may run."""
    due_ms = task.meta.created_ms + _delay_before_ms(view, slot, task)
    if any(view.is_alive(t) for t in slot.before(task)):
        return max(due_ms, task.meta.created_ms + OLD_TASK_TIMEOUT_MS)
    return due_ms


def _delay_before_ms(view: View, slot: Slot, task: Task) -> int:
    """The delay that a held task was made with. What an update makes has none: it runs something else."""
    before = slot.before(task)
    if not before or before[-1].spec_version != task.spec_version:
        return 0
    return delay_after_ms(view, before[-1])
