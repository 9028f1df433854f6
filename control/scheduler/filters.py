"""The filters a node must pass to get a task, in order; the first that fails gives the reason. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from control.constraint import all_match
from control.lifecycle import is_terminal
from control.model import Node, PortSpec, Resources, Task


@dataclass(slots=True)
class NodeLoad:
    """A node and what is on it; kept up to date while tasks are placed."""

    node: Node
    tasks: int = 0  # all that have not ended
    by_service: dict[str, int] = field(default_factory=dict)
    cpus: float = 0.0  # reserved
    memory_bytes: int = 0
    ports: set[tuple[str, int]] = field(default_factory=set)  # host mode
    failures: dict[tuple[str, int], int] = field(default_factory=dict)  # (service, spec version) -> recent ones

    def add(self, task: Task) -> None:
        """Count a task."""
        reserved = task.spec.resources.reservations
        self.tasks += 1
        self.by_service[task.service_id] = self.by_service.get(task.service_id, 0) + 1
        self.cpus += reserved.cpus
        self.memory_bytes += reserved.memory_bytes
        self.ports |= {(p.protocol, p.published) for p in host_ports(task)}


def host_ports(task: Task) -> list[PortSpec]:
    """Ports that a task takes on its node."""
    return [p for p in task.ports if p.mode == "host" and p.published]


def is_available(load: NodeLoad, task: Task) -> bool:
    """Ready, and willing to take new tasks."""
    return load.node.status.state == "ready" and load.node.spec.availability == "active"


def has_resources(load: NodeLoad, task: Task) -> bool:
    """Room for what the task reserves. Limits do not count."""
    wanted: Resources = task.spec.resources.reservations
    description = load.node.description
    return (not wanted.cpus or load.cpus + wanted.cpus <= description.cpus) and (
        not wanted.memory_bytes or load.memory_bytes + wanted.memory_bytes <= description.memory_bytes
    )


def can_run(load: NodeLoad, task: Task) -> bool:
    """An executor for this kind of task. A node that names none is taken to have both."""
    executors = load.node.description.executors
    wanted = "process" if task.spec.process is not None else "docker"
    return not executors or wanted in executors


def fulfils_constraints(load: NodeLoad, task: Task) -> bool:
    """All placement constraints hold."""
    return all_match(load.node, task.spec.placement.constraints)


def has_free_ports(load: NodeLoad, task: Task) -> bool:
    """None of the task's host ports is taken on the node."""
    return not load.ports & {(p.protocol, p.published) for p in host_ports(task)}


def below_maximum(load: NodeLoad, task: Task) -> bool:
    """The service's limit of replicas per node is not reached."""
    most = task.spec.placement.max_replicas_per_node
    return not most or load.by_service.get(task.service_id, 0) < most


# (filter, reason for n nodes) in SwarmKit's order, so that the explanation reads as its users know it.
FILTERS: tuple[tuple[Callable[[NodeLoad, Task], bool], str], ...] = (
    (is_available, "{} not available for new tasks"),
    (has_resources, "insufficient resources on {}"),
    (can_run, "no executor for it on {}"),
    (fulfils_constraints, "scheduling constraints not satisfied on {}"),
    (has_free_ports, "host-mode port already in use on {}"),
    (below_maximum, "max replicas per node limit exceeded on {}"),
)


def first_failure(load: NodeLoad, task: Task) -> str | None:
    """The reason why a node cannot take a task; None when it can."""
    return next((reason for passes, reason in FILTERS if not passes(load, task)), None)


def counts(task: Task) -> bool:
    """Whether a task takes room on its node."""
    return bool(task.node_id) and not is_terminal(task.status.state)
