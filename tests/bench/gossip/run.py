"""Gossip beside real Serf, in one run, its agents on one core: `unshare -n python tests/bench/gossip/run.py ...`.

For each size, first Serf's agents, then ours, on loopback with lan timing: seconds until all see all; an event until
all have it (p50, p99, max); SIGKILL until all suspect (ours only: Serf does not tell) and until all see it failed;
restart; leave; resident memory and idle processor time of one agent. Ends everything it started. In a network
namespace of its own, since it loses packets there (`--lossy`); each row says what else the machine had to do.
"""

from __future__ import annotations

import argparse
import math
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from gossip.serf_client import SerfClient, SerfError
from tests.interop.serf.cluster import Cluster, Kind, Node, until

KEY = "a2tra2tra2tra2tra2tra2tra2tra2tra2tra2tra2s="
IDLE_S = 20.0
EVENT_TIMEOUT_S = 40.0  # Serf's slowest was 26 s
EVENT_GAP_S = 0.3
FULL_TIMEOUT_S = 180.0  # one of forty of Serf's once did not know all after 60 s: it missed a join
CORE = "1"


@dataclass
class Row:
    """Figures of one cluster; lists are in seconds."""

    name: str
    full_s: float = 0.0
    event_s: list[float] = field(default_factory=list)
    missed: int = 0
    suspect_s: list[float] = field(default_factory=list)
    failed_s: list[float] = field(default_factory=list)
    restart_s: list[float] = field(default_factory=list)
    leave_s: float = 0.0
    rss_mib: float = 0.0
    cpu_percent: float = 0.0
    false_failures: int = 0
    load: float = 0.0  # of the machine, before


class Watch:
    """Follows the streams of all nodes, one thread each, and notes when what came."""

    def __init__(self, nodes: Sequence[Node], types: str) -> None:
        self.times: dict[str, dict[tuple[str, str], float]] = {node.name: {} for node in nodes}
        self._clients: list[SerfClient] = []
        for node in nodes:
            client = SerfClient(node.rpc_address)
            client.connect()
            records = client.stream(types)
            client.set_timeout(None)
            self._clients.append(client)
            threading.Thread(target=self._read, args=(records, self.times[node.name]), daemon=True).start()

    @staticmethod
    def _read(records: Iterator[dict[str, object]], times: dict[tuple[str, str], float]) -> None:
        try:
            for record in records:
                members = record.get("Members") or [record]
                assert isinstance(members, list)
                for item in members:
                    times.setdefault((str(record["Event"]), str(item["Name"])), time.monotonic())
        except (SerfError, OSError, AssertionError):
            return

    def last(self, event: str, name: str, nodes: Sequence[Node]) -> float | None:
        """When the last of these nodes told of it; None: not all have yet."""
        seen = [self.times[node.name].get((event, name)) for node in nodes]
        return max((t for t in seen if t is not None), default=None) if None not in seen else None

    def close(self) -> None:
        for client in self._clients:
            client.close()


@contextmanager
def lossy(percent: int, ports: Sequence[int]) -> Iterator[None]:
    """Drop so many of the UDP packets to these ports, in this (private) network namespace."""
    table = f"meshbench{os.getpid()}"
    if not percent:
        yield
        return
    numbers = ", ".join(map(str, ports))
    chosen = f"numgen random mod 100 < {percent}" if percent < 100 else ""
    rules = (
        f"table inet {table} {{ chain input {{ type filter hook input priority 0; "
        f"udp dport {{ {numbers} }} {chosen} drop; }}; }}"
    )
    subprocess.run(["nft", "-f", "-"], input=rules, text=True, check=True)
    try:
        yield
    finally:
        subprocess.run(["nft", "delete", "table", "inet", table], check=True)


def measure(kind: Kind, size: int, options: argparse.Namespace, flags: Sequence[str], loss: int) -> Row:
    """One cluster, from start to end."""
    row = Row(f"{kind} {size}" + (" encrypted" if flags else "") + (f" {loss} % loss" if loss else ""))
    with tempfile.TemporaryDirectory() as log:
        row.load = os.getloadavg()[0]
        cluster = Cluster(Path(log), [kind] * size, flags)
        for node in cluster.nodes:
            node.prefix = ("taskset", "-c", CORE)
        with lossy(loss, [node.port for node in cluster.nodes]), cluster:
            started = time.monotonic()
            cluster.full(FULL_TIMEOUT_S)
            row.full_s = time.monotonic() - started
            _events(cluster, row, options.events)
            _idle(cluster, row)
            for _ in range(options.kills):
                _kill(cluster, row)
            _leave(cluster, row)
    return row


def _events(cluster: Cluster, row: Row, count: int) -> None:
    watch = Watch(cluster.nodes, "user")
    source = random.Random(1)
    sent: dict[str, float] = {}
    for at in range(count):
        name = f"e{at}"
        sent[name] = time.monotonic()
        source.choice(cluster.nodes).client.event(name, b"x" * 64, coalesce=False)
        time.sleep(EVENT_GAP_S)
    deadline = time.monotonic() + EVENT_TIMEOUT_S
    while time.monotonic() < deadline and any(watch.last("user", n, cluster.nodes) is None for n in sent):
        time.sleep(0.2)
    for name, sent_s in sent.items():
        arrived = watch.last("user", name, cluster.nodes)
        if arrived is None:
            row.missed += 1
        else:
            row.event_s.append(arrived - sent_s)
    watch.close()


