"""Deletes tasks that are history, and keeps as many of them per place as the cluster says. Pure."""

from __future__ import annotations

from collections import defaultdict

from control.decision import Decision
from control.lifecycle import TaskState, Writer, is_terminal, may_delete
from control.model import Service, Task
from control.orchestrator.slots import Place, age, place_of
from control.store.tables import Snapshot
from control.store.txn import Delete


def reap(snapshot: Snapshot) -> Decision:
    """Tasks wanted REMOVEd that may go, and history beyond the limit, oldest first."""
    if not any(True for _ in snapshot.all(Task)):
        return Decision()
    gone: list[Task] = []
    history: dict[tuple[str, Place], list[Task]] = defaultdict(list)
    for task in snapshot.all(Task):
        if task.desired_state is TaskState.REMOVE:
            if may_delete(task.status.state, task.desired_state):
                gone.append(task)
        elif task.desired_state > TaskState.RUNNING and may_delete(task.status.state, task.desired_state):
            history[task.service_id, place_of(task)].append(task)
    limit = snapshot.cluster().spec.task_history_limit
    for (service_id, _), tasks in history.items():
        kept = _kept(snapshot.get(Service, service_id), limit)
        never_ran = [t for t in tasks if not is_terminal(t.status.state)]
        ended = sorted((t for t in tasks if is_terminal(t.status.state)), key=age)
        gone += never_ran + ended[: max(0, len(ended) - kept)]
    return Decision(tuple((Writer.ORCHESTRATOR, Delete(Task, t.id, t.meta.version)) for t in gone))


def _kept(service: Service | None, limit: int) -> int:
    """Attempts are counted from history, so as many must be kept as the policy allows."""
    attempts = service.spec.task.restart.max_attempts if service is not None else 0
    return max(limit, attempts + 1) if attempts else limit
