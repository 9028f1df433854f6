"""What befalls a large cluster, in virtual time: `python -m tests.sim.gossip.large rack 2400 0`.

    rack       100 nodes are gone at once: until each of the others suspects, and believes, each of them
    restart    half the nodes start anew, within two seconds: until all see all
    partition  halves do not reach each other for an hour: until each half knows, and after healing until all see all
    endpoints  each node has 42 tasks (100,000 in all at 2,400 nodes): a change to all, and what telling it costs

The last argument is the loss of packets. What is printed is a line of a table, the time of this machine at its end.
"""

from __future__ import annotations

import gc
import random
import statistics
import sys
import time
from collections.abc import Sequence

from gossip.delegate import Change, Member
from gossip.endpoints import EndpointChange, EndpointTable, Health, Send, Snapshot, TaskState
from tests.sim.gossip.cluster import LATENCY_S, Cluster, Node, Recorder

RACK = 100
HOUR_S = 3600.0
TELLING_S = 60.0  # an hour of 2,400 nodes takes two of this machine
TASKS = 42
WARM_S = 5.0
AGAIN = 1001  # incarnation of who starts anew, as in a later minute
SEEDS = 5  # as many managers: what nodes are told to join


class Quiet(Recorder):
    """Remembers only how often who was said to have failed: a large cluster has millions of events."""

    def __init__(self) -> None:
        super().__init__()
        self.events = Tally()

    def ping_complete(self, member: Member, rtt_s: float, payload: bytes, now: float) -> None:
        pass

    def merge_remote_state(self, state: bytes, join: bool, now: float) -> None:
        pass


class Tally(list[tuple[float, Change, str]]):
    """First and last time of each kind of event, and their numbers by name."""

    def __init__(self) -> None:
        super().__init__()
        self.at: dict[tuple[Change, str], float] = {}

    def append(self, event: tuple[float, Change, str]) -> None:
        at_s, change, name = event
        self.at[change, name] = at_s


def _tally(node: Node) -> dict[tuple[Change, str], float]:
    found: Tally = node.seen.events  # type: ignore[assignment]
    return found.at


def formed(nodes: int, loss: float, seed: int = 1) -> tuple[Cluster, list[Node]]:
    """A cluster that has been running for a while, its nodes told of SEEDS seeds."""
    cluster = Cluster(seed, loss=loss)
    everybody = cluster.formed(nodes, Quiet)
    for node in everybody:
        node.swim._outbox.broadcasts.clear()
        node.swim._syncer._seeds.update(dict.fromkeys((one.address for one in everybody[:SEEDS]), 0.0))
    cluster.run_for(WARM_S)
    return cluster, everybody


def per_node(cluster: Cluster, nodes: int, began_s: float, before: dict[str, int]) -> str:
    """Packets, bytes of packets and of streams that a node sent each second."""
    span = (cluster.now - began_s) * nodes
    packets, packet_bytes, stream_bytes = (
        (cluster.counts[key] - before.get(key, 0)) / span for key in ("packets", "packet_bytes", "stream_bytes")
    )
    return f"{packets:.1f} packets, {packet_bytes:.0f} + {stream_bytes:.0f} B"


def _false(cluster: Cluster, gone: set[str], since_s: float) -> int:
    return sum(
        1
        for node in cluster.up()
        for (change, name), at_s in _tally(node).items()
        if change is Change.FAILED and name not in gone and at_s >= since_s
    )


