"""Traffic that does not notice restarts of each daemon and rolling replacements, from inside and outside."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from mesh.lab.lab import CLIENT, Lab
from tests.e2e.conftest import Cluster, joined

pytestmark = [pytest.mark.root, pytest.mark.e2e, pytest.mark.timeout(300)]
LOAD = str(Path(__file__).with_name("load.py"))


@dataclass
class Outcome:
    """What a load saw; filled in when it has ended."""

    seen: dict[str, Any] = field(default_factory=dict)

    def unharmed(self) -> bool:
        return bool(self.seen["requests"]) and self.seen["cut"] == self.seen["failed"] == 0


@contextlib.contextmanager
def load(cluster: Cluster, host: str, *argv: str) -> Iterator[Outcome]:
    """Load from a host of the lab for the time of the block."""
    command, environment = cluster.lab.command(host, argv)
    outcome = Outcome()
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "ready\n"
            yield outcome
            out, _ = process.communicate(timeout=30)
            assert out, f"the load ended with {process.returncode}"
            outcome.seen = json.loads(out)
        finally:
            process.kill()


@contextlib.contextmanager
def loads(cluster: Cluster, streams: int) -> Iterator[tuple[Outcome, Outcome]]:
    """Through the VIP from a task, and through a published port of each kind of node from outside."""
    cluster.mesh("service", "create", "-d", "--name", "client", "--network", "web", "--", "sleep", "infinity")
    cluster.until("the client runs", lambda: len(cluster.running("client")) == 1)
    arguments = ("--streams", str(streams), "--rate", "40")
    inside = ("mesh", "task", "exec", "client.1", "--", sys.executable, LOAD, "api", "80", *arguments)
    outside = (sys.executable, LOAD, cluster.lab.address("h2"), "8080", *arguments)
    with (
        load(cluster, cluster.node_of("client.1"), *inside) as through_vip,
        load(cluster, CLIENT, *outside) as through_port,
    ):
        yield through_vip, through_port


@pytest.mark.hosts(3)
def test_two_hundred_connections_live_through_the_restart_of_each_daemon(bare_lab: Lab) -> None:
    cluster = joined(bare_lab, "4s")  # a restart on a busy machine may take longer than the second and a half of others
    cluster.serve("api", 3, "--network", "web", "--publish", "8080:80")
    with loads(cluster, 100) as outcomes:
        for host in cluster.hosts:
            cluster.lab.kill_daemon(host)
            cluster.lab.start_daemon(host)
            cluster.until("its session is there again", lambda host=host: cluster.connected(host))  # type: ignore[misc]
    for outcome in outcomes:
        assert outcome.unharmed(), outcome.seen
        assert outcome.seen["streams"] == 100


@pytest.mark.hosts(3)
@pytest.mark.parametrize("order", ["start-first", "stop-first"])
def test_no_request_fails_while_services_are_replaced(cluster: Cluster, order: str) -> None:
    cluster.serve(
        "api", 3, "--network", "web", "--publish", "8080:80", "--health-http", ":80/", "--update-order", order,
        "--update-monitor", "100ms", "--restart-delay", "100ms", "--drain-period", "500ms",
    )  # fmt: skip
    with loads(cluster, 0) as outcomes:
        for _ in range(5):
            before = set(ids(cluster))
            cluster.mesh("service", "update", "--force", "-q", "api")
            cluster.until("all were replaced", lambda before=before: replaced(cluster, before))  # type: ignore[misc]
    for outcome in outcomes:
        assert outcome.unharmed(), outcome.seen


def ids(cluster: Cluster) -> list[str]:
    rows = cluster.rows(
        "{{.ID}}|{{.CurrentState}}", "task", "ls", "--no-trunc", "--filter", "service=api",
        "--filter", "desired-state=running",
    )  # fmt: skip
    return [id_ for id_, state in rows if state.startswith("Running")]


def replaced(cluster: Cluster, before: set[str]) -> bool:
    now = ids(cluster)
    return len(now) == 3 and not before & set(now)
