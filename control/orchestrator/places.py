"""The tasks of one service, sorted into the places that successive tasks fill; and what a decision looks at. Pure.

A *place* is a slot of a replicated service or a node of a global one. Usually one task in a place is *wanted* (desired
READY or RUNNING), and older ones end or have ended. Two are wanted while one replaces the other start-first.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from msgspec.structs import replace

from control.constraint import all_match
from control.lifecycle import RUNNABLE_TO, TaskState
from control.model import Node, PortSpec, Service, Task, TaskStatus
from control.registry import without_auth
from control.store.tables import Snapshot
from control.store.txn import Change, Put

Place = tuple[int, str]  # (slot, "") or (0, node id)

ENDED_BY_ITSELF = (TaskState.COMPLETE, TaskState.FAILED, TaskState.REJECTED)


@dataclass(frozen=True, slots=True)
class Slot:
    """A place with its tasks, oldest first; those wanted REMOVEd are left out, and there is at least one."""

    place: Place
    tasks: tuple[Task, ...]

    @property
    def newest(self) -> Task:
        """The latest task."""
        return self.tasks[-1]

    @property
    def wanted(self) -> tuple[Task, ...]:
        """Tasks that are to run, oldest first: one, or two in the middle of a replacement."""
        return tuple(t for t in self.tasks if is_wanted(t))

    def before(self, task: Task) -> tuple[Task, ...]:
        """Older tasks."""
        return self.tasks[: self.tasks.index(task)]

    def after(self, task: Task) -> tuple[Task, ...]:
        """Later tasks."""
        return self.tasks[self.tasks.index(task) + 1 :]


@dataclass(frozen=True, slots=True)
class Outcome:
    """Changes for a service or a place of it, and when to look again."""

    changes: tuple[Change, ...] = ()
    wake_at_ms: int | None = None


@dataclass(frozen=True, slots=True)
class View:
    """What a decision about one service looks at."""

    snapshot: Snapshot
    nodes: Mapping[str, Node]
    service: Service
    now_ms: int
    new_id: Callable[[], str]

    @property
    def is_global(self) -> bool:
        """One task per node, rather than so many."""
        return self.service.spec.mode.global_ is not None

    # --- nodes --------------------------------------------------------------------------------------------------------

    def is_lost(self, task: Task) -> bool:
        """Whether nothing can be heard of a placed task, because its node is down or gone."""
        if not task.node_id:
            return False
        node = self.nodes.get(task.node_id)
        return node is None or node.status.state == "down"

    def is_evicted(self, task: Task) -> bool:
        """Whether a task must leave its node, which is being drained."""
        node = self.nodes.get(task.node_id) if task.node_id else None
        return node is not None and node.spec.availability == "drain"

    def is_alive(self, task: Task) -> bool:
        """Whether a task is on a node that can be heard of, and has not ended."""
        return TaskState.ASSIGNED <= task.status.state <= RUNNABLE_TO and not self.is_lost(task)

    def fits(self, node: Node) -> bool:
        """Whether a node may have tasks of the service."""
        return node.spec.availability != "drain" and all_match(node, self.service.spec.task.placement.constraints)

    def can_be_filled(self, place: Place) -> bool:
        """Whether a new task in this place would get a node, as far as that follows from the place."""
        if not self.is_global:
            return True
        node = self.nodes.get(place[1])
        return node is not None and takes_new(node) and self.fits(node)

    # --- specs --------------------------------------------------------------------------------------------------------

    def runs_another_spec(self, task: Task) -> bool:
        """Whether the service wants something else run than this task does. Where it may run is left aside."""
        if task.spec_version == self.service.spec_version:
            return False
        wanted = without_auth(self.service.spec.task)
        if task.spec != wanted and replace(without_auth(task.spec), placement=wanted.placement) != wanted:
            return True
        return task.status.state > TaskState.NEW and _asked(task.ports) != self._host_ports(task)

    def _host_ports(self, task: Task) -> list[tuple[int, str, int]]:
        """The host ports that the service asks for; automatic ones as the task has them."""
        asked = [port for port in self.service.spec.ports if port.mode == "host"]
        given = {(port.target, port.protocol): port.published for port in task.ports}
        return _asked(
            replace(port, published=port.published or given.get((port.target, port.protocol), 0)) for port in asked
        )

    def is_outdated(self, task: Task) -> bool:
        """Whether an update must replace the task: it runs another spec, or is where the service may not be."""
        if task.spec_version == self.service.spec_version:
            return False
        if self.runs_another_spec(task):
            return True
        if task.spec.placement == self.service.spec.task.placement:
            return False
        node = self.nodes.get(task.node_id)
        return node is None or not all_match(node, self.service.spec.task.placement.constraints)

    # --- tasks --------------------------------------------------------------------------------------------------------

    def first(self, place: Place) -> Task:
        """A new task in a place that is empty."""
        return self._task(place, TaskState.RUNNING)

    def updated(self, place: Place, desired: TaskState, rollout_ms: int) -> Task:
        """A new task that an update makes."""
        return replace(self._task(place, desired), rollout_ms=rollout_ms)

    def again(self, slot: Slot, last: Task, desired: TaskState) -> Task:
        """A new task that takes over from `last` what it was to do: only an update changes what a place runs."""
        task = self._task(slot.place, desired)
        if self.runs_another_spec(last):
            task = replace(task, spec=last.spec, spec_version=last.spec_version)
        return task if last.settled else replace(task, rollout_ms=last.rollout_ms)

    def _task(self, place: Place, desired: TaskState) -> Task:
        return Task(
            id=self.new_id(),
            service_id=self.service.id,
            service_name=self.service.spec.name,
            slot=place[0],
            node_id=place[1],
            spec=self.service.spec.task,
            spec_version=self.service.spec_version,
            desired_state=desired,
            status=TaskStatus(state=TaskState.NEW, at_ms=self.now_ms, message="created"),
        )


def slots(tasks: Iterable[Task]) -> dict[Place, Slot]:
    """The places of a service that have a task not wanted REMOVEd, in order."""
    found: dict[Place, list[Task]] = defaultdict(list)
    for task in tasks:
        if task.desired_state is not TaskState.REMOVE:
            found[place_of(task)].append(task)
    return {place: Slot(place, tuple(sorted(group, key=_age))) for place, group in sorted(found.items())}


def place_of(task: Task) -> Place:
    """Where a task stands."""
    return (task.slot, "") if task.slot else (0, task.node_id)


def _age(task: Task) -> tuple[int, int, int, str]:
    """Sorts tasks oldest first. Of two made in the same millisecond, the older is the one that is further on."""
    return task.meta.created_ms, -task.desired_state, -task.status.state, task.id


def _asked(ports: Iterable[PortSpec]) -> list[tuple[int, str, int]]:
    return sorted((port.target, port.protocol, port.published) for port in ports)


def is_wanted(task: Task) -> bool:
    """Whether it is to run, now or soon."""
    return task.desired_state <= RUNNABLE_TO


def takes_new(node: Node) -> bool:
    """Whether a node may be given new tasks."""
    return node.status.state == "ready" and node.spec.availability == "active"


def let_run(task: Task) -> Change:
    """Let a held task run."""
    return Put(replace(task, desired_state=TaskState.RUNNING))


def shut(task: Task) -> Change:
    """Stop a task, and keep it as history."""
    return Put(replace(task, desired_state=TaskState.SHUTDOWN))


def removed(task: Task) -> Change:
    """Stop a task, and forget it."""
    return Put(replace(task, desired_state=TaskState.REMOVE))


def earliest(times_ms: Iterable[int | None]) -> int | None:
    """The first of several times to look again."""
    return min((t for t in times_ms if t is not None), default=None)
