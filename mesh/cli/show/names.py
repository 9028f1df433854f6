"""What things are called in lists."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from control.model import Node, ServiceSpec, Task, TaskSpec
from mesh.cli.text.duration import human_duration
from mesh.cli.text.table import shorten

RUNS_LENGTH = 20  # as docker ps shows of a command


def task_name(task: Task) -> str:
    """<service>.<slot>; of a global service <service>.<node id>."""
    return f"{task.service_name}.{task.slot or task.node_id}"


def node_name(node: Node) -> str:
    """What a node calls itself, or its id."""
    return node.description.hostname or node.id


def node_names(nodes: Iterable[Node]) -> dict[str, str]:
    """Names of nodes by id."""
    return {node.id: node_name(node) for node in nodes}


def down_nodes(nodes: Iterable[Node]) -> frozenset[str]:
    """Ids of the nodes whose tasks cannot be counted on."""
    return frozenset(node.id for node in nodes if node.status.state == "down")


def named(names: Mapping[str, str], id_: str) -> str:
    """The name of an id, or the id of something that is gone."""
    return names.get(id_, id_)


def mode_name(spec: ServiceSpec) -> str:
    """replicated or global."""
    return "global" if spec.mode.global_ is not None else "replicated"


def runs(spec: TaskSpec, *, no_trunc: bool) -> str:
    """What a task runs: an image, or a command in quotes."""
    if spec.container is not None:
        image = spec.container.image
        return image if no_trunc else image.partition("@")[0] or image
    command = " ".join(spec.process.command) if spec.process is not None else ""
    return f'"{command if no_trunc else shorten(command, RUNS_LENGTH)}"'


def ago(then_ms: int, now_ms: int) -> str:
    """How long since: "5 seconds ago"."""
    return f"{human_duration((now_ms - then_ms) / 1000)} ago"
