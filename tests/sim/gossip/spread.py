"""How often a broadcast misses somebody, by how often each node sends it: `python -m tests.sim.gossip.spread`.

Only the epidemic: who has heard it sends it to some others at random each round until it was sent so many times.
Probability in percent that at least one node is not reached (push/pull brings it there later). Seeded.
"""

from __future__ import annotations

import random
import sys

from gossip.profile import LAN

SENDS = (4, 8, 10, 12, 14, 16, 20)
SIZES = (5, 9, 20, 50, 99, 200, 500, 1000)
LOSSES = (0.0, 0.1, 0.25)
WORK = 3_000_000  # sends in one cell: so many trials as that allows, at least 200


def missed(nodes: int, sends: int, loss: float, source: random.Random) -> int:
    """Nodes that one broadcast does not reach."""
    left = {0: sends}  # who still sends it, and how often
    heard = bytearray(nodes)
    heard[0] = 1
    reached = 1
    draw, fan = source.random, LAN.gossip_nodes
    while left and reached < nodes:
        new: list[int] = []
        for node, times in list(left.items()):
            count = min(fan, times, nodes - 1)
            for to in source.sample(range(nodes - 1), count):
                to += to >= node  # noqa: PLW2901  # not to itself
                if not heard[to] and draw() >= loss:
                    heard[to] = 1
                    new.append(to)
            if times > count:
                left[node] = times - count
            else:
                del left[node]
        reached += len(new)
        left.update(dict.fromkeys(new, sends))
    return nodes - reached


def chance(nodes: int, sends: int, loss: float, seed: int = 1, work: int = WORK) -> float:
    """Of missing somebody, in percent."""
    source = random.Random(f"{seed}/{nodes}/{sends}/{loss}")
    trials = max(200, min(5000, work // (nodes * sends)))
    return 100 * sum(missed(nodes, sends, loss, source) > 0 for _ in range(trials)) / trials


def main() -> None:
    sizes = [int(size) for size in sys.argv[1].split(",")] if len(sys.argv) > 1 else SIZES
    print("| nodes | " + " | ".join(f"{sends} sends" for sends in SENDS) + " |\n" + "|---" * (len(SENDS) + 1) + "|")
    for nodes in sizes:
        cells = [" / ".join(f"{chance(nodes, sends, loss):.1f}" for loss in LOSSES) for sends in SENDS]
        print(f"| {nodes} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
