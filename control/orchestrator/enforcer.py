"""Takes tasks off nodes that may not have them any more, because the nodes have changed. Pure.

A task is rejected when its node has lost what its constraints ask for, or has shrunk below what its tasks reserve; the
restart supervisor then replaces it elsewhere. Constraints are those of the task and, unless an update is about to move
the task anyway, those of the service, which may have been edited without need to replace the task. Tasks of global
services are left to their orchestrator, which stops them in order. Only active nodes are looked at, as in SwarmKit.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping

from msgspec.structs import replace

from control.constraint import all_match
from control.lifecycle import RUNNABLE_TO, TaskState
from control.model import Node, Service, Task, TaskStatus
from control.store.txn import Put

_NANO = 1_000_000_000  # CPUs are added up in whole billionths, as in the scheduler
_UPDATED = frozenset({"completed", "rollback_completed"})


def enforce(
    nodes: Mapping[str, Node], services: Mapping[str, Service], tasks: Iterable[Task], now_ms: int
) -> dict[str, Put]:
    """Rejections, by task id."""
    reserving: dict[str, list[Task]] = defaultdict(list)
    rejected: dict[str, Put] = {}
    for task in tasks:
        node = nodes.get(task.node_id)
        if node is None or not _concerns(node, task):
            continue
        service = services.get(task.service_id)
        if service is not None and service.spec.mode.global_ is None and _misplaced(node, service, task):
            rejected[task.id] = _rejection(task, "its node no longer fulfils the placement constraints", now_ms)
            continue
        reserved = task.spec.resources.reservations
        if reserved.cpus or reserved.memory_bytes:
            reserving[node.id].append(task)
    for node_id, group in reserving.items():
        for task in _too_many(nodes[node_id], group):
            rejected[task.id] = _rejection(task, "its node no longer has the resources that it reserves", now_ms)
    return rejected


def _concerns(node: Node, task: Task) -> bool:
    return (
        node.status.state == "ready"
        and node.spec.availability == "active"
        and TaskState.ASSIGNED <= task.status.state <= RUNNABLE_TO
        and task.desired_state <= RUNNABLE_TO
    )


def _misplaced(node: Node, service: Service, task: Task) -> bool:
    own, current = task.spec.placement.constraints, service.spec.task.placement.constraints
    if own and not all_match(node, own):
        # Of a constraint that was since taken away nothing is left to enforce.
        return task.spec_version == service.spec_version or not all_match(node, current)
    return service.update_status.state in _UPDATED and bool(current) and not all_match(node, current)


def _too_many(node: Node, tasks: list[Task]) -> list[Task]:
    """The newest tasks, so that what the others reserve fits."""
    cpus, memory_bytes = round(node.description.cpus * _NANO), node.description.memory_bytes
    over: list[Task] = []
    for task in sorted(tasks, key=lambda t: (t.meta.created_ms, t.id)):
        reserved = task.spec.resources.reservations
        wanted = round(reserved.cpus * _NANO)
        if (wanted and wanted > cpus) or (reserved.memory_bytes and reserved.memory_bytes > memory_bytes):
            over.append(task)
        else:
            cpus -= wanted
            memory_bytes -= reserved.memory_bytes
    return over


def _rejection(task: Task, error: str, now_ms: int) -> Put:
    status = TaskStatus(state=TaskState.REJECTED, at_ms=now_ms, message="rejected", error=error)
    return Put(replace(task, status=status))
