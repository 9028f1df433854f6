"""Gossip in whole clusters: a host that dies is out of every answer before the managers know; Serf agents are found."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from mesh.lab.lab import Lab
from tests.e2e.conftest import Cluster, joined

pytestmark = [pytest.mark.root, pytest.mark.e2e, pytest.mark.timeout(180)]


def named(cluster: Cluster, name: str, host: str = "h1") -> set[str]:
    """What a host's own listener answers."""
    return set(cluster.lab.exec(host, ["dig", "+short", "@127.0.0.153", name]).stdout.split())


def members(cluster: Cluster) -> dict[str, str]:
    rows = [line.split() for line in cluster.mesh("gossip", "members").stdout.splitlines()[1:]]
    return {row[0]: row[2] for row in rows}


@pytest.mark.hosts(3)
def test_a_host_that_dies_is_out_of_every_answer_before_the_managers_know(bare_lab: Lab) -> None:
    cluster = joined(bare_lab, "60s")  # so that they know after a minute
    cluster.serve("api", 3, "--network", "web", "--publish", "8080:80")
    cluster.until("all are in gossip", lambda: members(cluster) == dict.fromkeys(cluster.hosts, "alive"))
    before = named(cluster, "tasks.api.web.mesh")
    dying = next(address for node, address in cluster.running("api").values() if node == "h3").partition("/")[0]
    assert dying in before
    cluster.lab.kill("h3")
    for host in ("h1", "h2"):
        cluster.until(
            "it is out of DNS",
            lambda host=host: named(cluster, "tasks.api.web.mesh", host) == before - {dying},  # type: ignore[misc]
            timeout_s=10,
        )
    url = f"http://{cluster.lab.address('h2')}:8080/"
    for _ in range(12):
        assert cluster.outside("curl", "-sS", "-m", "2", url).returncode == 0, "and gets no connection"
    states = dict(cluster.rows("{{.Hostname}}|{{.Status}}", "node", "ls"))
    assert states["h3"] == "Ready", "the managers do not know yet"
    cluster.lab.start("h3")
    cluster.until("it is alive again", lambda: members(cluster)["h3"] == "alive")


@pytest.mark.hosts(3)
def test_tasks_of_a_dead_host_are_replaced_as_soon_as_gossip_and_heartbeats_agree(bare_lab: Lab) -> None:
    cluster = joined(bare_lab, "10s")  # alone they would need half a minute
    cluster.serve("api", 3, "--network", "web")
    cluster.until("all are in gossip", lambda: members(cluster) == dict.fromkeys(cluster.hosts, "alive"))
    cluster.lab.kill("h3")
    cluster.until("its task runs elsewhere", lambda: sorted(n for n, _ in cluster.running("api").values())[-1] != "h3")
    cluster.until("three run again", lambda: len(cluster.running("api")) == 3)
    why = cluster.mesh("node", "inspect", "--format", "{{.Status.Message}}", "h3").stdout
    assert "gossip has it for dead" in why
    cluster.lab.start("h3")
    cluster.until("all nodes are ready", cluster.ready)


def test_a_stock_serf_agent_is_found_by_its_name(cluster: Cluster, tmp_path: Path) -> None:
    cluster.until("both are in gossip", lambda: members(cluster) == dict.fromkeys(cluster.hosts, "alive"))
    listed = cluster.mesh("gossip", "keys", "ls").stdout.split()
    keyring = tmp_path / "keyring.json"
    keyring.write_text(json.dumps([word for word in listed if word.endswith("=")]))
    command, environment = cluster.lab.command(
        "h2",
        ["serf", "agent", "-node", "printer", "-bind", "10.66.0.12:7999", "-rpc-addr", "127.0.0.1:7999",
         "-keyring-file", str(keyring), "-join", "10.66.0.11:7946"],
    )  # fmt: skip
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as printer:
        try:
            cluster.until("it is found", lambda: named(cluster, "printer.node.mesh") == {"10.66.0.12"})
            assert members(cluster)["printer"] == "alive"
        finally:
            printer.kill()
