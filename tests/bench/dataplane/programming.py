"""How long it takes to program: from what a manager or a peer says to the kernel's last acknowledgement, on one node.

    python -m tests.bench.dataplane.programming [SERVICES ...]     # root; 1, 1,000 and 5,000 when none are given

Processor time of the process and of the kernel in its name, so that other work on the machine counts less.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from ipaddress import IPv4Address
from pathlib import Path
from typing import TypeVar

from msgspec.structs import replace

from control.assignment import Endpoint, Key, Peer, Record, ServiceEntry, Settings, encode, key_of
from control.model import Network, NetworkSpec, NodeDescription, VirtualAddress
from control.rpc import control_pb2 as pb
from gossip.delegate import Address
from gossip.endpoints import EndpointChange, Health, Snapshot, TaskState, task_key
from gossip.serf.roster import Kind, MemberChange, SerfMember, Status
from mesh.agent.compile import Compiler, NodePlan
from mesh.agent.rumours import NODE_TAG, RumourBook
from mesh.agent.session import Session
from mesh.agent.view import View
from mesh.vip.kernel import Kernel
from tests.netns.vip_lab import Lab, three_hosts

T = TypeVar("T")
ROUNDS, TASKS, ME, NODES = 7, 5, 2, 50
SERVICES = (1, 1000, 5000)
WEB = Network(id="web", spec=NetworkSpec(name="web"), vni=4096, subnet="10.0.0.0/8", gateway="10.1.0.1")
OTHERS = [number for number in range(1, NODES + 1) if number != ME]


def records(services: int) -> list[Record]:
    """What a node is told of a cluster of that many services, each of 5 tasks on other nodes."""
    told: list[Record] = [Settings(cluster_id="c", cluster_name="c", vxlan_port=4789, heartbeat_period_s=1.0), WEB]
    for number in range(1, NODES + 1):
        address = str(IPv4Address("10.66.0.10") + number)
        told.append(Peer(node_id=f"n{number}", number=number, name=f"h{number}", data_address=address, state="ready"))
    for service in range(services):
        vip = VirtualAddress(network_id="web", address=str(IPv4Address("10.200.0.0") + service))
        told.append(
            ServiceEntry(
                service_id=f"s{service}", name=f"s{service}", endpoint_mode="vip", vips=(vip,), ports=(),
                aliases={"web": ()},
            )
        )  # fmt: skip
        told += [endpoint(service, slot) for slot in range(TASKS)]
    return told


def endpoint(service: int, slot: int) -> Endpoint:
    """A task of a service."""
    number = TASKS * service + slot
    return Endpoint(
        task_id=f"t{service}.{slot}", network_id="web", service_id=f"s{service}", slot=slot,
        node_id=f"n{OTHERS[number % len(OTHERS)]}", address=str(IPv4Address("10.210.0.0") + number),
        hostname=f"s{service}.{slot}", state="ready",
    )  # fmt: skip


def message(sequence: int, news: Sequence[Record], removed: Sequence[Endpoint] = ()) -> bytes:
    """The bytes by which a manager says it, on top of `sequence`."""
    made = pb.Assignments(applies_to=sequence, results_in=sequence + 1)
    for record in news:
        made.records.append(pb.Record(kind=key_of(record)[0], value=encode(record)))
    keys: list[Key] = [key_of(one) for one in removed]
    made.removed.extend(pb.RecordKey(kind=kind, key=key) for kind, key in keys)
    return pb.ManagerMessage(assignments=made).SerializeToString()


class Node:
    """The second host of the lab: what it was told, and what it has made of it."""

    def __init__(self, lab: Lab) -> None:
        """With nothing in its kernel that it knows of."""
        self._host = lab.hosts[ME - 1]
        self._overlay, self._balancer = self._host.kernel, Kernel(host_netns=self._host.netns)
        self._session = Session(f"n{ME}", "", str(self._host.address), NodeDescription())
        self._book, self._compiler = RumourBook(), Compiler()
        self._spoken: dict[str, Snapshot] = {}

    @property
    def sequence(self) -> int:
        """Of the last message."""
        return self._session.assignments.sequence

    def hear(self, data: bytes) -> View:
        """What it knows after a manager's message."""
        self._session.receive(pb.ManagerMessage.FromString(data), 0.0)
        return self.view()

    def overhear(self, event: object) -> View:
        """What it knows after something that gossip says."""
        assert self._book.receive(event)
        return self.view()

    def view(self) -> View:
        """As the agent has it."""
        return View(
            f"n{ME}", str(self._host.address), str(self._host.directory), self._session.assignments, {},
            rumours=self._book.rumours(),
        )  # fmt: skip

    def decide(self, view: View, whole: bool) -> NodePlan:
        """The plan."""
        if whole:
            Compiler().compile(view)
        return self._compiler.compile(view)

    def make(self, plan: NodePlan, whole: bool) -> Counter[str]:
        """Make it true, as the reconciler does."""
        reports = [
            self._overlay.apply(plan.overlay, whole),
            self._balancer.apply(plan.vip, whole),
            self._balancer.prune(plan.vip, whole),
            self._overlay.prune(plan.overlay, whole),
        ]
        assert [error for report in reports for error in report.errors] == []
        return sum((report.changes for report in reports), Counter())

    def speaks(self, one: Endpoint, health: Health) -> EndpointChange:
        """What gossip says when a task's node says something else of it, beside all its other tasks."""
        before = self._spoken.get(one.node_id)
        if before is None:
            tasks = {task_key(e.task_id): TaskState() for e in self._endpoints() if e.node_id == one.node_id}
            before = Snapshot(owner=one.node_id, epoch=1, version=1, tasks=tasks)
            member = SerfMember(
                name=one.node_id, address=Address("10.66.0.99", 7946), tags={NODE_TAG: one.node_id},
                status=Status.ALIVE, versions=b"",
            )  # fmt: skip
            self._book.receive(MemberChange(kind=Kind.JOIN, member=member))
            self._book.receive(EndpointChange(owner=one.node_id, before=None, after=before))
            self.make(self.decide(self.view(), False), False)
        tasks = {**before.tasks, task_key(one.task_id): TaskState(health=health)}
        after = Snapshot(owner=one.node_id, epoch=1, version=before.version + 1, tasks=tasks)
        self._spoken[one.node_id] = after
        return EndpointChange(owner=one.node_id, before=before, after=after)

    def _endpoints(self) -> list[Endpoint]:
        return self._session.assignments.of("endpoint", Endpoint)


