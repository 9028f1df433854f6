"""The balancers made true on a real kernel: repair, adoption, removal, what belongs to others, many services."""

from __future__ import annotations

import os
from dataclasses import replace
from ipaddress import IPv4Address

import pytest

from mesh.vip.kernel import Kernel
from mesh.vip.namespace import settle, visit
from mesh.vip.nft import Library, Nft, Program, VipError
from mesh.vip.plan import Backend, Observed, PublishedPort, VipPlan, VirtualService
from overlay import names
from tests.netns.vip_lab import Lab, ask, connected, talk, udp
from tests.netns.world import Host, inside, run

pytestmark = pytest.mark.root


def state(lab: Lab, host: Host) -> list[str]:
    """All that we may have left anywhere on a host, in words."""
    looks = (
        ("nft", "list", "ruleset"),
        ("ip", "route", "show", "table", "all", "proto", "110"),
        ("ip", "rule", "show"),
    )
    places = [host.netns, *(lab.router(host, name) for name in lab.nets)]
    return [inside(place, *look) for place in places for look in looks]


DAMAGES = {
    "the whole rule set of the router": ("router", "nft flush ruleset"),
    "the whole rule set of the host": ("host", "nft flush ruleset"),
    "the table": ("router", "nft delete table inet mesh"),
    "a chain's rules": ("router", "nft flush chain inet mesh balance"),
    "one shared chain's rules": ("router", "nft flush chain inet mesh any2_8"),
    "a map": ("router", "nft flush map inet mesh any_to"),
    "one element": ("router", "nft delete element inet mesh any { 10.1.0.200 }"),
    "a foreign rule in front": ("router", "nft insert rule inet mesh pass drop"),
    "a foreign rule behind": ("host", "nft add rule inet mesh leave masquerade"),
    "a foreign chain": ("router", "nft add chain inet mesh foreign"),
    "a foreign map in use": (
        "router",
        """nft add map inet mesh m { type ipv4_addr : verdict; }; add chain inet mesh foreign
        add rule inet mesh foreign ip daddr vmap @m; add element inet mesh m { 1.2.3.4 : goto refused }""",
    ),
    "a foreign element": ("router", "nft add element inet mesh any { 10.1.0.201 : goto any1 }"),
    "another slot": ("router", "nft add element inet mesh any_to { 10.1.0.200 . 7 : 10.1.0.99 }"),
    "a map of another type": (
        "router",
        "nft delete table inet mesh; add table inet mesh; add map inet mesh any { type ipv4_addr : ipv4_addr; }",
    ),
    "a chain of another priority": (
        "router",
        """nft delete chain inet mesh note
        add chain inet mesh note { type filter hook prerouting priority 5; policy accept; }""",
    ),
    "a policy": ("router", "nft add chain inet mesh pass { policy drop; }"),
    "a sleeping table": ("router", "nft add table inet mesh { flags dormant; }"),
    "the VIPs' routes": ("router", "ip route flush table local proto 110"),
    "the ways back": ("router", "ip route flush table 110001"),
    "the rules": ("router", "ip rule del priority 1001"),
    "the rule that skips": ("router", "ip rule del priority 1000"),
}


@pytest.mark.parametrize("what", DAMAGES)
def test_what_others_break_is_repaired(lab: Lab, what: str) -> None:
    place, command = DAMAGES[what]
    host = lab.hosts[2]
    before = state(lab, host)
    netns = host.netns if place == "host" else lab.router(host)
    program, _, rest = command.partition(" ")
    inside(netns, program, *([rest] if program == "nft" else rest.split()))
    assert state(lab, host) != before
    report = lab.kernels[host.number].apply(lab.plan(host))
    assert report.errors == []
    assert sum(report.changes.values()) > 0
    assert [sorted(text.split()) for text in state(lab, host)] == [sorted(text.split()) for text in before]
    assert ask(lab.netns("client3"), lab.nets["web"].vip).task in {"web1", "web2"}
    assert ask(lab.outside, host.address, 8080).task in {"web1", "web2"}
    assert not lab.kernels[host.number].apply(lab.plan(host)).changes