def _idle(cluster: Cluster, row: Row) -> None:
    before = [node.cpu_s() for node in cluster.nodes]
    time.sleep(IDLE_S)
    used = [node.cpu_s() - b for node, b in zip(cluster.nodes, before, strict=True)]
    row.cpu_percent = 100 * statistics.mean(used) / IDLE_S
    row.rss_mib = max(node.rss_mib() for node in cluster.nodes)


def _kill(cluster: Cluster, row: Row) -> None:
    victim = random.Random(len(row.failed_s)).choice(cluster.nodes[1:])
    others = [node for node in cluster.nodes if node is not victim]
    ours = victim.kind == "mesh"
    watch = Watch(others, "member-suspect,member-failed") if ours else None
    start = time.monotonic()
    victim.kill()
    until(lambda: all(node.statuses().get(victim.name) == "failed" for node in others), 60)
    row.failed_s.append(time.monotonic() - start)
    if watch is not None:
        last = watch.last("member-suspect", victim.name, others)
        if last is not None:
            row.suspect_s.append(last - start)
        watch.close()
    row.false_failures += sum(
        status == "failed" and name != victim.name for node in others for name, status in node.statuses().items()
    )
    start = time.monotonic()
    victim.start(cluster.log)
    victim.ready()
    victim.client.join([others[0].address])
    cluster.full(FULL_TIMEOUT_S)
    row.restart_s.append(time.monotonic() - start)


def _leave(cluster: Cluster, row: Row) -> None:
    leaver = cluster.nodes[-1]
    others = cluster.nodes[:-1]
    start = time.monotonic()
    thread = threading.Thread(target=_told_to_leave, args=(leaver,))
    thread.start()
    until(lambda: all(node.statuses().get(leaver.name) == "left" for node in others), 60)
    row.leave_s = time.monotonic() - start
    thread.join()


def _told_to_leave(node: Node) -> None:
    try:
        node.client.leave()
    except SerfError:  # it ends before its answer is read
        return


HEADINGS = (
    "cluster",
    "full",
    "event p50",
    "p99",
    "max",
    "missed",
    "suspect all p50",
    "max",
    "failed all p50",
    "max",
    "restart",
    "leave",
    "RSS MiB",
    "idle CPU %",
    "false",
    "load",
)


def cells(row: Row) -> list[str]:
    """A line of the table."""
    events = sorted(row.event_s) or [float("nan")]
    p99 = events[min(len(events) - 1, int(len(events) * 0.99))]
    numbers = [
        row.full_s,
        statistics.median(events),
        p99,
        events[-1],
        row.missed,
        _median(row.suspect_s),
        max(row.suspect_s, default=math.nan),
        _median(row.failed_s),
        max(row.failed_s, default=math.nan),
        _median(row.restart_s),
        row.leave_s,
        row.rss_mib,
        row.cpu_percent,
        row.false_failures,
        row.load,
    ]
    return [row.name, *("-" if math.isnan(n) else str(n) if isinstance(n, int) else f"{n:.2f}" for n in numbers)]


def _median(values: Sequence[float]) -> float:
    return statistics.median(values) if values else float("nan")


def ratios(serf: Sequence[str], ours: Sequence[str]) -> list[str]:
    """Ours by Serf's; below 1 is better."""
    out = ["ratio"]
    for a, b in zip(serf[1:], ours[1:], strict=True):
        try:
            out.append(f"{float(b) / float(a):.2f}x")
        except (ValueError, ZeroDivisionError):
            out.append("")
    return out


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", default="5,9,10,20,40")
    parser.add_argument("--events", type=int, default=200)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--kinds", default="serf,mesh")
    parser.add_argument("--encrypted", type=int, default=20, help="size of the encrypted cluster; 0: none")
    parser.add_argument("--lossy", type=int, default=0, help="size of the cluster with 25 %% loss (in a namespace)")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the agents end too
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)  # of a namespace that is new
    plans: list[tuple[int, list[str], int]] = [(int(size), [], 0) for size in options.sizes.split(",") if size]
    plans += [(options.encrypted, [f"-encrypt={KEY}"], 0)] if options.encrypted else []
    plans += [(options.lossy, [], 25)] if options.lossy else []
    kinds: list[Kind] = [kind for kind in ("serf", "mesh") if kind in options.kinds.split(",")]
    print("| " + " | ".join(HEADINGS) + " |\n|" + "---|" * len(HEADINGS), flush=True)
    for size, flags, loss in plans:
        lines: list[list[str]] = []
        for kind in kinds:
            lines.append(cells(measure(kind, size, options, flags, loss)))
            print("| " + " | ".join(lines[-1]) + " |", flush=True)
        if len(lines) == 2:
            print("| " + " | ".join(ratios(*lines)) + " |", flush=True)


if __name__ == "__main__":
    main()
