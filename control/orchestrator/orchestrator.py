"""Keeps every service at its number of tasks, in every place one that runs what the service wants. Pure.

Order of a decision: tasks that may not stay on their nodes (`enforcer`); then for each service the places that should
not be and those that are missing (`replicated`, `global_`), steps of an update (`update`), and every other place on its
own (`restart`); then what may be forgotten (`reaper`). An object is changed once at most: services with a task that was
rejected just now wait for the next decision, which the write of this one brings about.

Nothing depends on events: the same snapshot gives the same decision, and any part of a decision may be written without
the rest (a leader that dies): what is missing is decided again. That nodes that were removed take their tasks with them
is told by the dispatcher.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence

from control.decision import Decision
from control.lifecycle import TaskState, Writer
from control.model import Cluster, Node, Service, Task
from control.orchestrator.enforcer import enforce
from control.orchestrator.global_ import cover
from control.orchestrator.places import Outcome, View, earliest, removed, slots
from control.orchestrator.reaper import reap
from control.orchestrator.replicated import scale
from control.orchestrator.restart import supervise
from control.orchestrator.update import UNDER_WAY, roll
from control.store.tables import Snapshot
from control.store.txn import Change, Put


def decide(snapshot: Snapshot, now_ms: int, new_id: Callable[[], str]) -> Decision:
    """Everything the orchestrators want changed."""
    if not snapshot.all(Cluster):
        return Decision()
    nodes = {node.id: node for node in snapshot.all(Node)}
    services = {service.id: service for service in snapshot.all(Service)}
    tasks: dict[str, list[Task]] = defaultdict(list)
    for task in snapshot.all(Task):
        tasks[task.service_id].append(task)
    rejected = enforce(nodes, services, snapshot.all(Task), now_ms)
    changes: list[tuple[Writer, Change]] = [(Writer.ENFORCER, put) for put in rejected.values()]
    wakes: list[int | None] = []
    limit = snapshot.cluster().spec.task_history_limit
    for service in services.values():
        own = tasks[service.id]
        if any(t.id in rejected for t in own) or _is_settled(service, own, nodes):
            continue
        outcome = _service(View(snapshot, nodes, service, now_ms, new_id), own)
        changes += [(Writer.ORCHESTRATOR, change) for change in outcome.changes]
        changes += [(Writer.ORCHESTRATOR, gone) for gone in _forget(service, own, limit, outcome.changes)]
        wakes.append(outcome.wake_at_ms)
    for service_id in sorted(tasks.keys() - services.keys()):
        unwanted = [t for t in tasks[service_id] if t.desired_state is not TaskState.REMOVE]
        changes += [(Writer.ORCHESTRATOR, removed(t)) for t in unwanted if t.id not in rejected]
        changes += [(Writer.ORCHESTRATOR, gone) for gone in reap(None, tasks[service_id], limit)]
    return Decision(tuple(changes), earliest(wakes))


def _service(view: View, tasks: Iterable[Task]) -> Outcome:
    places = slots(tasks)
    changes, kept = cover(view, places) if view.is_global else scale(view, places)
    rolled = roll(view, kept)
    outcomes = [supervise(view, slot) for place, slot in kept.items() if place not in rolled.touched]
    return Outcome(
        (*changes, *rolled.changes, *(change for outcome in outcomes for change in outcome.changes)),
        earliest([rolled.wake_at_ms, *(outcome.wake_at_ms for outcome in outcomes)]),
    )


def _forget(service: Service, tasks: Iterable[Task], limit: int, changes: Iterable[Change]) -> list[Change]:
    touched = {change.obj.id for change in changes if isinstance(change, Put)}
    return [gone for gone in reap(service, tasks, limit) if gone.id not in touched]


def _is_settled(service: Service, tasks: Sequence[Task], nodes: Mapping[str, Node]) -> bool:
    """Whether every task of a replicated service just runs and there is no history: the common case, seen quickly."""
    mode = service.spec.mode.replicated
    if mode is None or len(tasks) != mode.replicas or service.update_status.state in UNDER_WAY:
        return False
    running, version = TaskState.RUNNING, service.spec_version
    for task in tasks:
        node = nodes.get(task.node_id)
        if (
            task.status.state is not running
            or task.desired_state is not running
            or task.spec_version != version
            or node is None
            or node.status.state == "down"
            or node.spec.availability == "drain"
        ):
            return False
    return len({task.slot for task in tasks}) == len(tasks)
