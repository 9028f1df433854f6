"""Containers on three real engines: the demo; and names, balancing, crashes and engines that go, with real clients."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mesh.lab.image import BUSYBOX_IMAGE, LAB_IMAGE, PYTHON, SERVER
from mesh.lab.lab import ROOT
from tests.e2e.conftest import Cluster, with_engines

pytestmark = [pytest.mark.root, pytest.mark.e2e, pytest.mark.timeout(400)]

SERVE = (PYTHON, "-I", "-S", SERVER, "--port", "80")


def test_the_demo_works_with_containers() -> None:
    name = f"ddemo{os.getpid()}"
    mesh = str(Path(sys.executable).with_name("mesh"))
    done = subprocess.run(
        [mesh, "lab", "--name", name, "demo", "--executor", "docker"],
        capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    for step in ("lab", "cluster", "services", "inside", "outside", "no task here", "failure"):
        assert f"\n{step} " in done.stdout, done.stdout[-3000:] + done.stderr
    assert "requests answered meanwhile, all afterwards" in done.stdout
    assert not (ROOT / name).exists()


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """Two hosts with engines as one cluster, with the network "web"."""
    # With the usual heartbeat: a daemon that is killed and started anew loses no tasks.
    with with_engines("dtest") as made:
        yield made


def serve(cluster: Cluster, name: str, replicas: int, image: str, *rest: str) -> None:
    """A service of containers, running."""
    options = ("--network", "web", "--restart-delay", "1s", "--init", "--image", image)
    cluster.mesh("service", "create", "-d", "--name", name, "--replicas", str(replicas), *options, *rest)
    cluster.until(f"{name} runs", lambda: len(cluster.running(name)) == replicas)


def containers(cluster: Cluster, host: str) -> list[str]:
    """The containers that run on a host, by name."""
    done = cluster.lab.exec(host, ["docker", "ps", "--format", "{{.Names}}"])
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def answered_by(cluster: Cluster, client: str, url: str, times: int) -> set[str]:
    """Who answers a client of busybox."""
    script = f"for i in $(seq {times}); do timeout 5 wget -qO- {url}; done"
    done = cluster.task(client, "sh", "-c", script)
    lines = done.stdout.splitlines()
    assert len(lines) == times, done.stderr + cluster.logs()
    return {line.split()[0].removeprefix("host=") for line in lines}


def test_containers_are_found_balanced_replaced_and_survive(cluster: Cluster) -> None:
    check = ("--health-http", ":80/", "--health-interval", "500ms")
    serve(cluster, "api", 4, LAB_IMAGE, "--publish", "8080:80", *check, "--", *SERVE)
    serve(cluster, "client", 2, BUSYBOX_IMAGE, "--", "sleep", "1000000")
    cluster.serve("plain", 1, "--network", "web")  # a process beside containers
    everybody = {"api.1", "api.2", "api.3", "api.4"}

    # By name, through the VIP and the published port, from both hosts.
    for client in cluster.running("client"):
        assert "api.web.mesh" in cluster.task(client, "nslookup", "api.web.mesh").stdout
        assert answered_by(cluster, client, "http://api/", 8) == everybody
        assert answered_by(cluster, client, "http://plain/", 1) == {"plain.1"}
    assert cluster.task("plain.1", "curl", "-sS", "-m", "3", "http://api/").stdout.startswith("host=api.")
    for host in cluster.hosts:
        said = cluster.outside("curl", "-sS", "-m", "3", f"http://{cluster.lab.address(host)}:8080/").stdout
        assert "client=198.51.100.2" in said

    # What it prints is shown; what an engine says of it, too.
    cluster.mesh(
        "service", "create", "-d", "--name", "says", "--image", BUSYBOX_IMAGE, "--restart-condition", "none",
        "--constraint", "node.hostname==h1", "--", "sh", "-c", "echo to out; echo to err >&2; exit 3",
    )  # fmt: skip
    cluster.until("it has said it", lambda: "to err" in cluster.mesh("task", "logs", "says.1", check=False).stdout)
    assert "to out" in cluster.mesh("task", "logs", "says.1").stdout

    survive_kills(cluster)
    come_back(cluster)

    cluster.mesh("service", "rm", "api", "client", "plain", "says")
    cluster.until("no task is left", lambda: cluster.rows("{{.ID}}", "task", "ls") == [])
    cluster.until("no container is left", lambda: remains(cluster) == [])


def remains(cluster: Cluster) -> list[str]:
    """Containers and namespaces of tasks on any host, whatever their state."""
    looks = (["docker", "ps", "-aq"], ["sh", "-c", "ls /run/netns | grep mesh-t-"])
    return [line for host in cluster.hosts for look in looks for line in cluster.lab.exec(host, look).stdout.split()]


def survive_kills(cluster: Cluster) -> None:
    """kill -9 of every meshd: the containers are the same afterwards."""
    before = {host: containers(cluster, host) for host in cluster.hosts}
    for host in cluster.hosts:
        cluster.lab.kill_daemon(host)
        cluster.lab.start_daemon(host)
    cluster.until("all nodes are ready", cluster.ready)
    cluster.until("its tasks run", lambda: len(cluster.running("api")) == 4)
    assert {host: containers(cluster, host) for host in cluster.hosts} == before
    assert answered_by(cluster, "client.1", "http://api/", 8) == {"api.1", "api.2", "api.3", "api.4"}


def come_back(cluster: Cluster) -> None:
    """A container removed behind our back, and an engine that is killed: tasks are replaced."""
    victim = next(name for name in containers(cluster, "h1") if name.startswith("api."))
    cluster.lab.exec("h1", ["docker", "rm", "-f", victim])
    replaced(cluster, "h1", {victim})
    gone = {name for name in containers(cluster, "h2") if name.startswith("api.")}
    cluster.lab.stop_engine("h2", signal.SIGKILL)
    assert answered_by(cluster, "client.1", "http://api/", 8), "without its engine a container serves on"
    cluster.until("h2 offers no containers", lambda: executors(cluster, "h2") == ["process"])
    cluster.lab.start_engine("h2")  # which ends the containers of the one before it
    replaced(cluster, "h2", gone)
    cluster.until("all answer", lambda: all(cluster.answers(t) for t in cluster.running("api")))
    cluster.until("h2 offers containers again", lambda: executors(cluster, "h2") == ["docker", "process"])


def executors(cluster: Cluster, host: str) -> list[str]:
    """What a node says that it can run."""
    said = cluster.mesh("node", "inspect", "--format", "{{json .Description.Executors}}", host).stdout
    return list(json.loads(said))


def replaced(cluster: Cluster, host: str, gone: set[str]) -> None:
    """Wait until none of the containers is left, and four others run."""
    cluster.until(f"{gone} are replaced", lambda: not gone & set(containers(cluster, host)))
    cluster.until("four run again", lambda: len(cluster.running("api")) == 4)
