"""Rolling updates and rollbacks, as a machine on the service's `update_status` and its tasks. Pure.

A place is *dirty* while its newest task has another spec version than the service, and *under way* from the making of
the new task until it has run for the policy's delay. Up to `parallelism` places are under way at once. Failures are new
tasks that ended badly; above the ratio the policy's action follows. States are SwarmKit's: updating, paused, completed,
rollback_started, rollback_paused, rollback_completed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from msgspec.structs import replace

from control.lifecycle import TaskState, is_terminal
from control.model import Service, Task, UpdatePolicy, UpdateStatus
from control.orchestrator.restart import NewTask, Outcome
from control.orchestrator.slots import Place, Slot
from control.store.txn import Change, Put

_RUNNING = {"updating", "rollback_started"}
_PAUSED = {"paused", "rollback_paused"}
_BAD = (TaskState.FAILED, TaskState.REJECTED)


@dataclass(frozen=True, slots=True)
class _Round:
    """One look at an update."""

    service: Service
    policy: UpdatePolicy
    rolling_back: bool
    dirty: tuple[Slot, ...]
    under_way: tuple[Slot, ...]
    failed: int
    wake_at_ms: int | None


def roll(service: Service, places: Mapping[Place, Slot], now_ms: int, new_task: NewTask) -> Outcome:
    """The next steps of an update, if there is one."""
    state = service.update_status.state
    look = _look(service, places, now_ms)
    if not look.dirty and not look.under_way:
        if state in _RUNNING:
            return Outcome((_with_state(service, "rollback_completed" if look.rolling_back else "completed", now_ms),))
        return Outcome()
    if state in _PAUSED or (not look.dirty and state not in _RUNNING):
        return Outcome()
    changes: list[Change] = []
    if state not in _RUNNING:
        changes.append(_with_state(service, "updating", now_ms))
    elif look.failed and look.failed / max(1, len(places)) > look.policy.max_failure_ratio:
        action = _on_failure(look, now_ms)
        if action is not None:
            return Outcome((action,))
    changes += _finish_start_first(look)
    room = look.policy.parallelism - len(look.under_way) if look.policy.parallelism else len(look.dirty)
    for slot in look.dirty[: max(0, room)]:
        changes += _step(look, slot, new_task)
    return Outcome(tuple(changes), look.wake_at_ms)


def _look(service: Service, places: Mapping[Place, Slot], now_ms: int) -> _Round:
    rolling_back = service.update_status.state.startswith("rollback")
    policy = service.spec.rollback if rolling_back else service.spec.update
    settle_ms = int(max(policy.delay_s, policy.monitor_s if policy.failure_action != "continue" else 0.0) * 1000)
    delay_ms = int(policy.delay_s * 1000)
    dirty, under_way, failed = [], [], 0
    wakes: list[int] = []
    updating = service.update_status.state in _RUNNING
    for slot in places.values():
        newest = slot.newest
        if newest.spec_version != service.spec_version:
            dirty.append(slot)
            continue
        if not updating or newest.meta.created_ms < service.update_status.started_ms:
            continue
        failed += any(t.spec_version == service.spec_version and t.status.state in _BAD for t in slot.tasks)
        last = not any(s.newest.spec_version != service.spec_version for s in places.values())
        due_ms = newest.meta.updated_ms + (settle_ms if last else delay_ms)
        if newest.status.state is not TaskState.RUNNING and not is_terminal(newest.status.state):
            under_way.append(slot)
        elif newest.status.state is TaskState.RUNNING and (len(slot.current) > 1 or now_ms < due_ms):
            under_way.append(slot)
            wakes.append(due_ms)
    return _Round(service, policy, rolling_back, tuple(dirty), tuple(under_way), failed, min(wakes, default=None))


def _step(look: _Round, slot: Slot, new_task: NewTask) -> list[Change]:
    """Begin with one place."""
    old = slot.current
    predecessor = slot.newest
    if look.policy.order == "start-first" and old:
        return [Put(new_task(look.service, predecessor, TaskState.RUNNING))]
    changes: list[Change] = [Put(replace(t, desired_state=TaskState.SHUTDOWN)) for t in old]
    if old or not is_terminal(predecessor.status.state) or predecessor.slot:
        changes.append(Put(new_task(look.service, predecessor, TaskState.READY)))
    return changes


def _finish_start_first(look: _Round) -> list[Change]:
    """Where the new task runs, the old one goes."""
    changes: list[Change] = []
    for slot in look.under_way:
        new = slot.newest
        if new.status.state is TaskState.RUNNING and new.desired_state is TaskState.RUNNING:
            changes += [_shut(t) for t in slot.current if t is not new]
    return changes


def _shut(task: Task) -> Change:
    return Put(replace(task, desired_state=TaskState.SHUTDOWN))


def _on_failure(look: _Round, now_ms: int) -> Change | None:
    """What the policy says after too many failures; None: go on."""
    service, failures = look.service, f"{look.failed} of the updated tasks failed"
    if look.rolling_back:
        if look.policy.failure_action == "continue":
            return None
        return _with_state(service, "rollback_paused", now_ms, f"rollback paused: {failures}")
    match look.policy.failure_action:
        case "continue":
            return None
        case "pause":
            return _with_state(service, "paused", now_ms, f"update paused: {failures}")
        case "rollback":
            if service.previous_spec is None:
                return _with_state(service, "paused", now_ms, f"update paused, nothing to roll back to: {failures}")
            back = replace(
                service,
                spec=service.previous_spec,
                spec_version=service.previous_spec_version,
                previous_spec=None,
                previous_spec_version=0,
            )
            return _with_state(back, "rollback_started", now_ms, f"update rolled back: {failures}")


def _with_state(service: Service, state: str, now_ms: int, message: str = "") -> Change:
    ended = state in ("completed", "rollback_completed")
    began = now_ms if state in _RUNNING else service.update_status.started_ms
    status = UpdateStatus(
        state=state,
        message=message or state.replace("_", " "),
        started_ms=began,
        completed_ms=now_ms if ended else 0,
    )
    return Put(replace(service, update_status=status))
