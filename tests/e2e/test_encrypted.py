"""An encrypted network of a whole cluster, as its user sees it, and as somebody on the wire between hosts does."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.e2e.conftest import Cluster

pytestmark = [pytest.mark.root, pytest.mark.e2e, pytest.mark.timeout(180)]


MARKER = "cleartext-marker"


@contextmanager
def captured(cluster: Cluster, host: str) -> Iterator[list[str]]:
    """The packets of a host's own device, as tcpdump tells them; in the list afterwards."""
    argv = [
        "setpriv",
        "--pdeathsig",
        "KILL",
        "--",
        "tcpdump",
        "-Z",
        "root",
        "--immediate-mode",
        "-lnAi",
        "eth0",
        "not port 7377",
    ]
    command, environment = cluster.lab.command(host, argv)
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace"
    )
    found: list[str] = []
    try:
        assert process.stderr is not None
        while "listening" not in process.stderr.readline():
            assert process.poll() is None
        yield found
        time.sleep(0.3)
    finally:
        process.terminate()
        found += process.communicate(timeout=10)[0].splitlines()


def get(cluster: Cluster, source: str, target: str) -> bool:
    return cluster.task(source, "curl", "-s", "-m", "5", f"http://{target}/{MARKER}").returncode == 0


def two(cluster: Cluster) -> tuple[str, str]:
    """A task of api on each of two hosts."""
    cluster.mesh("network", "create", "--encrypted", "secret")
    cluster.serve("api", 2, "--network", "secret", "--publish", "8080:80")
    nodes = {node: name for name, (node, _) in cluster.running("api").items()}
    assert set(nodes) == {"h1", "h2"}
    return nodes["h1"], nodes["h2"]


def test_an_encrypted_network_carries_services_and_published_ports_and_shows_nothing(cluster: Cluster) -> None:
    one, other = two(cluster)
    address = cluster.running("api")[other][1].partition("/")[0]
    cluster.until("they reach each other", lambda: get(cluster, one, address))
    with captured(cluster, "h1") as said:
        assert all(get(cluster, one, "api") for _ in range(4))
        assert get(cluster, one, address)
    assert any(".7947" in line for line in said), "WireGuard is there"
    assert not any(MARKER in line for line in said)
    assert not any(".4789:" in line for line in said)
    for host in cluster.hosts:
        url = f"http://{cluster.lab.address(host)}:8080/"
        seen = [cluster.outside("curl", "-s", "-m", "5", url).stdout for _ in range(4)]
        assert all("client=198.51.100.2:" in one for one in seen), "the client's own address"


def test_a_plain_network_shows_what_is_sent(cluster: Cluster) -> None:
    cluster.serve("api", 2, "--network", "web")
    nodes = {node: name for name, (node, _) in cluster.running("api").items()}
    with captured(cluster, "h1") as said:
        assert get(cluster, nodes["h1"], cluster.running("api")[nodes["h2"]][1].partition("/")[0])
    assert any(MARKER in line for line in said)


def test_what_is_encrypted_is_shown_to_its_user(cluster: Cluster) -> None:
    one, other = two(cluster)
    (shown,) = json.loads(cluster.mesh("network", "inspect", "secret").stdout)
    assert shown["spec"]["encrypted"] is True
    assert cluster.rows("{{.Name}}|{{.Encrypted}}", "network", "ls") == [
        ["secret", "true"],
        ["web", "false"],
    ]
    address = cluster.running("api")[other][1].partition("/")[0]
    cluster.until("they reach each other", lambda: get(cluster, one, address))
    assert "VXLAN inside WireGuard to h2" in cluster.mesh("trace", one, address, host="h1").stdout
    assert "encryption" in cluster.mesh("doctor", check=False).stdout
    for host in cluster.hosts:
        (file,) = (cluster.lab.exec(host, ["stat", "-c", "%a", "/var/lib/meshd/wireguard.json"]).stdout.split(),)
        assert file == ["600"]


def test_while_the_daemons_are_dead_it_goes_on_encrypted_and_after_their_restart(cluster: Cluster) -> None:
    one, other = two(cluster)
    address = cluster.running("api")[other][1].partition("/")[0]
    cluster.until("they reach each other", lambda: get(cluster, one, address))
    (netns,) = [n for n in cluster.lab.exec("h1", ["ls", "/run/netns"]).stdout.split() if n.startswith("mesh-t-")]

    def reached() -> bool:
        argv = ["ip", "netns", "exec", netns, "curl", "-s", "-m", "5", f"http://{address}/{MARKER}"]
        return cluster.lab.exec("h1", argv).returncode == 0

    for host in cluster.hosts:
        cluster.lab.kill_daemon(host)
    with captured(cluster, "h1") as said:
        assert all(reached() for _ in range(3))
    assert not any(MARKER in line for line in said)
    for host in reversed(cluster.hosts):  # the manager last: it would miss the other
        cluster.lab.start_daemon(host)
        assert all(reached() for _ in range(3))
