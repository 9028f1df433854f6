"""Each thing that can be wrong with a machine, and what the doctor says of it."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address

import pytest

from mesh.doctor.checks import Finding, Wanted, examine
from mesh.doctor.facts import Chain, Facts, Interface, Socket, Tunnel

CAN = dict.fromkeys(("namespaces", "veth", "vxlan", "nftables", "ipvs", "sctp"), "")
HEALTHY = Facts(
    kernel="6.1.0",
    kernel_can=CAN,
    programs={"nft": True},
    sysctls={"net.ipv4.ip_forward": "1", "net.ipv4.ip_local_port_range": "32768\t60999"},
    addresses=(Interface(IPv4Address("192.0.2.1"), "eth0", 1500),),
    clock_synchronised=True,
    disk_free_bytes=10 << 30,
)
WANTED = Wanted(7377, 4789, "192.0.2.1")


def wrong(facts: Facts, wanted: Wanted = WANTED) -> list[Finding]:
    return [finding for finding in examine(facts, wanted) if finding.level != "ok"]


def test_a_healthy_machine() -> None:
    assert wrong(HEALTHY) == []
    assert [f.what for f in examine(HEALTHY, WANTED)] == ["kernel", "balancer", "mtu"]


@pytest.mark.parametrize(
    ("facts", "level", "what", "part"),
    [
        (replace(HEALTHY, root=False), "error", "privileges", "not root"),
        (replace(HEALTHY, kernel_can={}), "warning", "kernel", "could not be tried out"),
        (replace(HEALTHY, kernel_can=CAN | {"vxlan": "Operation not supported"}), "error", "kernel", "no vxlan"),
        (replace(HEALTHY, kernel_can=CAN | {"ipvs": "No such file"}), "note", "balancer", "no IPVS"),
        (replace(HEALTHY, kernel_can=CAN | {"sctp": "no"}), "note", "sctp", "no SCTP"),
        (replace(HEALTHY, kernel_can=CAN | {"wireguard": "No such file"}), "note", "encryption", "no WireGuard"),
        (
            replace(HEALTHY, kernel_can=CAN | {"wireguard": "No such file"}, programs={"wireguard-go": True}),
            "note",
            "encryption",
            "wireguard-go, 2 to 4 % of a plain network's speed",
        ),
        (
            replace(HEALTHY, sockets=(Socket("udp", IPv4Address(0), 7948, "nginx"),)),
            "error",
            "port",
            "7948/udp (encrypted networks) is in use by nginx",
        ),
        (
            replace(HEALTHY, sockets=(Socket("tcp", IPv4Address("0.0.0.0"), 7377, "nginx"),)),
            "error",
            "port",
            "7377/tcp (managers are reached there) is in use by nginx",
        ),
        (
            replace(HEALTHY, tunnels=(Tunnel("vxlan0", 42, 4789),)),
            "warning",
            "port",
            "device vxlan0 uses UDP port 4789",
        ),
        (replace(HEALTHY, sysctls={"net.ipv4.conf.all.rp_filter": "1"}), "note", "sysctl", "strict"),
        (
            replace(HEALTHY, sysctls={"net.ipv4.ip_local_port_range": "1024\t65535"}),
            "warning",
            "sysctl",
            "programs get local ports 1024 to 65535",
        ),
        (
            replace(
                HEALTHY,
                sysctls={"net.netfilter.nf_conntrack_count": "900", "net.netfilter.nf_conntrack_max": "1000"},
            ),
            "warning",
            "conntrack",
            "900 of 1000",
        ),
        (
            replace(HEALTHY, addresses=(Interface(IPv4Address("192.0.2.9"), "eth0", 1500),)),
            "error",
            "address",
            "no device has 192.0.2.1",
        ),
        (
            replace(HEALTHY, addresses=(Interface(IPv4Address("192.0.2.1"), "eth0", 1400),)),
            "warning",
            "mtu",
            "MTU of 1400",
        ),
        (
            replace(HEALTHY, dropping=(Chain("ip", "filter", "FORWARD", "forward"),)),
            "warning",
            "firewall",
            "chain ip filter FORWARD drops forwarded packets",
        ),
        (
            replace(HEALTHY, dropping=(Chain("inet", "firewalld", "in", "input"),)),
            "note",
            "firewall",
            "drops incoming packets",
        ),
        (replace(HEALTHY, clock_synchronised=False), "warning", "clock", "not synchronised"),
        (replace(HEALTHY, disk_free_bytes=100 << 20), "warning", "disk", "100 MiB are free"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_wrong_is_said_with_what_helps(facts: Facts, level: str, what: str, part: str) -> None:
    (finding,) = wrong(facts)
    assert (finding.level, finding.what) == (level, what)
    assert part in finding.found
    assert finding.fix or what == "kernel"


def test_ports_that_meshd_itself_has_are_no_conflict() -> None:
    facts = replace(HEALTHY, sockets=(Socket("tcp", IPv4Address("0.0.0.0"), 7377, "meshd"),))
    assert wrong(facts, replace(WANTED, running=True)) == []


def test_forwarding_that_was_turned_off_under_a_running_daemon() -> None:
    facts = replace(HEALTHY, sysctls={"net.ipv4.ip_forward": "0"})
    assert wrong(facts) == [], "meshd turns it on when it starts"
    assert [f.what for f in wrong(facts, replace(WANTED, running=True))] == ["sysctl"]


def test_several_addresses_need_a_choice_before_a_cluster_is_joined() -> None:
    facts = replace(HEALTHY, addresses=(*HEALTHY.addresses, Interface(IPv4Address("198.51.100.1"), "eth1", 1500)))
    assert [f.what for f in wrong(facts, replace(WANTED, data_address=""))] == ["address"]


def test_reserved_automatic_ports_are_no_conflict() -> None:
    sysctls = {"net.ipv4.ip_local_port_range": "1024\t65535", "net.ipv4.ip_local_reserved_ports": "30000-32767"}
    assert wrong(replace(HEALTHY, sysctls=sysctls)) == []


def test_wireguard_that_outlived_the_daemon_is_no_conflict() -> None:
    for program in ("", "wireguard-go"):
        assert wrong(replace(HEALTHY, sockets=(Socket("udp", IPv4Address(0), 7947, program),))) == []


def test_which_wireguard_is_used_is_said() -> None:
    found = [f.found for f in examine(replace(HEALTHY, kernel_can=CAN | {"wireguard": ""}), WANTED)]
    assert "WireGuard: the kernel has it" in found


@pytest.mark.parametrize(
    ("can", "said"),
    [({"ipvs": "no", "flowtable": ""}, "ok"), ({"ipvs": "no", "flowtable": "no"}, "note"), ({"flowtable": ""}, None)],
)
def test_of_a_flowtable_is_told_where_nftables_balances(can: dict[str, str], said: str | None) -> None:
    found = {one.what: one.level for one in examine(replace(HEALTHY, kernel_can=CAN | can), WANTED)}
    assert found.get("flowtable") == said
