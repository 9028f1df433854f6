"""What a node can be asked about its own data plane: how a name is answered to a task, and what names it serves."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import ip_address
from typing import TYPE_CHECKING

from control.model import Task
from dns import wire
from dns.plan import Address
from dns.resolver import Explanation, Line

if TYPE_CHECKING:
    from mesh.agent.agent import Agent

QTYPES = {"A": 1, "NS": 2, "CNAME": 5, "SOA": 6, "PTR": 12, "MX": 15, "TXT": 16, "AAAA": 28, "SRV": 33, "ANY": 255}


class QuestionError(Exception):
    """The question makes no sense here. One sentence."""


class UnknownTaskError(QuestionError):
    """No task of that name, or several."""


class Questions:
    """One agent's answers."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent

    def resolve(self, name: str, qtype: str, task: str) -> Explanation:
        """How `name` is answered to a task of this node, "" for the host itself. Raises QuestionError."""
        kind = QTYPES.get(qtype.upper() or "A")
        if kind is None:
            raise QuestionError(f'"{qtype}" is no type of record: there are {", ".join(QTYPES)}')
        network_id, client = self._place(task) if task else (None, None)
        try:
            return self._agent.name_server.explain(_reversed(name, kind), kind, network_id, client)
        except wire.WireError as error:
            raise QuestionError(f'"{name[:255]}" is no name: {error}') from error

    def names(self) -> list[Line]:
        """Every name that is served here."""
        return self._agent.name_server.dump()

    def _place(self, reference: str) -> tuple[str, Address]:
        """The network on which a task asks, and its address there."""
        task_id = find_task(reference, self._agent.tasks.known())
        task = self._agent.session.assignments.task(task_id)
        if task is None or not task.addresses:
            raise QuestionError(f'task "{reference}" is on no network: it has no name server of ours')
        return task.addresses[0].network_id, ip_address(task.addresses[0].address)


def find_task(reference: str, tasks: Mapping[str, Task | None]) -> str:
    """The id of the task that `reference` (id, its beginning, or <service>.<slot>) means. Raises UnknownTaskError."""
    if reference in tasks:
        return reference
    found = sorted(
        task_id
        for task_id, task in tasks.items()
        if (reference and task_id.startswith(reference))
        or (task is not None and f"{task.service_name}.{task.slot}" == reference)
    )
    if len(found) > 1:
        raise UnknownTaskError(f'"{reference}" names several tasks on this node: {", ".join(found)}')
    if not found:
        raise UnknownTaskError(f'no task "{reference}" runs on this node')
    return found[0]


def _reversed(name: str, kind: int) -> str:
    """PTR questions may be asked by address."""
    if kind != QTYPES["PTR"]:
        return name
    try:
        return ip_address(name).reverse_pointer
    except ValueError:
        return name
