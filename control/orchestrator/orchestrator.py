"""Keeps every service at its number of tasks, in every place one that runs the current spec. Pure.

Order of a decision for one service: places that should not be, places that are missing, then in each place restart or
update. Tasks of services that are gone are wanted REMOVEd; the reaper deletes what has ended. Nothing depends on
events: the same snapshot gives the same decision.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping

from msgspec.structs import replace

from control.constraint import all_match
from control.decision import Decision, merged
from control.lifecycle import TaskState, Writer, is_terminal
from control.model import Node, Service, Task, TaskStatus
from control.orchestrator.reaper import reap
from control.orchestrator.restart import NewTask, Outcome, supervise
from control.orchestrator.slots import Place, Slot, place_of, slots
from control.orchestrator.update import roll
from control.store.tables import Snapshot
from control.store.txn import Change, Put


def decide(snapshot: Snapshot, now_ms: int, new_id: Callable[[], str]) -> Decision:
    """Everything the orchestrators want changed."""
    decisions = [_orphans(snapshot), _misplaced(snapshot, now_ms), _unowned(snapshot), reap(snapshot)]
    for service in snapshot.all(Service):
        outcome = _service(snapshot, service, now_ms, _maker(new_id))
        changes = tuple((Writer.ORCHESTRATOR, change) for change in _once(outcome.changes))
        decisions.append(Decision(changes, outcome.wake_at_ms))
    return merged(decisions)


def _maker(new_id: Callable[[], str]) -> NewTask:
    """Makes new tasks of a service, in the place of an older one or of their own."""

    def new_task(service: Service, predecessor: Task | None, desired: TaskState) -> Task:
        slot = predecessor.slot if predecessor is not None else 0
        return Task(
            id=new_id(),
            service_id=service.id,
            service_name=service.spec.name,
            slot=slot,
            node_id=predecessor.node_id if predecessor is not None and not slot else "",
            spec=service.spec.task,
            spec_version=service.spec_version,
            desired_state=desired,
            status=TaskStatus(state=TaskState.NEW, message="created"),
        )

    return new_task


def _service(snapshot: Snapshot, service: Service, now_ms: int, new_task: NewTask) -> Outcome:
    places = slots(snapshot.tasks_of_service(service.id))
    if service.spec.mode.global_ is not None:
        changes, kept = _global(snapshot, service, places, new_task)
    else:
        changes, kept = _replicated(snapshot, service, places, new_task)
    rolled = roll(service, kept, now_ms, new_task)
    touched = {place_of(c.obj) for c in rolled.changes if isinstance(c, Put) and isinstance(c.obj, Task)}
    outcomes = [rolled] + [
        supervise(snapshot, service, slot, now_ms, new_task) for place, slot in kept.items() if place not in touched
    ]
    wakes = [o.wake_at_ms for o in outcomes if o.wake_at_ms is not None]
    return Outcome((*changes, *(c for o in outcomes for c in o.changes)), min(wakes, default=None))


def _replicated(
    snapshot: Snapshot, service: Service, places: Mapping[Place, Slot], new_task: NewTask
) -> tuple[list[Change], dict[Place, Slot]]:
    """Slots 1 to N: which go, which come, and those that stay."""
    replicas = service.spec.mode.replicated.replicas if service.spec.mode.replicated is not None else 1
    surplus = len(places) - replicas
    if surplus > 0:
        gone = _to_remove(places.values(), surplus)
        changes: list[Change] = [_removed(t) for slot in gone for t in slot.tasks]
        return changes, {place: slot for place, slot in places.items() if slot not in gone}
    taken = {slot for slot, _ in places}
    free = (n for n in range(1, replicas + len(taken) + 1) if n not in taken)
    made = [replace(new_task(service, None, TaskState.RUNNING), slot=next(free)) for _ in range(-surplus)]
    return [Put(task) for task in made], dict(places)


def _to_remove(places: Iterable[Slot], surplus: int) -> list[Slot]:
    """Slots that do not run first, then from the node with most tasks of the service, higher slots first."""
    left = list(places)
    crowd = Counter(slot.newest.node_id for slot in left)
    gone: list[Slot] = []
    for _ in range(surplus):
        chosen = max(
            left,
            key=lambda s: (s.newest.status.state is not TaskState.RUNNING, crowd[s.newest.node_id], s.place[0]),
        )
        crowd[chosen.newest.node_id] -= 1
        left.remove(chosen)
        gone.append(chosen)
    return gone


def _global(
    snapshot: Snapshot, service: Service, places: Mapping[Place, Slot], new_task: NewTask
) -> tuple[list[Change], dict[Place, Slot]]:
    """One task on every node that fits; a lost node keeps its task, which goes on when it returns."""
    changes: list[Change] = []
    kept: dict[Place, Slot] = {}
    for place, slot in places.items():
        node = snapshot.get(Node, place[1])
        if node is None:
            changes += [_removed(t) for t in slot.tasks]
        elif node.status.state == "down":
            continue
        elif not _fits(node, service):
            changes += [Put(replace(t, desired_state=TaskState.SHUTDOWN)) for t in slot.current]
        elif slot.current or _ended_for_good(service, slot):
            kept[place] = slot
        elif node.spec.availability == "active":
            changes.append(Put(new_task(service, slot.newest, TaskState.READY)))
    for node in snapshot.all(Node):
        if (0, node.id) not in places and _fits(node, service) and _takes_new(node):
            changes.append(Put(replace(new_task(service, None, TaskState.RUNNING), node_id=node.id)))
    return changes, kept


def _ended_for_good(service: Service, slot: Slot) -> bool:
    """A task that ended by itself and is not to be restarted."""
    task, policy = slot.newest, service.spec.task.restart
    if task.spec_version != service.spec_version:
        return False
    if policy.condition == "none":
        return task.status.state in (TaskState.COMPLETE, TaskState.FAILED, TaskState.REJECTED)
    if policy.condition == "on-failure" and task.status.state is TaskState.COMPLETE:
        return True
    ends = [t for t in slot.tasks if is_terminal(t.status.state) and t.spec_version == task.spec_version]
    return bool(policy.max_attempts) and len(ends) > policy.max_attempts


def _fits(node: Node, service: Service) -> bool:
    return node.spec.availability != "drain" and all_match(node, service.spec.task.placement.constraints)


def _takes_new(node: Node) -> bool:
    return node.status.state == "ready" and node.spec.availability == "active"


def _removed(task: Task) -> Change:
    return Put(replace(task, desired_state=TaskState.REMOVE))


def _unowned(snapshot: Snapshot) -> Decision:
    """Tasks of services that are gone."""
    tasks = (
        t
        for t in snapshot.all(Task)
        if t.desired_state is not TaskState.REMOVE and snapshot.get(Service, t.service_id) is None
    )
    return Decision(tuple((Writer.ORCHESTRATOR, _removed(t)) for t in tasks))


def _orphans(snapshot: Snapshot) -> Decision:
    """Tasks on nodes that were removed: nobody will ever tell how they ended."""
    changes = []
    for task in snapshot.all(Task):
        on_node = TaskState.ASSIGNED <= task.status.state <= TaskState.RUNNING
        if on_node and snapshot.get(Node, task.node_id) is None and task.desired_state > TaskState.RUNNING:
            status = TaskStatus(state=TaskState.ORPHANED, message="orphaned", error="its node was removed")
            changes.append((Writer.DISPATCHER, Put(replace(task, status=status))))
    return Decision(tuple(changes))


def _misplaced(snapshot: Snapshot, now_ms: int) -> Decision:
    """Tasks whose node no longer fulfils their service's constraints are rejected, and so replaced elsewhere."""
    changes = []
    for task in snapshot.all(Task):
        node = snapshot.get(Node, task.node_id) if task.node_id else None
        service = snapshot.get(Service, task.service_id)
        if node is None or service is None or is_terminal(task.status.state):
            continue
        wanted = task.desired_state <= TaskState.RUNNING and node.status.state == "ready"
        if wanted and not all_match(node, service.spec.task.placement.constraints):
            error = "its node no longer fulfils the placement constraints"
            status = TaskStatus(state=TaskState.REJECTED, at_ms=now_ms, message="rejected", error=error)
            changes.append((Writer.ENFORCER, Put(replace(task, status=status))))
    return Decision(tuple(changes))


def _once(changes: Iterable[Change]) -> list[Change]:
    """The first change of each object; what else is wanted of it follows at the next decision."""
    seen: set[str] = set()
    kept: list[Change] = []
    for change in changes:
        key = change.obj.id if isinstance(change, Put) else change.id
        if key not in seen:
            seen.add(key)
            kept.append(change)
    return kept