def test_a_change_looks_at_the_routers_it_concerns_and_the_whole_at_all(lab: Lab) -> None:
    host, other = lab.hosts[0], next(name for name in lab.nets if name != "web")
    kernel, first = lab.kernels[host.number], lab.plan(host)
    assert kernel.apply(first, whole=False).changes == {}
    inside(lab.router(host, other), "nft", "flush", "ruleset")
    routers = tuple(
        replace(one, services=tuple(replace(s, idle_s=4000.0 + s.idle_s) for s in one.services))
        if one.netns == lab.router(host, "web")
        else one
        for one in first.routers
    )
    changed = replace(first, routers=routers)
    assert kernel.apply(changed, whole=False).errors == kernel.prune(changed, whole=False).errors == []
    assert inside(lab.router(host, other), "nft", "list", "ruleset") == "", "nothing of its plan has changed"
    assert kernel.apply(changed).changes["vip table"] == 1
    gone = replace(first, routers=tuple(one for one in routers if one.netns != lab.router(host, other)))
    assert kernel.apply(gone, whole=False).errors == kernel.prune(gone, whole=False).errors == []
    assert "mesh" not in inside(lab.router(host, other), "nft", "list", "ruleset"), "it has left the plan"


def test_open_connections_live_through_a_foreign_flush_that_is_repaired(lab: Lab) -> None:
    host = lab.hosts[2]
    with (
        connected(lab.netns("client3"), lab.nets["web"].vip) as first,
        connected(lab.outside, host.address, 8080) as second,
        udp(lab.netns("client3")) as third,
    ):
        third.connect((str(lab.nets["web"].vip), 53))
        before = [talk(one).task for one in (first, second, third)]
        inside(lab.router(host), "nft", "flush", "ruleset")
        inside(host.netns, "nft", "flush", "ruleset")
        lab.apply()
        assert [talk(one).task for one in (first, second, third)] == before


def test_a_flow_that_slipped_through_while_the_table_was_gone_is_balanced_afterwards(lab: Lab) -> None:
    router = lab.router(lab.hosts[2])
    with udp(lab.netns("client3")) as flow:
        flow.connect((str(lab.nets["web"].vip), 53))
        inside(router, "nft", "flush", "ruleset")
        # Something in the router must count connections, or none is tracked that could be in the way.
        inside(router, "nft", "add table ip other; add chain ip other c { type nat hook postrouting priority 0; }")
        with pytest.raises(ConnectionRefusedError):
            talk(flow)
        lab.apply()
        assert talk(flow).task in {"web1", "web2"}
    inside(router, "nft", "delete table ip other")


def test_the_tables_of_others_are_untouched_and_cost_nothing(lab: Lab) -> None:
    host = lab.hosts[0]
    other = "table inet others {\n\tchain c {\n\t\ttype filter hook input priority filter; policy accept;\n\t}\n}\n"
    inside(host.netns, "nft", other)
    report = lab.kernels[host.number].apply(lab.plan(host))
    assert not report.changes
    lab.kernels[host.number].prune(VipPlan((), ()))
    assert inside(host.netns, "nft", "list", "ruleset") == other
    inside(host.netns, "nft", "delete table inet others")


def test_an_empty_plan_leaves_nothing_behind(lab: Lab) -> None:
    host = lab.hosts[1]
    kernel = lab.kernels[host.number]
    assert kernel.prune(VipPlan((), ())).errors == []
    for text in state(lab, host):
        assert "mesh" not in text
        assert "110" not in text
    assert not kernel.prune(VipPlan((), ())).changes
    rules = inside(lab.router(host), "ip", "rule", "show")
    assert len(rules.splitlines()) == 3


def test_a_fresh_process_removes_what_its_predecessor_left_in_the_host(lab: Lab) -> None:
    host = lab.hosts[1]
    with connected(lab.outside, host.address, 8080) as connection:
        assert talk(connection)
        report = Kernel(host_netns=host.netns).prune(VipPlan((), ()))
        assert report.errors == []
        assert inside(host.netns, "nft", "list", "ruleset") == ""
    assert report.changes["vip connection"] >= 1


