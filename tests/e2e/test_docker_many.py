"""Many replicas on three engines, and as many containers of others beside them on the same network.

Thirty of each; MESH_MANY=60 for twice as many, which takes five minutes of two cores.
"""

from __future__ import annotations

import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

from mesh.lab.image import BUSYBOX_IMAGE
from tests.e2e.conftest import Cluster, with_engines

pytestmark = [pytest.mark.root, pytest.mark.e2e, pytest.mark.timeout(1500)]

REPLICAS = int(os.environ.get("MESH_MANY", "30"))
PER_HOST = REPLICAS // 3
# Two cores start a container in a second or so, and other tests may want them.
ALL_S = 600.0


def test_many_replicas_and_many_containers_of_others() -> None:
    with with_engines("many", hosts=3) as cluster:
        try_many(cluster)


def try_many(cluster: Cluster) -> None:
    for host in cluster.hosts:
        cluster.until(f"{host} has it", lambda host=host: "web" in names(cluster, host, "network", "ls"))  # type: ignore[misc]
    cluster.mesh(
        "service", "create", "-d", "--name", "api", "--replicas", str(REPLICAS), "--network", "web", "--init",
        "--endpoint-mode", "dnsrr", "--image", BUSYBOX_IMAGE, "--pull", "missing", "--", "sleep", "1000000",
    )  # fmt: skip
    cluster.until("all replicas run", lambda: len(cluster.running("api")) == REPLICAS, ALL_S)
    with ThreadPoolExecutor(len(cluster.hosts)) as pool:
        for errors in pool.map(lambda host: run_others(cluster, host), cluster.hosts):
            assert errors == []
    running = cluster.running("api").values()
    assert Counter(node for node, _ in running) == dict.fromkeys(cluster.hosts, REPLICAS // 3)
    replicas = {address.partition("/")[0] for _, address in running}
    others = {address for host in cluster.hosts for address in other_addresses(cluster, host)}
    assert len(replicas) == REPLICAS
    assert len(others) == 3 * PER_HOST
    assert not replicas & others, "no address was given twice"
    for host in cluster.hosts:
        cluster.until("all are found", lambda host=host: named(cluster, host, "tasks.api.web.mesh") == replicas)  # type: ignore[misc]
        cluster.until("all others are", lambda host=host: named(cluster, host, "others.web.mesh") == others)  # type: ignore[misc]
    assert cluster.mesh("status").returncode == 0
    for host in cluster.hosts:
        ids = names(cluster, host, "ps", "--filter", "name=other")
        assert cluster.lab.exec(host, ["docker", "rm", "-f", *ids], timeout=ALL_S).returncode == 0
    cluster.mesh("service", "rm", "api")
    cluster.until("no task is left", lambda: cluster.rows("{{.ID}}", "task", "ls") == [], ALL_S)
    for host in cluster.hosts:
        cluster.until("no name is left", lambda host=host: named(cluster, host, "others.web.mesh") == set())  # type: ignore[misc]
        assert names(cluster, host, "ps", "-a") == []


def run_others(cluster: Cluster, host: str) -> list[str]:
    """Start containers as a user does, one after the other; what went wrong."""
    errors = []
    for number in range(PER_HOST):
        name = f"other-{host}-{number}"
        options = ("--name", name, "--network", "web", "--label", "mesh.service=others", "--init")
        done = cluster.lab.exec(host, ["docker", "run", "-d", *options, BUSYBOX_IMAGE, "sleep", "1000000"], ALL_S)
        if done.returncode:
            errors.append(done.stderr)
    return errors


def names(cluster: Cluster, host: str, *command: str) -> list[str]:
    template = "{{.Name}}" if command[0] == "network" else "{{.Names}}"
    return cluster.lab.exec(host, ["docker", *command, "--format", template], ALL_S).stdout.split()


def other_addresses(cluster: Cluster, host: str) -> list[str]:
    ids = names(cluster, host, "ps", "--filter", "name=other")
    template = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}"
    return cluster.lab.exec(host, ["docker", "inspect", "--format", template, *ids], ALL_S).stdout.split()


def named(cluster: Cluster, host: str, name: str) -> set[str]:
    """What a host's own listener answers; over TCP, for it is long."""
    return set(cluster.lab.exec(host, ["dig", "+short", "+tcp", "@127.0.0.153", name]).stdout.split())
