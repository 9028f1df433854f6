"""Containers that go wrong, and engines that come late, in a whole cluster: what a user sees, and that it heals."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from mesh.lab.image import BUSYBOX_IMAGE, LAB_IMAGE, PYTHON, SERVER
from mesh.lab.lab import MESHD
from tests.e2e.conftest import Cluster, with_engines

pytestmark = [pytest.mark.root, pytest.mark.e2e, pytest.mark.timeout(400)]

SERVE = (PYTHON, "-I", "-S", SERVER, "--port", "80")
PLUGIN = "/run/docker/plugins/mesh.sock"


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Two hosts with engines as one cluster, with the network "web"."""
    with with_engines("ttest") as made:
        yield made


def once(cluster: Cluster, name: str, *options: str, command: tuple[str, ...] = (), image: str = BUSYBOX_IMAGE) -> None:
    """A service of one container that is not tried twice."""
    cluster.mesh(
        "service", "create", "-d", "--name", name, "--network", "web", "--image", image, "--pull", "missing",
        "--restart-condition", "none", *options, "--", *command,
    )  # fmt: skip


def states(cluster: Cluster, name: str) -> list[tuple[str, str]]:
    """(state, error) of all tasks of a service."""
    template = "{{.CurrentState}}|{{.Error}}"
    rows = cluster.rows(template, "task", "ls", "--no-trunc", "--filter", f"service={name}")
    return [(state.split()[0], error) for state, error in rows]


def ends(cluster: Cluster, name: str, state: str, sentence: str) -> None:
    """Wait until its only task has come to a state, with a sentence."""

    def has() -> bool:
        return [(s, sentence in e) for s, e in states(cluster, name)] == [(state, True)]

    cluster.until(f"{name} is {state} with {sentence}", has)


def test_each_end_of_a_container_is_told_in_a_sentence(cluster: Cluster) -> None:
    wrong = f"{BUSYBOX_IMAGE.partition(':')[0]}@sha256:{'0' * 64}"
    eats = 'x=$(head -c 100000000 /dev/zero | tr "\\0" x)'
    once(cluster, "exits", command=("sh", "-c", "exit 3"))
    once(cluster, "eats", "--limit-memory", "16M", command=("sh", "-c", eats))
    once(
        cluster, "ill", "--health-cmd", "ls /well", "--health-interval", "300ms", "--health-retries", "2",
        command=("sh", "-c", "touch /well; sleep 3; rm /well; exec sleep 1000"),
    )  # fmt: skip
    once(cluster, "never-well", "--health-tcp", "81", "--health-interval", "300ms", command=("sleep", "1000"))
    once(cluster, "no-image", image="nobody/has:it", command=("true",))
    once(cluster, "no-digest", image=wrong, command=("true",))
    once(cluster, "no-command", command=("there-is-no-such-command",))
    ends(cluster, "exits", "Failed", "ended with exit code 3")
    ends(cluster, "eats", "Failed", "killed for want of memory")
    ends(cluster, "ill", "Failed", "unhealthy: ls /well ended with 1")
    ends(cluster, "never-well", "Failed", "unhealthy: Connection refused")
    ends(cluster, "no-image", "Rejected", 'cannot pull image "nobody/has:it"')
    ends(cluster, "no-digest", "Rejected", "cannot pull image")
    ends(cluster, "no-command", "Failed", 'command "there-is-no-such-command" is not found in its image')
    cluster.mesh("service", "rm", "exits", "eats", "ill", "never-well", "no-image", "no-digest", "no-command")
    cluster.until("no task is left", lambda: cluster.rows("{{.ID}}", "task", "ls") == [])


def test_who_ignores_the_stop_signal_is_gone_after_its_grace(cluster: Cluster) -> None:
    stubborn = "trap '' TERM; while :; do sleep 0.2; done"
    once(cluster, "stubborn", "--stop-grace-period", "1s", command=("sh", "-c", stubborn))
    cluster.until("it runs", lambda: [s for s, _ in states(cluster, "stubborn")] == ["Running"])
    cluster.mesh("service", "rm", "stubborn")
    cluster.until("no task is left", lambda: cluster.rows("{{.ID}}", "task", "ls") == [])
    for host in cluster.hosts:
        assert cluster.lab.exec(host, ["docker", "ps", "-aq"]).stdout == ""


