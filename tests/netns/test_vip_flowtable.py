"""The fast path of nftables: who takes it, who does not, and what becomes of those on it. On a kernel that has it.

What the kernel holds is read in its own words (/proc/net/nf_conntrack, nft), not through the code under test.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from mesh.vip.kernel import Kernel, flowtable_lack
from mesh.vip.namespace import visit
from mesh.vip.plan import DEFAULT_IDLE_S, RouterPlan
from overlay import names
from tests.netns.vip_lab import Lab, connected, talk, udp
from tests.netns.world import Host, inside

pytestmark = pytest.mark.root

PORT, UDP_PORT = 8080, 53
# Of conditions that come to pass within seconds in an idle machine.
PATIENCE_S = 60.0
# Linux sends its first keepalive after two hours, then nine, 75 s apart (tcp(7)).
KEEPALIVE_S = 7200 + 9 * 75
BESIDE = "table inet beside { chain pass { type filter hook forward priority -500; counter; }; }"


def tracked(router: str, source_port: int) -> list[str]:
    """The lines of the router's connections from a client's port."""
    text = visit(router, lambda _: Path("/proc/thread-self/net/nf_conntrack").read_text())
    return [line for line in text.splitlines() if f"sport={source_port} " in line.partition("[")[0]]


def is_fast(router: str, source_port: int) -> bool:
    return any("[OFFLOAD]" in line for line in tracked(router, source_port))


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def devices(router: str) -> set[str]:
    """Those of the router's flowtable."""
    found = re.search(r"devices = \{([^}]*)\}", inside(router, "nft", "list", "flowtables"))
    return set(found[1].replace(",", " ").split()) if found else set()


def expected(lab: Lab, host: Host, *more: str) -> set[str]:
    of_tasks = {names.veth_device(task.address) for task in host.tasks["web"]}
    return {"up0", names.vxlan_device(lab.nets["web"].vni), *of_tasks, *more}


def only(lab: Lab, task: str) -> None:
    lab.nets["web"].backends = {lab.address(task): 1}
    lab.apply()


@contextlib.contextmanager
def passed(router: str) -> Iterator[Callable[[], int]]:
    """How many packets were forwarded by way of the rules."""
    inside(router, "nft", BESIDE)
    try:
        yield lambda: int(re.findall(r"packets (\d+)", inside(router, "nft", "list", "table", "inet", "beside"))[0])
    finally:
        inside(router, "nft", "delete", "table", "inet", "beside")


def test_this_kernel_has_it() -> None:
    assert flowtable_lack() == ""
    assert Kernel(balancer="nftables").balancer_reason.endswith("established connections pass by a flowtable")


def test_a_connection_between_hosts_passes_no_rule_once_it_is_established_and_keeps_its_ends(lab: Lab) -> None:
    only(lab, "web1")
    here, there = lab.router(lab.hosts[2]), lab.router(lab.hosts[0])
    with connected(lab.netns("client3"), lab.nets["web"].vip) as one, passed(here) as mine, passed(there) as theirs:
        port = one.getsockname()[1]
        assert talk(one).task == "web1"
        until(lambda: is_fast(here, port) and is_fast(there, port))
        talk(one)  # whatever was under way before has passed
        before = mine(), theirs()
        assert {talk(one) for _ in range(5)} == {talk(one)}
        assert talk(one).client == str(lab.address("client3"))
        assert (mine(), theirs()) == before
    until(lambda: not is_fast(here, port))  # its end takes the whole way


def test_what_goes_back_by_another_node_stays_out_at_the_task_and_is_answered(lab: Lab) -> None:
    only(lab, "web1")
    entry, there = lab.router(lab.hosts[2]), lab.router(lab.hosts[0])
    with connected(lab.outside, lab.hosts[2].address, PORT) as one:
        port = one.getsockname()[1]
        for _ in range(5):
            assert talk(one).task == "web1"
        until(lambda: is_fast(entry, port))
        (line,) = tracked(there, port)
        assert "[ASSURED] mark=3 " in line
        assert talk(one).task == "web1"


def test_a_flow_of_datagrams_on_the_fast_path_moves_at_once_when_its_backend_goes(lab: Lab) -> None:
    only(lab, "web1")
    router = lab.router(lab.hosts[2])
    with udp(lab.netns("client3")) as flow:
        flow.connect((str(lab.nets["web"].vip), UDP_PORT))
        port = flow.getsockname()[1]

        def settled() -> bool:
            assert talk(flow).task == "web1"
            return is_fast(router, port)

        until(settled)
        only(lab, "web2")
        assert talk(flow).task == "web2"


