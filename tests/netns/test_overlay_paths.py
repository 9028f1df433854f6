"""The routed overlay on a real kernel: who reaches whom, by which frames, and who does not."""

from __future__ import annotations

import subprocess
import time
from collections import Counter
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest
from scapy.layers.inet import ICMP, IP
from scapy.layers.vxlan import VXLAN
from scapy.utils import rdpcap

from overlay import names
from overlay.kernel import Kernel
from overlay.plan import RemoteEndpoint
from tests.netns.world import World, inside, run

pytestmark = [pytest.mark.root, pytest.mark.hosts(2)]

WEB, DB = IPv4Network("10.1.0.0/24"), IPv4Network("10.2.0.0/24")


def tcpdump(netns: str, device: str) -> list[str]:
    """Frames as they come, not when the kernel's ring is full."""
    return ["nsenter", f"--net={netns}", "tcpdump", "-Z", "root", "--immediate-mode", "-ni", device]


def ping(netns: str, address: object, *options: str) -> bool:
    """Whether one of the packets of fifteen seconds is answered: devices that came up just now lose the first."""
    return " 1 received" in inside(netns, "ping", "-c1", "-w15", "-i0.5", *options, str(address), check=False)


def test_tasks_reach_each_other_on_one_host_and_across_hosts(world: World) -> None:
    world.networks["web"] = (4096, WEB)
    a, b = (world.task(world.hosts[0], "web", f"10.1.0.{n}") for n in (10, 11))
    c = world.task(world.hosts[1], "web", "10.1.0.12")
    world.apply()
    for source, target in ((a, b), (a, c), (c, b)):
        assert ping(source.netns, target.address), (source, target)


def test_applying_again_changes_nothing_also_from_a_new_process(world: World) -> None:
    world.networks["web"] = (4096, WEB)
    world.task(world.hosts[0], "web", "10.1.0.10")
    world.task(world.hosts[1], "web", "10.1.0.12")
    world.apply()
    host = world.hosts[0]
    fresh = Kernel(netns_dir=str(host.directory), host_netns=host.netns)
    for kernel in (host.kernel, fresh):
        for report in (kernel.apply(world.plan(host)), kernel.prune(world.plan(host))):
            assert (dict(report.changes), report.errors) == ({}, [])
    fresh.close()


