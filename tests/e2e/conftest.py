"""Whole clusters in a lab: real daemons, real kernels, the command as a user types it."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from mesh.lab.lab import CLIENT, MESHD, Daemon, Lab

TIMEOUT_S = 60.0
# Between two looks: most cost a run of `mesh`, a quarter of a second of the processor that what is waited for needs.
PAUSE_S, PAUSE_MAX_S = 0.1, 1.0


@dataclass(frozen=True)
class Cluster:
    """A lab whose hosts form a cluster."""

    lab: Lab
    hosts: tuple[str, ...]

    def mesh(self, *args: str, host: str = "h1", check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run the command on a host."""
        done = self.lab.exec(host, ["mesh", *args], timeout=TIMEOUT_S)
        if check:
            said = f"{host} $ mesh {' '.join(args)}: {done.stdout}{done.stderr}"
            assert done.returncode == 0, f"{said}\n{self.logs()}"
        return done

    def task(self, name: str, *argv: str) -> subprocess.CompletedProcess[str]:
        """Run a command inside a task, wherever it is."""
        return self.lab.exec(self.node_of(name), ["mesh", "task", "exec", name, "--", *argv], timeout=TIMEOUT_S)

    def rows(self, template: str, *args: str) -> list[list[str]]:
        """Fields of a list."""
        out = self.mesh(*args, "--format", template).stdout
        return [line.split("|") for line in out.splitlines()]

    def running(self, service: str) -> dict[str, tuple[str, str]]:
        """Running tasks of a service: name -> (node, address)."""
        template = "{{.Name}}|{{.Node}}|{{.Addresses}}|{{.CurrentState}}"
        rows = self.rows(template, "task", "ls", "--filter", f"service={service}", "--filter", "desired-state=running")
        return {name: (node, address) for name, node, address, state in rows if state.startswith("Running")}

    def node_of(self, task: str) -> str:
        return self.running(task.partition(".")[0])[task][0]

    def outside(self, *argv: str) -> subprocess.CompletedProcess[str]:
        """Run a command as the outside client."""
        return self.lab.exec(CLIENT, list(argv), timeout=TIMEOUT_S)

    def until(self, what: str, holds: Callable[[], bool], timeout_s: float = TIMEOUT_S) -> None:
        """Wait for something to hold."""
        deadline, pause_s = time.monotonic() + timeout_s, PAUSE_S
        while not holds():
            assert time.monotonic() < deadline, f"it never held that {what}\n{self.logs()}"
            time.sleep(pause_s)
            pause_s = min(pause_s * 1.3, PAUSE_MAX_S)

    def serve(self, name: str, replicas: int, *options: str) -> None:
        """A service of the small web server, running and answering."""
        self.mesh(
            "service", "create", "-d", "--name", name, "--replicas", str(replicas), *options, "--",
            sys.executable, "-m", "mesh.lab.whoami", "--port", "80",
        )  # fmt: skip
        self.until(f"{name} runs", lambda: len(self.running(name)) == replicas)
        self.until(f"{name} answers", lambda: all(self.answers(t) for t in self.running(name)))

    def answers(self, task: str) -> bool:
        return self.task(task, "curl", "-s", "-m", "2", "http://127.0.0.1/").returncode == 0

    def ready(self) -> bool:
        """All nodes are ready."""
        return [s for (s,) in self.rows("{{.Status}}", "node", "ls")] == ["Ready"] * len(self.hosts)

    def connected(self, host: str) -> bool:
        """The daemon of a host has a session with a manager."""
        done = self.lab.exec(host, ["mesh", "status", "--format", "json"])
        return done.returncode in (0, 7) and bool(json.loads(done.stdout)["connected"])

    def logs(self) -> str:
        """The end of every daemon's log, for a failure's message."""
        ends = []
        for host in self.hosts:
            log = self.lab.directory / host / "meshd.log"
            ends.append(f"--- {host}\n" + "\n".join(log.read_text(errors="replace").splitlines()[-40:]))
        return "\n".join(ends)


@contextlib.contextmanager
def a_lab(kind: str, hosts: int, daemon: Daemon = MESHD, *, engines: bool = False) -> Iterator[Lab]:
    """A lab for as long as it is needed; `kind` begins its name, which no other test's has."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    lab = Lab(f"{kind}{os.getpid()}")
    try:
        lab.up(hosts, daemon, engines=engines)
        yield lab
    finally:
        lab.down()


@pytest.fixture
def bare_lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """Hosts with daemons that are in no cluster; `hosts(n)` says how many (2)."""
    marker = request.node.get_closest_marker("hosts")
    with a_lab("test", marker.args[0] if marker else 2) as lab:
        yield lab


@pytest.fixture
def cluster(bare_lab: Lab) -> Cluster:
    """The hosts of `bare_lab` as one cluster, the first its manager, with the network "web"."""
    return joined(bare_lab, "500ms")


@contextlib.contextmanager
def with_engines(kind: str, hosts: int = 2, heartbeat: str = "") -> Iterator[Cluster]:
    """As `cluster`, of hosts that have a Docker Engine each; `kind` begins the lab's name."""
    with a_lab(kind, hosts, engines=True) as lab:
        yield joined(lab, heartbeat)


def joined(bare_lab: Lab, heartbeat: str = "") -> Cluster:
    """A cluster of the hosts of a lab, with the network "web"; the usual heartbeat, if it names none."""
    made = Cluster(bare_lab, tuple(bare_lab.hosts()))
    made.mesh("init", *(("--dispatcher-heartbeat", heartbeat) if heartbeat else ()))
    token = made.mesh("token", "show", "worker", "-q").stdout.strip()
    for host in made.hosts[1:]:
        made.mesh("join", "--token", token, f"{bare_lab.address('h1')}:7377", host=host)
    made.until("all nodes are ready", made.ready)
    made.mesh("network", "create", "web")
    return made
