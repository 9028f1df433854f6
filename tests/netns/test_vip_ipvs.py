"""IPVS as the balancer, on a kernel that has it: what it holds, its repair, its adoption, and what only it can do.

What the kernel holds is read in the kernel's own words (/proc/net/ip_vs), not through the code under test.
"""

from __future__ import annotations

import re
import socket
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

import pytest

from mesh.vip.ipvs import SYSCTLS, Door, probe
from mesh.vip.ipvs_plan import (
    AF_INET,
    AF_INET6,
    FLAG_FALLBACK,
    FLAG_PERSISTENT,
    DeleteBackend,
    DeleteService,
    Destination,
    PutBackend,
    PutService,
    Service,
    ServiceId,
)
from mesh.vip.kernel import Kernel
from mesh.vip.namespace import visit
from mesh.vip.plan import Backend, Scheduler, VirtualService
from tests.netns.vip_lab import (
    OTHER_TCP_PORT,
    TCP_PORT,
    Lab,
    ask,
    ask_udp,
    connected,
    default_nets,
    talk,
    tcp,
    udp,
)
from tests.netns.world import inside

pytestmark = pytest.mark.root

PORT = 8080


def vip(lab: Lab) -> IPv4Address:
    return lab.nets["web"].vip


def held(netns: str) -> dict[str, set[str]]:
    """The IPVS table of a namespace: "FWM 0A0100C8 rr" -> {"0A01000B:0000 Masq 1", ...}."""
    text = visit(netns, lambda _: Path("/proc/thread-self/net/ip_vs").read_text())
    found: dict[str, set[str]] = {}
    for line in text.splitlines()[3:]:
        words = line.split()
        if words[0] == "->":
            found[list(found)[-1]].add(" ".join(words[1:4]))
        else:
            found[" ".join(words)] = set()
    return found


def do(netns: str, *operations: PutService | DeleteService | PutBackend | DeleteBackend) -> None:
    """Change the table behind the daemon's back."""
    with_door(netns, lambda door: door.do(list(operations)))


def with_door(netns: str, work: Callable[[Door], object]) -> None:
    family = probe(netns)

    def enter(_: object) -> None:
        with Door(family) as door:
            work(door)

    visit(netns, enter)


def test_the_kernel_is_found_to_have_it_and_says_so(lab: Lab) -> None:
    kernel = Kernel(host_netns=lab.hosts[0].netns, balancer="auto")
    assert (kernel.balancer.name, kernel.balancer_reason) == ("ipvs", "ipvs, which this kernel has")


def test_a_vip_is_a_service_by_mark_and_a_published_port_one_by_address(lab: Lab) -> None:
    lab.nets["web"].backends[lab.address("web2")] = 0
    lab.apply()
    tasks = {"0A01000B", "0A01000C"}
    found = held(lab.router(lab.hosts[2]))
    assert {line.split()[0] for line in found} == {"FWM", "TCP", "UDP"}
    for line, backends in found.items():
        target = {"FWM": "0000", "TCP": "0050", "UDP": "0035"}[line.split()[0]]
        assert backends == {f"{task}:{target} Masq {1 if task == '0A01000B' else 0}" for task in tasks}
    assert "FWM 0A0100C8 rr" in found


BY_MARK = ServiceId(AF_INET, mark=int(IPv4Address("10.1.0.200")))
TASK = Destination(IPv4Address("10.1.0.11").packed, 0)
STRANGER = Destination(IPv4Address("10.1.0.99").packed, 0)
DAMAGES: dict[str, Callable[[str], object]] = {
    "a service deleted": lambda router: do(router, DeleteService(BY_MARK)),
    "a backend deleted": lambda router: do(router, DeleteBackend(BY_MARK, TASK)),
    "a backend drained": lambda router: do(router, PutBackend(BY_MARK, TASK, 0, new=False)),
    "a foreign backend": lambda router: do(router, PutBackend(BY_MARK, STRANGER, 5, new=True)),
    "a foreign service": lambda router: do(router, PutService(ServiceId(AF_INET, 77), Service("wrr", 0, 0), new=True)),
    "another scheduler": lambda router: do(router, PutService(BY_MARK, Service("lc", 0, 0), new=False)),
    "the whole table": lambda router: with_door(router, lambda door: door.empty()),
    "the marks": lambda router: inside(router, "nft", "flush map inet mesh marks"),
    "the time-out": lambda router: with_door(router, lambda door: door.tune(900)),
    **{
        name: lambda router, name=name, value=value: inside(
            router, "sysctl", "-qw", f"net.ipv4.vs.{name}={1 - int(value)}"
        )
        for name, value in SYSCTLS.items()
    },
}


