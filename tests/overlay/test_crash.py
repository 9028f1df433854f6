"""The process that makes the overlay is killed after each of its calls of the kernel: the next one ends where it would.

Of a change there are some dozens of such calls. After each of them, in turn, a process that began the change is killed,
and a fresh one, which knows nothing, makes the plan true. What the kernel then holds is what it holds when nobody was
killed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Any

import pytest

from overlay import names
from overlay.kernel import Kernel
from overlay.plan import OverlayPlan
from tests.netns.crash import killed_after
from tests.netns.world import Host, World, hosts_on_a_switch, inside

# Some hundred processes, each of which makes a whole overlay: on a busy machine that takes minutes.
pytestmark = [pytest.mark.root, pytest.mark.timeout(600)]

# What the kernel gives out by itself: numbers of devices, MACs of veths, what settles, what counts.
_BY_ITSELF = frozenset(
    {"ifindex", "link_index", "link_netnsid", "address", "broadcast", "flags", "operstate", "stats64", "txqlen", "link",
     "valid_life_time", "preferred_life_time", "group", "age", "used", "confirmed", "updated", "probes", "expires"}
)  # fmt: skip
_SYSCTLS = ("net.ipv4.ip_forward", "net.ipv4.conf.all.proxy_arp", "net.ipv4.conf.all.rp_filter",
            "net.ipv4.conf.all.send_redirects", "net.ipv6.conf.all.forwarding")  # fmt: skip
_LOOKS = (
    "ip -j -d link",
    "ip -j addr",
    "ip -j route show table all",
    "ip -j neigh show nud permanent",
    "bridge -j fdb",
    f"sysctl {' '.join(_SYSCTLS)}",
)
# More calls than any of these changes has: a work that never ends would be killed for ever.
_MOST_CALLS = 200


@dataclass
class Stage:
    """A host, and two plans for it."""

    host: Host
    world: World
    first: OverlayPlan
    second: OverlayPlan

    @property
    def nothing(self) -> OverlayPlan:
        """The plan of a node that has left."""
        return replace(self.first, peers=(), networks=())

    def make(self, plan: OverlayPlan) -> None:
        """What each process does: apply and prune, knowing nothing."""
        kernel = Kernel(netns_dir=str(self.host.directory), host_netns=self.host.netns)
        try:
            assert [*kernel.apply(plan).errors, *kernel.prune(plan).errors] == []
        finally:
            kernel.close()

    def state(self) -> set[str]:
        """All that the kernel holds in the host, its routers and the tasks: a line for each thing."""
        places = [Path(self.host.netns), *sorted(self.host.directory.glob("*"))]
        places += [Path(t.netns) for some in self.host.tasks.values() for t in some]
        return {f"{place.name} {line}" for place in places for line in _held(str(place))}


def _held(netns: str) -> Iterator[str]:
    said = inside(netns, "sh", "-c", "; echo; ".join(_LOOKS)).splitlines()
    lists = [line for line in said if line.startswith("[")]
    yield from (line for line in said if line.startswith("net."))
    for number, text in enumerate(lists):
        for one in _steady(json.loads(text)):
            yield f"{number} {json.dumps(one, sort_keys=True)}"


def _steady(value: Any) -> Any:
    if isinstance(value, dict):
        return None if _is_the_kernels(value) else {k: _steady(v) for k, v in value.items() if k not in _BY_ITSELF}
    if isinstance(value, list):
        steady = (_steady(one) for one in value)
        return sorted((one for one in steady if one is not None), key=lambda one: json.dumps(one, sort_keys=True))
    return value


def _is_the_kernels(thing: dict[str, Any]) -> bool:
    """What IPv6 makes of the MAC of each device, when it comes to it."""
    by_mac = str(thing.get("local", "")).startswith("fe80") and thing["local"] != str(names.LINK_LOCAL_GATEWAY)
    multicast = str(thing.get("mac", "")).startswith(("33:33", "01:00:5e"))
    return by_mac or multicast or (":" in str(thing.get("dst", "")) and thing.get("protocol") == "kernel")


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """One network becomes another one beside it, a task goes, one comes, and a node moves."""
    with hosts_on_a_switch(2, tmp_path_factory.mktemp("crash")) as world:
        one, two = world.hosts
        world.networks["web"], world.subnets6["web"] = (4096, IPv4Network("10.1.0.0/24")), IPv6Network("fd00:1::/64")
        going = world.task(one, "web", "10.1.0.10")
        world.task(one, "web", "10.1.0.11")
        far = world.task(two, "web", "10.1.0.12")
        first = world.plan(one)
        one.tasks["web"].remove(going)
        two.tasks["web"].remove(far)
        world.task(one, "web", "10.1.0.13")
        two.address += 100
        world.networks["db"] = (4097, IPv4Network("10.1.0.0/24"))
        world.task(one, "db", "10.1.0.10")
        world.task(two, "db", "10.1.0.12")
        second = world.plan(one)
        one.tasks["web"].append(going)  # looked at, too
        yield Stage(one, world, first, second)


CHANGES: dict[str, tuple[Callable[[Stage], OverlayPlan], Callable[[Stage], OverlayPlan]]] = {
    "from nothing": (lambda stage: stage.nothing, lambda stage: stage.first),
    "to other tasks, networks and nodes": (lambda stage: stage.first, lambda stage: stage.second),
    "to nothing": (lambda stage: stage.second, lambda stage: stage.nothing),
}


@pytest.mark.parametrize("change", CHANGES)
def test_killed_after_each_call_of_the_kernel_the_next_process_ends_where_it_would(stage: Stage, change: str) -> None:
    before, after = (plan(stage) for plan in CHANGES[change])
    stage.make(before)
    stage.make(after)
    wanted = stage.state()
    for call in range(_MOST_CALLS):
        stage.make(before)
        if not killed_after(call, lambda: stage.make(after)):
            break
        stage.make(after)
        found = stage.state()
        assert (call, found - wanted, wanted - found) == (call, set(), set())
    assert 10 < call < _MOST_CALLS - 1
