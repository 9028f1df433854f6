"""Tasks as rows: the history of each slot as a tree, as `docker service ps` shows it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from control.lifecycle import TaskState
from control.model import Service, Task
from mesh.cli.show.names import ago, named, runs, task_name
from mesh.cli.show.plain import record
from mesh.cli.text.port import format_port
from mesh.cli.text.table import short_id, shorten
from mesh.cli.text.template import Record

ERROR_LENGTH = 30  # as Docker
HISTORY_MARK = r" \_ "

PS_COLUMNS = {
    "ID": "ID",
    "Name": "NAME",
    "Node": "NODE",
    "DesiredState": "DESIRED STATE",
    "CurrentState": "CURRENT STATE",
    "Error": "ERROR",
    "Ports": "PORTS",
}
LS_COLUMNS = {
    "ID": "ID",
    "Name": "NAME",
    "Node": "NODE",
    "CurrentState": "CURRENT STATE",
    "Addresses": "ADDRESSES",
    "Error": "ERROR",
}
_ALL = PS_COLUMNS | LS_COLUMNS | {"Service": "SERVICE", "Slot": "SLOT", "Runs": "RUNS", "Image": "IMAGE"}
PS_MORE = {key: heading for key, heading in _ALL.items() if key not in PS_COLUMNS}
LS_MORE = {key: heading for key, heading in _ALL.items() if key not in LS_COLUMNS}


def sorted_tasks(tasks: Sequence[Task]) -> list[Task]:
    """By service, slot (as a number) and node; of one place the newest first."""
    return sorted(
        tasks, key=lambda t: (t.service_name, t.slot, t.node_id if not t.slot else "", -t.meta.created_ms, t.id)
    )


def task_rows(
    tasks: Sequence[Task], nodes: Mapping[str, str], *, now_ms: int, no_trunc: bool, tree: bool = False
) -> list[Record]:
    """Rows of `sorted_tasks`. With `tree` the earlier tasks of a place are marked below its newest."""
    rows: list[Record] = []
    previous = ""
    for task in tasks:
        name = task_name(task)
        history = tree and name == previous
        previous = name
        rows.append(_row(task, (HISTORY_MARK if history else "") + name, nodes, now_ms=now_ms, no_trunc=no_trunc))
    return rows


def _row(task: Task, name: str, nodes: Mapping[str, str], *, now_ms: int, no_trunc: bool) -> Record:
    since = ago(task.status.at_ms or task.meta.created_ms, now_ms)
    error = task.status.error
    return Record(
        ID=task.id if no_trunc else short_id(task.id),
        Name=name if no_trunc or task.slot else _short_global(name, task),
        Node=named(nodes, task.node_id),
        DesiredState=task.desired_state.name.capitalize(),
        CurrentState=f"{task.status.state.name.capitalize()} {since[0].lower()}{since[1:]}",
        Error=f'"{error if no_trunc else shorten(error, ERROR_LENGTH)}"' if error else "",
        Ports=", ".join(format_port(port) for port in task.ports),
        Addresses=", ".join(address.address for address in task.addresses),
        Service=task.service_name,
        Slot=task.slot,
        Runs=runs(task.spec, no_trunc=no_trunc),
        Image=task.spec.container.image if task.spec.container is not None else "",
    )


def _short_global(name: str, task: Task) -> str:
    return re.sub(re.escape(task.node_id) + "$", short_id(task.node_id), name) if task.node_id else name


def task_records(tasks: Sequence[Task], nodes: Mapping[str, str]) -> list[Record]:
    """Whole objects for JSON."""
    return [record(task, name=task_name(task), node_name=named(nodes, task.node_id)) for task in tasks]


def is_running(task: Task, down: frozenset[str]) -> bool:
    """Whether a task does its work: it is wanted, runs, and its node is there."""
    return (
        task.status.state is TaskState.RUNNING and task.desired_state <= TaskState.RUNNING and task.node_id not in down
    )


def counts(service: Service, tasks: Sequence[Task], down: frozenset[str]) -> tuple[int, int]:
    """(running, wanted) of a service, from its own tasks. A global one wants what the orchestrator has made."""
    running = sum(1 for task in tasks if is_running(task, down))
    if service.spec.mode.replicated is not None:
        return running, service.spec.mode.replicated.replicas
    return running, sum(1 for task in tasks if task.desired_state <= TaskState.RUNNING)
