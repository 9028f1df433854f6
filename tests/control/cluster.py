"""A whole control plane in virtual time: the decision cores on a snapshot, with agents that do as they are told.

Every change goes through the real transaction check, so a core that writes what it may not fails the test.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from msgspec.structs import replace

from control import allocator, orchestrator, scheduler
from control.decision import Decision
from control.ids import IdSource
from control.lifecycle import TaskState, Writer, is_terminal
from control.model import (
    Availability,
    Cluster,
    ClusterSpec,
    Network,
    NetworkAttachment,
    NetworkSpec,
    Node,
    NodeDescription,
    NodeSpec,
    NodeState,
    NodeStatus,
    Object,
    Placement,
    ProcessSpec,
    ReplicatedMode,
    Service,
    ServiceMode,
    ServiceSpec,
    Task,
    TaskSpec,
    TaskStatus,
    UpdatePolicy,
    UpdateStatus,
)
from control.store.tables import Snapshot
from control.store.txn import Change, Delete, Put, prepare

NEXT_STATE = {
    TaskState.ASSIGNED: TaskState.PREPARING,
    TaskState.PREPARING: TaskState.READY,
    TaskState.READY: TaskState.RUNNING,
}


def node(name: str, **fields: object) -> Node:
    labels = fields.pop("labels", {})
    availability = fields.pop("availability", "active")
    description = NodeDescription(hostname=name, cpus=4, memory_bytes=8 << 30, **fields)  # type: ignore[arg-type]
    number = int("".join(c for c in name if c.isdigit()) or "1")
    return Node(
        id=name,
        number=number,
        spec=NodeSpec(labels=labels, availability=availability),  # type: ignore[arg-type]
        description=description,
        status=NodeStatus(state="ready", data_address=f"10.66.0.{number}"),
    )


def service(name: str = "api", replicas: int = 3, **fields: object) -> Service:
    placement = fields.pop("placement", Placement())
    task_fields = fields.pop("task", {})
    networks = tuple(NetworkAttachment(network_id=n) for n in fields.pop("networks", ()))  # type: ignore[attr-defined]
    task = TaskSpec(
        process=ProcessSpec(command=("serve",)),
        placement=placement,
        networks=networks,
        **task_fields,  # type: ignore[arg-type]
    )
    mode = fields.pop("mode", ServiceMode(replicated=ReplicatedMode(replicas=replicas)))
    return Service(id=f"s-{name}", spec=ServiceSpec(name=name, task=task, mode=mode, **fields))  # type: ignore[arg-type]


def network(name: str = "web", subnet: str = "", **fields: Any) -> Network:
    return Network(id=name, spec=NetworkSpec(name=name, subnet=subnet, **fields))


@dataclass
class World:
    """Snapshot, clock and agents."""

    seed: int = 1
    spec: ClusterSpec = field(default_factory=ClusterSpec)
    now_ms: int = 1_000_000
    snapshot: Snapshot = field(default_factory=Snapshot)
    failing: Callable[[Task], bool] = lambda task: False
    broken: Callable[[Task], bool] = lambda task: False  # cannot be started
    stuck: Callable[[Task], bool] = lambda task: False  # does as if it had heard nothing
    unpreparable: Callable[[Task], bool] = lambda task: False  # rejected as soon as its node has it
    completing: Callable[[Task], bool] = lambda task: False  # ends with exit code 0
    dying: random.Random | None = None  # the leader may die in the middle of what it writes

    def __post_init__(self) -> None:
        self.new_id = IdSource(random.Random(self.seed))
        self.put(Cluster(id="cluster", spec=self.spec))

    # --- writing ------------------------------------------------------------------------------------------------------

    def write(self, changes: Iterable[tuple[Writer, Change]]) -> None:
        for writer, change in changes:
            self.snapshot = prepare(self.snapshot, [change], writer, self.now_ms).after

    def put(self, *objects: Object) -> None:
        self.write((Writer.ORCHESTRATOR, Put(o)) for o in objects)

    def change(self, obj: Object, **fields: object) -> None:
        self.put(replace(obj, **fields))

    def delete(self, cls: type[Object], name: str) -> None:
        self.write([(Writer.ORCHESTRATOR, Delete(cls, name))])

    # --- living -------------------------------------------------------------------------------------------------------

    def decide(self) -> bool:
        """One round of all cores, in the leader's order; whether anything changed."""
        before = self.snapshot.version
        self._dispatcher()
        cores: tuple[Callable[[], Decision], ...] = (
            lambda: orchestrator.decide(self.snapshot, self.now_ms, self.new_id),
            lambda: allocator.decide(self.snapshot, self.now_ms, self.new_id),
            lambda: scheduler.decide(self.snapshot, self.now_ms, self.new_id),
        )
        for core in cores:
            decision = core()
            assert decision.wake_at_ms is None or decision.wake_at_ms > self.now_ms, "a wake-up in the past"
            changes = decision.changes
            if self.dying is not None and len(changes) > 1 and self.dying.random() < 0.5:
                changes = changes[: self.dying.randrange(len(changes))]  # the leader dies here; the next one goes on
                self.write(changes)
                break
            self.write(changes)
        return self.snapshot.version != before

    def _dispatcher(self) -> None:
        """Tasks on nodes that were removed will never be heard of."""
        for task in list(self.snapshot.all(Task)):
            placed = task.status.state >= TaskState.ASSIGNED and not is_terminal(task.status.state)
            if placed and self.snapshot.get(Node, task.node_id) is None:
                status = TaskStatus(state=TaskState.ORPHANED)
                self.write([(Writer.DISPATCHER, Put(replace(task, status=status)))])

    def agents(self) -> bool:
        """Every agent takes each of its tasks one step; whether anything changed."""
        before = self.snapshot.version
        for task in list(self.snapshot.all(Task)):
            holder = self.snapshot.get(Node, task.node_id)
            if holder is None or holder.status.state == "down" or is_terminal(task.status.state) or self.stuck(task):
                continue
            state = self._next(task)
            if state is not None:
                status = TaskStatus(state=state, at_ms=self.now_ms)
                self.write([(Writer.AGENT, Put(replace(task, status=status)))])
        return self.snapshot.version != before

    def _next(self, task: Task) -> TaskState | None:
        if task.status.state < TaskState.ASSIGNED:
            return None
        if task.desired_state > TaskState.RUNNING:
            return TaskState.SHUTDOWN
        if task.status.state is TaskState.RUNNING:
            if self.completing(task):
                return TaskState.COMPLETE
            return TaskState.FAILED if self.failing(task) else None
        if self.unpreparable(task):
            return TaskState.REJECTED
        if task.status.state is TaskState.READY and task.desired_state < TaskState.RUNNING:
            return None
        if task.status.state is TaskState.READY and self.broken(task):
            return TaskState.FAILED
        return NEXT_STATE[task.status.state]

    def settle(self, seconds: float = 120.0, step_s: float = 0.5) -> None:
        """Live until nothing changes, for at most `seconds`."""
        quiet = 0
        for _ in range(int(seconds / step_s)):
            changed = self.decide()
            changed = self.agents() or changed
            self.now_ms += int(step_s * 1000)
            quiet = 0 if changed else quiet + 1
            if quiet > 2 * 60 / step_s / 8:
                return

    def run(self, seconds: float, step_s: float = 0.5) -> None:
        """Live for a time."""
        for _ in range(int(seconds / step_s)):
            self.decide()
            self.agents()
            self.now_ms += int(step_s * 1000)

    # --- looking ------------------------------------------------------------------------------------------------------

    def service(self, name: str = "api") -> Service:
        held = self.get(Service, f"s-{name}")
        assert isinstance(held, Service)
        return held

    def node(self, name: str) -> Node:
        held = self.get(Node, name)
        assert isinstance(held, Node)
        return held

    def network(self, name: str) -> Network:
        held = self.get(Network, name)
        assert isinstance(held, Network)
        return held

    # --- what users and machines do -----------------------------------------------------------------------------------

    def scale(self, replicas: int, name: str = "api") -> None:
        held = self.service(name)
        self.change(held, spec=replace(held.spec, mode=ServiceMode(replicated=ReplicatedMode(replicas=replicas))))

    def update(self, name: str = "api", policy: UpdatePolicy | None = None, **task: object) -> None:
        """Another task spec, as control.server writes it."""
        held = self.service(name)
        spec = replace(held.spec, task=replace(held.spec.task, **task), update=policy or held.spec.update)
        versions = {held.spec_version, *(t.spec_version for t in self.snapshot.tasks_of_service(held.id))}
        self.change(
            held,
            spec=spec,
            spec_version=max(versions) + 1,
            previous_spec=held.spec,
            previous_spec_version=held.spec_version,
            update_status=UpdateStatus(),
        )

    def rerun(self, command: str, policy: UpdatePolicy | None = None) -> None:
        """Update what the tasks run."""
        self.update(policy=policy, process=ProcessSpec(command=(command,)))

    def set_state(self, name: str, state: NodeState) -> None:
        held = self.node(name)
        self.change(held, status=replace(held.status, state=state))

    def set_availability(self, name: str, availability: Availability) -> None:
        held = self.node(name)
        self.change(held, spec=replace(held.spec, availability=availability))

    def label(self, name: str, **labels: str) -> None:
        held = self.node(name)
        self.change(held, spec=replace(held.spec, labels=labels))

    def report(self, task: Task, state: TaskState, **fields: object) -> None:
        """What a task's node says of it."""
        held = self.get(Task, task.id)
        assert isinstance(held, Task)
        self.write([(Writer.AGENT, Put(replace(held, status=TaskStatus(state=state, **fields))))])  # type: ignore[arg-type]

    # --- reading ------------------------------------------------------------------------------------------------------

    def status(self, name: str = "api") -> UpdateStatus:
        return self.service(name).update_status

    def tasks(self, name: str = "api") -> list[Task]:
        return sorted(self.snapshot.tasks_of_service(f"s-{name}"), key=lambda t: (t.slot, t.meta.created_ms, t.id))

    def running(self, name: str = "api") -> list[Task]:
        return [t for t in self.tasks(name) if t.status.state is TaskState.RUNNING]

    def spread(self, name: str = "api") -> dict[str, int]:
        counts: dict[str, int] = {}
        for task in self.running(name):
            counts[task.node_id] = counts.get(task.node_id, 0) + 1
        return counts

    def get(self, cls: type, name: str) -> object:
        found = self.snapshot.get(cls, name)
        assert found is not None
        return found