def rack(nodes: int, loss: float) -> str:
    cluster, everybody = formed(nodes, loss)
    gone = {node.name for node in everybody[SEEDS : SEEDS + min(RACK, nodes // 4)]}
    began_s, before = cluster.now, dict(cluster.counts)
    for name in gone:
        cluster.kill(cluster.nodes[name])
    cluster.until(lambda: all(node.swim.alive_count <= nodes - len(gone) for node in cluster.up()), 300.0, 1.0)
    cost = per_node(cluster, nodes, began_s, before)
    suspected, failed = [], []
    for name in gone:
        suspected.append(max(_tally(n).get((Change.SUSPECTED, name), cluster.now) for n in cluster.up()) - began_s)
        failed.append(max(_tally(n).get((Change.FAILED, name), cluster.now) for n in cluster.up()) - began_s)
    cluster.run_for(10.0)
    return (
        f"{len(gone)} lost | suspected by all {statistics.median(suspected):.1f} (last {max(suspected):.1f}) "
        f"| failed at all {statistics.median(failed):.1f} (last {max(failed):.1f}) | {cost} "
        f"| false {_false(cluster, gone, began_s)}"
    )


def restart(nodes: int, loss: float) -> str:
    cluster, everybody = formed(nodes, loss)
    began_s, before = cluster.now, dict(cluster.counts)
    seeds = [node.address for node in everybody[:SEEDS]]
    half = everybody[SEEDS : SEEDS + nodes // 2]
    for node in half:
        cluster.kill(node)

    def again(node: Node) -> None:
        cluster.start(node.name, recorder=Quiet, incarnation=AGAIN)
        node.swim.join(seeds, cluster.now)
        cluster.turn(node)

    for node in half:
        cluster.after(1.0 + cluster.random.random(), lambda node=node: again(node))  # type: ignore[misc]
    cluster.run_for(2.1)
    known_s = cluster.until(lambda: all(n.swim.alive_count == nodes for n in cluster.up()), 300.0, 0.5) + 2.1
    all_s = cluster.until(cluster.agree, 300.0, 2.0) + known_s
    cost = per_node(cluster, nodes, began_s, before)
    false = _false(cluster, set(), began_s)
    return f"{len(half)} started anew | all known {known_s:.1f} | all alive {all_s:.1f} | {cost} | false {false}"


def partition(nodes: int, loss: float, away_s: float = HOUR_S) -> str:
    cluster, everybody = formed(nodes, loss)
    left = {node.name for node in everybody[: nodes // 2]}
    halves = everybody[: nodes // 2], everybody[nodes // 2 :]
    for node in everybody:  # seeds on both sides, as managers are
        node.swim._syncer._seeds.update({halves[1][0].address: 0.0, halves[1][1].address: 0.0})
    began_s = cluster.now
    cluster.cut = lambda a, b: (a.name in left) != (b.name in left)
    apart_s = cluster.until(lambda: all(n.swim.alive_count == nodes // 2 for n in everybody), 600.0, 1.0)
    while cluster.now < began_s + away_s:
        cluster.run(min(cluster.now + TELLING_S, began_s + away_s))
        print(f"{cluster.now - began_s:.0f} s apart", file=sys.stderr, flush=True)
    assert all(cluster.agree(half) for half in halves)
    before, healed_s = dict(cluster.counts), cluster.now
    cluster.cut = lambda a, b: False
    first_s = cluster.until(lambda: any(n.swim.alive_count > nodes // 2 for n in everybody), 600.0, 0.5)
    all_s = cluster.until(cluster.agree, 900.0, 1.0)
    cost = per_node(cluster, nodes, healed_s, before)
    healed = f"heals from {first_s:.1f} | all {first_s + all_s:.1f}"
    return f"{away_s:.0f} s apart | each half knows {apart_s:.1f} | {healed} | {cost}"


class Shared(EndpointTable):
    """Keeps one copy of each snapshot for all nodes: 2,400 tables of 100,000 tasks would take 30 GB."""

    pool: dict[tuple[str, int, int], Snapshot] = {}  # noqa: RUF012  # shared on purpose

    def _accept(self, after: Snapshot, now: float) -> None:
        super()._accept(self.pool.setdefault((after.owner, *after.number), after), now)


def endpoints(nodes: int, loss: float, changes: int = 20, owners: int = 20) -> str:
    """Only the endpoint protocol, each table told of all others; `owners` change at once, as in a rolling update."""
    source, sent = random.Random(1), [0, 0]
    names = [f"n{number}" for number in range(nodes)]
    tables = {name: Shared(name, 1, random.Random(source.random()), 0.0) for name in names}
    _know_each_other(tables, source)
    world = _World(tables, loss, source, sent)
    world.run(20.0)
    idle = [count / 20.0 / nodes for count in sent]
    spread: list[float] = []
    before = sent.copy()
    began_s = world.now
    for number in range(changes):
        chosen = source.sample(names, owners)
        for name in chosen:
            tables[name].set_local(_tasks(name, number + 1))
            world.turn(name)
        version = {name: tables[name].get(name).number for name in chosen}  # type: ignore[union-attr]
        told_s = world.now

        def all_have(version: dict[str, tuple[int, int]] = version) -> bool:
            return all(t._owners[name].number >= number for t in tables.values() for name, number in version.items())

        while not all_have():
            world.run(world.now + 0.1)
            assert world.now - told_s < 120.0
        spread.append(world.now - told_s)
    cost = [
        (count - b - i * (world.now - began_s) * nodes) / changes / owners / nodes
        for count, b, i in zip(sent, before, idle, strict=True)
    ]
    spread.sort()
    return (
        f"{nodes * TASKS} tasks | change of {owners} owners "
        f"to all {statistics.median(spread):.1f} (max {spread[-1]:.1f}) "
        f"| idle {idle[0]:.2f} messages, {idle[1]:.0f} B per node and second "
        f"| {cost[0]:.1f} messages, {cost[1]:.0f} B per node and change"
    )


def _tasks(name: str, version: int) -> dict[str, TaskState]:
    health = Health.DRAINING if version % 2 else Health.READY
    return {f"{name}/{at}": TaskState(health if at == version % TASKS else Health.READY) for at in range(TASKS)}


def _know_each_other(tables: dict[str, Shared], source: random.Random) -> None:
    for name, table in tables.items():
        table.set_local(_tasks(name, 0))
        table.drain()
        table._pushes.clear()
    snapshots = {name: table.get(name) for name, table in tables.items()}
    for table in tables.values():
        for name, snapshot in snapshots.items():
            assert snapshot is not None
            table._owners[name] = snapshot
    hashes: dict[bytes, str] = {}
    for table in tables.values():
        hashes.update(table._names)
    for table in tables.values():
        table._names = dict(hashes)
        table.set_peers(tables, 0.0)
        table._gone.clear()
        table.drain()
        table._next_digest_s = source.uniform(0, 10)


class _World:
    """Tables and the messages between them."""

    def __init__(self, tables: dict[str, Shared], loss: float, source: random.Random, sent: list[int]) -> None:
        self.tables, self.loss, self.source, self.sent, self.now = tables, loss, source, sent, 0.0
        self._mail: list[tuple[float, Send]] = []

    def turn(self, name: str) -> None:
        sends, changes = self.tables[name].drain()
        assert all(isinstance(change, EndpointChange) for change in changes)
        for send in sends:
            self.sent[0] += 1
            self.sent[1] += len(send.message)
            if self.source.random() >= self.loss:
                self._mail.append((self.now + self.source.uniform(*LATENCY_S), send))

    def run(self, until_s: float, step_s: float = 0.01) -> None:
        while self.now < until_s:
            self.now += step_s
            due, self._mail = self._mail, []
            for at_s, send in due:
                if at_s > self.now:
                    self._mail.append((at_s, send))
                    continue
                self.tables[send.to].receive(send.message, self.now)
                self.turn(send.to)
            for name, table in self.tables.items():
                if table.deadline() <= self.now:
                    table.wake(self.now)
                    self.turn(name)


SCENARIOS = {"rack": rack, "restart": restart, "partition": partition, "endpoints": endpoints}


def main(words: Sequence[str]) -> None:
    name, nodes, loss = words[0], int(words[1]), float(words[2]) if len(words) > 2 else 0.0
    began = time.perf_counter()
    gc.disable()  # nothing here is in a circle, and millions of members would be looked at again and again
    result = SCENARIOS[name](nodes, loss)
    print(f"| {name} | {nodes} | {loss:.0%} | {result} | {time.perf_counter() - began:.0f} s |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
