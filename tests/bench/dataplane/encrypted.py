"""How much goes between two hosts on an encrypted network, beside a plain one and the underlay. As root:

python -m tests.bench.dataplane.encrypted
"""

from __future__ import annotations

import contextlib
import os
import shutil
import statistics
import tempfile
import time
from ipaddress import IPv4Network
from pathlib import Path

from overlay import wireguard
from overlay.kernel import Kernel
from overlay.keys import KeyFile
from tests.bench.dataplane.rivals import Pair, process
from tests.bench.dataplane.throughput import gigabits
from tests.netns.world import World, hosts_on_a_switch, inside

ROUNDS, PINGS = 5, 200


def main() -> None:
    """The table; rounds of all paths are interleaved, ratios are to the plain network."""
    if shutil.which("iperf3") is None:
        raise SystemExit("iperf3 is not installed: apt install iperf3")
    with tempfile.TemporaryDirectory() as directory, hosts_on_a_switch(2, Path(directory)) as world:
        paths = _paths(world)
        rates: dict[str, list[float]] = {name: [] for name in paths}
        with contextlib.ExitStack() as stack:
            for netns in {pair.server for pair in paths.values()}:
                stack.enter_context(process(netns, "iperf3", "-s"))
            for _ in range(ROUNDS):
                for name, pair in paths.items():
                    rates[name].append(gigabits(pair))
        print(f"load {os.getloadavg()[0]:.0f}, WireGuard: {wireguard.find().name}")
        print(f"{'two hosts, one connection':44} {'Gbit/s':>7} {'ratio':>6} {'ping µs':>8}")
        base = statistics.median(rates["VXLAN, plain network"])
        for name, found in rates.items():
            rate = statistics.median(found)
            print(f"{name:44} {rate:7.2f} {rate / base:6.2f} {_ping_us(paths[name]):8.0f}")


def _paths(world: World) -> dict[str, Pair]:
    one, two = world.hosts
    for host in world.hosts:
        world.keys[host.number] = KeyFile(world.directory / f"state{host.number}", time.time)  # noqa: TID251
        host.kernel = Kernel(str(host.directory), host.netns, world.keys[host.number], time.time)  # noqa: TID251
    world.networks |= {"plain": (4096, IPv4Network("10.1.0.0/24")), "secret": (4097, IPv4Network("10.2.0.0/24"))}
    world.encrypted.add("secret")
    ends = {
        name: (world.task(one, name, f"10.{net}.0.11"), world.task(two, name, f"10.{net}.0.12"))
        for net, name in ((1, "plain"), (2, "secret"))
    }
    world.apply()
    plain, secret = (Pair(ends[n][0].netns, ends[n][1].netns, str(ends[n][1].address)) for n in ("plain", "secret"))
    _ping_us(secret)  # the handshake
    return {
        "underlay, plain veth": Pair(one.netns, two.netns, str(two.address)),
        "VXLAN, plain network": plain,
        "VXLAN inside WireGuard, encrypted network": secret,
    }


def _ping_us(pair: Pair) -> float:
    """The mean of round trips."""
    said = inside(pair.client, "ping", "-q", "-c", str(PINGS), "-i", "0.01", "-w", "20", pair.address, timeout_s=40)
    return float(said.rpartition("rtt")[2].split("=")[1].split("/")[1]) * 1000


if __name__ == "__main__":
    main()
