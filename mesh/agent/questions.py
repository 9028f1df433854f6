"""What a node can be asked about its own data plane: how a name is answered, and where a connection goes."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import ip_address
from typing import TYPE_CHECKING

from control.model import Network, Task
from dns import wire
from dns.plan import Address
from dns.resolver import Explanation, Line
from mesh.agent.look import look
from mesh.agent.trace import Question, Step, trace
from mesh.vip.plan import Protocol
from overlay.names import router_netns, vxlan_device

if TYPE_CHECKING:
    from mesh.agent.agent import Agent

PROTOCOLS: dict[str, Protocol] = {"tcp": "tcp", "udp": "udp", "sctp": "sctp"}
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

    async def trace(self, source: str, target: str, port: int, protocol: str) -> list[Step]:
        """The way of a connection from a task of this node. Raises QuestionError; OSError of the kernel."""
        if protocol not in PROTOCOLS:
            raise QuestionError(f'"{protocol}" is no protocol: there are {", ".join(PROTOCOLS)}')
        network_id, address = self._place(source)
        plan = self._agent.reconciler.plan
        if plan is None:
            raise QuestionError("this node has not applied a plan yet: try again")
        explanation = None if _is_address(target) else self.resolve(target, "A", source)
        question = Question(source, network_id, address, target, port or None, PROTOCOLS[protocol], explanation)
        network = next(n for n in self._agent.session.assignments.of("network", Network) if n.id == network_id)
        netns = f"{self._agent.view().netns_dir}/{router_netns(network_id)}"
        state = await self._agent.reconciler.in_thread(
            lambda: look(netns, vxlan_device(network.vni), self._agent.reconciler.observe())
        )
        return trace(self._agent.view(), plan, question, state)

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


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def _reversed(name: str, kind: int) -> str:
    """PTR questions may be asked by address."""
    if kind != QTYPES["PTR"]:
        return name
    try:
        return ip_address(name).reverse_pointer
    except ValueError:
        return name