def programming(lab: Lab, counts: Sequence[int] = SERVICES) -> None:
    """The table."""
    print(f"\n{'programming, processor ms':36} {'hear':>8} {'compile':>8} {'kernel':>8} {'all':>8}  changes")
    for count in counts:
        _of_so_many(Node(lab), count)


def _of_so_many(node: Node, count: int) -> None:
    one, everything, name = endpoint(count // 2, 0), message(0, records(count)), f"{count:,} x {TASKS}"
    _show(f"{name} from nothing", [_change(node, lambda: node.hear(everything), True)])
    _show(f"{name}, a look at the whole", [_change(node, node.view, True) for _ in range(3)])
    drained = replace(one, state="draining")
    drain, remove, back = [], [], []
    for _ in range(ROUNDS):
        drain.append(_heard(node, [drained]))
        _heard(node, [one])
        remove.append(_heard(node, [], [one]))
        back.append(_heard(node, [one]))
    _show(f"{name}, a backend drained", drain)
    _show(f"{name}, a backend removed", remove)
    _show(f"{name}, a backend added", back)
    took = []
    for _ in range(ROUNDS):
        took.append(_overheard(node, node.speaks(one, Health.UNHEALTHY)))
        _overheard(node, node.speaks(one, Health.READY))
    _show(f"{name}, one unhealthy by gossip", took)


def _overheard(node: Node, event: object) -> tuple[float, ...]:
    return _change(node, lambda: node.overhear(event), False)


def _heard(node: Node, news: Sequence[Record], removed: Sequence[Endpoint] = ()) -> tuple[float, ...]:
    data = message(node.sequence, news, removed)
    return _change(node, lambda: node.hear(data), False)


def _change(node: Node, hear: Callable[[], View], whole: bool) -> tuple[float, ...]:
    """(hear, decide, make, all of it) in milliseconds of processor time, and how much changed in the kernel."""
    view, heard = _timed(hear)
    plan, decided = _timed(lambda: node.decide(view, whole))
    changes, made = _timed(lambda: node.make(plan, whole))
    return heard, decided, made, heard + decided + made, float(changes.total())


def _timed(work: Callable[[], T]) -> tuple[T, float]:
    """(the result, milliseconds of processor time)"""
    began = time.process_time()
    result = work()
    return result, (time.process_time() - began) * 1e3


def _show(name: str, took: Sequence[tuple[float, ...]]) -> None:
    columns = [statistics.median(column) for column in zip(*took, strict=True)]
    print(f"{name:36} " + " ".join(f"{one:8.1f}" for one in columns[:-1]) + f"  {columns[-1]:.0f}", flush=True)


def main() -> None:
    """In a lab of its own."""
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        programming(stack.enter_context(three_hosts(directory)), [int(one) for one in sys.argv[1:]] or SERVICES)


if __name__ == "__main__":
    main()
