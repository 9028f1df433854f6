"""`mesh status`: this machine and its cluster in a few lines, and what is wrong with them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from control.model import Node, Service, Task
from mesh.cli.show.names import node_name
from mesh.cli.show.pretty import Line, aligned
from mesh.cli.show.tasks import counts
from mesh.cli.text.template import Record

# Problems of one sort that are named one by one; there may be thousands.
NAMED_MAX = 10


@dataclass(frozen=True, slots=True)
class Overview:
    """All that the status is made of. `about` are the fields of Local.Info; `unreachable` is why nobody knows more."""

    about: Mapping[str, object]
    cluster_name: str = ""
    nodes: tuple[Node, ...] = ()
    services: tuple[Service, ...] = ()
    tasks: tuple[Task, ...] = ()
    down: frozenset[str] = frozenset()
    unreachable: str = ""

    @property
    def idle(self) -> bool:
        """Whether this machine is in no cluster."""
        return self.about["state"] == "idle"

    @property
    def remote(self) -> bool:
        """Whether it is a cluster elsewhere: then nothing is said of a machine."""
        return self.about["state"] == "remote"


def problems(overview: Overview) -> list[str]:
    """What is wrong, one sentence each; none on a machine that is in no cluster."""
    if overview.idle:
        return []
    found = []
    if not overview.about["connected"] and not overview.remote:
        found.append("this node has no session with a manager")
    if overview.about["error"]:
        found.append(f"this node: {overview.about['error']}")
    if overview.unreachable:
        found.append(f"the cluster cannot be asked: {overview.unreachable}")
    down = [f'node "{node_name(n)}" is {n.status.state}' for n in overview.nodes if n.status.state != "ready"]
    short = []
    for service, running, wanted in service_counts(overview):
        if running < wanted:
            short.append(f'service "{service.spec.name}" has {running} of {wanted} tasks running')
    return [*found, *_some(down, "nodes"), *_some(short, "services")]


def _some(sentences: list[str], what: str) -> list[str]:
    more = len(sentences) - NAMED_MAX
    return [*sentences[:NAMED_MAX], *([f"and {more} more {what}"] if more > 0 else [])]


def service_counts(overview: Overview) -> list[tuple[Service, int, int]]:
    """Each service with how many of its tasks run, and should."""
    by_service: dict[str, list[Task]] = {}
    for task in overview.tasks:
        by_service.setdefault(task.service_id, []).append(task)
    return [(s, *counts(s, by_service.get(s.id, []), overview.down)) for s in overview.services]


def pretty_overview(overview: Overview) -> str:
    """For people."""
    about = overview.about
    lines: list[Line] = [(0, "Node", str(about["node_name"] or about["node_id"]))]
    if overview.remote:
        lines = [(0, "User", f"{about['node_name']} ({about['role']})")]
    if overview.idle:
        lines.append((1, "State", 'in no cluster: start one with "mesh init", or enter one with "mesh join"'))
        lines.append((1, "Version", str(about["version"])))
        return aligned(lines)
    managers = about["managers"]
    assert isinstance(managers, list)
    lines += [] if overview.remote else _machine(about)
    lines += [(0, "Cluster", overview.cluster_name or "unknown")]
    lines += [(1, "ID", str(about["cluster_id"]))] if about["cluster_id"] else []
    lines += [(1, "Managers", ", ".join(managers))]
    if not overview.unreachable:
        states = Counter(node.status.state for node in overview.nodes)
        counted = service_counts(overview)
        full = sum(1 for _, running, wanted in counted if running >= wanted)
        lines.append((1, "Nodes", ", ".join(f"{number} {state}" for state, number in sorted(states.items()))))
        lines.append((1, "Services", f"{full} of {len(counted)} complete"))
        lines.append((1, "Tasks", f"{sum(r for _, r, _ in counted)} running"))
    wrong = problems(overview)
    lines.append((0, "Health", "degraded" if wrong else "good"))
    return aligned(lines) + "".join(f"  {sentence}\n" for sentence in wrong)


def _machine(about: Mapping[str, object]) -> list[Line]:
    return [
        (1, "ID", str(about["node_id"])),
        (1, "Role", str(about["role"])),
        (1, "Session", "connected" if about["connected"] else "not connected"),
        (1, "Executor", str(about["executor"])),
        (1, "Balancer", str(about["balancer"])),
        (1, "Assignments", f"up to {about['sequence']}, {about['repairs']} repairs in the kernel"),
        (1, "Version", str(about["version"])),
    ]


def overview_record(overview: Overview) -> Record:
    """For scripts."""
    return Record(
        {
            **overview.about,
            "cluster_name": overview.cluster_name,
            "nodes": dict(Counter(node.status.state for node in overview.nodes)),
            "services": [
                Record(name=s.spec.name, running_tasks=running, desired_tasks=wanted)
                for s, running, wanted in service_counts(overview)
            ],
            "problems": problems(overview),
            "healthy": not problems(overview),
        }
    )
