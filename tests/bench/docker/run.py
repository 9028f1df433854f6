"""Containers beside Docker's own Swarm mode, on the same three engines, one after the other in one run. Needs root.

    python tests/bench/docker/run.py [--replicas 6 30 60] [--rounds 10]

Both are asked in the same way: `service create` and `service scale` without waiting, then `service ls` until all run.
Times inside containers are the machine's uptime, which all of them share.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mesh.lab.image import BUSYBOX_IMAGE
from mesh.lab.lab import Lab

WAIT_S = 180.0
POLL_S = 0.1
CLIENT = "exec sleep 1000000"
# Says when it runs, and goes on.
READY = "cat /proc/uptime; exec sleep 1000000"
# Says when a name was first answered.
ASK = "while ! nslookup $0 2>/dev/null | grep -q ^Name; do :; done; cat /proc/uptime"
# Says when a name is answered, and with none of some addresses.
GONE = """while s=$(nslookup $0 2>/dev/null); echo "$s" | grep -qE "$1" || ! echo "$s" | grep -q ^Name; do :; done
cat /proc/uptime"""


@dataclass
class Side:
    """One of the two: how its commands begin, and what is different."""

    lab: Lab
    name: str
    client: tuple[str, ...]
    create: tuple[str, ...]
    pin: str
    network: tuple[str, ...]
    figures: dict[str, float] = field(default_factory=dict)

    def run(self, *words: str, host: str = "h1") -> str:
        done = self.lab.exec(host, [*self.client, *words], timeout=WAIT_S)
        if done.returncode:
            raise SystemExit(f"{self.name}: {' '.join(words)}: {done.stderr}")
        return done.stdout

    def service(self, name: str, replicas: int, command: str, *options: str) -> None:
        end = () if self.name == "swarm" else ("--",)
        image = (BUSYBOX_IMAGE,) if self.name == "swarm" else ("--image", BUSYBOX_IMAGE)
        spec = ("--name", name, "--replicas", str(replicas), "--network", "web", *self.create, *options)
        self.run("service", "create", "-d", *spec, *image, *end, "sh", "-c", command)

    def count(self, name: str) -> int:
        """Tasks that run."""
        rows = self.run("service", "ls", "--format", "{{.Name}} {{.Replicas}}").splitlines()
        found = dict(row.split()[:2] for row in rows)
        return int(found.get(name, "0/0").partition("/")[0])


def until(holds: Callable[[], bool], what: str) -> float:
    """Seconds until it held."""
    began = time.monotonic()
    while not holds():
        if time.monotonic() - began > WAIT_S:
            raise SystemExit(f"it never held that {what}")
        time.sleep(POLL_S)
    return time.monotonic() - began


def scale(side: Side, sizes: Sequence[int]) -> None:
    """Create with the first size, then scale to the others."""
    for step, size in enumerate(sizes):
        began = time.monotonic()
        if step == 0:
            side.service("api", size, CLIENT)
        else:
            side.run("service", "scale", "-d", f"api={size}")
        until(lambda size=size: side.count("api") == size, f"{size} replicas run")
        side.figures[f"to {size} replicas"] = time.monotonic() - began


def container_of(side: Side, host: str, service: str) -> str:
    names = side.lab.exec(host, ["docker", "ps", "--format", "{{.Names}}"]).stdout.split()
    return next(name for name in names if name.startswith(f"{service}."))


def first_answer(side: Side) -> None:
    """From the moment that a container on h2 runs until a client on h3 gets an answer to its name."""
    side.service("client", 1, CLIENT, "--constraint", f"{side.pin}==h3")
    until(lambda: side.count("client") == 1, "the client runs")
    client = container_of(side, "h3", "client")
    found = []
    for number in range(5):
        name, said = f"late{number}", []
        full = name if side.name == "swarm" else f"{name}.web.mesh"  # or each miss waits for servers of the world
        ask = ["docker", "exec", client, "sh", "-c", ASK, full]
        thread = threading.Thread(
            target=lambda ask=ask, said=said: said.append(side.lab.exec("h3", ask, WAIT_S).stdout)
        )
        thread.start()
        time.sleep(0.5)
        side.service(name, 1, READY, "--constraint", f"{side.pin}==h2")
        thread.join()
        until(lambda name=name: side.count(name) == 1, "it runs")
        ran = side.lab.exec("h2", ["docker", "logs", container_of(side, "h2", name)]).stdout
        found.append(float(said[0].split()[0]) - float(ran.split()[0]))
    side.figures["ready to answered elsewhere, median"] = statistics.median(found)


def failure(side: Side, size: int) -> None:
    """kill -9 of the host h3 with its engine: until no answer has an address of it, and until all run elsewhere."""
    side.service("watch", 2, CLIENT, "--constraint", f"{side.pin}!=h3")
    until(lambda: side.count("watch") == 2, "the watchers run")
    watchers = [(h, container_of(side, h, "watch")) for h in ("h1", "h2")]
    ids = side.lab.exec("h3", ["docker", "ps", "-q", "--filter", "name=api"]).stdout.split()
    dead = {address for one in ids for address in addresses(side, one)}
    pattern = "^Address.* (" + "|".join(re.escape(address) for address in sorted(dead)) + ")$"
    name = "tasks.api" if side.name == "swarm" else "tasks.api.web.mesh"
    side.lab.kill("h3")
    began, killed_s = time.monotonic(), uptime_s()
    times: dict[str, float] = {}

    def watch(host: str, container: str) -> None:
        done = side.lab.exec(host, ["docker", "exec", container, "sh", "-c", GONE, name, pattern], WAIT_S)
        times[host] = float(done.stdout.split()[0]) - killed_s

    threads = [threading.Thread(target=watch, args=pair) for pair in watchers]
    for thread in threads:
        thread.start()
    running = [0, 0]

    def replaced() -> bool:
        for i, host in enumerate(("h1", "h2")):
            running[i] = len(side.lab.exec(host, ["docker", "ps", "-q", "--filter", "name=api"]).stdout.split())
        return sum(running) >= size

    until(replaced, "all are replaced")
    side.figures[f"all {size} run again"] = time.monotonic() - began
    for thread in threads:
        thread.join()
    side.figures["out of DNS on every host"] = max(times.values())


def uptime_s() -> float:
    """Of the machine, which is that of all containers."""
    return float(Path("/proc/uptime").read_text().split()[0])


def addresses(side: Side, container: str) -> list[str]:
    """Of a container on h3, as it sees them itself."""
    said = side.lab.exec(
        "h3", ["docker", "exec", container, "ip", "-4", "-o", "addr", "show", "scope", "global"]
    ).stdout
    return [line.split()[3].partition("/")[0] for line in said.splitlines()]


def overhead(lab: Lab, rounds: int) -> dict[str, float]:
    """`docker run --rm` of a container that ends at once, on each kind of network in turn."""
    lab.exec("h1", ["docker", "network", "create", "-d", "bridge", "plainbridge"])
    times: dict[str, list[float]] = {"none": [], "plainbridge": [], "web": []}
    for _ in range(rounds):
        for network, found in times.items():
            began = time.monotonic()
            done = lab.exec("h1", ["docker", "run", "--rm", f"--network={network}", BUSYBOX_IMAGE, "true"])
            assert done.returncode == 0, done.stderr
            found.append(time.monotonic() - began)
    return {network: statistics.median(found) for network, found in times.items()}


def swarm(lab: Lab) -> Side:
    """Swarm mode on all hosts; services by name without a VIP, since this kernel has no IPVS."""
    side = Side(lab, "swarm", ("docker",), ("--endpoint-mode", "dnsrr", "--no-resolve-image"), "node.hostname", ())
    side.run("swarm", "init", "--advertise-addr", lab.address("h1"))
    token = side.run("swarm", "join-token", "-q", "worker").strip()
    for host in ("h2", "h3"):
        side.run("swarm", "join", "--token", token, f"{lab.address('h1')}:2377", host=host)
    side.run("network", "create", "-d", "overlay", "web")
    return side


def mesh(lab: Lab) -> Side:
    """A cluster of the same hosts, with its defaults."""
    side = Side(lab, "mesh", ("mesh",), ("--endpoint-mode", "dnsrr", "--pull", "missing"), "node.hostname", ())
    side.run("init")
    token = side.run("token", "show", "worker", "-q").strip()
    for host in ("h2", "h3"):
        side.run("join", "--token", token, f"{lab.address('h1')}:7377", host=host)
    side.run("network", "create", "web")
    return side


def measure(side: Side, sizes: Sequence[int]) -> None:
    scale(side, sizes)
    first_answer(side)
    failure(side, sizes[-1])


def main() -> None:
    """Both sides, then a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--replicas", type=int, nargs="+", default=[6, 30, 60])
    parser.add_argument("--rounds", type=int, default=10)
    asked = parser.parse_args()
    sides: list[Side] = []
    print(f"load before: {os.getloadavg()}", flush=True)
    for make in (swarm, mesh):
        lab = Lab(f"dbench{os.getpid()}")
        try:
            lab.up(3, engines=True)
            side = make(lab)
            more = overhead(lab, asked.rounds) if side.name == "mesh" else {}
            measure(side, asked.replicas)
            side.figures |= {f"docker run on {network}": figure for network, figure in more.items()}
            sides.append(side)
            print(json.dumps({"side": side.name, "load": os.getloadavg(), **side.figures}), flush=True)
        finally:
            lab.down()
    theirs, ours = sides[0].figures, sides[1].figures
    print("| | Swarm | mesh | ratio |\n|---|---:|---:|---:|")
    for what, figure in theirs.items():
        print(f"| {what} | {figure:.2f} s | {ours[what]:.2f} s | {ours[what] / figure:.2f} |")
    for what in (key for key in ours if key not in theirs):
        print(f"| {what} | | {ours[what]:.2f} s | |")


if __name__ == "__main__":
    main()
