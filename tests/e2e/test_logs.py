"""What tasks print is read from any host, wherever they run."""

from __future__ import annotations

import subprocess

import pytest

from tests.e2e.conftest import Cluster

pytestmark = [pytest.mark.root, pytest.mark.e2e, pytest.mark.timeout(180)]
SAY = 'echo "hello from $(hostname)"; exec sleep 1000'


@pytest.mark.hosts(3)
def test_the_log_of_a_service_is_read_and_followed_from_any_host(cluster: Cluster) -> None:
    cluster.mesh("service", "create", "-d", "--name", "talk", "--replicas", "3", "--", "sh", "-c", SAY)
    cluster.until("it runs", lambda: len(cluster.running("talk")) == 3)
    nodes = {name: node for name, (node, _) in cluster.running("talk").items()}
    assert len(set(nodes.values())) == 3
    expected = sorted(f"{name}@{node} | hello from {name}" for name, node in nodes.items())

    def said(host: str) -> list[str]:
        return sorted(cluster.mesh("service", "logs", "talk", host=host).stdout.splitlines())

    cluster.until("all have said it", lambda: said("h1") == expected)
    far = next(name for name, node in nodes.items() if node != "h1")
    assert cluster.mesh("task", "logs", far).stdout == f"hello from {far}\n"

    follow = ["mesh", "service", "logs", "--follow", "--raw", "--tail", "1", "talk"]
    command, environment = cluster.lab.command("h1", follow)
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as reader:
        assert reader.stdout is not None
        try:
            before = sorted(reader.stdout.readline() for _ in nodes)  # it follows before there is another one
            assert before == sorted(f"hello from {name}\n" for name in nodes)
            cluster.mesh("service", "scale", "-d", "talk=4")
            assert reader.stdout.readline() == "hello from talk.4\n"
        finally:
            reader.kill()

    cluster.lab.kill("h3")
    template = "{{.Name}}|{{.Status}}"
    cluster.until("h3 is known to be down", lambda: ["h3", "Down"] in cluster.rows(template, "node", "ls"))
    rest = cluster.mesh("service", "logs", "talk", check=False)
    assert rest.returncode in (0, 1)
    assert 'node "h1" is away' not in rest.stderr
