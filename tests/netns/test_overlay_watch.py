"""What others change is noticed at once; what we change ourselves, and what is nobody's business, is not."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from ipaddress import IPv4Network
from typing import Any

import pytest

from overlay.kernel import Kernel
from overlay.watch import DEBOUNCE_S, Watch
from tests.netns.world import Host, World, inside, run

pytestmark = pytest.mark.root


@dataclass
class Watched:
    world: World
    host: Host
    watch: Watch
    changes: list[float]
    in_kernel: Callable[..., Awaitable[Any]]

    async def notices(self, within_s: float = 60.0) -> bool:
        """Whether a change is told; to see that none is, a short time must do."""
        before, loop = len(self.changes), asyncio.get_running_loop()
        end_s = loop.time() + within_s
        while len(self.changes) == before and loop.time() < end_s:
            await asyncio.sleep(0.02)
        return len(self.changes) > before


@pytest.fixture
async def watched(world: World) -> AsyncIterator[Watched]:
    world.networks["web"] = (4096, IPv4Network("10.1.0.0/24"))
    host = world.hosts[0]
    world.task(host, "web", "10.1.0.10")
    world.task(world.hosts[1], "web", "10.1.0.11")
    kernel = ThreadPoolExecutor(1)  # as in the daemon: pyroute2's own loops cannot run within this one
    in_kernel = functools.partial(asyncio.get_running_loop().run_in_executor, kernel)
    await in_kernel(world.apply)
    changes: list[float] = []
    watch = Watch(lambda: changes.append(0.0), str(host.directory), host.netns)
    await watch.follow([world.router(host, "web")], [IPv4Network("10.1.0.0/24"), world.hosts[1].address])
    try:
        yield Watched(world, host, watch, changes, in_kernel)
    finally:
        watch.close()
        for one in world.hosts:  # handles stay with the thread that made them
            await in_kernel(one.kernel.close)
            one.kernel = Kernel(str(one.directory), one.netns)
        kernel.shutdown()


ROUTER = [
    ("ip", "route", "del", "10.1.0.11/32"),
    ("ip", "link", "del", "vx4096"),
    ("ip", "link", "set", "vx4096", "mtu", "1300"),
    ("ip", "addr", "flush", "dev", "lo"),
    ("ip", "neigh", "flush", "dev", "vx4096", "nud", "permanent"),
    ("bridge", "fdb", "del", "02:6d:73:68:00:02", "dev", "vx4096", "dst", "10.66.0.12"),
    ("sysctl", "-qw", "net.ipv4.ip_forward=0"),
    ("ip", "rule", "add", "prio", "77", "lookup", "main"),
    ("nft", "add", "table", "inet", "stranger"),
]


@pytest.mark.parametrize("damage", ROUTER, ids=lambda damage: " ".join(damage[:4]))
async def test_changes_in_a_router_are_noticed(watched: Watched, damage: tuple[str, ...]) -> None:
    inside(watched.world.router(watched.host, "web"), *damage)
    assert await watched.notices()


@pytest.mark.parametrize(
    "damage",
    [
        ("ip", "link", "del", "mesh4096"),
        ("ip", "addr", "add", "10.66.0.99/24", "dev", "eth0"),
        ("sysctl", "-qw", "net.ipv4.ip_forward=0"),
        ("nft", "flush", "ruleset"),
        ("ip", "link", "set", "eth0", "mtu", "1400"),
        ("ip", "route", "add", "10.66.0.12", "dev", "eth0", "mtu", "1400"),
        ("ip", "route", "change", "default", "via", "10.66.0.1", "mtu", "1400"),
        ("ip", "route", "add", "10.1.0.0/16", "via", "10.66.0.1"),
        ("ip", "route", "add", "10.1.0.128/25", "via", "10.66.0.1"),
    ],
    ids=lambda damage: " ".join(damage[:4]),
)
async def test_changes_in_the_host_are_noticed(watched: Watched, damage: tuple[str, ...]) -> None:
    inside(watched.host.netns, "nft", "add", "table", "inet", "any")
    assert await watched.notices()
    watched.changes.clear()
    inside(watched.host.netns, *damage)
    assert await watched.notices()


async def test_a_router_whose_name_is_taken_away_is_noticed(watched: Watched) -> None:
    run("umount", watched.world.router(watched.host, "web"))
    run("rm", watched.world.router(watched.host, "web"))
    assert await watched.notices()


async def test_devices_and_neighbours_of_others_are_not_our_business(watched: Watched) -> None:
    inside(watched.host.netns, "ip", "link", "add", "dummy7", "type", "veth", "peer", "name", "dummy8")
    inside(watched.host.netns, "ip", "link", "set", "dummy7", "up")
    inside(watched.host.netns, "ip", "route", "add", "10.2.0.0/24", "via", "10.66.0.1")
    task = watched.host.tasks["web"][0]
    inside(task.netns, "ping", "-c", "1", "-W", "1", "10.1.0.1")
    assert not await watched.notices(1.0)


async def test_our_own_changes_are_not_noticed(watched: Watched) -> None:
    inside(watched.world.router(watched.host, "web"), "ip", "route", "flush", "proto", "109")
    assert await watched.notices()
    with watched.watch.quiet():
        report = await watched.in_kernel(watched.host.kernel.apply, watched.world.plan(watched.host))
        assert report.changes["route"] > 0
    assert not await watched.notices(1.0)


async def test_many_changes_at_once_are_told_once(watched: Watched) -> None:
    lines = "".join(f"route add 192.0.2.{i}/32 dev lo\n" for i in range(200))
    run("nsenter", f"--net={watched.world.router(watched.host, 'web')}", "ip", "-batch", "-", stdin=lines)
    assert await watched.notices()
    await asyncio.sleep(3 * DEBOUNCE_S)
    assert len(watched.changes) <= 3


async def test_a_router_that_is_no_longer_followed_is_let_go(watched: Watched) -> None:
    await watched.watch.follow([])
    inside(watched.world.router(watched.host, "web"), "ip", "route", "flush", "proto", "109")
    assert not await watched.notices(1.0)


async def test_a_router_that_is_not_there_is_left_out(watched: Watched) -> None:
    await watched.watch.follow(["/run/netns/no-such-router"])
    assert not await watched.notices(1.0)
