"""How much goes through one TCP connection (iperf3): on one host, and between two."""

from __future__ import annotations

import contextlib
import json
import shutil
import statistics

from tests.bench.dataplane.rivals import Pair, bridged, process, untracked
from tests.netns.vip_lab import Lab
from tests.netns.world import inside

ROUNDS, ROUND_S = 5, 1  # iperf3 takes whole seconds


def gigabits(pair: Pair) -> float:
    """Gbit/s that arrived in one round."""
    said = inside(pair.client, "iperf3", "-c", pair.address, "-t", str(ROUND_S), "-J")
    return float(json.loads(said)["end"]["sum_received"]["bits_per_second"]) / 1e9


def throughput(lab: Lab) -> None:
    """The table; rounds of all paths are interleaved, ratios are to the first of each group."""
    if shutil.which("iperf3") is None:
        raise SystemExit("iperf3 is not installed: apt install iperf3")
    one, two, _ = lab.hosts
    client, near, far = lab.netns("client1"), lab.netns("web1"), lab.netns("web2")
    vip = str(lab.nets["web"].vip)
    lab.nets["web"].backends = {lab.address("web1"): 1}  # iperf3 speaks over two connections, to one server
    lab.apply()
    with contextlib.ExitStack() as stack:
        plain, bridge = stack.enter_context(untracked()), stack.enter_context(bridged(one, two))
        groups = {
            "one host": {
                "routed, connection tracking": Pair(client, near, str(lab.address("web1"))),
                "routed, no connection tracking": plain,
                "ours, through a VIP": Pair(client, near, vip),
            },
            "two hosts": {
                "underlay, plain veth": Pair(one.netns, two.netns, str(two.address)),
                "VXLAN routed (ours)": Pair(client, far, str(lab.address("web2"))),
                "VXLAN bridged (Docker's way)": bridge,
            },
        }
        paths = [(group, name, pair) for group, some in groups.items() for name, pair in some.items()]
        for netns in dict.fromkeys(pair.server for _, _, pair in paths):
            stack.enter_context(process(netns, "iperf3", "-s"))
        found: dict[tuple[str, str], list[float]] = {(group, name): [] for group, name, _ in paths}
        for _ in range(ROUNDS):
            for group, name, pair in paths:
                found[group, name].append(gigabits(pair))
    print(f"\n{'throughput of one connection':44} {'Gbit/s':>7} {'ratio':>6}")
    for (group, name), rates in found.items():
        base = statistics.median(found[group, next(iter(groups[group]))])
        rate = statistics.median(rates)
        print(f"{f'{group}: {name}':44} {rate:7.2f} {rate / base:6.2f}")
