"""How long it takes to program: from what the managers say to what the kernel holds, on one node."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from ipaddress import IPv4Address
from typing import TypeVar

from msgspec.structs import replace

from control.assignment import Endpoint, Peer, Record, ServiceEntry, Settings
from control.model import Network, NetworkSpec, VirtualAddress
from mesh.agent.compile import compile  # noqa: A004 - the architecture's name for it
from mesh.agent.view import Assignments, View
from mesh.vip.kernel import Kernel
from mesh.vip.plan import VipPlan
from tests.netns.vip_lab import Lab

T = TypeVar("T")
ROUNDS, TASKS, ME = 7, 5, 2
WEB = Network(id="web", spec=NetworkSpec(name="web"), vni=4096, subnet="10.0.0.0/8", gateway="10.1.0.1")


def records(services: int) -> list[Record]:
    """What a node is told of a cluster of that many services, each of 5 tasks on other nodes."""
    told: list[Record] = [Settings(cluster_id="c", cluster_name="c", vxlan_port=4789, heartbeat_period_s=1.0), WEB]
    for number in (1, 2, 3):
        address = f"10.66.0.1{number}"
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
    address = str(IPv4Address("10.210.0.0") + TASKS * service + slot)
    return Endpoint(
        task_id=f"t{service}.{slot}", network_id="web", service_id=f"s{service}", slot=slot,
        node_id=f"n{1 + slot % 2 * 2}", address=address, hostname=f"s{service}.{slot}", state="ready",
    )  # fmt: skip


class Node:
    """The second host of the lab, and what it was told."""

    def __init__(self, lab: Lab) -> None:
        """With nothing in its kernel that it knows of."""
        self._host = lab.hosts[ME - 1]
        self._kernel = Kernel(host_netns=self._host.netns)
        self._told = Assignments()

    def hear(self, news: list[Record], removed: list[Endpoint]) -> VipPlan:
        """What the news make of its plan."""
        keys = [("endpoint", f"{one.task_id}/{one.network_id}") for one in removed]
        told = self._told
        self._told = told.updated(told.sequence, told.sequence + 1, news, keys)  # type: ignore[arg-type]
        view = View(f"n{ME}", str(self._host.address), str(self._host.directory), self._told, {})
        return compile(view).vip

    def make(self, plan: VipPlan) -> None:
        """Make it true."""
        assert self._kernel.apply(plan).errors == []


def programming(lab: Lab) -> None:
    """The table."""
    print(f"\n{'programming, processor ms':32} {'compile':>8} {'kernel':>8} {'wall':>8}")
    first = endpoint(7, 0)
    changes: dict[str, tuple[list[Record], list[Endpoint]]] = {
        "drained": ([replace(first, state="draining")], []),
        "removed": ([], [first]),
    }
    for count in (10, 1000, 5000):
        node = Node(lab)
        _show(f"{count} x {TASKS} from nothing", [_change(node, records(count), [])])
        for name, change in changes.items():
            took = []
            for _ in range(ROUNDS):
                took.append(_change(node, *change))
                _change(node, [first], [])
            _show(f"{count} x {TASKS}, one backend {name}", took)


def _change(node: Node, news: list[Record], removed: list[Endpoint]) -> tuple[float, float, float]:
    (plan, decided), wall_s = _timed(lambda: node.hear(news, removed)), time.perf_counter()
    _, made = _timed(lambda: node.make(plan))
    return decided, made, (time.perf_counter() - wall_s) * 1e3


def _timed(work: Callable[[], T]) -> tuple[T, float]:
    """(the result, milliseconds of processor time)"""
    began = time.process_time()
    result = work()
    return result, (time.process_time() - began) * 1e3


def _show(name: str, took: list[tuple[float, float, float]]) -> None:
    decided, made, wall = (statistics.median(column) for column in zip(*took, strict=True))
    print(f"{name:32} {decided:8.1f} {made:8.1f} {wall:8.1f}")
