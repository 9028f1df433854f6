"""Networks of both families, and an underlay of the other one, on the real kernel."""

from __future__ import annotations

import subprocess
from ipaddress import IPv4Network, IPv6Address, IPv6Network

import pytest

from overlay import names
from overlay.kernel import Kernel
from tests.netns.world import Task, World, inside

pytestmark = pytest.mark.root
WEB = IPv4Network("10.1.0.0/24")
WEB6 = IPv6Network("fd00:1::/64")


def ping(task: Task, address: object, *options: str) -> bool:
    done = subprocess.run(
        ["nsenter", f"--net={task.netns}", "ping", "-6", "-c", "1", "-W", "2", *options, str(address)],
        capture_output=True,
        timeout=20,
        check=False,
    )
    return done.returncode == 0


@pytest.fixture
def tasks(world: World) -> tuple[Task, Task, Task]:
    """Two tasks on the first host, one on the second, on a network of both families."""
    world.networks["web"], world.subnets6["web"] = (4096, WEB), WEB6
    first, second = world.hosts[:2]
    made = (
        world.task(first, "web", "10.1.0.10"),
        world.task(first, "web", "10.1.0.11"),
        world.task(second, "web", "10.1.0.12"),
    )
    world.apply()
    return made


def test_tasks_reach_each_other_over_ipv6_on_one_host_and_across_hosts(
    world: World, tasks: tuple[Task, Task, Task]
) -> None:
    for source in tasks:
        for target in tasks:
            assert ping(source, world.address6("web", target)), (source, target)
    gateway = WEB6.network_address + int(WEB.network_address + 1)
    assert ping(tasks[0], gateway)


def test_applying_again_changes_nothing_also_from_a_new_process(world: World, tasks: tuple[Task, Task, Task]) -> None:
    del tasks
    for host in world.hosts:
        for kernel in (host.kernel, Kernel(netns_dir=str(host.directory), host_netns=host.netns)):
            report = kernel.apply(world.plan(host))
            assert (dict(report.changes), report.errors) == ({}, [])
            assert dict(kernel.prune(world.plan(host)).changes) == {}


def test_an_ipv6_address_that_nobody_has_is_refused_fast(world: World, tasks: tuple[Task, Task, Task]) -> None:
    out = inside(tasks[0].netns, "ping", "-6", "-c", "1", "-W", "5", str(WEB6.network_address + 0x99), check=False)
    assert "unreachable" in out.lower()


def test_two_networks_with_one_ipv6_subnet_do_not_meet(world: World, tasks: tuple[Task, Task, Task]) -> None:
    world.networks["other"], world.subnets6["other"] = (4097, WEB), WEB6
    stranger = world.task(world.hosts[1], "other", "10.1.0.10")
    world.apply()
    assert ping(tasks[0], world.address6("web", tasks[2]))
    assert not ping(stranger, world.address6("web", tasks[2]))


def test_the_largest_ipv6_packet_passes_and_a_larger_one_is_told_the_mtu(
    world: World, tasks: tuple[Task, Task, Task]
) -> None:
    target = world.address6("web", tasks[2])
    headers = 48  # IPv6 and ICMPv6
    assert ping(tasks[0], target, "-M", "do", "-s", str(1450 - headers))
    out = inside(
        tasks[0].netns, "ping", "-6", "-c", "1", "-W", "2", "-M", "do", "-s", str(1451 - headers), str(target),
        check=False,
    )  # fmt: skip
    assert "100% packet loss" in out or "too" in out.lower()


@pytest.mark.parametrize(
    "damage",
    [
        ("ip", "-6", "route", "flush", "proto", str(names.ROUTE_PROTOCOL)),
        ("ip", "-6", "addr", "flush", "dev", "lo", "scope", "global"),
        ("ip", "-6", "neigh", "flush", "dev", "vx4096", "nud", "permanent"),
        ("sysctl", "-qw", "net.ipv6.conf.all.forwarding=0"),
    ],
    ids=lambda damage: " ".join(damage[:4]),
)
def test_what_others_break_of_ipv6_is_repaired(
    world: World, tasks: tuple[Task, Task, Task], damage: tuple[str, ...]
) -> None:
    inside(world.router(world.hosts[0], "web"), *damage)
    world.apply()
    assert ping(tasks[0], world.address6("web", tasks[2]))
    assert ping(tasks[2], world.address6("web", tasks[1]))


