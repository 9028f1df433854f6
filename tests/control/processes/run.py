"""Managers as processes under load, while everything happens to them; then whether what they said can be true.

    python -m tests.control.processes.run [--managers 3] [--seconds 600] [--seed 1]

Clients write, read and compare-and-set registers, at whichever manager; a register is used for a few seconds, and read
once more at the end. Checked: every register's history is linearizable (so nothing acknowledged is lost), no two
managers led in one term, all have the same state in the end, nobody failed. Measured: how long the cluster was without
a leader after each kill of one.
"""

import argparse
import asyncio
import contextlib
import json
import os
import random
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from tests.control.processes.cluster import Cluster, Manager
from tests.sim.raft.history import FOREVER, Operation, check

CLIENTS = 10
REGISTERS = 6  # at a time
SLICE_S = 3.0  # then others: the checker's work grows fast with the length of a history
PATIENCE_S = 5.0  # of a client: after that it does not know
LEADER_S = 20.0  # after the kill of one; what it takes is measured
SETTLE_S = 60.0  # for all to be well again at the end


@dataclass
class Report:
    seconds: float
    operations: int = 0
    acknowledged: int = 0
    unknown: int = 0
    refused: int = 0
    faults: dict[str, int] = field(default_factory=dict)
    gaps_s: list[float] = field(default_factory=list)  # from the kill of a leader until another one leads
    terms: int = 0
    settled_s: float = 0.0
    problems: list[str] = field(default_factory=list)

    def line(self) -> str:
        gaps = sorted(self.gaps_s)
        middle = gaps[len(gaps) // 2] if gaps else 0.0
        worst = gaps[-1] if gaps else 0.0
        return (
            f"{self.seconds:.0f} s: {self.operations} operations, {self.acknowledged} acknowledged,"
            f" {self.refused} refused, {self.unknown} unknown; {self.terms} terms;"
            f" leader killed {len(gaps)} times, next one after {middle:.1f} s, {worst:.1f} s at worst"
            f" {[round(g, 1) for g in gaps]}; well again after {self.settled_s:.1f} s; {self.faults};"
            f" problems: {self.problems or 'none'}"
        )


class Clients:
    """The load, and what it was told."""

    def __init__(self, cluster: Cluster, rng: random.Random, report: Report) -> None:
        self.cluster, self.rng, self.report = cluster, rng, report
        self.history: list[Operation] = []
        self.ended = False
        self.began = time.monotonic()
        self.values = 0
        self.guess = cluster.managers[0]  # who leads

    def register(self) -> int:
        return int((time.monotonic() - self.began) / SLICE_S) * REGISTERS + self.rng.randrange(REGISTERS)

    async def client(self) -> None:
        connections: dict[Manager, tuple] = {}
        seen: dict[int, int] = {}
        while not self.ended:
            key = self.register()
            kind = self.rng.choice(("read", "write", "cas"))
            self.values += 1
            op = Operation(kind, key, self.values, seen.get(key, 0))
            at = self.guess if kind != "read" or self.rng.random() < 0.5 else self.rng.choice(self.cluster.managers)
            answer = await self.ask(connections, at, op)
            if answer is None and kind != "read":
                self.report.unknown += 1
            if answer is not None and answer[0] == "no":
                self.report.refused += 1
            if answer is not None and answer[0] == "ok" and kind != "cas":
                seen[key] = op.value if kind == "write" else answer[1]
            if (answer is None or answer[0] != "ok") and kind != "read":
                self.guess = self.rng.choice(self.cluster.managers)
                await asyncio.sleep(0.05)
            await asyncio.sleep(self.rng.uniform(0.005, 0.03))
        for _, writer in connections.values():
            writer.close()

    async def ask(self, connections: dict, at: Manager, op: Operation):
        """What came back; None if nothing did, or nobody knows."""
        request = {
            "read": ["read", str(op.key)],
            "write": ["write", str(op.key), op.value],
            "cas": ["cas", str(op.key), op.expected, op.value],
        }[op.kind]
        answer = None
        sent = False
        op.called = time.monotonic()
        self.report.operations += 1
        try:
            async with asyncio.timeout(PATIENCE_S):
                if at not in connections:
                    connections[at] = await asyncio.open_unix_connection(str(at.socket))
                reader, writer = connections[at]
                writer.write(json.dumps(request).encode() + b"\n")
                sent = True
                line = await reader.readline()
                answer = json.loads(line) if line else None
        except (OSError, TimeoutError):
            pass
        if answer is None and at in connections:
            connections.pop(at)[1].close()
        if not sent or (answer is not None and answer[0] == "no"):
            return ["no", "not sent"] if not sent else answer
        self.history.append(op)
        if answer is None or answer[0] == "unknown":
            return None
        op.returned, op.result = time.monotonic(), answer[1]
        self.report.acknowledged += 1
        return answer


class Nemesis:
    """One thing after the other happens to managers, seldom to more than a minority of them."""

    def __init__(self, cluster: Cluster, rng: random.Random, report: Report) -> None:
        self.cluster, self.rng, self.report = cluster, rng, report
        self.faults = (
            self.kill_leader,
            self.kill_leader,
            self.kill_some,
            self.kill_all,
            self.freeze,
            self.cut_off,
            self.cut_one_way,
            self.split,
            self.fill,
        )

    def leader(self) -> Manager:
        """Who began to lead last."""
        return max(self.cluster.managers, key=lambda m: m.terms[-1][1] if m.terms else 0)

    def victim(self) -> Manager:
        return self.leader() if self.rng.random() < 0.6 else self.rng.choice(self.cluster.managers)

    def minority(self) -> list[Manager]:
        managers = self.cluster.managers
        return self.rng.sample(managers, self.rng.randint(1, (len(managers) - 1) // 2))

    async def one(self) -> None:
        fault = self.rng.choice(self.faults)
        self.report.faults[fault.__name__] = self.report.faults.get(fault.__name__, 0) + 1
        await fault()

    async def kill_leader(self) -> None:
        """One that leads, while all others are well: so what is measured is an election, not a start."""
        await well(self.cluster)
        leader = self.leader()
        last = max(term for m in self.cluster.managers for _, term in m.terms)
        killed = time.monotonic()
        await self.cluster.kill(leader)
        try:
            async with asyncio.timeout(LEADER_S):
                while not (new := [at for m in self.cluster.managers for at, term in m.terms if term > last]):
                    await asyncio.sleep(0.02)
                self.report.gaps_s.append(min(new) - killed)
        except TimeoutError:
            self.report.problems.append(f"{LEADER_S:.0f} s after the leader {leader.node_id} was killed nobody led")
        await asyncio.sleep(self.rng.uniform(0, 2))
        await self.cluster.start(leader)

    async def kill_some(self) -> None:
        killed = self.minority()
        for manager in killed:
            await self.cluster.kill(manager)
        await asyncio.sleep(self.rng.uniform(0, 4))
        for manager in killed:
            await self.cluster.start(manager)

    async def kill_all(self) -> None:
        for manager in self.cluster.managers:
            await self.cluster.kill(manager)
        for manager in self.cluster.managers:
            await self.cluster.start(manager)

    async def freeze(self) -> None:
        victim = self.victim()
        self.cluster.freeze(victim)
        await asyncio.sleep(self.rng.uniform(0.5, 6))
        self.cluster.thaw(victim)

    async def cut_off(self) -> None:
        victim = self.victim()
        self.cluster.cut(victim, [m for m in self.cluster.managers if m is not victim])
        await asyncio.sleep(self.rng.uniform(1, 7))
        self.cluster.heal(victim)

    async def cut_one_way(self) -> None:
        victim = self.victim()
        others = [m for m in self.cluster.managers if m is not victim]
        self.cluster.cut(victim, self.rng.sample(others, self.rng.randint(1, len(others))), one_way=True)
        await asyncio.sleep(self.rng.uniform(1, 7))
        self.cluster.heal(victim)

    async def split(self) -> None:
        """In two, or a pair that does not hear each other."""
        few = self.minority()
        many = [m for m in self.cluster.managers if m not in few]
        if self.rng.random() < 0.5:
            many = many[:1]
        for manager in few:
            self.cluster.cut(manager, many)
        await asyncio.sleep(self.rng.uniform(1, 7))
        for manager in few:
            self.cluster.heal(manager)

    async def fill(self) -> None:
        victim = self.rng.choice(self.cluster.small)
        await asyncio.to_thread(self.cluster.fill, victim)
        await asyncio.sleep(self.rng.uniform(1, 7))
        self.cluster.free(victim)


async def torment(directory: Path, managers: int, seconds: float, seed: int) -> Report:
    """One run."""
    rng, report = random.Random(seed), Report(seconds)
    cluster = Cluster(directory, managers, small=(managers + 1) // 2)
    try:
        await cluster.begin()
        await well(cluster)
        clients, nemesis = Clients(cluster, rng, report), Nemesis(cluster, rng, report)
        end = time.monotonic() + seconds
        async with asyncio.TaskGroup() as group:
            for _ in range(CLIENTS):
                group.create_task(clients.client())
            while time.monotonic() < end:
                await asyncio.sleep(rng.uniform(0.5, 4))
                await nemesis.one()
            before = time.monotonic()
            await well(cluster)
            report.settled_s = time.monotonic() - before
            clients.ended = True
        await read_all(cluster, clients)
        await judge(cluster, clients, report)
    except TimeoutError:
        report.problems.append(f"it did not get well: {await cluster.statuses()}")
    finally:
        for manager in cluster.managers:
            if manager.frozen:
                cluster.thaw(manager)
        await cluster.stop()
    return report


async def well(cluster: Cluster) -> None:
    """Until one leads, and it and all others have the same version."""
    async with asyncio.timeout(SETTLE_S):
        while True:
            found = await cluster.statuses()
            roles = [status["role"] for status in found]
            if len(found) == len(cluster.managers) and roles.count("leader") == 1:
                return
            await asyncio.sleep(0.1)


async def read_all(cluster: Cluster, clients: Clients) -> None:
    """Every register once more, at managers in turn."""
    connections: dict = {}
    for i, key in enumerate(sorted({op.key for op in clients.history})):
        for _ in range(20):
            op = Operation("read", key)
            if await clients.ask(connections, cluster.managers[i % len(cluster.managers)], op) is not None:
                break
            await asyncio.sleep(0.5)
        else:
            clients.report.problems.append(f"register {key} cannot be read in the end")
    for _, writer in connections.values():
        writer.close()


async def judge(cluster: Cluster, clients: Clients, report: Report) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(SETTLE_S):
            while len({s["digest"] for s in await cluster.statuses()}) > 1:
                await asyncio.sleep(0.1)
    statuses = await cluster.statuses()
    if len(statuses) < len(cluster.managers) or len({s["digest"] for s in statuses}) > 1:
        report.problems.append(f"the managers differ: {statuses}")
    terms = [term for m in cluster.managers for _, term in m.terms]
    report.terms = len(terms)
    if len(set(terms)) < len(terms):
        report.problems.append("two managers led in one term")
    report.problems += [f"{m.node_id} failed: {text}" for m in cluster.managers for text in m.failures]
    wrong = await asyncio.to_thread(check, clients.history)
    if wrong is not None:
        ops = [op for op in clients.history if op.key == wrong]
        report.problems.append(f"register {wrong} is not linearizable: {ops}")
    report.unknown = sum(1 for op in clients.history if op.returned == FOREVER and op.kind != "read")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--managers", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        report = asyncio.run(torment(Path(directory), options.managers, options.seconds, options.seed))
        if report.problems:
            for path in sorted(Path(directory).glob("*.log")):
                print(path.name, path.read_text()[-3000:])
    print(f"{options.managers} managers, seed {options.seed}, load average {os.getloadavg()[0]:.1f}: {report.line()}")


if __name__ == "__main__":
    main()