def executors(cluster: Cluster, host: str) -> list[str]:
    said = cluster.mesh("node", "inspect", "--format", "{{json .Description.Executors}}", host).stdout
    return list(json.loads(said))


def test_a_node_whose_engine_comes_after_it_gets_containers_then(cluster: Cluster) -> None:
    cluster.lab.kill_daemon("h2")
    cluster.lab.stop_engine("h2")
    cluster.lab.start_daemon("h2")
    cluster.until("all nodes are ready", cluster.ready)
    cluster.until("h2 offers no containers", lambda: executors(cluster, "h2") == ["process"])
    once(cluster, "waits", "--constraint", "node.hostname==h2", command=("sleep", "1000"))
    cluster.until("it is pending", lambda: [s for s, _ in states(cluster, "waits")] == ["Pending"])
    cluster.lab.start_engine("h2")
    cluster.until("it runs", lambda: [s for s, _ in states(cluster, "waits")] == ["Running"])
    cluster.mesh("service", "rm", "waits")
    cluster.until("no task is left", lambda: cluster.rows("{{.ID}}", "task", "ls") == [])


def test_an_engine_that_boots_first_waits_for_meshd_and_loses_no_container(cluster: Cluster) -> None:
    """With the socket held by systemd's own tool, as meshd-docker.socket has it; the engine's call starts meshd."""
    lab = cluster.lab
    cluster.until("h2 has the network", lambda: "web" in lab.exec("h2", ["docker", "network", "ls"]).stdout)
    done = lab.exec(
        "h2", ["docker", "run", "-d", "--name", "kept", "--hostname", "kept", "--restart", "always", "--init",
               "--network", "web", LAB_IMAGE, *SERVE],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lab.kill_daemon("h2")
    lab.stop_engine("h2", signal.SIGKILL)
    lab.exec("h2", ["rm", "-f", PLUGIN, MESHD.socket])
    socket = ("systemd-socket-activate", f"--listen={PLUGIN}", "--fdname=meshd-docker.socket")
    meshd = [word.replace("{host}", "h2") for word in MESHD.command]
    directory: Path = lab.directory / "h2"
    lab._run_in_background("h2", [*socket, *meshd], directory / "meshd.log", "daemon.json", "a socket")
    cluster.until("systemd listens", lambda: lab.exec("h2", ["test", "-S", PLUGIN]).returncode == 0)
    assert lab.exec("h2", ["test", "-S", MESHD.socket]).returncode, "meshd has not been started"
    lab.start_engine("h2")
    assert lab.exec("h2", ["docker", "ps", "--format", "{{.Names}}"]).stdout.split() == ["kept"]
    cluster.until("meshd has been started", lambda: cluster.connected("h2"))
    cluster.serve("asks", 1, "--network", "web", "--constraint", "node.hostname==h1")
    cluster.until("it answers", lambda: "host=kept" in cluster.task("asks.1", "curl", "-sS", "http://kept/").stdout)
    lab.exec("h2", ["docker", "rm", "-f", "kept"])
    cluster.mesh("service", "rm", "asks")


def test_an_attached_container_that_dies_without_its_engine_is_forgotten(cluster: Cluster) -> None:
    lab = cluster.lab
    options = ("--hostname", "lone", "--network", "none", "--init")
    assert lab.exec("h2", ["docker", "run", "-d", "--name", "lone", *options, LAB_IMAGE, *SERVE]).returncode == 0
    cluster.mesh("attach", "lone", "--network", "web", host="h2")
    cluster.serve("asks", 1, "--network", "web", "--constraint", "node.hostname==h1")
    cluster.until("it answers", lambda: "host=lone" in cluster.task("asks.1", "curl", "-sS", "http://lone/").stdout)
    pid = lab.exec("h2", ["docker", "inspect", "-f", "{{.State.Pid}}", "lone"]).stdout.strip()
    lab.stop_engine("h2", signal.SIGKILL)
    lab.exec("h2", ["kill", "-9", pid])
    # Nobody waits for what cannot be done here: a service is drained and removed as ever.
    cluster.mesh("service", "rm", "asks")
    cluster.until("no task is left", lambda: cluster.rows("{{.ID}}", "task", "ls") == [])
    lab.start_engine("h2")
    cluster.until("it is forgotten", lambda: "lone" not in cluster.mesh("dns", "dump", host="h1").stdout)
    lab.exec("h2", ["docker", "rm", "-f", "lone"])
