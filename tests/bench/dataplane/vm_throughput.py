"""Bulk traffic between two hosts, in the virtual machine: what a bridge, routing, tracking, rules and ciphers cost.

One processor, and time that is the number of instructions run, at both ends and on the way. Prints one JSON object per
path into /run/results/bench.jsonl.
"""

from __future__ import annotations

import contextlib
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from itertools import islice
from pathlib import Path

from mesh.vip.kernel import Kernel as Balancers
from mesh.vip.plan import ReturnPath, RouterPlan, VipPlan
from overlay import names
from overlay.kernel import Kernel
from overlay.keys import KeyFile
from tests.bench.dataplane.rivals import Pair, bridged, process
from tests.netns.world import Host, World, hosts_on_a_switch, inside, run

BYTES, WARM_UP_BYTES = "64M", "2M"
VNIS = {"plain": 4096, "secret": 4097}
# One rule, so that connections are tracked.
TRACKED = """
table inet beside {
  chain pass {
    type filter hook forward priority -10;
    ct state established accept
  }
}
"""


@dataclass(frozen=True)
class Path_:
    """A way between two ends, and what makes it and unmakes it."""

    pair: Pair
    begin: Callable[[], None] = lambda: None
    end: Callable[[], None] = lambda: None


def main() -> None:
    """Arguments: rounds, and how many of the first paths are to be measured."""
    rounds, most = int(sys.argv[1]), int(sys.argv[2])
    with hosts_on_a_switch(2, Path("/tmp/bench")) as world, contextlib.ExitStack() as stack:
        paths = dict(islice(_paths(world, stack), most))
        for netns in {path.pair.server for path in paths.values()}:
            stack.enter_context(process(netns, "iperf3", "-s"))
        for name, path in paths.items():
            path.begin()
            gigabits(path.pair, WARM_UP_BYTES)  # neighbours, handshakes
            found = [gigabits(path.pair) for _ in range(rounds)]
            path.end()
            told = {"throughput": name, "gigabits": statistics.median(found)}
            print(f"bench: {told}", flush=True)
            with open("/run/results/bench.jsonl", "a", encoding="utf-8") as file:
                file.write(json.dumps(told) + "\n")


def gigabits(pair: Pair, size: str = BYTES) -> float:
    """Gbit/s of the machine's own time."""
    said = json.loads(inside(pair.client, "iperf3", "-c", pair.address, "-n", size, "-J", timeout_s=600))
    return float(said["end"]["sum_received"]["bits_per_second"]) / 1e9


def _paths(world: World, stack: contextlib.ExitStack) -> Iterator[tuple[str, Path_]]:
    one, two = world.hosts
    for host in world.hosts:
        world.keys[host.number] = KeyFile(world.directory / f"state{host.number}", time.time)  # noqa: TID251
        host.kernel = Kernel(str(host.directory), host.netns, world.keys[host.number], time.time)  # noqa: TID251
    subnets = {"plain": IPv4Network("10.1.0.0/24"), "secret": IPv4Network("10.2.0.0/24")}
    world.networks |= {name: (VNIS[name], subnet) for name, subnet in subnets.items()}
    world.encrypted.add("secret")
    ends = {
        name: [world.task(h, name, f"10.{net}.0.1{h.number}") for h in world.hosts]
        for net, name in ((1, "plain"), (2, "secret"))
    }
    world.apply()
    plain, secret = (Pair(a.netns, b.netns, str(b.address)) for a, b in ends.values())
    yield "underlay, plain veth", Path_(Pair(one.netns, two.netns, str(two.address)))
    yield "VXLAN bridged (Docker's way)", Path_(stack.enter_context(bridged(one, two)))
    yield "VXLAN routed, no rules", Path_(plain)
    tracked = Path_(plain, lambda: _each(world, _tracked), lambda: _each(world, _slow))
    yield "VXLAN routed, connection tracking", tracked
    yield "VXLAN routed (ours) without a flowtable", Path_(plain, lambda: _balance(world, fast=False))
    yield "VXLAN routed (ours)", Path_(plain, lambda: _balance(world, fast=True))
    yield "encrypted, kernel's WireGuard (ours)", Path_(secret)


def _balance(world: World, fast: bool) -> None:
    """The routers' tables, as the product makes them."""
    for host in world.hosts:
        plan = VipPlan(tuple(_router(world, host, name) for name in VNIS), ())
        assert Balancers(host_netns=host.netns, balancer="nftables", fast=fast).apply(plan).errors == []


def _router(world: World, host: Host, name: str) -> RouterPlan:
    vni, subnet = world.networks[name]
    uplink = names.uplink(vni)
    return RouterPlan(
        netns=world.router(host, name),
        subnet=subnet,
        gateway=subnet.network_address + 1,
        vxlan_device=names.vxlan_device(vni),
        uplink_device=uplink.router_device,
        uplink_address=uplink.router_address,
        masquerade=True,
        local_tasks=tuple(IPv4Address(task.address) for task in host.tasks[name]),
        return_paths=tuple(
            ReturnPath(other.number, names.router_mac(other.number), names.router_address(other.number))
            for other in world.hosts
            if other is not host
        ),
        services=(),
        task_devices=tuple(names.veth_device(task.address) for task in host.tasks[name]),
    )


def _each(world: World, work: Callable[[str], None]) -> None:
    for host in world.hosts:
        work(world.router(host, "plain"))


def _tracked(router: str) -> None:
    run("nsenter", f"--net={router}", "nft", "-f", "-", stdin=TRACKED)


def _slow(router: str) -> None:
    inside(router, "nft", "delete", "table", "inet", "beside")


if __name__ == "__main__":
    main()
