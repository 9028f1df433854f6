"""Large clusters in virtual time, with figures: `python -m tests.sim.gossip.run 100,500,2400 0,0.1,0.25`.

For each size and loss: what a node sends while nothing happens, how long a message takes to everybody, how long a death
takes to be suspected and believed by the first and by all, and how many were falsely suspected or said to have failed.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from gossip.broadcasts import Broadcasts
from gossip.delegate import Change
from tests.sim.gossip.cluster import Cluster, Node, Recorder

IDLE_S = 10.0
MESSAGES, MESSAGE_LEN = 5, 120  # a user event of Serf with a short payload
KILLS = 3
KILL_LIMIT_S = 120.0


class Teller(Recorder):
    """Passes messages on, as Serf's layer does with events."""

    def __init__(self) -> None:
        super().__init__()
        self.node: Node | None = None
        self.cluster: Cluster | None = None
        self.queue = Broadcasts()
        self.heard: dict[bytes, float] = {}

    def user_message(self, message: bytes, now: float) -> None:
        if message not in self.heard:
            self.heard[message] = now
            self.queue.queue(message)

    def has_broadcasts(self, fresh: bool) -> bool:
        return self.queue.fresh if fresh else bool(len(self.queue))

    def broadcasts(self, overhead: int, limit: int) -> Sequence[bytes]:
        if self.node is None or not len(self.queue):
            return ()
        return self.queue.take(overhead, limit, self.node.swim.retransmits)


@dataclass
class Figures:
    """Of one size and loss. Times in seconds."""

    nodes: int
    loss: float
    idle_packets: float = 0.0  # sent by a node each second
    idle_bytes: float = 0.0
    spread_s: list[float] = field(default_factory=list)  # of each message, until the last node had it
    spread_99_s: list[float] = field(default_factory=list)
    missed: int = 0  # messages that somebody did not get within 60 s
    message_bytes: float = 0.0  # sent by a node for one message, beyond idle
    suspected_s: list[float] = field(default_factory=list)  # of each kill, by the first
    suspected_all_s: list[float] = field(default_factory=list)
    failed_s: list[float] = field(default_factory=list)
    failed_all_s: list[float] = field(default_factory=list)
    falsely_suspected: int = 0  # (node, member) pairs
    falsely_failed: int = 0
    took_s: float = 0.0  # of real time

    def line(self) -> str:
        def median(values: list[float]) -> str:
            return f"{statistics.median(values):.2f} (max {max(values):.2f})" if values else "-"

        return (
            f"| {self.nodes} | {self.loss:.0%} | {self.idle_packets:.1f} / {self.idle_bytes:.0f} "
            f"| {median(self.spread_99_s)} | {median(self.spread_s)} | {self.missed} | {self.message_bytes:.0f} "
            f"| {median(self.suspected_s)} | {median(self.suspected_all_s)} | {median(self.failed_s)} "
            f"| {median(self.failed_all_s)} | {self.falsely_suspected} / {self.falsely_failed} | {self.took_s:.0f} |"
        )


HEAD = (
    "| nodes | loss | idle: packets / bytes (node, s) | message to 99 % | to all | missed | bytes, node and message "
    "| death suspected first | by all | believed first | by all | falsely suspected / failed | real s |\n"
    + "|---" * 13
    + "|"
)


def simulate(nodes: int, loss: float, seed: int = 1, kills: int = KILLS) -> Figures:
    """One cluster through idleness, messages and deaths."""
    began = time.perf_counter()
    figures = Figures(nodes, loss)
    cluster = Cluster(seed, loss=loss)
    everybody = cluster.formed(nodes, Teller)
    for node in everybody:
        assert isinstance(node.seen, Teller)
        node.seen.node = node
        node.swim._outbox.broadcasts.clear()  # they formed long ago
    cluster.run_for(5.0)
    before = cluster.counts.copy()
    cluster.run_for(IDLE_S)
    figures.idle_packets = (cluster.counts["packets"] - before["packets"]) / IDLE_S / nodes
    figures.idle_bytes = (cluster.counts["packet_bytes"] - before["packet_bytes"]) / IDLE_S / nodes
    _messages(cluster, everybody, figures)
    for number in range(kills):
        _kill(cluster, everybody[number], figures)
    _judge(cluster, figures)
    figures.took_s = time.perf_counter() - began
    return figures


def _messages(cluster: Cluster, everybody: list[Node], figures: Figures) -> None:
    before, began_s = cluster.counts["packet_bytes"], cluster.now
    for number in range(MESSAGES):
        message, told_s = (b"%d" % number).ljust(MESSAGE_LEN, b"."), cluster.now
        everybody[cluster.random.randrange(len(everybody))].seen.user_message(message, told_s)
        cluster.run_for(6.0)
        times = sorted(n.seen.heard[message] - told_s for n in everybody if message in n.seen.heard)  # type: ignore[attr-defined]
        if len(times) < len(everybody):
            figures.missed += 1
        else:
            figures.spread_s.append(times[-1])
        figures.spread_99_s.append(times[min(len(times) - 1, int(0.99 * len(everybody)))])
    idle = figures.idle_bytes * len(everybody) * (cluster.now - began_s)
    figures.message_bytes = (cluster.counts["packet_bytes"] - before - idle) / MESSAGES / len(everybody)


def _kill(cluster: Cluster, victim: Node, figures: Figures) -> None:
    killed_s = cluster.now
    cluster.kill(victim)
    others = cluster.up()
    cluster.until(lambda: all(Change.FAILED in n.seen.of(victim.name) for n in others), KILL_LIMIT_S, step_s=0.5)
    for change, first, last in (
        (Change.SUSPECTED, figures.suspected_s, figures.suspected_all_s),
        (Change.FAILED, figures.failed_s, figures.failed_all_s),
    ):
        times = [
            at_s - killed_s
            for n in others
            for at_s, what, name in n.seen.events
            if what is change and name == victim.name
        ]
        first.append(min(times))
        last.append(max(times))


def _judge(cluster: Cluster, figures: Figures) -> None:
    running = {node.name for node in cluster.up()}
    for node in cluster.up():
        for _, change, name in node.seen.events:
            figures.falsely_suspected += change is Change.SUSPECTED and name in running
            figures.falsely_failed += change is Change.FAILED and name in running


def main() -> None:
    sizes, losses = (sys.argv[1:] + ["100", "0,0.1,0.25"][len(sys.argv) - 1 :])[:2]
    print(HEAD)
    for size in sizes.split(","):
        for loss in losses.split(","):
            print(simulate(int(size), float(loss)).line(), flush=True)


if __name__ == "__main__":
    main()
