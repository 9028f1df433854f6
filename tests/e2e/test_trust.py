"""Trust between machines: what is on the wire, who is refused, and a change of the root with a node that is away."""

from __future__ import annotations

import json
import stat
import subprocess
import time
from pathlib import Path

import pytest

from mesh.lab.lab import Lab
from tests.e2e.conftest import Cluster, joined

pytestmark = [pytest.mark.root, pytest.mark.e2e, pytest.mark.timeout(240)]


def disk(lab: Lab, host: str) -> Path:
    return lab.directory / host / "disk"


def digest(cluster: Cluster) -> str:
    return cluster.mesh("ca", "show", "--format", "{{.Digest}}").stdout.strip()


def capture(lab: Lab, file: Path) -> subprocess.Popen[bytes]:
    """All TCP and UDP of the first host, into a file."""
    command, environment = lab.command("h1", ["tcpdump", "-Z", "root", "-i", "any", "-U", "-w", "-", "tcp or udp"])
    with file.open("wb") as out:
        return subprocess.Popen(command, env=environment, stdout=out, stderr=subprocess.DEVNULL)


def test_nothing_is_said_in_the_clear_and_secrets_are_nowhere(bare_lab: Lab, tmp_path: Path) -> None:
    file = tmp_path / "wire.pcap"
    tcpdump = capture(bare_lab, file)
    try:
        deadline = time.monotonic() + 20
        while not file.exists() or not file.stat().st_size:
            assert time.monotonic() < deadline, "tcpdump does not begin"
            time.sleep(0.1)
        cluster = joined(bare_lab, "500ms")
        cluster.serve("wiretest", 2, "--network", "web")
        token = cluster.mesh("token", "show", "worker", "-q").stdout.strip()
        other = cluster.mesh("token", "rotate", "worker", "-q").stdout.strip()
        time.sleep(1.0)
    finally:
        tcpdump.terminate()
        tcpdump.wait(10)
    wire = file.read_bytes()
    assert len(wire) > 50_000, "the machines have talked"
    identity = json.loads((disk(bare_lab, "h2") / "identity.json").read_text())
    key = (disk(bare_lab, "h2") / "tls/key.pem").read_bytes()
    secrets = {"a token": token, "another token": other, "a node's secret": identity["secret"]}
    for what in ("wiretest", "mesh.control.v1", identity["cluster_id"], identity["node_id"], *secrets.values()):
        assert what.encode() not in wire, f"{what} was sent in the clear"
    for host in ("h1", "h2"):
        log = (bare_lab.directory / host / "meshd.log").read_bytes()
        audit = disk(bare_lab, host) / "audit.log"
        for what, secret in (*secrets.items(), ("a key", key.decode().splitlines()[1])):
            assert secret.encode() not in log, f"{what} is in the log of {host}"
            assert not audit.exists() or secret.encode() not in audit.read_bytes(), f"{what} is in its audit log"
        readable = [p for p in disk(bare_lab, host).rglob("*") if p.is_file() and _others_read(p)]
        assert [p for p in readable if _holds(p, [*secrets.values(), "PRIVATE KEY"])] == []
        assert not _others_read(disk(bare_lab, host) / "tls")
    assert "Control/RotateToken" in (disk(bare_lab, "h1") / "audit.log").read_text()


def _others_read(path: Path) -> bool:
    return bool(path.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH))


def _holds(path: Path, secrets: list[str]) -> bool:
    data = path.read_bytes()
    return any(secret.encode() in data for secret in secrets)


@pytest.mark.hosts(3)
def test_the_root_is_changed_while_a_node_is_away(bare_lab: Lab) -> None:
    cluster = joined(bare_lab, "500ms")
    cluster.serve("api", 2, "--network", "web")
    before, first = digest(cluster), cluster.mesh("token", "show", "worker", "-q").stdout.strip()
    bare_lab.kill_daemon("h3")
    cluster.until("h3 is down", lambda: ["h3", "Down"] in cluster.rows("{{.Hostname}}|{{.Status}}", "node", "ls"))
    ids = cluster.mesh("task", "ls", "-q").stdout
    done = cluster.mesh("ca", "rotate", "--timeout", "50")
    after = digest(cluster)
    assert after != before
    assert done.stdout.splitlines()[-1] == after
    assert "1 down, not waited for" in done.stdout
    second = cluster.mesh("token", "show", "worker", "-q").stdout.strip()
    assert second.split("-")[3] == first.split("-")[3], "the secret stays"
    assert second.split("-")[2] == after
    cluster.until("h2 has its session", lambda: cluster.connected("h2"))
    bare_lab.start_daemon("h3")
    cluster.until("h3 is back with its key", lambda: cluster.connected("h3"))
    cluster.until("all nodes are ready", cluster.ready)
    root = cluster.mesh("ca", "show").stdout.encode()
    files = [disk(bare_lab, host) / "tls/roots.pem" for host in cluster.hosts]
    cluster.until("the old root is believed by nobody", lambda: all(file.read_bytes() == root for file in files))
    assert cluster.mesh("task", "ls", "-q").stdout == ids, "no task was touched"
    # A machine with the old token is told so before it says anything.
    cluster.mesh("leave", host="h2")
    refused = cluster.mesh("join", "--token", first, f"{bare_lab.address('h1')}:7377", host="h2", check=False)
    assert refused.returncode != 0
    assert "another digest" in refused.stderr
    cluster.mesh("join", "--token", second, f"{bare_lab.address('h1')}:7377", host="h2")


def test_a_stolen_disk_is_worth_nothing_once_the_node_is_removed(cluster: Cluster) -> None:
    refused = cluster.mesh("service", "ls", host="h2", check=False)
    assert refused.returncode == 6
    assert "(worker) may not call Control/List" in refused.stderr
    assert cluster.mesh("status", host="h2").returncode == 0
    # The thief has all of the disk, and the daemon that reads it.
    cluster.mesh("node", "rm", "--force", "h2")
    cluster.until("its session is ended", lambda: not cluster.connected("h2"))
    cluster.lab.kill_daemon("h2")
    cluster.lab.start_daemon("h2")
    time.sleep(3.0)
    assert not cluster.connected("h2")
    assert [h for (h,) in cluster.rows("{{.Hostname}}", "node", "ls")] == ["h1"]
    audit = (disk(cluster.lab, "h1") / "audit.log").read_text()
    assert "is not a member of the cluster (any more)" in audit
    assert '"call":"Control/Remove","who":"uid 0 on the local socket"' in audit


def test_a_node_does_not_start_with_files_that_others_may_know(cluster: Cluster) -> None:
    cluster.lab.kill_daemon("h2")
    (disk(cluster.lab, "h2") / "tls/key.pem").chmod(0o644)
    with pytest.raises(Exception, match=r"h2|not"):
        cluster.lab.start_daemon("h2")
    assert "can be used by others (mode 0644)" in (cluster.lab.directory / "h2/meshd.log").read_text()
