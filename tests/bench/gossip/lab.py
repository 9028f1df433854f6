"""How long a dead host is still named and sent to: `sudo python tests/bench/gossip/lab.py [HOSTS] [KILLS]`, in a lab.

A service has a task on each host. On every host its name is asked for all the time, and from outside connections are
made to a published port. Then a host is killed (all its processes and its network, without a word). Seconds until

    names   the last answer, of any host that lives, that named the task of the dead one
    begun   the beginning of the last connection from outside that was sent to it: of those lost without a pause
    later   how many were lost after a second without loss, and of them, how many were refused

The managers' heartbeat is 10 s, so that only gossip can have told. Some 6 s after the kill (gossip has it for dead, and
a heartbeat was missed) the managers start another task elsewhere: the service has a health check, or that one would be
sent connections before it listens ("plain" as third argument: it has none). Ends everything it started.
"""

from __future__ import annotations

import contextlib
import os
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from mesh.lab.lab import CLIENT, Lab
from tests.e2e.conftest import Cluster, joined

NAME = "tasks.api.web.mesh"
SETTLE_S = 12.0  # after the kill: what is later than that would be the managers' doing
BEFORE_S = 2.0
PAUSE_S = 1.0

# Asks for the name all the time; prints the time of each answer that has the address.
_ASKING = """
import random, socket, struct, sys, time
name, wanted, until = sys.argv[1], socket.inet_aton(sys.argv[2]), float(sys.argv[3])
question = b"".join(bytes([len(part)]) + part.encode() for part in name.split(".")) + b"\\0\\0\\1\\0\\1"
out = socket.socket(type=socket.SOCK_DGRAM)
out.settimeout(0.5)
last, asked = 0.0, 0
while time.monotonic() < until:
    out.sendto(struct.pack("!HHHHHH", random.randrange(65536), 256, 1, 0, 0, 0) + question, ("127.0.0.153", 53))
    try: answer = out.recv(4096)
    except OSError: continue
    asked += 1
    if wanted in answer[12 + len(question):]: last = time.monotonic()
    time.sleep(0.01)
print(last, asked)
"""

# Connects all the time, four at once; prints when the last connection began that came to nothing.
_CONNECTING = """
import socket, sys, threading, time
place, until = (sys.argv[1], int(sys.argv[2])), float(sys.argv[3])
failed, refused, made = [0.0], [0.0], [0]
def connect():
    while time.monotonic() < until:
        began = time.monotonic()
        with socket.socket() as one:
            one.settimeout(0.3)
            try:
                one.connect(place)
                made[0] += 1
            except OSError as error:
                failed.append(began)
                if isinstance(error, ConnectionRefusedError):
                    refused.append(began)
        time.sleep(0.005)
threads = [threading.Thread(target=connect) for _ in range(4)]
for one in threads: one.start()
for one in threads: one.join()
print(made[0], *failed)
print(*refused)
"""


def kill(cluster: Cluster, victim: str) -> tuple[float, float, int, int, int, int]:
    """(names, begun, answers, connections, later, refused later) of one death."""
    address = next(a for node, a in cluster.running("api").values() if node == victim).partition("/")[0]
    others = [host for host in cluster.hosts if host != victim]
    until = time.monotonic() + BEFORE_S + SETTLE_S
    probes = [_run(cluster.lab, host, _ASKING, NAME, address, str(until)) for host in others]
    outside = _run(cluster.lab, CLIENT, _CONNECTING, cluster.lab.address(others[-1]), "8080", str(until))
    time.sleep(BEFORE_S)
    killed = time.monotonic()
    cluster.lab.kill(victim)
    told = [probe.communicate()[0].split() for probe in probes]
    (connections, *failed), refused = (line.split() for line in outside.communicate()[0].splitlines())
    lost = sorted(float(at) - killed for at in failed[1:])
    begun = 0.0
    for at in lost:
        if at > max(begun, 0.0) + PAUSE_S:
            break
        begun = at
    names = max(float(last) for last, _ in told) - killed
    answers = sum(int(asked) for _, asked in told)
    refused_later = sum(float(at) - killed > begun for at in refused[1:])
    return max(0.0, names), max(0.0, begun), answers, int(connections), sum(at > begun for at in lost), refused_later


def _run(lab: Lab, host: str, script: str, *arguments: str) -> subprocess.Popen[str]:
    command, environment = lab.command(host, [sys.executable, "-c", script, *arguments])
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the lab ends too
    hosts, kills = (int(word) for word in (sys.argv[1:] + ["5", "5"][len(sys.argv) - 1 :])[:2])
    lab = Lab(f"bench{os.getpid()}")
    results: list[tuple[float, float, int, int, int, int]] = []
    healthy = () if sys.argv[3:] == ["plain"] else ("--health-tcp", "80", "--health-interval", "1s")
    with contextlib.ExitStack() as stack:
        stack.callback(lab.down)
        lab.up(hosts)
        cluster = joined(lab, "10s")
        cluster.serve("api", hosts, "--network", "web", "--publish", "8080:80", *healthy)
        time.sleep(5)
        print("| kill | last wrong name s | last lost begun s | later (refused) | answers, connections | load |")
        print("|---" * 6 + "|")
        for number in range(kills):
            victim = cluster.hosts[1 + number % (hosts - 1)]
            results.append(kill(cluster, victim))
            names, begun, answers, connections, later, refused = results[-1]
            load = os.getloadavg()[0]
            print(
                f"| {victim} | {names:.2f} | {begun:.2f} | {later} ({refused}) "
                f"| {answers}, {connections} | {load:.1f} |",
                flush=True,
            )
            if number < kills - 1:
                lab.start(victim)
                cluster.until("it is back", cluster.ready, 90)
                cluster.until("its task too", lambda: len(cluster.running("api")) == hosts, 90)
                spread = {node for node, _ in cluster.running("api").values()}
                if victim_next(cluster, number + 1) not in spread:
                    cluster.mesh("service", "update", "--force", "-d", "api")
                    cluster.until(
                        "all have one", lambda: len({n for n, _ in cluster.running("api").values()}) == hosts, 90
                    )
                time.sleep(5)
    for at, what in enumerate(("last wrong name", "last lost connection")):
        values = [result[at] for result in results]
        print(f"{what}: median {statistics.median(values):.2f} s, max {max(values):.2f} s of {len(values)}")


def victim_next(cluster: Cluster, number: int) -> str:
    return cluster.hosts[1 + number % (len(cluster.hosts) - 1)]


if __name__ == "__main__":
    main()