def test_an_mtu_that_was_changed_is_set_again(world: World, tasks: tuple[Task, Task, Task]) -> None:
    inside(tasks[0].netns, "ip", "link", "set", "eth0", "mtu", "1280")
    inside(world.router(world.hosts[0], "web"), "ip", "link", "set", "vx4096", "mtu", "1280")
    world.apply()
    assert "mtu 1450" in inside(tasks[0].netns, "ip", "link", "show", "eth0")
    assert "mtu 1450" in inside(world.router(world.hosts[0], "web"), "ip", "link", "show", "vx4096")


def test_a_smaller_underlay_makes_everything_smaller(world: World, tasks: tuple[Task, Task, Task]) -> None:
    for host in world.hosts:
        inside(host.netns, "ip", "link", "set", "eth0", "mtu", "1400")
    world.apply()
    assert "mtu 1350" in inside(tasks[0].netns, "ip", "link", "show", "eth0")
    assert ping(tasks[0], world.address6("web", tasks[2]), "-s", "4000"), "in fragments of the right size"


def test_an_underlay_of_ipv6_carries_networks_of_both_families(world: World) -> None:
    for host in world.hosts:
        own = IPv6Address("fd00:66::10") + host.number
        world.underlays[host.number] = own
        inside(host.netns, "ip", "addr", "add", f"{own}/64", "dev", "eth0", "nodad")
    world.networks["web"], world.subnets6["web"] = (4096, WEB), WEB6
    one = world.task(world.hosts[0], "web", "10.1.0.10")
    other = world.task(world.hosts[1], "web", "10.1.0.11")
    world.apply()
    assert ping(one, world.address6("web", other))
    assert "1 received" in inside(one.netns, "ping", "-c", "1", "-W", "2", "10.1.0.11")
    assert "mtu 1430" in inside(one.netns, "ip", "link", "show", "eth0"), "IPv6 takes 20 bytes more"
    for host in world.hosts:
        assert dict(Kernel(str(host.directory), host.netns).apply(world.plan(host)).changes) == {}


def test_an_uplink_that_a_crash_left_without_its_alias_is_removed_by_the_next_process(world: World) -> None:
    host = world.hosts[0]
    inside(host.netns, "ip", "link", "add", "mesh4321", "type", "veth", "peer", "name", "lost0")
    inside(host.netns, "ip", "link", "add", "mesh-other", "type", "veth", "peer", "name", "other0")
    fresh = Kernel(netns_dir=str(host.directory), host_netns=host.netns)
    assert fresh.prune(world.plan(host)).errors == []
    left = inside(host.netns, "ip", "-br", "link")
    assert "mesh4321" not in left
    assert "mesh-other" in left, "somebody else's"


def test_devices_carry_their_alias(world: World, tasks: tuple[Task, Task, Task]) -> None:
    del tasks
    host = world.hosts[0]
    assert "alias mesh:web" in inside(host.netns, "ip", "link", "show", names.uplink(4096).host_device)
    assert "alias mesh:web" in inside(world.router(host, "web"), "ip", "link", "show", "vx4096")


def test_a_host_that_takes_router_advertisements_goes_on_to_do_so(world: World) -> None:
    host = world.hosts[0]
    inside(host.netns, "sysctl", "-qw", "net.ipv6.conf.eth0.accept_ra=1")
    world.networks["web"], world.subnets6["web"] = (4096, WEB), WEB6
    world.task(host, "web", "10.1.0.10")
    world.apply()
    assert inside(host.netns, "sysctl", "-n", "net.ipv6.conf.eth0.accept_ra").strip() == "2"
    assert inside(host.netns, "sysctl", "-n", "net.ipv6.conf.all.forwarding").strip() == "1"


def test_a_tunnel_that_a_crash_left_in_the_host_is_removed_and_that_of_others_is_not(world: World) -> None:
    host = world.hosts[0]
    add = ("ip", "link", "add", "type", "vxlan", "dstport", "4789", "local", "10.66.0.11", "nolearning")
    inside(host.netns, *add[:3], "vx4321", *add[3:], "id", "4321")
    inside(host.netns, *add[:3], "vx77", *add[3:], "id", "42")
    fresh = Kernel(netns_dir=str(host.directory), host_netns=host.netns)
    assert fresh.prune(world.plan(host)).errors == []
    left = inside(host.netns, "ip", "-br", "link")
    assert "vx4321" not in left
    assert "vx77" in left, "its name says something else than what it is"