@pytest.mark.parametrize("what", DAMAGES)
def test_what_others_break_in_ipvs_is_repaired(lab: Lab, what: str) -> None:
    host = lab.hosts[2]
    router = lab.router(host)
    before = held(router)
    DAMAGES[what](router)
    report = lab.kernels[host.number].apply(lab.plan(host))
    assert report.errors == []
    assert report.changes.total() > 0
    assert held(router) == before
    assert {ask(lab.netns("client3"), vip(lab)).task for _ in range(4)} == {"web1", "web2"}
    assert not lab.kernels[host.number].apply(lab.plan(host)).changes


def test_idle_connections_live_longer_than_the_kernels_keepalive(lab: Lab) -> None:
    keepalive = int(Path("/proc/sys/net/ipv4/tcp_keepalive_time").read_text())
    seen: list[int] = []
    with_door(lab.router(lab.hosts[0]), lambda door: seen.append(door.idle_s()))
    assert seen[0] > keepalive


def test_a_fresh_process_recognises_its_services_after_a_foreign_flush_and_cuts_nobody(lab: Lab) -> None:
    host = lab.hosts[2]
    with (
        connected(lab.netns("client3"), vip(lab)) as first,
        connected(lab.outside, host.address, PORT) as second,
        udp(lab.netns("client3")) as third,
    ):
        third.connect((str(vip(lab)), 53))
        before = [talk(one).task for one in (first, second, third)]
        table = held(lab.router(host))
        inside(lab.router(host), "nft", "flush", "ruleset")
        fresh = Kernel(host_netns=host.netns)
        assert fresh.apply(lab.plan(host)).errors == []
        assert held(lab.router(host)) == table
        assert [talk(one).task for one in (first, second, third)] == before
    assert ask(lab.netns("client3"), vip(lab))


def test_a_task_and_then_its_vip_are_reached_from_one_client_port(lab: Lab) -> None:
    """IPVS must not take the answers of the connection that it did not make."""
    lab.nets["web"].backends = {lab.address("web2"): 1}
    lab.apply()
    with tcp(lab.netns("client1")) as first, tcp(lab.netns("client1")) as second:
        for one, to in ((first, lab.address("web2")), (second, vip(lab))):
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            one.bind((str(lab.address("client1")), 40003))
            one.connect((str(to), TCP_PORT))
        for one in (first, second, first, second):
            assert talk(one).task == "web2"


@pytest.mark.parametrize("scheduler", ["rr", "wrr", "lc", "wlc", "sh", "mh"])
def test_every_scheduler_balances_and_passes_over_drained_backends(lab: Lab, scheduler: Scheduler) -> None:
    web = lab.nets["web"]
    web.scheduler = scheduler
    lab.apply()
    assert f"FWM 0A0100C8 {scheduler}" in held(lab.router(lab.hosts[2]))
    assert {ask(lab.netns("client3"), vip(lab)).task for _ in range(3)} <= {"web1", "web2"}
    for drained, other in (("web1", "web2"), ("web2", "web1")):
        web.backends = {lab.address(drained): 0, lab.address(other): 1}
        lab.apply()
        assert {ask(lab.netns("client3"), vip(lab)).task for _ in range(3)} == {other}


def test_new_connections_go_where_the_fewest_are_open(lab: Lab) -> None:
    lab.nets["web"].scheduler = "lc"
    lab.apply()
    with connected(lab.netns("client3"), vip(lab)) as first, connected(lab.netns("client3"), vip(lab)) as second:
        assert {talk(first).task, talk(second).task} == {"web1", "web2"}


