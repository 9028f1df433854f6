"""What Lifeguard's numbers are worth: `python -m tests.sim.gossip.stalls`, in virtual time, seeded.

Twenty nodes, four of which stand still for 8 s of every 10, at a tenth of loss: how often somebody says of a healthy
node that it failed, and of one that stands still. What each choice costs: seconds from a death until all say "failed".
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

from msgspec.structs import replace

from gossip.delegate import Address, Change
from gossip.profile import LAN, Profile
from gossip.stream import StreamMessage
from gossip.swim import Swim
from gossip.swim_ports import StreamFailure
from tests.sim.gossip.cluster import Cluster, Node

NODES, STALLED, STOPPED_S, RUNNING_S, STORY_S = 20, 4, 8.0, 2.0, 300.0
SEEDS, KILLS, LOSS = 4, 10, 0.1


class Stalling:
    """A core whose process may stand still: what comes is kept, timers are late, and then packets come first."""

    def __init__(self, swim: Swim) -> None:
        self._swim = swim
        self._until_s = 0.0
        self._held: list[Callable[[float], None]] = []

    def stop(self, until_s: float) -> None:
        self._until_s = until_s

    def __getattr__(self, name: str) -> object:
        return getattr(self._swim, name)

    def deadline(self) -> float:
        return max(self._swim.deadline(), self._until_s) if self._held else self._swim.deadline()

    def _now_or_later(self, now: float, action: Callable[[float], None]) -> None:
        if now < self._until_s:
            self._held.append(action)
        else:
            action(now)

    def receive(self, data: bytes, source: Address, now: float) -> None:
        self._now_or_later(now, lambda then: self._swim.receive(data, source, then))

    def wake(self, now: float) -> None:
        if now < self._until_s:
            self._held = self._held or [lambda then: None]  # so that `deadline` says when
            return
        held, self._held = self._held, []
        for action in held:
            action(now)
        self._swim.wake(now)

    def accept_stream(self, message: StreamMessage, peer: Address, now: float) -> bytes | None:
        return None if now < self._until_s else self._swim.accept_stream(message, peer, now)

    def finish_stream(
        self, token: int, message: StreamMessage | None, failure: StreamFailure | None, now: float
    ) -> None:
        self._now_or_later(now, lambda then: self._swim.finish_stream(token, message, failure, then))


def story(profile: Profile, seed: int) -> tuple[int, int]:
    """(failures of healthy nodes, of stalled ones) that anybody told of."""
    cluster = Cluster(seed, profile=profile, loss=LOSS)
    nodes = cluster.formed(NODES)
    slow = nodes[:STALLED]
    for node in slow:
        node.swim = Stalling(node.swim)  # type: ignore[assignment]
    while cluster.now < STORY_S:
        for node in slow:
            node.swim.stop(cluster.now + STOPPED_S)  # type: ignore[attr-defined]
        cluster.run_for(STOPPED_S + RUNNING_S)
    names = {node.name for node in slow}
    failed = [name for node in nodes for _, change, name in node.seen.events if change is Change.FAILED]
    return sum(name not in names for name in failed), sum(name in names for name in failed)


def death_s(profile: Profile, seed: int) -> float:
    """From a death until all say so."""
    cluster = Cluster(seed, profile=profile, loss=LOSS)
    nodes = cluster.formed(NODES)
    cluster.run_for(5.0 + seed / 7)
    victim = nodes[seed % NODES]
    cluster.kill(victim)
    others: Sequence[Node] = cluster.up()
    return cluster.until(lambda: all(Change.FAILED in node.seen.of(victim.name) for node in others), 90.0)


def row(what: str, profile: Profile) -> str:
    told = [story(profile, seed) for seed in range(SEEDS)]
    deaths = [death_s(profile, seed) for seed in range(KILLS)]
    healthy, stalled = (sum(column) for column in zip(*told, strict=True))
    return f"| {what} | {healthy} | {stalled} | {statistics.median(deaths):.1f} (max {max(deaths):.1f}) |"


def main() -> None:
    print("| numbers | healthy failed | stalled failed | a death, to all s |\n|---|---|---|---|")
    print(row("as they are", LAN), flush=True)
    print(row("no local health (awareness 1)", replace(LAN, awareness_max=1)), flush=True)
    print(row("awareness up to 4", replace(LAN, awareness_max=4)), flush=True)
    print(row("suspicion 3 times the interval", replace(LAN, suspicion_mult=3)), flush=True)
    print(row("suspicion 5 times", replace(LAN, suspicion_mult=5)), flush=True)
    print(row("no longer without confirmation (1)", replace(LAN, suspicion_max_mult=1)), flush=True)


if __name__ == "__main__":
    main()