def test_an_address_that_nobody_has_is_refused_fast_and_does_not_leak_out(world: World) -> None:
    world.networks["web"] = (4096, WEB)
    task = world.task(world.hosts[0], "web", "10.1.0.10")
    world.apply()
    capture = subprocess.Popen(
        [*tcpdump(world.hosts[0].netns, "any"), "-l", "dst", "host", "10.1.0.99"],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    began = time.monotonic()
    assert not ping(task.netns, "10.1.0.99", "-w1")
    assert time.monotonic() - began < 5
    capture.terminate()
    out, _ = capture.communicate(timeout=5)
    assert out.strip() == ""


def test_two_networks_with_one_subnet_do_not_meet(world: World) -> None:
    world.networks["red"] = (4096, WEB)
    world.networks["blue"] = (4097, WEB)
    red = world.task(world.hosts[0], "red", "10.1.0.10")
    blue = world.task(world.hosts[1], "blue", "10.1.0.11")
    red_peer = world.task(world.hosts[1], "red", "10.1.0.12")
    blue_peer = world.task(world.hosts[0], "blue", "10.1.0.12")
    world.apply()
    assert ping(red.netns, red_peer.address)
    assert ping(blue.netns, blue_peer.address)
    assert not ping(red.netns, blue.address, "-w1")
    assert not ping(blue.netns, red.address, "-w1")


def test_a_task_on_two_networks_speaks_on_both(world: World) -> None:
    world.networks["a"] = (4096, WEB)
    world.networks["b"] = (4097, DB)
    both = world.task(world.hosts[0], "a", "10.1.0.10", name="both")
    world.task(world.hosts[0], "b", "10.2.0.10", name="both")
    on_a = world.task(world.hosts[1], "a", "10.1.0.11")
    on_b = world.task(world.hosts[1], "b", "10.2.0.11")
    world.apply()
    assert ping(both.netns, on_a.address)
    assert ping(both.netns, on_b.address)
    assert not ping(on_a.netns, "10.2.0.11", "-w1")


def test_the_largest_packet_that_fits_passes_and_the_next_is_told_its_mtu(world: World) -> None:
    world.networks["web"] = (4096, WEB)
    a, b = world.task(world.hosts[0], "web", "10.1.0.10"), world.task(world.hosts[1], "web", "10.1.0.11")
    world.apply()
    fits = 1500 - names.VXLAN_OVERHEAD_BYTES - 28  # IPv4 and ICMP headers
    assert ping(a.netns, b.address, "-M", "do", "-s", str(fits))
    too_long = inside(a.netns, "ping", "-c1", "-W1", "-M", "do", "-s", str(fits + 1), str(b.address), check=False)
    assert "+1 errors" in too_long
    assert "mtu 1450" in inside(a.netns, "ip", "link", "show", "eth0")


def test_frames_between_hosts_carry_the_vni_and_the_tasks_own_addresses(world: World, tmp_path: object) -> None:
    world.networks["web"] = (4711, WEB)
    a, b = world.task(world.hosts[0], "web", "10.1.0.10"), world.task(world.hosts[1], "web", "10.1.0.11")
    world.apply()
    file = f"{tmp_path}/frames.pcap"
    capture = subprocess.Popen(
        [*tcpdump(world.switch, "h1"), "-U", "-w", file, "udp", "port", "4789"],
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert capture.stderr is not None
    while "listening" not in capture.stderr.readline():
        assert capture.poll() is None
    assert ping(a.netns, b.address)
    time.sleep(0.3)
    capture.terminate()
    capture.wait(5)
    requests = [p for p in rdpcap(file) if p.haslayer(VXLAN) and p[VXLAN].payload.haslayer(ICMP)]
    request = next(p for p in requests if p[VXLAN][ICMP].type == 8)
    assert request[VXLAN].vni == 4711
    assert (request[IP].src, request[IP].dst) == ("10.66.0.11", "10.66.0.12")
    inner = request[VXLAN].payload
    assert (inner[IP].src, inner[IP].dst) == ("10.1.0.10", "10.1.0.11")
    assert (inner.src, inner.dst) == (names.router_mac(1), names.router_mac(2))


@pytest.mark.parametrize(
    "damage",
    [
        ("ip", "route", "flush", "proto", str(names.ROUTE_PROTOCOL)),
        ("ip", "neigh", "flush", "dev", "vx4096", "nud", "permanent"),
        ("bridge", "fdb", "del", names.router_mac(2), "dev", "vx4096", "dst", "10.66.0.12"),
        ("ip", "link", "del", "vx4096"),
        ("ip", "link", "del", "up0"),
        ("ip", "link", "set", "vx4096", "down"),
        ("ip", "addr", "flush", "dev", "lo"),
        ("sysctl", "-qw", "net.ipv4.ip_forward=0"),
    ],
    ids=lambda argv: " ".join(argv[:3]),
)
def test_what_others_break_in_a_router_is_repaired(world: World, damage: tuple[str, ...]) -> None:
    world.networks["web"] = (4096, WEB)
    a, b = world.task(world.hosts[0], "web", "10.1.0.10"), world.task(world.hosts[1], "web", "10.1.0.11")
    world.apply()
    assert ping(a.netns, b.address)
    inside(world.router(world.hosts[0], "web"), *damage)
    report = world.hosts[0].kernel.apply(world.plan(world.hosts[0]))
    assert report.errors == []
    assert report.changes.total() > 0
    assert ping(a.netns, b.address)


def test_a_change_of_tasks_elsewhere_changes_their_routes_and_looks_at_nothing_else(world: World) -> None:
    world.networks["web"] = (4096, WEB)
    world.task(world.hosts[0], "web", "10.1.0.10")
    world.apply()
    host, router = world.hosts[0], world.router(world.hosts[0], "web")
    first = world.plan(host)
    assert (first.networks[0].remote, host.kernel.apply(first, whole=False).changes) == ((), {})
    inside(router, "ip", "route", "del", "unreachable", str(WEB))  # by somebody else
    for addresses in (["10.1.0.20", "10.1.0.21"], ["10.1.0.21", "10.1.0.22"], []):
        remote = tuple(RemoteEndpoint(IPv4Address(one), 2) for one in addresses)
        plan = replace(first, networks=(replace(first.networks[0], remote=remote),))
        made = [host.kernel.apply(plan, whole=False), host.kernel.prune(plan, whole=False)]
        assert [one.errors for one in made] == [[], []]
        assert sum((one.changes for one in made), Counter()).keys() == {"route"}
        held = inside(router, "ip", "route").splitlines()
        assert [line.split()[0] for line in held if names.vxlan_device(4096) in line] == addresses
        assert not any("unreachable" in line for line in held)
    assert host.kernel.apply(first).changes == {"route": 1}, "the whole look repairs what others broke"


def test_a_deleted_router_is_made_again(world: World) -> None:
    world.networks["web"] = (4096, WEB)
    a, b = world.task(world.hosts[0], "web", "10.1.0.10"), world.task(world.hosts[1], "web", "10.1.0.11")
    world.apply()
    router = world.router(world.hosts[0], "web")
    run("umount", router)
    world.apply()
    assert ping(a.netns, b.address)


def test_a_task_whose_namespace_is_gone_is_an_error_of_its_own(world: World) -> None:
    world.networks["web"] = (4096, WEB)
    host = world.hosts[0]
    gone, there = world.task(host, "web", "10.1.0.10", name="gone"), world.task(host, "web", "10.1.0.11")
    other = world.task(world.hosts[1], "web", "10.1.0.12")
    run("ip", "netns", "del", gone.netns.rpartition("/")[2])
    report = host.kernel.apply(world.plan(host))
    assert len(report.errors) == 1
    assert "attach task gone to network web" in report.errors[0]
    world.hosts[1].kernel.apply(world.plan(world.hosts[1]))
    assert ping(there.netns, other.address)


def test_a_node_with_a_new_underlay_address_is_followed(world: World) -> None:
    world.networks["web"] = (4096, WEB)
    a, b = world.task(world.hosts[0], "web", "10.1.0.10"), world.task(world.hosts[1], "web", "10.1.0.11")
    world.apply()
    moved = world.hosts[1]
    inside(moved.netns, "ip", "addr", "flush", "dev", "eth0")
    inside(moved.netns, "ip", "addr", "add", "10.66.0.77/24", "dev", "eth0")
    moved.address = type(moved.address)("10.66.0.77")
    world.apply()
    assert ping(a.netns, b.address)


def test_an_internal_network_has_no_way_out(world: World) -> None:
    world.networks["web"] = (4096, WEB)
    world.internal.add("web")
    a = world.task(world.hosts[0], "web", "10.1.0.10")
    world.apply()
    routes = inside(world.router(world.hosts[0], "web"), "ip", "route", "show", "default")
    assert routes == ""
    assert not ping(a.netns, "10.66.0.12", "-w1")


def test_an_empty_plan_leaves_the_host_as_it_was(world: World) -> None:
    host = world.hosts[0]
    looks = (("ip", "-br", "link"), ("ip", "addr", "show", "up"), ("ip", "route", "show", "table", "all"))
    before = [_steady(inside(host.netns, *look)) for look in looks]
    world.networks["web"] = (4096, WEB)
    world.task(host, "web", "10.1.0.10")
    world.apply()
    assert [_steady(inside(host.netns, *look)) for look in looks] != before
    world.networks.clear()
    world.apply()
    assert [_steady(inside(host.netns, *look)) for look in looks] == before
    assert list(host.directory.iterdir()) == []


def _steady(text: str) -> list[str]:
    """Without what changes by itself: IPv6 addresses settle, lifetimes tick."""
    return [
        line for line in text.splitlines() if "inet6" not in line and "valid_lft" not in line and "fe80" not in line
    ]


def test_a_network_returns_although_a_process_still_holds_its_old_router(world: World) -> None:
    """The VNI trap: a VXLAN device would keep its VNI until the last process of its namespace has ended."""
    world.networks["web"] = (4096, WEB)
    a, b = world.task(world.hosts[0], "web", "10.1.0.10"), world.task(world.hosts[1], "web", "10.1.0.11")
    world.apply()
    host = world.hosts[0]
    with subprocess.Popen(["nsenter", f"--net={world.router(host, 'web')}", "sleep", "60"]) as holder:
        try:
            networks, world.networks = world.networks, {}
            world.apply()
            world.networks = networks
            world.apply()
            assert ping(a.netns, b.address)
        finally:
            holder.kill()


def test_a_vni_that_a_lost_namespace_holds_is_told_and_taken_when_it_is_free(world: World) -> None:
    world.networks["web"] = (4096, WEB)
    a, b = world.task(world.hosts[0], "web", "10.1.0.10"), world.task(world.hosts[1], "web", "10.1.0.11")
    world.apply()
    host = world.hosts[0]
    router = world.router(host, "web")
    host.kernel.close()  # kill -9: nobody knows the namespace any more
    with subprocess.Popen(["nsenter", f"--net={router}", "sleep", "60"]) as holder:
        entered = time.monotonic() + 60
        while Path(f"/proc/{holder.pid}/comm").read_text() != "sleep\n":  # nsenter has the name open for a moment
            assert time.monotonic() < entered
            time.sleep(0.01)
        run("umount", router)
        (error,) = host.kernel.apply(world.plan(host)).errors
        holder.kill()
    assert error == (
        "cannot make the router of network web: VNI 4096 on UDP port 4789 belongs to another device of this machine"
    )
    deadline = time.monotonic() + 10
    while host.kernel.apply(world.plan(host)).errors:  # the kernel takes namespaces down in its own time
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert ping(a.netns, b.address)


def test_a_foreign_tunnel_that_has_our_name_is_left_alone_and_told(world: World) -> None:
    host = world.hosts[0]
    foreign = ("vx4096", "type", "vxlan", "id", "42", "dstport", "4790", "local", "10.66.0.11", "nolearning")
    inside(host.netns, "ip", "link", "add", *foreign)
    world.networks["web"] = (4096, WEB)
    a, b = world.task(host, "web", "10.1.0.10"), world.task(world.hosts[1], "web", "10.1.0.11")
    (error,) = host.kernel.apply(world.plan(host)).errors
    assert error == "cannot make the router of network web: the name vx4096 belongs to another device of this machine"
    assert "id 42" in inside(host.netns, "ip", "-d", "link", "show", "vx4096")
    inside(host.netns, "ip", "link", "del", "vx4096")
    world.apply()
    assert ping(a.netns, b.address)