def test_a_silent_connection_comes_back_established_and_outlives_the_keepalive(lab: Lab) -> None:
    only(lab, "web1")
    router, setting = lab.router(lab.hosts[2]), "net.netfilter.nf_flowtable_tcp_timeout"
    before = inside(router, "sysctl", "-n", setting).strip()
    inside(router, "sysctl", "-qw", f"{setting}=2")
    try:
        with connected(lab.netns("client3"), lab.nets["web"].vip) as one:
            port = one.getsockname()[1]
            talk(one)
            until(lambda: not is_fast(router, port))
            (line,) = tracked(router, port)
            found = re.search(r" tcp +6 (\d+) ESTABLISHED ", line)
            assert found, line
            assert KEEPALIVE_S < int(found[1]) <= DEFAULT_IDLE_S - 2
            assert talk(one).task == "web1"
            assert is_fast(router, port)
    finally:
        inside(router, "sysctl", "-qw", f"{setting}={before}")


def test_a_new_process_adopts_it_and_a_device_that_others_took_out_or_put_in_is_put_right(lab: Lab) -> None:
    host = lab.hosts[2]
    router = lab.router(host)
    with connected(lab.netns("client3"), lab.nets["web"].vip) as one:
        port = one.getsockname()[1]
        talk(one)
        fresh = Kernel(host_netns=host.netns)
        for _ in range(2):
            report = fresh.apply(lab.plan(host))
            assert (dict(report.changes), report.errors) == ({}, [])
        assert is_fast(router, port)
        assert devices(router) == expected(lab, host)
        for verb, device in (("delete", "up0"), ("add", "lo")):
            inside(
                router,
                "nft",
                f"{verb} flowtable inet mesh known {{ hook ingress priority 0; devices = {{ {device} }}; }}",
            )
            report = fresh.apply(lab.plan(host))
            assert (dict(report.changes), report.errors) == ({"vip device": 1}, [])
            assert devices(router) == expected(lab, host)
        assert talk(one)


def test_the_device_of_a_task_takes_part_while_the_task_is_there(lab: Lab) -> None:
    host, apply_overlay = lab.hosts[2], lab.world.apply
    router, kernel = lab.router(host), lab.kernels[host.number]
    made = lab.task(host, "web", "10.1.0.55", "passing")
    device = names.veth_device(made.address)
    report = kernel.apply(lab.plan(host), whole=False)
    assert report.errors == []  # it is not there yet
    apply_overlay()
    lab.apply()
    assert devices(router) == expected(lab, host) >= {device}
    with connected(made.netns, lab.nets["web"].vip) as one:
        talk(one)
        assert is_fast(router, one.getsockname()[1])
    host.tasks["web"].remove(made)
    apply_overlay()
    for _ in range(2):
        report = kernel.apply(lab.plan(host), whole=False)
        assert (report.changes["vip device"], report.errors) == (0, [])  # the kernel did it
    assert devices(router) == expected(lab, host)


def test_of_a_backend_that_changes_the_flowtable_is_not_asked(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    host = lab.hosts[2]
    kernel = lab.kernels[host.number]
    kernel.apply(lab.plan(host))
    lab.nets["web"].backends[IPv4Address("10.1.0.77")] = 1
    monkeypatch.setattr("mesh.vip.namespace.Namespace.devices_of", None)
    report = kernel.apply(lab.plan(host), whole=False)
    assert (report.changes["vip device"], report.errors) == (0, [])


def test_where_connections_may_be_silent_for_longer_than_it_knows_there_is_none(lab: Lab) -> None:
    host = lab.hosts[2]
    router, kernel, plan = lab.router(host), lab.kernels[host.number], lab.plan(host)

    def asleep(some: RouterPlan) -> RouterPlan:
        return replace(some, services=tuple(replace(one, idle_s=86_400.0) for one in some.services))

    patient = replace(plan, routers=tuple(map(asleep, plan.routers)))
    with connected(lab.netns("client3"), lab.nets["web"].vip) as one:
        port = one.getsockname()[1]
        talk(one)
        assert is_fast(router, port)
        assert kernel.apply(patient).errors == []
        assert inside(router, "nft", "list", "flowtables").count("flowtable") == 0
        until(lambda: not is_fast(router, port))
        assert talk(one)
        assert not is_fast(router, port)
        assert kernel.apply(plan).errors == []
        assert devices(router) == expected(lab, host)
        assert talk(one)
        assert is_fast(router, port)
