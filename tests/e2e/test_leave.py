"""A node that leaves takes everything of ours from its machine, and may join again."""

from __future__ import annotations

import pytest

from tests.e2e.conftest import Cluster

pytestmark = [pytest.mark.root, pytest.mark.e2e, pytest.mark.timeout(180)]

LOOKS = ("ip -brief link", "ip -4 route", "nft list ruleset", "ls /run/netns", "ls /var/lib/meshd/tasks")


def looks(cluster: Cluster, host: str) -> list[str]:
    """What a daemon leaves in a host's kernel and on its disk."""
    return [cluster.lab.exec(host, ["sh", "-c", look]).stdout for look in LOOKS]


def test_a_worker_leaves_and_its_tasks_run_elsewhere_and_it_joins_again(cluster: Cluster) -> None:
    before = looks(cluster, "h2")
    cluster.serve("api", 4, "--network", "web", "--publish", "8080:80")
    assert {node for node, _ in cluster.running("api").values()} == {"h1", "h2"}
    assert looks(cluster, "h2") != before
    cluster.mesh("leave", host="h2")
    assert looks(cluster, "h2")[:4] == before[:4]
    assert [h for (h,) in cluster.rows("{{.Hostname}}", "node", "ls")] == ["h1"]
    cluster.until("all run on h1", lambda: [n for n, _ in cluster.running("api").values()] == ["h1"] * 4)
    token = cluster.mesh("token", "show", "worker", "-q").stdout.strip()
    cluster.mesh("join", "--token", token, f"{cluster.lab.address('h1')}:7377", host="h2")
    cluster.until("all nodes are ready", cluster.ready)
    cluster.mesh("service", "scale", "-d", "api=8")
    cluster.until("h2 takes part", lambda: "h2" in {n for n, _ in cluster.running("api").values()})


def test_the_only_manager_leaves_only_by_force_and_may_begin_anew(cluster: Cluster) -> None:
    refused = cluster.mesh("leave", check=False)
    assert refused.returncode == 1
    assert "only manager" in refused.stderr
    cluster.mesh("leave", "--force")
    assert "mesh init" in cluster.mesh("node", "ls", check=False).stderr
    cluster.mesh("init")
    assert [h for (h,) in cluster.rows("{{.Hostname}}", "node", "ls")] == ["h1"]
