"""Gives each pending task a node, or says why none fits. Pure.

Spread, as SwarmKit's users know it: nodes where the same service failed FAULTY_FAILURES times lately come last, then
fewest tasks of the service, then fewest tasks at all; placement preferences are levels above that (`tree`). Tasks that
have a node already (global services) come first and are only checked. Tasks of one service and spec version are placed
as a group, and the filters run on a node only when its turn has come. Why a task stays is found out if one does.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence

from msgspec.structs import replace

from control.constraint import ConstraintError, parse_preference
from control.decision import Decision
from control.lifecycle import RUNNABLE_TO, TaskState, Writer
from control.model import Network, Node, PortSpec, Task, TaskStatus
from control.scheduler.filters import FILTERS, NodeLoad, counts, filters_of, first_failure, is_available
from control.scheduler.tree import grow
from control.store.tables import Snapshot
from control.store.txn import Change, Put

FAULTY_FAILURES = 5
FAULTY_WINDOW_MS = 5 * 60 * 1000
_ENDED_BADLY = (TaskState.FAILED, TaskState.REJECTED)

_Group = tuple[
    str, int, tuple[PortSpec, ...]
]  # service, spec version, host ports: tasks that differ in their slot only


def decide(snapshot: Snapshot, now_ms: int, new_id: Callable[[], str]) -> Decision:
    """Place what is pending. Makes no ids: `new_id` is there for all cores alike."""
    pending = [t for t in snapshot.all(Task) if t.status.state is TaskState.PENDING and t.desired_state <= RUNNABLE_TO]
    if not pending:
        return Decision()
    scene = _Scene(snapshot, now_ms)
    pending.sort(key=lambda t: (t.meta.created_ms, t.slot, t.id))
    for task in pending:
        if task.node_id:
            scene.check(task)
    for group in _groups(task for task in pending if not task.node_id):
        scene.place(group)
    return Decision(tuple((Writer.SCHEDULER, change) for change in scene.changes))


def _groups(tasks: Iterable[Task]) -> Iterable[list[Task]]:
    """The tasks in groups, the group of the oldest first."""
    groups: dict[_Group, list[Task]] = defaultdict(list)
    for task in tasks:
        groups[task.service_id, task.spec_version, task.ports].append(task)
    return groups.values()


class _Scene:
    """The nodes, what is on them, and what has been decided so far."""

    def __init__(self, snapshot: Snapshot, now_ms: int) -> None:
        self.changes: list[Change] = []
        self._now_ms = now_ms
        encrypted = frozenset(network.id for network in snapshot.all(Network) if network.spec.encrypted)
        self._loads = {
            node.id: NodeLoad(node, index, not_carried=frozenset() if node.description.tunnel_keys else encrypted)
            for index, node in enumerate(snapshot.all(Node))
        }
        self._everything = list(self._loads.values())
        self._available = [load for load in self._everything if is_available(load)]
        self._faults: dict[tuple[str, int], Counter[str]] = defaultdict(Counter)  # (service, spec version) -> by node
        for task in snapshot.all(Task):
            load = self._loads.get(task.node_id)
            if load is None:
                continue
            if counts(task):
                load.add(task)
            elif task.status.state in _ENDED_BADLY and now_ms - task.meta.updated_ms < FAULTY_WINDOW_MS:
                self._faults[task.service_id, task.spec_version][task.node_id] += 1

    def check(self, task: Task) -> None:
        """A task whose node is given: only whether it can be there."""
        load = self._loads.get(task.node_id)
        reason = "its node is gone" if load is None else first_failure(load, task)
        if load is not None and reason is None:
            self._assign(task, load)
        else:
            self._explain(task, f"no suitable node ({(reason or '').format('its node')})")

    def place(self, group: Sequence[Task]) -> None:
        """Tasks that are all alike: each to the best node that is left."""
        model = group[0]
        filters = filters_of(model)

        def fits(load: NodeLoad) -> bool:
            return all(passes(load, model) for passes in filters)

        faults = self._faults.get((model.service_id, model.spec_version), Counter())
        faulty = {node_id: count for node_id, count in faults.items() if count >= FAULTY_FAILURES}
        tree = grow(model.service_id, self._everything, self._available, faulty, _preferences(model))
        taken = 0

        def place(load: NodeLoad) -> bool:
            if fits(load):
                self._assign(group[taken], load)
                return True
            return False

        while taken < len(group) and tree.take(place) is not None:
            taken += 1
        if taken < len(group):
            text = self._why_none(model)
            for task in group[taken:]:
                self._explain(task, text)

    def _why_none(self, task: Task) -> str:
        """ "no suitable node (insufficient resources on 2 nodes; 1 node not available for new tasks)"."""
        failures = Counter(reason for load in self._everything if (reason := first_failure(load, task)))
        order = {f.reason: i for i, f in enumerate(FILTERS)}
        parts = [
            reason.format(f"{count} node" if count == 1 else f"{count} nodes")
            for reason, count in sorted(failures.items(), key=lambda item: (-item[1], order[item[0]]))
        ]
        return f"no suitable node ({'; '.join(parts)})" if parts else "no suitable node (there are none)"

    def _assign(self, task: Task, load: NodeLoad) -> None:
        load.add(task)
        status = TaskStatus(state=TaskState.ASSIGNED, at_ms=self._now_ms, message="assigned to a node")
        self.changes.append(Put(replace(task, node_id=load.node.id, status=status)))

    def _explain(self, task: Task, text: str) -> None:
        """The reason on the task, unless it stands there already."""
        if task.status.error != text:
            status = TaskStatus(state=TaskState.PENDING, at_ms=self._now_ms, message="pending", error=text)
            self.changes.append(Put(replace(task, status=status)))


def _preferences(task: Task) -> list[str]:
    keys = []
    for preference in task.spec.placement.preferences:
        try:
            keys.append(parse_preference(preference))
        except ConstraintError:
            continue  # refused at the API; from an older store it prefers nothing
    return keys