def test_the_tables_of_the_version_before_ipv6_are_removed_and_connections_live(lab: Lab) -> None:
    host = lab.hosts[2]
    former = """add table ip mesh; add set ip mesh hairpin { type ipv4_addr . ipv4_addr; }
        add chain ip mesh balance { type nat hook prerouting priority -100; }
        add rule ip mesh balance ip daddr 10.1.0.200 dnat to 10.1.0.11"""
    for place in (host.netns, lab.router(host)):
        inside(place, "nft", former)
    inside(lab.router(host, "red"), "nft", "add table ip mesh")  # somebody else's, for all we know
    lab.nets["web"].backends = {lab.address("web1"): 1}
    lab.apply()
    with connected(lab.netns("client3"), lab.nets["web"].vip) as connection:
        assert talk(connection).task == "web1"
        lab.kernels[host.number] = fresh = Kernel(host_netns=host.netns)
        assert fresh.apply(lab.plan(host)).errors == []
        assert fresh.prune(lab.plan(host)).changes["vip table"] == 2
        assert not fresh.prune(lab.plan(host)).changes
        assert talk(connection).task == "web1"
    for place in (host.netns, lab.router(host)):
        assert "table ip mesh" not in inside(place, "nft", "list", "tables")
    inside(lab.router(host, "red"), "nft", "delete table ip mesh")


def test_a_router_that_leaves_the_plan_is_emptied(lab: Lab) -> None:
    host = lab.hosts[0]
    kernel, plan = lab.kernels[host.number], lab.plan(host)
    red = lab.router(host, "red")
    smaller = replace(plan, routers=tuple(r for r in plan.routers if r.netns != red))
    for report in (kernel.apply(smaller), kernel.prune(smaller)):
        assert report.errors == []
    assert inside(red, "nft", "list", "ruleset") == ""
    assert inside(red, "ip", "route", "show", "table", "all", "proto", "110") == ""


def test_a_lost_router_is_told_and_does_not_keep_the_others_from_being_made(lab: Lab) -> None:
    host = lab.hosts[0]
    kernel, plan = lab.kernels[host.number], lab.plan(host)
    lost = replace(plan.routers[0], netns="/run/netns/mesh-not-there")
    inside(lab.router(host, "web"), "nft", "flush", "ruleset")
    broken = replace(plan, routers=(lost, *plan.routers))
    report = kernel.apply(broken)
    assert report.errors == ["cannot balance in the router /run/netns/mesh-not-there: No such file or directory"]
    assert ask(lab.netns("client1"), lab.nets["web"].vip)
    plain_file = replace(lost, netns="/etc/hostname")
    report = kernel.apply(replace(plan, routers=(plain_file, *plan.routers)))
    assert report.errors == ["cannot balance in the router /etc/hostname: it is not a network namespace"]
    assert kernel.prune(plan).errors == []


def test_a_router_made_anew_under_the_same_name_is_filled_and_the_old_one_is_not_held(lab: Lab) -> None:
    """Nothing of ours may keep a deleted namespace alive: its VXLAN device would hold the VNI."""
    name = f"mv{os.getpid()}r"
    router = replace(lab.plan(lab.hosts[0]).routers[0], netns=f"/run/netns/{name}", return_paths=())

    def make() -> None:
        run("ip", "netns", "add", name)
        for device in (router.vxlan_device, router.uplink_device):
            inside(router.netns, "ip", "link", "add", device, "type", "veth", "peer", "name", f"{device}p")

    kernel = Kernel(host_netns=lab.hosts[0].netns)
    plan = VipPlan((router,), ())
    make()
    try:
        assert kernel.apply(plan).errors == []
        first = inside(router.netns, "nft", "list", "ruleset")
        inode = str(os.stat(router.netns).st_ino)
        settle()
        run("ip", "netns", "del", name)
        assert inode not in run("lsns", "-t", "net", "-n", "-o", "NS").split()
        make()
        assert kernel.apply(plan).errors == []
        assert inside(router.netns, "nft", "list", "ruleset") == first
    finally:
        run("ip", "netns", "del", name)
        lab.kernels[1].apply(lab.plan(lab.hosts[0]))


