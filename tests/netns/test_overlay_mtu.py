"""The size of packets follows what carries them: devices, routes with an MTU of their own, and what a path allows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from ipaddress import IPv4Address, IPv4Network, IPv6Address

import pytest

from overlay.rtnl import Namespace
from overlay.underlay import LEARNED_MIN, underlay_mtu
from tests.netns.world import OUTSIDE, World, inside

pytestmark = [pytest.mark.root, pytest.mark.hosts(2)]

NOBODY = IPv4Address("203.0.113.1")


def mtu(netns: str, device: str) -> int:
    words = inside(netns, "ip", "link", "show", device).split()
    return int(words[words.index("mtu") + 1])


@pytest.fixture
def host(world: World) -> Iterator[Namespace]:
    with closing(Namespace(world.hosts[0].netns)) as opened:
        yield opened


@pytest.mark.parametrize(
    ("change", "back", "expected"),
    [
        (("link", "set", "eth0", "mtu", "1300"), ("link", "set", "eth0", "mtu", "1500"), 1250),
        (
            ("route", "add", "10.66.0.12", "dev", "eth0", "mtu", "1400"),
            ("route", "del", "10.66.0.12", "dev", "eth0"),
            1350,
        ),
        (
            ("route", "change", "10.66.0.0/24", "dev", "eth0", "src", "10.66.0.11", "mtu", "lock", "1420"),
            ("route", "change", "10.66.0.0/24", "dev", "eth0", "src", "10.66.0.11"),
            1370,
        ),
    ],
    ids=["device", "route to a node", "route to all, locked"],
)
def test_networks_follow_the_mtu_of_what_carries_them(
    world: World, change: tuple[str, ...], back: tuple[str, ...], expected: int
) -> None:
    world.networks["web"] = (4096, IPv4Network("10.1.0.0/24"))
    here, there = world.task(world.hosts[0], "web", "10.1.0.10"), world.task(world.hosts[1], "web", "10.1.0.11")
    netns = world.hosts[0].netns
    for step, size in (((), 1450), (change, expected), (back, 1450)):
        if step:
            inside(netns, "ip", *step)
        world.apply()
        assert (mtu(here.netns, "eth0"), mtu(world.router(world.hosts[0], "web"), "vx4096")) == (size, size)
        fits = ("ping", "-c1", "-W5", "-Mdo", "-s", str(size - 28), str(there.address))
        assert " 0% packet loss" in inside(here.netns, *fits)


def test_what_a_router_on_the_way_complains_of_is_believed_down_to_a_size(world: World, host: Namespace) -> None:
    peers = [IPv4Address(OUTSIDE)]
    assert underlay_mtu(host, world.hosts[0].address, peers) == 1500
    for size, believed in ((1400, 1400), (1000, LEARNED_MIN)):
        inside(world.switch, "ip", "link", "set", "out", "mtu", str(size))
        inside(world.hosts[0].netns, "ping", "-c1", "-W1", "-Mdo", "-s", "1372", OUTSIDE, check=False)
        inside(world.hosts[0].netns, "ping", "-c1", "-W1", "-Mdo", "-s", "1472", OUTSIDE, check=False)
        assert underlay_mtu(host, world.hosts[0].address, peers) == believed


def test_nodes_to_which_there_is_no_way_do_not_count(world: World, host: Namespace) -> None:
    inside(world.hosts[0].netns, "ip", "route", "del", "default")
    peers: list[IPv4Address | IPv6Address] = [NOBODY, IPv6Address("2001:db8::1")]
    assert underlay_mtu(host, world.hosts[0].address, peers) == 1500
    assert underlay_mtu(host, NOBODY, peers) == 1500, "what every Ethernet has"
