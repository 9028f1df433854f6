"""Gives each pending task a node, or says why none fits. Pure.

Spread, as SwarmKit's users know it: nodes where the same service failed FAULTY_FAILURES times lately come last, then
fewest tasks of the service, then fewest tasks at all. Placement preferences are levels above that: branches with fewer
tasks of the service are filled first. Tasks that have a node already (global services) are only checked. Tasks that
differ in nothing but their name are placed as a group, so that the filters run once per group and node.
"""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from msgspec.structs import replace

from control.constraint import ConstraintError, attribute, parse_preference
from control.decision import Decision
from control.lifecycle import TaskState, Writer
from control.model import Node, Task, TaskStatus
from control.scheduler.filters import FILTERS, NodeLoad, counts, first_failure
from control.store.tables import Snapshot
from control.store.txn import Change, Put

FAULTY_FAILURES = 5
FAULTY_WINDOW_MS = 5 * 60 * 1000
_ENDED_BADLY = (TaskState.FAILED, TaskState.REJECTED)


def decide(snapshot: Snapshot, now_ms: int) -> Decision:
    """Place what is pending."""
    pending = [t for t in snapshot.all(Task) if t.status.state is TaskState.PENDING and t.desired_state <= _WANTED]
    if not pending:
        return Decision()
    loads = _loads(snapshot, now_ms)
    changes: list[Change] = []
    for task in (t for t in pending if t.node_id):
        changes += _check_preassigned(task, loads, now_ms)
    for group in _groups(t for t in pending if not t.node_id):
        changes += _place(group, loads, now_ms)
    return Decision(tuple((Writer.SCHEDULER, change) for change in changes))


_WANTED = TaskState.RUNNING


def _loads(snapshot: Snapshot, now_ms: int) -> dict[str, NodeLoad]:
    loads = {node.id: NodeLoad(node) for node in snapshot.all(Node)}
    for task in snapshot.all(Task):
        load = loads.get(task.node_id)
        if load is None or task.status.state is TaskState.PENDING:
            continue
        if counts(task):
            load.add(task)
        elif task.status.state in _ENDED_BADLY and now_ms - task.meta.updated_ms < FAULTY_WINDOW_MS:
            key = (task.service_id, task.spec_version)
            load.failures[key] = load.failures.get(key, 0) + 1
    return loads


def _groups(tasks: Iterable[Task]) -> list[list[Task]]:
    """Tasks of one service and spec version, the oldest first."""
    groups: dict[tuple[str, int], list[Task]] = defaultdict(list)
    for task in sorted(tasks, key=lambda t: (t.meta.created_ms, t.slot, t.id)):
        groups[task.service_id, task.spec_version].append(task)
    return list(groups.values())


def _check_preassigned(task: Task, loads: dict[str, NodeLoad], now_ms: int) -> list[Change]:
    load = loads.get(task.node_id)
    reason = "its node is gone" if load is None else first_failure(load, task)
    if reason is None and load is not None:
        load.add(task)
        return [_assigned(task, task.node_id, now_ms)]
    return _explained(task, f"no suitable node ({(reason or '').format('its node')})", now_ms)


def _place(group: Sequence[Task], loads: dict[str, NodeLoad], now_ms: int) -> list[Change]:
    model = group[0]
    failures: Counter[str] = Counter()
    fitting: list[NodeLoad] = []
    for load in loads.values():
        reason = first_failure(load, model)
        if reason is None:
            fitting.append(load)
        else:
            failures[reason] += 1
    tree = _Branch(model, fitting, _preferences(model))
    changes: list[Change] = []
    for task in group:
        chosen = tree.take(failures)
        if chosen is None:
            changes += _explained(task, _explain(failures), now_ms)
        else:
            changes.append(_assigned(task, chosen.node.id, now_ms))
    return changes


def _preferences(task: Task) -> list[str]:
    keys = []
    for preference in task.spec.placement.preferences:
        try:
            keys.append(parse_preference(preference))
        except ConstraintError:
            continue  # refused at the API; from an older store it prefers nothing
    return keys


@dataclass(slots=True)
class _Leaf:
    """A node in a heap."""

    rank: tuple[bool, int, int, str]
    load: NodeLoad

    def __lt__(self, other: _Leaf) -> bool:
        return self.rank < other.rank


class _Branch:
    """The nodes that share the values of the preferences so far; below it branches of the next, or a heap of nodes."""

    def __init__(self, model: Task, loads: Sequence[NodeLoad], keys: Sequence[str]) -> None:
        self._model = model
        self.tasks = sum(load.by_service.get(model.service_id, 0) for load in loads)
        self._branches: list[_Branch] = []
        self._heap: list[_Leaf] = []
        if keys:
            split: dict[str, list[NodeLoad]] = defaultdict(list)
            for load in loads:
                split[attribute(load.node, keys[0])].append(load)
            self._branches = [_Branch(model, part, keys[1:]) for _, part in sorted(split.items())]
        else:
            self._heap = [_Leaf(self._rank(load), load) for load in loads]
            heapq.heapify(self._heap)

    def _rank(self, load: NodeLoad) -> tuple[bool, int, int, str]:
        failures = load.failures.get((self._model.service_id, self._model.spec_version), 0)
        of_service = load.by_service.get(self._model.service_id, 0)
        return failures >= FAULTY_FAILURES, of_service, load.tasks, load.node.id

    def take(self, failures: Counter[str]) -> NodeLoad | None:
        """The best node, with the task counted on it; None when none is left. Full nodes are counted by reason."""
        for branch in sorted(self._branches, key=lambda b: b.tasks):
            found = branch.take(failures)
            if found is not None:
                self.tasks += 1
                return found
        while self._heap:
            load = self._heap[0].load
            reason = first_failure(load, self._model)
            if reason is None:
                load.add(self._model)
                self.tasks += 1
                heapq.heapreplace(self._heap, _Leaf(self._rank(load), load))
                return load
            failures[reason] += 1
            heapq.heappop(self._heap)
        return None


def _explain(failures: Counter[str]) -> str:
    """ "no suitable node (insufficient resources on 2 nodes; 1 node not available for new tasks)"."""
    order = {reason: i for i, (_, reason) in enumerate(FILTERS)}
    parts = [
        reason.format(f"{count} node" if count == 1 else f"{count} nodes")
        for reason, count in sorted(failures.items(), key=lambda item: (-item[1], order[item[0]]))
    ]
    return f"no suitable node ({'; '.join(parts)})" if parts else "no suitable node (there are none)"


def _explained(task: Task, text: str, now_ms: int) -> list[Change]:
    """The reason on the task, unless it stands there already."""
    if task.status.error == text:
        return []
    return [Put(replace(task, status=TaskStatus(state=TaskState.PENDING, at_ms=now_ms, message="pending", error=text)))]


def _assigned(task: Task, node_id: str, now_ms: int) -> Change:
    status = TaskStatus(state=TaskState.ASSIGNED, at_ms=now_ms, message="assigned to a node")
    return Put(replace(task, node_id=node_id, status=status))