def test_a_port_that_two_networks_want_goes_to_the_first_and_is_told(lab: Lab) -> None:
    host = lab.hosts[0]
    plan = lab.plan(host)
    red = names.uplink(lab.nets["red"].vni)
    both = replace(plan, published=(*plan.published, PublishedPort("tcp", 8080, red.router_address, red.host_device)))
    report = lab.kernels[host.number].apply(both)
    assert report.errors == ["cannot publish port 8080/tcp for a second network of this node"]
    assert ask(lab.outside, host.address, 8080).task in {"web1", "web2"}


def test_what_is_there_can_be_seen(lab: Lab) -> None:
    host = lab.hosts[0]
    web, uplink = lab.nets["web"], names.uplink(lab.nets["web"].vni).router_address
    web.backends[lab.address("web1")] = 2
    web.scheduler = "wrr"
    web.backends[IPv4Address("10.1.0.13")] = 0
    lab.apply()
    seen: Observed = lab.kernels[host.number].observe()
    slots = {lab.address("web1"): 2, lab.address("web2"): 1}
    found = {(s.address, s.protocol, s.port): s.slots for s in seen.services[lab.router(host)]}
    assert found == {
        (web.vip, None, None): slots,
        (uplink, "tcp", 8080): slots,
        (uplink, "udp", 8080): slots,
    }
    assert seen.published["tcp", 8080] == uplink
    assert seen.published["tcp", 8083] == names.uplink(lab.nets["quiet"].vni).router_address


def services(count: int, backends: int) -> tuple[VirtualService, ...]:
    """Many services, with addresses that are nobody's."""
    return tuple(
        VirtualService(
            IPv4Address("10.200.0.0") + number,
            None,
            None,
            None,
            tuple(Backend(IPv4Address("10.1.0.10") + n) for n in range(backends)),
        )
        for number in range(count)
    )


def test_a_thousand_services_load_and_a_change_of_one_is_a_change_of_few_elements(lab: Lab) -> None:
    host = lab.hosts[0]
    kernel, many = lab.kernels[host.number], services(1000, 5)
    big = lab.with_services(host, many)
    report = kernel.apply(big)
    assert report.errors == []
    assert report.changes["vip element"] >= 1000 * 6
    assert not kernel.apply(lab.with_services(host, services(1000, 5))).changes
    assert not Kernel(host_netns=host.netns).apply(big).changes
    shrunk = replace(many[7], backends=many[7].backends[1:])
    report = kernel.apply(lab.with_services(host, (*many[:7], shrunk, *many[8:])))
    assert report.errors == []
    # The verdict, the slot that is gone, the slot that took in the last backend; and at most two chains.
    assert 0 < report.changes["vip element"] <= 3
    assert report.changes["vip rule"] <= 2
    assert ask(lab.netns("client1"), lab.nets["web"].vip)
    # Another program's change makes us read the table again, and nothing more.
    inside(lab.router(host), "nft", "add table ip other")
    inside(lab.router(host), "nft", "delete table ip other")
    assert not kernel.apply(lab.with_services(host, (*many[:7], shrunk, *many[8:]))).changes


def test_the_nft_program_does_as_well_as_the_library(lab: Lab) -> None:
    host = lab.hosts[0]
    plan = lab.plan(host)
    lab.kernels[host.number].prune(VipPlan((), ()))
    kernel = Kernel(host_netns=host.netns, nft=Program("/usr/sbin/nft"))
    assert kernel.apply(plan).errors == []
    assert not kernel.apply(plan).changes
    assert not Kernel(host_netns=host.netns).apply(plan).changes
    assert ask(lab.netns("client1"), lab.nets["web"].vip)


@pytest.mark.parametrize("nft", [Program("/usr/sbin/nft"), Library("libnftables.so.1")], ids=lambda nft: nft.name)
def test_a_transaction_that_fails_changes_nothing_and_says_why(lab: Lab, nft: Nft) -> None:
    host = lab.hosts[0]
    before = state(lab, host)

    def break_it(_: object) -> None:
        nft.run("flush table inet mesh\nadd rule inet mesh nowhere accept\n")

    with pytest.raises(VipError, match="No such file or directory"):
        visit(lab.router(host), break_it)
    assert state(lab, host) == before
