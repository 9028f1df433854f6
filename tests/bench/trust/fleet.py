"""How long a fleet of nodes takes to come to a new leader, and to get certificates of a new root; what it costs.

    nice -n 10 .venv/bin/python -m tests.bench.trust.fleet [--leader 500] [--rotate 1000] [--rounds 3]

A lab of three managers with whole daemons; the nodes are sessions in one process on another machine (`agents`), with
keys, certificates and renewal as daemons have them, but no kernel behind. Heartbeats every 5 s. Times are seconds of
the machine's clock; load is processor time of the leader's daemon. Ends everything it started. Needs root.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from control.ca.disk import Shelf
from mesh.lab.lab import CLIENT, Lab
from tests.bench.trust.agents import Plan
from tests.e2e.conftest import Cluster, joined

ROOT = Path(__file__).parents[3]
WAIT_S = 900.0
SETTLE_S = 10.0
HOSTS = ("h1", "h2", "h3")
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class Fleet:
    """The program with the nodes, and what it has said last."""

    def __init__(self, lab: Lab, plan: Plan) -> None:
        self.said: list[dict[str, float]] = []
        command, environment = lab.command(CLIENT, [sys.executable, "-m", "tests.bench.trust.agents"])
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**environment, "PYTHONPATH": str(ROOT)},
        )
        assert self._process.stdin is not None
        self._process.stdin.write(msgspec.json.encode(plan).decode() + "\n")
        self._process.stdin.flush()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.said.append(json.loads(line))

    def until(self, what: str, holds: Callable[[dict[str, float]], bool], since: int = 0) -> float:
        """When something held first, of what was said from `since` on."""
        deadline = time.monotonic() + WAIT_S
        while True:
            for line in self.said[since:]:
                if holds(line):
                    return line["at"]
            since = max(since, len(self.said) - 1)
            if time.monotonic() > deadline or self._process.poll() is not None:
                raise SystemExit(f"it never held that {what}: {self.said[-1:]}")
            time.sleep(0.05)

    def end(self) -> None:
        self._process.kill()
        self._process.wait(10)


def three_managers(lab: Lab) -> Cluster:
    cluster = joined(lab, "5s")
    cluster.mesh("node", "promote", "h2", "h3")
    cluster.until("there are three managers", lambda: statuses(cluster).count("reachable") == 2)
    return cluster


def statuses(cluster: Cluster, host: str = "h1") -> list[str]:
    done = cluster.mesh("quorum", "status", "--format", "{{.Status}}", host=host, check=False)
    return done.stdout.split()


def leader(cluster: Cluster) -> str:
    for host in HOSTS:
        done = cluster.mesh("quorum", "status", "--format", "{{.Name}} {{.Status}}", host=host, check=False)
        names = [line.split()[0] for line in done.stdout.splitlines() if line.endswith(" leader")]
        if names:
            return names[0]
    raise SystemExit("nobody leads")


def a_fleet(cluster: Cluster, count: int) -> Fleet:
    lab = cluster.lab
    mine = Shelf(lab.directory / leader(cluster) / "disk" / "tls").load()
    assert mine is not None
    token = cluster.mesh("token", "show", "worker", "-q").stdout.strip()
    managers = tuple(f"{lab.address(host)}:7377" for host in (leader(cluster), *HOSTS))
    fleet = Fleet(lab, Plan(count, managers, token, mine.key.decode(), mine.chain.decode(), mine.roots.decode()))
    while not fleet.said:
        time.sleep(0.1)
    fleet.until("all have come", lambda line: line["connected"] == count)
    time.sleep(SETTLE_S)
    return fleet


def processor_s(cluster: Cluster, host: str) -> float:
    """What the daemon of a host has used so far."""
    pid = cluster.lab.daemon_pid(host)
    fields = cluster.lab.exec(host, ["cat", f"/proc/{pid}/stat"]).stdout.rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_S


def change_of_leader(cluster: Cluster, fleet: Fleet, count: int) -> dict[str, float]:
    """Seconds from the death of the leader until parts of the fleet have a session with the next one."""
    before, since = leader(cluster), len(fleet.said)
    cluster.lab.kill_daemon(before)
    began = time.monotonic()
    gone = fleet.until("they are gone", lambda line: line["connected"] < count * 0.1, since)
    since = next(number for number, line in enumerate(fleet.said) if line["at"] == gone)
    parts = ((0.5, "half"), (0.99, "99 %"), (1.0, "all"))
    found = {
        name: fleet.until(f"{name} are back", lambda line, part=part: line["connected"] >= count * part, since) - began
        for part, name in parts
    }
    found["leader's processor time"] = processor_s(cluster, leader(cluster))
    cluster.lab.start_daemon(before)
    cluster.until("there are three managers", lambda: statuses(cluster, leader(cluster)).count("reachable") == 2)
    time.sleep(SETTLE_S)
    return found


def rotation(cluster: Cluster, fleet: Fleet, count: int) -> dict[str, float]:
    """Seconds until every node has a certificate of the new root, and what that took."""
    now, since = leader(cluster), len(fleet.said)
    used, began, renewed = processor_s(cluster, now), time.monotonic(), fleet.said[-1]["renewed"]
    cluster.mesh("ca", "rotate", "--detach", host=now)
    last = fleet.until("all have renewed", lambda line: line["renewed"] - renewed >= count, since)
    deadline = time.monotonic() + WAIT_S
    while cluster.mesh("ca", "show", "--format", "{{.changing}}", host=now).stdout.strip().lower() != "false":
        if time.monotonic() > deadline:
            raise SystemExit("the change of the root does not end")
        time.sleep(0.2)
    settled = time.monotonic() - began
    lost = sum(line["connected"] < count for line in fleet.said[since:])
    return {
        "certificates": last - began,
        "settled": settled,
        "leader's processor time": processor_s(cluster, now) - used,
        "reports with a session missing": lost,
    }


def measured(count: int, rounds: int, one: Callable[[Cluster, Fleet, int], dict[str, float]]) -> None:
    lab = Lab(f"fleet{os.getpid()}")
    fleet = None
    try:
        lab.up(3)
        cluster = three_managers(lab)
        began = time.monotonic()
        fleet = a_fleet(cluster, count)
        print(f"{count} nodes have joined and connected in {time.monotonic() - began - SETTLE_S:.1f} s", flush=True)
        found = [one(cluster, fleet, count) for _ in range(rounds)]
        for name in found[0]:
            values = sorted(row[name] for row in found)
            print(f"  {name:34}{statistics.median(values):8.2f}   ({', '.join(f'{value:.2f}' for value in values)})")
    finally:
        if fleet is not None:
            fleet.end()
        lab.down()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--leader", type=int, default=500)
    parser.add_argument("--rotate", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    print(f"load {os.getloadavg()[0]:.1f}")
    if given.leader:
        print(f"the leader dies: seconds until {given.leader} nodes are back")
        measured(given.leader, given.rounds, change_of_leader)
    if given.rotate:
        print(f"mesh ca rotate with {given.rotate} nodes, seconds")
        measured(given.rotate, given.rounds, rotation)


if __name__ == "__main__":
    main()