def test_hashing_sends_a_client_to_one_backend_on_all_ports_of_all_hosts(lab: Lab) -> None:
    lab.nets["web"].scheduler = "mh"
    lab.apply()
    seen = {ask(lab.netns("client3"), vip(lab), port).task for port in (TCP_PORT, OTHER_TCP_PORT) for _ in range(2)}
    assert len(seen) == 1
    assert len({ask(lab.outside, host.address, PORT).task for host in lab.hosts}) == 1


def test_a_client_with_affinity_stays_and_leaves_a_drained_backend(lab: Lab) -> None:
    lab.nets["web"].affinity_s = 600
    lab.apply()
    for question in (
        lambda: ask(lab.netns("client3"), vip(lab)),
        lambda: ask_udp(lab.outside, lab.hosts[0].address, PORT),
    ):
        lab.nets["web"].backends = default_nets()["web"].backends
        lab.apply()
        (task,) = {question().task for _ in range(4)}
        lab.nets["web"].backends = {lab.address(name): 0 if name == task else 1 for name in ("web1", "web2")}
        lab.apply()
        assert {question().task for _ in range(3)} == {"web1", "web2"} - {task}


def test_a_change_among_a_thousand_services_is_a_change_of_few(lab: Lab) -> None:
    host = lab.hosts[0]
    kernel = lab.kernels[host.number]
    tasks = tuple(Backend(IPv4Address("10.1.0.10") + number) for number in range(5))
    many = tuple(VirtualService(IPv4Address("10.200.0.0") + n, None, None, None, tasks) for n in range(1000))
    report = kernel.apply(lab.with_services(host, many))
    assert report.errors == []
    assert report.changes["vip service"] == 6000
    shrunk = (*many[:7], replace(many[7], backends=tasks[1:]), *many[8:])
    report = kernel.apply(lab.with_services(host, shrunk))
    assert (report.errors, dict(report.changes)) == ([], {"vip service": 1})
    assert not Kernel(host_netns=host.netns).apply(lab.with_services(host, shrunk)).changes
    assert ask(lab.netns("client1"), vip(lab))


def test_connections_live_through_a_change_to_ipvs_and_a_change_away_leaves_nothing_in_it(lab: Lab) -> None:
    host = lab.hosts[2]
    router = lab.router(host)
    plan = lab.plan(host)
    assert Kernel(host_netns=host.netns, balancer="nftables").apply(plan).errors == []
    assert held(router) == {}
    assert re.search(r"map any_to", inside(router, "nft", "list", "table", "inet", "mesh"))
    with connected(lab.netns("client3"), vip(lab)) as connection:
        task = talk(connection).task
        lab.kernels.clear()
        lab.apply()
        assert held(router)
        assert talk(connection).task == task
    assert Counter(ask(lab.netns("client3"), vip(lab)).task for _ in range(4)) == {"web1": 2, "web2": 2}


@pytest.mark.parametrize(
    "id_", [ServiceId(AF_INET6, mark=0x40000007), ServiceId(AF_INET6, 0, 17, IPv6Address("fd00::2").packed, PORT)]
)
def test_services_of_ipv6_are_held_and_read_back(lab: Lab, id_: ServiceId) -> None:
    router = lab.router(lab.hosts[0], "red")
    task = Destination(IPv6Address("fd00::11").packed, 53 if id_.port else 0)
    wanted = Service("mh", FLAG_PERSISTENT | FLAG_FALLBACK, 600, {task: 3})
    do(router, PutService(id_, wanted, new=True), PutBackend(id_, task, 3, new=True))
    seen: dict[ServiceId, Service] = {}
    with_door(router, lambda door: seen.update(door.read()))
    assert seen[id_] == wanted
    lab.apply()
    assert not any(line.startswith("UDP") or "40000007" in line for line in held(router))


def test_an_emptied_router_has_no_services(lab: Lab) -> None:
    host = lab.hosts[0]
    plan = lab.plan(host)
    red = lab.router(host, "red")
    smaller = replace(plan, routers=tuple(r for r in plan.routers if r.netns != red))
    assert held(red)
    assert lab.kernels[host.number].prune(smaller).errors == []
    assert held(red) == {}
