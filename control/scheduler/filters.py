"""The filters a node must pass to get a task, in order; the first that fails gives the reason. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from control.constraint import all_match
from control.lifecycle import RUNNABLE_TO, TaskState
from control.model import Node, Task

_NANO = 1_000_000_000  # CPUs are counted in whole billionths: 0.1 + 0.1 + 0.1 must not exceed 0.3


@dataclass(slots=True)
class NodeLoad:
    """A node and what is on it; kept up to date while tasks are placed."""

    node: Node
    index: int  # its place in the order of ids, the last to decide between equals
    tasks: int = 0  # that are to go on
    nano_cpus: int = 0  # reserved by all that have not ended
    memory_bytes: int = 0
    ports: set[tuple[str, int]] = field(default_factory=set)  # host mode
    by_service: dict[str, int] = field(default_factory=dict)  # as `tasks`
    not_carried: frozenset[str] = frozenset()  # ids of networks that cannot be on it

    def add(self, task: Task) -> None:
        """Count a task that has not ended. One that is being stopped holds resources, but is no replica any more."""
        reserved = task.spec.resources.reservations
        self.nano_cpus += nano_cpus(reserved.cpus)
        self.memory_bytes += reserved.memory_bytes
        self.ports |= host_ports(task)
        if task.desired_state <= RUNNABLE_TO:
            self.tasks += 1
            self.by_service[task.service_id] = self.by_service.get(task.service_id, 0) + 1


def nano_cpus(cpus: float) -> int:
    """CPUs as a number that can be added up exactly."""
    return round(cpus * _NANO)


def host_ports(task: Task) -> set[tuple[str, int]]:
    """Ports that a task takes on its node."""
    return {(port.protocol, port.published) for port in task.ports if port.mode == "host"}


def counts(task: Task) -> bool:
    """Whether a task takes room on its node: it was placed there, and has not ended."""
    return TaskState.ASSIGNED <= task.status.state <= RUNNABLE_TO


@dataclass(frozen=True, slots=True)
class Filter:
    """`applies`: whether it can fail for a task at all. `reason`: what is said of the n nodes that fail."""

    applies: Callable[[Task], bool]
    passes: Callable[[NodeLoad, Task], bool]
    reason: str


def is_available(load: NodeLoad) -> bool:
    """Ready, and willing to take new tasks."""
    return load.node.status.state == "ready" and load.node.spec.availability == "active"


def _has_resources(load: NodeLoad, task: Task) -> bool:
    """Room for what the task reserves. Limits do not count."""
    wanted, has = task.spec.resources.reservations, load.node.description
    return (not wanted.cpus or load.nano_cpus + nano_cpus(wanted.cpus) <= nano_cpus(has.cpus)) and (
        not wanted.memory_bytes or load.memory_bytes + wanted.memory_bytes <= has.memory_bytes
    )


def _can_run(load: NodeLoad, task: Task) -> bool:
    """An executor for this kind of task. A node that names none is taken to have both."""
    executors = load.node.description.executors
    return not executors or ("process" if task.spec.process is not None else "docker") in executors


def _carries_networks(load: NodeLoad, task: Task) -> bool:
    return not any(attachment.network_id in load.not_carried for attachment in task.spec.networks)


def _below_maximum(load: NodeLoad, task: Task) -> bool:
    return load.by_service.get(task.service_id, 0) < task.spec.placement.max_replicas_per_node


# In SwarmKit's order and words, so that the explanation reads as its users know it.
AVAILABLE = Filter(lambda task: True, lambda load, task: is_available(load), "{} not available for new tasks")
FILTERS = (
    AVAILABLE,
    Filter(
        lambda task: bool(task.spec.resources.reservations.cpus or task.spec.resources.reservations.memory_bytes),
        _has_resources,
        "insufficient resources on {}",
    ),
    Filter(lambda task: True, _can_run, "no executor for it on {}"),
    Filter(lambda task: bool(task.spec.networks), _carries_networks, "no WireGuard for its encrypted network on {}"),
    Filter(
        lambda task: bool(task.spec.placement.constraints),
        lambda load, task: all_match(load.node, task.spec.placement.constraints),
        "scheduling constraints not satisfied on {}",
    ),
    Filter(
        lambda task: bool(host_ports(task)),
        lambda load, task: not load.ports & host_ports(task),
        "host-mode port already in use on {}",
    ),
    Filter(
        lambda task: task.spec.placement.max_replicas_per_node > 0,
        _below_maximum,
        "max replicas per node limit exceeded on {}",
    ),
)


def first_failure(load: NodeLoad, task: Task) -> str | None:
    """The reason why a node cannot take a task; None when it can."""
    return next((f.reason for f in FILTERS if f.applies(task) and not f.passes(load, task)), None)


def filters_of(task: Task) -> tuple[Callable[[NodeLoad, Task], bool], ...]:
    """What is left to check on an available node for a task like this one."""
    return tuple(f.passes for f in FILTERS if f is not AVAILABLE and f.applies(task))
