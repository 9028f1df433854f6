"""Who is said to have failed though it runs, ours and Serf's: `unshare -n python tests/bench/gossip/stress.py`.

Twenty agents on one core, lan timing, for each stress first Serf's, then ours:

    idle     nothing
    hogs     sixteen processes that want the same core
    stalls   four agents are stopped for 8 s of every 10
    loss25   a quarter of the UDP packets to one agent is lost
    loss100  all of them are; events must reach it all the same
    junk     one agent is sent 100,000 packets of junk a second

Counted in the agents' logs: failures of agents that run and were not stopped ("healthy"), and of those that were. Also
how many of ten events reached all within ten seconds. Ends everything it started.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from tests.bench.gossip.run import CORE, Watch, lossy
from tests.interop.serf.cluster import Cluster, Kind, Node
from tests.interop.serf.flood import built

SIZE = 20
STRESS_S = 60.0
HOGS = 16
STALLED, STOPPED_S, RUNNING_S = 4, 8.0, 2.0
EVENTS, EVENT_WAIT_S = 10, 10.0
_FAILED = re.compile(rb"EventMemberFailed: (\w+)")


@contextmanager
def idle(nodes: Sequence[Node]) -> Iterator[None]:
    del nodes
    yield


@contextmanager
def hogs(nodes: Sequence[Node]) -> Iterator[None]:
    del nodes
    command = ["taskset", "-c", CORE, sys.executable, "-c", "while True: pass"]
    running = [subprocess.Popen(command) for _ in range(HOGS)]
    try:
        yield
    finally:
        for one in running:
            one.kill()
            one.wait()


@contextmanager
def stalls(nodes: Sequence[Node]) -> Iterator[None]:
    over = threading.Event()

    def stop_and_go() -> None:
        while not over.is_set():
            for number, span_s in ((signal.SIGSTOP, STOPPED_S), (signal.SIGCONT, RUNNING_S)):
                for node in nodes[-STALLED:]:
                    node.signal(number)
                over.wait(span_s)
        for node in nodes[-STALLED:]:
            node.signal(signal.SIGCONT)

    thread = threading.Thread(target=stop_and_go)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def lost(percent: int) -> Callable[[Sequence[Node]], AbstractContextManager[None]]:
    return lambda nodes: lossy(percent, [nodes[3].port])


JUNK_RATE = 100_000  # packets a second


@contextmanager
def junk(nodes: Sequence[Node]) -> Iterator[None]:
    """From the other core, so that only what is received costs the agents' core."""
    other = str((int(CORE) + 1) % (os.cpu_count() or 1))
    with tempfile.TemporaryDirectory() as place:
        program = str(built(Path(place)))
        seconds = str(2 * STRESS_S)  # ended before
        command = ["taskset", "-c", other, program, str(nodes[3].port), str(JUNK_RATE), seconds]
        flood = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        before, began = _received(), time.monotonic()
        try:
            yield
        finally:
            rate = (_received() - before) / (time.monotonic() - began)
            flood.kill()
            flood.wait()
            sys.stderr.write(f"junk: {rate:.0f} packets/s came or were dropped for want of room\n")


def _received() -> int:
    """UDP packets that came to this network namespace, taken or dropped for want of room."""
    head, values = (line.split() for line in Path("/proc/net/snmp").read_text().splitlines() if line.startswith("Udp:"))
    found = dict(zip(head, values, strict=True))
    return int(found["InDatagrams"]) + int(found["RcvbufErrors"])


STRESSES: dict[str, Callable[[Sequence[Node]], AbstractContextManager[None]]] = {
    "idle": idle,
    "hogs": hogs,
    "stalls": stalls,
    "loss25": lost(25),
    "loss100": lost(100),
    "junk": junk,
}


def measure(kind: Kind, stress: str) -> list[str]:
    """A line of the table."""
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as log:
        cluster = Cluster(Path(log), [kind] * SIZE)
        for node in cluster.nodes:
            node.prefix = ("taskset", "-c", CORE)
        with cluster:
            cluster.full(90)
            time.sleep(2)
            with STRESSES[stress](cluster.nodes):
                time.sleep(STRESS_S)
                reached = 0 if stress == "stalls" else _events(cluster)
            rss = max(node.rss_mib() for node in cluster.nodes)
            with contextlib.suppress(AssertionError):
                cluster.full(60)
            complete = all(s == "alive" for node in cluster.nodes for s in node.statuses().values())
        stalled = {node.name for node in cluster.nodes[-STALLED:]} if stress == "stalls" else set()
        healthy, stopped = _failures(Path(log), stalled)
    events = "-" if stress == "stalls" else f"{reached}/{EVENTS}"
    return [stress, kind, str(healthy), str(stopped), events, f"{rss:.0f}", "yes" if complete else "no", f"{load:.1f}"]


def _events(cluster: Cluster) -> int:
    watch = Watch(cluster.nodes, "user")
    for at in range(EVENTS):
        cluster.nodes[at].client.event(f"e{at}", b"x" * 64, coalesce=False)
        time.sleep(0.3)
    time.sleep(EVENT_WAIT_S)
    reached = sum(watch.last("user", f"e{at}", cluster.nodes) is not None for at in range(EVENTS))
    watch.close()
    return reached


def _failures(log: Path, stalled: set[str]) -> tuple[int, int]:
    """(of healthy agents, of those that were stopped), as all agents logged them; what the stalled saw counts too."""
    names = [found.decode() for file in log.glob("*.log") for found in _FAILED.findall(file.read_bytes())]
    return sum(name not in stalled for name in names), sum(name in stalled for name in names)


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    with socket.socket(type=socket.SOCK_DGRAM):  # the counters of a new namespace appear with its first socket
        pass
    print("| stress | agents | healthy failed | stopped failed | events to all | RSS MiB | whole after | load |")
    print("|---" * 8 + "|", flush=True)
    for stress in sys.argv[1:] or STRESSES:
        for kind in ("serf", "mesh"):
            print("| " + " | ".join(measure(kind, stress)) + " |", flush=True)


if __name__ == "__main__":
    main()
