"""kill -9 of any daemon, at any time: running tasks and open connections do not notice, and the cluster converges."""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Iterator

import pytest

from mesh.lab.lab import CLIENT, Lab
from tests.e2e.conftest import Cluster, joined

pytestmark = [pytest.mark.root, pytest.mark.e2e, pytest.mark.timeout(240)]


@contextlib.contextmanager
def stream(cluster: Cluster, host: str, *argv: str) -> Iterator[subprocess.Popen[str]]:
    """A connection that gets a line five times a second."""
    command, environment = cluster.lab.command(host, argv)
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("host=")
        try:
            yield process
        finally:
            process.kill()


def lines_for(process: subprocess.Popen[str], seconds: float) -> int:
    """How many lines still come in a time."""
    assert process.stdout is not None
    deadline, count = time.monotonic() + seconds, 0
    while time.monotonic() < deadline:
        if not process.stdout.readline().startswith("host="):
            return 0
        count += 1
    return count


def pids(cluster: Cluster) -> dict[str, str]:
    """The processes of all running tasks, as their hosts see them."""
    found = {}
    for host in cluster.hosts:
        out = cluster.lab.exec(host, ["ps", "-eo", "pid,args"]).stdout
        for line in out.splitlines():
            if "mesh.lab.whoami" in line and line.split()[0].isdigit():
                found[f"{host}/{line.split()[0]}"] = " ".join(line.split()[1:])
    return found


def test_daemons_are_killed_one_after_the_other_under_open_connections(bare_lab: Lab) -> None:
    cluster = joined(bare_lab, "4s")  # a restart on a busy machine may take longer than the second and a half of others
    cluster.serve("api", 3, "--network", "web", "--publish", "8080:80")
    cluster.mesh("service", "create", "-d", "--name", "client", "--network", "web", "--", "sleep", "infinity")
    cluster.until("the client runs", lambda: len(cluster.running("client")) == 1)
    before, tasks = pids(cluster), cluster.running("api")
    inside = ("mesh", "task", "exec", "client.1", "--", "curl", "-sSN", "http://api/stream")
    outside = ("curl", "-sSN", f"http://{cluster.lab.address('h2')}:8080/stream")
    with (
        stream(cluster, cluster.node_of("client.1"), *inside) as through_vip,
        stream(cluster, CLIENT, *outside) as through_port,
    ):
        for host in cluster.hosts:
            cluster.lab.kill_daemon(host)
            assert lines_for(through_vip, 0.5) > 0
            url = f"http://{cluster.lab.address(host)}:8080/"
            assert cluster.outside("curl", "-sS", "-m", "3", url).returncode == 0, "the kernel serves without a daemon"
            cluster.lab.start_daemon(host)
            cluster.until("its session is there again", lambda host=host: cluster.connected(host))  # type: ignore[misc]
        assert lines_for(through_vip, 1.0) > 2
        assert lines_for(through_port, 1.0) > 2
    assert pids(cluster) == before
    assert cluster.running("api") == tasks


def test_a_daemon_killed_while_tasks_are_made_finishes_them_after_its_restart(cluster: Cluster) -> None:
    for round_ in range(3):
        name = f"s{round_}"
        cluster.mesh(
            "service", "create", "-d", "--name", name, "--replicas", "4", "--network", "web", "--", "sleep", "infinity"
        )
        time.sleep(0.1 * round_)
        for host in cluster.hosts:
            cluster.lab.kill_daemon(host)
        for host in cluster.hosts:
            cluster.lab.start_daemon(host)
        cluster.until(f"{name} runs", lambda name=name: len(cluster.running(name)) == 4)  # type: ignore[misc]
    cluster.mesh("service", "rm", "s0", "s1", "s2")
    cluster.until("nothing of them is left", lambda: cluster.rows("{{.ID}}", "task", "ls") == [])
    for host in cluster.hosts:
        cluster.until(
            f"{host} has no task's namespace",
            lambda host=host: "mesh-t-" not in cluster.lab.exec(host, ["ls", "/run/netns"]).stdout,  # type: ignore[misc]
        )


def test_a_host_that_loses_power_and_returns_takes_part_again(cluster: Cluster) -> None:
    cluster.serve("api", 4, "--network", "web", "--restart-delay", "1s")
    cluster.lab.kill("h2")
    cluster.until("all run on h1", lambda: {n for n, _ in cluster.running("api").values()} == {"h1"}
                  and len(cluster.running("api")) == 4)  # fmt: skip
    cluster.lab.start("h2")
    cluster.until("all nodes are ready", cluster.ready)
    cluster.mesh("service", "scale", "-d", "api=8")
    cluster.until("eight run on both", lambda: len(cluster.running("api")) == 8)
    assert {n for n, _ in cluster.running("api").values()} == {"h1", "h2"}
    cluster.until("all answer", lambda: all(cluster.answers(t) for t in cluster.running("api")))


def test_containers_keep_resolving_and_connecting_while_the_only_manager_is_away(cluster: Cluster) -> None:
    cluster.serve("api", 2, "--network", "web")
    cluster.mesh(
        "service", "create", "-d", "--name", "client", "--network", "web", "--constraint", "node.hostname==h2", "--",
        "sleep", "infinity",
    )  # fmt: skip
    cluster.until("the client runs", lambda: len(cluster.running("client")) == 1)
    time.sleep(1.0)  # every node has written its copy
    cluster.lab.kill_daemon("h1")
    ask = ["mesh", "task", "exec", "client.1", "--", "curl", "-sS", "-m", "3", "http://api/"]
    assert cluster.lab.exec("h2", ask).stdout.startswith("host=api.")
    cluster.lab.kill_daemon("h2")
    cluster.lab.start_daemon("h2")
    cluster.until("h2 serves from its copy", lambda: cluster.lab.exec("h2", ask).stdout.startswith("host=api."))
    refused = cluster.mesh("service", "ls", host="h2", check=False)
    assert refused.returncode == 5
    assert "no manager answers" in refused.stderr
    cluster.lab.start_daemon("h1")
    cluster.until("all nodes are ready", cluster.ready)
